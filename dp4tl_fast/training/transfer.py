"""Finetuning on a target: linear probe (LP) and full finetuning (FF), recipes of arXiv 2310.08782.

Both report the *last* epoch's test accuracy first; the best over epochs, which the paper reports, stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dp4tl_fast import models
from dp4tl_fast.training.loop import Batches, Normalise, Run, Stepping, evaluate, train
from dp4tl_fast.training.schedule import learning_rate
from dp4tl_fast.training.supervised import Supervised, hits

Descent = Callable[..., torch.optim.Optimizer]


def make_optimizer(
    parameters: Iterable[nn.Parameter], lr: float, *, name: str = "adam", weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum 0.9; all parameters are decayed alike."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=weight_decay)
    return torch.optim.Adam(parameters, lr, weight_decay=weight_decay)


@torch.inference_mode()
def features(
    model: nn.Module, batches: Iterable[tuple[Any, ...]], normalise: Normalise
) -> tuple[torch.Tensor, torch.Tensor]:
    """Penultimate features ``[n, d]`` and labels ``[n]`` in eval mode, each image once.

    A linear probe freezes the backbone in eval mode and does not augment, so that an epoch over cached features equals
    an epoch over the images.
    """
    model.eval()
    with models.FeatureTap(model) as tap:
        pairs = [(tap(normalise(images))[1].float(), labels.to(normalise.device)) for images, labels in batches]
    return torch.cat([f for f, _ in pairs]), torch.cat([y for _, y in pairs])


def linear_probe(
    train_set: tuple[torch.Tensor, torch.Tensor],
    test_set: tuple[torch.Tensor, torch.Tensor],
    num_classes: int,
    *,
    seed: int,
    epochs: int,
    lr: float,
    batch_size: int,
    descent: Descent = make_optimizer,
    on_epoch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """``descent`` and a per-step cosine on a fresh linear classifier over features ``[n, d]`` and labels ``[n]``."""
    x, y = train_set
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    classifier = nn.Linear(x.shape[1], num_classes).to(x.device)
    optimizer = descent(classifier.parameters(), lr)
    total = epochs * -(-len(x) // batch_size)
    step, accuracies = 0, []
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, schedule="cosine", peak=lr, total_steps=total, warmup_steps=0)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(classifier(x[batch]), y[batch]).backward()
            optimizer.step()
            step += 1
        with torch.no_grad():
            accuracies.append(float((classifier(test_set[0]).argmax(1) == test_set[1]).float().mean()))
        on_epoch()
    return {"last": accuracies[-1], "best": max(accuracies)}


def full_finetune(
    model: nn.Module,
    train_loader: Batches,
    test_loader: Batches,
    normalise: Normalise,
    num_classes: int,
    *,
    seed: int,
    epochs: int,
    lr: float,
    precision: torch.dtype | None,
    descent: Descent = make_optimizer,
    on_epoch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """``descent`` and a per-step cosine on all weights, with a fresh classifier. Changes ``model``."""
    torch.manual_seed(seed)
    models.replace_head(model, num_classes)
    model.to(normalise.device)
    optimizer = descent(model.parameters(), lr)
    total = epochs * len(train_loader)
    accuracies: list[float] = []

    def score(run: Run, metrics: dict[str, float]) -> None:
        accuracies.append(evaluate(model, test_loader, normalise, hits)["top_1"])
        on_epoch()

    scaler = torch.amp.GradScaler(normalise.device.type, enabled=precision == torch.float16)
    train(
        Run(model, Supervised(), optimizer, scaler, seed=seed), train_loader, normalise,
        lambda step: learning_rate(step, schedule="cosine", peak=lr, total_steps=total, warmup_steps=0),
        epochs=epochs, how=Stepping(precision), on_epoch=score,
    )  # fmt: skip
    return {"last": accuracies[-1], "best": max(accuracies)}
