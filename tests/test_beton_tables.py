"""The tables of a file are checked in pieces: whatever their order, and wherever something is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from native_files import jpeg, picture, write

from dp4tl_fast.beton import Beton, reader
from dp4tl_fast.beton import format as fmt
from dp4tl_fast.common.errors import BetonError, RecordError
from dp4tl_fast.kernels import _native
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.loaders.checks import check_tables

RECORDS = 30


@pytest.fixture(params=[4, 7, RECORDS, 1 << 16])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(reader, "PIECE", request.param)
    return request.param


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "x.beton", [jpeg(picture(40 + i, 30, i)) for i in range(RECORDS)]).path


def rewrite(file: Path, change) -> None:
    """Let ``change`` return other allocations for the file's, which lie at its end."""
    beton = Beton(file)
    data, start = file.read_bytes(), beton._alloc_ptr
    file.with_suffix(".info.zip").unlink(missing_ok=True)  # it belongs to other tables
    file.write_bytes(data[:start] + change(np.frombuffer(data[start:], fmt.ALLOCATION).copy()).tobytes())


def mixed(rows: np.ndarray) -> np.ndarray:
    """Another order, with allocations of other fields, which come before and after the images' own."""
    foreign = rows[[3, 3, 8]].copy()
    foreign["ptr"], foreign["size"] = 12345, 7
    return np.concatenate([foreign, rows[np.random.default_rng(0).permutation(len(rows))], foreign])


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("change", [mixed, lambda rows: np.concatenate([rows, rows[:1]]), lambda rows: rows[::-1]])
def test_sizes_do_not_depend_on_the_order_of_the_allocations(file: Path, change) -> None:
    expected = [len(jpeg(picture(40 + i, 30, i))) for i in range(RECORDS)]
    assert Beton(file).sizes.tolist() == expected
    rewrite(file, change)
    beton = Beton(file)
    assert beton.sizes.tolist() == expected and beton.sizes.dtype == np.int64
    with open_loader(file, None, LoaderSpec(batch_size=RECORDS, size=16)) as loader:
        assert len(next(iter(loader)).labels) == RECORDS


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("row", [0, 3, 4, 13, RECORDS - 1])
@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("sample_id", RECORDS, BetonError, f"allocation table names sample {RECORDS}, but there are only {RECORDS}"),
        ("sample_id", 2**64 - 1, BetonError, "allocation table names sample 18446744073709551615"),
        ("ptr", 1, RecordError, r"record {row} \(class \d+\) has -1 bytes"),
        ("size", 1 << 40, RecordError, r"record {row} \(class \d+\) has 1099511627776 bytes"),
        ("size", 2**64 - 5, RecordError, r"record {row} \(class \d+\) has -5 bytes"),
    ],
)
def test_a_wrong_allocation_is_found_anywhere(file: Path, row: int, field: str, value: int, error: type, message: str) -> None:
    def spoil(rows: np.ndarray) -> np.ndarray:
        rows[field][row] = value
        return rows

    rewrite(file, spoil)
    with pytest.raises(error, match=message.replace("{row}", str(row))):
        _ = Beton(file).sizes
    with pytest.raises(RuntimeError):
        _native.Beton(str(file))
    with pytest.raises(BetonError):
        open_loader(file)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("row", [0, 4, 6, 7, RECORDS - 1])
@pytest.mark.parametrize(("field", "value"), [("mode", 9), ("width", 0), ("height", 0), ("mode", fmt.MODE_RAW)])
def test_a_wrong_row_is_found_among_any_records(file: Path, row: int, field: str, value: int) -> None:
    beton = Beton(file)
    metadata = beton.metadata.copy()
    metadata[beton.fields["image"].column][field][row] = value
    beton.metadata = metadata
    for records in (np.arange(RECORDS), np.arange(row, RECORDS), np.unique([0, row, RECORDS - 1])):
        with pytest.raises(RecordError, match=rf"record {row} "):
            check_tables(beton, records)
    others = np.delete(np.arange(RECORDS), row)
    assert check_tables(beton, others) == check_tables(beton, others[::2]) == "jpeg"
