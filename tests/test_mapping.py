"""Every method against a few lines of NumPy, or a loop, that say the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.mapping import baselines
from dp4tl_fast.mapping import feature_mapping as fm
from dp4tl_fast.mapping import label_mapping as lm
from dp4tl_fast.mapping.feature_mapping import class_groups, class_means, feature_mapping, kmeans_groups, nearest_groups
from dp4tl_fast.mapping.label_mapping import label_mapping
from dp4tl_fast.mapping.registry import METHODS, find

SEEDS = st.integers(0, 2**31)
FEW = settings(deadline=None, max_examples=25)


def labelled(seed, n, classes, d, low=-3, high=4):
    """Small integer features (ties abound, sums are exact) and labels of which some classes may have none."""
    random = np.random.default_rng(seed)
    return random.integers(low, high, (n, d)).astype(np.float32), random.integers(0, classes, n)


# -- label mapping ----------------------------------------------------------------------------------------------------


@FEW
@given(st.integers(1, 40), st.integers(2, 17), st.integers(1, 9), SEEDS)
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


@FEW
@given(st.integers(1, 60), st.integers(2, 12), st.integers(1, 9), st.booleans(), SEEDS)
def test_votes_by_target_class(m, classes, d, bias, seed):
    """Integers, so that every product is exact: one target class after the other through the plain definitions."""
    t, ty = labelled(seed, m, 5, d)
    _, y = labelled(seed + 1, 8 * classes, classes, d)
    classifier = torch.nn.Linear(d, classes, bias=bias)
    groups = fm.Groups("classes", torch.from_numpy(labelled(seed + 2, classes, 2, d)[0]), torch.from_numpy(y))
    with torch.no_grad():
        for weights in classifier.parameters():
            weights.copy_(weights.mul(10).round())
    features, labels = torch.from_numpy(t), torch.from_numpy(ty)
    for_lm, for_fm = lm.votes_by_target_class(features, labels, classifier), fm.votes_by_target_class(features, labels, groups)
    assert for_lm.dtype == for_fm.dtype == np.int64 and for_lm.shape == for_fm.shape == (ty.max() + 1, classes)
    for c in range(ty.max() + 1):
        rows = features[labels == c]
        assert for_lm[c].tolist() == label_mapping(classifier, [rows], classes).votes.tolist()
        assert for_fm[c].tolist() == (feature_mapping(rows, groups).votes.tolist() if len(rows) else [0] * classes)


# -- feature mapping --------------------------------------------------------------------------------------------------


@FEW
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 9), st.integers(1, 30), SEEDS)
def test_feature_mapping_by_class_means(n, classes, d, m, seed):
    x, y = labelled(seed, n, classes, d)
    t, _ = labelled(seed + 1, m, classes, d)
    groups = class_groups(torch.from_numpy(x), torch.from_numpy(y), classes)
    result = feature_mapping(torch.from_numpy(t), groups)

    there = np.unique(y)
    means = np.stack([x[y == c].mean(0, dtype=float) for c in there])
    distances = ((t[:, None].astype(float) - means[None]) ** 2).sum(2)  # [m, classes there]
    np.testing.assert_allclose(groups.centroids.numpy()[there], means, rtol=1e-6, atol=1e-7)  # float32 of a float64 mean
    assert result.votes.sum() == m and not result.votes[np.setdiff1d(np.arange(classes), there)].any()
    np.testing.assert_allclose(result.distance[there], distances.mean(0), rtol=1e-5, atol=1e-5)
    best, clear = distances.argmin(1), np.sort(distances, 1)[:, :2]
    if all(row[-1] - row[0] > 1e-3 for row in clear) and clear.shape[1] == 2:  # nothing within float32's reach of a tie
        assert result.votes.tolist() == np.bincount(there[best], minlength=classes).tolist()


def test_feature_mapping_votes_exactly_on_well_separated_classes():
    random = np.random.default_rng(0)
    means = random.normal(0, 10, (30, 8)).astype(np.float32)
    y = np.repeat(np.arange(30), 7)
    x = means[y] + random.normal(0, 0.1, (210, 8)).astype(np.float32)
    picks = random.integers(0, 30, 100)
    t = means[picks] + random.normal(0, 0.1, (100, 8)).astype(np.float32)
    groups = class_groups(torch.from_numpy(x), torch.from_numpy(y), 30)
    assert feature_mapping(torch.from_numpy(t), groups).votes.tolist() == np.bincount(picks, minlength=30).tolist()


def test_the_published_indexing_fault_is_not_ours():
    """The published script stores each distance under the sample's index instead of the class's: the first classes win."""
    classes, m = 20, 5
    centroids = torch.eye(classes) * 10
    t = centroids[13].repeat(m, 1)  # every target image is a perfect example of class 13

    published = np.zeros(classes, int)
    for i in range(m):
        distances = np.full(max(classes, m), np.inf)
        for c in range(classes):
            distances[i] = float((t[i] - centroids[c]).norm())  # the fault: [i] where [c] is meant
        published[distances.argmin()] += 1

    groups = class_groups(centroids, torch.arange(classes), classes)
    ours = feature_mapping(t, groups).votes
    assert published.tolist() == [1] * m + [0] * (classes - m)
    assert ours.tolist() == [0] * 13 + [m] + [0] * 6


def test_kmeans_groups_find_blobs_and_are_reusable():
    random = np.random.default_rng(1)
    blob = np.repeat(np.arange(6), 20)
    x = torch.from_numpy((np.eye(6)[blob] * 20 + random.normal(0, 0.5, (120, 6))).astype(np.float32))
    groups = kmeans_groups(x, 6, seed=3)
    assert all(len(set(groups.index.numpy()[blob == b])) == 1 for b in range(6)) and sorted(groups.sizes.tolist()) == [20] * 6
    assert torch.equal(nearest_groups(x, groups.centroids).index, groups.index)
    votes = feature_mapping(x[:25], groups).votes
    assert votes[groups.index[0]] == 20 and votes[groups.index[20]] == 5 and votes.sum() == 25
    with pytest.raises(UsageError, match="clusters=121"):
        kmeans_groups(x, 121, seed=0)
    with pytest.raises(UsageError, match="centroids of 6 features, but the surrogate has 4"):
        nearest_groups(x[:, :4], groups.centroids)


# -- baselines --------------------------------------------------------------------------------------------------------


@FEW
@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 5), st.floats(0.05, 1), SEEDS)
def test_moderate_keeps_the_middle_band_of_every_class(n, classes, d, fraction, seed):
    x, y = labelled(seed, n, classes, d)
    scores = baselines.moderate(torch.from_numpy(x), torch.from_numpy(y), classes)
    for c in np.unique(y):
        rows = np.flatnonzero(y == c)
        distance = np.linalg.norm(x[rows].astype(float) - np.median(x[rows], axis=0), axis=1)
        ranked = rows[np.argsort(distance, kind="stable")]
        count = max(1, round(fraction * len(rows)))
        kept = set(rows[np.argsort(-scores[rows], kind="stable")[:count]])
        low = (len(rows) - count) // 2
        bands = [set(ranked[a : a + count]) for a in (low, low + (len(rows) - count) % 2)]  # an odd rest: either side
        assert kept in bands


@FEW
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 5), SEEDS)
def test_class_medians_and_prototypes(n, classes, d, seed):
    x, y = labelled(seed, n, classes, d)
    medians = baselines.class_medians(torch.from_numpy(x), torch.from_numpy(y), classes).numpy()
    scores = baselines.prototypes(torch.from_numpy(x), torch.from_numpy(y), classes)
    for c in range(classes):
        rows = x[y == c]
        np.testing.assert_array_equal(medians[c], np.median(rows, axis=0) if len(rows) else np.zeros(d))
    expected = [np.linalg.norm(v - x[y == c].mean(0, dtype=float)) for v, c in zip(x, y, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)  # the mean is stored in float32


def test_ssl_prototypes():
    x = torch.tensor([[0.0], [2.0], [100.0], [104.0]])
    groups = kmeans_groups(x, 2, seed=0)
    assert baselines.ssl_prototypes(x, groups).tolist() == [1, 1, 2, 2]


@FEW
@given(st.integers(1, 20), st.integers(2, 9), SEEDS)
def test_el2n(n, classes, seed):
    random = np.random.default_rng(seed)
    logits, y = random.normal(0, 3, (n, classes)).astype(np.float32), random.integers(0, classes, n)
    e = np.exp(logits.astype(float))
    error = e / e.sum(1, keepdims=True) - np.eye(classes)[y]
    np.testing.assert_allclose(
        baselines.el2n(torch.from_numpy(logits), torch.from_numpy(y)), np.linalg.norm(error, axis=1), rtol=1e-4, atol=1e-6
    )  # fp32 softmax


@FEW
@given(st.integers(1, 50), st.integers(1, 6), SEEDS)
def test_ffmm_averages_the_middle_fifth(n, classes, seed):
    x, y = labelled(seed, n, classes, 3)
    groups = baselines.filtered_groups(torch.from_numpy(x), torch.from_numpy(y), classes)
    scores = baselines.moderate(torch.from_numpy(x), torch.from_numpy(y), classes)
    for c in np.unique(y):
        rows = np.flatnonzero(y == c)
        middle = rows[np.argsort(-scores[rows], kind="stable")[: int(np.ceil(0.2 * len(rows)))]]
        np.testing.assert_allclose(groups.centroids[c].numpy(), x[middle].mean(0, dtype=float), rtol=1e-6)
    assert groups.index.tolist() == y.tolist()


@pytest.mark.parametrize("median", [False, True])
def test_cmt(median):
    x, y = labelled(5, 80, 7, 4)
    y[y == 3] = 2  # class 3 has no record
    t, ty = labelled(6, 30, 4, 4)
    ty[ty == 1] = 0  # nor has target class 1
    scores = baselines.cmt(*map(torch.from_numpy, (x, y)), 7, *map(torch.from_numpy, (t, ty)), median)
    centre = np.median if median else np.mean
    targets = [centre(t[ty == c].astype(float), axis=0) for c in np.unique(ty)]
    for c in np.unique(y):
        own = centre(x[y == c].astype(float), axis=0)
        assert scores[c] == pytest.approx(-np.mean([np.linalg.norm(own - other) for other in targets]), rel=1e-5)
    assert scores[3] == min(scores)


def test_handpicked():
    names = ["cat", "dog", "3", "ship"]
    assert baselines.handpicked(["ship", "0"], names).tolist() == [1, 0, 0, 1]
    assert baselines.handpicked(["name:3"], names).tolist() == [0, 0, 1, 0]
    with pytest.raises(UsageError, match="`classes=3`: is the name of class 2 and the id of class 'ship'"):
        baselines.handpicked(["3"], names)
    for bad in ("horse", "4", "-1"):
        with pytest.raises(UsageError, match=f"`classes={bad}"):
            baselines.handpicked([bad], names)


def test_random_is_seeded():
    for draw in (baselines.random_classes, baselines.random_samples):
        assert sorted(draw(9, 1)) == list(range(9)) and draw(9, 1).tolist() == draw(9, 1).tolist() != draw(9, 2).tolist()


@FEW
@given(st.integers(1, 6), st.integers(1, 12), SEEDS)
def test_forgetting_counts_falls_from_right_to_wrong(n, epochs, seed):
    from dp4tl_fast.training.forgetting import Forgetting
    from dp4tl_fast.training.supervised import Supervised

    history = np.random.default_rng(seed).integers(0, 2, (epochs, n)).astype(bool)
    watch = Forgetting(Supervised(), np.arange(n)[::-1].copy())
    for epoch in history:
        for part in torch.randperm(n).split(2):
            watch.update(part, torch.from_numpy(epoch)[part])
    falls = (history[:-1] & ~history[1:]).sum(0)
    never = ~history.any(0)
    assert watch.counts().tolist() == np.where(never, falls.max() + 1, falls).tolist()


# -- the registry -----------------------------------------------------------------------------------------------------


def test_unknown_methods_list_the_known():
    with pytest.raises(UsageError) as error:
        find("magic")
    assert all(name in str(error.value) for name in METHODS)


def test_class_means_of_many_rows_are_exact():
    x = torch.full((200_003, 1), 0.1)  # float32 sums of so many would be off in the fourth digit
    assert float(class_means(x, torch.zeros(len(x), dtype=torch.int64), 1)) == pytest.approx(0.1, rel=1e-7)
