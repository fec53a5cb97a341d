"""Random numbers without a state: Philox4x32-10 (Salmon et al., *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011).

A bijection from a counter to 128 random bits: no number needs the one before it, so that threads, ranks and resumes change
nothing.

    key      (low, high 32 bits of the seed)
    counter  (low, high 32 bits of the record number, epoch, view << 16 | block)
"""

from __future__ import annotations

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(seed: int, record: np.ndarray, epoch: int | np.ndarray, view: int, block: int) -> np.ndarray:
    """Four random 32-bit words per record: int64 ``[n]`` -> uint64 ``[4, n]``, each below 2^32. ``epoch``: one, or ``[n]``."""
    wide = record.astype(np.uint64)
    return _philox4x32([wide & _LOW, wide >> _SHIFT, np.asarray(epoch).astype(np.uint64), np.uint64(view << 16 | block)], seed)


def _philox4x32(counter: list[np.ndarray], seed: int) -> np.ndarray:
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])
