"""``import dp4tl_fast``: what it offers, that it stays cheap, and the README's ten lines."""

import subprocess
import sys

import pytest
from small_runs import noisy_colours

import dp4tl_fast
from dp4tl_fast.common.errors import Dp4tlError, UsageError


def test_every_name_opens_and_an_unknown_one_does_not():
    for name in dp4tl_fast.__all__:
        assert getattr(dp4tl_fast, name) is not None and name in dir(dp4tl_fast)
        if not name.startswith("__"):
            assert getattr(dp4tl_fast, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'banana'"):
        dp4tl_fast.banana  # noqa: B018


def test_functions_stay_functions_when_their_commands_are_imported():
    code = (
        "import sys, dp4tl_fast\n"
        "import dp4tl_fast.prune, dp4tl_fast.convert, dp4tl_fast.report\n"
        "from dp4tl_fast.pretrain import main\n"
        "assert callable(main) and 'torch' not in sys.modules\n"
        "for name in ('prune', 'convert', 'report', 'pretrain', 'finetune'):\n"
        "    assert callable(getattr(dp4tl_fast, name)), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_are_worded_by_parameter():
    with pytest.raises(UsageError, match=r"^`batch_size=0`: must be at least 1$"):
        dp4tl_fast.PretrainConfig(source="s.beton", out="o", batch_size=0)
    with pytest.raises(UsageError, match=r"^`keep=0`: keeps nothing"):
        dp4tl_fast.PruneConfig(source="s.beton", out="o.json", keep="0")
    with pytest.raises(Dp4tlError, match=r"no\.beton: no such file"):
        dp4tl_fast.prune(dp4tl_fast.PruneConfig(source="no.beton", out="o.json", method="random", keep="1"))


def test_the_pipeline_in_python(tmp_path):
    source = noisy_colours(tmp_path, "s", (12, 12, 12, 12))
    small = {"arch": "small-4", "size": 16, "batch_size": 8, "epochs": 1, "tensorboard": False, "workers": 1, "precision": "fp32"}
    learned = {**small, "epochs": 8, "lr": 0.1, "flip": False}  # prune refuses a surrogate that only guesses
    dp4tl_fast.pretrain(dp4tl_fast.PretrainConfig(source=str(source), out=str(tmp_path / "surrogate"), **learned))
    chosen = dp4tl_fast.prune(
        dp4tl_fast.PruneConfig(
            source=str(source), target=[str(source)], surrogate=str(tmp_path / "surrogate"), keep="2",
            out=str(tmp_path / "lm.json"), workers=1, accept_surrogate=True,  # one epoch teaches it nothing
        )
    )  # fmt: skip
    assert len(chosen["kept_classes"]) == 2
    run = dp4tl_fast.PretrainConfig(source=str(source), selection=str(tmp_path / "lm.json"), out=str(tmp_path / "r/lm"), **small)
    assert dp4tl_fast.pretrain(run)["samples"] == 24
    found = dp4tl_fast.finetune(
        dp4tl_fast.FinetuneConfig(
            checkpoint=str(tmp_path / "r/lm"), train=str(source), test=str(source), out=str(tmp_path / "r/lp"), seeds=1, workers=1
        )
    )
    assert found["mode"] == "lp" and found["epochs"] == 50
    assert dp4tl_fast.report(dirs=[str(tmp_path / "r")], out=str(tmp_path / "r.html"))["rows"][0]["method"] == "lm"
