"""How much do the backends differ? Pixels of the same centre crops of photographs, and the accuracy of one network.

The network is trained once, here, through the oracle's own batches (seeded), and then evaluated through every backend.
"""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness import Suite
from dp4tl_fast.beton import Beton
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.loaders import BACKENDS, LoaderSpec, open_loader
from dp4tl_fast.training.models import build

ORACLE = "torchvision"
PHOTOS = LoaderSpec(batch_size=50, size=224)
# 28 of 32 pixels, enlarged to 32: every backend has to resample.
OBJECTS = LoaderSpec(batch_size=250, size=32, dtype="float32")
EPOCHS, WIDTH, LEARNING_RATE = 4, 16, 0.02


def run(suite: Suite) -> None:
    data = suite.require_data()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        photos = converted(class_folders(data / "imagenet-sample"), scratch / "photos.beton")
        train = converted(class_folders(data / "cifar10", "train"), scratch / "train.beton")
        test = converted(class_folders(data / "cifar10", "test"), scratch / "test.beton")

        others = [name for name in BACKENDS if name != ORACLE]
        differences = {name: pixel_differences(photos, name) for name in others}
        means = suite.add("mean-difference-per-image", {n: d[0] for n, d in differences.items()}, "levels")
        suite.add("largest-difference", {n: [max(d[1])] for n, d in differences.items()}, "levels")
        suite.goal("native-mean-levels", goal=1, measured=means["native"].value, unit="levels", at_most=True)

        network = trained(train)
        accuracies = {name: [accuracy(network, test, name)] for name in BACKENDS}
        rows = suite.add("accuracy-of-one-network", accuracies, "%")
        gap = max(abs(rows[name].value - rows[ORACLE].value) for name in others)
        suite.goal("accuracy-points", goal=0.1, measured=gap, unit="points", at_most=True)


def class_folders(root: Path, split: str = "") -> Path:
    """The folder of class folders under ``root``, below one named ``split`` if given."""
    for folder in sorted(chain([root], (p for p in root.rglob("*") if p.is_dir()))):
        inside = split in folder.relative_to(root).parts if split else True
        if inside and any(p.is_file() for child in folder.iterdir() if child.is_dir() for p in child.iterdir()):
            return folder
    raise SystemExit(f"{root}: no {split} folder of class folders with images. Unpack the data set there")


def converted(folder: Path, beton: Path) -> Beton:
    convert(str(folder), str(beton))
    return Beton(beton)


def pixel_differences(beton: Beton, backend: str) -> tuple[list[float], list[float]]:
    """Mean and largest absolute difference from the oracle of every image, in levels of 255."""
    means, most = [], []
    with open_loader(beton, None, PHOTOS, backend) as ours, open_loader(beton, None, PHOTOS, ORACLE) as oracle:
        for (a, _), (b, _) in zip(ours, oracle, strict=True):
            difference = (a.float() - b.float()).abs().flatten(1)
            means += difference.mean(1).tolist()
            most += difference.amax(1).tolist()
    return means, most


def trained(beton: Beton) -> torch.nn.Module:
    """A small network that has seen ``beton`` a few times: far better than chance, far from perfect."""
    torch.manual_seed(0)
    network = build(f"small-{WIDTH}", beton.num_classes)
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    spec = LoaderSpec(batch_size=128, size=32, dtype="float32", flip=True, shuffle=True)
    with open_loader(beton, None, spec, ORACLE) as loader:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 10 * LEARNING_RATE, total_steps=EPOCHS * len(loader))
        for epoch in range(EPOCHS):
            loader.set_epoch(epoch)
            for images, labels in loader:
                optimizer.zero_grad()
                cross_entropy(network(images), labels).backward()
                optimizer.step()
                schedule.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: torch.nn.Module, beton: Beton, backend: str) -> float:
    """Percentage of the records that are classified correctly."""
    with open_loader(beton, None, OBJECTS, backend) as loader:
        hits = [(network(images).argmax(1) == labels).numpy() for images, labels in loader]
    return 100 * float(np.concatenate(hits).mean())
