"""Label mapping against a ten-line NumPy count."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dp4tl_fast.mapping.label_mapping import label_mapping


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(2, 17), st.integers(1, 9), st.integers(0, 2**31))
def test_votes_and_probabilities(n, classes, batch, seed):
    # Few distinct logits, so that ties within a row are common: the lowest class takes the vote.
    logits = np.random.default_rng(seed).integers(0, 3, (n, classes)).astype(np.float32)
    result = label_mapping(torch.nn.Identity(), torch.from_numpy(logits).split(batch), classes)

    votes = np.zeros(classes, int)
    for row in logits:
        votes[int(np.argmax(row))] += 1
    e = np.exp(logits)
    assert result.votes.tolist() == votes.tolist()
    np.testing.assert_allclose(result.probability, (e / e.sum(1, keepdims=True)).mean(0), rtol=1e-5)  # fp32 softmax


def test_no_images():
    result = label_mapping(torch.nn.Identity(), [], 4)
    assert result.votes.tolist() == [0] * 4 and result.probability.tolist() == [0.0] * 4
