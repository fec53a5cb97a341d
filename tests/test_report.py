"""The page of a selection: one file, without a network, in a real browser."""

import json
import os
import re

import pytest
from pruning_data import run
from test_compare import leave

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.reporting.page import report
from dp4tl_fast.selection.names import readable


@pytest.fixture(scope="module")
def page_file(data, tmp_path_factory):
    """The report of a selection for two targets, by clusters (so that every section is there)."""
    root = tmp_path_factory.mktemp("page")
    run(data, root / "s.json", "red", "blue", method="fm", merge="turns", report=str(root / "r.html"))
    run(data, root / "k.json", "red", "blue", method="fm", groups="kmeans", clusters=5, report=str(root / "k.html"))
    return root


def test_report_is_one_file_with_plots_beside(page_file):
    html = (page_file / "r.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", html), "the page must work without a network"
    assert html.count("data:image/jpeg;base64,") == 3 * 4  # every class of each selection
    assert "Overlap" in html and "s.red" in html and "labels_sha256" in html and "clusters kept" not in html
    assert "Classes that both keep" in html
    clusters = (page_file / "k.html").read_text()
    assert "clusters kept" in clusters and "Samples that both keep" in clusters
    for name in ("r-s-scores.svg", "r-s-scores.png", "r-s.red-scores.svg", "k-k-clusters.png"):
        assert (page_file / name).stat().st_size > 1000
    assert (page_file / "r-s-scores.png").read_bytes().startswith(b"\x89PNG")


def test_classes_by_their_names_for_people(page_file, data, tmp_path):
    """In the page, which has its plots beside it."""
    (tmp_path / "words.txt").write_text("class0\tcrimson, a deep red\nclass2 navy blue\nclass99\tinfrared\n\nclass1\n")
    names, source, s = str(tmp_path / "words.txt"), str(data / "source.beton"), str(page_file / "s.json")
    report(dirs=[s], out=str(tmp_path / "r.html"), source=source, names=names)
    html = (tmp_path / "r.html").read_text()
    assert all(f"<td>{name}</td>" in html for name in ("crimson", "class1", "navy blue", "class3")) and "class0" not in html
    assert (tmp_path / "r-s-scores.png").exists() and (tmp_path / "r-s-scores.svg").exists()
    assert readable(["class0", "class2"], "") == ["class0", "class2"]
    (tmp_path / "other.txt").write_text("class\tof nobody\n")
    for bad in ("other.txt", "no.txt", "r-s-scores.png"):
        with pytest.raises(UsageError, match=f"`names=.*{bad}"):
            report(dirs=[s], out=str(tmp_path / "r.html"), source=source, names=str(tmp_path / bad))


def test_overlap_of_record_selections_is_of_records(data, tmp_path):
    """The middle and the ends of every class: the same classes, and no record in common."""
    for name, reverse in (("a", False), ("b", True)):
        run(data, tmp_path / f"{name}.json", method="moderate", keep="0.5", reverse=reverse)
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    for source, expected in ((str(data / "source.beton"), ["100 %", "0 %", "0 %", "100 %"]), ("", [])):
        report(dirs=files, out=str(tmp_path / "r.html"), source=source)
        table = (tmp_path / "r.html").read_text().partition('id="overlap"')[2].partition("</table>")[0]
        assert re.findall(r"<td>(.*?)</td>", table) == expected


