"""What a network wants to see: side, crop, mean and standard deviation, as its checkpoint says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.loaders.spec import IMAGENET_MEAN, IMAGENET_STD, SMALL, LoaderSpec
from dp4tl_fast.training.loop import Normalise
from dp4tl_fast.training.ranks import rank

BILINEAR = "bilinear"  # with antialiasing: how every loader resizes


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From an image to a network's input.

    Attributes:
        size: Side in pixels.
        crop_ratio: Side of the centre crop as a share of the image's shorter side.
        mean, std: Of the channels, for pixel values from 0 to 1.
        interpolation: How the images were resized that the network was trained on.
    """

    size: int = 224
    crop_ratio: float = LoaderSpec.evaluation(size=224).crop_ratio
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = BILINEAR

    @classmethod
    def of(cls, meta: Mapping[str, Any], size: int = 0) -> Preprocessing:
        """That of a checkpoint's metadata; ImageNet's where it says nothing.

        Args:
            size: Another side; 0 keeps the checkpoint's. The crop stays, unless one side is small and the other is not.
        """
        own = int(meta.get("size", 224))
        side = size or own
        usual = LoaderSpec.evaluation(size=side).crop_ratio
        alike = (side > SMALL) == (own > SMALL)
        ratio = float(meta.get("crop_ratio", usual)) if alike else usual
        mean, std = (tuple(map(float, meta.get(k, v))) for k, v in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
        if len(mean) != 3 or len(std) != 3:
            raise UsageError(f"a checkpoint's mean {mean} and std {std} must have one value for each of three channels")
        return cls(size=side, crop_ratio=ratio, mean=mean, std=std, interpolation=str(meta.get("interpolation", BILINEAR)))

    def changed(self, mean: list[float] | None, std: list[float] | None) -> Preprocessing:
        """With another mean or std, three values each."""
        for name, values in (("mean", mean), ("std", std)):
            if values and (len(values) != 3 or (name == "std" and min(values) <= 0)):
                raise UsageError(f"`{name}={values}`: must be three numbers" + (" above 0" if name == "std" else ""))
        given = {k: tuple(v) for k, v in (("mean", mean), ("std", std)) if v}
        return replace(self, **given)  # type: ignore[arg-type]

    def as_loaded(self, path: str) -> Preprocessing:
        """As every loader here does it: bilinearly. A note says where the weights at ``path`` are used to something else."""
        if self.interpolation != BILINEAR and rank() == 0:
            cli.message(
                f"note: {path}: was trained on images resized with {self.interpolation} interpolation; here they are resized "
                "bilinearly, with antialiasing"
            )
        return replace(self, interpolation=BILINEAR)

    def meta(self) -> dict[str, Any]:
        """For a checkpoint's metadata."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def spec(self, **more: Any) -> LoaderSpec:
        """Each record once, in file order, not augmented; ``more`` are other fields of ``LoaderSpec``."""
        return LoaderSpec(size=self.size, crop_ratio=self.crop_ratio, **more)

    def normalise(self, device: torch.device) -> Normalise:
        """uint8 batches of such a spec -> the network's input on ``device``."""
        return Normalise(self.mean, self.std, device)


def start_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the checkpoint of a network that was trained further says of how its first weights' images were resized."""
    made = meta.get("interpolation", BILINEAR)
    return {} if made == BILINEAR else {"start_interpolation": made}
