"""What is in a batch: shapes, dtypes, memory, and the oracle's pixels within stated bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from contract_cases import AUGMENTED, BOUNDS, by_index, keep, one_pass, spec
from native_files import jpeg, picture, write
from PIL import Image

from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders import open_loader


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("views", [1, 2])
def test_shapes_dtypes_and_memory_format(backend: str, beton: Beton, dtype: str, views: int) -> None:
    with open_loader(beton, keep(beton, 0), spec(dtype=dtype, views=views, **AUGMENTED), backend) as loader:
        for size in (24, 33):  # progressive resizing
            loader.set_size(size)
            for i, (images, labels, index) in enumerate(loader):
                n = (8, 2)[i]
                assert labels.dtype == index.dtype == torch.int64
                assert labels.shape == index.shape == (n,)
                assert isinstance(images, tuple) == (views > 1)
                for view in images if views > 1 else (images,):
                    assert view.shape == (n, 3, size, size)
                    assert view.dtype == getattr(torch, dtype)
                    assert view.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("transform", ["center_crop", "resize", "random_resized_crop"])
@pytest.mark.parametrize("views", [1, 2])
def test_pixels_are_the_oracles_within_stated_bounds(backend: str, beton: Beton, transform: str, views: int) -> None:
    options = {"transform": transform, "flip": True, "views": views, "seed": 3}
    got, want = (one_pass(beton, name, **options) for name in (backend, "torchvision"))
    mean, most = BOUNDS[backend]
    for (a, *_), (b, *_) in zip(got, want, strict=True):
        for x, y in zip(a if views > 1 else [a], b if views > 1 else [b], strict=True):
            difference = (x.float() - y.float()).abs()
            assert difference.mean() <= mean
            assert difference.max() <= most


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_floats_are_the_normalised_bytes(backend: str, jpegs: Beton, dtype: str) -> None:
    mean, std = (0.1, 0.5, 0.9), (0.3, 0.2, 0.7)
    floats = one_pass(jpegs, backend, dtype=dtype, mean=mean, std=std)
    integers = one_pass(jpegs, backend)
    for (x, *_), (byte, *_) in zip(floats, integers, strict=True):
        shape = (1, 3, 1, 1)
        want = (byte.double() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
        # Half a unit in the last place of the type at the largest value (below 4), and float32 arithmetic before it.
        tolerance = 2 * torch.finfo(getattr(torch, dtype)).eps + 1e-6
        if backend == "native":  # normalises before rounding to whole levels: up to half a level nearer the truth
            tolerance += 0.5 / 255 / min(std)
        assert (x.double() - want).abs().max() <= tolerance


UNUSUAL: dict[str, Callable[[np.ndarray], bytes]] = {
    "grey": lambda p: jpeg(p, "L"),
    "CMYK": lambda p: jpeg(p, "CMYK"),
    "progressive": lambda p: jpeg(p, progressive=True),
    "restart markers": lambda p: jpeg(p, restart_marker_blocks=3),
    "444": lambda p: jpeg(p, subsampling=0),
    "turned by EXIF": lambda p: jpeg(p, exif=turned()),
    "bytes at the end": lambda p: jpeg(p) + b"more" * 20,
    "stray bytes": lambda p: jpeg(p).replace(b"\xff\xda", b"\x00\x01\x02\xff\xda", 1),
}


def turned() -> Image.Exif:
    """Orientation 6: a viewer turns the image by 90 degrees. FFCV, PIL and the file's width and height do not."""
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


@pytest.mark.filterwarnings("ignore:.*DALI failed")  # stray bytes: it says that it used the reference
@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("views", [1, 2])
def test_unusual_jpegs_look_the_same_everywhere(backend: str, folder: Path, kind: str, views: int) -> None:
    ordinary = [jpeg(picture(40, 50, i)) for i in range(3)]
    odd = UNUSUAL[kind](picture(90, 60, 3))
    beton = write(folder / f"{kind}_{backend}_{views}.beton", [*ordinary, odd, *ordinary])
    options = {"views": views, "batch_size": 2, "transform": "resize"}
    got, want = (by_index(one_pass(beton, name, **options)) for name in (backend, "torchvision"))
    assert list(got) == list(want) == beton.index.tolist()
    for i in want:
        difference = (got[i].float() - want[i].float()).abs()
        assert difference.mean() <= BOUNDS[backend][0]
        assert difference.max() <= BOUNDS[backend][1]


def test_batches_own_their_memory(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(batch_size=2), backend) as loader:
        kept, copies = [], []
        for images, *_ in loader:
            kept.append(images)
            copies.append(images.clone())
        list(loader)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
