"""The loader contract: every backend against the same tests. A missing backend fails here; nothing is skipped."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native_files import jpeg, picture, write
from PIL import Image

from dp4tl_fast.beton import Beton
from dp4tl_fast.errors import BackendError, BetonError, RecordError, SelectionError, UsageError
from dp4tl_fast.loaders import BACKENDS, BaseLoader, LoaderSpec, capabilities, open_loader
from dp4tl_fast.loaders.capabilities import Capabilities, markdown_table
from dp4tl_fast.selection import Selection

N, CLASSES, BATCH = 50, 5, 8

# Mean and largest difference from the oracle in levels, on noisy pictures with edges. native and DALI resize as it
# does, but round once where it rounds twice; native's chroma is resized before the colour conversion, and DALI cuts the
# tails of its filter (seen: 0.33 and 6, 0.19 and 6). FFCV has a fast, less exact inverse DCT and averages pixel areas
# (seen: 2.0 and 27). `python -m benchmarks parity` measures the same on photographs.
BOUNDS = {"torchvision": (0, 0), "native": (0.5, 8), "dali": (0.3, 8), "ffcv": (2.5, 40)}


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


def payloads(kind: str, n: int = N) -> list[bytes | np.ndarray]:
    sides = np.random.default_rng(5).integers(20, 120, (n, 2)).tolist()
    images = [picture(w, h, seed) for seed, (w, h) in enumerate(sides)]
    return [p if kind == "raw" or (kind == "mixed" and i % 3 == 0) else jpeg(p) for i, p in enumerate(images)]


def class_labels(n: int = N) -> list[int]:
    return [i * CLASSES // n for i in range(n)]


@pytest.fixture(scope="module", params=["jpeg", "raw", "mixed"])
def beton(request: pytest.FixtureRequest, folder: Path) -> Beton:
    """Records of each kind, all records of a class together, as ``convert`` writes them."""
    return write(folder / f"{request.param}.beton", payloads(request.param), class_labels())


@pytest.fixture(scope="module")
def jpegs(folder: Path) -> Beton:
    return write(folder / "jpegs.beton", payloads("jpeg"), class_labels())


@pytest.fixture(scope="module")
def by_ffcv(folder: Path) -> Beton:
    """Written by FFCV itself: JPEG and raw records in one file, labels in no order, records in worker order."""
    path = folder / "by_ffcv.beton"
    # FFCV's writer forks: not in a process that other backends have filled with threads.
    subprocess.run([sys.executable, "-c", WRITE_WITH_FFCV, str(path)], cwd=Path(__file__).parent, check=True)
    beton = Beton(path)
    assert set(beton.images["mode"].tolist()) == {0, 1}
    return beton


WRITE_WITH_FFCV = f"""
import sys
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from native_files import picture

class Images:
    def __len__(self):
        return 30

    def __getitem__(self, i):
        return picture(30 + i, 70 - i, i), i * 7 % {CLASSES}, 500 + i

