"""The colour half of MoCo's augmentations, on the device and a batch at a time; crops and flips are the loader's.

Jitter, greyscale, blur and solarisation follow each other in this order, each on some of the images. What an image gets is a
pure function of (seed, epoch, sample, view), drawn from ``philox.philox``, as its crop is. The parameters are drawn on the
CPU, so that an operation runs on the images that get it and nothing waits for the device. The hue is turned in YIQ space, a
rotation, which differs a little from a turn in HSV but needs no branches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dp4tl_fast.common.philox import philox

LUMA = (0.299, 0.587, 0.114)
TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
FROM_YIQ = tuple(map(tuple, np.linalg.inv(TO_YIQ).tolist()))
FIRST_BLOCK = 32  # blocks below belong to crops and flips (loaders/augment.py)
SIGMA = (0.1, 2.0)  # of the blur, in pixels of a 224-pixel image


@dataclass(frozen=True, kw_only=True)
class Colours:
    """How strong each operation is and how often it happens.

    Attributes:
        brightness, contrast, saturation: Factors are from 1 - s to 1 + s.
        hue: Turns are from -hue to hue of a full circle.
        jitter, grey, blur, solarise: Probabilities.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    solarise: float = 0.0


# Chen et al. 2020 (v2), both views alike; Chen, Xie & He 2021 (v3), whose views differ as in BYOL.
MOCO_V2 = (Colours(), Colours())
MOCO_V3 = (Colours(saturation=0.2, blur=1.0), Colours(saturation=0.2, blur=0.1, solarise=0.2))


@dataclass(frozen=True)
class Draws:
    """What each image of a batch gets, float64 ``[batch]`` each; a share below its probability means that it happens."""

    jitter: np.ndarray
    brightness: np.ndarray  # the factors and the turn, from -1 to 1 of their range
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    grey: np.ndarray
    blur: np.ndarray
    sigma: np.ndarray  # from 0 to 1 of its range
    solarise: np.ndarray


def draw(seed: int, epoch: int, index: np.ndarray, view: int) -> Draws:
    """The draws of samples ``index``, int64 ``[batch]``: the same in any batch, rank or resumed run."""
    words = np.concatenate([philox(seed, index, epoch, view, FIRST_BLOCK + block) for block in range(3)])
    unit = words * 2.0**-32  # [12, batch] in [0, 1)
    signed = 2 * unit - 1
    return Draws(unit[0], signed[1], signed[2], signed[3], signed[4], unit[5], unit[6], unit[7], unit[8])


@dataclass
class Recolour:
    """``(views, index, epoch) -> views``: recoloured, then normalised, on the device.

    Attributes:
        normalise: Of type ``loop.Normalise``.
        seed: Of the draws.
        recipes: The colours of each view.
    """

    normalise: Any
    seed: int
    recipes: Sequence[Colours]

    def __post_init__(self) -> None:
        self.device: torch.device = self.normalise.device

    def __call__(self, images: tuple[torch.Tensor, ...], index: torch.Tensor, epoch: int) -> tuple[torch.Tensor, ...]:
        done = []
        for view, (x, colours) in enumerate(zip(images, self.recipes, strict=True)):
            pixels = x.to(self.device, non_blocking=True, memory_format=torch.channels_last) / 255
            done.append(recolour(pixels, colours, draw(self.seed, epoch, index.numpy(), view)))
        return tuple(self.normalise(255 * pixels) for pixels in done)


def recolour(pixels: torch.Tensor, colours: Colours, draws: Draws) -> torch.Tensor:
    """``pixels`` float ``[batch, 3, h, w]`` in 0 .. 1 -> the same, augmented."""

    def on(x: torch.Tensor, chosen: np.ndarray, change: Callable[[torch.Tensor, np.ndarray], torch.Tensor]) -> torch.Tensor:
        rows = np.flatnonzero(chosen)
        if len(rows) == len(x):
            return change(x, rows)
        where = torch.from_numpy(rows).to(x.device, non_blocking=True)
        return x.index_copy(0, where, change(x[where], rows)) if len(rows) else x

    def turned(x: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        factors = np.stack([
            1 + colours.brightness * draws.brightness[rows], 1 + colours.contrast * draws.contrast[rows],
            1 + colours.saturation * draws.saturation[rows], colours.hue * draws.hue[rows],
        ])  # fmt: skip
        return jitter(x, *_like(factors, x))

    def blurred(x: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        return gaussian_blur(x, _like(SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draws.sigma[rows], x))

    pixels = on(pixels, draws.jitter < colours.jitter, turned)
    pixels = on(pixels, draws.grey < colours.grey, lambda x, rows: grey(x).expand_as(x))
    pixels = on(pixels, draws.blur < colours.blur, blurred)
    return on(pixels, draws.solarise < colours.solarise, lambda x, rows: solarise(x))


def _like(values: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).to(x.dtype).to(x.device, non_blocking=True)


@functools.cache
def _constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Copied to the device once: each copy waits for it."""
    return torch.tensor(values, dtype=dtype, device=device)


def grey(pixels: torch.Tensor) -> torch.Tensor:
    """Luma, ``[batch, 1, h, w]``."""
    return (pixels * _constant(LUMA, pixels.dtype, pixels.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def solarise(pixels: torch.Tensor) -> torch.Tensor:
    """Invert what is at least half bright."""
    return torch.where(pixels < 0.5, pixels, 1 - pixels)


def jitter(
    pixels: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor, turns: torch.Tensor
) -> torch.Tensor:
    """Brightness, contrast and saturation by factors ``[batch]``, then hue by parts of a full turn ``[batch]``."""
    brightness, contrast, saturation = (f.view(-1, 1, 1, 1) for f in (brightness, contrast, saturation))
    pixels = (pixels * brightness).clamp(0, 1)
    mean = grey(pixels).mean((2, 3), keepdim=True)
    pixels = (mean + (pixels - mean) * contrast).clamp(0, 1)
    luma = grey(pixels)
    pixels = (luma + (pixels - luma) * saturation).clamp(0, 1)
    return turn_hue(pixels, turns)


def turn_hue(pixels: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate the colour plane of each image by ``turns`` ``[batch]`` of a full circle."""
    there, back = (_constant(m, pixels.dtype, pixels.device) for m in (TO_YIQ, FROM_YIQ))
    a = 2 * torch.pi * turns
    turn = torch.eye(3, device=pixels.device, dtype=pixels.dtype).repeat(len(pixels), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = a.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -a.sin(), a.sin()
    matrix = back @ turn @ there  # [batch, 3, 3]
    return torch.einsum("bij,bjhw->bihw", matrix, pixels).clamp(0, 1)


def gaussian_blur(pixels: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Each image with its own sigma ``[batch]`` in pixels at 224, scaled down for smaller images."""
    n, c, h, w = pixels.shape
    scale = min(1.0, min(h, w) / 224)
    radius = max(1, round(4 * scale))
    sigma = sigma.view(-1, 1) * max(scale, 0.25)
    offsets = torch.arange(-radius, radius + 1, device=pixels.device, dtype=pixels.dtype)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), 1)  # [batch, taps], sums to 1
    kernel = kernel.repeat_interleave(c, 0)  # [batch * c, taps]
    x = F.pad(pixels.reshape(1, n * c, h, w), (radius,) * 4, mode="replicate")
    x = F.conv2d(x, kernel[:, None, :, None], groups=n * c)
    return F.conv2d(x, kernel[:, None, None, :], groups=n * c).reshape(n, c, h, w)
