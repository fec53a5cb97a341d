"""The parity and io suites on a few small images: what they measure is measured, as far as a CPU goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from native_files import jpeg, picture, write

from benchmarks import io, parity
from benchmarks.loaders import Images
from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders import BACKENDS


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    return write(tmp_path_factory.mktemp("suites") / "small.beton", [jpeg(picture(60, 50, i)) for i in range(30)])


def test_pixel_differences_are_those_of_an_image(beton: Beton) -> None:
    for backend in BACKENDS:
        means, most = parity.pixel_differences(beton, backend)
        assert len(means) == len(most) == 30
        assert all(0 <= a <= b <= 255 for a, b in zip(means, most, strict=True))
        assert (max(most) == 0) == (backend == parity.ORACLE)


def test_accuracy_counts_every_record_once(beton: Beton) -> None:
    class Always(torch.nn.Module):  # class 2 of labels 0 .. 6
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.eye(7)[2].expand(len(images), 7)

    share = 100 * float((beton.labels == 2).mean())
    for backend in BACKENDS:
        assert parity.accuracy(Always(), beton, backend) == pytest.approx(share)


def test_class_folders_are_found_below_a_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "set" / split / "cat").mkdir(parents=True)
        (tmp_path / "set" / split / "cat" / "1.jpg").touch()
    assert parity.class_folders(tmp_path, "test") == tmp_path / "set" / "test"
    with pytest.raises(SystemExit, match="no val folder"):
        parity.class_folders(tmp_path, "val")


def test_the_two_layouts_hold_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for i in range(5):
        (tmp_path / "a" / f"{i}.jpg").write_bytes(jpeg(picture(60, 50, i)))
    (tmp_path / "a" / "grey.jpg").write_bytes(jpeg(picture(60, 50, 5), "L"))  # not every peer decodes these
    (tmp_path / "a" / "late.jpg").write_bytes(jpeg(picture(60, 50, 6), progressive=True))
    monkeypatch.setattr(io, "FILE_BYTES", 400_000)
    monkeypatch.setattr(io, "CLASSES", 7)
    paths = tmp_path / "class.beton", tmp_path / "shuffled.beton"
    io.write_layouts(Images(tmp_path), *paths)
    by_class, shuffled = map(Beton, paths)
    assert (by_class.layout, shuffled.layout) == ("class", "shuffled")
    assert 390_000 < by_class.sizes.sum() == shuffled.sizes.sum() <= 400_000
    order = shuffled.index.argsort()
    assert (shuffled.labels[order] == by_class.labels).all() and (shuffled.sizes[order] == by_class.sizes).all()
    assert by_class.num_classes == 7 and len(np.unique(by_class.sizes)) == 5


def test_label_mixing_tells_a_shuffle_from_runs() -> None:
    labels = np.arange(256 * 40) % 40
    distinct, chi = io.mixing(np.random.default_rng(0).permutation(labels), 40)
    assert len(distinct) == len(chi) == 40 and min(distinct) > 35
    assert np.mean(chi) == pytest.approx(1, abs=0.2)  # 40 batches of 39 degrees of freedom: a standard error of 0.04
    distinct, chi = io.mixing(np.sort(labels), 40)
    assert set(distinct) == {1} and chi == pytest.approx([256] * 40)  # (256 - 6.4)^2 / 6.4 and 39 times 6.4, by 39


def test_excess_is_what_nobody_asked_for() -> None:
    assert io.excess({"read": 500, "wanted": 400, "file": 1000}) == 0.1
    assert io.excess({"read": 300, "wanted": 400, "file": 1000}) == -0.1  # rows below the crop were never touched
