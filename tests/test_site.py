"""The site builds without a warning (a link or anchor that leads nowhere is one), and has what it should have."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dp4tl_fast
from dp4tl_fast.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    recipe = re.search(r"^docs:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    options = re.search(r"\$\(PY\) (-m mkdocs build --strict.*)", recipe)[1].split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, *options, "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site):
    page = (site / "python.html").read_text()
    for name in set(dp4tl_fast.__all__) - {"__version__"}:
        assert re.search(rf'<h3 id="dp4tl_fast\.{name}"', page), name
    assert "Images per batch and rank." in page


def test_every_command_and_its_flags_are_in_the_reference(site):
    page = (site / "commands.html").read_text()
    for name in COMMANDS:
        assert f'<h2 id="{name}"' in page and f"usage: dp4tl-fast {name}" in page
    assert "--train-surrogate" in page


def test_the_readme_is_the_home_page(site):
    page = (site / "index.html").read_text()
    assert "Pretrain only on what your task needs" in page
    assert 'href="pruning.html"' in page and 'src="end-to-end.png"' in page and (site / "end-to-end.png").exists()


def test_programs_that_are_linked_to_are_shown(site):
    assert 'href="files/examples/plain_loop.py.html"' in (site / "own-code.html").read_text()
    assert "load_state_dict" in (site / "files/examples/plain_loop.py.html").read_text()
    assert 'href="files/benchmarks/results/loaders.json"' in (site / "results.html").read_text()
    assert (site / "files/benchmarks/results/loaders.json").exists()


def test_the_notebook_has_its_pictures(site):
    page = (site / "which-classes.html").read_text()
    pictures = re.findall(r'<img [^>]*src="(files/[^"]+\.png)"', page)
    assert len(pictures) == 8 and all((site / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_nothing_is_fetched(site):
    """Scripts, styles and pictures of every page are its own."""
    for page in site.rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)\b[^>]*?(?:src|href)="([^"]+)"', page.read_text())
        assert fetched and not [url for url in fetched if re.match(r"(https?:)?//", url)], page


def test_it_is_read_and_searched_from_files(site, browser):
    """Without a server: no error, nothing from the network, no page wider than a phone, and the search finds what is there."""
    page, errors, requests = browser.new_page(viewport={"width": 390, "height": 800}), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    for name in sorted(site.glob("*.html")):
        page.goto(name.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto((site / "index.html").as_uri())
    page.click(".md-search__input")
    page.keyboard.type("torchrun", delay=20)  # in milliseconds: as from a keyboard
    page.wait_for_selector(".md-search-result__item")
    assert "cluster.html" in page.inner_html(".md-search-result__list")
    assert errors == [] and [url for url in requests if not url.startswith(("file:", "data:"))] == []
    page.close()
