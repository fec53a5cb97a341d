"""The folder where files behind URLs are kept: kills, restarts, other processes, full disks, limits."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from remote_cases import intact, of_records

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.remote import arrivals, cache

FETCH = """
import sys, numpy as np
from dp4tl_fast.beton import Beton
from dp4tl_fast.remote import arrivals
arrivals.PIECE = 20_000  # bytes: dozens of requests
beton = Beton(sys.argv[1], cache_dir=sys.argv[2])
print("opened", flush=True)
with beton.arriving([], np.arange(beton.num_samples)):
    for part in np.array_split(np.arange(beton.num_samples), 20):
        beton.fetch(part)
print(beton.real_path, flush=True)
"""


def fetching(server, cache_dir, name="x.beton", **more):
    command = [sys.executable, "-c", FETCH, server.url + name, str(cache_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **more)


def test_after_kill_9_nothing_comes_twice(server, original, tmp_path):
    """The process is killed in the midst of transfers; the next one asks for exactly the records that were not there."""
    data, done, arrived = original.page_size, threading.Event(), []

    def slowly(name, a, b, number):
        if name == "x.beton" and data <= a < original._alloc_ptr:
            arrived.append(number)
            if len(arrived) > 6:
                done.wait(60)

    server.fault = slowly
    process = fetching(server, tmp_path, "x.beton?killed")  # the server may read its last requests later
    process.stdout.readline()
    have = None
    while have is None or not 0 < have.sum() < len(have):
        marks = list(tmp_path.glob("*/.have"))
        have = np.fromfile(marks[0], np.uint8) if marks else None
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = np.fromfile(next(tmp_path.glob("*/.have")), np.uint8).astype(bool)
    done.set()
    server.fault, before = (lambda *_: None), len(server.asked)
    beton = Beton(server.url + "x.beton", cache_dir=tmp_path)
    beton.fetch(np.arange(original.num_samples))
    again = [(a, b) for name, a, b in server.asked[before:] if name == "x.beton" and data <= a < original._alloc_ptr]
    assert sum(b - a for a, b in again) == int(original.sizes[~have].sum()) > 0
    intact(beton, original)


ENDS = """
import sys, numpy as np
from dp4tl_fast.beton import Beton
from dp4tl_fast.remote import arrivals
arrivals.PIECE = 20_000  # bytes: dozens of requests
beton = Beton(sys.argv[1], cache_dir=sys.argv[2])
beton.arriving([], np.arange(beton.num_samples))
"""


def test_a_program_that_ends_begins_no_more_requests(server, original, tmp_path):
    """Those that run end at their next part."""
    server.fault = lambda name, a, b, _: "drip" if name == "x.beton" and original.page_size <= a < original._alloc_ptr else None
    done = subprocess.run([sys.executable, "-c", ENDS, server.url + "x.beton", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    asked = [(a, b) for a, b in of_records(server, original) if a < original._alloc_ptr]
    assert 0 < len(asked) <= arrivals.CONNECTIONS and sum(b - a for a, b in asked) < original.sizes.sum()
    intact(Beton(server.url + "x.beton", cache_dir=tmp_path), original)


def test_two_processes_fetch_each_record_once(server, original, tmp_path):
    processes = [fetching(server, tmp_path, env={**os.environ, "LOCAL_RANK": str(r), "LOCAL_WORLD_SIZE": "2"}) for r in range(2)]
    paths = {process.communicate()[0].split()[-1] for process in processes}
    assert len(paths) == 1 and all(process.returncode == 0 for process in processes)
    assert sum(b - a for a, b in of_records(server, original) if a < original._alloc_ptr) == int(original.sizes.sum())
    intact(Beton(server.url + "x.beton", cache_dir=tmp_path), original)


def test_what_another_process_that_died_was_fetching_is_fetched(server, remote, original):
    """Its lock is gone with it; while it lives, nobody fetches the same."""
    remote.fetch(np.array([0]))
    fd = os.open(remote.real_path.parent / ".have", os.O_RDWR)
    while not cache.try_lock(fd, 0, original.num_samples):  # until the first request has ended
        pass
    waiting = threading.Thread(target=remote.fetch, args=(np.arange(30),))
    before = len(server.asked)
    waiting.start()
    waiting.join(4 * arrivals.LOOK_S)
    assert waiting.is_alive() and len(server.asked) == before
    os.close(fd)
    waiting.join()
    intact(remote, original, range(30))


def test_what_another_reader_fails_to_fetch_is_fetched(server, remote, original):
    """Two readers of one process: the request of the first is under way, and fails, when the second wants the same records."""
    begun, fail = threading.Event(), threading.Event()

    def once(name, a, b, number):
        if a < original.page_size or begun.is_set():
            return None
        begun.set()
        fail.wait(60)
        return 403

    server.fault = once
    with remote.arriving([], np.arange(original.num_samples)):
        begun.wait(60)
        second = remote.arriving([np.arange(50)])
        waiting = threading.Thread(target=second.wait, args=(0,), daemon=True)
        waiting.start()
        waiting.join(4 * arrivals.LOOK_S)
        fail.set()
        waiting.join(60)
        assert not waiting.is_alive()
    intact(remote, original, range(50))


def test_after_a_restart_of_the_machine_only_what_was_synced_counts(server, original, tmp_path):
    first = Beton(server.url + "x.beton", cache_dir=tmp_path)
    first.fetch(np.arange(60))
    first._arrivals.file.entry.sync(first._arrivals._fd, first._arrivals.have)
    first.fetch(np.arange(60, 90))
    (first.real_path.parent / ".boot").write_text("another")
    second = Beton(server.url + "x.beton", cache_dir=tmp_path)
    assert np.flatnonzero(second._arrivals.have).tolist() == list(range(60))


LIMITED = """
import resource, sys, numpy as np
from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
beton = Beton(sys.argv[1], cache_dir=sys.argv[2])
beton.fetch(np.arange(40))
limit = int(beton.images["data_ptr"][100])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
def work():
    beton.fetch(np.arange(200))
