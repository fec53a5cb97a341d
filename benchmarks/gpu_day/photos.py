"""Photographs for machines that have none: coloured noise with the spectrum of natural images, and edges.

Their JPEGs cost a decoder what photographs' do: at 500 x 375 pixels and quality 90 about 100 kB, as ImageNet's.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.machine import cores
from dp4tl_fast.conversion.run import convert

QUALITY = 90
SLOPE = 1.1  # amplitude falls as frequency^-SLOPE; about 1 in natural images (Field 1987), whose grain JPEG mostly drops
EDGES = 12  # half-planes per image, each a shade of its own


def photo(seed: int, width: int, height: int) -> np.ndarray:
    """uint8 ``[height, width, 3]``, the same for the same seed."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    spectra = np.fft.rfft2(random.standard_normal((3, height, width), np.float32)) * frequency**-SLOPE
    spectra[:, 0, 0] = 0
    fields = np.fft.irfft2(spectra, s=(height, width))
    fields /= fields.std(axis=(1, 2), keepdims=True)
    y, x = np.mgrid[:height, :width]
    for angle, at, shade in random.uniform(0, 1, (EDGES, 3)):
        side = x * np.cos(2 * np.pi * angle) + y * np.sin(2 * np.pi * angle) > (2 * at - 1) * width
        fields[0] += np.where(side, shade, 0)
    luma, blue, red = fields[0] * 45 + 100, fields[1] * 14, fields[2] * 14
    rgb = np.stack([luma + 1.402 * red, luma - 0.344 * blue - 0.714 * red, luma + 1.772 * blue], axis=-1)
    return np.clip(rgb, 0, 255).astype(np.uint8)


def photos(folder: Path, images: int, classes: int, width: int = 500, height: int = 375) -> Beton:
    """``images`` of them in ``folder/photos.beton``, of ``classes`` classes in turn; made on all cores, once."""
    from PIL import Image

    file = folder / "photos.beton"
    if file.exists():
        return Beton(file)

    def write(i: int) -> None:
        buffer = io.BytesIO()
        Image.fromarray(photo(i, width, height)).save(buffer, "JPEG", quality=QUALITY)
        (folder / "photos" / f"class{i % classes:03}" / f"{i:06}.jpg").write_bytes(buffer.getvalue())

    for c in range(classes):
        (folder / "photos" / f"class{c:03}").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, range(images)))
    convert(str(folder / "photos"), str(file))
    return Beton(file)
