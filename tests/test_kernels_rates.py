"""Choices by measured rate: made once, kept in the user's cache folder, overridden by the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.kernels_forced import SHAPES
from dp4tl_fast.common import machine
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.kernels import _native, label_counts, nearest_centroid, rates, training_step
from dp4tl_fast.kernels.label_counts import native_impl as label_counts_impl
from dp4tl_fast.kernels.linear_argmax import native_impl
from dp4tl_fast.reporting import installed
from dp4tl_fast.training.device import pick_precision


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and a process that has measured nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rates, "_known", {})
    monkeypatch.delenv(rates.VARIABLE, raising=False)
    return tmp_path / "dp4tl_fast/rates"


def race(calls, versions="1"):
    ways = {name: lambda name=name: calls.append(name) for name in ("one", "other")}
    return rates.Race("a test", versions, ways, work=1.0)


def test_rates_are_measured_once_and_kept_for_the_next_process(cache, monkeypatch):
    calls = []
    measured = race(calls).rates()
    assert calls == ["one", "other"] * (rates.ROUNDS + 1)
    assert race(calls).rates() == measured and race(calls).fastest() == max(measured, key=measured.get)
    monkeypatch.setattr(rates, "_known", {})  # the next process
    assert race(calls).rates() == measured and len(calls) == 2 * (rates.ROUNDS + 1)
    race(calls, versions="2").rates()  # another version is measured anew
    assert len(calls) == 4 * (rates.ROUNDS + 1) and len(list(cache.iterdir())) == 2
    renewed = race(calls).rates(again=True)
    assert len(calls) == 6 * (rates.ROUNDS + 1) and renewed in [json.loads(f.read_text())["rates"] for f in cache.iterdir()]


def test_rates_are_those_of_one_processor(cache, monkeypatch):
    """A home folder is shared by machines. In virtual ones several models have one name, and a model may lack instructions."""
    shown = {"model name": "AMD EPYC", "cpu family": "25", "model": "17", "flags": "fpu avx2 avx512f avx512_bf16"}
    monkeypatch.setattr(machine, "_cpuinfo", lambda key: shown.get(key, ""))
    race([]).rates()
    for key, value in (("model", "1"), ("flags", "fpu avx2")):
        monkeypatch.setitem(shown, key, value)
        monkeypatch.setattr(rates, "_known", {})  # another process, on that machine
        calls = []
        race(calls).rates()
        assert calls, f"rates of a processor with another {key} were taken over"
    assert len(list(cache.iterdir())) == 3


def test_the_fastest_is_that_of_the_kept_rates(cache, monkeypatch):
    race([]).rates()
    (file,) = cache.iterdir()
    for first, second in ((1.0, 2.0), (2.0, 1.0)):
        file.write_text(json.dumps({"rates": {"one": first, "other": second}}))
        monkeypatch.setattr(rates, "_known", {})
        assert race([]).fastest() == ("other" if second > first else "one")


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"rates": {"one": 1}}', '{"rates": {"one": 1, "other": NaN}}', '{"rates": {"one": 1, "other": []}}',
                '{"rates": {"one": -1, "other": 2}}', '{"rates": {"one": 1, "other": 1%s}}' % ("0" * 400), "[" * 100_000],
    ids=range(9),
)  # fmt: skip
def test_a_damaged_file_is_measured_again(cache, monkeypatch, content):
    race([]).rates()
    (file,) = cache.iterdir()
    file.write_text(content)
    monkeypatch.setattr(rates, "_known", {})
    calls = []
    measured = race(calls).rates()
    assert calls and json.loads(file.read_text())["rates"] == measured


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "dp4tl_fast").write_text("a file where the folder should be")
    calls = []
    assert race(calls).rates() == race(calls).rates() and len(calls) == 2 * (rates.ROUNDS + 1)


def test_without_a_home_nothing_is_kept(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)  # in no list of users
    with pytest.raises(OSError, match="home"):
        rates.folder()
    assert set(race([]).rates()) == {"one", "other"}


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv(rates.VARIABLE, "other=x,linear_argmax=bfloat16")
    assert rates.forced("linear_argmax", native_impl.PRODUCTS) == "bfloat16"
    assert native_impl.faster_products(torch.float32, 64, scores=1) == "bfloat16"
    assert rates.forced("another", ["x"]) is None
    for bad in ("linear_argmax=float64", "linear_argmax", "float32"):
        monkeypatch.setenv(rates.VARIABLE, bad)
        with pytest.raises(UsageError, match=f"DP4TL_FAST_WAYS={bad}: expected OPERATION=WAY; .* are float32, bfloat16"):
            nearest_centroid(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize(("rows", "columns", "depth"), [(5_000, 1_000, 64), *SHAPES])
def test_products_are_chosen_by_rate_at_every_shape_that_matters(monkeypatch, rows, columns, depth):
    """Also at the smallest: on some CPUs with bf16 instructions, products in float32 are twice as fast."""
    seen = []
    monkeypatch.setattr(_native, "has_bf16_products", lambda: True)
    monkeypatch.setattr(rates.Race, "_run", lambda race: {"float32": 2.0, "bfloat16": 1.0})
    monkeypatch.setattr(native_impl, "_winners", lambda x, w, offset, isa, products: seen.append(products) or (None, None))
    monkeypatch.setattr(native_impl, "histogram", lambda *arguments: None)
    x, w = torch.empty(1, depth).expand(rows, depth), torch.empty(1, 1).expand(columns, depth)
    native_impl._fastest.cache_clear()
    try:
        native_impl.linear_argmax(x, w, torch.empty(1).expand(columns), None, 1)
    finally:
        native_impl._fastest.cache_clear()
    assert seen == [torch.float32]


def test_the_rates_are_looked_up_once_per_process(monkeypatch):
    """Not at every call, each of which may take no longer than the look-up."""
    looked_up = []
    monkeypatch.setattr(native_impl, "race", lambda dtype, depth: looked_up.append(depth) or race([]))
    monkeypatch.setattr(_native, "has_bf16_products", lambda: True)
    native_impl._fastest.cache_clear()
    try:
        choices = {native_impl.faster_products(torch.float32, depth) for depth in (77, 77, 78, 77)}
    finally:
        native_impl._fastest.cache_clear()
    assert looked_up == [77, 78] and choices <= {"one", "other"}


def test_the_environment_decides_on_the_instruction_set(monkeypatch):
    for isa in _native.isas():
        monkeypatch.setenv(rates.VARIABLE, f"label_counts={isa}")
        assert label_counts_impl.fastest_isa(torch.float32, 10) == isa
    monkeypatch.setenv(rates.VARIABLE, "label_counts=sse9")
    with pytest.raises(UsageError, match=r"label_counts=sse9: expected OPERATION=WAY; the ways of label_counts are baseline"):
        label_counts(torch.zeros(2, 3), 3)


def test_the_instruction_set_is_chosen_by_rate(monkeypatch):
    slowest = _native.isas()[0]
    monkeypatch.setattr(rates.Race, "_run", lambda race: {isa: 1.0 + (isa == slowest) for isa in race.ways})
    label_counts_impl._fastest.cache_clear()
    try:
        assert label_counts_impl.fastest_isa(torch.float32, 1_000, 1) == "auto"
        assert label_counts_impl.fastest_isa(torch.float32, 1_000) == slowest
    finally:
        label_counts_impl._fastest.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_real_race_has_a_rate_for_each_way(cache, dtype):
    found = native_impl.race(dtype, 100)
    assert set(found.rates()) == ({"float32", "bfloat16"} if _native.has_bf16_products() else {"float32"})
    assert found.fastest() in found.rates()
    about = json.loads(next(cache.iterdir()).read_text())["about"]
    assert about[0] == f"linear_argmax of {str(dtype)[6:]}, depth 128, threads {torch.get_num_threads()}"


def test_doctor_shows_the_rates_and_what_is_taken(capsys):
    installed.rates()
    shown = json.loads(capsys.readouterr().out)
    assert f"linear_argmax of float32, depth 512, threads {torch.get_num_threads()}" in shown
    assert f"label_counts of bfloat16, 1024 classes, threads {torch.get_num_threads()}" in shown
    assert "training step, one thread" in shown and len(shown) == len(installed.RATES) + 1
    for found in shown.values():
        assert found["chosen"] == max(found["gflops"], key=found["gflops"].get)


def test_doctor_says_so_when_the_kernels_fail(monkeypatch):
    monkeypatch.setenv(rates.VARIABLE, "linear_argmax=float64")
    found, why = installed._run_rates()
    assert found == {} and why.startswith("the CPU kernels failed: ") and "DP4TL_FAST_WAYS=linear_argmax=float64" in why


# -- training: the precision that `auto` means on a CPU -----------------------------------------------------------------


@pytest.fixture
def undecided():
    training_step.faster.cache_clear()
    yield
    training_step.faster.cache_clear()


@pytest.mark.parametrize(("bf16", "chosen"), [(1.01, torch.bfloat16), (0.99, None)])
def test_a_cpu_trains_in_what_it_trains_faster_in(monkeypatch, undecided, bf16, chosen):
    """Having bf16 instructions is not enough: some CPUs are slower with them."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(rates.Race, "_run", lambda race: {"fp32": 1.0, "bf16": bf16})
    assert pick_precision("auto", torch.device("cpu")) == chosen


