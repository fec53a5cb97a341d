"""Soft mapping: shares of the votes, and the whole numbers that they become."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.mapping.shares import apportion, shares

VOTES, SIZES = np.array([6, 0, 3, 1, 9]), np.array([10, 20, 30, 40, 0])


def test_votes_become_shares():
    np.testing.assert_allclose(shares(VOTES, SIZES, 0), [0.6, 0, 0.3, 0.1, 0], rtol=1e-15)
    np.testing.assert_allclose(shares(VOTES, SIZES, 0.5), [0.35, 0.1, 0.3, 0.25, 0], rtol=1e-15)
    np.testing.assert_allclose(shares(VOTES, SIZES, 1), SIZES / 100, rtol=1e-15)
    with pytest.raises(UsageError, match="no target image voted for anything with records"):
        shares(np.array([0, 0, 0, 0, 9]), SIZES, 0.5)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300).filter(any), st.integers(0, 10**6))
def test_equal_shares_of_all_records_are_all_records(sizes, seed):
    """So that the hard cut comes out exactly, whatever the sizes."""
    sizes = np.array(sizes)
    there = np.flatnonzero(sizes)
    kept = np.random.default_rng(seed).permutation(there)[: 1 + seed % len(there)]
    counts = apportion(shares(np.where(np.isin(np.arange(len(sizes)), kept), sizes, 0), sizes, 0), int(sizes[kept].sum()))
    assert counts[kept].tolist() == sizes[kept].tolist() and counts.sum() == sizes[kept].sum()


SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=50).filter(lambda x: sum(x) > 1e-3)


@given(SHARES, st.integers(1, 10**5), st.integers(1, 10**4))
@example([1.0, 2.2250738585072014e-308], 9, 5)  # what the cap takes, over a share next to zero
@example([1.0, 5e-324, 5e-324], 9, 5)
def test_whole_numbers_of_the_right_sum(h, total, most):
    h = np.array(h) / sum(h)
    plain = apportion(h, total)
    assert plain.sum() == total and (np.abs(plain - h * total) < 1 + 1e-6).all()
    capped = apportion(h, total, most)
    assert capped.max() <= most and (capped[h == 0] == 0).all()
    assert capped.sum() == min(total, most * np.count_nonzero(h))
    assert (capped >= np.minimum(plain - 1, most)).all()  # a cap takes from none but the capped


def test_what_a_cap_takes_goes_to_the_others_in_proportion():
    assert apportion(np.array([0.7, 0.2, 0.1]), 100, 40).tolist() == [40, 40, 20]
    assert apportion(np.array([0.5, 0.25, 0.25]), 10).tolist() == [5, 3, 2]  # equal remainders: the lower id
