"""The io suite on a small file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import io
from dp4tl_fast.beton import Beton


@pytest.mark.parametrize("layout", ["class", "shuffled"])
def test_every_subject_reads_the_wanted_records(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "FILE_BYTES", 60 << 20)
    path = tmp_path / "small.beton"
    io.write(path, layout)
    beton = Beton(path)
    assert beton.layout == layout
    assert len(np.unique(beton.labels)) == io.CLASSES
    kept = io.Kept(20).indices(beton)
    assert len(np.unique(beton.labels[kept])) == io.CLASSES // 5
    for subject in io.OURS:
        result = io.measure(subject, path, 20)
        assert result["wanted"] == beton.sizes[kept].sum() / beton.file_size
        assert result["seconds"] > 0
        assert result["read"] < 1  # of the whole file, parts of libraries that are loaded late included


def test_a_failing_subject_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)nothing, 20 %: .*no such file"):
        io.measure("nothing", tmp_path / "absent.beton", 20)
