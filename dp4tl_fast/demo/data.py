"""The demo's images: real handwritten digits as the target, a generated, deliberately mixed source.

The source is to the digits what ImageNet is to a pet classifier: about a quarter of its classes are related (glyphs
from the fonts that matplotlib ships), the rest are not (gratings, noise, polygons, fractals, ...). So one can see at a
glance whether label mapping worked: it should keep glyphs and drop textures. Everything is seeded; nothing is downloaded.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from dp4tl_fast.demo.textures import SIDE, TEXTURES, Images, colourise, textures

JPEG_QUALITY = 92
GLYPHS = string.digits + string.ascii_uppercase + "abdefghmnqrty" + "αβγδζηθλμξπρσφψωΓΔΛΞΠΣΦΨΩ"
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSansMono",
    "DejaVuSans-Oblique",
    "DejaVuSerif-Italic",
    "STIXGeneral",
)


def source_classes() -> dict[str, Callable[[np.random.Generator, int], Images]]:
    """``{class name: make(generator, n) -> images}``; the name's prefix is the family."""
    classes: dict[str, Callable[[np.random.Generator, int], Images]] = {}
    for char in GLYPHS:
        classes[f"glyph-U+{ord(char):04X}"] = partial(glyphs, char=char)
    for family, (make, count) in TEXTURES.items():
        for i in range(count):
            classes[f"{family}-{i:02d}"] = partial(textures, make=make, i=i, count=count)
    return classes


def is_glyph(name: str) -> bool:
    return name.startswith("glyph-")


# -- glyphs -----------------------------------------------------------------------------------------------------------


def glyphs(g: np.random.Generator, n: int, char: str) -> Images:
    """One character in several fonts, weights, warps and resolutions."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    stencils = []
    for name in FONTS:
        font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{name}.ttf", 44)
        image = Image.new("L", (64, 64))
        ImageDraw.Draw(image).text((32, 32), char, 255, font, anchor="mm")
        stencils += [image, image.filter(ImageFilter.MaxFilter(3)), image.filter(ImageFilter.MinFilter(3))]
    fields = np.empty((n, SIDE, SIDE))
    for i in range(n):
        angle, shear = g.normal(0, 0.15), g.normal(0, 0.2)
        zoom_x, zoom_y = g.uniform(1.2, 2.2, 2)  # stencil pixels an output pixel
        a, b, c, d = (
            zoom_x * np.cos(angle),
            zoom_x * (shear - np.sin(angle)),
            zoom_y * np.sin(angle),
            zoom_y * np.cos(angle),
        )
        centre = SIDE / 2 + g.normal(0, 1.5, 2)
        affine = (a, b, 32 - a * centre[0] - b * centre[1], c, d, 32 - c * centre[0] - d * centre[1])
        image = stencils[g.integers(len(stencils))].transform(
            (SIDE, SIDE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
        )
        coarse = int(g.choice([8, 10, 12, 16, 32]))
        if coarse < SIDE:
            image = image.resize((coarse, coarse), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        fields[i] = np.asarray(image, np.float64) / 127.5 - 1
    return colourise(g, fields)


# -- folders ----------------------------------------------------------------------------------------------------------


def write_source(root: Path, *, per_class: int, seed: int, workers: int) -> Iterator[str]:
    """Write ``root/<class>/<i>.jpg`` for every source class; yields a class name as each is done."""
    jobs = [(root, name, i, per_class, seed) for i, name in enumerate(source_classes())]
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_write_class, jobs, chunksize=4)


def _write_class(job: tuple[Path, str, int, int, int]) -> str:
    root, name, i, per_class, seed = job
    images = source_classes()[name](np.random.default_rng([seed, i]), per_class)
    _save(root / name, images)
    return name


def write_target(root: Path, *, train_per_class: int, seed: int) -> None:
    """Write scikit-learn's 8x8 handwritten digits, enlarged, as ``root/{train,test}/<digit>/<i>.jpg``."""
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    random = np.random.default_rng(seed)
    for digit in range(10):
        small = data.images[data.target == digit]  # float [n, 8, 8], 0 .. 16
        large = [
            Image.fromarray((a * (255 / 16)).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            for a in small
        ]
        images = np.stack([np.asarray(a.convert("RGB")) for a in large])[random.permutation(len(large))]
        _save(root / "train" / str(digit), images[:train_per_class])
        _save(root / "test" / str(digit), images[train_per_class:])


def _save(folder: Path, images: Images) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(images):
        Image.fromarray(array).save(folder / f"{i:04d}.jpg", quality=JPEG_QUALITY, subsampling=0)
