"""Weights that others wrote: the right logits, or a refusal that names what is wrong."""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from small_runs import noisy_colours

from dp4tl_fast.common.errors import CheckpointError, UsageError
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.inference.config import NetworkConfig
from dp4tl_fast.inference.network import open_network
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.run import prune
from dp4tl_fast.training import checkpoint, models
from dp4tl_fast.training.preprocessing import Preprocessing

ARCH, CLASSES = "small-4", 5
TIMM = "test_vit"  # a transformer of 0.4 M parameters that wants mean and std 0.5


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return models.build(ARCH, CLASSES).eval()


def opened(place, **more):
    return open_network(NetworkConfig(checkpoint=str(place), **more), "cpu")


@pytest.fixture(scope="module")
def state(network):
    return {k: v.contiguous() for k, v in network.state_dict().items()}


@pytest.fixture(scope="module")
def other(state):
    return {k: v + 1 for k, v in state.items()}


def under(prefix, tensors):
    return {f"{prefix}{k}": v for k, v in tensors.items()}


def without_head(tensors):
    return {k: v for k, v in tensors.items() if not k.startswith("fc.")}


def right(path, network, arch=ARCH):
    """Whether a file gives the network's logits."""
    loaded, _ = checkpoint.load_model(path, arch)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(loaded(x), network(x))


WRAPPED = {
    "plain": lambda s, o: s,
    "state_dict": lambda s, o: {"state_dict": s, "epoch": 3},
    "tutorial": lambda s, o: {"model_state_dict": s, "optimizer_state_dict": {"state": {}, "lr": torch.ones(1)}},
    "nested": lambda s, o: {"checkpoint": 1, "model": {"state_dict": s}},
    "lightning": lambda s, o: {"state_dict": under("model.", s), "pytorch-lightning_version": "2.4.0", "epoch": 1},
    "lightning net": lambda s, o: {"state_dict": under("net.", s) | {"criterion.weight": torch.ones(3)}},
    "ddp of compile": lambda s, o: under("module._orig_mod.", s),
    "compile of ddp": lambda s, o: under("_orig_mod.module.", s),
    "fsdp": lambda s, o: {"model": {k.replace(".", "._fsdp_wrapped_module.", 1): v for k, v in s.items()}},
    "mmpretrain": lambda s, o: {
        "meta": {"epoch": 1},
        "state_dict": under("backbone.", without_head(s)) | under("head.", {k: v for k, v in s.items() if k.startswith("fc.")}),
    },
    "counters": lambda s, o: {k: v for k, v in s.items() if "num_batches" not in k},
    "thop": lambda s, o: s | {"total_ops": torch.ones(1), "stem.0.total_params": torch.ones(1)},
    "swa": lambda s, o: under("module.", s) | {"n_averaged": torch.tensor(7)},
    "auxiliary": lambda s, o: s | {"aux1.fc.weight": torch.ones(5, 3), "AuxLogits.conv0.conv.weight": torch.ones(5, 3, 1, 1)},
    "model and average": lambda s, o: {"model": s, "model_ema": o},
    "timm": lambda s, o: {"state_dict": s, "state_dict_ema": o, "metric": 0.7},
    "average alone": lambda s, o: {"model_ema": s},
    "mixed": lambda s, o: s | {"epoch": 3, "name": "mine"},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_prefixes_and_containers(name, network, state, other, tmp_path):
    torch.save(WRAPPED[name](state, other), tmp_path / "w.pth")
    assert right(tmp_path / "w.pth", network)
    assert checkpoint.load_model(tmp_path / "w.pth", ARCH)[1]["num_classes"] == CLASSES


def test_which_of_two_is_said_and_can_be_chosen(network, state, other, tmp_path, capsys):
    torch.save({"model": other, "model_ema": state}, tmp_path / "w.pth")
    assert not right(tmp_path / "w.pth", network)
    assert "using model; it also holds model_ema: w.pth#model_ema selects that" in capsys.readouterr().err
    assert right(f"{tmp_path / 'w.pth'}#model_ema", network)
    with pytest.raises(CheckpointError, match=r"has no part banana\. Its parts: model, model_ema"):
        checkpoint.load_model(f"{tmp_path / 'w.pth'}#banana", ARCH)


def test_half_precision_and_safetensors_of_others(network, state, tmp_path):
    save_file(state, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert right(tmp_path / "w.safetensors", network)
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "h.pth")
    loaded = checkpoint.load_model(tmp_path / "h.pth", ARCH)[0].state_dict()
    assert all(v.dtype == state[k].dtype for k, v in loaded.items())
    torch.testing.assert_close(loaded, state, rtol=1e-3, atol=1e-4)  # half's own resolution


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "another"])
def test_what_has_a_say_in_the_logits_is_not_passed_over(state, tmp_path, change):
    body = dict(state)
    if change == "missing":
        del body["stages.1.conv1.0.weight"]
    if change == "extra":
        body["stages.3.conv1.0.weight"] = torch.ones(3)
    if change == "shape":
        body["stages.1.conv1.0.weight"] = torch.ones(8, 4, 5, 5)
    if change == "another":
        body = {"conv1.weight": torch.ones(3)}
    torch.save(body, tmp_path / "w.pth")
    message = {"missing": "1 weights missing, 0", "extra": "1 unknown", "shape": "1 weights? missing|1 of another shape"}
    with pytest.raises(CheckpointError, match=message.get(change, "is one of this architecture")):
        checkpoint.load_model(tmp_path / "w.pth", ARCH)


