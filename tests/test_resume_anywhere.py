"""A run is continued where its files lie by now, by a version with other flags, and from its own config.yaml."""

import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import FAST, noisy_colours, run

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.run import prune
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
    with pytest.raises(UsageError, match=r"val_records_sha256 was .* holds other images by now"):
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
    assert "another version, which are left out: sharpen\n" in capsys.readouterr().err
    run(data / "s.beton", tmp_path / "whole")
    assert same(tmp_path / "whole", tmp_path / "r")


def test_from_its_own_config_yaml(data, tmp_path, monkeypatch):
    interrupted(monkeypatch, 8, data / "s.beton", tmp_path / "r", val=str(data / "v.beton"))
    command = [sys.executable, "-m", "dp4tl_fast.pretrain", f"--config={tmp_path / 'r/config.yaml'}", f"--out={tmp_path / 'r'}"]
    done = subprocess.run([*command, "--resume", "--workers=1", "--no-tensorboard"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run(data / "s.beton", tmp_path / "whole", val=str(data / "v.beton"))
    a, b = (load_file(checkpoint.find_weights(tmp_path / name)) for name in ("r", "whole"))
    assert a.keys() == b.keys() and FAST["precision"] == "fp32"
    for name in a:  # another number of threads: the bits may differ
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
