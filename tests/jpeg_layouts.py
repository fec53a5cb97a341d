"""JPEGs of layouts that Pillow does not write: flat 8 x 8 blocks, DC coefficients only, in any order of scans."""

from __future__ import annotations

import struct
from collections.abc import Sequence

DC_BITS = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]  # T.81, table K.3
YCC = ((1, 2, 2), (2, 1, 1), (3, 1, 1))  # id, horizontal and vertical sampling factor of every component


def _codes(counts: list[int]) -> list[tuple[int, int]]:
    code, found = 0, []
    for length, count in enumerate(counts, 1):
        for _ in range(count):
            found.append((code, length))
            code += 1
        code <<= 1
    return found


DC = _codes(DC_BITS)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


class _Bits:
    def __init__(self) -> None:
        self._buffer = self._count = 0
        self.out = bytearray()

    def put(self, value: int, length: int) -> None:
        self._buffer, self._count = self._buffer << length | value, self._count + length
        while self._count >= 8:
            byte = self._buffer >> (self._count - 8) & 255
            self._count -= 8
            self.out += bytes([byte, 0] if byte == 255 else [byte])
        self._buffer &= (1 << self._count) - 1

    def flush(self) -> None:
        if self._count:
            self.put((1 << (8 - self._count)) - 1, 8 - self._count)


def odd_jpeg(
    width: int = 150,
    height: int = 110,
    components: Sequence[tuple[int, int, int]] = YCC,
    scans: Sequence[Sequence[int]] = (),
    restart: int = 0,
    before: bytes = b"",
) -> bytes:
    """A JPEG whose ``scans`` are lists of component positions; none is one interleaved scan. ``before``: segments after SOI."""
    across, down = max(c[1] for c in components), max(c[2] for c in components)
    out = bytearray(b"\xff\xd8") + before + segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0")
    out += segment(0xDB, b"\0" + bytes([8] + [1] * 63))
    frame = b"".join(bytes([i, a << 4 | b, 0]) for i, a, b in components)
    out += segment(0xC0, struct.pack(">BHHB", 8, height, width, len(components)) + frame)
    out += segment(0xC4, b"\0" + bytes(DC_BITS) + bytes(range(12))) + segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0")
    out += segment(0xDD, struct.pack(">H", restart)) if restart else b""
    for scan in scans or [list(range(len(components)))]:
        out += segment(0xDA, bytes([len(scan)]) + b"".join(bytes([components[c][0], 0]) for c in scan) + b"\0\x3f\0")
        out += _scan(scan, components, width, height, across, down, restart)
    return bytes(out) + b"\xff\xd9"


def _up(n: int, step: int) -> int:
    return -(n // -step)


def _scan(
    scan: Sequence[int], components: Sequence[tuple[int, int, int]], width: int, height: int, across: int, down: int, restart: int
) -> bytes:
    units: list[list[tuple[int, int, int]]] = []
    if len(scan) == 1:
        c = scan[0]
        _, a, b = components[c] if len(components) > 1 else (0, across, down)
        wide, high = _up(_up(width * a, across), 8), _up(_up(height * b, down), 8)
        units = [[(c, x, y)] for y in range(high) for x in range(wide)]
    else:
        wide, high = _up(width, 8 * across), _up(height, 8 * down)
        for y in range(high):
            for x in range(wide):
                blocks = [(c, components[c][1], components[c][2]) for c in scan]
                units.append([(c, x * a + i, y * b + j) for c, a, b in blocks for j in range(b) for i in range(a)])
    bits, last = _Bits(), dict.fromkeys(scan, 0)
    for n, unit in enumerate(units):
        if restart and n and n % restart == 0:
            bits.flush()
            bits.out += bytes([0xFF, 0xD0 + (n // restart - 1) % 8])
            last = dict.fromkeys(scan, 0)
        for c, x, y in unit:
            dc = (x * 37 + y * 91 + c * 53) % 150 + 50 - 128
            difference, last[c] = dc - last[c], dc
            size = abs(difference).bit_length()
            bits.put(*DC[size])
            if size:
                bits.put(difference if difference > 0 else difference + (1 << size) - 1, size)
            bits.put(0, 1)  # end of block
    bits.flush()
    return bytes(bits.out)