def test_harmless_objects_beside_the_weights_are_read(network, state, tmp_path):
    beside = {
        "args": argparse.Namespace(lr=0.1, out=Path("/a/b")), "best": np.float64(0.5), "steps": np.int64(3),
        "history": np.arange(3.0), "log": defaultdict(list), "path": Path("x"),
    }  # fmt: skip
    torch.save({"state_dict": state, **beside}, tmp_path / "w.pth.tar")
    assert right(tmp_path / "w.pth.tar", network)


def test_other_objects_are_named_and_never_made(network, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'owned'}",))

    torch.save(network, tmp_path / "module.pth")
    torch.save({"state_dict": {"w": torch.ones(1)}, "x": Evil()}, tmp_path / "evil.pth")
    for name, what in (("module.pth", "SmallResNet"), ("evil.pth", "system")):
        with pytest.raises(CheckpointError, match=rf"it holds .*{what}.* could run any code.*state_dict"):
            checkpoint.load_model(tmp_path / name, ARCH)
    assert not (tmp_path / "owned").exists()


def test_files_that_are_no_weights_are_named(state, tmp_path):
    torch.save(state, tmp_path / "whole.pth")
    save_file(state, tmp_path / "whole.safetensors")
    contents = {
        "empty.pth": (b"", "is an empty file"),
        "page.pth": (b"<!DOCTYPE html><html><body>404</body></html>", "is an HTML page: a failed download"),
        "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*`git lfs pull`"),
        "cut.pth": ((tmp_path / "whole.pth").read_bytes()[:5000], "is cut short: an incomplete download"),
        "cut.safetensors": ((tmp_path / "whole.safetensors").read_bytes()[:-50], "cut short: an incomplete download"),
        "text.pth": (b"hello, these are no weights", "is a text file"),
        "noise.pth": (bytes(range(200, 256)), "neither safetensors nor what torch.save writes"),
    }
    for name, (data, message) in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{name}.*{message}"):
            checkpoint.load_model(tmp_path / name, ARCH)
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such file or folder"):
        checkpoint.load_model(tmp_path / "gone.pth", ARCH)


def test_what_python_2_saved_is_read(network, state, tmp_path):
    """torch's old format, whose strings Python 2 wrote as bytes: rewritten here in place, opcode by opcode."""
    path = tmp_path / "py2.pth"
    torch.save(dict(state), path, _use_new_zipfile_serialization=False, pickle_protocol=2)
    raw = path.read_bytes()
    for name in state:
        text = name.encode()
        raw = raw.replace(b"X" + len(text).to_bytes(4, "little") + text, b"U" + bytes([len(text)]) + text)
    assert b"U" + bytes([len("fc.bias")]) + b"fc.bias" in raw
    path.write_bytes(raw)
    assert right(path, network)


