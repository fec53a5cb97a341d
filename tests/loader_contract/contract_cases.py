"""What the contract's tests share: small files of every kind, loader specs, and views of the batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from native_files import jpeg, picture

from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.selection import Selection

N, CLASSES, BATCH = 50, 5, 8

# Mean and largest difference from the oracle in levels, on noisy pictures with edges. native and DALI resize as it
# does, but round once where it rounds twice; native's chroma is resized before the colour conversion, and DALI cuts the
# tails of its filter (seen: 0.33 and 6, 0.19 and 6). FFCV has a fast, less exact inverse DCT and averages pixel areas
# (seen: 2.0 and 27). `python -m benchmarks parity` measures the same on photographs.
BOUNDS = {"torchvision": (0, 0), "native": (0.5, 8), "dali": (0.3, 8), "ffcv": (2.5, 40)}

Batches = list[tuple[Any, ...]]


def payloads(kind: str, n: int = N) -> list[bytes | np.ndarray]:
    sides = np.random.default_rng(5).integers(20, 120, (n, 2)).tolist()
    images = [picture(w, h, seed) for seed, (w, h) in enumerate(sides)]
    return [p if kind == "raw" or (kind == "mixed" and i % 3 == 0) else jpeg(p) for i, p in enumerate(images)]


def class_labels(n: int = N) -> list[int]:
    return [i * CLASSES // n for i in range(n)]


def keep(beton: Beton, *classes: int) -> Selection:
    return Selection.of_classes(beton, np.array(classes), method="test", scores=np.zeros(beton.num_classes))


def spec(**options: Any) -> LoaderSpec:
    return LoaderSpec(**{"batch_size": BATCH, "size": 24, "with_index": True, "workers": 2, **options})


AUGMENTED = {"transform": "random_resized_crop", "flip": True, "shuffle": True}


def flat(batches: Batches, column: int) -> list[int]:
    return torch.cat([batch[column] for batch in batches]).tolist() if batches else []


def same(a: Batches, b: Batches) -> bool:
    pairs = (pair for p, q in zip(a, b, strict=True) for pair in zip(p, q, strict=True)) if len(a) == len(b) else ()
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in pairs)


def by_index(batches: Batches) -> dict[int, torch.Tensor]:
    """The (first view of the) image of each index."""
    images = [(x[0] if isinstance(x, tuple) else x, index.tolist()) for x, _, index in batches]
    return {i: image for x, index in images for i, image in zip(index, x, strict=True)}


def one_pass(beton: Beton, backend: str, epoch: int = 0, **options: Any) -> Batches:
    with open_loader(beton, None, spec(**options), backend) as loader:
        loader.set_epoch(epoch)
        return list(loader)
