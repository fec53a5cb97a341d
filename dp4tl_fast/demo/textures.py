"""Textures that have nothing to do with digits. A family is a function (generator, n, class number, classes in the family)
-> fields; ``textures`` gives them colours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SIDE = 32  # pixels

Images = np.ndarray  # uint8 [n, SIDE, SIDE, 3]
Fields = np.ndarray  # float [n, SIDE, SIDE], about -1 .. 1


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