fields = {{"image": RGBImageField("smart", smart_threshold=6800), "label": IntField(), "index": IntField()}}
DatasetWriter(sys.argv[1], fields, page_size=1 << 21, num_workers=2).from_indexed_dataset(Images(), chunksize=5)
"""


def keep(beton: Beton, *classes: int) -> Selection:
    return Selection.of_classes(beton, np.array(classes), method="test", scores=np.zeros(beton.num_classes))


def spec(**options: Any) -> LoaderSpec:
    return LoaderSpec(**{"batch_size": BATCH, "size": 24, "with_index": True, "workers": 2, **options})


AUGMENTED = {"transform": "random_resized_crop", "flip": True, "shuffle": True}


def flat(batches: Batches, column: int) -> list[int]:
    return torch.cat([batch[column] for batch in batches]).tolist() if batches else []


Batches = list[tuple[Any, ...]]


def same(a: Batches, b: Batches) -> bool:
    pairs = (pair for p, q in zip(a, b, strict=True) for pair in zip(p, q, strict=True)) if len(a) == len(b) else ()
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in pairs)


def by_index(batches: Batches) -> dict[int, torch.Tensor]:
    """The (first view of the) image of each index."""
    images = [(x[0] if isinstance(x, tuple) else x, index.tolist()) for x, _, index in batches]
    return {i: image for x, index in images for i, image in zip(index, x, strict=True)}


# -- which records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [False, True])
def test_exactly_the_selected_records_with_their_labels(backend: str, beton: Beton, drop_last: bool) -> None:
    with open_loader(beton, keep(beton, 1, 3, 4), spec(drop_last=drop_last), backend) as loader:
        assert len(loader) == (3 if drop_last else 4)
        batches = list(loader)
        wanted = np.flatnonzero(np.isin(beton.labels, [1, 3, 4]))[: 24 if drop_last else None]
        assert len(batches) == len(loader)
        assert flat(batches, 1) == beton.labels[wanted].tolist()
        assert flat(batches, 2) == beton.index[wanted].tolist()
        assert loader.bytes_read == beton.sizes[wanted].sum()


def test_reads_what_ffcv_wrote(backend: str, by_ffcv: Beton) -> None:
    with open_loader(by_ffcv, keep(by_ffcv, 0, 2), spec(), backend) as loader:
        batches = list(loader)
    assert flat(batches, 2) == [500 + i for i in range(30) if i * 7 % CLASSES in (0, 2)]
    assert set(flat(batches, 1)) == {0, 2}


def test_every_backend_follows_one_order_and_each_epoch_has_its_own(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(shuffle=True, seed=11), backend) as loader:
        orders = []
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            orders.append(flat(list(loader), 2))
            assert orders[-1] == jpegs.index[loader.epoch_order()].tolist()
        assert orders[0] != orders[1]
        assert sorted(orders[0]) == sorted(orders[1]) == jpegs.index.tolist()


@pytest.mark.parametrize("shuffle", [False, True])
def test_two_ranks_share_every_record_once(backend: str, jpegs: Beton, shuffle: bool) -> None:
    ranks = []
    for rank in (0, 1):
        with open_loader(jpegs, None, spec(shuffle=shuffle, rank=rank, world_size=2), backend) as loader:
            ranks.append(flat(list(loader), 2))
            assert len(loader) == 4
    assert sorted(ranks[0] + ranks[1]) == jpegs.index.tolist()
    assert [len(r) for r in ranks] == [25, 25]


def test_selection_changes_between_epochs(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, keep(jpegs, 0), spec(), backend) as loader:
        assert flat(list(loader), 1) == [0] * 10
        loader.set_selection(keep(jpegs, 2, 4))
        assert len(loader) == 3
        assert flat(list(loader), 1) == [2] * 10 + [4] * 10
        with pytest.raises(SelectionError, match="no record is left"):
            loader.set_selection(_Nothing())  # type: ignore[arg-type]


class _Nothing:
    def indices(self, beton: Beton) -> np.ndarray:
        return np.empty(0, np.int64)


# -- what is in a batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("views", [1, 2])
def test_shapes_dtypes_and_memory_format(backend: str, beton: Beton, dtype: str, views: int) -> None:
    with open_loader(beton, keep(beton, 0), spec(dtype=dtype, views=views, **AUGMENTED), backend) as loader:
        for size in (24, 33):  # progressive resizing
            loader.set_size(size)
            for i, (images, labels, index) in enumerate(loader):
                n = (8, 2)[i]
                assert labels.dtype == index.dtype == torch.int64
                assert labels.shape == index.shape == (n,)
                assert isinstance(images, tuple) == (views > 1)
                for view in images if views > 1 else (images,):
                    assert view.shape == (n, 3, size, size)
                    assert view.dtype == getattr(torch, dtype)
                    assert view.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("transform", ["center_crop", "resize", "random_resized_crop"])
@pytest.mark.parametrize("views", [1, 2])
def test_pixels_are_the_oracles_within_stated_bounds(backend: str, beton: Beton, transform: str, views: int) -> None:
    options = {"transform": transform, "flip": True, "views": views, "seed": 3}
    got, want = (one_pass(beton, name, **options) for name in (backend, "torchvision"))
    mean, most = BOUNDS[backend]
    for (a, *_), (b, *_) in zip(got, want, strict=True):
        for x, y in zip(a if views > 1 else [a], b if views > 1 else [b], strict=True):
            difference = (x.float() - y.float()).abs()
            assert difference.mean() <= mean
            assert difference.max() <= most


def one_pass(beton: Beton, backend: str, epoch: int = 0, **options: Any) -> Batches:
    with open_loader(beton, None, spec(**options), backend) as loader:
        loader.set_epoch(epoch)
        return list(loader)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_floats_are_the_normalised_bytes(backend: str, jpegs: Beton, dtype: str) -> None:
    mean, std = (0.1, 0.5, 0.9), (0.3, 0.2, 0.7)
    floats = one_pass(jpegs, backend, dtype=dtype, mean=mean, std=std)
    integers = one_pass(jpegs, backend)
    for (x, *_), (byte, *_) in zip(floats, integers, strict=True):
        shape = (1, 3, 1, 1)
        want = (byte.double() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
        # Half a unit in the last place of the type at the largest value (below 4), and float32 arithmetic before it.
        tolerance = 2 * torch.finfo(getattr(torch, dtype)).eps + 1e-6
        if backend == "native":  # normalises before rounding to whole levels: up to half a level nearer the truth
            tolerance += 0.5 / 255 / min(std)
        assert (x.double() - want).abs().max() <= tolerance


UNUSUAL: dict[str, Callable[[np.ndarray], bytes]] = {
    "grey": lambda p: jpeg(p, "L"),
    "CMYK": lambda p: jpeg(p, "CMYK"),
    "progressive": lambda p: jpeg(p, progressive=True),
    "restart markers": lambda p: jpeg(p, restart_marker_blocks=3),
    "444": lambda p: jpeg(p, subsampling=0),
    "turned by EXIF": lambda p: jpeg(p, exif=turned()),
    "bytes at the end": lambda p: jpeg(p) + b"more" * 20,
    "stray bytes": lambda p: jpeg(p).replace(b"\xff\xda", b"\x00\x01\x02\xff\xda", 1),
}


def turned() -> Image.Exif:
    """Orientation 6: a viewer turns the image by 90 degrees. FFCV, PIL and the file's width and height do not."""
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


