"""The parity and gpu suites on a few small images: what they measure is measured, as far as a CPU goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from native_files import jpeg, picture, write

from benchmarks import gpu, parity
from benchmarks.harness import Suite
from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders import BACKENDS


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    return write(tmp_path_factory.mktemp("suites") / "small.beton", [jpeg(picture(60, 50, i)) for i in range(30)])


def test_the_gpu_suite_measures_every_backend(beton: Beton) -> None:
    suite = Suite(name="gpu")
    gpu.measure(suite, beton, "cpu", images=90, batch=16, size=32)
    rows = {(row.case, row.subject): row for row in suite.rows}
    for backend in gpu.BACKENDS:
        assert rows["images-on-the-device", backend].value > 0
    assert rows["time-in-copies-of-pixels", "native"].value > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the suite would run")
def test_the_gpu_suite_says_what_it_needs() -> None:
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        gpu.run(Suite(name="gpu"))


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
