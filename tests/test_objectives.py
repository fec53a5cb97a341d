"""Objectives against hand computations, and each can learn a batch by heart."""

import pytest
import torch
from torch.nn import functional as F

from dp4tl_fast import models
from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD
from dp4tl_fast.training.adversarial import Adversarial
from dp4tl_fast.training.moco import MoCo, embed
from dp4tl_fast.training.supervised import Supervised, hits
from dp4tl_fast.training.views import augment, gaussian_blur, grey, turn_hue

STATS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    return models.build("small-4", 5)


def pixels(n=8, side=16):
    return torch.rand(n, 3, side, side)


def normalised(x):
    return (x - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)


def test_hits():
    logits = torch.tensor([[9.0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]])
    assert {k: int(v) for k, v in hits(logits, torch.tensor([0, 2])).items()} == {"top_1": 1, "top_5": 2}
    assert int(hits(logits, torch.tensor([1, 0]))["top_5"]) == 0
    assert int(hits(logits[:, :2], torch.tensor([1, 0]))["top_5"]) == 2  # fewer than five classes


def test_supervised_renumbers(model):
    x, y = normalised(pixels()), torch.tensor([7, 3] * 4)
    renumber = torch.full((9,), -1)
    renumber[[3, 7]] = torch.tensor([0, 1])
    loss, _ = Supervised(0.1, renumber)(model, x, y)
    torch.testing.assert_close(loss, F.cross_entropy(model(x), torch.tensor([1, 0] * 4), label_smoothing=0.1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_attack_stays_in_the_ball_and_raises_the_loss(model, norm, steps):
    eps = {"linf": 8 / 255, "l2": 1.0}[norm]
    objective = Adversarial(eps=eps, steps=steps, norm=norm, **STATS)
    x, y = pixels(16).round(decimals=1), torch.arange(16) % 5  # many pixels at 0 and 1: the range must bind
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    delta = objective.attack(model, normalised(x), y)
    size = delta.abs().amax() if norm == "linf" else delta.flatten(1).norm(dim=1).amax()
    assert size <= eps * (1 + 1e-5)
    assert (x + delta).min() >= -1e-6 and (x + delta).max() <= 1 + 1e-6  # back and forth through the normalisation
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    losses = [F.cross_entropy(model(normalised(z)), y, reduction="none") for z in (x, x + delta)]
    assert losses[1].mean() > losses[0].mean()


def test_moco_loss_is_the_formula(model):
    objective = MoCo(model, queue=12, temperature=0.3, momentum=0.9, dim=6, bn_groups=1, **STATS)
    objective.recolour = lambda images: images  # the formula, without the random colours
    model.eval()
    objective.key_encoder.eval()  # batch statistics would tie the rows together
    a, b = normalised(pixels(4)), normalised(pixels(4))
    loss, sums = objective(model, (a, b), torch.zeros(4))
    with torch.no_grad():
        q, k = embed(model, objective.projection, a), embed(objective.key_encoder, objective.key_projection, b)
    total, won = 0.0, 0
    for i in range(4):
        positive = torch.exp(q[i] @ k[i] / 0.3)
        others = torch.exp(objective.queue @ q[i] / 0.3)
        total -= float(torch.log(positive / (positive + others.sum())))
        won += int(positive > others.max())
    assert float(loss.detach()) == pytest.approx(total / 4, rel=1e-5) and int(sums["top_1"]) == won


def test_moco_queue_is_a_ring(model):
    objective = MoCo(model, queue=10, dim=4, **STATS)
    old = objective.queue.clone()
    seen = []
    for _ in range(3):
        objective(model, (normalised(pixels(4)), normalised(pixels(4))), torch.zeros(4))
        seen.append(objective._pending)
        assert torch.equal(objective.queue, old) or len(seen) > 1  # the loss saw the queue before the batch's own keys
        objective.after_step()
    keys = torch.cat(seen)
    assert int(objective.cursor) == 2
    assert torch.equal(objective.queue, torch.cat([keys[10:12], keys[2:10]]))


def test_moco_key_encoder_follows_and_is_not_trained(model):
    objective = MoCo(model, queue=8, momentum=0.75, **STATS)
    slow = objective.key_encoder.fc.weight.clone()
    with torch.no_grad():
        model.fc.weight += 1
    objective.follow(model)
    torch.testing.assert_close(objective.key_encoder.fc.weight, slow + 0.25)
    assert {n.split(".")[0] for n, p in objective.named_parameters() if p.requires_grad} == {"projection"}


def test_moco_keys_keep_their_order(model):
    objective = MoCo(model, queue=8, bn_groups=3, **STATS)
    objective.key_encoder.eval()  # without batch statistics the parts cannot matter
    x = normalised(pixels(7))
    torch.testing.assert_close(objective.keys(x), embed(objective.key_encoder, objective.key_projection, x))


@pytest.mark.parametrize("name", ["supervised", "adversarial", "moco"])
def test_each_objective_learns_a_batch_by_heart(model, name):
    objective = {
        "supervised": lambda: Supervised(),
        "adversarial": lambda: Adversarial(eps=2 / 255, steps=2, norm="linf", **STATS),
        "moco": lambda: MoCo(model, queue=64, momentum=0.9, **STATS),
    }[name]()
    x, y = normalised(pixels(10)), torch.arange(10) % 5
    images = (x, x) if objective.views == 2 else x
    if name == "moco":  # a random network puts all images close together: these negatives are hard, random vectors are not
        with torch.no_grad():
            objective.queue.copy_(objective.keys(normalised(pixels(64))))
    parameters = [p for m in (model, objective) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    losses = []
    for _ in range(60):
        loss, _ = objective(model, images, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))  # MoCo's queue stays: full of this one batch it could not be won
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_colours():
    x = pixels(6, 20)
    assert augment(x).shape == x.shape and augment(x).min() >= 0 and augment(x).max() <= 1
    torch.testing.assert_close(turn_hue(x, torch.zeros(6)), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(turn_hue(x, torch.ones(6)), x, rtol=0, atol=1e-5)  # a full turn
    plain = torch.full((2, 3, 9, 9), 0.3)
    torch.testing.assert_close(gaussian_blur(plain), plain)
    assert gaussian_blur(x).var() < x.var()
    torch.testing.assert_close(grey(plain)[:, 0], plain[:, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("objective", ["moco", "adversarial"])
def test_objectives_run_and_resume_through_the_command(objective, tmp_path):
    import numpy as np
    from PIL import Image

    from dp4tl_fast.convert import convert
    from dp4tl_fast.pretrain import PretrainConfig, pretrain
    from dp4tl_fast.training import checkpoint

    random = np.random.default_rng(0)
    for c in range(3):
        (tmp_path / f"images/{c}").mkdir(parents=True)
        for i in range(8):
            Image.fromarray(random.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"images/{c}/{i}.jpg")
    convert(str(tmp_path / "images"), str(tmp_path / "s.beton"))
    common = {
        "source": str(tmp_path / "s.beton"), "arch": "small-4", "size": 16, "batch_size": 8, "lr": 0.05, "tensorboard": False,
        "objective": objective, "moco_queue": 32, "precision": "fp32", "workers": 1, "epochs": 3, "schedule": "constant",
    }  # fmt: skip
    pretrain(PretrainConfig(**common, out=str(tmp_path / "whole")))
    # A run cut after its first epoch: its newest checkpoint is removed, as if it had not been written.
    pretrain(PretrainConfig(**common, out=str(tmp_path / "cut")))
    import shutil

    shutil.rmtree(checkpoint.checkpoints(tmp_path / "cut/checkpoint")[-1])
    (tmp_path / "cut/summary.json").unlink()
    pretrain(PretrainConfig(**common, out=str(tmp_path / "cut"), resume=True))
    a, _ = checkpoint.read_weights(tmp_path / "whole")
    b, _ = checkpoint.read_weights(tmp_path / "cut")
    assert all(torch.equal(a[k], b[k]) for k in a)
