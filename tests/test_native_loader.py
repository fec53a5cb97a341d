"""The native loader against Pillow and torchvision, and against itself: threads, instruction sets, resumes, ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from native_files import decoded, jpeg, picture, write
from torchvision.transforms.v2 import functional

from dp4tl_fast.beton import Beton
from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.loaders.augment import parameters
from dp4tl_fast.loaders.native import NativeLoader

SIZES = [(1, 1), (8, 8), (7, 3), (16, 17), (33, 31), (64, 48), (100, 1), (1, 90), (130, 97), (200, 150), (257, 255)]


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    """Raw and JPEG records of many sizes; every chroma subsampling, greyscale, progressive, CMYK."""
    payloads: list[bytes | np.ndarray] = []
    for i, (width, height) in enumerate(SIZES):
        image = picture(width, height, i)
        payloads += [image, jpeg(image, subsampling=0), jpeg(image, subsampling=1), jpeg(image, subsampling=2)]
        payloads += [jpeg(image, "L"), jpeg(image, progressive=True), jpeg(image, "CMYK")]
    return write(tmp_path_factory.mktemp("native") / "mixed.beton", payloads)


def load(beton: Beton, epoch: int = 0, **options: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    spec = LoaderSpec(**{"batch_size": 16, "size": 40, "with_index": True, "workers": 2, **options})
    with open_loader(beton, spec=spec) as loader:
        loader.set_epoch(epoch)
        images, labels, index = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels), torch.cat(index)


@pytest.mark.parametrize("transform", ["random_resized_crop", "center_crop", "resize"])
@pytest.mark.parametrize("size", [2, 15, 40, 129])
def test_is_torchvisions_antialiased_resize_of_pillows_pixels(beton: Beton, transform: str, size: int) -> None:
    spec = LoaderSpec(transform=transform, size=size, flip=True, seed=3)
    images, labels, index = load(beton, epoch=2, transform=transform, size=size, flip=True, seed=3, exact=True)
    assert torch.equal(labels, torch.from_numpy(beton.labels)) and torch.equal(index, torch.from_numpy(beton.index))
    rows = beton.images
    boxes, mirror = parameters(spec, 2, np.arange(beton.num_samples), rows["height"], rows["width"])
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        crop = decoded(beton, i)[top : top + height, left : left + width].transpose(2, 0, 1)
        expected = functional.resize(torch.from_numpy(crop.copy()), [size, size], antialias=True)
        expected = expected.flip(2) if mirror[i] else expected
        # torchvision rounds to whole levels between its two passes, we after both: at most one level apart.
        assert (images[i].int() - expected.int()).abs().max() <= 1, f"record {i}, {rows[i]}"


@pytest.mark.parametrize("transform", ["random_resized_crop", "center_crop", "resize"])
def test_fast_mode_is_close_to_exact(beton: Beton, transform: str) -> None:
    """Chroma is resized as it is stored and colours are converted after the resize: they differ where colours saturate and
    at edges of subsampled chroma (the pictures have both), by little on average."""
    fast, exact = (load(beton, transform=transform, exact=e)[0].int() for e in (False, True))
    error = (fast - exact).abs().float().mean(dim=(1, 2, 3))
    raw = torch.from_numpy(beton.images["mode"] == 1)
    assert error[raw].max() == 0
    # Pictures of a few pixels are all edge: the bound of one level is for those of 16 x 16 and more.
    large = torch.from_numpy(np.minimum(beton.images["width"], beton.images["height"]) >= 16)
    assert error[large].max() < 1


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_shrunk_crops_have_their_own_colours_at_the_edges(tmp_path: Path, subsampling: int) -> None:
    """Chroma is read one sample further than the crop: that sample, too, must be the image's."""
    across, down = np.linspace(0, 255, 640)[None], np.linspace(0, 255, 480)[:, None]
    smooth = np.stack(np.broadcast_arrays(across + down, 383 - down, 255 - across), 2) / 2
    beton = write(tmp_path / "smooth.beton", [jpeg(smooth.astype(np.uint8), subsampling=subsampling)] * 40)
    fast, exact = (load(beton, transform="random_resized_crop", scale=(0.5, 1.0), size=16, exact=e)[0].int() for e in (False, True))
    assert (fast - exact).abs().max() <= 1