@pytest.mark.filterwarnings("ignore:.*DALI failed")  # stray bytes: it says that it used the reference
@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("views", [1, 2])
def test_unusual_jpegs_look_the_same_everywhere(backend: str, folder: Path, kind: str, views: int) -> None:
    ordinary = [jpeg(picture(40, 50, i)) for i in range(3)]
    odd = UNUSUAL[kind](picture(90, 60, 3))
    beton = write(folder / f"{kind}_{backend}_{views}.beton", [*ordinary, odd, *ordinary])
    options = {"views": views, "batch_size": 2, "transform": "resize"}
    got, want = (by_index(one_pass(beton, name, **options)) for name in (backend, "torchvision"))
    assert list(got) == list(want) == beton.index.tolist()
    for i in want:
        difference = (got[i].float() - want[i].float()).abs()
        assert difference.mean() <= BOUNDS[backend][0]
        assert difference.max() <= BOUNDS[backend][1]


def test_batches_own_their_memory(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(batch_size=2), backend) as loader:
        kept, copies = [], []
        for images, *_ in loader:
            kept.append(images)
            copies.append(images.clone())
        list(loader)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


# -- determinism and resume ------------------------------------------------------------------------------------------


def test_pixels_do_not_depend_on_threads_or_batches(backend: str, beton: Beton) -> None:
    assert capabilities()[backend].deterministic
    runs = [one_pass(beton, backend, epoch=3, workers=workers, **AUGMENTED) for workers in (1, 2)]
    assert same(*runs)
    one, two = (by_index(one_pass(beton, backend, epoch=3, batch_size=size, **AUGMENTED)) for size in (5, 13))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[i], two[i]) for i in one)
    assert not same(runs[0], one_pass(beton, backend, epoch=4, **AUGMENTED))


@pytest.mark.parametrize("delivered", [0, 1, 3, 7])
def test_resume_continues_after_the_last_delivered_batch(backend: str, jpegs: Beton, delivered: int) -> None:
    with open_loader(jpegs, None, spec(**AUGMENTED), backend) as loader:
        loader.set_epoch(5)
        batches = list(loader)
        loader.set_epoch(5)
        iterator = iter(loader)
        for _ in range(delivered):
            next(iterator)
        state = loader.state_dict()
    assert state == {"epoch": 5, "batch": delivered, "global_batch_size": BATCH, "records": N}
    with open_loader(jpegs, None, spec(**AUGMENTED), backend) as loader:
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert same(list(loader), batches[delivered:])
        assert same(list(loader), batches)  # without set_epoch the epoch repeats as a whole
        with pytest.raises(UsageError, match="8 batches were delivered, but this epoch has 7"):
            loader.load_state_dict({**state, "batch": 8})