ENCODERS = {
    "moco": lambda s, o: {"state_dict": under("module.encoder_q.", without_head(s)) | under("module.encoder_k.", without_head(o))
                          | {"module.encoder_q.fc.0.weight": torch.ones(8, 16), "module.queue": torch.ones(4, 8)}},
    "dino": lambda s, o: {"student": under("module.backbone.", without_head(o)) | {"module.head.mlp.0.weight": torch.ones(3, 16)},
                          "teacher": under("backbone.", without_head(s)) | {"head.mlp.0.weight": torch.ones(3, 16)}},
    "plain": lambda s, o: without_head(s),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("foreign")
    noisy_colours(root, "train", (8,) * 4)
    return root / "train.beton"


@pytest.mark.parametrize("name", ENCODERS)
def test_headless_encoders_serve_where_no_classifier_is_asked_for(name, state, other, data, tmp_path):
    torch.save(ENCODERS[name](state, other), tmp_path / "w.pth")
    loaded, meta = checkpoint.load_model(tmp_path / "w.pth", ARCH)
    found = loaded.state_dict()
    assert all(torch.equal(found[k], v) for k, v in without_head(state).items()) and meta["classifies"] is False
    for mode in ("lp", "ff", "knn"):
        small = {"epochs": 1, "seeds": 1, "size": 16, "batch_size": 8, "precision": "fp32", "tensorboard": False, "workers": 1}
        made = FinetuneConfig(checkpoint=str(tmp_path / "w.pth"), arch=ARCH, train=str(data), test=str(data), mode=mode,
                              out=str(tmp_path / mode), **small)  # fmt: skip
        assert finetune(made)["arch"] == ARCH
    files = {"source": str(data), "target": [str(data)], "surrogate": str(tmp_path / "w.pth")}
    chosen = {**files, "arch": ARCH, "size": 16, "keep": "2"}
    prune(PruneConfig(out=str(tmp_path / "fm.json"), method="fm", **chosen))
    with pytest.raises(UsageError, match="its classifier was never trained"):
        prune(PruneConfig(out=str(tmp_path / "lm.json"), method="lm", **chosen))
    with pytest.raises(CheckpointError, match="no classifier to predict with"):
        opened(tmp_path / "w.pth", arch=ARCH).check_classifier("predict")


# -- timm and the Hub -------------------------------------------------------------------------------------------------


def snapshot(folder, num_classes=7, **config):
    """A network of timm's as its own tools save it for the Hub."""
    torch.manual_seed(0)
    model = timm.create_model(TIMM, num_classes=num_classes).eval()
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors", metadata={"format": "pt"})
    half = [0.5, 0.5, 0.5]
    cfg = {"input_size": [3, 160, 160], "mean": half, "std": half, "crop_pct": 0.95, "interpolation": "bicubic"}
    body = {"architecture": TIMM, "num_classes": num_classes, "pretrained_cfg": cfg, **config}
    (folder / "config.json").write_text(json.dumps(body))
    return model


def same_logits(a, b, size=160):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(a(x), b(x))


def test_a_snapshot_of_the_hub_says_all_that_is_needed(tmp_path):
    names = [f"kind {i}" for i in range(7)]
    model = snapshot(tmp_path / "s", label_names=names)
    loaded, meta = checkpoint.load_model(tmp_path / "s")
    assert same_logits(loaded, model) and meta["arch"] == f"timm:{TIMM}" and meta["class_names"] == names
    pixels = Preprocessing.of(meta)
    assert (pixels.size, pixels.crop_ratio, pixels.interpolation) == (160, 0.95, "bicubic")
    assert pixels.mean == pixels.std == (0.5, 0.5, 0.5)
    assert pixels.changed([0.1, 0.2, 0.3], None).mean == (0.1, 0.2, 0.3)
    with pytest.raises(UsageError, match=r"`std=\[1, 0, 1\]`: must be three numbers above 0"):
        pixels.changed(None, [1, 0, 1])
    (tmp_path / "s/config.json").write_text('{"architectures": ["ViTForImageClassification"], "model_type": "vit"}')
    with pytest.raises(CheckpointError, match="is a network of transformers"):
        checkpoint.load_model(tmp_path / "s")


@pytest.mark.parametrize("spelling", [f"timm:{TIMM}", f"timm:timm/{TIMM}", f"hf-hub:timm/{TIMM}"])
def test_names_of_timms_as_architectures(spelling, tmp_path):
    model = snapshot(tmp_path / "s")
    loaded, meta = checkpoint.load_model(tmp_path / "s/model.safetensors", spelling)
    assert same_logits(loaded, model) and meta["mean"] == [0.5, 0.5, 0.5]
    torch.save(model.state_dict(), tmp_path / "w.pth")  # without a config: what timm says of the architecture
    assert Preprocessing.of(checkpoint.load_model(tmp_path / "w.pth", spelling)[1]).mean == (0.5, 0.5, 0.5)


def test_published_weights_come_from_the_hubs_cache(tmp_path, monkeypatch):
    """As the Hub's client lays it out; nothing is asked of the network."""
    from huggingface_hub import constants

    name = timm.get_pretrained_cfg(TIMM).hf_hub_id
    revision = "0" * 40
    folder = tmp_path / f"models--{name.replace('/', '--')}"
    model = snapshot(folder / "snapshots" / revision, num_classes=1000)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for spelling in (f"timm:{TIMM}", f"timm:timm/{TIMM}"):
        loaded, meta = checkpoint.load_model(spelling)
        assert same_logits(loaded, model) and meta["num_classes"] == 1000 and meta["mean"] == [0.5, 0.5, 0.5]
        assert checkpoint.weights_hash(spelling, loaded) == checkpoint.weights_hash(f"timm:{TIMM}", loaded)
    with pytest.raises(UsageError, match="not in the local cache and cannot be downloaded"):
        checkpoint.load_model("timm:test_resnet")
    with pytest.raises(UsageError, match="timm has no network of this name"):
        checkpoint.load_model("timm:banana")


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("timm:deit_tiny_distilled_patch16_224", "has 2 classifiers"),
        ("timm:resnetv2_50x1_bit", "has a Conv2d for a classifier"),
        ("squeezenet1_1", "no linear layer to use as a classifier"),
    ],
)
def test_networks_with_other_classifiers_are_refused_by_name(arch, message):
    """Their last linear layer is not what gives the logits: a fresh one there would change half of them, or nothing."""
    with pytest.raises(UsageError, match=message):
        models.replace_head(models.build(arch, 3), 2)


@pytest.mark.parametrize("arch", ["alexnet", "densenet121", "timm:test_vit", "timm:test_resnet", "timm:test_efficientnet"])
def test_the_classifier_is_what_gives_the_logits(arch):
    model = models.build(arch, 4).eval()
    new = models.replace_head(model, 3)
    torch.nn.init.zeros_(new.weight)
    torch.nn.init.constant_(new.bias, 7.0)
    with torch.no_grad():
        assert torch.equal(model(torch.randn(1, 3, 160, 160)), torch.full((1, 3), 7.0))
