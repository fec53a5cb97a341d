"""Training on tensors in memory, alone or under torchrun: ``python distributed_cases.py FOLDER OBJECTIVE...``.

Both ways see the same global batches; the first process writes the final weights, buffers and metrics to ``OBJECTIVE.pt``. At
the end all stop together at a loss that is not finite.
"""

import sys

import torch
from torch import nn

from dp4tl_fast.loaders.contract import IndexedBatch
from dp4tl_fast.loaders.order import rank_batches
from dp4tl_fast.training import norm, ranks
from dp4tl_fast.training.ema import Ema
from dp4tl_fast.training.loop import Stepping, evaluate, train
from dp4tl_fast.training.moco import MoCo
from dp4tl_fast.training.moco_v3 import MoCoV3
from dp4tl_fast.training.state import Run
from dp4tl_fast.training.supervised import Supervised, hits
from dp4tl_fast.training.watch import NonFiniteLoss

SAMPLES, BATCH, EPOCHS, WIDTH = 24, 8, 2, 6


class Same:
    """In place of ``Normalise``: the images are floats already."""

    device = torch.device("cpu")

    def __call__(self, images, index=None, epoch=0):
        return images


class Tensors:
    """A loader of ``images`` (or tuples of views) and labels: this rank's part of every batch."""

    def __init__(self, views, labels, batch_size, drop_last=True):
        self.views, self.labels, self.bytes_read = views, labels, 0
        rank, world = (ranks.rank(), ranks.world_size())
        self.batches = rank_batches(
            torch.arange(len(labels)).numpy(), batch_size=batch_size // world, rank=rank, world_size=world, drop_last=drop_last
        )

    def __iter__(self):
        for rows in map(torch.from_numpy, self.batches):
            self.bytes_read += len(rows)
            images = tuple(v[rows] for v in self.views)
            yield IndexedBatch(images if len(images) > 1 else images[0], self.labels[rows], rows)

    def set_epoch(self, epoch):
        pass


def network(normalised):
    layers = [nn.Conv2d(3, WIDTH, 3), *([nn.BatchNorm2d(WIDTH)] if normalised else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def case(objective, out):
    torch.manual_seed(0)
    images, labels = torch.randn(2, SAMPLES, 3, 8, 8), torch.arange(SAMPLES) % 4
    # Where a batch is normalised in parts, the parts are not the same images in one process and in two.
    backbone = network(normalised=objective not in ("moco", "accumulated"))
    model = backbone if "moco" in objective else nn.Sequential(backbone, nn.Linear(WIDTH, 4))
    if objective != "per-rank":
        model = norm.synchronise(model, torch.device("cpu"))
    goal = {
        "moco": lambda: MoCo(backbone, WIDTH, queue=20, dim=4),
        "moco_v3": lambda: MoCoV3(backbone, WIDTH, total_steps=6, layers=2, hidden=8, dim=4),
    }.get(objective, Supervised)()
    goal = norm.synchronise(goal, torch.device("cpu"))
    optimizer = torch.optim.SGD([p for m in (model, goal) for p in m.parameters() if p.requires_grad], 0.1, momentum=0.9)
    run = Run(model, goal, optimizer, torch.amp.GradScaler("cpu", enabled=False), ema=Ema(model, 0.9))
    history = []
    train(
        run, Tensors(images[: 2 if "moco" in objective else 1], labels, BATCH), Same(), lambda step: 0.1, epochs=EPOCHS,
        how=Stepping(accumulate=2 if objective == "accumulated" else 1, clip_norm=0.5),
        on_epoch=lambda run, metrics: history.append(metrics),
    )  # fmt: skip
    if "moco" not in objective:  # 21 images in parts that do not divide them
        plain = Tensors(images[:1, :21], labels[:21], BATCH, drop_last=False)
        history.append(evaluate(model, ((x, y) for x, y, _ in plain), Same(), hits))
    state = {"weights": model.state_dict(), "objective": goal.state_dict(), "ema": run.ema.model.state_dict()}
    everyone = [None] * ranks.world_size()
    if len(everyone) > 1:
        torch.distributed.all_gather_object(everyone, state)
        assert all(torch.equal(a, b) for a, b in zip(*(s["weights"].values() for s in everyone), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(*(s["ema"].values() for s in everyone), strict=True))
    if ranks.rank() == 0:
        torch.save({**state, "history": history}, out)


class Poisoned(Supervised):
    """In the fifth step the last process's loss is not a number."""

    step = 0

    def forward(self, model, images, labels, index=None):
        loss, sums = super().forward(model, images, labels)
        rank, world = (ranks.rank(), ranks.world_size())
        return (loss * float("nan") if self.step == 4 and rank == world - 1 else loss), sums

    def after_step(self, model):
        self.step += 1


def not_finite():
    """Every process stops at the same step; the one whose images they were knows them."""
    torch.manual_seed(0)
    model, goal, (rank, world) = network(False), Poisoned(), (ranks.rank(), ranks.world_size())
    run = Run(model, goal, torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", enabled=False))
    batches = Tensors(torch.randn(1, SAMPLES, 3, 8, 8), torch.arange(SAMPLES) % 4, BATCH)
    try:
        train(run, batches, Same(), lambda step: 0.1, epochs=3)
    except NonFiniteLoss as error:
        told = None if error.index is None else error.index.tolist()
        assert (error.step, run.epoch) == (4, 1) and told == (batches.batches[1].tolist() if rank == world - 1 else None)
        return
    raise AssertionError("trained on")


if __name__ == "__main__":
    with ranks.process_group():
        for name in sys.argv[2:]:
            case(name, f"{sys.argv[1]}/{name}.pt")
        not_finite()
    ranks.leave(0)