def test_the_purest_colours_keep_their_levels(tmp_path: Path) -> None:
    """Converting yellow passes the top of 16 bits on the way, if done in the wrong order."""
    corners = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    flat = [np.full((32, 32, 3), colour, np.uint8) for colour in corners]
    beton = write(tmp_path / "pure.beton", [jpeg(image, subsampling=s) for image in flat for s in (0, 2)])
    images, *_ = load(beton, transform="resize", size=32)
    expected = np.stack([decoded(beton, i) for i in range(beton.num_samples)]).transpose(0, 3, 1, 2)
    assert (images.int() - torch.from_numpy(expected).int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("isa", _native.isas())
def test_float_output_is_the_normalised_pixel(
    beton: Beton, dtype: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NativeLoader, "isa", isa)
    images, *_ = load(beton, dtype=dtype)
    bytes_, *_ = load(beton)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (LoaderSpec().mean, LoaderSpec().std))
    assert images.dtype == getattr(torch, dtype) and images.is_contiguous(memory_format=torch.channels_last)
    # The float keeps the fraction that uint8 rounds away: half a level, and the output's own rounding.
    levels = (images.float() * std + mean) * 255
    assert (levels - bytes_).abs().max() <= 0.5 + 255 * torch.finfo(images.dtype).eps


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32"])
def test_every_instruction_set_gives_the_same_bits(
    beton: Beton, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for isa in _native.isas():
        monkeypatch.setattr(NativeLoader, "isa", isa)
        with open_loader(beton) as loader:
            assert loader._core.isa == isa
        results.append(load(beton, transform="random_resized_crop", flip=True, dtype=dtype, size=37)[0])
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_threads_views_and_epochs(beton: Beton) -> None:
    augment = {"transform": "random_resized_crop", "flip": True, "shuffle": True, "seed": 11}
    one = load(beton, epoch=4, workers=1, **augment)
    many = load(beton, epoch=4, workers=7, batch_size=5, **augment)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))
    assert not torch.equal(one[2], load(beton, epoch=5, **augment)[2])
    spec = LoaderSpec(batch_size=9, size=40, views=2, with_index=True, **augment)
    with open_loader(beton, spec=spec) as loader:
        loader.set_epoch(4)
        views, _, index = zip(*loader, strict=True)
    first, second = (torch.cat(v) for v in zip(*views, strict=True))
    assert torch.equal(torch.cat(index), one[2]) and torch.equal(first, one[0])
    assert not torch.equal(first, second)


def test_resume_continues_where_it_stopped(beton: Beton) -> None:
    spec = LoaderSpec(batch_size=8, size=24, shuffle=True, transform="random_resized_crop", with_index=True)
    with open_loader(beton, spec=spec) as loader:
        loader.set_epoch(3)
        whole = list(loader)
        loader.set_epoch(3)
        iterator = iter(loader)
        next(iterator), next(iterator)
        state = loader.state_dict()
    with open_loader(beton, spec=spec) as resumed:
        resumed.load_state_dict(state)
        rest = list(resumed)
    assert len(rest) == len(whole) - 2
    for a, b in zip(rest, whole[2:], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_ranks_share_every_record_once(beton: Beton) -> None:
    parts = [load(beton, shuffle=True, rank=r, world_size=3, batch_size=4)[2] for r in range(3)]
    assert torch.equal(torch.cat(parts).sort().values, torch.from_numpy(beton.index))


def test_delivered_batches_stay_valid(beton: Beton) -> None:
    """Buffers are used again only when the consumer has let go of them, also after the loader is closed."""
    with open_loader(beton, spec=LoaderSpec(batch_size=4, size=16)) as loader:
        kept = [images for images, _ in loader]
        copies = [images.clone() for images in kept]
        for _ in range(3):
            list(loader)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_unknown_instruction_set_is_refused(beton: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeLoader, "isa", "mmx")
    with pytest.raises(Exception, match="'mmx' is unknown"):
        open_loader(beton)


def test_closing_gives_the_file_back(beton: Beton) -> None:
    """While the loader is still there: in a cycle of garbage, say, which commands do not look for at their end."""

    def descriptors() -> int:
        return sum(fd.resolve() == beton.path.resolve() for fd in Path("/proc/self/fd").iterdir() if fd.exists())

    before = descriptors()
    loader = open_loader(beton)
    next(iter(loader))
    assert descriptors() > before
    loader.close()
    assert descriptors() == before
