"""convert: an interrupted run, however it ended, goes on to the same bytes."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BetonError, SourceError, UsageError
from dp4tl_fast.common.files import partial_path
from dp4tl_fast.conversion import conversion, pipeline, run
from dp4tl_fast.conversion.journal import Frame, Journal, journal_path
from dp4tl_fast.conversion.run import convert

IMAGES = 60


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "CHUNK_RECORDS", 4)


@pytest.fixture
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    height = getattr(request, "param", 60)
    rng = np.random.default_rng(3)
    for i in range(IMAGES):
        folder = tmp_path / "tree" / f"c{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (height, 40 + i, 3), np.uint8))
        image.save(folder / f"{i:02}.jpg", comment=b"goes" if i % 5 == 0 else b"")
    return tmp_path / "tree"


def outputs(out: Path) -> dict[str, bytes]:
    """Every file that belongs to ``out``, by its ending."""
    return {p.name[len(out.stem) :]: p.read_bytes() for p in out.parent.iterdir() if p.name.startswith(out.stem + ".")}


@pytest.fixture
def undisturbed(tree: Path, tmp_path: Path) -> dict[str, bytes]:
    convert(str(tree), str(tmp_path / "whole.beton"), workers=1, write_mode="jpg")
    files = outputs(tmp_path / "whole.beton")
    assert set(files) == {".beton", ".info.zip"}
    return files


KILLED_CHILD = """
import signal, sys, time
from dp4tl_fast.conversion import run
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.conversion import conversion
from dp4tl_fast.conversion import pipeline
pipeline.CHUNK_RECORDS, conversion.SYNC_BYTES = 4, 1_000_000
convert(sys.argv[1], sys.argv[4], workers=2, write_mode="jpg")  # loads codecs before the clock runs
start = time.process_time()
convert(sys.argv[1], sys.argv[4], workers=2, write_mode="jpg")
whole = time.process_time() - start
# The kernel ends the process after so much CPU time of its own, however busy the machine is: nothing is cleaned up.
signal.signal(signal.SIGPROF, signal.SIG_DFL)
signal.setitimer(signal.ITIMER_PROF, max(1e-6, whole * float(sys.argv[3])))
convert(sys.argv[1], sys.argv[2], workers=2, write_mode="jpg", resume=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("tree", [1000], indirect=True)  # large images: the timer's resolution is some milliseconds
def test_twenty_kills_at_random_moments(tree: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    out = tmp_path / "killed.beton"
    kills = resumed = 0
    journal, warm = journal_path(out), str(tmp_path / "warm" / "w.beton")
    while kills < 20:
        command = [sys.executable, "-c", KILLED_CHILD, str(tree), str(out), str(chance.uniform(0, 1.1)), warm]
        killed = subprocess.run(command, capture_output=True, text=True)
        kills += killed.returncode == -signal.SIGPROF
        assert killed.returncode in (0, -signal.SIGPROF), killed.stderr
        resumed += journal.exists() and journal.stat().st_size > 1000  # chunks, not only the identity
        if chance.random() < 0.2 or killed.returncode == 0:
            convert(str(tree), str(out), write_mode="jpg", resume=True)
            assert outputs(out) == undisturbed, f"seed {seed}"
            assert not list(tmp_path.glob(".killed*"))
            out.unlink()
    convert(str(tree), str(out), write_mode="jpg", resume=True)
    assert outputs(out) == undisturbed, f"seed {seed}"
    assert resumed >= 5, "hardly a run had anything to resume: the test does not test"


class Stop(Exception):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, tree: Path, out: Path, after: int) -> None:
    """A conversion that dies after ``after`` chunks, as kill -9 would leave it."""
    append = Journal.append
    calls = iter(range(after + 1))

    def dying(self: Journal, frame: object) -> None:
        if next(calls) == after:
            raise Stop
        append(self, frame)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", dying)
        with pytest.raises(Stop):
            convert(str(tree), str(out), workers=2, write_mode="jpg")
    assert not out.exists()


def test_torn_journal_and_lost_payloads(
    tree: Path, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the end of the journal or of the payloads looks like, the run ends in the same bytes."""
    out, chance = tmp_path / "o.beton", random.Random(5)
    interrupt(monkeypatch, tree, out, after=10)
    saved = tmp_path / "saved"
    saved.mkdir()
    files = [partial_path(out), journal_path(out)]
    for file in files:
        shutil.copy(file, saved)
    done = []
    for round_ in range(12):
        for file in files:
            shutil.copy(saved / file.name, file)
        victim = files[round_ % 2]
        data = bytearray(victim.read_bytes())
        cut = chance.randrange(2**23 if victim is files[0] else 200, len(data))  # the first page holds only the tables
        if round_ % 4 < 2:
            victim.write_bytes(data[:cut])  # torn
        else:
            data[cut] ^= 0x55  # damaged
            victim.write_bytes(data)
        done.append(convert(str(tree), str(out), write_mode="jpg", resume=True)["resumed"])
        assert outputs(out) == undisturbed
    assert min(done) < 40, "no damage was noticed"
    assert max(done) > 0, "nothing was resumed"


def test_synced_payloads_are_not_read_back(
    tree: Path, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion.BackgroundSync, "position", lambda self: self._writer.sync())
    interrupt(monkeypatch, tree, tmp_path / "o.beton", after=10)
    read: list[object] = []
    monkeypatch.setattr(conversion, "payloads_are_intact", lambda fd, frame: read.append(frame) or True)
    assert convert(str(tree), str(tmp_path / "o.beton"), write_mode="jpg")["resumed"] == 40
    assert len(read) <= 1
    assert outputs(tmp_path / "o.beton") == undisturbed


def test_ctrl_c_while_the_journal_is_read_keeps_all_progress(
    tree: Path, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o.beton"
    interrupt(monkeypatch, tree, out, after=10)
    saved = [path.read_bytes() for path in (partial_path(out), journal_path(out))]

    def interrupted(body: bytes) -> Frame:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Frame, "unpack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(str(tree), str(out), write_mode="jpg", resume=True)
    assert [path.read_bytes() for path in (partial_path(out), journal_path(out))] == saved
    assert convert(str(tree), str(out), write_mode="jpg", resume=True)["resumed"] == 40
    assert outputs(out) == undisturbed


def test_a_journal_whose_payloads_are_gone_is_not_trusted(
    tree: Path, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it says that they were synced."""
    out = tmp_path / "o.beton"
    monkeypatch.setattr(conversion.BackgroundSync, "position", lambda self: self._writer.sync())
    interrupt(monkeypatch, tree, out, after=10)
    partial_path(out).unlink()
    assert convert(str(tree), str(out), write_mode="jpg", resume=True)["resumed"] == 0
    assert outputs(out) == undisturbed


def test_the_last_sync_may_not_fail_unnoticed(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sync begins, behind the only chunk. That the disk failed is told to it alone: the last fsync then succeeds."""
    out = tmp_path / "o.beton"
    monkeypatch.setattr(pipeline, "CHUNK_RECORDS", IMAGES)
    monkeypatch.setattr(conversion, "SYNC_BYTES", 0)

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(OSError, match=r"Input/output error: .*o\.beton"):
            convert(str(tree), str(out))
    assert not out.exists()
    assert convert(str(tree), str(out), resume=True)["resumed"] == IMAGES


def test_other_flags_start_over_unless_resume_is_asked_for(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o.beton"
    interrupt(monkeypatch, tree, out, after=3)
    with pytest.raises(UsageError, match="other input or flags"):
        convert(str(tree), str(out), write_mode="raw", resume=True)
    assert convert(str(tree), str(out), write_mode="jpg", workers=1)["resumed"] == 12
    interrupt(monkeypatch, tree, out.with_name("p.beton"), after=3)
    assert convert(str(tree), str(out.with_name("p.beton")), write_mode="raw")["resumed"] == 0
    assert Beton(out.with_name("p.beton")).num_samples == IMAGES


def test_resume_of_a_complete_file_does_nothing(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.beton"
    first = convert(str(tree), str(out), resume=True)
    stamp = out.stat().st_mtime_ns
    again = convert(str(tree), str(out), resume=True)
    assert (again["resumed"], first["resumed"]) == (IMAGES, 0)
    assert {k: v for k, v in again.items() if k not in ("resumed", "seconds")} == {
        k: v for k, v in first.items() if k not in ("resumed", "seconds")
    }
    assert out.stat().st_mtime_ns == stamp


def test_a_full_disk_ends_clearly_and_the_run_goes_on_later(
    tree: Path, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, left = tmp_path / "o.beton", os.pwritev, [30_000]

    def full(fd: int, buffers: list[bytes], offset: int) -> int:
        if left[0] < sum(map(len, buffers)):
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= sum(map(len, buffers))
        return real(fd, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(BetonError, match=r"o\.beton: No space left on device after \d+ of 60 images"):
            convert(str(tree), str(out), write_mode="jpg")
    assert not out.exists()
    assert convert(str(tree), str(out), write_mode="jpg")["resumed"] > 0
    assert outputs(out) == undisturbed


def test_short_writes_are_completed(
    tree: Path, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may write less than it was given."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: real(fd, b"".join(buffers)[:1000], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data)[:777], at))
    convert(str(tree), str(tmp_path / "o.beton"), write_mode="jpg")
    assert outputs(tmp_path / "o.beton") == undisturbed


def test_too_little_space_is_said_before_starting(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1000))
    for mode in ("keep", "raw"):
        with pytest.raises(BetonError, match="GB are needed"):
            convert(str(tree), str(tmp_path / "o.beton"), write_mode=mode)
    assert not list(tmp_path.glob(".o*"))


def test_what_an_unfinished_file_takes_is_not_needed_again(
    tree: Path, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, needed = tmp_path / "o.beton", 10**9
    interrupt(monkeypatch, tree, out, after=10)
    taken = partial_path(out).stat().st_blocks * 512
    assert taken > 0
    monkeypatch.setattr(run, "_bytes_needed", lambda *_: needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, needed - taken - 1))
    with pytest.raises(BetonError, match="GB are needed"):
        convert(str(tree), str(out), write_mode="jpg", resume=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, needed - taken))
    assert convert(str(tree), str(out), write_mode="jpg", resume=True)["resumed"] == 40
    assert outputs(out) == undisturbed


def test_a_bad_image_late_in_the_run_keeps_what_is_done(tree: Path, tmp_path: Path) -> None:
    (tree / "c2" / "59.jpg").write_bytes(b"\xff\xd8 not an image")
    with pytest.raises(SourceError, match=r"59\.jpg"):
        convert(str(tree), str(tmp_path / "o.beton"))
    result = convert(str(tree), str(tmp_path / "o.beton"), on_error="skip", resume=True)
    assert result["resumed"] > 0
    assert (result["samples"], result["skipped"]) == (IMAGES - 1, 1)
    convert(str(tree), str(tmp_path / "p.beton"), on_error="skip")
    assert outputs(tmp_path / "o.beton") == outputs(tmp_path / "p.beton")


def test_only_one_process_writes_a_file(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.beton"
    from dp4tl_fast.beton import BetonWriter

    with BetonWriter(out, 1), pytest.raises(BetonError, match="another process is writing it"):
        convert(str(tree), str(out))
    convert(str(tree), str(out))


def test_checksums_match_the_payloads(tree: Path, tmp_path: Path) -> None:
    import zlib

    convert(str(tree), str(tmp_path / "o.beton"))
    beton = Beton(tmp_path / "o.beton")
    assert beton.checksums().tolist() == [zlib.crc32(beton.payload(i)) for i in range(IMAGES)]
    assert beton.sidecar.info()["listed"] == IMAGES
