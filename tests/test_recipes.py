"""Every shipped recipe goes through the real parser and says what PAPER.md's method says."""

import dataclasses
import functools
import re

import pytest
import yaml
from small_runs import noisy_colours

from dp4tl_fast import finetune, pretrain
from dp4tl_fast.__main__ import main as dispatch
from dp4tl_fast.common import cli, parser
from dp4tl_fast.finetune import main as finetune_main
from dp4tl_fast.pretrain import main as pretrain_main
from dp4tl_fast.reporting.runs import flat
from dp4tl_fast.training import checkpoint

RECIPES = sorted(p.stem for p in parser.RECIPES.glob("*.yaml"))
TRANSFER = {"lp", "ff", "ff_sgd"}


def parsed(name, *more):
    """What the command is called with."""
    command = finetune if name in TRANSFER else pretrain
    required = ["--checkpoint=c", "--train=t", "--test=u"] if name in TRANSFER else ["--source=s"]
    given = []

    @functools.wraps(command)
    def probe(config):
        given.append(flat(dataclasses.asdict(config)))

    assert cli.run(probe, ["--config", name, "--out=o", *required, *more]) == 0
    return given[0]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_parses_and_flags_win_over_it(name, capsys):
    settings, values = flat(yaml.safe_load((parser.RECIPES / f"{name}.yaml").read_text())), parsed(name)
    assert {k: values[k] for k in settings} == settings
    assert parsed(name, "--epochs=3")["epochs"] == 3
    assert dispatch(["finetune" if name in TRANSFER else "pretrain", "--help"]) == 0
    assert re.search(rf"\b{name}\b", capsys.readouterr().out)


SUPERVISED = {"epochs": 16, "optimizer": "sgd", "lr": 0.5, "weight_decay": 5e-5, "schedule": "triangular", "warmup_epochs": 2,
              "size": 160, "end_size": 192, "end_size_from": 12, "val_size": 256, "label_smoothing": 0, "lr_batch": 0}  # fmt: skip
PAPER = {
    "resnet18": {**SUPERVISED, "batch_size": 1024},
    "resnet50": {**SUPERVISED, "batch_size": 512},
    "resnet101": {**SUPERVISED, "batch_size": 256},
    "resnet152": {**SUPERVISED, "batch_size": 256},
    "adversarial_resnet18": {
        **SUPERVISED, "objective": "adversarial", "adv.eps": 3, "adv.steps": 3, "adv.norm": "linf", "batch_size": 1024,
    },
    "vit_b_16": {"epochs": 100, "optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.3, "label_smoothing": 0.11,
                 "warmup_epochs": 10, "size": 224, "batch_size": 400, "schedule": "cosine"},
    "moco_v2_resnet101": {"arch": "resnet101", "moco.queue": 65536, "moco.temperature": 0.2, "moco.momentum": 0.999,
                          "min_scale": 0.2, "schedule": "cosine", "lr": 0.03, "lr_batch": 256},
    "moco_v3_vit_b_16": {"arch": "vit_b_16", "objective": "moco_v3"},
    "lp": {"mode": "lp", "optimizer": "adam", "lr": 0.01, "epochs": 50, "batch_size": 128, "size": 224},
    "ff": {"mode": "ff", "optimizer": "adam", "lr": 1e-4, "epochs": 200, "batch_size": 128, "size": 224},
    "ff_sgd": {"mode": "ff", "optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "epochs": 200, "batch_size": 128},
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipes(name):
    values = parsed(name)
    assert {k: values[k] for k in PAPER[name]} == PAPER[name]
    if name.startswith("resnet"):
        assert values["arch"] == name


def test_the_small_recipes_train_and_transfer(tmp_path):
    source = noisy_colours(tmp_path, "s", (24,) * 4)
    for name in ("small_32px", "small_64px"):
        flags = ["--epochs=2", "--end-size-from=1", "--warmup-epochs=1", "--batch-size=16", "--workers=1", "--no-tensorboard"]
        assert pretrain_main(["--config", name, f"--source={source}", f"--out={tmp_path / name}", *flags]) == 0
        assert checkpoint.load_model(tmp_path / name)[1]["size"] == int(name[6:8])
    for name in TRANSFER:
        flags = ["--epochs=2", "--size=32", "--seeds=1", "--workers=1", f"--train={source}", f"--test={source}"]
        assert finetune_main(["--config", name, f"--checkpoint={tmp_path / 'small_32px'}", f"--out={tmp_path / name}", *flags]) == 0


def test_sgd_needs_a_rate_of_its_own(tmp_path, capsys):
    source = noisy_colours(tmp_path, "s", (2, 2))
    flags = ["--optimizer=sgd", "--checkpoint=c", f"--train={source}", f"--test={source}", f"--out={tmp_path / 'o'}"]
    assert finetune_main(flags) == 2 and "needs --lr" in capsys.readouterr().err
