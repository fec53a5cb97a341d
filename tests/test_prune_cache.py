"""The cache of features: found again when it may be, computed again when it must be, safe against crashes and company."""

import fcntl
import json
import multiprocessing
import os
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from pruning_data import forward_passes, run
from safetensors.torch import load_file, save_file
from small_runs import noisy_colours
from small_runs import run as pretrained

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.stopwatch import Stopwatch
from dp4tl_fast.pruning import cache
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.run import prune
from dp4tl_fast.training import checkpoint


def test_a_second_method_or_ratio_reads_no_image(data, tmp_path, monkeypatch):
    calls = forward_passes(monkeypatch)
    run(data, tmp_path / "a.json", method="fm")
    assert sorted(calls) == ["red.beton", "source.beton"]
    first = run(data, tmp_path / "b.json", method="fm", keep="1")
    run(data, tmp_path / "c.json", method="moderate")
    assert sorted(calls) == ["red.beton", "source.beton"]
    run(data, tmp_path / "d.json", method="lm")  # tries the classifier on a sample of the source
    assert calls[2:] == ["source.beton"]
    assert first["seconds"]["cached"] > 0  # what the first run spent counts towards the selection's cost
    run(data, tmp_path / "e.json", "blue", method="lm")
    assert calls[3:] == ["blue.beton"]
    run(data, tmp_path / "f.json", method="lm", cache="none")
    assert calls[4:] == ["source.beton", "red.beton"]


def test_other_weights_or_data_are_not_found_in_the_cache(data, tmp_path, monkeypatch):
    calls = forward_passes(monkeypatch)
    before = run(data, tmp_path / "a.json")
    tensors = load_file(checkpoint.find_weights(data / "surrogate"))
    tensors["fc.bias"] = tensors["fc.bias"].clone()
    tensors["fc.bias"][3] += 1000
    save_file(tensors, tmp_path / "other.safetensors")
    other = {"surrogate": str(tmp_path / "other.safetensors"), "arch": "small-4", "size": 16, "accept_surrogate": True}
    after = run(data, tmp_path / "b.json", **other)
    assert calls == ["source.beton", "red.beton"] * 2 and after["scores"] == [0, 0, 0, 9] != before["scores"]
    copy = tmp_path / "red.beton"
    copy.write_bytes((data / "blue.beton").read_bytes())
    run(data, tmp_path / "c.json", target=[str(copy)])
    copy.write_bytes((data / "red.beton").read_bytes())
    run(data, tmp_path / "d.json", target=[str(copy)])
    assert calls[4:] == ["red.beton"] * 2 and json.loads((tmp_path / "d.json").read_text())["scores"] == before["scores"]


def test_damaged_cache_files_are_computed_again(data, tmp_path, capsys):
    before = run(data, tmp_path / "a.json")
    (file,) = (tmp_path / "cache").glob("features-*.npy")
    for damage in (file.read_bytes()[:100], b"", b"garbage" * 99):
        file.write_bytes(damage)
        assert run(data, tmp_path / "b.json")["scores"] == before["scores"]
        assert "computing it again" in capsys.readouterr().err


def killed_while_filling(path):
    def fill(out):
        out[0] = 1
        os.kill(os.getpid(), signal.SIGKILL)

    cache.cached(path, (4,), np.dtype("<f4"), fill)


def fill_and_count(path, log):
    def fill(out):
        with open(log, "a") as file:
            file.write("x")
        out[:] = 7

    assert cache.cached(path, (1000,), np.dtype("<f4"), fill).array[999] == 7


