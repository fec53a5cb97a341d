"""The soak for a few rounds (``make soak`` runs it for hours): what survives misfortune ends with the bits of what met none."""

import pytest

from benchmarks.soak import Findings, soak

pytestmark = pytest.mark.slow


def test_a_disturbed_pipeline_ends_as_an_undisturbed_one(tmp_path):
    found = Findings()
    soak(tmp_path, lambda rounds: rounds < 2, 4, found)
    assert not found.failures, "\n\n".join(found.failures)
    assert found.rounds == 2 and sum(found.survived.values()) >= 1  # the rest ended before it was hit