def test_a_state_of_other_data_or_batches_is_refused(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        state = loader.state_dict()
    for other in ({"batch_size": 2 * BATCH}, {"world_size": 2}):
        with open_loader(jpegs, None, spec(**other), backend) as loader, pytest.raises(UsageError, match=r"of .*8.* 16"):
            loader.load_state_dict(state)
    with open_loader(jpegs, None, spec(batch_size=BATCH // 2, world_size=2, rank=1), backend) as loader:
        loader.load_state_dict(state)  # the same global batches on more ranks
    with open_loader(jpegs, keep(jpegs, 1), spec(), backend) as loader, pytest.raises(UsageError, match=r"50.* 10"):
        loader.load_state_dict(state)


# -- faults ----------------------------------------------------------------------------------------------------------

BAD, BAD_CLASS = 17, 1


def break_jpeg(kind: str) -> Callable[[bytes], bytes]:
    return {
        "garbage": lambda jpeg: bytes(len(jpeg)),
        "truncated": lambda jpeg: jpeg[: len(jpeg) // 2],
        "headless": lambda jpeg: jpeg[:2] + bytes(40) + jpeg[42:],
    }[kind]


@pytest.fixture(scope="module", params=["garbage", "truncated", "headless", "other size"])
def broken(request: pytest.FixtureRequest, folder: Path) -> Beton:
    """One record of 50 is not what the file says."""
    images = payloads("jpeg")
    path = folder / f"{request.param.replace(' ', '_')}.beton"
    good = write(path, images, class_labels())
    start, size = int(good.images["data_ptr"][BAD]), int(good.sizes[BAD])
    del good
    with open(path, "r+b") as file:
        file.seek(start)
        stored = file.read(size)
        other = jpeg(picture(5, 6))
        bad = other + bytes(size - len(other)) if request.param == "other size" else break_jpeg(request.param)(stored)
        file.seek(start)
        file.write(bad.ljust(size, b"\0"))
    return Beton(path)


def test_a_bad_record_is_named_in_the_consumer(backend: str, broken: Beton) -> None:
    with open_loader(broken, None, spec(), backend) as loader:
        batches = []
        with pytest.raises(RecordError) as error:
            batches.extend(loader)
        assert len(batches) <= 2  # never delivered past the bad one
        for word in (f"record {BAD} ", f"class {BAD_CLASS}", str(broken.path)):
            assert word in str(error.value)
        assert "\n" not in str(error.value)
        loader.set_selection(keep(broken, 3))  # the loader still works
        assert flat(list(loader), 1) == [3] * 10


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("views", [1, 2])
def test_a_bad_record_can_be_skipped_and_is_reported(backend: str, broken: Beton, views: int) -> None:
    with open_loader(broken, None, spec(on_error="skip", views=views, **AUGMENTED), backend) as loader:
        batches = list(loader)
        wanted = [i for i in loader.epoch_order().tolist() if i != BAD]
        assert flat(batches, 2) == broken.index[wanted].tolist()
        assert flat(batches, 1) == broken.labels[wanted].tolist()
        assert [record for record, _ in loader.skipped] == [BAD]
        assert f"record {BAD} " in loader.skipped[0][1]
    want = by_index(one_pass(broken, "torchvision", on_error="skip", **AUGMENTED))
    for i, image in by_index(batches).items():  # the rows still belong to their records
        assert (image.float() - want[i].float()).abs().mean() < 4


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_batch_of_bad_records_is_empty(backend: str, broken: Beton) -> None:
    with open_loader(broken, None, spec(on_error="skip", batch_size=1), backend) as loader:
        sizes = [len(labels) for _, labels, _ in loader]
    assert sizes == [0 if i == BAD else 1 for i in range(N)]


def test_a_file_that_shrinks_is_an_error(backend: str, folder: Path) -> None:
    path = folder / f"shrinks_{backend}.beton"
    write(path, payloads("jpeg"), class_labels())
    with open_loader(path, None, spec(), backend) as loader:
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(BetonError, match="shrank"):
            next(iter(loader))


def test_a_raw_record_of_the_wrong_size_is_refused_at_the_start(backend: str, folder: Path) -> None:
    path = folder / f"wrong_{backend}.beton"
    beton = write(path, payloads("raw"), class_labels())
    offset = 24 + 1041 * len(beton.fields) + beton.metadata.dtype.itemsize * BAD
    with open(path, "r+b") as file:
        file.seek(offset + 1)
        file.write((9999).to_bytes(2, "little"))  # the width
    with pytest.raises(RecordError, match=f"record {BAD} .*not width x height x 3"):
        open_loader(path, None, spec(), backend)


# -- ending ----------------------------------------------------------------------------------------------------------


def threads() -> int:
    """Of the whole process: Python's, numba's, OpenCV's, DALI's and ours."""
    return len(list(Path("/proc/self/task").iterdir()))


def test_abandoned_epochs_leave_no_thread(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(batch_size=1, **AUGMENTED), backend) as loader:
        counts = []
        for epoch in range(12):
            loader.set_epoch(epoch)
            for _ in loader:
                break
            counts.append(threads())
        assert max(counts[2:]) <= max(counts[:2])
        held = iter(loader)
        next(held)
    assert threads() <= max(counts)
    with pytest.raises(BackendError, match="ended by closing the loader"):
        next(held)


def test_closed_loaders_leave_no_thread(backend: str, jpegs: Beton) -> None:
    counts = []
    for _ in range(6):
        loader = open_loader(jpegs, None, spec(), backend)
        next(iter(loader))
        loader.close()
        loader.close()
        with pytest.raises(BackendError, match="is closed"):
            iter(loader)
        del loader
        gc.collect()
        counts.append(threads())
    assert max(counts[2:]) <= max(counts[:2])


def test_a_new_iteration_ends_the_old_one_loudly(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        old = iter(loader)
        next(old)
        assert len(list(loader)) == len(loader)
        with pytest.raises(BackendError, match="ended by a new iteration"):
            next(old)


def test_torchs_threads_are_left_alone(backend: str, jpegs: Beton) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with open_loader(jpegs, None, spec(workers=1), backend) as loader:
            list(loader)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# -- what a backend cannot do ----------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing to refuse")
def test_a_gpu_that_is_not_there_is_refused_at_the_start(backend: str, jpegs: Beton) -> None:
    with pytest.raises(BackendError, match=r"device 'cuda' is not there.*device=cpu"):
        open_loader(jpegs, None, spec(device="cuda"), backend)


LESS = Capabilities(
    summary="", dtypes=("uint8",), transforms=("resize",), records=("jpeg",), on_error=("raise",), views=1
)
UNDECLARED = {
    "dtype": {"dtype": "float16"},
    "transform": {"transform": "center_crop"},
    "on_error": {"on_error": "skip"},
    "device": {"device": "xpu"},
    "views": {"views": 2},
    "exact": {"exact": True},
    "max_ram": {"max_ram": 1 << 30},
}


@pytest.mark.parametrize("what", UNDECLARED)
def test_what_is_not_declared_is_refused(
    backend: str, jpegs: Beton, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        cls: type[BaseLoader] = type(loader)
    monkeypatch.setattr(cls, "capabilities", LESS)
    with pytest.raises(BackendError, match=f"backend '{backend}' .*{what}"):
        open_loader(jpegs, None, spec(**{"transform": "resize", **UNDECLARED[what]}), backend)


@pytest.mark.parametrize("backend", ["ffcv", "dali"])
def test_a_decoder_of_its_own_refuses_to_be_exact(backend: str, jpegs: Beton) -> None:
    with pytest.raises(BackendError, match=f"backend '{backend}' cannot do exact = True"):
        open_loader(jpegs, None, spec(exact=True), backend)


def test_undeclared_records_are_refused(backend: str, by_ffcv: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_loader(by_ffcv, None, spec(transform="resize", dtype="uint8"), backend) as loader:
        before = loader.records
        monkeypatch.setattr(type(loader), "capabilities", LESS)
        with pytest.raises(BackendError, match="records = 'mixed', only jpeg"):
            loader.set_selection(None)
        assert loader.records is before
    with pytest.raises(BackendError, match="records = 'mixed', only jpeg"):
        open_loader(by_ffcv, None, spec(transform="resize"), backend)


def test_a_missing_library_is_named_with_the_remedy(jpegs: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, module in {"ffcv": "ffcv", "dali": "nvidia.dali", "torchvision": "torchvision"}.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(BackendError, match=rf"backend '{backend}' needs {module}, not installed.* `pip install"):
            open_loader(jpegs, None, spec(), backend)


def test_an_unknown_backend_lists_the_known_ones(jpegs: Beton) -> None:
    with pytest.raises(BackendError, match=r"unknown backend 'pil'\. Known: native, ffcv, dali, torchvision"):
        open_loader(jpegs, None, spec(), "pil")


def test_capabilities_are_read_without_importing_any_library() -> None:
    code = """
import sys
from dp4tl_fast.loaders import capabilities
print(*capabilities())
print(*(m for m in ("torch", "torchvision", "ffcv", "numba", "nvidia.dali", "cv2") if m in sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [" ".join(BACKENDS), ""]


def test_the_table_of_the_readme_and_doctor_has_every_backend() -> None:
    head, rule, *rows = [line.strip("|").split("|") for line in markdown_table(capabilities()).splitlines()]
    assert [name.strip() for name in head] == ["", *BACKENDS]
    assert all(len(row) == len(head) == len(rule) and all(cell.strip() for cell in row) for row in rows)
