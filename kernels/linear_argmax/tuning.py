"""Tile sizes of the Triton kernel. ``python -m benchmarks gpu_day --stage 2`` measures CANDIDATES.

Nothing is tuned at run time: a new number of rows, columns or features must not cause a compilation.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory of the pipeline, a tile of x and one of w per stage, and of the reductions at the end."""
        return (self.rows + self.columns) * self.depth * itemsize * self.stages + SCRATCH_BYTES


SCRATCH_BYTES = 17 << 10  # upper bound of what the compiler uses for reductions, layout changes and barriers

# Best first on an H100; the first that fits the GPU's shared memory is taken.
SMALL = Tile(64, 64, 32, 4, 2)
HALF = (Tile(128, 256, 64, 8, 4), Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(128, 128, 32, 8, 3), SMALL)
SINGLE = (Tile(128, 128, 32, 8, 3), SMALL)  # 3xTF32 keeps two parts of each operand in registers
NARROW_COLUMNS = 64  # up to this many columns, wide tiles would be mostly padding
L2_SHARE = 0.5  # of the L2 cache, for blocks of x: on an H100 a third fits, and two thirds are already slower

CANDIDATES = (*HALF, Tile(128, 256, 32, 8, 6), Tile(256, 128, 64, 8, 4), Tile(128, 128, 64, 4, 3))


def pick(itemsize: int, columns: int, shared_bytes: int) -> Tile:
    """The tile for elements of ``itemsize`` bytes on a GPU with ``shared_bytes`` of shared memory per block."""
    tiles: tuple[Tile, ...] = HALF if itemsize == 2 else SINGLE
    if columns <= NARROW_COLUMNS:
        tiles = tuple(tile._replace(columns=NARROW_COLUMNS) for tile in tiles)
    return next((tile for tile in tiles if tile.shared_bytes(itemsize) <= shared_bytes), tiles[-1])


def pick_parts(tile: Tile, columns: int, row_bytes: int, l2_bytes: int) -> int:
    """How many programs share a block of rows so that the blocks at work fit the L2 cache: a power of two, at most the
    blocks of columns. ``row_bytes``: of one row of x, times the programs."""
    parts, blocks = 1, -(-columns // tile.columns)
    while 2 * parts <= blocks and tile.rows * row_bytes / parts > L2_SHARE * l2_bytes:
        parts *= 2
    return parts
