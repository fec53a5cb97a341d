"""Damaged files, shrinking files, abandoned epochs, Ctrl-C: a clear error, never a crash, a hang or a leak."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_files import broken, jpeg, picture, resident_mib, threads, write

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BetonError, Dp4tlError, RecordError
from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders import LoaderSpec, open_loader

N, BROKEN = 40, 23


def records() -> list[bytes | np.ndarray]:
    return [jpeg(picture(40, 30, i), subsampling=i % 3) if i % 2 else picture(40, 30, i) for i in range(N)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "good.beton", records()).path


@pytest.mark.parametrize("damage", [b"\0" * 64, b"\xff\xd8\xff\xd9"], ids=["no JPEG", "ends at once"])
def test_a_broken_record_names_record_class_and_file(path: Path, damage: bytes) -> None:
    beton = broken(path, BROKEN, damage)
    with open_loader(beton, spec=LoaderSpec(batch_size=4, size=16)) as loader, pytest.raises(RecordError) as caught:
        list(loader)
    message = str(caught.value)
    assert f"record {BROKEN} (class {BROKEN % 7}" in message and str(path) in message and "\n" not in message


def test_a_broken_record_is_skipped_and_reported(path: Path) -> None:
    beton = broken(path, BROKEN, b"\0" * 64)
    spec = LoaderSpec(batch_size=4, size=16, on_error="skip", with_index=True, views=2)
    with open_loader(beton, spec=spec) as loader, pytest.warns(UserWarning, match=f"record {BROKEN} "):
        batches = list(loader)
    index = torch.cat([index for _, _, index in batches])
    assert sorted(index.tolist()) == [1000 + i for i in range(N) if i != BROKEN]
    assert [record for record, _ in loader.skipped] == [BROKEN]
    assert all(len(view) == len(index) for views, _, index in batches for view in views)


def test_a_jpeg_of_another_size_than_the_table_says_is_refused(path: Path) -> None:
    beton = Beton(path)
    table = 24 + 1041 * 3
    with open(path, "r+b") as file:
        file.seek(table + beton.metadata.dtype.itemsize * BROKEN + 1)
        file.write((39).to_bytes(2, "little"))
    says = "the JPEG is 40 x 30 pixels, but the table says 39 x 30"
    with open_loader(path) as loader, pytest.raises(RecordError, match=says):
        list(loader)


def test_a_jpeg_that_claims_to_be_enormous_is_refused_before_memory_is_filled(path: Path) -> None:
    beton = Beton(path)
    frame = bytes(beton.payload(BROKEN)).index(b"\xff\xc0")
    with open(path, "r+b") as file:
        file.seek(24 + 1041 * 3 + beton.metadata.dtype.itemsize * BROKEN + 1)
        file.write(b"\xff\xff\xff\xff")  # the table's width and height
        file.seek(int(beton.images["data_ptr"][BROKEN]) + frame + 5)
        file.write(b"\xff\xff\xff\xff")  # and the JPEG's
    with open_loader(path) as loader, pytest.raises(RecordError, match="claims 65535 x 65535 pixels in"):
        list(loader)


def test_a_pointer_outside_the_file_is_refused(path: Path) -> None:
    beton = Beton(path)
    with open(path, "r+b") as file:
        file.seek(24 + 1041 * 3 + beton.metadata.dtype.itemsize * BROKEN + 5)
        file.write((2**63).to_bytes(8, "little"))
    with pytest.raises(BetonError, match=f"record {BROKEN}"):
        open_loader(path)
    with pytest.raises(RuntimeError, match=f"record {BROKEN}"):
        _native.Beton(str(path))


def test_an_unfinished_file_is_named_so(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(16)
        file.write(bytes(8))
    with pytest.raises(BetonError, match="never finished"):
        open_loader(path)
    with pytest.raises(RuntimeError, match="never finished"):
        _native.Beton(str(path))


def test_a_file_that_shrinks_while_open_is_an_error(path: Path) -> None:
    with open_loader(path, spec=LoaderSpec(batch_size=2, size=16, workers=1)) as loader:
        iterator = iter(loader)
        next(iterator)
        os.truncate(path, int(Beton(path).images["data_ptr"][N // 2]))
        with pytest.raises(BetonError, match=path.name):
            list(iterator)


@pytest.mark.parametrize("windows", [np.zeros(0, np.int64), np.arange(0, N + 1, 8)], ids=["one by one", "windows"])
def test_the_core_reads_no_further_than_a_file_that_shrank(path: Path, windows: np.ndarray) -> None:
    """Beneath Python's check of the file's size: pread comes up short, where a mapping would kill the process."""
    with open_loader(path, spec=LoaderSpec(batch_size=2, size=16)) as loader:
        os.truncate(path, int(loader.beton.images["data_ptr"][N // 2]))
        loader._core.start(np.arange(N), np.arange(0, N + 1, 2), windows, 0)
        while (batch := loader._core.next()) is not None and len(batch) != 2:
            pass
    first_lost = N // 2 if len(windows) == 0 else N // 2 // 8 * 8  # a window fails as a whole
    assert batch is not None and batch[0] >= first_lost and "truncated" in batch[1]


SHRINKS = """
import os, signal, sys
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.common.errors import BetonError

