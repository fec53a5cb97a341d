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

SIDE = 32  # pixels
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

Images = np.ndarray  # uint8 [n, SIDE, SIDE, 3]
Fields = np.ndarray  # float [n, SIDE, SIDE], about -1 .. 1


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


# -- the other families: make(generator, n, class number, classes in the family) -> fields --------------------------------


def _grid(g: np.random.Generator, n: int, jitter: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates in -1 .. 1 with a random shift for each image, ``[n, SIDE, SIDE]`` each."""
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    shift = g.uniform(-jitter, jitter, (2, n, 1, 1))
    return axis[None, None, :] + shift[0], axis[None, :, None] + shift[1]


def _rotated(g: np.random.Generator, n: int, angle: float, spread: float = 0.08) -> tuple[np.ndarray, np.ndarray]:
    x, y = _grid(g, n)
    a = angle + g.normal(0, spread, (n, 1, 1))
    return x * np.cos(a) + y * np.sin(a), y * np.cos(a) - x * np.sin(a)


def gratings(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Sine gratings: orientation and frequency by class."""
    u, _ = _rotated(g, n, np.pi * (i % 6) / 6)
    return np.sin(u * np.pi * (2 + 2 * (i // 6)) * g.uniform(0.9, 1.1, (n, 1, 1)))


def stripes(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Hard-edged bars: orientation and duty cycle by class."""
    u, _ = _rotated(g, n, np.pi * (i % 5) / 5)
    return np.where((u * g.uniform(2, 4, (n, 1, 1))) % 1 < (0.2 + 0.2 * (i // 5)), 1.0, -1.0)


def checkers(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Checkerboards: scale, aspect and rotation by class."""
    u, v = _rotated(g, n, np.pi / 4 * (i % 3) / 2)
    scale = 1.5 + i // 3
    return np.sign(np.sin(u * np.pi * scale) * np.sin(v * np.pi * scale * (1 + i % 2)) + 1e-9)


def dots(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Dots on a lattice: pitch, radius and lattice by class."""
    u, v = _rotated(g, n, 0.3 * (i % 4))
    pitch = 1.5 + 0.8 * (i // 4)
    row = np.floor(v * pitch)
    du, dv = (u * pitch + 0.5 * (i % 2) * row) % 1 - 0.5, (v * pitch) % 1 - 0.5
    return np.tanh(12 * (0.15 + 0.08 * (i % 3) - np.hypot(du, dv)))


def rings(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Concentric rings and spirals: arms and frequency by class."""
    x, y = _grid(g, n, 0.4)
    return np.sin(np.hypot(x, y) * np.pi * (2.5 + i // 4) + (i % 4) * np.arctan2(y, x))


def noise(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Filtered noise: spectral slope and anisotropy by class."""
    fx, fy = np.fft.fftfreq(SIDE)[None, :], np.fft.fftfreq(SIDE)[:, None]
    angle = np.pi * (i % 4) / 4
    stretch = (1, 3)[i % 2]
    u, v = fx * np.cos(angle) + fy * np.sin(angle), (fy * np.cos(angle) - fx * np.sin(angle)) * stretch
    power = (np.hypot(u, v) + 1 / SIDE) ** -(0.4 + 0.35 * (i // 4))
    field = np.fft.ifft2(np.fft.fft2(g.normal(size=(n, SIDE, SIDE))) * power).real
    return np.tanh(field / field.std((1, 2), keepdims=True))


def bands(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Noise limited to a frequency band by class."""
    radius = np.hypot(np.fft.fftfreq(SIDE)[None, :], np.fft.fftfreq(SIDE)[:, None])
    centre = 0.06 + 0.4 * i / count
    field = np.fft.ifft2(np.fft.fft2(g.normal(size=(n, SIDE, SIDE))) * np.exp(-(((radius - centre) / 0.03) ** 2))).real
    return np.tanh(1.2 * field / field.std((1, 2), keepdims=True))


def gradients(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Smooth ramps: direction or shape, and exponent, by class."""
    x, y = _grid(g, n, 0.2)
    a = 2 * np.pi * i / count + g.normal(0, 0.05, (n, 1, 1))
    shape = (x * np.cos(a) + y * np.sin(a), np.hypot(x, y) * 1.4 - 1, np.maximum(abs(x), abs(y)) * 2 - 1)[i % 3]
    return np.sign(shape) * abs(np.clip(shape, -1, 1)) ** (0.6 + 0.5 * (i % 2))


def polygons(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Several regular polygons or stars of one kind: sides, depth and filling by class."""
    x, y = _grid(g, n, 0)
    sides, star, outline = 3 + i % 5, (i // 5) % 2, (i // 10) % 2
    out = np.full((n, SIDE, SIDE), -1.0)
    for _ in range(3):
        cx, cy = g.uniform(-0.8, 0.8, (2, n, 1, 1))
        radius, turn = g.uniform(0.25, 0.6, (n, 1, 1)), g.uniform(0, 2 * np.pi, (n, 1, 1))
        phase = (np.arctan2(y - cy, x - cx) + turn) % (2 * np.pi / sides) - np.pi / sides
        edge = (
            radius * (1 - 0.5 * star * (1 - 2 * abs(phase) * sides / (2 * np.pi))) / (np.cos(phase) if not star else 1)
        )
        inside = edge - np.hypot(x - cx, y - cy)
        out = np.maximum(out, np.tanh(15 * (0.06 - abs(inside) if outline else inside)))
    return out


def fractals(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Attractors of an iterated function system; the maps are the class."""
    maps = np.random.default_rng(7000 + i)
    k = 2 + i % 3
    linear = maps.uniform(-1, 1, (k, 2, 2))
    linear *= (maps.uniform(0.5, 0.8, k) / np.linalg.norm(linear, 2, (1, 2)))[:, None, None]
    shift = maps.uniform(-1, 1, (k, 2))
    out = np.empty((n, SIDE, SIDE))
    for j in range(n):
        matrix = linear + g.normal(0, 0.03, linear.shape)
        points = g.normal(size=(200, 2))
        cloud = []
        for step in range(20):
            which = g.integers(k, size=len(points))
            points = np.einsum("pij,pj->pi", matrix[which], points) + shift[which]
            if step >= 6:
                cloud.append(points)
        p = np.concatenate(cloud)
        p = (p - p.mean(0)) / (2.2 * p.std() + 1e-6) + g.normal(0, 0.1, 2)
        out[j] = np.histogram2d(p[:, 1], p[:, 0], SIDE, [[-1, 1], [-1, 1]])[0]
    return np.tanh(out) * 2 - 1


def cells(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Voronoi cells: number of seeds, metric and shading by class."""
    x, y = _grid(g, n, 0)
    seeds = g.uniform(-1, 1, (4 + 5 * (i // 3), 2, n, 1, 1))
    dx, dy = abs(x - seeds[:, 0]), abs(y - seeds[:, 1])
    distance = (np.hypot(dx, dy), dx + dy, np.maximum(dx, dy))[i % 3]
    nearest = np.partition(distance, 1, axis=0)[:2]
    return np.tanh(20 * (nearest[1] - nearest[0]) - 1.5) if i % 2 else 1 - 4 * nearest[0]


def blobs(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Soft blobs: number, size and elongation by class."""
    x, y = _grid(g, n, 0)
    out = np.full((n, SIDE, SIDE), -1.0)
    size, stretch = 0.12 + 0.1 * (i // 4), (1.0, 2.5)[i % 2]
    for _ in range(2 + 4 * (i % 4)):
        cx, cy, a = g.uniform(-1, 1, (n, 1, 1)), g.uniform(-1, 1, (n, 1, 1)), g.uniform(0, np.pi, (n, 1, 1))
        u, v = (x - cx) * np.cos(a) + (y - cy) * np.sin(a), (y - cy) * np.cos(a) - (x - cx) * np.sin(a)
        out = np.maximum(out, 2 * np.exp(-((u / size / stretch) ** 2) - (v / size) ** 2) - 1)
    return out


def scratches(g: np.random.Generator, n: int, i: int, count: int) -> Fields:
    """Many straight scratches: number, thickness and preferred direction by class."""
    x, y = _grid(g, n, 0)
    out = np.full((n, SIDE, SIDE), -1.0)
    for _ in range(6 + 4 * (i % 3)):
        a = np.pi * (i // 3) / 5 + g.normal(0, 0.25, (n, 1, 1))
        offset = g.uniform(-1.3, 1.3, (n, 1, 1))
        out = np.maximum(out, np.tanh(25 * (0.03 + 0.03 * (i % 2) - abs(x * np.cos(a) + y * np.sin(a) - offset))))
    return out


TEXTURES: dict[str, tuple[Callable[[np.random.Generator, int, int, int], Fields], int]] = {
    "grating": (gratings, 24),
    "stripe": (stripes, 15),
    "checker": (checkers, 12),
    "dot": (dots, 16),
    "ring": (rings, 16),
    "noise": (noise, 20),
    "band": (bands, 12),
    "gradient": (gradients, 18),
    "polygon": (polygons, 20),
    "fractal": (fractals, 24),
    "cell": (cells, 15),
    "blob": (blobs, 16),
    "scratch": (scratches, 15),
}


def textures(
    g: np.random.Generator, n: int, make: Callable[[np.random.Generator, int, int, int], Fields], i: int, count: int
) -> Images:
    """Class ``i`` of a family of ``count``, in colours."""
    return colourise(g, make(g, n, i, count))


def colourise(g: np.random.Generator, fields: Fields) -> Images:
    """Give each image two colours of clear contrast, its own contrast, and sensor noise."""
    n = len(fields)
    dark, light = g.uniform(0, 110, (n, 1, 1, 3)), g.uniform(140, 255, (n, 1, 1, 3))
    grey = g.random((n, 1, 1, 1)) < 0.3
    dark, light = (np.where(grey, c.mean(-1, keepdims=True), c) for c in (dark, light))
    flip = g.random((n, 1, 1, 1)) < 0.35
    back, front = np.where(flip, light, dark), np.where(flip, dark, light)
    mix = np.clip(fields[..., None] / 2 + 0.5, 0, 1)
    sensor = g.normal(0, 1, (n, SIDE, SIDE, 3)) * g.uniform(0, 18, (n, 1, 1, 1))
    return np.clip(back + (front - back) * mix + sensor + 0.5, 0, 255).astype(np.uint8)


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
