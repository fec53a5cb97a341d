"""``label_counts``: native (per instruction set) and Triton against the plain reference, exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    DTYPES,
    IMPLEMENTATIONS,
    LAYOUTS,
    ROWS,
    SEEDS,
    SIZES,
    SOME,
    device_of,
    generator,
    group_ids,
    integers,
    strided,
)

from dp4tl_fast.common.errors import BackendError, UsageError
from dp4tl_fast.kernels import _native, label_counts
from dp4tl_fast.kernels.label_counts import native_impl, tuning
from dp4tl_fast.kernels.label_counts.native_impl import label_counts as native_label_counts
from dp4tl_fast.kernels.label_counts.reference import label_counts as reference


def special(logits: torch.Tensor, seed: int) -> torch.Tensor:
    """Sprinkle infinities and NaNs, and make one row all equal and one all -inf."""
    kind = integers(seed + 1, *logits.shape, high=60)
    logits = logits.masked_fill(kind == 60, torch.inf).masked_fill(kind == 59, -torch.inf)
    logits = logits.masked_fill(kind == 58, torch.nan)
    for row, value in enumerate((0.0, -torch.inf)):
        logits[row : row + 1] = value
    return logits


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@SOME
@given(
    rows=ROWS, classes=SIZES, groups=st.sampled_from([None, 1, 2, 7]), dtype=st.sampled_from(DTYPES), layout=LAYOUTS,
    seed=SEEDS,
)  # fmt: skip
def test_equals_reference(implementation, rows, classes, groups, dtype, layout, seed):
    device = device_of(implementation)
    logits = strided(special(integers(seed, rows, classes), seed).to(dtype).to(device), layout)
    group = None if groups is None else group_ids(seed, rows, groups).to(device)
    got = label_counts(logits, classes, group, groups=groups, nan="skip", implementation=implementation)
    expected, _ = reference(logits, group, groups or 1)
    assert got.dtype == torch.int64
    assert torch.equal(got, expected if groups else expected[0])


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 3, 31, 32, 33, 63, 64, 65, 200, 1000, 5001])
def test_every_instruction_set(isa, dtype, classes):
    logits = special(torch.randn(300, classes, generator=generator(1)), classes).to(dtype)
    counts, first_nan = native_label_counts(logits, None, 1, isa)
    expected, expected_nan = reference(logits, None, 1)
    assert torch.equal(counts, expected) and first_nan == expected_nan


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [20, 70, 100])
def test_signed_zeros_tie_and_negative_nans_are_seen(isa, dtype, classes):
    logits = torch.full((2, classes), -1.0, dtype=dtype)
    logits[:, 3], logits[:, 17] = -0.0, 0.0
    logits[1, 18] = -torch.tensor(torch.nan, dtype=dtype)
    counts, first_nan = native_label_counts(logits, None, 1, isa)
    assert counts[0, 3] == 1 == counts.sum() and first_nan == 1


@pytest.mark.parametrize("isa", _native.isas())
def test_every_pair_of_float16_is_ordered_at_every_place(isa):
    # Each finite value and infinity once, in random order: rows of 97 columns, each with its largest in a random place.
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = every[~every.isnan()]
    for seed in range(5):
        rows = every[torch.randperm(len(every), generator=generator(seed))][: len(every) // 97 * 97].view(-1, 97)
        assert torch.equal(native_label_counts(rows, None, 1, isa)[0], reference(rows, None, 1)[0])


def test_instruction_sets_are_a_ladder_and_unknown_ones_are_refused():
    assert _native.isas() == ["baseline", "avx2", "avx512"][: len(_native.isas())]
    with pytest.raises(RuntimeError, match=r"'sse9' is unknown or not supported on this CPU\. Available: auto, baseline"):
        native_label_counts(torch.zeros(1, 1), None, 1, "sse9")


def test_float16_widens_every_bit_pattern():
    # The baseline decodes float16 by hand: each value must beat the next smaller one, subnormals included.
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = every[~every.isnan()]
    ordered = every[every.float().argsort(stable=True)]
    pairs = torch.stack([ordered[:-1], ordered[1:]], dim=1)
    for isa in _native.isas():
        got, _ = native_label_counts(pairs, None, 1, isa)
        assert torch.equal(got, reference(pairs, None, 1)[0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ties_go_to_the_lowest_class(implementation):
    logits = torch.zeros(5, 300, device=device_of(implementation))
    assert label_counts(logits, 300, implementation=implementation)[0] == 5
    logits[:, [77, 78, 299]] = 1
    assert label_counts(logits, 300, implementation=implementation)[77] == 5
    logits[:] = -torch.inf
    assert label_counts(logits, 300, implementation=implementation)[0] == 5


@pytest.mark.parametrize("classes", [16, 17, 31, 33, 70])
def test_triton_walks_many_classes_in_blocks(classes, monkeypatch):
    monkeypatch.setattr(tuning, "MAX_CLASSES", 16)
    logits = special(integers(classes, 200, classes), classes).to(device_of("triton"))
    got = label_counts(logits, classes, nan="skip", implementation="triton")
    assert torch.equal(got, reference(logits, None, 1)[0][0])


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("columns_first", [False, True])
def test_nan_is_an_error_that_names_the_first_row(implementation, columns_first, monkeypatch):
    monkeypatch.setattr(native_impl, "CHUNK_ELEMENTS", 40)  # several chunks
    logits = torch.zeros(100, 10, device=device_of(implementation))
    logits[[41, 93], 7] = torch.nan
    logits = logits.T.contiguous().T if columns_first else logits
    with pytest.raises(UsageError, match="row 41 of logits has a NaN"):
        label_counts(logits, 10, implementation=implementation)
    assert label_counts(logits, 10, nan="skip", implementation=implementation).tolist() == [98] + [0] * 9


@pytest.mark.parametrize("group", [[0, 3, 1], [0, -1, 1]])
def test_group_ids_out_of_range(group):
    with pytest.raises(UsageError, match=r"must lie in \[0, 3\)"):
        label_counts(torch.zeros(3, 2), 2, torch.tensor(group), groups=3)


def test_native_module_checks_group_ids_itself():
    counts = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"group id 2 of row 0 is out of range: it must lie in \[0, 2\)"):
        _native.label_counts(torch.zeros(1, 4), torch.tensor([2]), counts, 1)


def test_native_module_refuses_results_that_it_would_have_to_convert():
    """A converted copy would take the counts, and the caller's would stay as they were."""
    for counts in (torch.zeros(1, 4, dtype=torch.int32), torch.zeros(4, 2, dtype=torch.int64).T[:1]):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            _native.label_counts(torch.zeros(1, 4), None, counts, 1)


