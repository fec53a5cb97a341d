"""Servers that fail while a file behind a URL is read: right bytes, or one line."""

import re
import sys

import numpy as np
import pytest
from remote_cases import PER_CLASS, SPEC, batches, intact, of_records, same

from benchmarks.servers import nginx
from dp4tl_fast import inspect as inspect_command
from dp4tl_fast import subset as subset_command
from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.copying import subset
from dp4tl_fast.common.errors import BetonError, RecordError, UsageError
from dp4tl_fast.loaders import open_loader
from dp4tl_fast.remote import store


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


def test_a_silent_server_is_asked_again_where_it_stopped(server, original, tmp_path, monkeypatch):
    """Every second answer, of tables, sidecar and records."""
    monkeypatch.setattr(store, "SILENT_S", 0.3)
    server.fault = lambda name, a, b, number: "stall" if number % 2 else None
    beton = Beton(server.url + "x.beton", cache_dir=tmp_path / "cache")
    intact(beton, original)
    server.fault = lambda *_: "stall"
    with pytest.raises(BetonError, match=r"cannot be read: nothing arrived for 0.3 s. It was tried 4 times"):
        Beton(server.url + "x.beton", cache_dir=tmp_path / "another")


def test_a_slow_server_has_all_the_time_it_needs(server, original, tmp_path, monkeypatch):
    """Each answer takes several times as long as a server may be silent; nothing is asked for twice."""
    monkeypatch.setattr(store, "SILENT_S", 0.3)
    server.fault = lambda *_: "drip"
    beton = Beton(server.url + "x.beton", cache_dir=tmp_path / "cache")
    beton.fetch(np.arange(original.num_samples))
    asked = of_records(server, original)
    assert max(b - a for a, b in asked) / 2000 * 0.005 > 2 * store.SILENT_S
    assert sum(b - a for a, b in asked if a < original._alloc_ptr) == int(original.sizes.sum())
    server.fault = lambda *_: None
    intact(beton, original)


def test_a_server_that_never_sends_more_than_half_is_read_all_the_same(server, original, tmp_path):
    """Half of what is left is less than a chunk soon."""
    server.fault = lambda name, a, b, number: "cut" if a >= original.page_size and b - a > 1 else None
    beton = Beton(server.url + "x.beton", cache_dir=tmp_path / "cache")
    intact(beton, original)


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
        assert "does not support range requests" in capsys.readouterr().err


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
        with pytest.raises(UsageError, match=r"must begin with one of s3://, gs://, az://, https://, http://, and name a file"):
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
        (301, "PermanentRedirect", r"is in another region .*Set AWS_REGION"),
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


def test_errors_of_records_name_the_url(server, remote):
    with pytest.raises(RecordError, match=r"http://127.0.0.1:.*x.beton: record 0 .*does not match its checksum"):
        server.fault = lambda *_: "flip"
        remote.fetch(np.array([0]))
