"""Numbers from a network's logits, and its accuracy under attack."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dp4tl_fast.beton import Beton
from dp4tl_fast.inference import passes
from dp4tl_fast.inference.network import Network
from dp4tl_fast.loaders import open_loader
from dp4tl_fast.loaders.order import rank_batches
from dp4tl_fast.runs.bad_records import BadRecords
from dp4tl_fast.training import ranks
from dp4tl_fast.training.adversarial import Adversarial

BINS = 15  # of the calibration error, as Guo et al. 2017 have them


def logits_of(
    network: Network, beton: Beton, records: np.ndarray, share: dict[str, Any], backend: str, tta: str, bad: BadRecords
) -> torch.Tensor:
    """float32 ``[n, outputs]`` of ``records``, ascending, on every rank's CPU. ``bad`` learns which have none."""
    with open_loader(beton, records, network.pixels.spec(**share), backend) as loader:
        found = passes.rows(
            passes.TTA[tta](network.model), loader, network.pixels.normalise(network.device), lambda logits: logits
        )
        bad.note("data", loader)
    return found


def scores(logits: torch.Tensor, labels: np.ndarray) -> dict[str, float]:
    """Of logits ``[n, outputs]`` and outputs' numbers int64 ``[n]``: top-1, top-5, cross entropy, calibration error."""
    truth = torch.from_numpy(labels)
    best = logits.topk(min(5, logits.shape[1])).indices
    right = best == truth[:, None]
    confidence = logits.softmax(1).max(1).values
    return {
        "top_1": int(right[:, 0].sum()) / len(truth),
        "top_5": int(right.sum()) / len(truth),
        "loss": float(F.cross_entropy(logits.double(), truth)),
        "calibration_error": calibration_error(confidence.double().numpy(), right[:, 0].numpy()),
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017): |accuracy - confidence| over 15 equal bins, weighed by their images.

    Args:
        confidence: Probability of the predicted class, float ``[n]``.
        right: Whether it is the true one, bool ``[n]``.
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def robust_top_1(
    network: Network, beton: Beton, records: np.ndarray, truth: np.ndarray, share: dict[str, Any], backend: str,
    attack: dict[str, Any], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Top-1 on the worst images that projected gradient descent finds, from a random start in the ball.

    Args:
        truth: The network's output of every class, int64 ``[classes]``.
        attack: ``eps`` in 1/255 of the pixel range, ``steps``, ``norm``.
    """
    pixels = network.pixels
    pgd = Adversarial(
        eps=attack["eps"] / 255, steps=attack["steps"], norm=attack["norm"], mean=pixels.mean, std=pixels.std
    ).to(network.device)
    normalise, outputs = pixels.normalise(network.device), torch.from_numpy(truth)
    right = torch.zeros((), dtype=torch.int64)
    with open_loader(beton, records, pixels.spec(**share), backend) as loader:
        places = rank_batches(
            np.arange(len(records)), batch_size=share["batch_size"], rank=share["rank"], world_size=share["world_size"],
            drop_last=False,
        )  # fmt: skip
        for place, (images, labels) in zip(places, loader, strict=True):
            torch.manual_seed(seed * 1_000_003 + int(place[0]))
            x, y = normalise(images), outputs[labels].to(network.device)
            worst = x + pgd.attack(network.model, x, y) / pgd.std
            with torch.no_grad():
                right += (network.model(worst).argmax(1) == y).sum().cpu()
    ranks.all_reduce_sum(right)
    return {"robust_top_1": int(right) / len(records), "attack": attack}
