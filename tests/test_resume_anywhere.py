"""A run is continued where its files lie by now, by a version with other flags, and from its own config.yaml."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import FAST, noisy_colours, run

from dp4tl_fast.common.cli import Terminated
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.finetune import main as finetune_command
from dp4tl_fast.finetuning.config import FinetuneConfig, SaveConfig
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.finetuning.tuning import Tuning
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.run import prune
from dp4tl_fast.runs.config import CheckpointConfig
from dp4tl_fast.training import checkpoint
from dp4tl_fast.training.supervised import Supervised


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    noisy_colours(root, "s", (16, 16, 16))
    noisy_colours(root, "v", (3, 4, 3))
    return root


def interrupted(monkeypatch, steps, *arguments, **changes):
    """A run that ends in its step ``steps``, without a checkpoint of that epoch."""
    plain, count = Supervised.forward, iter(range(10**6))

    def forward(self, *a):
        if next(count) == steps:
            raise KeyboardInterrupt
        return plain(self, *a)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Supervised, "forward", forward)
        run(*arguments, **changes)


def same(a, b):
    a, b = (load_file(checkpoint.find_weights(x)) for x in (a, b))
    return all(torch.equal(a[k], b[k]) for k in a)


def test_files_may_lie_elsewhere(data, tmp_path, monkeypatch, capsys):
    prune(PruneConfig(source=str(data / "s.beton"), out=str(tmp_path / "sel.json"), keep="2", method="random"))
    files = {"val": str(data / "v.beton"), "selection": str(tmp_path / "sel.json")}
    whole = run(data / "s.beton", tmp_path / "whole", **files)
    interrupted(monkeypatch, 6, data / "s.beton", tmp_path / "r", **files)
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    for path in (data / "s.beton", data / "s.info.zip", data / "v.beton", data / "v.info.zip", tmp_path / "sel.json"):
        (elsewhere / path.name).write_bytes(path.read_bytes())
    moved = {"val": str(elsewhere / "v.beton"), "selection": str(elsewhere / "sel.json"), "resume": True}
    with pytest.raises(UsageError, match=r"val_records_sha256 was .* now holds other images"):
        run(elsewhere / "s.beton", tmp_path / "r", **{**moved, "val": str(elsewhere / "s.beton")})
    capsys.readouterr()
    there = run(elsewhere / "s.beton", tmp_path / "r", **moved)
    assert "another version" not in capsys.readouterr().err
    assert same(tmp_path / "whole", tmp_path / "r") and there["val_top_1"] == whole["val_top_1"]
    assert yaml.safe_load((tmp_path / "r/config.yaml").read_text())["source"] == str(elsewhere / "s.beton")


def test_a_version_with_other_flags(data, tmp_path, monkeypatch, capsys):
    interrupted(monkeypatch, 8, data / "s.beton", tmp_path / "r")
    path = tmp_path / "r/config.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings["blur_pool"], settings["moco"]["queue"]  # flags that the older version did not have
    path.write_text(yaml.safe_dump({**settings, "sharpen": 3}))  # and one that has gone since
    with pytest.raises(UsageError, match="blur_pool was False, now True"):
        run(data / "s.beton", tmp_path / "r", resume=True, blur_pool=True)
    run(data / "s.beton", tmp_path / "r", resume=True)
    assert "another version, which are ignored: sharpen\n" in capsys.readouterr().err
    run(data / "s.beton", tmp_path / "whole")
    assert same(tmp_path / "whole", tmp_path / "r")


def test_from_its_own_config_yaml(data, tmp_path, monkeypatch):
    options = {"val": str(data / "v.beton"), "val_every": 2, "checkpoint": CheckpointConfig(keep_last=3), "on_bad_record": "skip"}
    interrupted(monkeypatch, 8, data / "s.beton", tmp_path / "r", **options)
    command = [sys.executable, "-m", "dp4tl_fast.pretrain", f"--config={tmp_path / 'r/config.yaml'}", f"--out={tmp_path / 'r'}"]
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0 and "another version" not in done.stderr, done.stderr
    run(data / "s.beton", tmp_path / "whole", **options)
    assert (tmp_path / "r/config.yaml").read_text() == (tmp_path / "whole/config.yaml").read_text()
    for out in (tmp_path / "r", tmp_path / "whole"):
        measured = ["val_top_1" in json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert measured == [False, True, True] and len(checkpoint.checkpoints(out / "checkpoint")) == 3
        assert not list(out.glob("events.*"))
    a, b = (load_file(checkpoint.find_weights(tmp_path / name)) for name in ("r", "whole"))
    assert a.keys() == b.keys() and FAST["precision"] == "fp32"
    for name in a:  # another number of threads: the bits may differ
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_a_finetuning_from_its_own_config_yaml(data, tmp_path, monkeypatch):
    run(data / "s.beton", tmp_path / "start", epochs=1)
    files = {"train": str(data / "s.beton"), "test": str(data / "v.beton"), "checkpoint": str(tmp_path / "start")}
    told = FinetuneConfig(out=str(tmp_path / "r"), mode="ff", epochs=2, seeds=1, batch_size=8, workers=1, precision="fp32",
                          tensorboard=False, save=SaveConfig(keep_last=3), **files)  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(Tuning, "_on_step", lambda self, state: state.step == 8)
        with pytest.raises(Terminated):
            finetune(told)
    assert finetune_command([f"--config={tmp_path / 'r/config.yaml'}", f"--out={tmp_path / 'r'}", "--resume"]) == 0
    finetune(replace(told, out=str(tmp_path / "whole")))
    assert same(tmp_path / "r", tmp_path / "whole") and not list(tmp_path.rglob("r/**/events.*"))
    assert (tmp_path / "r/config.yaml").read_text() == (tmp_path / "whole/config.yaml").read_text()


def test_what_is_left_away_is_another_setting(data, tmp_path):
    """Also where nothing else is named by an empty text: from scratch there is no checkpoint."""
    scratch = {"train": str(data / "s.beton"), "test": str(data / "v.beton"), "from_scratch": True, "arch": "small-4", "mode": "ff",
               "epochs": 1, "seeds": 1, "batch_size": 8, "workers": 1, "size": 16, "precision": "fp32", "tensorboard": False}
    finetune(FinetuneConfig(out=str(tmp_path / "r"), val=str(data / "v.beton"), **scratch))
    with pytest.raises(UsageError, match=r"val was '.*v\.beton', now ''"):
        finetune(FinetuneConfig(out=str(tmp_path / "r"), resume=True, **scratch))
