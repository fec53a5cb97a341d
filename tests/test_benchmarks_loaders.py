"""The loaders that are compared deliver what they are timed for: every image of the folder, cropped, normalised, at random."""

from __future__ import annotations

import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from native_files import jpeg, write

from benchmarks import loader_subjects
from benchmarks.child import call
from benchmarks.harness import Suite
from benchmarks.loader_limits import LIMITS, limit
from benchmarks.loader_subjects import MEAN, STD, SUBJECTS, check_images, images_of
from benchmarks.loaders import SLOW_EPOCH, Loading, case, entropy_rate
from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton.format import MODE_RAW

pytestmark = pytest.mark.usefixtures("tests_on_the_childs_path")
COLOURS = ((250, 10, 10), (10, 250, 10), (10, 10, 250), (240, 240, 240), (20, 20, 20), (128, 30, 200))
# What only the extras `bench` and `bench-streaming` bring: `make test` installs FFCV and DALI, and neither may be missing.
LIBRARIES = {
    "spdl": "spdl", "tf.data": "tensorflow", "turboloader": "turboloader", "litdata": "litdata", "mosaicml-streaming": "streaming",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """JPEGs of one colour each, as a .beton and as files."""
    root = tmp_path_factory.mktemp("subjects")
    jpegs = [jpeg(np.full((90, 120, 3), colour, np.uint8)) for colour in COLOURS]
    beton = write(root / "colours.beton", jpegs)
    (root / "files").mkdir()
    for i, data in enumerate(jpegs):
        (root / "files" / f"{i:06}.jpg").write_bytes(data)
    return {"file": str(beton.path), "folder": str(root / "files")}


def colours_of(name: str, options: dict) -> list[list[float]]:
    """Runs in the child: the mean colour of every image of an epoch, and its largest distance from it."""
    found = []
    for batch in SUBJECTS[name](options)():
        images = images_of(batch).float()
        mean = images.mean((2, 3))
        found += torch.cat([mean, (images - mean[:, :, None, None]).abs().amax((1, 2, 3))[:, None]], 1).tolist()
    return found


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_image_arrives_once_in_its_colours(name: str, files: dict[str, str]) -> None:
    if name in LIBRARIES and find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"{LIBRARIES[name]} is a peer of the extra `bench`, not installed here")
    options = {**files, "threads": 1, "images": 2 * len(COLOURS), "size": 32}
    try:
        found = call(colours_of, name=name, options=options)
    except RuntimeError as error:
        if name in LIBRARIES and ("ModuleNotFoundError" in str(error) or "libav" in str(error)):
            pytest.skip(f"{LIBRARIES[name]} lacks what it needs: {str(error).splitlines()[-1]}")
        raise
    rows = np.array(found)
    # A JPEG of one colour keeps it within two levels (a level is below 0.02), and fp16 rounds below 0.001.
    assert rows[:, 3].max() < 0.05
    wanted = np.repeat((np.array(COLOURS) / 255 - MEAN) / STD, 2, axis=0)
    nearest = np.abs(rows[:, None, :3] - wanted[None, ::2]).max(2)
    assert nearest.min(1).max() < 0.06
    assert np.bincount(nearest.argmin(1)).tolist() == [2] * len(COLOURS)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(4, 3, 32, 31, dtype=torch.float16),
        torch.randn(4, 3, 32, 32, dtype=torch.float64),
        torch.zeros(4, 3, 32, 32, dtype=torch.float16),  # all alike
        torch.rand(4, 3, 32, 32) * 255,  # not normalised
    ],
    ids=["size", "dtype", "alike", "range"],
)
def test_a_wrong_batch_is_not_timed(images: torch.Tensor) -> None:
    with pytest.raises(SystemExit, match="is not what was asked for"):
        check_images("peer", images, 32)
    check_images("peer", torch.rand(4, 3, 32, 32).half(), 32)


