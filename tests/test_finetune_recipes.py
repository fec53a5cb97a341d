"""What a recipe may add, against torch and torchvision by themselves: schedules, smoothing, averages, mixtures, flips, a validation
file, compilation."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import test_finetune_run
import torch
from small_runs import noisy_colours, to_tune
from test_finetune_run import metrics, same, tensors
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from dp4tl_fast.beton import Beton
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.inference.config import EvaluateConfig
from dp4tl_fast.inference.evaluate import evaluate
from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD, LoaderSpec, open_loader
from dp4tl_fast.training import checkpoint
from dp4tl_fast.training.augment import Augment, Mixed
from dp4tl_fast.training.loop import Normalise
from dp4tl_fast.training.schedule import learning_rate


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = to_tune(tmp_path_factory.mktemp("recipes"))
    noisy_colours(root, "val", (8, 3, 6, 4))
    return root


config = partial(test_finetune_run.config, seeds=1)


def normalised(images):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images / 255 - mean) / std


def seen_by(model, beton):
    """``model`` on all images of a file, and their labels."""
    with open_loader(beton, None, LoaderSpec(batch_size=64, size=16, crop_ratio=1.0)) as loader, torch.no_grad():
        images, labels = next(iter(loader))
        return model.eval()(normalised(images)), labels


# -- a linear probe from beginning to end -----------------------------------------------------------------------------


def test_a_probe_is_a_linear_layer_trained_by_torch(data, tmp_path):
    """Smoothed labels, steps of the rate, averaged weights, the best epoch by a validation file. Every batch has all images."""
    epochs = 8
    settings = {"label_smoothing": 0.2, "schedule": "step", "lr": 0.05, "ema_decay": 0.3, "batch_size": 38, "epochs": epochs}
    summary = finetune(config(data, tmp_path / "o", val=str(data / "val.beton"), **settings))

    model, _ = checkpoint.load_model(data / "run")
    model.fc = nn.Identity()
    x = {name: seen_by(model, data / f"{name}.beton") for name in ("train", "test", "val")}
    torch.manual_seed(0)
    head = nn.Linear(16, 4)
    average = [p.detach().clone() for p in head.parameters()]
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    rates = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[4, 6], gamma=0.1)

    def top_1(part, weight, bias):
        features, labels = x[part]
        return ((features @ weight.T + bias).argmax(1) == labels).double().mean().item()

    wanted = []
    for epoch in range(epochs):
        loss = F.cross_entropy(head(x["train"][0]), x["train"][1], label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()
        row = {"lr": optimizer.param_groups[0]["lr"], "loss": loss.item()}
        optimizer.step()
        rates.step()
        kept = min(0.3, (epoch + 2) / (epoch + 11))
        average = [kept * a + (1 - kept) * p.detach() for a, p in zip(average, head.parameters(), strict=True)]
        row |= {f"{part}_top_1": top_1(part, *head.parameters()) for part in ("test", "val")}
        wanted.append({**row, "test_ema_top_1": top_1("test", *average)})

    rows = metrics(tmp_path / "o/seed-0")
    for row, want in zip(rows, wanted, strict=True):
        assert {k: row[k] for k in want} == pytest.approx(want, rel=1e-4)  # float32 sums in another order, over eight steps
    best = max(range(epochs), key=lambda e: (wanted[e]["val_top_1"], -e))
    assert json.loads((tmp_path / "o/seed-0/result.json").read_text())["best_epoch"] == best
    assert summary["best_on"] == "val" and summary["top_1_best_mean"] == pytest.approx(wanted[best]["test_top_1"])
    assert summary["ema_top_1"] == pytest.approx([wanted[-1]["test_ema_top_1"]])
    newest = checkpoint.checkpoints(tmp_path / "o/seed-0/checkpoint")[-1]
    for file, values in ((newest, head.parameters()), (newest / checkpoint.EMA, average)):
        for name, value in zip(("fc.weight", "fc.bias"), values, strict=True):
            torch.testing.assert_close(tensors(file)[name], value.detach(), rtol=1e-4, atol=1e-5)
    chosen = (tmp_path / "o/seed-0/checkpoint" / checkpoint.BEST).resolve().name
    assert int(chosen) == best + 1  # a step an epoch


def test_the_rate_falls_to_a_tenth_twice():
    """Warm up over 20 of 100 steps; then as torch's own schedule with milestones at half and three quarters of the rest."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[40, 60], gamma=0.1)
    ours = [learning_rate(s, schedule="step", peak=0.4, total_steps=100, warmup_steps=20, floor=0.0) for s in range(100)]
    assert ours[:20] == pytest.approx([0.4 * s / 20 for s in range(20)])
    for rate in ours[20:]:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


# -- images -----------------------------------------------------------------------------------------------------------


