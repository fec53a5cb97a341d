"""The colour half of MoCo v2's augmentation, on the device and a batch at a time; crops and flips are the loader's.

Colour jitter (0.4, 0.4, 0.4, 0.1) with probability 0.8, greyscale 0.2, Gaussian blur (sigma 0.1 .. 2) 0.5, in this order,
as in Chen et al. 2020. Each image draws its own parameters. The hue is turned in YIQ space, a rotation, which differs a
little from a turn in HSV but needs no branches.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)
TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def augment(pixels: torch.Tensor, *, blur: bool = True) -> torch.Tensor:
    """``pixels`` float ``[batch, 3, h, w]`` in 0 .. 1 -> the same, augmented. Draws from torch's generator."""

    def some(probability: float) -> torch.Tensor:
        return torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < probability

    pixels = torch.where(some(0.8), jitter(pixels), pixels)
    pixels = torch.where(some(0.2), grey(pixels).expand_as(pixels), pixels)
    return torch.where(some(0.5), gaussian_blur(pixels), pixels) if blur else pixels


def grey(pixels: torch.Tensor) -> torch.Tensor:
    """Luma, ``[batch, 1, h, w]``."""
    return (pixels * pixels.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def jitter(pixels: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast, saturation by factors 0.6 .. 1.4, then hue by up to a tenth of a turn."""

    def factor() -> torch.Tensor:
        return torch.empty(len(pixels), 1, 1, 1, device=pixels.device).uniform_(0.6, 1.4)

    pixels = (pixels * factor()).clamp(0, 1)
    mean = grey(pixels).mean((2, 3), keepdim=True)
    pixels = (mean + (pixels - mean) * factor()).clamp(0, 1)
    luma = grey(pixels)
    pixels = (luma + (pixels - luma) * factor()).clamp(0, 1)
    return turn_hue(pixels, torch.empty(len(pixels), device=pixels.device).uniform_(-0.1, 0.1))


def turn_hue(pixels: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate the colour plane of each image by ``turns`` ``[batch]`` of a full circle."""
    yiq = pixels.new_tensor(TO_YIQ)
    a = 2 * torch.pi * turns
    turn = torch.eye(3, device=pixels.device, dtype=pixels.dtype).repeat(len(pixels), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = a.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -a.sin(), a.sin()
    matrix = torch.linalg.inv(yiq) @ turn @ yiq  # [batch, 3, 3]
    return torch.einsum("bij,bjhw->bihw", matrix, pixels).clamp(0, 1)


def gaussian_blur(pixels: torch.Tensor) -> torch.Tensor:
    """Each image with its own sigma from 0.1 to 2 pixels (at 224; scaled down for smaller images)."""
    n, c, h, w = pixels.shape
    scale = min(1.0, min(h, w) / 224)
    radius = max(1, round(4 * scale))
    sigma = torch.empty(n, 1, device=pixels.device).uniform_(0.1, 2.0) * max(scale, 0.25)
    offsets = torch.arange(-radius, radius + 1, device=pixels.device, dtype=pixels.dtype)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), 1)  # [batch, taps], sums to 1
    kernel = kernel.repeat_interleave(c, 0)  # [batch * c, taps]
    x = F.pad(pixels.reshape(1, n * c, h, w), (radius,) * 4, mode="replicate")
    x = F.conv2d(x, kernel[:, None, :, None], groups=n * c)
    return F.conv2d(x, kernel[:, None, None, :], groups=n * c).reshape(n, c, h, w)
