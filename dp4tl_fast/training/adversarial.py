"""Adversarial pretraining: cross entropy on the worst image that projected gradient descent finds in a small ball.

The ball is meant in pixel space (values 0 to 1). Images arrive normalised, so eps, steps and bounds are divided by the
channels' std: the same set of images, without converting back and forth. (The published code draws its noise in
normalised space and projects in pixel space: a different ball. Recipe: arXiv 2310.08782, eps 3/255, 3 steps.)
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dp4tl_fast.training.supervised import Sums, Supervised

NORMS = ("linf", "l2")


class Adversarial(Supervised):
    """``Supervised`` on attacked images; validation stays clean.

    Args:
        eps: Radius of the ball in pixel values 0 .. 1.
        steps: Gradient steps of size 2 * eps / steps; with 1 it is the fast single-step variant (size 1.25 * eps).
        norm: ``linf`` or ``l2``.
        mean, std: Of the normalisation, 3 values each.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        *,
        eps: float,
        steps: int,
        norm: str,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        label_smoothing: float = 0.0,
        renumber: torch.Tensor | None = None,
    ) -> None:
        super().__init__(label_smoothing, renumber)
        self.eps, self.steps, self.norm = eps, steps, norm
        self.step_size = 1.25 * eps if steps == 1 else 2 * eps / steps
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Sums]:
        return super().forward(model, images + self.attack(model, images, labels) / self.std, labels)

    def attack(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The perturbation in pixel values, ``[batch, 3, h, w]``: inside the ball, and the image stays inside 0 .. 1.

        The network is in eval mode meanwhile, so that attacked batches do not move its running statistics.
        """
        pixels = images * self.std + self.mean
        delta = self.project(self._start(pixels), pixels)
        was_training = model.training
        model.eval()
        with torch.enable_grad():
            for _ in range(self.steps):
                delta.requires_grad_(True)
                # Summed: only the direction counts, and a mean over a large batch would vanish in half precision.
                logits = model(images + delta / self.std).float()
                loss = F.cross_entropy(logits, self.targets(labels), reduction="sum")
                (gradient,) = torch.autograd.grad(loss, delta)
                delta = self.project(delta.detach() + self.step_size * self._direction(gradient), pixels)
        model.train(was_training)
        return delta.detach()

    def project(self, delta: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Into the ball, then into the range of pixels (which cannot leave the ball: both contain 0 and are convex)."""
        linf = self.norm == "linf"
        delta = delta.clamp(-self.eps, self.eps) if linf else delta * (self.eps / _length(delta).clamp_min(self.eps))
        return (pixels + delta).clamp(0, 1) - pixels

    def _start(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.norm == "linf":
            return torch.empty_like(pixels).uniform_(-self.eps, self.eps)
        noise = torch.randn_like(pixels)
        return noise * (self.eps * torch.rand_like(pixels[:, :1, :1, :1]) / _length(noise))

    def _direction(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.sign() if self.norm == "linf" else gradient / _length(gradient).clamp_min(1e-12)


def _length(x: torch.Tensor) -> torch.Tensor:
    """L2 norm of each image, ``[batch, 1, 1, 1]``."""
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
