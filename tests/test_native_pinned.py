"""The native loader in memory that is lent to it, as it is when batches go to a GPU: page-locked where there is one, plain
memory where there is none. Everything else is the same: what is decoded into it, whose it is, when it is let go of."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native_files import broken, jpeg, picture, resident_mib, threads, write

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BackendError, UsageError
from dp4tl_fast.loaders import BaseLoader, LoaderSpec, native, open_loader, pinned
from dp4tl_fast.training.feed import ahead

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
N, BATCH = 45, 8
AUGMENTED = {"transform": "random_resized_crop", "flip": True, "shuffle": True}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    records = [jpeg(picture(40, 30, i), subsampling=i % 3) if i % 2 else picture(40, 30, i) for i in range(N)]
    return write(tmp_path / "mixed.beton", records).path


class Lender:
    """Lends memory full of rubbish, and knows what is still out. ``fault`` is called before each."""

    def __init__(self) -> None:
        self.allocate = pinned.pinned_allocator() if GPU else lambda size: torch.empty(size, dtype=torch.uint8)
        self.lent: list[weakref.ref[torch.Tensor]] = []
        self.places: list[int] = []
        self.fault: Callable[[], object] = lambda: None

    def __call__(self, size: int) -> torch.Tensor:
        self.fault()
        memory = self.allocate(size).fill_(0xA5)
        self.lent.append(weakref.ref(memory))
        self.places.append(memory.data_ptr())
        return memory

    def out(self) -> int:
        return sum(memory() is not None for memory in self.lent)


@pytest.fixture
def lender(monkeypatch: pytest.MonkeyPatch) -> Lender:
    lender = Lender()
    monkeypatch.setattr(native, "pinned_allocator", lambda: lender)
    return lender


def opened(source: Path | Beton, **options: Any) -> BaseLoader:
    return open_loader(source, None, LoaderSpec(**{"batch_size": BATCH, "size": 24, "with_index": True, **options}))


def tensors(batches: list[tuple[Any, ...]]) -> list[torch.Tensor]:
    return [t for batch in batches for part in batch for t in (part if isinstance(part, tuple) else (part,))]


def same(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]]) -> bool:
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    return all(torch.equal(x, y) and x.stride() == y.stride() and x.dtype == y.dtype for x, y in pairs)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("views", [1, 3])
def test_lent_memory_holds_the_same_batches(path: Path, lender: Lender, views: int, dtype: str, workers: int) -> None:
    options = {"views": views, "dtype": dtype, "workers": workers, **AUGMENTED}
    with opened(path, **options) as own, opened(path, pinned=True, **options) as lent:
        for epoch in (0, 3):
            own.set_epoch(epoch), lent.set_epoch(epoch)
            assert same(list(lent), list(own))
        assert len(own) == 6 and len(lender.lent) == 12  # the last of 5 rows


@pytest.mark.parametrize("views", [1, 2])
def test_what_is_delivered_is_what_was_lent(path: Path, lender: Lender, views: int) -> None:
    """Slices of that very tensor, in order, and page-locked without another copy."""
    with opened(path, pinned=True, views=views) as loader:
        batches = list(loader)
    owners = [{t.untyped_storage().data_ptr() for t in tensors([batch[:1]])} for batch in batches]
    assert owners == [{place} for place in lender.places]
    for image in tensors([batch[:1] for batch in batches]):
        assert image.is_pinned() == GPU and image.is_contiguous(memory_format=torch.channels_last)
        assert not GPU or image.pin_memory().data_ptr() == image.data_ptr()


def test_no_memory_is_lent_to_a_loader_for_the_cpu(path: Path, lender: Lender) -> None:
    with opened(path) as loader:
        assert not any(t.is_pinned() for t in tensors(list(loader))) and lender.lent == []


def test_skipped_records(path: Path, lender: Lender) -> None:
    beton = broken(path, 23, b"\0" * 64)
    results = []
    for lent in (False, True):
        with opened(beton, pinned=lent, views=2, on_error="skip") as loader, pytest.warns(UserWarning, match="record 23 "):
            results.append(list(loader))
        assert [record for record, _ in loader.skipped] == [23]
    assert same(*results) and sum(len(labels) for _, labels, _ in results[1]) == N - 1


def test_another_size(path: Path, lender: Lender) -> None:
    with opened(path) as own, opened(path, pinned=True) as lent:
        next(iter(lent))
        own.set_size(40), lent.set_size(40)
        assert same(list(lent), list(own))


def test_resume(path: Path, lender: Lender) -> None:
    with opened(path, **AUGMENTED) as own, opened(path, pinned=True, **AUGMENTED) as lent:
        lent.load_state_dict({**own.state_dict(), "epoch": 2, "batch": 4})
        own.set_epoch(2)
        assert same(list(lent), list(own)[4:])
    assert len(lender.lent) == 2


def test_max_ram_counts_what_page_locked_memory_takes(tmp_path: Path, lender: Lender) -> None:
    """Up to twice the batch."""
    rng = np.random.default_rng(0)
    beton = write(tmp_path / "large.beton", [rng.integers(0, 256, (512, 700, 3), dtype=np.uint8) for _ in range(20)])
    batch = 8 * 3 * 24**2
    options = {"shuffle": True, "max_ram": 8 << 20}
    with opened(beton, **options) as own, opened(beton, pinned=True, **options) as lent:
        assert own._window_bytes(own.now) - lent._window_bytes(lent.now) == 5 * (16384 - batch) // 2  # type: ignore[attr-defined]
        assert same(list(own), list(lent))
    with pytest.raises(UsageError, match="at least"), opened(beton, pinned=True, max_ram=4 << 20) as loader:
        list(loader)


def test_delivered_batches_stay_valid(path: Path, lender: Lender) -> None:
    with opened(path, pinned=True) as loader:
        kept = [images for images, *_ in loader]
        copies = [images.clone() for images in kept]
        for _ in range(3):
            list(loader)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_labels_do_not_keep_the_images_memory(path: Path, lender: Lender) -> None:
    with opened(path, pinned=True) as loader:
        kept = [(labels, index) for _, labels, index in loader]
        assert lender.out() == 0 and sum(len(labels) for labels, _ in kept) == N


def test_abandoned_epochs_leak_nothing(path: Path, lender: Lender) -> None:
    options = {"batch_size": 4, "size": 64, "workers": 3, "dtype": "float32", "pinned": True, **AUGMENTED}
    with opened(path, **options) as loader:
        for epoch in range(110):
            loader.set_epoch(epoch)
            iterator = iter(loader)
            for _ in range(epoch % 4):
                next(iterator)
            del iterator
            assert lender.out() == 0
            if epoch == 9:
                before = threads(), resident_mib()
        assert threads() == before[0]
        assert resident_mib() < before[1] + 10  # as in test_native_faults.py
    for _ in range(100):
        next(iter(opened(path, **options)))  # dropped without close()
    assert lender.out() == 0
    assert threads() <= before[0] and resident_mib() < before[1] + 20


def test_closing_in_mid_epoch_gives_the_memory_back(path: Path, lender: Lender) -> None:
    loader = opened(path, pinned=True)
    iterator = iter(loader)
    images, *_ = next(iterator)
    assert lender.out() == native.DEPTH + 1
    loader.close()
    assert lender.out() == 0 and images.sum() > 0


@pytest.mark.parametrize("error", [MemoryError, lambda: RuntimeError("CUDA error: out of memory\nCompile with ...")])
@pytest.mark.parametrize("after", [0, 2, native.DEPTH, native.DEPTH + 2])
def test_no_memory_is_an_error_and_not_the_end(path: Path, lender: Lender, after: int, error: Callable[[], Exception]) -> None:
    def fault() -> None:
        if len(lender.lent) == after:
            raise error()

    says = f"no page-locked memory for a batch of {BATCH * 3 * 24**2} bytes.*(MemoryError|out of memory).*smaller batch"
    with opened(path, pinned=True) as loader, opened(path) as own:
        running, lender.fault = threads(), fault
        with pytest.raises(BackendError, match=says) as caught:
            list(loader)
        assert "\n" not in str(caught.value)
        del caught
        assert lender.out() == 0 and threads() == running
        lender.fault = lambda: None
        loader.set_epoch(0)
        assert same(list(loader), list(own))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda size: torch.empty(size - 1, dtype=torch.uint8), "needs 13824 bytes, but 13823 were lent"),
        (lambda size: torch.empty(size + 1, dtype=torch.uint8)[1:], "aligned to 16 bytes"),
    ],
    ids=["too small", "not aligned"],
)
def test_wrong_memory_is_refused(path: Path, lender: Lender, wrong: Callable[[int], torch.Tensor], says: str) -> None:
    lender.allocate = wrong
    with opened(path, pinned=True) as loader, pytest.raises(BackendError, match=says):
        list(loader)
    assert lender.out() == 0


@pytest.mark.parametrize("wrong", [torch.empty(1 << 20), torch.empty(1 << 20, 2, dtype=torch.uint8)[:, 0], "bytes"])
def test_the_core_takes_bytes_alone(path: Path, lender: Lender, wrong: object) -> None:
    with opened(path, pinned=True) as loader, pytest.raises(TypeError, match=r"must be uint8 \[bytes\]"):
        loader._core.lend(wrong)  # type: ignore[attr-defined]


def test_without_a_gpu_there_is_no_page_locked_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=r"pinned = True, but torch sees no CUDA GPU\. Leave pinned out"):
        opened(path, pinned=True)


def test_consumers_in_other_threads(path: Path, lender: Lender) -> None:
    """Memory is let go of with Python's lock, which others hold while they ask for the loader's: nobody waits for ever."""
    totals: list[int] = []
    done = threading.Event()

    def consume(loader: BaseLoader) -> None:
        for epoch in range(30):
            iterator = iter(loader)
            for _ in range(epoch % 3):
                next(iterator)
        totals.append(sum(len(labels) for _ in range(3) for _, labels, _ in loader))

    def watch(loaders: list[BaseLoader]) -> None:
        while not done.is_set():
            for loader in loaders:
                loader.profile()  # type: ignore[attr-defined]

    with opened(path, pinned=True) as a, opened(path, pinned=True, batch_size=3) as b:
        consumers = [threading.Thread(target=consume, args=(loader,)) for loader in (a, b)]
        watcher = threading.Thread(target=watch, args=([a, b],))
        for thread in (*consumers, watcher):
            thread.start()
        for thread in consumers:
            thread.join()
        done.set()
        watcher.join()
    assert totals == [3 * N] * 2 and lender.out() == 0


def test_memory_is_not_lent_again_before_its_copy_is_done(path: Path, lender: Lender) -> None:
    """Copies wait behind work on the device while the loader goes on; what arrives is each batch, not a later one."""
    busy = torch.rand(2048, 2048, device=DEVICE) if GPU else None
    moved: list[tuple[Any, ...]] = []
    with opened(path, views=2, **AUGMENTED) as own, opened(path, pinned=True, views=2, **AUGMENTED) as lent:
        for epoch in range(3):
            lent.set_epoch(epoch)
            for images, labels, index in lent:
                for _ in range(10 if busy is not None else 0):
                    busy = busy @ busy  # type: ignore[operator]
                moved.append((tuple(view.to(DEVICE, non_blocking=True) for view in images), labels, index))
                del images
            own.set_epoch(epoch)
            expected = list(own)
            arrived = [(tuple(view.cpu() for view in images), *rest) for images, *rest in moved[-len(expected) :]]
            assert same(arrived, expected)


def test_batches_on_their_way_to_the_step(path: Path, lender: Lender) -> None:
    with opened(path, **AUGMENTED) as own, opened(path, pinned=True, **AUGMENTED) as lent:
        arrived = [(images.cpu(), labels.cpu(), index) for images, labels, index in ahead(iter(lent), DEVICE)]
        assert same(arrived, list(own))


def test_a_loader_for_the_device_itself(path: Path, lender: Lender) -> None:
    """``device=cuda`` alone asks for page-locked memory; ``device=cpu`` does not."""
    with opened(path, dtype="float16", device=DEVICE.type) as loader, opened(path, dtype="float16") as own:
        batches = list(loader)
        assert {t.device.type for t in tensors(batches)} == {DEVICE.type}
        assert len(lender.lent) == (len(batches) if GPU else 0)
        assert same([tuple(t.cpu() for t in batch) for batch in batches], list(own))