def test_a_subject_that_is_not_installed_is_left_out_by_name(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loading, "__call__", lambda self: 1.0)
    suite = Suite(name="loaders")
    one = (Path(files["file"]), Path(files["folder"]), 1)
    case(suite, "jpeg", {"ours": ("ours", *one), "peer": ("no such loader", *one)}, "ours")
    assert [row.subject for row in suite.rows] == ["ours"]
    assert "no such loader" in suite.left_out["peer"]
    assert set(loader_subjects.SUBJECTS) > {"tf.data", "turboloader", "litdata", "mosaicml-streaming"}


def test_a_subject_that_dies_is_left_out_and_others_are_measured(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    turns: dict[int, int] = {}

    def call(self: Loading) -> float:
        turns[id(self)] = turns.get(id(self), 0) + 1
        if self.images == SLOW_EPOCH and turns[id(self)] == 4:
            self._process.kill()
            self._process.wait()
        return self.images / self.work()

    monkeypatch.setattr(Loading, "__call__", call)
    suite, one = Suite(name="loaders"), (Path(files["file"]), Path(files["folder"]), 1)
    samples = case(suite, "jpeg", {"ours": ("ours", *one), "peer": ("torchvision-io", *one)}, "ours")
    assert samples.keys() == {"ours"} and len(samples["ours"]) == 5 and min(samples["ours"]) > 0
    assert [row.subject for row in suite.rows] == ["ours"] and suite.left_out.keys() == {"peer"}


@pytest.mark.parametrize("name", LIMITS)
def test_the_limits_do_an_epochs_work(name: str, files: dict[str, str], tmp_path: Path) -> None:
    if name == "limit-copy":
        images = [np.full((60, 80, 3), colour, np.uint8) for colour in COLOURS]
        with BetonWriter(tmp_path / "raw.beton", len(images)) as writer:
            for i, image in enumerate(images):
                writer.append(image.tobytes(), MODE_RAW, 80, 60, 0, i)
            writer.close()
        files = {**files, "file": str(tmp_path / "raw.beton")}
    assert limit(name, {**files, "threads": 2, "images": 300, "size": 32})(1) > 0


def test_the_copy_limit_writes_to_memory_that_it_has(tmp_path: Path) -> None:
    """Clearing the pages of a new batch costs as much as writing it: a limit with that cost is one that loaders exceed."""
    with BetonWriter(tmp_path / "raw.beton", 1) as writer:
        writer.append(bytes(80 * 60 * 3), MODE_RAW, 80, 60, 0, 0)
        writer.close()
    seconds = limit("limit-copy", {"file": str(tmp_path / "raw.beton"), "threads": 1, "images": 600, "size": 64})
    seconds(0)
    tracemalloc.start()
    try:
        seconds(1)
        assert tracemalloc.get_traced_memory()[1] < 256 * 3 * 64 * 64 * 2  # less than a batch
    finally:
        tracemalloc.stop()


def test_entropy_decoding_is_stated_in_bits(files: dict[str, str]) -> None:
    suite, beton = Suite(name="loaders"), Beton(files["file"])
    entropy_rate(suite, {"ours": [50.0] * 5, "limit-entropy": [200.0] * 5}, beton, 2)
    (row,) = suite.rows
    assert (row.subject, row.unit) == ("limit-entropy", "Mbit/s per core")
    assert row.value == pytest.approx(100 * 8 * sum(len(beton.payload(i)) for i in range(len(COLOURS))) / len(COLOURS) / 1e6)


def test_a_damaged_jpeg_is_no_limit(tmp_path: Path) -> None:
    whole = jpeg(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    cut = write(tmp_path / "cut.beton", [whole[: len(whole) // 2]])
    with pytest.raises(SystemExit, match=r"cut\.beton: an image cannot be decoded"):
        limit("limit-entropy", {"file": str(cut.path), "threads": 1, "images": 4, "size": 32})(1)