class Seeing(nn.Module):
    """A linear network that remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 6)

    def forward(self, images):
        self.images = images
        return self.fc(images.flatten(1))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixtures_have_the_labels_of_what_is_in_them(name):
    """Images of one value each: how much of which is in a mixture can be read off it. And torchvision's own, at the same draw."""
    y = torch.arange(6)
    x = (1.0 + y)[:, None, None, None].expand(6, 3, 8, 8).clone()
    network = Seeing()
    for seed in range(20):
        torch.manual_seed(seed)
        loss, sums = Mixed(name, 6, label_smoothing=0.3)(network, x, y)
        shown, shares = network.images, torch.zeros(6, 6)
        for i in range(6):
            before = (i - 1) % 6  # each is mixed with the one before it
            if name == "cutmix":
                own = (shown[i] == x[i]).all(0)
                assert ((shown[i] == x[before]).all(0) | own).all()
                inside = (~own).nonzero()
                if len(inside):  # one box
                    height, width = (inside.amax(0) - inside.amin(0) + 1).tolist()
                    assert height * width == len(inside)
                share = own.float().mean()
            else:
                assert (shown[i] == shown[i, 0, 0, 0]).all()
                share = (shown[i, 0, 0, 0] - x[before, 0, 0, 0]) / (x[i, 0, 0, 0] - x[before, 0, 0, 0])
            shares[i, i], shares[i, before] = share, 1 - share
        smoothed = 0.7 * shares + 0.3 / 6
        logits = network.fc(shown.flatten(1))
        torch.testing.assert_close(loss, -(smoothed * logits.log_softmax(1)).sum(1).mean(), rtol=1e-4, atol=1e-4)
        assert int(sums["top_1"]) == int((logits.argmax(1) == y).sum())
        torch.manual_seed(seed)
        theirs = (v2.MixUp(alpha=0.2, num_classes=6) if name == "mixup" else v2.CutMix(alpha=1.0, num_classes=6))(x, y)
        assert torch.equal(shown, theirs[0])
        torch.testing.assert_close(shares, theirs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "plain"), [("randaugment", v2.RandAugment), ("trivialaugment", v2.TrivialAugmentWide)])
def test_augmentations_are_torchvisions_image_by_image(name, plain):
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).expand(8, 3, 16, 16)
    prepare = Augment(name, Normalise(IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu")))
    torch.manual_seed(1)
    found = prepare(images, torch.arange(8), 0)
    torch.manual_seed(1)
    change = plain()
    wanted = torch.stack([change(image) for image in images])
    torch.testing.assert_close(found, normalised(wanted), rtol=1e-5, atol=1e-5)
    assert len({image.numpy().tobytes() for image in found}) > 4  # each by its own draw


@pytest.mark.parametrize("changes", [{"mix": "cutmix"}, {"augment": "trivialaugment"}, {"mix": "mixup", "label_smoothing": 0.1}])
def test_a_recipe_changes_what_is_learned_and_not_the_number_of_images(data, tmp_path, changes):
    finetune(config(data, tmp_path / "plain", mode="ff", epochs=1))
    finetune(config(data, tmp_path / "recipe", mode="ff", epochs=1, **changes))
    assert metrics(tmp_path / "recipe/seed-0")[0]["samples"] == 38
    assert not same(tensors(tmp_path / "plain/seed-0"), tensors(tmp_path / "recipe/seed-0"))


def test_flips_are_averaged_in_finetune_and_evaluate(data, tmp_path):
    finetune(config(data, tmp_path / "o", mode="ff", tta="flip", ema_decay=0.5))
    model, _ = checkpoint.load_model(tmp_path / "o")
    average, _ = checkpoint.load_model(checkpoint.checkpoints(tmp_path / "o/seed-0/checkpoint")[-1] / checkpoint.EMA)

    def probabilities(network):
        both = [seen_by(lambda_module(network, flip), data / "test.beton")[0].softmax(1) for flip in (False, True)]
        return (both[0] + both[1]) / 2

    labels = torch.from_numpy(Beton(data / "test.beton").labels)
    last = metrics(tmp_path / "o/seed-0")[-1]
    assert last["test_top_1"] == pytest.approx((probabilities(model).argmax(1) == labels).double().mean().item())
    assert last["test_ema_top_1"] == pytest.approx((probabilities(average).argmax(1) == labels).double().mean().item())
    found = evaluate(EvaluateConfig(str(tmp_path / "o"), str(data / "test.beton"), tta="flip"))
    assert found["loss"] == pytest.approx(F.nll_loss(probabilities(model).log(), labels).item(), rel=1e-4)
    assert found["loss"] != evaluate(EvaluateConfig(str(tmp_path / "o"), str(data / "test.beton")))["loss"]


def lambda_module(network, flip):
    class Flipped(nn.Module):
        def forward(self, images):
            return network(images.flip(3) if flip else images)

    return Flipped()


# -- compilation ------------------------------------------------------------------------------------------------------


def test_a_compiled_finetuning_is_the_plain_one(data, tmp_path, monkeypatch):
    """Traced and differentiated by the compiler; the traced operations then run as they are, for its C++ takes a minute."""
    from torch._dynamo.utils import counters

    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **o: compile_(self, backend="aot_eager", **o))
    counters.clear()
    torch._dynamo.reset()
    settings = {"mode": "ff", "batch_size": 19, "epochs": 2}  # two batches of one size
    plain = finetune(config(data, tmp_path / "plain", **settings))
    assert not counters["stats"]
    compiled = finetune(config(data, tmp_path / "compiled", compile=True, **settings))
    assert counters["stats"]["unique_graphs"] >= 1 and not counters["graph_break"]
    for name, value in tensors(tmp_path / "plain/seed-0").items():  # float32 operations in other forms, over four steps
        torch.testing.assert_close(tensors(tmp_path / "compiled/seed-0")[name], value, rtol=1e-3, atol=1e-4)
    assert np.allclose(plain["top_1"], compiled["top_1"], atol=1 / 22)
