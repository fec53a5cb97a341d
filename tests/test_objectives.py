"""Objectives against hand computations, and each can learn a batch by heart."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from small_runs import noisy_colours, run
from torch import nn
from torch.nn import functional as F

from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD
from dp4tl_fast.pretraining.config import MocoConfig
from dp4tl_fast.pretraining.objectives import OBJECTIVES
from dp4tl_fast.training import checkpoint, models
from dp4tl_fast.training.adversarial import Adversarial
from dp4tl_fast.training.moco import MoCo, embed, follow
from dp4tl_fast.training.moco_v3 import MoCoV3
from dp4tl_fast.training.supervised import Supervised, hits
from dp4tl_fast.training.views import MOCO_V2, MOCO_V3, Colours, draw, gaussian_blur, grey, recolour, solarise, turn_hue

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


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_attack_is_projected_gradient_descent_on_pixels(model, norm, steps):
    """Madry et al.'s, for images of 0 to 1 that the network normalises itself; in float64, where no sign is left to chance."""
    eps = {"linf": 8 / 255, "l2": 0.7}[norm]
    step = 1.25 * eps if steps == 1 else 2 * eps / steps
    model = model.double().eval()
    x, y = pixels(12).double(), torch.arange(12) % 5
    mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in STATS.values())  # of float32, as the objective keeps them

    def length(v):
        return v.square().sum((1, 2, 3), keepdim=True).sqrt()

    def allowed(z):
        if norm == "linf":
            return z.clamp(x - eps, x + eps).clamp(0, 1)
        outside = length(z - x) > eps
        return torch.where(outside, x + (z - x) / length(z - x) * eps, z).clamp(0, 1)

    torch.manual_seed(1)
    if norm == "linf":
        z = x + torch.empty_like(x).uniform_(-eps, eps)
    else:
        noise = torch.randn_like(x)
        z = x + noise / length(noise) * eps * torch.rand_like(x[:, :1, :1, :1])
    z = allowed(z)
    for _ in range(steps):
        z.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model((z - mean) / std), y, reduction="sum"), z)
        z = allowed(z.detach() + step * (gradient.sign() if norm == "linf" else gradient / length(gradient)))
    torch.manual_seed(1)
    objective = Adversarial(eps=eps, steps=steps, norm=norm, **STATS).double()
    found = objective.attack(model, (x - objective.mean) / objective.std, y)
    torch.testing.assert_close(x + found, z, rtol=0, atol=1e-7)  # the loss is taken of float32 logits


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_keeps_its_direction_in_half_precision(norm):
    """Gradients near half precision's smallest number, which a mean over the batch would make zero."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    nn.init.uniform_(network[1].weight, -1e-5, 1e-5)
    network.half()

    class Half(nn.Module):
        def forward(self, x):
            return network(x.half())

    x, y = torch.full((512, 3, 4, 4), 0.5), torch.arange(512) % 5
    objective = Adversarial(eps=0.1, steps=1, norm=norm, **STATS)
    delta = objective.attack(Half(), normalised(x), y)
    if norm == "linf":  # a step of 1.25 eps from anywhere inside ends at the edge more often than not
        assert (delta.abs() > 0.0999).float().mean() > 0.5
    else:
        assert (delta.flatten(1).norm(dim=1) > 0.0999).float().mean() > 0.5


@pytest.fixture
def network(model):
    return models.headless(model)


WIDTH = 16  # of small-4's features


def test_moco_loss_is_the_formula(network):
    objective = MoCo(network, WIDTH, queue=12, temperature=0.3, momentum=0.9, dim=6)
    network.eval()
    objective.key_encoder.eval()  # batch statistics would tie the rows together
    a, b = normalised(pixels(4)), normalised(pixels(4))
    loss, sums = objective(network, (a, b), torch.zeros(4))
    with torch.no_grad():
        q, k = embed(network, objective.projection, a), embed(objective.key_encoder, objective.key_projection, b)
    total, won = 0.0, 0
    for i in range(4):
        positive = torch.exp(q[i] @ k[i] / 0.3)
        others = torch.exp(objective.queue @ q[i] / 0.3)
        total -= float(torch.log(positive / (positive + others.sum())))
        won += int(positive > others.max())
    assert float(loss.detach()) == pytest.approx(total / 4, rel=1e-5) and int(sums["top_1"]) == won


@pytest.mark.parametrize("parts", [1, 2])
def test_moco_queue_is_a_ring(network, parts):
    objective = MoCo(network, WIDTH, queue=10, dim=4)
    old = objective.queue.clone()
    seen = []
    for _ in range(3):
        for _ in range(parts):  # of a batch whose gradient is accumulated
            objective(network, (normalised(pixels(4 // parts)), normalised(pixels(4 // parts))), torch.zeros(4 // parts))
            seen.append(objective._pending[-1])
            assert torch.equal(objective.queue, old) or len(seen) > parts  # the loss saw the queue before these keys
        objective.after_step(network)
    keys = torch.cat(seen)
    assert int(objective.cursor) == 2
    assert torch.equal(objective.queue, torch.cat([keys[10:12], keys[2:10]]))


def test_moco_key_encoder_follows_and_is_not_trained(model, network):
    objective = MoCo(network, WIDTH, queue=8, momentum=0.75)
    slow = objective.key_encoder.stem[0].weight.clone()
    with torch.no_grad():
        model.stem[0].weight += 1
    follow(objective.key_encoder, network, 0.75)
    torch.testing.assert_close(objective.key_encoder.stem[0].weight, slow + 0.25)
    assert {n.split(".")[0] for n, p in objective.named_parameters() if p.requires_grad} == {"projection"}


def test_moco_keys_keep_their_order(network):
    objective = MoCo(network, WIDTH, queue=8, bn_groups=3)
    objective.key_encoder.eval()  # without batch statistics the parts cannot matter
    x = normalised(pixels(7))
    torch.testing.assert_close(objective.keys(x), embed(objective.key_encoder, objective.key_projection, x))


def test_moco_v3_loss_is_the_formula(network):
    objective = MoCoV3(network, WIDTH, total_steps=10, temperature=0.3, layers=2, hidden=8, dim=6)
    for module in (network, objective):
        module.eval()
    a, b = normalised(pixels(4)), normalised(pixels(4))
    loss, sums = objective(network, (a, b), torch.zeros(4))

    def unit(encoder, *heads):
        x = [encoder(view) for view in (a, b)]
        for head in heads:
            x = [head(y) for y in x]
        return [y / y.norm(dim=1, keepdim=True) for y in x]

    with torch.no_grad():
        q = unit(network, objective.projection, objective.predictor)
        k = unit(objective.key_encoder, objective.key_projection)
    total = 0.0
    for ours, theirs in ((q[0], k[1]), (q[1], k[0])):
        for i in range(4):
            e = torch.exp(theirs @ ours[i] / 0.3)
            total -= float(torch.log(e[i] / e.sum())) / 4
    assert float(loss.detach()) == pytest.approx(2 * 0.3 * total, rel=1e-5)
    assert int(sums["top_1"]) == int(((q[0] @ k[1].T).argmax(1) == torch.arange(4)).sum())


def test_moco_v3_momentum_rises_to_one(network):
    objective = MoCoV3(network, WIDTH, total_steps=4, momentum=0.9, hidden=8, dim=4)
    seen = []
    for _ in range(5):
        seen.append(objective.momentum)
        slow, fast = objective.key_encoder.stem[0].weight.clone(), network.stem[0].weight
        with torch.no_grad():
            fast += 1
        objective.after_step(network)
        wanted = seen[-1] * slow + (1 - seen[-1]) * fast
        torch.testing.assert_close(objective.key_encoder.stem[0].weight, wanted.detach())
    assert seen == pytest.approx([0.9, 1 - 0.1 * (1 + 0.5**0.5) / 2, 0.95, 1 - 0.1 * (1 - 0.5**0.5) / 2, 1.0])
    again = MoCoV3(network, WIDTH, total_steps=4, momentum=0.9, hidden=8, dim=4)
    again.load_state_dict(objective.state_dict())
    assert again.steps == 5  # the schedule goes on after a resume


@pytest.mark.parametrize("arch", ["vit_b_16", "timm:vit_tiny_patch16_224"])
def test_patches_of_a_vit_are_found(arch):
    with torch.device("meta"):  # shapes only: these are large
        projection = models.patch_projection(models.build(arch, 2))
    assert projection.kernel_size == (16, 16) and projection.in_channels == 3
    assert models.patch_projection(models.build("small-4", 2)) is None


def test_moco_v3_leaves_a_vits_patches_as_they_were_drawn(tmp_path):
    source = noisy_colours(tmp_path, "s", (4, 4))
    run(source, tmp_path / "r", arch="timm:vit_tiny_patch16_224", size=224, objective="moco_v3", optimizer="adamw", lr=1e-3,
        schedule="constant", epochs=2)  # fmt: skip
    one, two = (checkpoint.load_model(c)[0] for c in checkpoint.checkpoints(tmp_path / "r/checkpoint"))
    assert torch.equal(models.patch_projection(one).weight, models.patch_projection(two).weight)
    assert not torch.equal(one.blocks[0].attn.qkv.weight, two.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("arch", ["small-4", "alexnet"])
def test_headless_shares_everything_but_the_classifier(arch):
    model = models.build(arch, 3).eval()
    network, x = models.headless(model), normalised(pixels(2, 64))
    with models.FeatureTap(model) as tap:
        logits, features = tap(x)
    torch.testing.assert_close(network(x).flatten(1), features)
    torch.testing.assert_close(models.head(model)[1](features), logits)
    assert {id(p) for p in network.parameters()} == {id(p) for p in model.parameters()} - {
        id(p) for p in models.head(model)[1].parameters()
    }


@pytest.mark.parametrize("name", ["supervised", "adversarial", "moco", "moco_v3"])
def test_each_objective_learns_a_batch_by_heart(model, network, name):
    objective = {
        "supervised": lambda: Supervised(),
        "adversarial": lambda: Adversarial(eps=2 / 255, steps=2, norm="linf", **STATS),
        "moco": lambda: MoCo(network, WIDTH, queue=64, momentum=0.9),
        "moco_v3": lambda: MoCoV3(network, WIDTH, total_steps=60, momentum=0.9, layers=2, hidden=32, dim=16),
    }[name]()
    facts = OBJECTIVES[name]
    network = model if facts.classifies else network
    x, y = normalised(pixels(10)), torch.arange(10) % 5
    images = (x, x) if facts.views == 2 else x
    if name == "moco":  # a random network puts all images close together: these negatives are hard, random vectors are not
        with torch.no_grad():
            objective.queue.copy_(objective.keys(normalised(pixels(64))))
    parameters = [p for m in (network, objective) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    losses = []
    for _ in range(60):
        loss, _ = objective(network, images, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue = objective.queue.clone() if name == "moco" else None
        objective.after_step(network)
        if name == "moco":
            objective.queue.copy_(queue)  # full of this one batch it could not be won
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_colours():
    x = pixels(6, 20)
    torch.testing.assert_close(turn_hue(x, torch.zeros(6)), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(turn_hue(x, torch.ones(6)), x, rtol=0, atol=1e-5)  # a full turn
    plain = torch.full((2, 3, 9, 9), 0.3)
    torch.testing.assert_close(gaussian_blur(plain, torch.tensor([0.1, 2.0])), plain)
    assert gaussian_blur(x, torch.full((6,), 1.0)).var() < x.var()
    torch.testing.assert_close(grey(plain)[:, 0], plain[:, 0], rtol=0, atol=1e-4)
    assert solarise(torch.tensor([0.2, 0.7])).tolist() == pytest.approx([0.2, 0.3])


def recoloured(index, colours, epoch=3, view=0, side=12):
    """Each sample has the same pixels, whatever batch it comes in."""
    x = torch.stack([torch.rand(3, side, side, generator=torch.Generator().manual_seed(int(i))) for i in index])
    return recolour(x, colours, draw(7, epoch, np.array(index), view))


@pytest.mark.parametrize("colours", [*MOCO_V2[:1], *MOCO_V3], ids=["v2", "v3-first", "v3-second"])
def test_colours_are_a_function_of_the_sample(colours):
    index = list(range(40))
    whole = recoloured(index, colours)
    assert whole.min() >= 0 and whole.max() <= 1
    shuffled = np.random.default_rng(0).permutation(index)
    for part in np.array_split(shuffled, 7):  # as other ranks and batches would have them
        torch.testing.assert_close(recoloured(part.tolist(), colours), whole[torch.from_numpy(part)], rtol=0, atol=1e-6)
    for change in ({"epoch": 4}, {"view": 1}):
        assert not torch.equal(recoloured(index, colours, **change), whole)


def test_each_colour_happens_as_often_as_asked():
    index = np.arange(4000)
    draws = draw(1, 0, index, 1)
    for name in ("jitter", "grey", "blur", "solarise"):  # uniform in 0 .. 1, and not of one another
        share = getattr(draws, name)
        assert share.min() >= 0 and share.max() < 1 and abs(share.mean() - 0.5) < 4 * (1 / 12 / 4000) ** 0.5  # 4 sigma
    names = [f.name for f in dataclasses.fields(draws)]
    correlation = np.corrcoef([getattr(draws, n) for n in names]) - np.eye(len(names))
    assert np.abs(correlation).max() < 5 / 4000**0.5  # 5 sigma
    one = Colours(jitter=0, grey=0, blur=0, solarise=1.0)
    x = pixels(3)
    torch.testing.assert_close(recolour(x, one, draw(0, 0, np.arange(3), 0)), solarise(x))
    none = Colours(jitter=0, grey=0, blur=0)
    assert torch.equal(recolour(x, none, draw(0, 0, np.arange(3), 0)), x)


@pytest.mark.parametrize("objective", ["moco", "moco_v3", "adversarial"])
def test_objectives_run_and_resume_through_the_command(objective, tmp_path):
    source = noisy_colours(tmp_path, "s", (8, 8, 8))
    common = {"objective": objective, "moco": MocoConfig(queue=32), "schedule": "constant"}
    run(source, tmp_path / "whole", **common)
    # A run cut after its first epochs: its newest checkpoint is removed, as if it had not been written.
    run(source, tmp_path / "cut", **common)
    shutil.rmtree(checkpoint.checkpoints(tmp_path / "cut/checkpoint")[-1])
    (tmp_path / "cut/summary.json").unlink()
    run(source, tmp_path / "cut", resume=True, **common)
    a, _ = checkpoint.read_weights(tmp_path / "whole")
    b, _ = checkpoint.read_weights(tmp_path / "cut")
    assert all(torch.equal(a[k], b[k]) for k in a)
