"""Checksums are zlib's, whoever computes them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dp4tl_fast.beton import checksum
from dp4tl_fast.kernels import _native


@pytest.fixture(autouse=True, params=["native", "zlib"])
def who(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "native":
        monkeypatch.setattr(checksum, "_native", lambda: _native)  # also where it is the slower one
    else:
        monkeypatch.setattr(checksum, "_native", lambda: None)
    yield request.param


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=700), st.integers(0, 2**32 - 1), st.integers(0, 15))
def test_a_checksum_is_zlibs(who: str, data: bytes, value: int, start: int) -> None:
    expected = zlib.crc32(data[start:], value)
    for same in (data[start:], memoryview(data)[start:], np.frombuffer(data, np.uint8)[start:]):
        assert checksum.crc32(same, value) == expected


def test_checksums_of_many(who: str) -> None:
    payloads = [np.random.default_rng(n).bytes(n) for n in (0, 1, 15, 16, 63, 64, 65, 79, 80, 127, 128, 129, 1000, 100_000)]
    found = checksum.crc32s(payloads)
    assert found.dtype == np.uint32
    assert found.tolist() == [zlib.crc32(data) for data in payloads]
    assert checksum.crc32s([]).shape == (0,)
