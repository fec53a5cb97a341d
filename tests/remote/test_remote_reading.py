"""Files behind URLs: the bytes of a local file, each fetched once, and commands that take them."""

import json
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from cloud_servers import Server, s3
from remote_cases import SPEC, batches, intact, kept, of_records, same
from small_runs import noisy_colours, run

from benchmarks.servers import nginx
from dp4tl_fast import inspect as inspect_command
from dp4tl_fast import subset as subset_command
from dp4tl_fast.beton import Beton
from dp4tl_fast.beton import format as fmt
from dp4tl_fast.beton.copying import subset
from dp4tl_fast.common.errors import BetonError, Dp4tlError, UsageError
from dp4tl_fast.evaluate import main as evaluate
from dp4tl_fast.finetune import main as finetune
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.prune import main as prune
from dp4tl_fast.remote import store
from dp4tl_fast.remote.url import Url, unsigned
from dp4tl_fast.report import main as report
from dp4tl_fast.selection import Selection


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

def test_what_signs_a_url_is_written_nowhere(tmp_path, capsys):
    """Not to run folders, selections, reports, the cache's notes or the terminal; and a run goes on with another signature."""
    noisy_colours(tmp_path, "x", (16, 16, 16))
    server = Server(**{name.replace(".", "_"): (tmp_path / name).read_bytes() for name in ("x.beton", "x.info.zip")})
    url, out = f"{server.url}x.beton?X-Sig=se.cret", tmp_path / "out"
    cached = {"cache_dir": str(out / "cache")}
    run(url, out / "run", val=url, epochs=1, **cached)
    select = [f"--source={url}", f"--target={url}", f"--surrogate={out / 'run'}", "--keep=2", "--accept-surrogate", "--workers=1"]
    assert prune([*select, f"--out={out / 'sel.json'}", f"--report={out / 'sel.html'}", f"--cache-dir={out / 'cache'}"]) == 0
    tune = [f"--checkpoint={out / 'run'}", f"--train={url}", f"--test={url}", f"--out={out / 'ff'}", "--mode=ff", "--epochs=1"]
    tune += ["--seeds=1", "--workers=1", "--batch-size=8", f"--cache-dir={out / 'cache'}"]
    assert finetune(tune) == 0
    assert report([str(out), f"--out={out / 'report.html'}"]) == 0
    again = url.replace("se.cret", "an.other")
    assert run(again, out / "run", val=again, epochs=1, resume=True, **cached)["source"] == f"{server.url}x.beton"
    with pytest.raises(UsageError, match=r"larger than the 48 surviving records of http://127.0.0.1:\d+/x.beton$"):
        run(url, out / "large", batch_size=64, **cached)
    server.close()
    told = capsys.readouterr()
    assert "cret" not in told.out + told.err
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in files if b"se.cret" in path.read_bytes() or "cret" in path.name] and len(files) > 20


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


@pytest.mark.parametrize(
    ("full", "without"),
    [
        ("https://u:p@h.org:8/a/b c.beton?sig=1/2@x#f", "https://h.org:8/a/b c.beton"), ("HTTPS://h/x", "https://h/x"),
        ("http://h?x=/y", "http://h"), ("https://h/a#b?c", "https://h/a"), ("http://h/p@q/r", "http://h/p@q/r"),
    ],
)  # fmt: skip
def test_a_url_as_text_has_nothing_that_signs_it(full, without):
    assert str(Url(full)) == without
    assert unsigned(full.partition("#")[0]) == without


def test_other_urls_may_be_signed_too():
    assert unsigned("s3://key:secret@bucket/a@b/c.tar?token=x") == "s3://bucket/a@b/c.tar"
