"""The README's numbers and tables are generated, never typed."""

from pathlib import Path

from benchmarks.readme import fill

README = Path(__file__).parent.parent / "README.md"


def test_generated_blocks_are_up_to_date():
    text = README.read_text()
    assert fill(text) == text, "run `python -m benchmarks.readme`"
    assert "| full |" in text and "| native |" in text


def test_pictures_exist():
    import re

    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README.read_text())
    assert links and all((README.parent / link).exists() for link in links)