def open_page(browser, path, width, height, scheme="light"):
    """The page on file://, which asks for nothing else and has no error."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True)
    requests, page.errors = [], []
    page.on("request", lambda r: requests.append(r.url))
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.goto(path.as_uri())
    assert [r for r in requests if not r.startswith("data:")] == [path.as_uri()]
    return page


FITS = "document.documentElement.scrollWidth <= window.innerWidth"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_in_a_browser(browser, page_file, scheme):
    """As wide as a phone: no request, no error, nothing overflows, the table sorts and filters."""
    page = open_page(browser, page_file / "r.html", 360, 740, scheme)
    assert page.evaluate(FITS)
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    ink, paper = (
        sum(map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
        for name in ("color", "backgroundColor")
    )
    assert (ink > paper) == (scheme == "dark") and abs(ink - paper) > 500  # of 765: readable
    page.click("summary >> nth=0")
    names = "[...document.querySelector('table.sortable').tBodies[0].rows].map(r => r.cells[%d].textContent)"
    assert page.evaluate(names % 1) == ["1", "2", "3", "4"]
    for _ in range(2):
        page.click("table.sortable >> nth=0 >> button:has-text('id')")
    assert page.evaluate(names % 6) == ["3", "2", "1", "0"]
    page.click("table.sortable >> nth=0 >> button:has-text('class')")
    assert page.evaluate(names % 0) == ["class0", "class1", "class2", "class3"]
    page.fill("input[type=search] >> nth=0", "CLASS2")
    rows = "[...document.querySelector('table.sortable').tBodies[0].rows]"
    assert page.evaluate(rows + ".filter(r => !r.hidden).map(r => r.cells[0].textContent)") == ["class2"]
    assert not page.errors
    page.close()


@pytest.fixture(scope="module")
def ten_runs(tmp_path_factory):
    """A page of ten rows, of two seeds each, by methods and shares, with every column."""
    root = tmp_path_factory.mktemp("ten")
    for seed in (0, 1):
        for i, (method, kept) in enumerate([("full", 10), *((m, k) for m in ("lm", "fm", "random") for k in (2, 4, 8))]):
            leave(root, method, seed, 1200.5 - 100 * i + seed, kept=kept, gpu_hours=1.5, samples_per_s=12345.0,
                  bytes_read=123456789012, val_top_1=0.5 + 0.01 * (seed + i), source="s.beton")  # fmt: skip
            for mode in ("ff", "knn"):
                folder = root / f"{method}-{kept}-{seed}-2-"
                probe = {"kind": "finetune", "mode": mode, "checkpoint": str(folder), "top_1": [0.9 - 0.01 * i]}
                (root / f"{folder.name}{mode}").mkdir()
                (root / f"{folder.name}{mode}/summary.json").write_text(json.dumps(probe))
    report(dirs=[str(root)], out=str(root / "r.html"))
    return root / "r.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ten_runs_side_by_side(browser, ten_runs, scheme):
    """At 1,200 px the main table needs no scroll bar, accuracies come first, and ten rows are compared with one of them."""
    page = open_page(browser, ten_runs, 1200, 900, scheme)
    assert page.evaluate(FITS)
    assert page.evaluate("(t => t.parentElement.scrollWidth <= t.parentElement.clientWidth)(document.getElementById('main'))")
    titles = "[...document.querySelectorAll('#main th')].map(t => t.textContent)"
    assert page.evaluate(titles)[:5] == ["selection", "LP %", "FF %", "kNN %", "val %"]
    assert page.text_content("h1 + p").startswith("Pretraining on 80 % of the classes (fm) was 1.98x as fast ")
    first = "[...document.querySelectorAll('#main tbody tr')].filter(r => !r.hidden).map(r => r.cells[%d].textContent)"
    page.click("#main button:has-text('FF %')")
    assert page.evaluate(first % 3)[0] == "81.0 ± 0.0" and page.evaluate(first % 1)[-1] == "full"
    page.fill("input[data-filters=main]", "random 81.0")
    assert page.evaluate(first % 1) == ["random"]
    page.fill("input[data-filters=main]", "")
    for box in page.query_selector_all("#main tbody input"):
        box.check()
    assert page.text_content("#comparison h3") == "10 rows side by side"
    cells = "[...document.querySelectorAll('#comparison tr')].map(r => [...r.cells].map(c => c.textContent))"
    table = {row[0]: row[1:] for row in page.evaluate(cells)}
    assert table["FF %"][0] == "81.0 ± 0.0" and table["FF %"][-1] == "90.0 ± 0.0 +9.0"
    assert table["classes"][-1] == "10 ×1.25" and len(table["classes"]) == 10
    assert page.evaluate(FITS) and page.evaluate("(c => c.scrollWidth <= c.clientWidth)(document.getElementById('comparison'))")
    with page.expect_download() as download:
        page.click("a[download]")
    assert download.value.path().read_text().count("\n") == 11
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate(FITS) and not page.errors
    if folder := os.environ.get("SCREENSHOTS"):
        for width in (1200, 360):
            page.set_viewport_size({"width": width, "height": 900})
            page.screenshot(path=f"{folder}/page-{scheme}-{width}.png", full_page=True)
    page.close()
