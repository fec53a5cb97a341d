"""Augmentations of torchvision's for training on a target: RandAugment and its like on images, mixup and cutmix on batches.

They draw from torch's global generator, which the loop seeds from (seed, step, rank) before every step: a resumed run draws
what it would have drawn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from dp4tl_fast.training.loop import Normalise
from dp4tl_fast.training.supervised import Sums, Supervised, hits

OPERATIONS = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
MIXTURES = {"mixup": lambda n: v2.MixUp(alpha=0.2, num_classes=n), "cutmix": lambda n: v2.CutMix(alpha=1.0, num_classes=n)}


class Augment:
    """``(images, index, epoch) -> images``: each uint8 image changed by itself, then normalised; on the device."""

    def __init__(self, name: str, normalise: Normalise) -> None:
        self._change, self._normalise, self.device = OPERATIONS[name](), normalise, normalise.device

    def __call__(self, images: torch.Tensor, index: torch.Tensor, epoch: int) -> Any:
        changed = [self._change(image) for image in images.to(self.device, non_blocking=True)]
        return self._normalise(torch.stack(changed))


class Mixed(Supervised):
    """``Supervised`` on images mixed in pairs, with labels mixed alike (arXiv 1710.09412, 1905.04899).

    ``top_1`` and ``top_5`` count the label of the image that the mixture began with.

    Args:
        name: ``mixup`` or ``cutmix``.
        num_classes: Of the network's output.
    """

    def __init__(self, name: str, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        self._mix = MIXTURES[name](num_classes)

    def forward(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Sums]:
        if len(images) < 2:  # a last batch of one has no pair
            return super().forward(model, images, labels)
        mixed, targets = self._mix(images, labels)
        logits = model(mixed).float()
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing), hits(logits.detach(), labels)
