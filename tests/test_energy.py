"""Energy: counters of Linux's powercap, from folders like the kernel's; what a run makes of them."""

import json
import math
import re

import pytest
import torch
from small_runs import noisy_colours, run

from dp4tl_fast.common.cli import Terminated
from dp4tl_fast.pretraining.training import Training
from dp4tl_fast.reporting.compare import compare
from dp4tl_fast.reporting.runs import find_runs
from dp4tl_fast.runs import energy

RANGE_UJ = 10_000_000
CPU = torch.device("cpu")


def zone(root, number, name, microjoules=0):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    root = tmp_path / "powercap"
    zone(root, "0", "package-0", 4_000_000)
    zone(root, "1", "package-1", 9_000_000)
    zone(root, "0:0", "core", 1_000_000)
    zone(root, "0:1", "dram", 2_000_000)
    zone(root, "2", "psys", 5_000_000)
    monkeypatch.setattr(energy, "POWERCAP", root)
    return root


def test_packages_and_memory_are_added_and_parts_of_them_are_not(powercap):
    meter = energy.meter(CPU)
    zone(powercap, "0", "package-0", 4_500_000)
    zone(powercap, "0:0", "core", 1_250_000)
    zone(powercap, "0:1", "dram", 2_125_000)
    zone(powercap, "2", "psys", 9_000_000)
    assert meter() == pytest.approx(0.625, abs=1e-9)
    zone(powercap, "1", "package-1", 9_250_000)
    assert meter() == pytest.approx(0.875, abs=1e-9)


def test_a_counter_that_starts_anew_goes_on(powercap, monkeypatch):
    meter = energy.meter(CPU)
    zone(powercap, "1", "package-1", 500_000)  # 1 J to the end of its range, and half a joule from 0
    assert meter() == pytest.approx(1.5, abs=1e-9)
    monkeypatch.setattr(energy, "OFTEN_S", -1.0)
    for value in (8_000_000, 7_000_000, 6_000_000):  # nearly a round each, seen on the way
        zone(powercap, "1", "package-1", value)
        meter.keep_up()
    assert meter() == pytest.approx(1.5 + 7.5 + 9 + 9, abs=1e-9)


def test_what_the_platform_does_not_tell_is_unknown(powercap, monkeypatch):
    meter = energy.meter(CPU)
    (powercap / "intel-rapl:1/energy_uj").unlink()  # as unreadable as one that is root's
    assert math.isnan(meter())
    zone(powercap, "1", "package-1", 9_000_000)
    assert math.isnan(meter()), "what it drew meanwhile is not known"
    assert not math.isnan(energy.meter(CPU)())
    (powercap / "intel-rapl:0/max_energy_range_uj").write_text("")
    assert math.isnan(energy.meter(CPU)())
    assert math.isnan(energy.meter(torch.device("meta"))())
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert energy.meter(CPU)() == 0, "the machine's first process counts"
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(energy, "POWERCAP", powercap / "nothing")
    assert math.isnan(energy.meter(CPU)())


@pytest.fixture
def a_joule_a_step(powercap, monkeypatch):
    """The first package draws a joule in every step of training, and much between the epochs. Returns who may stop a run."""
    drawn, stop_at, on_step, on_epoch = [4_000_000], [], Training._on_step, Training._on_epoch

    def draw(microjoules):
        drawn[0] = (drawn[0] + microjoules) % RANGE_UJ
        zone(powercap, "0", "package-0", drawn[0])

    def step(self, state):
        draw(1_000_000)
        return on_step(self, state) or state.step in stop_at

    def epoch(self, *arguments):
        draw(5_000_000)
        on_epoch(self, *arguments)

    monkeypatch.setattr(Training, "_on_step", step)
    monkeypatch.setattr(Training, "_on_epoch", epoch)
    return stop_at


def test_a_run_and_its_continuation_add_up(tmp_path, a_joule_a_step, powercap):
    source = noisy_colours(tmp_path, "s", (16, 16, 16))
    summary = run(source, tmp_path / "whole")
    assert summary["energy_wh"] == pytest.approx(18 / 3600) and summary["gpu_hours"] is None
    assert re.match(r"\d+ cores? of ", summary["device"]) and summary["processes"] == 1
    a_joule_a_step.append(8)  # in the middle of the second of three epochs
    with pytest.raises(Terminated):
        run(source, tmp_path / "cut")
    a_joule_a_step.clear()
    assert run(source, tmp_path / "cut", resume=True)["energy_wh"] == pytest.approx(18 / 3600)
    rows = [json.loads(line) for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert [r["energy_j"] for r in rows] == [pytest.approx(6)] * 3
    (row,) = compare(find_runs([tmp_path / "cut", tmp_path / "whole"]))
    assert row["energy_wh"] == pytest.approx(18 / 3600)


def test_a_continuation_without_a_meter_leaves_the_whole_unknown(tmp_path, a_joule_a_step, powercap, monkeypatch):
    source = noisy_colours(tmp_path, "s", (16, 16, 16))
    a_joule_a_step.append(8)
    with pytest.raises(Terminated):
        run(source, tmp_path / "cut")
    a_joule_a_step.clear()
    monkeypatch.setattr(energy, "POWERCAP", powercap / "nothing")
    assert run(source, tmp_path / "cut", resume=True)["energy_wh"] is None
    rows = [json.loads(line) for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert ["energy_j" in r for r in rows] == [True, False, False]
