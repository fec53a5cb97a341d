"""Small .beton files for the tests of the native loader, and what it holds of the machine."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton import format as fmt


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth colour image with some texture and sharp edges: uint8 ``[height, width, 3]``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16.0
    phase = rng.uniform(0, 6, (3, 1, 1))
    wave = 110 + 80 * np.sin(x + phase) * np.cos(0.7 * y + 2 * phase) + rng.normal(0, 6, (3, height, width))
    wave[:, height // 3 : height // 2, width // 4 : width // 2] += 60
    return np.ascontiguousarray(wave.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def jpeg(pixels: np.ndarray, mode: str = "RGB", quality: int = 90, **options: object) -> bytes:
    """Encoded with Pillow; ``options`` as Pillow names them: ``subsampling``, ``progressive``, ..."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def write(path: Path, payloads: list[bytes | np.ndarray], labels: list[int] | None = None) -> Beton:
    """JPEGs (bytes) and raw images (uint8 ``[h, w, 3]``); ``index`` is 1000 + the record number."""
    with BetonWriter(path, len(payloads)) as writer:
        for i, payload in enumerate(payloads):
            label = labels[i] if labels else i % 7
            if isinstance(payload, bytes):
                width, height = Image.open(io.BytesIO(payload)).size
                writer.append(payload, fmt.MODE_JPEG, width, height, label, 1000 + i)
            else:
                writer.append(payload.tobytes(), fmt.MODE_RAW, payload.shape[1], payload.shape[0], label, 1000 + i)
        writer.close()
    return Beton(path)


def decoded(beton: Beton, i: int) -> np.ndarray:
    """Record ``i`` as Pillow decodes it: uint8 ``[h, w, 3]``."""
    row = beton.images[i]
    if row["mode"] == fmt.MODE_RAW:
        return np.asarray(beton.payload(i)).reshape(row["height"], row["width"], 3)
    return np.asarray(Image.open(io.BytesIO(beton.payload(i).tobytes())).convert("RGB"))


def broken(path: Path, record: int, damage: bytes) -> Beton:
    """Overwrite the start of a record."""
    beton = Beton(path)
    start, size = int(beton.images["data_ptr"][record]), int(beton.sizes[record])
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(damage[:size])
    return Beton(path)


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
