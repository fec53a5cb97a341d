"""Photos per second through a ResNet-18 at 224 pixels on the CPU: ``predict`` against a plain torchvision loop and timm's loader.

All see the same JPEGs in a folder with the same weights and write a class for each. ``network`` is the forward passes alone, on
a batch that is there: no reader can be faster. Decoding is what the readers differ in, and the machine's cores are shared
by both; with a network this large on few cores the network is the limit.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness import Suite, interleave
from dp4tl_fast.common.machine import cores
from dp4tl_fast.inference.config import PredictConfig
from dp4tl_fast.inference.predict import predict
from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD
from dp4tl_fast.training import checkpoint, models

BATCH, SIZE, PHOTOS = 64, 224, 500
MODEL = "resnet18"


def run(suite: Suite) -> None:
    photos = sorted(p for p in (suite.require_data()).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:PHOTOS]
    if not photos:
        raise SystemExit(f"suite 'predict': no JPEGs below {suite.data}")
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    model = models.build(MODEL, 1000).eval()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = root / "photos" / "all"  # timm's and torchvision's data sets want a class folder
        folder.mkdir(parents=True)
        for i, photo in enumerate(photos):
            (folder / f"{i:05}.jpg").symlink_to(photo.resolve())
        checkpoint.save_weights(root / "w.safetensors", model, {"arch": MODEL, "num_classes": 1000, "size": SIZE})
        subjects = {
            "ours": lambda: ours(root),
            "torchvision": lambda: with_torchvision(root, model),
            "timm": lambda: with_timm(root, model),
            "network": lambda: network(len(photos), model),
        }
        rates = {name: _rate(subject, len(photos)) for name, subject in subjects.items()}
        rows = suite.add("photos", interleave(rates), "photos/s", ratio_to="torchvision")
    suite.settings = {"photos": len(photos), "batch_size": BATCH, "network": MODEL, "size": SIZE}
    suite.goal("times-torchvision", goal=3.0, measured=rows["ours"].ratio or 0.0, unit="x")
    limit = rows["ours"].value / rows["network"].value
    suite.goal("share-of-the-networks-limit", goal=0.9, measured=limit, unit="")


def _rate(subject: Callable[[], None], photos: int) -> Callable[[], float]:
    def rate() -> float:
        start = time.perf_counter()
        subject()
        return photos / (time.perf_counter() - start)

    return rate


def ours(root: Path) -> None:
    """The command itself, from opening the weights to the finished table."""
    photos = [str(root / "photos")]
    predict(PredictConfig(str(root / "w.safetensors"), photos, out=str(root / "p.csv"), top=1, batch_size=BATCH, device="cpu"))


def with_torchvision(root: Path, model: nn.Module) -> None:
    """The loop of torchvision's documentation, with as many workers as cores."""
    from torchvision import datasets, transforms

    crop = [transforms.Resize(256), transforms.CenterCrop(SIZE)]
    shown = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    loader = torch.utils.data.DataLoader(datasets.ImageFolder(root / "photos", shown), BATCH, num_workers=cores())
    _write(root, torch.cat([_classes(model, images) for images, _ in loader]))


def with_timm(root: Path, model: nn.Module) -> None:
    """What timm's inference script does: its data set and its loader."""
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", str(root / "photos")), input_size=(3, SIZE, SIZE), batch_size=BATCH, use_prefetcher=False,
        interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD, num_workers=cores(), crop_pct=SIZE / 256,
    )  # fmt: skip
    _write(root, torch.cat([_classes(model, images) for images, _ in loader]))


def network(photos: int, model: nn.Module) -> None:
    """Forward passes over as many images."""
    batch = torch.zeros(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    for first in range(0, photos, BATCH):
        _classes(model, batch[: min(BATCH, photos - first)])


@torch.inference_mode()
def _classes(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images.to(memory_format=torch.channels_last)).argmax(1)


def _write(root: Path, classes: torch.Tensor) -> None:
    with open(root / "theirs.csv", "w", newline="") as file:
        csv.writer(file).writerows(enumerate(classes.tolist()))
