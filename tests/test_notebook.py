"""``examples/which_classes.ipynb``: it runs as it stands, shows what its text says, and is kept as it was executed."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

PATH = Path(__file__).parent.parent / "examples/which_classes.ipynb"


def shown(notebook):
    """Text that its cells printed, and the number of its pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def check(notebook):
    text, pictures = shown(notebook)
    assert pictures == 8
    assert not re.search(r"/tmp|/home|/root|Traceback|Warning", text)
    share = {int(k): int(percent) for k, percent in re.findall(r"the first +(\d+) classes: (\d+)%", text)}
    assert sorted(share) == [20, 40, 74, 100]
    # A quarter of all classes are glyphs: 74 drawn at random would have 25 % of them, with a standard deviation of 4.4 %.
    assert share[74] >= 50
    assert int(re.search(r"kept: (\d+) of 297 classes", text)[1]) < 100


def test_the_notebook_is_kept_as_it_was_executed():
    check(nbformat.read(PATH, nbformat.NO_CONVERT))


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PATH.parent.parent))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(PATH, nbformat.NO_CONVERT)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    check(notebook)
    assert not list(tmp_path.rglob("*.beton")), "it leaves nothing"