def reset():  # as Lightning does at the end of a fit: what Python knows of signals, which is nothing of handlers set in C
    signal.signal(signal.SIGBUS, signal.SIG_DFL)

spec = LoaderSpec(batch_size=2, size=16)
with open_loader(sys.argv[1], spec=spec) as first:
    next(iter(first))
    reset()  # the next one sets it again ...
    with open_loader(sys.argv[1], spec=spec) as second:
        if sys.argv[2] == "first":
            reset()  # ... and so does the next iteration
        loader = first if sys.argv[2] == "first" else second
        records = range(second.beton.num_samples)
        place = int(second.beton.images["data_ptr"][len(records) // 2])
        import numpy as np
        os.truncate(sys.argv[1], place)
        loader._core.start(np.arange(len(records)), np.arange(0, len(records) + 1, 2), np.zeros(0, np.int64), 0)
        while (batch := loader._core.next()) is not None and len(batch) != 2:
            pass
        print(batch[1])
"""


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_handler_that_another_library_removed_is_set_again(path: Path, which: str) -> None:
    done = subprocess.run([sys.executable, "-c", SHRINKS, str(path), which], capture_output=True, text=True)
    assert done.returncode == 0 and "truncated" in done.stdout, done.stderr


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits_in_header_and_tables_end_in_an_error_or_a_whole_epoch(path: Path, data: st.DataObject) -> None:
    good = bytearray(path.read_bytes())
    tables = len(good) - 24 * N
    head = 24 + 1041 * 3 + 32 * N
    place = st.one_of(st.integers(0, 31), st.integers(0, head - 1), st.integers(tables, len(good) - 1))
    where = data.draw(st.lists(place, min_size=1, max_size=4))
    flipped = bytearray(good)
    for at in where:
        flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    other = path.with_name("flipped.beton")
    other.write_bytes(flipped)
    try:
        with open_loader(other, spec=LoaderSpec(batch_size=8, size=8)) as loader:
            assert sum(len(labels) for _, labels in loader) == loader.beton.num_samples
    except Dp4tlError as error:
        assert "\n" not in str(error)


def test_abandoned_epochs_leak_neither_threads_nor_memory(path: Path) -> None:
    spec = LoaderSpec(batch_size=4, size=64, workers=3, dtype="float32", shuffle=True)
    with open_loader(path, spec=spec) as loader:
        for epoch in range(110):
            loader.set_epoch(epoch)
            next(iter(loader))
            if epoch == 9:
                before = threads(), resident_mib()
        assert threads() == before[0]
        # 100 epochs that leaked a batch of 192 KiB each would add 19 MiB.
        assert resident_mib() < before[1] + 10
    for _ in range(100):
        next(iter(open_loader(path, spec=spec)))  # dropped without close()
    assert threads() <= before[0] and resident_mib() < before[1] + 20


def test_closing_in_mid_epoch_ends_the_threads(path: Path) -> None:
    before = threads()
    loader = open_loader(path, spec=LoaderSpec(batch_size=2, workers=5))
    iterator = iter(loader)
    images, _ = next(iterator)
    loader.close()
    assert threads() == before
    assert images.sum() > 0  # still ours
    with pytest.raises(Dp4tlError):
        next(iterator)


def test_a_consumer_in_another_thread(path: Path) -> None:
    """The GIL is released while waiting: both threads finish."""
    totals: list[int] = []

    def consume() -> None:
        with open_loader(path, spec=LoaderSpec(batch_size=3, size=32)) as loader:
            totals.append(sum(len(labels) for _ in range(5) for _, labels in loader))

    consumers = [threading.Thread(target=consume) for _ in range(3)]
    for thread in consumers:
        thread.start()
    for thread in consumers:
        thread.join()
    assert totals == [5 * N] * 3


def test_ctrl_c_interrupts(path: Path) -> None:
    program = (
        "import signal\nfrom dp4tl_fast.loaders import LoaderSpec, open_loader\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what a shell starts in the background ignores it
        f"loader = open_loader({str(path)!r}, spec=LoaderSpec(batch_size=4, size=400))\n"
        "while True:\n    for _ in loader:\n        print('batch', flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "batch\n"
    child.send_signal(signal.SIGINT)
    try:
        _, errors = child.communicate(timeout=120)
    except subprocess.TimeoutExpired:  # what it said tells where the interrupt went
        child.kill()
        pytest.fail(f"still running; stderr: {child.communicate()[1]}")
    assert child.returncode != 0 and "KeyboardInterrupt" in errors


KEPT = """
import sys
import torchvision
from dp4tl_fast.loaders import LoaderSpec, lifetime, open_loader

network = torchvision.models.resnet18().eval()
loader = open_loader(sys.argv[1], spec=LoaderSpec(batch_size=4, size=32))
network(next(iter(loader)).images.float())
cycle = [loader, network]
cycle.append(cycle)
lifetime.never_finalise(loader)
"""


def test_what_is_kept_to_the_end_is_not_reported(path: Path) -> None:
    """nanobind would say in 20 lines that it leaked."""
    ended = subprocess.run([sys.executable, "-c", KEPT, str(path)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
