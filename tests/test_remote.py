"""Files behind URLs: the bytes of a local file, each fetched once, whatever servers and disks do; or one line."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
import torch
from cloud_servers import Server, s3
from native_files import jpeg, picture
from small_runs import noisy_colours, run

from benchmarks.servers import nginx
from dp4tl_fast import inspect as inspect_command
from dp4tl_fast import subset as subset_command
from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton import format as fmt
from dp4tl_fast.beton.copying import subset
from dp4tl_fast.beton.sidecars import Contents
from dp4tl_fast.common.errors import BetonError, Dp4tlError, RecordError, UsageError
from dp4tl_fast.evaluate import main as evaluate
from dp4tl_fast.finetune import main as finetune
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.prune import main as prune
from dp4tl_fast.remote import arrivals, cache, store
from dp4tl_fast.selection import Selection

CLASSES, PER_CLASS = 8, 25
KEPT = [1, 4, 5]
SPEC = LoaderSpec(batch_size=16, size=32, transform="random_resized_crop", shuffle=True, flip=True, workers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``x.beton`` with its sidecar, and the same without, in a folder."""
    root = tmp_path_factory.mktemp("www")
    payloads = [jpeg(picture(96, 80, i)) for i in range(CLASSES * PER_CLASS)]
    with BetonWriter(root / "x.beton", len(payloads)) as writer:
        for i, payload in enumerate(payloads):
            writer.append(payload, fmt.MODE_JPEG, 96, 80, i // PER_CLASS, i)
        sums = np.array([zlib.crc32(p) for p in payloads], np.uint32)
        writer.close(Contents(class_names=[f"c{c}" for c in range(CLASSES)], checksums=[sums]))
    (root / "plain.beton").write_bytes((root / "x.beton").read_bytes())
    return root


@pytest.fixture
def server(folder):
    """One that misbehaves, with ``x.beton`` and its sidecar."""
    files = {name: (folder / name).read_bytes() for name in ("x.beton", "x.info.zip")}
    running = Server(x_beton=files["x.beton"], x_info_zip=files["x.info.zip"])
    yield running
    running.close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """A failed request is made again at once: no test waits for a clock. And no proxy stands before the tests' servers."""
    monkeypatch.setattr(store, "LONGEST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def remote(server, tmp_path):
    return Beton(server.url + "x.beton", cache_dir=tmp_path / "cache")


@pytest.fixture
def original(folder):
    return Beton(folder / "x.beton")


def kept(beton):
    return np.flatnonzero(np.isin(beton.labels, KEPT))


def batches(loader):
    with loader:
        return [(images.clone(), labels) for images, labels in loader]


def same(found, expected):
    assert len(found) == len(expected)
    for (a, b), (c, d) in zip(found, expected, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def intact(beton, original, records=None):
    records = np.arange(original.num_samples) if records is None else np.array(records)
    beton.fetch(records)
    for i in records:
        assert bytes(beton.payload(int(i))) == bytes(original.payload(int(i)))


def of_records(server, beton):
    """The ranges that were asked for in the pages."""
    return [(a, b) for name, a, b in server.asked if name == "x.beton" and a >= beton.page_size]


# -- the same as a local file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "plain"])
def test_tables_and_sidecar_are_those_of_the_file(folder, tmp_path, name):
    with nginx(folder, tmp_path) as url:
        beton, local = Beton(f"{url}{name}.beton", cache_dir=tmp_path / "cache"), Beton(folder / f"{name}.beton")
        assert str(beton.path) == f"{url}{name}.beton" and beton.path.name == f"{name}.beton"
        assert beton.fingerprint == local.fingerprint and beton.class_names == local.class_names
        assert np.array_equal(beton.sizes, local.sizes) and (beton.checksums() is None) == (name == "plain")


@pytest.mark.parametrize("backend", ["native", "ffcv", "dali", "torchvision"])
def test_batches_are_those_of_the_file(folder, original, tmp_path, backend):
    records = kept(original)
    expected = batches(open_loader(original, records, SPEC, backend))
    with nginx(folder, tmp_path) as url:
        beton = Beton(f"{url}x.beton", cache_dir=tmp_path / "cache")
        same(batches(open_loader(beton, records, SPEC, backend)), expected)
    same(batches(open_loader(beton, records, SPEC, backend)), expected)  # the server is gone


def test_windows_wait_for_their_records(server, original, tmp_path):
    spec = LoaderSpec(batch_size=16, size=32, shuffle=True, workers=1, shuffle_buffer=1 << 16)
    found = open_loader(server.url + "x.beton", None, spec, cache_dir=tmp_path / "cache")
    same(batches(found), batches(open_loader(original, None, spec)))


def test_only_what_is_wanted_comes_and_once(server, remote, original, tmp_path):
    """Tables, the sidecar and the kept classes; later epochs and processes ask for nothing but whether all is as it was."""
    records = kept(original)
    with open_loader(remote, records, SPEC) as loader:
        first = [labels.tolist() for _, labels in loader]
        size, tables = original.file_size, original.file_size - original._alloc_ptr
        sidecar = len(server.files["x.info.zip"])
        assert server.sent == store.FIRST + tables + sidecar + int(original.sizes[records].sum())
        asked = of_records(server, original)
        covered = np.zeros(size, np.uint8)
        for a, b in asked:
            covered[a:b] += 1
        assert covered.max() == 1
        before = server.sent, len(server.paths)
        second = [labels.tolist() for _, labels in loader]
    assert (server.sent, len(server.paths)) == before and first != second
    again = Beton(server.url + "x.beton", cache_dir=tmp_path / "cache")
    intact(again, original, records)
    assert server.paths[before[1] :] == ["/x.beton", "/x.info.zip"] and server.sent == before[0] + store.FIRST


def test_the_first_batch_comes_before_the_rest(server, remote, original, tmp_path):
    """Until the first batch was taken the server gives no record that is not in it."""
    records = kept(original)
    loader = open_loader(remote, records, SPEC)
    first = loader.epoch_order()[: SPEC.batch_size]
    images, _ = original.images, original.sizes
    starts = set(images["data_ptr"][first].tolist())
    taken = threading.Event()
    server.fault = lambda name, a, b, _: None if a < original.page_size or a in starts else (taken.wait(60), None)[1]
    with loader:
        running = iter(loader)
        batch = next(running)
        assert not taken.is_set() and torch.equal(batch.labels, torch.from_numpy(original.labels[first]))
        taken.set()
        assert 1 + sum(1 for _ in running) == len(loader)


def test_a_file_that_ffcv_wrote_in_another_order(original, server, tmp_path):
    """Record numbers need not follow the file's order."""
    order = np.random.default_rng(0).permutation(original.num_samples)
    subset(original, order, tmp_path / "y.beton")
    shuffled = Beton(tmp_path / "y.beton")
    data = bytearray((tmp_path / "y.beton").read_bytes())
    start = 24 + 1041 * len(shuffled.fields)
    rows = np.frombuffer(bytes(data[start : shuffled.data_start]), shuffled.metadata.dtype)[::-1]  # record numbers backwards
    data[start : shuffled.data_start] = rows.tobytes()
    table = np.frombuffer(bytes(data[shuffled._alloc_ptr :]), fmt.ALLOCATION).copy()
    table["sample_id"] = len(order) - 1 - table["sample_id"]
    data[shuffled._alloc_ptr :] = table.tobytes()
    server.files["y.beton"] = bytes(data)
    (tmp_path / "z.beton").write_bytes(bytes(data))
    intact(Beton(server.url + "y.beton", cache_dir=tmp_path / "cache"), Beton(tmp_path / "z.beton"))


def test_a_pickled_file_is_opened_by_its_url(remote, original):
    intact(pickle.loads(pickle.dumps(remote)), original, [0, 7])


def test_a_forked_child_is_told_to_open_its_own(remote, original):
    intact(remote, original, [0])
    pid = os.fork()
    if pid == 0:
        there = bytes(remote.payload(0)) == bytes(original.payload(0))
        try:
            remote.payload(100)
        except BetonError as error:
            os._exit(0 if there and "Open it in the child" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_signed_url_keeps_its_query_and_does_not_show_it(server, original, tmp_path, capsys):
    url = server.url + "x.beton?X-Signature=se%2Fcret"
    beton = Beton(url, cache_dir=tmp_path / "cache")
    intact(beton, original, [3])
    assert all(path.endswith("?X-Signature=se%2Fcret") for path in server.paths) and "cret" not in str(beton.path)
    server.fault = lambda *_: 403
    assert inspect_command.main([url]) == 2
    assert "cret" not in capsys.readouterr().err


# -- servers that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut", "short", "flip", 500, 503, 429])
def test_faults_that_pass_leave_right_bytes(server, original, tmp_path, fault):
    """Every second answer fails, of tables, sidecar and records."""
    server.fault = lambda name, a, b, number: fault if number % 2 and not (fault == "flip" and a < original.page_size) else None
    beton = Beton(server.url + "x.beton", cache_dir=tmp_path / "cache")
    with beton.arriving([np.arange(50)], np.arange(original.num_samples)):
        intact(beton, original)


def test_a_cut_transfer_goes_on_where_it_broke(server, remote, original, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 1 << 16)
    server.fault = lambda name, a, b, number: "cut" if b - a > 2 * store.CHUNK else None
    sent = server.sent
    remote.fetch(np.arange(original.num_samples))
    assert len(of_records(server, original)) > 2
    assert server.sent - sent < original.sizes.sum() + len(of_records(server, original)) * store.CHUNK


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (403, r"may not be read \(HTTP 403\): wrong or expired credentials\? .* sign it again"),
        (401, r"may not be read \(HTTP 401\)"),
        (404, r"no such file \(HTTP 404\). Is the URL right"),
        (503, r"cannot be read: HTTP 503. It was tried 4 times"),
        (410, r"cannot be read \(HTTP 410\)"),
    ],
)
def test_a_file_that_cannot_be_opened_is_one_line(server, tmp_path, capsys, fault, says):
    server.fault = lambda *_: fault
    assert inspect_command.main([server.url + "x.beton", f"--cache-dir={tmp_path / 'cache'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(says, said), said


@pytest.mark.parametrize(("fault", "says"), [(403, "expired"), (500, "HTTP 500. It was tried 9 times"), ("flip", "checksum")])
def test_a_file_that_fails_later_is_one_line_and_what_came_stays(server, original, tmp_path, capsys, fault, says):
    """The first class comes, then the server fails for good; the next run fetches the rest alone."""
    limit = int(original.images["data_ptr"][PER_CLASS])
    server.fault = lambda name, a, b, _: fault if b > limit and name == "x.beton" and a < original._alloc_ptr else None
    command = [server.url + "x.beton", str(tmp_path / "out.beton"), "--classes=c0", "--classes=c3", f"--cache-dir={tmp_path / 'c'}"]
    Beton(server.url + "x.beton", cache_dir=tmp_path / "c").fetch(np.arange(PER_CLASS))
    assert subset_command.main(command) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dp4tl-fast")]
    assert len(said) == 1 and says in said[0] and not (tmp_path / "out.beton").exists()
    server.fault, sent = (lambda *_: None), server.sent
    have = np.fromfile(next((tmp_path / "c").glob("*/.have")), np.uint8)
    assert have[:PER_CLASS].all() and have.sum() < 2 * PER_CLASS
    assert subset_command.main(command) == 0
    assert server.sent - sent == store.FIRST + int(original.sizes[(original.labels == 3) & (have == 0)].sum())
    records = np.flatnonzero(np.isin(original.labels, [0, 3]))
    copied = Beton(tmp_path / "out.beton")
    assert all(bytes(copied.payload(i)) == bytes(original.payload(r)) for i, r in enumerate(records.tolist()))


def test_a_loader_says_it_too_and_works_again_later(server, remote, original):
    for backend in ("native", "ffcv", "dali", "torchvision"):
        server.fault = lambda name, a, b, _: 403
        loader = open_loader(remote, np.arange(40), SPEC, backend)
        with pytest.raises(BetonError, match="HTTP 403"):
            next(iter(loader))
        loader.close()
    server.fault = lambda *_: None
    same(batches(open_loader(remote, None, SPEC)), batches(open_loader(original, None, SPEC)))


def test_a_server_without_ranges_is_refused(folder, tmp_path, capsys):
    with nginx(folder, tmp_path) as url:
        assert inspect_command.main([f"{url}whole/x.beton", f"--cache-dir={tmp_path / 'cache'}"]) == 2
        assert "gives no ranges" in capsys.readouterr().err


def test_an_object_that_is_replaced_is_refused_and_the_next_run_reads_the_new_one(server, remote, original, tmp_path):
    remote.fetch(np.arange(10))
    old = remote.real_path.parent
    subset(original, np.arange(original.num_samples)[::-1], tmp_path / "new.beton")
    server.files["x.beton"] = (tmp_path / "new.beton").read_bytes()
    server.files["x.info.zip"] = (tmp_path / "new.info.zip").read_bytes()
    with pytest.raises(BetonError, match=r"was replaced while it was being read: it was .* ETag .* and now is .* Run the command"):
        remote.fetch(np.arange(10, 40))
    intact(remote, original, range(10))
    del remote
    intact(Beton(server.url + "x.beton", cache_dir=tmp_path / "cache"), Beton(tmp_path / "new.beton"))
    assert old.exists()  # the fixture holds it


def test_what_is_no_beton_is_said_to_be_so(server, tmp_path):
    for name, data, says in (
        ("page.beton", b"<html>Sign in</html>" * 10, r"not a \.beton|format version"),
        ("cut.beton", server.files["x.beton"][:100_000], "allocation table .* Is it truncated"),
        ("empty.beton", b"", "."),
    ):
        server.files[name] = data
        with pytest.raises(BetonError, match=says):
            Beton(server.url + name, cache_dir=tmp_path / "cache")


def test_urls_that_cannot_work(tmp_path, capsys, monkeypatch):
    for url in ("ftp://host/x.beton", "s3://bucket/"):
        with pytest.raises(UsageError, match=r"known are s3://, gs://, az://, https://, http://, and the name of a file"):
            Beton(url, cache_dir=tmp_path)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(UsageError, match=r"Account must be specified\. Set AZURE_STORAGE_ACCOUNT_NAME"):
        Beton("az://container/x.beton", cache_dir=tmp_path)
    with pytest.raises(BetonError, match=r"error sending request|[Cc]onnect"):
        Beton("http://127.0.0.1:1/x.beton", cache_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert inspect_command.main(["s3://bucket/x.beton"]) == 2
    assert "URLs need obstore. Install it with `pip install dp4tl_fast[cloud]`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (400, "ExpiredToken", r"may not be read \(HTTP 400 ExpiredToken\).*Set AWS_ACCESS_KEY_ID"),
        (403, "InvalidAccessKeyId", r"may not be read \(HTTP 403 InvalidAccessKeyId\).*Set AWS_ACCESS_KEY_ID"),
        (301, "PermanentRedirect", r"lies in another region .*Set AWS_REGION"),
        (404, "NoSuchBucket", r"no such file"),
    ],
)
def test_what_s3_refuses_is_one_line_with_the_remedy(server, tmp_path, monkeypatch, status, code, says):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "old")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.rstrip("/"))
    server.fault = lambda *_: (status, f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode())
    with pytest.raises(BetonError, match=f"^s3://b/x.beton: {says}[^\n]*$"):
        Beton("s3://b/x.beton", cache_dir=tmp_path)


# -- the cache --------------------------------------------------------------------------------------------------------

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
    with pytest.raises(UsageError, match=r"`cache_limit=.*`: .*a.beton needs .* bytes more, .* beside what is in use"):
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


# -- commands ---------------------------------------------------------------------------------------------------------


def test_commands_read_buckets_as_they_read_files(tmp_path, monkeypatch, capsys):
    """A selection, pretraining, finetuning and evaluation come out the same; nothing but the kept classes was fetched."""
    (tmp_path / "bucket").mkdir()
    noisy_colours(tmp_path, "source", (24, 24, 24, 24))
    noisy_colours(tmp_path, "test", (6, 6, 6, 6))
    for path in [*tmp_path.glob("source.*"), *tmp_path.glob("test.*")]:
        path.rename(tmp_path / "bucket" / path.name)
    with s3(tmp_path / "bucket", "data") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        places = {"here": str(tmp_path / "bucket"), "there": "s3://data/sets"}
        found = {where: _pipeline(place, tmp_path / where, capsys) for where, place in places.items()}
        assert found["here"] == found["there"]
        assert inspect_command.main([f"{places['there']}/source.beton", "--verify"]) == 0
    with pytest.raises(Dp4tlError, match="cannot be read"):
        Beton("s3://data/sets/source.beton")


def _pipeline(place, out, capsys):
    source, test, at = f"{place}/source.beton", f"{place}/test.beton", f"--cache-dir={out / 'cache'}"
    select = [f"--source={source}", f"--out={out / 'sel.json'}", "--method=handpicked", "--classes=class1", "--classes=class3", at]
    assert prune(select) == 0
    pretrained = run(source, out / "run", selection=str(out / "sel.json"), val=test, cache_dir=str(out / "cache"), epochs=1)
    marks = [np.fromfile(path, np.uint8).sum() for path in (out / "cache").glob("*/.have")]
    assert not marks or sorted(marks) == [12, 48]  # of the test file and the source, the two classes
    assert subset_command.main([source, str(out / "sub.beton"), f"--selection={out / 'sel.json'}", at]) == 0
    tune = [f"--checkpoint={out / 'run'}", f"--train={source}", f"--test={test}", f"--out={out / 'lp'}", at]
    assert finetune([*tune, "--epochs=1", "--seeds=1", "--no-tensorboard", "--workers=1", "--batch-size=8"]) == 0
    capsys.readouterr()
    assert evaluate([str(out / "lp/seed-0"), test, "--json", at, "--workers=1"]) == 0
    measured = json.loads(capsys.readouterr().out)
    selection = Selection.load(out / "sel.json")
    summary = json.loads((out / "lp/summary.json").read_text())
    return (
        selection.source, selection.kept_classes, pretrained["weights_sha256"], (out / "sub.beton").read_bytes(), summary["top_1"],
        measured["loss"], measured["per_class"],
    )  # fmt: skip


def test_errors_of_records_name_the_url(server, remote):
    with pytest.raises(RecordError, match=r"http://127.0.0.1:.*x.beton: record 0 .*does not match its checksum"):
        server.fault = lambda *_: "flip"
        remote.fetch(np.array([0]))
