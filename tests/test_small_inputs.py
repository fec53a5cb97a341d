"""Small things that bite: values of flags, byte order marks, links as outputs, names that are not UTF-8."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from source_cases import image, make_tar, put

from dp4tl_fast.__main__ import main as dispatch
from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.checks import class_id
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.inference.accuracy import read_groups
from dp4tl_fast.mapping.baselines import handpicked
from dp4tl_fast.pruning.score_table import read_scores
from dp4tl_fast.reporting.page import report_selections
from dp4tl_fast.selection import Selection
from dp4tl_fast.selection.names import readable

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def beton(tmp_path: Path) -> Beton:
    put(tmp_path / "tree", {f"{name}/{k}.jpg": image(k) for name in ("2", "-dash", "1", "cat") for k in range(2)})
    convert(str(tmp_path / "tree"), str(tmp_path / "o.beton"))
    return Beton(tmp_path / "o.beton")


# -- flags ------------------------------------------------------------------------------------------------------------


def test_a_name_that_is_another_classs_id_is_asked_about(beton: Beton) -> None:
    names = beton.class_names
    assert names == ["-dash", "1", "2", "cat"]
    assert [class_id(given, names) for given in ("cat", "0", "1", "2", "id:3", "name:cat")] == [3, 0, 1, 2, 3, 3]
    shifted = ["cat", "0", "1"]
    with pytest.raises(UsageError, match="`classes=1`: is the name of class 2 and the id of class '0'"):
        class_id("1", shifted)
    assert (class_id("name:1", shifted), class_id("id:1", shifted)) == (2, 1)
    assert handpicked(["name:1", "cat"], shifted).tolist() == [1, 0, 1]
    for given in ("7", "id:7", "name:dog", "dog", ""):
        with pytest.raises(UsageError, match="no such class"):
            class_id(given, shifted)


def test_values_that_begin_with_a_dash(beton: Beton, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "s.beton")
    assert dispatch(["subset", str(beton.path), out, "--classes", "-dash", "--classes", "cat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 4
    assert set(Beton(out).labels.tolist()) == {0, 3}
    assert dispatch(["subset", str(beton.path), out, "--classes", "--json"]) == 2, "a flag is no value"


def test_values_that_begin_with_a_bracket() -> None:
    def seen(*, names: list[str] = [], name: str = "") -> dict[str, object]:  # noqa: B006
        """See.

        Args:
            names: Names.
            name: A name.
        """
        found.append((names, name))
        return {}

    found: list[tuple[list[str], str]] = []
    for argv in (["--names", "[x"], ["--names", "[0]x"], ["--name", "[x]"], ["--names", "name:[x]"]):
        assert cli.run(seen, argv) == 0
    assert found == [(["[x"], ""), (["[0]x"], ""), ([], "[x]"), (["name:[x]"], "")]


def test_an_empty_source_is_not_the_current_folder(beton: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "tree")
    for src in ("", " "):
        with pytest.raises(UsageError, match="`src` is empty"):
            convert(src, str(tmp_path / "p.beton"))


# -- byte order marks -------------------------------------------------------------------------------------------------


def test_tables_may_begin_with_a_byte_order_mark(beton: Beton, tmp_path: Path) -> None:
    rows = "".join(f"{name},{i}\n" for i, name in enumerate(beton.class_names))
    (tmp_path / "scores.csv").write_bytes(BOM + f"class,score\n{rows}".encode())
    assert read_scores(str(tmp_path / "scores.csv"), beton)[1].tolist() == [0, 1, 2, 3]
    (tmp_path / "groups.csv").write_bytes(BOM + b"index,group\n" + b"".join(b"%d,g%d\n" % (i, i % 2) for i in range(8)))
    assert read_groups(str(tmp_path / "groups.csv"), beton)[0] == ["g0", "g1"]
    (tmp_path / "names.txt").write_bytes(BOM + b"-dash\tsprint\ncat\tfeline, mouser\n")
    assert readable(beton.class_names, str(tmp_path / "names.txt")) == ["sprint", "1", "2", "feline"]


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -- outputs ----------------------------------------------------------------------------------------------------------


def test_a_link_as_output_stays_and_its_target_is_written(tmp_path: Path) -> None:
    put(tmp_path, {"tree/a/1.jpg": image(), "tree/b/1.jpg": image(), "store": None, "here": None})
    link = tmp_path / "here/o.beton"
    link.symlink_to("../store/real.beton")  # to nothing yet, then to a file
    for seed in range(2):
        convert(str(tmp_path / "tree"), str(link), seed=seed)
        assert link.is_symlink() and files(link.parent) == ["o.beton"]
        assert files(tmp_path / "store") == ["real.beton", "real.info.zip"]
        assert Beton(link).class_names == Beton(tmp_path / "store/real.beton").class_names == ["a", "b"]
    text = tmp_path / "here/x.json"
    text.symlink_to("../store/x.json")
    write_atomically(text, "{}")
    assert text.is_symlink() and (tmp_path / "store/x.json").read_text() == "{}"


def test_class_names_that_are_not_utf8_reach_every_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "tree", {b"caf\xe9/1.jpg": image(), "tea/1.jpg": image()})
    convert(str(tmp_path / "tree"), str(tmp_path / "o.beton"))
    assert Beton(tmp_path / "o.beton").class_names == ["caf\udce9", "tea"]
    write_atomically(tmp_path / "page.html", "<p>caf\udce9</p>")
    assert (tmp_path / "page.html").read_bytes() == b"<p>caf\xe9</p>"
    assert dispatch(["convert", str(tmp_path / "tree"), str(tmp_path / "o.beton"), "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    assert [c["name"] for c in json.loads(captured.out)["classes"]] == ["caf\udce9", "tea"]
    assert "caf\ufffd" in captured.err
    assert dispatch(["inspect", str(tmp_path / "o.beton")]) == 0
    assert "caf\ufffd" in capsys.readouterr().err
    beton = Beton(tmp_path / "o.beton")
    selection = Selection.of_classes(beton, np.array([0]), method="random", scores=np.array([1.0, 0.5]))
    selection.save(tmp_path / "s.json")
    report_selections([str(tmp_path / "s.json")], str(beton.path), str(tmp_path / "r.html"))
    assert "caf\ufffd" in (tmp_path / "r.html").read_text("utf-8")
    assert readable(beton.class_names, "") == ["caf\ufffd", "tea"]


# -- dry run ----------------------------------------------------------------------------------------------------------


def test_dry_run_says_what_would_be_converted_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"data/b/1.jpg": image(), "data/b/2.jpg": b"not looked at", "data/a/1.png": image(1, "PNG"), "data/a/Thumbs.db": b"x",
             "data/a/1.json": b"{}", "data/README": b"x"}  # fmt: skip
    put(tmp_path / "tree", files)
    make_tar(tmp_path / "tree.tar", files.items())
    for src in ("tree", "tree.tar"):
        before = sorted(tmp_path.iterdir())
        assert dispatch(["convert", str(tmp_path / src), str(tmp_path / "o.beton"), "--dry-run", "--json"]) == 0
        captured = capsys.readouterr()
        result = json.loads(captured.out)
        assert sorted(tmp_path.iterdir()) == before
        assert (result["samples"], result["bytes"]) == (3, len(image()) + len(image(1, "PNG")) + 13)
        assert result["classes"] == [{"id": 0, "name": "a", "samples": 1}, {"id": 1, "name": "b", "samples": 2}]
        assert result["rules"] == ["the root is data, the only folder"]
        assert result["left_out"] == {
            "a system file": 1, "an annotation or checksum beside the images": 1, "no image, and in no class folder": 1
        }  # fmt: skip
        assert "3 images in 2 classes" in captured.err and "left out    1: a system file (" in captured.err
        assert "README" in captured.err and "Thumbs.db" in captured.err


def test_dry_run_of_many_files_takes_no_look_at_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the headers of a tar are read."""
    rows = [(f"n{c:02}/{k}.JPEG", image(k % 3)) for c in range(20) for k in range(50)]
    make_tar(tmp_path / "x.tar", rows)
    reads: list[int] = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: reads.append(n) or real(fd, n, at))
    result = convert(str(tmp_path / "x.tar"), str(tmp_path / "o.beton"), dry_run=True)
    assert result["samples"] == 1000
    assert sorted(reads)[:-1] == [512] * 1001, "a header per member, an empty one, and the padding behind it"