def test_a_cpu_without_bf16_trains_in_fp32(monkeypatch, undecided):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert pick_precision("auto", torch.device("cpu")) is None


def test_the_race_of_training_steps_draws_no_random_numbers_of_the_run():
    before = torch.get_rng_state()
    assert training_step.race().fastest() in ("fp32", "bf16")
    assert torch.equal(before, torch.get_rng_state())


LARGE = """
import hashlib, torch
from dp4tl_fast.kernels import label_counts, nearest_centroid
generator = torch.Generator().manual_seed(0)
x, c = torch.randn(9000, 512, generator=generator), torch.randn(1100, 512, generator=generator)
got = nearest_centroid(x, c, return_distances=True)
counts = label_counts(torch.randn(1 << 16, 512, generator=generator), 512)
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in (got.index, got.distances, counts))).hexdigest())
"""


def test_no_choice_changes_a_bit_of_the_result(cache):
    """Large enough to be measured: with each way forced, and with the one that the rates choose."""
    ways = [f"linear_argmax={way}" for way in native_impl.PRODUCTS] + [f"label_counts={isa}" for isa in _native.isas()]
    runs = [
        subprocess.run([sys.executable, "-c", LARGE], env=os.environ | way, capture_output=True, text=True, check=True)
        for way in ({}, *({rates.VARIABLE: way} for way in ways))
    ]
    assert len({run.stdout for run in runs}) == 1 and len(runs[0].stdout.strip()) == 64
    measured = {json.loads(file.read_text())["about"][0].split()[0] for file in cache.iterdir()}
    assert measured == {"label_counts", *(["linear_argmax"] if _native.has_bf16_products() else [])}  # where there is a choice
