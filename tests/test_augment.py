"""Crop and mirror parameters: the generator against published vectors, boxes against torchvision's rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_fast.common.philox import _philox4x32
from dp4tl_fast.loaders import LoaderSpec
from dp4tl_fast.loaders.augment import center_boxes, parameters


def test_philox_matches_the_known_answers_of_random123() -> None:
    # Random123's kat_vectors, philox4x32 with 10 rounds: the all-zero and the all-one counter and key.
    for word, want in (
        (0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (2**32 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ):
        got = _philox4x32([np.array([word], np.uint64)] * 4, word << 32 | word)
        assert [int(x) for x in got[:, 0]] == want


SIDES = st.integers(1, 3000)


@given(
    st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=20),
    st.sampled_from(["random_resized_crop", "center_crop", "resize"]),
    st.integers(0, 2**63 - 1),
    st.integers(0, 1000),
)
def test_boxes_lie_inside_the_image(sides: list[tuple[int, int]], transform: str, seed: int, epoch: int) -> None:
    h, w = np.array(sides).T
    boxes, mirror = parameters(LoaderSpec(transform=transform, seed=seed), epoch, np.arange(len(h)), h, w)
    assert boxes.shape == (len(h), 4)
    assert boxes.dtype == np.int64
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, 0] + boxes[:, 2] <= h).all()
    assert (boxes[:, 1] + boxes[:, 3] <= w).all()
    assert not mirror.any()


def test_a_record_gets_the_same_box_alone_or_in_a_batch() -> None:
    spec = LoaderSpec(transform="random_resized_crop", flip=True, seed=2**40 + 3)
    records, h, w = np.arange(500), np.full(500, 375), np.full(500, 500)
    boxes, mirror = parameters(spec, 7, records, h, w, view=1)
    for i in (0, 17, 499):
        one_box, one_mirror = parameters(spec, 7, records[[i]], h[[i]], w[[i]], view=1)
        assert (one_box[0] == boxes[i]).all()
        assert one_mirror[0] == mirror[i]


@pytest.mark.parametrize(("name", "change"), [("epoch", (1, 0)), ("view", (0, 1))])
def test_another_epoch_or_view_gives_other_boxes(name: str, change: tuple[int, int]) -> None:
    spec = LoaderSpec(transform="random_resized_crop", flip=True)
    h = w = np.full(300, 256)
    first, mirror = parameters(spec, 0, np.arange(300), h, w, view=0)
    other, other_mirror = parameters(spec, change[0], np.arange(300), h, w, view=change[1])
    assert (first != other).any(axis=1).mean() > 0.95
    assert 0.3 < (mirror != other_mirror).mean() < 0.7


def test_random_boxes_are_distributed_as_torchvisions() -> None:
    import torch
    from torchvision.transforms import RandomResizedCrop

    n, h, w = 4000, 375, 500
    boxes, mirror = parameters(
        LoaderSpec(transform="random_resized_crop", flip=True), 0, np.arange(n), np.full(n, h), np.full(n, w)
    )
    torch.manual_seed(0)
    image = torch.empty(3, h, w)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    # Means of two samples of 4,000: five standard errors of their difference. Seeded, so it never flickers.
    error = 5 * np.sqrt(boxes.var(axis=0) / n + theirs.var(axis=0) / n)
    assert (np.abs(boxes.mean(axis=0) - theirs.mean(axis=0)) < error).all()
    assert abs(mirror.mean() - 0.5) < 5 * 0.5 / np.sqrt(n)


def test_center_boxes_round_as_ffcv() -> None:
    h, w = np.array([375, 500, 1, 33]), np.array([500, 333, 1, 8])
    want = [[23, 86, 328, 328], [104, 21, 291, 291], [0, 0, 1, 1], [13, 0, 7, 7]]
    assert center_boxes(h, w, 224 / 256).tolist() == want