def test_groups_are_counted_apart_and_default_to_the_largest_id():
    logits = torch.eye(3)
    counts = label_counts(logits, 3, torch.tensor([4, 0, 4], dtype=torch.uint8))
    assert counts.shape == (5, 3) and counts[4].tolist() == [1, 0, 1] and counts.sum() == 3


@pytest.mark.parametrize(
    ("logits", "classes", "message"),
    [
        (torch.zeros(3), 3, "expected .rows, columns."),
        (torch.zeros(3, 0), 0, "at least one column"),
        (torch.zeros(3, 4), 5, "num_classes=5"),
        (torch.zeros(3, 4, dtype=torch.float64), 4, "expected float32"),
    ],
)
def test_bad_arguments(logits, classes, message):
    with pytest.raises(UsageError, match=message):
        label_counts(logits, classes)


def test_explicit_implementations_never_fall_back(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="needs a CUDA device"):
        label_counts(torch.zeros(1, 1), 1, implementation="triton")
    with pytest.raises(UsageError, match="use one of auto, native, triton, reference"):
        label_counts(torch.zeros(1, 1), 1, implementation="cuda")


def test_any_number_of_threads_gives_the_same_counts():
    logits = torch.randn(20_000, 50, generator=generator(0))
    expected = label_counts(logits, 50, implementation="reference")
    for threads in (1, 2, 3, 7):
        counts = torch.zeros(1, 50, dtype=torch.int64)
        _native.label_counts(logits, None, counts, threads)
        assert torch.equal(counts[0], expected)
