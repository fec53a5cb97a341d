"""What CONTRIBUTING.md and the other pages name is there, and a commit is checked as `make lint` checks."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    path = ROOT / page
    for link in re.findall(r"\]\(((?!https?:)[^)#]+)\)", path.read_text()):
        assert (path.parent / link).exists(), link


def test_the_tests_of_a_room_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = {name.split("::")[0] for name in re.findall(r"tests/[\w/*.]+", text)}
    assert len(named) > 20 and all(list(ROOT.glob(name)) for name in named), named


def test_a_commit_is_checked_as_make_lint_checks():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    commands = re.findall(r"\$\(PY\) (.*)", recipe)
    assert [hook["entry"] for hook in hooks] == [f".venv/bin/python {command}" for command in commands] != []


def test_what_holds_a_promise_exists():
    """Each file and test that docs/reliability.md names: `FILE`, `FILE: TEST` or `TEST`, and `test_a_...` by its beginning."""
    texts = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    texts |= {path.name: path.read_text() for path in (ROOT / "kernels/csrc/tests").glob("*.cpp")}
    named = re.findall(r"`([^`\n]*(?:test_|\.cpp)[^`\n]*)`", (ROOT / "docs/reliability.md").read_text())
    assert len(named) > 60
    for each in named:
        file, test = re.fullmatch(r"(?:(\S+\.(?:py|cpp)))?(?:: )?(\S+)?", each).groups("")
        assert "/" not in file or (ROOT / file).exists(), each
        among = "\n".join(texts.values()) if not file else texts[Path(file).name]
        end = r"\w+\(" if test.endswith("...") else r"\("
        assert not test or re.search(rf"^(?:def|void) {test.removesuffix('...')}{end}", among, re.MULTILINE), each
