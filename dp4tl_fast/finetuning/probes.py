"""Finetuning on a target: linear probe (LP) and full finetuning (FF), recipes of arXiv 2310.08782; and a kNN probe.

LP and FF report the *last* epoch's test accuracy first; the best over epochs, which the paper reports, stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from dp4tl_fast.loaders.contract import Batch, IndexedBatch, Loader
from dp4tl_fast.training import models
from dp4tl_fast.training.loop import Normalise, Stepping, evaluate, train
from dp4tl_fast.training.optimizer import make_optimizer
from dp4tl_fast.training.schedule import learning_rate
from dp4tl_fast.training.state import Run
from dp4tl_fast.training.supervised import Supervised, hits

KNN_ROWS = 1024  # test features compared at a time: bounds the memory of the similarities


@dataclass(frozen=True, slots=True)
class Result:
    last: float  # top-1 accuracy on the test set after the last epoch
    best: float  # after the epoch that was best there
    predicted: torch.Tensor  # int64 [n], after the last epoch, on the CPU


@torch.inference_mode()
def features(
    model: nn.Module, batches: Iterable[Batch], normalise: Normalise
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
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    on_epoch: Callable[[], None] = lambda: None,
) -> Result:
    """``optimizer`` and a per-step cosine on a fresh linear classifier over features ``[n, d]`` and labels ``[n]``."""
    x, y = train_set
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    classifier = nn.Linear(x.shape[1], num_classes).to(x.device)
    descent = make_optimizer(classifier.parameters(), optimizer, lr, weight_decay, decay_all=True)
    total = epochs * -(-len(x) // batch_size)
    step, accuracies = 0, []
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
            for group in descent.param_groups:
                group["lr"] = learning_rate(step, schedule="cosine", peak=lr, total_steps=total, warmup_steps=0)
            descent.zero_grad(set_to_none=True)
            F.cross_entropy(classifier(x[batch]), y[batch]).backward()
            descent.step()
            step += 1
        with torch.no_grad():
            predicted = classifier(test_set[0]).argmax(1)
        accuracies.append(float((predicted == test_set[1]).float().mean()))
        on_epoch()
    return Result(accuracies[-1], max(accuracies), predicted.cpu())


def knn_probe(
    train_set: tuple[torch.Tensor, torch.Tensor],
    test_set: tuple[torch.Tensor, torch.Tensor],
    num_classes: int,
    *,
    neighbours: int,
    temperature: float,
) -> Result:
    """Vote of the nearest training features by cosine, each weighing exp(similarity / temperature) (Wu et al. 2018).

    Features ``[n, d]`` and labels ``[n]``. Nothing is trained or drawn: no classifier's settings blur what the features are
    worth, which is why self-supervised pretraining is watched with it.
    """
    x, y = F.normalize(train_set[0], dim=1), train_set[1]
    predicted = []
    for rows in F.normalize(test_set[0], dim=1).split(KNN_ROWS):
        similarity, nearest = (rows @ x.T).topk(min(neighbours, len(x)), dim=1)
        votes = torch.zeros(len(rows), num_classes, device=rows.device)
        votes.scatter_add_(1, y[nearest], (similarity / temperature).exp())
        predicted.append(votes.argmax(1))
    found = torch.cat(predicted)
    accuracy = float((found == test_set[1]).float().mean())
    return Result(accuracy, accuracy, found.cpu())


def full_finetune(
    model: nn.Module,
    train_loader: Loader[IndexedBatch],
    test_loader: Iterable[Batch],
    normalise: Normalise,
    num_classes: int,
    *,
    seed: int,
    epochs: int,
    lr: float,
    precision: torch.dtype | None,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    on_epoch: Callable[[], None] = lambda: None,
) -> Result:
    """``optimizer`` and a per-step cosine on all weights, with a fresh classifier. Changes ``model``."""
    torch.manual_seed(seed)
    models.replace_head(model, num_classes)
    model.to(normalise.device)
    descent = make_optimizer(model.parameters(), optimizer, lr, weight_decay, decay_all=True)
    total = epochs * len(train_loader)
    accuracies: list[float] = []
    predicted: list[torch.Tensor] = []

    def count(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        predicted.append(logits.argmax(1))
        return hits(logits, labels)

    def score(run: Run, metrics: dict[str, float]) -> None:
        predicted.clear()
        accuracies.append(evaluate(model, test_loader, normalise, count)["top_1"])
        on_epoch()

    scaler = torch.amp.GradScaler(normalise.device.type, enabled=precision == torch.float16)
    train(
        Run(model, Supervised(), descent, scaler, seed=seed), train_loader, normalise,
        lambda step: learning_rate(step, schedule="cosine", peak=lr, total_steps=total, warmup_steps=0),
        epochs=epochs, how=Stepping(precision), on_epoch=score,
    )  # fmt: skip
    return Result(accuracies[-1], max(accuracies), torch.cat(predicted).cpu())
