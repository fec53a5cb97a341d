"""``dp4tl-fast selection``, and upstream's ``.indices`` files."""

import json
import os
import re

import pytest
import torch
from pruning_data import run

from dp4tl_fast.__main__ import main as dispatch
from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import SelectionError
from dp4tl_fast.selection import Selection


def test_selection_command(data, tmp_path, capsys):
    source = str(data / "source.beton")
    run(data, tmp_path / "a.json", method="handpicked", classes=["class0", "0", "class1"], keep="")
    run(data, tmp_path / "b.json", method="handpicked", classes=["class1", "class3"], keep="")

    def command(*words):
        code = dispatch(["selection", *map(str, words)])
        return code, capsys.readouterr()

    a, b, out = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "out.json"
    code, text = command("show", a, "--source", source)
    assert code == 0 and "handpicked, 2 of 4 classes" in text.err and re.search(r"kept +class1", text.err)
    (tmp_path / "words.txt").write_text("class1\tvermilion\n")
    code, text = command("show", a, "--source", source, "--names", tmp_path / "words.txt")
    assert code == 0 and re.search(r"kept +vermilion", text.err) and "class1" not in text.err
    code, text = command("diff", a, b, "--source", source, "--json")
    assert code == 0 and json.loads(text.out)["only"] == [[0], [3]] and "class3" in text.err
    assert command("union", a, b, "--source", source, "--out", out)[0] == 0
    assert Selection.load(out).kept_classes == [0, 1, 3]
    assert command("intersect", a, b, "--source", source, "--out", out)[0] == 0
    assert Selection.load(out).kept_classes == [1]
    indices = tmp_path / "s.indices"
    assert command("export", a, "--source", source, "--out", indices)[0] == 0
    assert torch.load(indices, weights_only=True).tolist() == Selection.load(a).indices(Beton(source)).tolist()
    assert command("import", indices, "--source", source, "--out", out)[0] == 0
    assert Selection.load(out).kept_classes == [0, 1] and Selection.load(out).records is None
    torch.save(torch.tensor([5, 1, 30]), indices)
    assert command("import", indices, "--source", source, "--out", out)[0] == 0
    assert Selection.load(out).indices(Beton(source)).tolist() == [1, 5, 30]
    assert command("intersect", a, out, "--source", source, "--out", out)[0] == 0
    assert Selection.load(out).indices(Beton(source)).tolist() == [1, 5]
    for bad in ("frobnicate", "union", "show"):
        assert command(bad)[0] == 2
    assert command("union", a, b)[0] == 2  # without --source and --out

    weighted = tmp_path / "w.json"
    run(data, weighted, keep="0.5", per_class=3)
    before = out.read_bytes()
    capsys.readouterr()
    for words in (("union", a, weighted), ("intersect", weighted, a), ("export", weighted)):
        code, text = command(*words, "--source", source, "--out", out)
        assert code == 2 and out.read_bytes() == before
        assert text.err.startswith(f"dp4tl-fast selection: {weighted}: is weighted") and "--per-class" in text.err


@pytest.mark.parametrize(
    "value", [torch.tensor([0.5]), torch.tensor([[1]]), torch.tensor([48]), torch.tensor([-1]), torch.tensor([3, 3]),
              torch.zeros(0, dtype=torch.int64), {"a": torch.tensor([1])}, "code"],
)  # fmt: skip
def test_indices_are_not_trusted(data, tmp_path, value):
    from dp4tl_fast.selection.upstream import import_indices

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'owned'}",))

    torch.save(Evil() if isinstance(value, str) else value, tmp_path / "x.indices")
    with pytest.raises(SelectionError, match=r"x\.indices"):
        import_indices(tmp_path / "x.indices", Beton(data / "source.beton"))
    assert not (tmp_path / "owned").exists()