def test_cache_survives_a_kill_and_concurrent_runs(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    path = tmp_path / "a.npy"
    process = spawn.Process(target=killed_while_filling, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not path.exists()
    assert cache.cached(path, (4,), np.dtype("<f4"), lambda out: out.fill(2)).array.tolist() == [2] * 4
    assert not list(tmp_path.glob(".*partial"))
    many = [spawn.Process(target=fill_and_count, args=(tmp_path / "b.npy", tmp_path / "log")) for _ in range(3)]
    for process in many:
        process.start()
    for process in many:
        process.join()
    assert [p.exitcode for p in many] == [0] * 3 and (tmp_path / "log").read_text() == "x"  # the others waited


def fill_a_small_disk(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # no file may grow further: what a full disk does
    with pytest.raises(UsageError, match=r"cannot hold 4\.0 MB .* Give another folder, or none"):
        cache.cached(path, (1_000_000,), np.dtype("<f4"), lambda out: out.fill(1))


def test_a_full_disk_is_an_error_before_anything_is_computed(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=fill_a_small_disk, args=(tmp_path / "a.npy",))
    process.start()
    process.join()
    assert process.exitcode == 0 and [p.name for p in tmp_path.iterdir()] == ["a.lock"]


def test_a_touched_or_copied_file_is_found_in_the_cache(data, tmp_path, monkeypatch):
    calls = forward_passes(monkeypatch)
    before = run(data, tmp_path / "a.json")
    first = len(calls)
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("source", "red"):
        for suffix in (".beton", ".info.zip"):
            (copies / f"{name}{suffix}").write_bytes((data / f"{name}{suffix}").read_bytes())
    after = run(data, tmp_path / "b.json", source=str(copies / "source.beton"), target=[str(copies / "red.beton")])
    assert first and len(calls) == first and after["scores"] == before["scores"]


def hold_the_cache(path, held, waited_for):
    def fill(out):
        held.set()
        waited_for.wait()
        out[:] = 7

    cache.cached(path, (4,), np.dtype("<f4"), fill)


def test_a_wait_for_anothers_cache_is_no_cost(tmp_path):
    """It is told apart as waiting; what the other spent is told as cached."""
    spawn = multiprocessing.get_context("spawn")
    held, waited_for = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold_the_cache, args=(tmp_path / "a.npy", held, waited_for))
    process.start()
    held.wait()
    watch = Stopwatch("writing")

    @contextmanager
    def waiting():
        with watch.section("waiting"):
            waited_for.set()
            yield

    found = cache.cached(tmp_path / "a.npy", (4,), np.dtype("<f4"), lambda out: out.fill(1), waiting=waiting)
    process.join()
    assert found.array.tolist() == [7] * 4 and found.saved > 0 and watch.lap()["waiting"] > 0


@pytest.mark.parametrize("named", ["run", "checkpoint", "file", "best"])
def test_what_a_surrogate_cost_follows_its_weights(tmp_path, named):
    source = noisy_colours(tmp_path, "s", (8, 8, 8))
    made = pretrained(source, tmp_path / "sur", epochs=1)
    weights = checkpoint.find_weights(tmp_path / "sur")
    path = {"run": tmp_path / "sur", "checkpoint": weights.parent, "file": weights, "best": tmp_path / "sur/checkpoint/best"}[named]
    chosen = prune(
        PruneConfig(source=str(source), target=[str(source)], surrogate=str(path), out=str(tmp_path / "o.json"), keep="2",
                    accept_surrogate=True, cache="none")
    )  # fmt: skip
    assert chosen["seconds"]["surrogate"] == made["pretrain_s"]


def hold_the_lock(path, held, waited_for):
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        held.set()
        assert waited_for.wait(60), "nobody says that it waits"


def test_a_wait_for_anothers_clusters_is_no_cost(data, tmp_path, monkeypatch):
    options = {"method": "fm", "groups": "kmeans", "clusters": 3, "keep": "1"}
    run(data, tmp_path / "a.json", **options)
    (clusters,) = (tmp_path / "cache").glob("kmeans-*.npy")
    clusters.unlink()
    spawn = multiprocessing.get_context("spawn")
    held, waited_for = spawn.Event(), spawn.Event()
    process = spawn.Process(target=hold_the_lock, args=(clusters.with_suffix(".lock"), held, waited_for))
    process.start()
    held.wait()
    real = Stopwatch.section
    monkeypatch.setattr(Stopwatch, "section", lambda self, name: (name == "waiting" and waited_for.set()) or real(self, name))
    found = run(data, tmp_path / "b.json", **options)
    process.join()
    assert process.exitcode == 0 and found["profile"]["waiting"] > 0
