"""No image depends on another: every record is delivered as a loader of its own would deliver it, whatever came before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from native_files import write
from odd_jpegs import incomplete_jpegs, odd_jpegs

from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders import LoaderSpec, open_loader


def every_pair(n: int) -> list[int]:
    """A walk that takes each ordered pair of n things, one right after the other: an Eulerian circuit, n x n + 1 long."""
    left = [list(range(n)) for _ in range(n)]
    walk: list[int] = []
    stack = [0]
    while stack:
        if left[stack[-1]]:
            stack.append(left[stack[-1]].pop())
        else:
            walk.append(stack.pop())
    return walk[::-1]


def repeated(path: Path, images: dict[str, bytes]) -> tuple[Beton, list[int]]:
    """A file that holds the images in every order, and which image each record is."""
    walk = every_pair(len(images))
    return write(path, [list(images.values())[i] for i in walk]), walk


def alone(path: Path, data: bytes, backend: str, spec: LoaderSpec) -> torch.Tensor | None:
    with open_loader(write(path, [data]), None, spec, backend) as loader:
        (batch,) = list(loader)
    return batch.images[0] if len(batch.labels) else None


@pytest.mark.filterwarnings("ignore:skipped")
def test_each_odd_image_after_each_other_one(backend: str, tmp_path: Path) -> None:
    images = odd_jpegs() | incomplete_jpegs()
    names = list(images)
    beton, walk = repeated(tmp_path / "pairs.beton", images)
    for exact in (False, True) if backend == "native" else (False,):
        spec = LoaderSpec(batch_size=64, size=48, transform="resize", workers=1, with_index=True, on_error="skip", exact=exact)
        wanted = [alone(tmp_path / f"{i}.beton", data, backend, spec) for i, data in enumerate(images.values())]
        good = [name for name, image in zip(names, wanted, strict=True) if image is not None]
        assert good == list(odd_jpegs()), "what lacks its tables must not be decoded, and everything else must"
        seen = 0
        with open_loader(beton, None, spec, backend) as loader:
            for views, _, index in loader:
                for image, at in zip(views, (index - 1000).tolist(), strict=True):
                    expected = wanted[walk[at]]
                    after = f"{names[walk[at]]} after {names[walk[at - 1]]}"
                    assert expected is not None and torch.equal(image, expected), after
                    seen += 1
        assert seen == sum(wanted[i] is not None for i in walk)
