"""Tile sizes of the Triton kernel. ``python -m benchmarks gpu_day --stage 2`` measures CANDIDATES."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    elements: int  # of logits in one program at a time: rows x classes
    warps: int


CANDIDATES = (Tile(1024, 1), Tile(2048, 2), Tile(2048, 4), Tile(4096, 4), Tile(8192, 4), Tile(8192, 8))
DEFAULT = Tile(4096, 4)
MAX_CLASSES = 4096  # more classes are read in blocks of this many


def block_shape(tile: Tile, classes: int) -> tuple[int, int]:
    """(rows, classes) of one block; both are powers of two."""
    width = min(max(16, 1 << (classes - 1).bit_length()), MAX_CLASSES)
    return max(1, tile.elements // width), width
