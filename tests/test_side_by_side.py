"""``pretrain --compare``: the same recipe on everything and on a selection, as one command that can be interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import FAST, noisy_colours, run

from dp4tl_fast.common.cli import Terminated
from dp4tl_fast.common.errors import SelectionError, UsageError
from dp4tl_fast.pretrain import main
from dp4tl_fast.pretraining.training import Training
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.run import prune
from dp4tl_fast.training import checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes of 16 images, and selections of two of them."""
    root = tmp_path_factory.mktemp("data")
    noisy_colours(root, "s", (16, 16, 16))
    for seed in (0, 1):
        prune(PruneConfig(source=str(root / "s.beton"), method="random", keep="2", seed=seed, out=str(root / f"draw-{seed}.json")))
    return root


def side_by_side(data, out, draw=0, **changes):
    return run(data / "s.beton", out, compare=str(data / f"draw-{draw}.json"), **changes)


def weights(out):
    return load_file(checkpoint.find_weights(out))


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "c"
    return out, side_by_side(data, out, val=str(data / "s.beton"))


def test_summary_and_page_hold_both_runs(compared, data):
    out, summary = compared
    assert json.loads((out / "summary.json").read_text()) == summary and summary["kind"] == "compare"
    full, pruned = summary["rows"]
    assert (full["name"], full["classes_kept"], pruned["name"], pruned["classes_kept"]) == ("full", 3, "random", 2)
    runs = summary["runs"]
    assert runs.keys() == {"full", "draw-0"} and runs["full"] == json.loads((out / "full/summary.json").read_text())
    assert pruned["speedup"] == runs["full"]["pretrain_s"] / runs["draw-0"]["pretrain_s"]
    cost = runs["draw-0"]["pretrain_s"] + runs["draw-0"]["pruning_s"]
    assert pruned["speedup_with_pruning"] == pytest.approx(runs["full"]["pretrain_s"] / cost) and runs["draw-0"]["pruning_s"] > 0
    assert runs["draw-0"]["samples"] == 32 and runs["draw-0"]["selection"] == str(data / "draw-0.json")
    html = (out / "report.html").read_text()
    assert html.count("<svg") >= 3 and "random" in html and "with pruning" in html


def test_each_half_is_the_run_that_one_would_make_alone(compared, data, tmp_path):
    out, _ = compared
    val = str(data / "s.beton")
    run(data / "s.beton", tmp_path / "full", val=val)
    run(data / "s.beton", tmp_path / "draw-0", val=val, selection=str(data / "draw-0.json"))
    for half in ("full", "draw-0"):
        ours, alone = weights(out / half), weights(tmp_path / half)
        assert all(torch.equal(ours[k], alone[k]) for k in alone)
        assert (out / half / "config.yaml").read_text() == (tmp_path / half / "config.yaml").read_text()


@pytest.mark.parametrize("half", ["full", "draw-0"])
def test_an_interrupted_half_goes_on_and_a_finished_one_stays(compared, data, tmp_path, monkeypatch, half):
    on_step, trained, out = Training._on_step, [], tmp_path / "c"

    def step(self, state):
        trained.append(self.out.name)
        return on_step(self, state) or (cut and self.out.name == half and state.step == 3)

    monkeypatch.setattr(Training, "_on_step", step)
    cut = True
    with pytest.raises(Terminated, match=f"{half}: saved at step 3"):
        side_by_side(data, out, val=str(data / "s.beton"))
    assert not (out / "summary.json").exists() and not (out / half / "summary.json").exists()
    with pytest.raises(UsageError, match=r"already holds a run.* `resume`"):
        side_by_side(data, out, val=str(data / "s.beton"))
    cut = False
    side_by_side(data, out, val=str(data / "s.beton"), resume=True)
    assert (trained.count("full"), trained.count("draw-0")) == (18, 12), "no step is done twice"
    for name in ("full", "draw-0"):
        whole, resumed = weights(compared[0] / name), weights(out / name)
        assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_another_selection_joins(data, tmp_path, monkeypatch):
    out = tmp_path / "c"
    side_by_side(data, out, epochs=1)
    before = files(out)
    with pytest.raises(UsageError, match="already holds a run"):
        side_by_side(data, out, draw=1, epochs=1)
    assert files(out) == before
    summary = side_by_side(data, out, draw=1, epochs=1, resume=True)
    assert summary["runs"].keys() == {"full", "draw-0", "draw-1"} and [r["runs"] for r in summary["rows"]] == [1, 2]
    after = files(out)
    assert all(after[name] == content for name, content in before.items() if name.parts[0] in ("full", "draw-0"))


def test_what_cannot_work_is_refused_before_the_first_run(data, tmp_path):
    other = noisy_colours(tmp_path, "other", (16, 16, 16, 16))
    narrow = noisy_colours(tmp_path, "narrow", (4,))
    (tmp_path / "full.json").write_text((data / "draw-0.json").read_text())
    compare, out = str(data / "draw-0.json"), tmp_path / "c"
    for source, changes, error, message in (
        (data / "s.beton", {"selection": compare}, UsageError, "`compare` and `selection`"),
        (data / "s.beton", {"batch_size": 40}, UsageError, "`batch_size=40`: larger than the 32 surviving records"),
        (data / "s.beton", {"compare": str(tmp_path / "full.json")}, UsageError, "Rename the selection"),
        (data / "s.beton", {"val": str(narrow)}, SelectionError, "has only 1 classes"),
        (other, {}, SelectionError, "made for another source"),
    ):
        with pytest.raises(error, match=message):
            run(source, out, **{"compare": compare, **changes})
        assert not out.exists()
    for name in ("config.yaml", "summary.json", "report.html"):
        taken = tmp_path / name.partition(".")[0]
        taken.mkdir()
        (taken / name).write_text('{"kind": "pretrain"}')
        with pytest.raises(UsageError, match="Give another `out`"):
            side_by_side(data, taken)
        assert files(taken) == {Path(name): b'{"kind": "pretrain"}'}


def test_the_command_prints_a_table_and_json(data, tmp_path, capsys):
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**FAST, "epochs": 1}.items()]
    given = [f"--source={data / 's.beton'}", f"--compare={data / 'draw-0.json'}", f"--out={tmp_path / 'c'}", *flags]
    assert main([*given, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["rows"][1]["name"] == "random"
    assert "speed-up" in shown.err and "images/s" in shown.err and "report.html" in shown.err
    assert main([*given, f"--selection={data / 'draw-0.json'}"]) == 2
    assert "--compare and --selection" in capsys.readouterr().err


def test_two_processes_share_both_halves(data, tmp_path):
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**FAST, "epochs": 1}.items()]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dp4tl_fast.pretrain",
         f"--source={data / 's.beton'}", f"--compare={data / 'draw-0.json'}", f"--out={tmp_path / 'c'}", *flags, "--json"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    runs = json.loads(line)["runs"]
    assert {name: (s["processes"], s["samples"]) for name, s in runs.items()} == {"full": (2, 48), "draw-0": (2, 32)}
    assert done.stderr.count("hold the rest") == 1
