"""What ``convert`` stores of damaged and odd JPEGs is read by every backend: what it keeps, it has read to its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from contract_cases import BOUNDS, by_index, one_pass
from native_files import jpeg, picture
from odd_jpegs import odd_jpegs

from dp4tl_fast.beton import Beton
from dp4tl_fast.beton.verify import verify
from dp4tl_fast.conversion.run import convert

MUTANTS = 160


@pytest.fixture(scope="module")
def mutants(folder: Path) -> Beton:
    """Of JPEGs with and without entry points, each with some bytes changed, some cut out, or whole."""
    rng = np.random.default_rng(11)
    files = [*odd_jpegs().values(), jpeg(picture(150, 140, 1))]
    root = folder / "mutants/a"
    root.mkdir(parents=True)
    for k in range(MUTANTS):
        data = bytearray(files[k % len(files)])
        if k >= len(files):
            for at in rng.integers(2, len(data), rng.integers(1, 4)):
                data[at] = rng.integers(256)
        if k % 5 == 4:
            at = int(rng.integers(2, len(data)))
            del data[at : at + int(rng.integers(1, 60))]
        (root / f"{k:03}").write_bytes(data)
    result = convert(str(root.parent), str(folder / "mutants.beton"), on_error="skip")
    assert result["skipped"] > 5 and sum(n for why, n in result["changed"].items() if "damaged JPEG" in why) > 5
    return Beton(folder / "mutants.beton")


def test_every_backend_reads_what_verify_calls_fine(backend: str, mutants: Beton) -> None:
    assert verify(mutants, decode=True)["records"] == mutants.num_samples
    found = by_index(one_pass(mutants, backend))
    expected = by_index(one_pass(mutants, "torchvision"))
    assert found.keys() == expected.keys() and len(found) == mutants.num_samples
    differences = sorted((found[i].float() - expected[i].float()).abs().mean().item() for i in found)
    mean, _ = BOUNDS[backend]
    # A changed quantisation table may make levels far above 255, which decoders clip in ways of their own.
    assert differences[len(differences) * 95 // 100] <= 2 * mean
