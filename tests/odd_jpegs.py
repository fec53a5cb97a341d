"""JPEGs that are unusual or incomplete, each in its way: what one leaves behind in a decoder, another might pick up."""

from __future__ import annotations

from native_files import jpeg, picture


def without(data: bytes, marker: int) -> bytes:
    """The JPEG without its segments of this marker, before the scan: 0xC4 for Huffman tables, 0xDB for quantisation tables."""
    kept, at = [data[:2]], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += [data[at:end]] * (data[at + 1] != marker)
        at = end
    return b"".join(kept) + data[at:]


def odd_jpegs() -> dict[str, bytes]:
    """JPEGs of 53 x 38 pixels that decode, by name."""
    pictures = iter(range(100))

    def image(**options: object) -> bytes:
        return jpeg(picture(53, 38, next(pictures)), **options)

    rgb = image(subsampling=0, keep_rgb=True)
    return {
        "plain": image(),
        "coarse": image(quality=20, subsampling=0),
        "optimised": image(quality=75, subsampling=1, optimize=True),
        "progressive": image(progressive=True),
        "restarts": image(quality=60, restart_marker_blocks=3),
        "grey": image(mode="L"),
        "CMYK": image(mode="CMYK"),
        "RGB": rgb,
        "Motion JPEG": without(image(quality=95), 0xC4),
        "grey Motion JPEG": without(image(quality=40, mode="L"), 0xC4),
        "no JFIF marker": without(image(), 0xE0),
        "shared table": image(qtables=[[9] * 64]),
    }


def incomplete_jpegs() -> dict[str, bytes]:
    """JPEGs of 53 x 38 pixels that cannot be decoded, for they lack what others bring."""
    plain = jpeg(picture(53, 38, 100))
    progressive = jpeg(picture(53, 38, 101), progressive=True)
    colour = jpeg(picture(53, 38, 102), qtables=[[5] * 64, [7] * 64])
    second = colour.index(b"\xff\xdb\x00\x43\x01")
    return {
        "no quantisation tables": without(plain, 0xDB),
        "no tables": without(without(plain, 0xDB), 0xC4),
        "no table of chroma": colour[:second] + colour[second + 69 :],
        "progressive, no Huffman tables": without(progressive, 0xC4),
    }