assert cli.run(work, []) == 2
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
beton.fetch(np.arange(200))
"""


def test_a_full_disk_is_one_line_and_costs_nothing(server, original, tmp_path):
    command = [sys.executable, "-c", LIMITED, server.url + "x.beton", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1 and "cannot be written (File too large). Make room" in done.stderr
    intact(Beton(server.url + "x.beton", cache_dir=tmp_path), original)


def test_the_limit_removes_what_was_not_used_for_longest(server, original, tmp_path):
    for name in ("a", "b", "c"):
        server.files[f"{name}.beton"] = server.files["x.beton"]
    size = int(original.sizes.sum())
    everything = np.arange(original.num_samples)

    def fetched(name, limit):
        beton = Beton(f"{server.url}{name}.beton", cache_dir=tmp_path, cache_limit=limit)
        beton.fetch(everything)
        return beton.real_path.parent

    old = fetched("a", "")
    os.utime(old / ".use", (0, 0))
    held = Beton(f"{server.url}b.beton", cache_dir=tmp_path)
    held.fetch(everything)
    os.utime(held.real_path.parent / ".use", (1, 1))
    new = fetched("c", str(3 * size))
    assert not old.exists() and held.real_path.exists() and new.exists()
    with pytest.raises(UsageError, match=r"`cache_limit=.*`: .*a.beton needs .* bytes more, .* besides what is in use"):
        fetched("a", f"{size * 1.5:.0f} B")
    assert held.real_path.exists() and not new.exists()
    intact(held, original)
    for bad in ("lots", "-1", "5XB"):
        with pytest.raises(UsageError, match="must be a size, as 500GB"):
            Beton(f"{server.url}a.beton", cache_dir=tmp_path, cache_limit=bad)


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"`cache_dir=.*`: cannot be written \(Not a directory\)"):
        Beton(server.url + "x.beton", cache_dir=tmp_path / "file" / "cache")


def test_only_who_reads_a_url_needs_a_home(server, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)  # in no list of users
    PretrainConfig(source="x.beton", out="run")
    with pytest.raises(UsageError, match=r"`cache_dir=`: there is no such folder \(.*home.*\). Give another one"):
        Beton(server.url + "x.beton")
