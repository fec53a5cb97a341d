"""File systems that lack something, and folders that may only be read: work goes on without, or one line says what to do."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from small_runs import noisy_colours, run

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BetonError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.pruning import cache
from dp4tl_fast.training import checkpoint


@pytest.fixture
def poor(monkeypatch):
    """What exFAT, CIFS, Lustre and blob mounts answer: no flock, no links, no fsync of a folder."""

    def no_flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def no_links(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def fsync(fd, real=os.fsync):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(fd)

    monkeypatch.setattr(fcntl, "flock", no_flock)
    monkeypatch.setattr(os, "symlink", no_links)
    monkeypatch.setattr(os, "fsync", fsync)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return noisy_colours(tmp_path_factory.mktemp("data"), "s", (16, 16, 16))


def test_a_run_without_links_locks_or_synced_folders(data, tmp_path, poor):
    run(data, tmp_path / "r", val=str(data), ema_decay=0.9)
    best = tmp_path / "r/checkpoint" / checkpoint.BEST
    assert best.is_file() and not best.is_symlink()
    chosen = checkpoint.find_weights(best)
    assert chosen.parent.name == best.read_text().strip() and chosen.parent.parent == best.parent
    assert checkpoint.find_weights(best / "ema.safetensors") == chosen.parent / "ema.safetensors"
    _, meta = checkpoint.load_model(best)
    assert meta["num_classes"] == 3


def test_a_best_that_is_a_file_follows_a_better_one(tmp_path, poor):
    model, state = checkpoint.models.build("small-4", 2), {}
    for step, best in ((1, 1), (2, 1), (3, 3)):
        checkpoint.save(tmp_path, step, model, {"arch": "small-4"}, state, keep=3, best=best)
        assert checkpoint.find_weights(tmp_path / "best").parent.name == f"{best:010d}"


def test_converting_without_locks(data, tmp_path, poor):
    shutil.copytree(data.parent / "s", tmp_path / "s")
    convert(str(tmp_path / "s"), str(tmp_path / "s.beton"))
    assert Beton(tmp_path / "s.beton").records_sha256 == Beton(data).records_sha256


WRITE = """
import errno, fcntl, sys
from dp4tl_fast.beton import BetonWriter

def no_flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

fcntl.flock = no_flock
with BetonWriter(sys.argv[1], 1):
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_writer_is_noticed_without_locks(data, tmp_path, poor, killed):
    shutil.copytree(data.parent / "s", tmp_path / "s")
    out = tmp_path / "s.beton"
    other = subprocess.Popen([sys.executable, "-c", WRITE, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "writing\n"
    with pytest.raises(BetonError, match=rf"s\.beton: its writing is still in progress: process {other.pid} on "):
        convert(str(tmp_path / "s"), str(out))
    if killed:
        other.kill()
    other.communicate()
    convert(str(tmp_path / "s"), str(out))
    assert Beton(out).records_sha256 == Beton(data).records_sha256
    assert not list(tmp_path.glob(".*"))


def test_an_error_that_is_no_lack_is_still_an_error(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "x", "y")


def test_a_cache_without_locks(tmp_path, poor):
    for _ in range(2):
        found = cache.cached(tmp_path / "c/a.npy", (3,), np.dtype("<f4"), lambda out: out.fill(5))
        assert found.array.tolist() == [5] * 3
    assert found.saved > 0 and not list((tmp_path / "c").glob(".*"))


AS_NOBODY = """
import os, sys
import numpy as np
from dp4tl_fast.pruning import cache
if os.geteuid() == 0:
    os.setegid(65534); os.seteuid(65534)
for name in sys.argv[2:]:
    found = cache.cached(__import__("pathlib").Path(sys.argv[1]) / name, (3,), np.dtype("<f4"), lambda out: out.fill(7))
    print(found.array.tolist(), found.saved > 0)
"""


def test_anothers_cache_is_read_and_not_written():
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # which other users may enter, unlike pytest's
        folder = Path(name)
        folder.chmod(0o755)
        cache.cached(folder / "kept.npy", (3,), np.dtype("<f4"), lambda out: out.fill(5))
        before = sorted(folder.iterdir())
        folder.chmod(0o555)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, name, "kept.npy", "new.npy"], capture_output=True, text=True)
        folder.chmod(0o755)
        assert done.stdout.splitlines() == ["[5.0, 5.0, 5.0] True", "[7.0, 7.0, 7.0] False"], done.stderr
        assert "is read-only" in done.stderr and sorted(folder.iterdir()) == before


def test_two_users_share_a_cache():
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        os.close(os.open(folder / "a.lock", os.O_CREAT, 0o644))  # of a run of the first one's that was killed
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, name, "a.npy", "a.npy"], capture_output=True, text=True)
        assert done.stdout.splitlines() == ["[7.0, 7.0, 7.0] False", "[7.0, 7.0, 7.0] True"], done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["for all", "as /tmp"])
@pytest.mark.parametrize("how", ["cannot be read", "cannot be replaced"])
def test_what_another_user_keeps_closed_is_computed_and_not_kept(mode, how):
    """Written under a umask that shuts others out; or damaged, in a folder where only owners may replace their files."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(mode)
        before = os.umask(0o077 if how == "cannot be read" else 0o022)
        cache.cached(folder / "a.npy", (3,), np.dtype("<f4"), lambda out: out.fill(5))
        os.umask(before)
        if how == "cannot be replaced":
            (folder / "a.npy").write_bytes(b"")
        kept = sorted(folder.iterdir())
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, name, "a.npy", "a.npy"], capture_output=True, text=True)
        replaced = how == "cannot be replaced" and mode == 0o777
        assert done.stdout.splitlines() == ["[7.0, 7.0, 7.0] False", f"[7.0, 7.0, 7.0] {replaced}"], done.stderr
        assert (how in done.stderr) != replaced and sorted(folder.iterdir()) == kept
