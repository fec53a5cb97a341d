"""Both directions of the file format, over sizes, modes and page sizes: what FFCV writes we read, and the other way round."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton.format import MODE_JPEG, MODE_RAW
from dp4tl_fast.loaders import LoaderSpec, open_loader

DUMP = Path(__file__).with_name("ffcv_dump.py")
SIDES = st.tuples(st.integers(1, 90), st.integers(1, 90))


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Smooth shades: what JPEG and a resize leave recognisable."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    rng = np.random.default_rng(seed)
    planes = [np.clip(255 * (a + (b - a) * x + c * y), 0, 255) for a, b, c in rng.random((3, 3)) * (1, 1, 0.4)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


@settings(max_examples=6)
@given(
    sizes=st.lists(SIDES, min_size=1, max_size=14), mode=st.sampled_from(["raw", "jpg", "smart", "proportion"]),
    page=st.sampled_from([2**21, 2**23]), workers=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_what_ffcv_writes_we_read(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], mode: str, page: int, workers: int, seed: int
) -> None:
    from ffcv.fields import FloatField, IntField, RGBImageField
    from ffcv.fields.rgb_image import encode_jpeg
    from ffcv.writer import DatasetWriter

    path = tmp_path_factory.mktemp("ffcv") / "f.beton"
    images = [picture(size, seed + i) for i, size in enumerate(sizes)]
    field = RGBImageField(write_mode=mode, smart_threshold=5000, compress_probability=0.5, jpeg_quality=95)
    fields = {"weight": FloatField(), "image": field, "label": IntField()}
    writer = DatasetWriter(str(path), fields, num_workers=workers, page_size=page)
    writer.from_indexed_dataset([(0.5, image, i % 3) for i, image in enumerate(images)])

    beton = Beton(path)
    assert beton.num_samples == len(sizes) and beton.page_size == page
    assert beton.labels.tolist() == [i % 3 for i in range(len(sizes))]
    assert list(zip(beton.images["width"].tolist(), beton.images["height"].tolist(), strict=True)) == sizes
    for i, image in enumerate(images):
        payload, raw = beton.payload(i), beton.images["mode"][i] == MODE_RAW
        if raw:
            assert bytes(payload) == image.tobytes()
        else:
            assert bytes(payload) == encode_jpeg(np.asarray(image), 95).tobytes()
    spec = LoaderSpec(batch_size=4, size=16, transform="resize", exact=True, with_index=True)
    with open_loader(beton, spec=spec) as loader:
        found = {int(i): x for batch, _, index in loader for i, x in zip(index, batch, strict=True)}
    for i, image in enumerate(images):
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR), int)
        assert np.abs(found[i].permute(1, 2, 0).numpy() - expected).mean() < 12


@given(
    sizes=st.lists(SIDES, min_size=1, max_size=12), raw=st.lists(st.booleans(), min_size=12, max_size=12),
    page=st.sampled_from([2**21, 2**22]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=10)
def test_what_we_write_is_a_file_of_ffcvs(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], raw: list[bool], page: int, seed: int
) -> None:
    """The same tables as FFCV's own reader sees them."""
    from ffcv.reader import Reader

    path = tmp_path_factory.mktemp("ours") / "o.beton"
    payloads = []
    with BetonWriter(path, len(sizes), page_size=page) as writer:
        for i, (size, as_pixels) in enumerate(zip(sizes, raw, strict=False)):
            data = io.BytesIO()
            image = picture(size, seed + i)
            image.save(data, "JPEG")
            payloads.append(image.tobytes() if as_pixels else data.getvalue())
            writer.append(payloads[-1], MODE_RAW if as_pixels else MODE_JPEG, *size, label=i % 5, index=7 * i)
        writer.close()
    reader = Reader(str(path))
    assert reader.num_samples == len(sizes) and reader.page_size == page
    assert [h.__name__ if isinstance(h, type) else type(h).__name__ for h in reader.handlers.values()] == [
        "RGBImageField", "IntField", "IntField",
    ]  # fmt: skip
    assert reader.metadata["f1"].tolist() == [i % 5 for i in range(len(sizes))]
    assert reader.metadata["f2"].tolist() == [7 * i for i in range(len(sizes))]
    whole = path.read_bytes()
    by_pointer = {int(row["ptr"]): int(row["size"]) for row in reader.alloc_table}
    for payload, image in zip(payloads, reader.metadata["f0"], strict=True):
        start = int(image["data_ptr"])
        assert whole[start : start + by_pointer[start]] == payload
        assert start // page == (start + len(payload) - 1) // page, "no record straddles a page"


def test_ffcv_decodes_jpegs_with_entry_points(tmp_path: Path) -> None:
    """An index changes nothing for a reader that does not know it: the same pixels, sizes and order."""
    from dp4tl_fast.kernels import _native

    for name in ("plain", "indexed"):
        with BetonWriter(tmp_path / f"{name}.beton", 6) as writer:
            for i in range(6):
                data = io.BytesIO()
                picture((300 - 20 * i, 150 + 31 * i), i).save(data, "JPEG", subsampling=i % 3)
                jpeg = data.getvalue()
                payload = _native.jpeg_add_index(jpeg) if name == "indexed" else jpeg
                assert (payload != jpeg) == (name == "indexed")
                writer.append(payload, MODE_JPEG, 300 - 20 * i, 150 + 31 * i, label=i, index=i)
            writer.close()
    out = tmp_path / "dump.npz"
    names = [str(tmp_path / f"{n}.beton") for n in ("plain", "indexed")]
    subprocess.run([sys.executable, str(DUMP), str(out), *names], check=True, capture_output=True)
    found = np.load(out)
    for what in ("images", "labels", "index"):
        assert np.array_equal(found[f"{names[0]}:{what}"], found[f"{names[1]}:{what}"])
