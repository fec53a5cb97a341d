"""Keep rules, and several targets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.mapping.keep import Keep, auto_cut
from dp4tl_fast.mapping.registry import Scores
from dp4tl_fast.pruning.choose import choose, in_turn

ORDER, SIZES = np.array([2, 0, 1, 3]), np.array([10, 30, 20, 40])  # in order: 20, 10, 30, 40 of 100 records


@pytest.mark.parametrize(
    ("keep", "count"),
    [
        ("0.5", 2), ("3", 3), ("samples:0.2", 1), ("samples:0.21", 2), ("samples:0.3", 2), ("samples:1", 4),
        ("budget:0.2", 1), ("budget:0.29", 1), ("budget:0.3", 2), ("budget:0.99", 3), ("budget:1.0", 4),
    ],
)  # fmt: skip
def test_rules(keep, count):
    assert Keep.parse(keep).cut(ORDER, SIZES, None) == count


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("samples:0", "above 0"), ("samples:", "above 0"),
        ("budget:nan", r"^`budget=nan`: .* 8epochs, needs `keep=auto`"), ("budget:0.1", "^`budget=0.1`: .* Give a larger one$"),
        ("auto", "no votes"), ("auto:0.9", "takes no number"), ("often", "give a fraction"), ("5", "1 to the source's 4"),
    ],
)  # fmt: skip
def test_rules_refused(keep, message):
    with pytest.raises(UsageError, match=message):
        Keep.parse(keep).cut(ORDER, SIZES, None)


def scores(values, votes=True):
    values = np.array(values)
    return Scores(values.astype(float), tie_breaks=np.zeros(len(values)), votes=values if votes else None)


# -- auto ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.booleans(), st.integers(0, 10**6), st.integers(0, 2**31))
def test_auto_is_a_halving_that_serves_the_target(votes, outputs, images, seed):
    votes, random = np.array(votes), np.random.default_rng(seed)
    sizes, probability = random.integers(1, 300, len(votes)), random.random(len(votes))
    order = np.argsort(-votes, kind="stable")
    total, least = sizes.sum(), sizes[order[:2]].sum()
    if not votes.sum() or 0 < images < least:
        with pytest.raises(UsageError, match="less than one epoch of the first two" if votes.sum() else "no target image voted"):
            auto_cut(order, sizes, votes, probability if outputs else None, images)
        return
    k = auto_cut(order, sizes, votes, probability if outputs else None, images)
    mass = probability if outputs else votes
    asked_for = sum(m / mass.sum() / (n / total) >= 1.5 for m, n in zip(mass, sizes, strict=True))
    covering = next(k for k in range(1, 31) if votes[order[:k]].sum() >= 0.6 * votes.sum() - 1e-9)
    wanted = sizes[order[: max(asked_for, covering)]].sum()
    halving = min((total / 2**j for j in range(12)), key=lambda limit: abs(np.log(limit / wanted)))
    while images > 0.7 * halving**1.5 and halving < total / 2 - 1e-9:  # seen too often
        halving *= 2
    limit = min(halving, images or np.inf)
    best = next(k for k in range(len(votes), 0, -1) if k <= 2 or sizes[order[:k]].sum() <= limit + 1e-9)
    assert k == max(best, min(2, len(votes)))


def test_auto_keeps_more_for_a_broad_target_and_for_a_surrogate_that_is_not_sure():
    order, sizes = np.arange(64), np.full(64, 10)
    narrow, broad = (1000 * 0.7 ** np.arange(64)).astype(int), np.full(64, 10)
    assert auto_cut(order, sizes, narrow) == 8 and auto_cut(order, sizes, broad) == 32
    unsure = 0.95 ** np.arange(64)  # 16 of them have half again their share, or more
    assert auto_cut(order, sizes, narrow, unsure) == 16


def test_one_epoch_of_what_auto_keeps_fits():
    votes, sizes = np.full(40, 10), np.full(40, 100)
    cuts = [Keep.within(f"{b}epochs", 0).cut(np.arange(40), sizes, votes) for b in (0.05, 0.25, 1, 4)]
    assert cuts == [2, 10, 20, 20]


def test_auto_keeps_more_for_a_long_pretraining():
    votes, sizes = (1000 * 0.85 ** np.arange(200)).astype(int), np.full(200, 200)
    cuts = [Keep.within(f"{b}epochs", 0).cut(np.arange(200), sizes, votes) for b in (2, 6, 7, 17, 18, 1000)]
    assert cuts == [25, 25, 50, 50, 100, 100]  # never all for this reason alone
    imagenet = np.full(200, 6400)  # many images teach for longer
    assert Keep.within("32epochs", 0).cut(np.arange(200), imagenet, votes) == 25


def test_budgets_in_three_units():
    assert Keep.within("8", 0).images(1000) == Keep.within("8 epochs", 0).images(1000) == 8000
    assert Keep.within("1epoch", 0).images(1000) == Keep.within("1000images", 0).images(5) == 1000
    assert Keep.within("0.5hours", 10).images(5) == Keep.within(".5 hour", 10).images(7) == 18_000
    assert Keep.parse("0.5").images(1000) == 0
    for budget in ("0", "0hours", "-1", "2days", "1hour"):
        with pytest.raises(UsageError, match="`images_per_s`" if budget == "1hour" else "above 0"):
            Keep.within(budget, 0)


A, B = scores([9, 8, 7, 0, 0, 0]), scores([0, 0, 0, 1, 2, 3])
ONES = np.ones(6, int)


def kept(merge, keep="2", reverse=False, sizes=ONES):
    return choose([A, B], [24, 6], sizes, Keep.parse(keep), merge, reverse).kept.tolist()


def test_merges():
    assert kept("sum") == [0, 1]  # the large target has all the say
    assert kept("union") == [0, 1, 4, 5]
    assert kept("turns") == [0, 5]
    assert kept("turns", "5") == [0, 5, 1, 4, 2]
    assert kept("sum", reverse=True) == [3, 4]
    assert kept("sum", sizes=np.array([0, 1, 1, 1, 1, 1])) == [1, 2]  # a class without records takes no place


@pytest.mark.parametrize("rule", [Keep.parse("budget:0.5"), Keep.within("0.5epochs", 0), Keep.within("3images", 0)])
def test_a_union_keeps_to_the_budget(rule):
    with pytest.raises(UsageError, match=r"`merge=union`: the targets together keep [456] records, but .* an epoch of 3\."):
        choose([A, B], [24, 6], ONES, rule, "union", False)
    assert len(choose([A, A], [24, 6], ONES, rule, "union", False).kept) <= 3  # they agree
    for merge in ("sum", "turns"):
        assert len(choose([A, B], [24, 6], ONES, rule, merge, False).kept) <= 3


def test_units_without_records_take_no_place_under_any_rule():
    """A copy of 4 of 10 classes keeps the list of all ten, and a surrogate may well vote for those that are gone."""
    sizes = np.array([0, 5, 0, 5, 0, 5, 0, 5, 0, 0])
    target = scores([30, 40, 30, 3, 30, 2, 30, 1, 30, 30])

    def kept(keep, target=target):
        return choose([target], [1], sizes, Keep.parse(keep), "sum", False).kept.tolist()

    assert kept("0.5") == [1, 3] and kept("1.0") == [1, 3, 5, 7] and kept("3") == [1, 3, 5]
    assert kept("auto") == [1, 3]  # the first has 40 of the 46 votes for classes that are there; two at least are kept
    with pytest.raises(UsageError, match="1 to the source's 4"):
        kept("5")
    with pytest.raises(UsageError, match="no target image voted"):
        kept("auto", scores([9, 0, 9, 0, 0, 0, 0, 0, 0, 0]))


def test_sum_weighs_tie_breaks_by_images():
    a, b = (Scores(np.zeros(2), tie_breaks=np.array(t)) for t in ([1.0, 0.0], [0.0, 1.0]))
    assert choose([a, b], [3, 1], np.ones(2, int), Keep.parse("1"), "sum", False).kept.tolist() == [0]
    assert choose([a, b], [1, 3], np.ones(2, int), Keep.parse("1"), "sum", False).kept.tolist() == [1]


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**31))
def test_in_turn_holds_every_unit_once(n, targets, seed):
    random = np.random.default_rng(seed)
    orders = [random.permutation(n) for _ in range(targets)]
    merged = in_turn(orders).tolist()
    assert sorted(merged) == list(range(n)) and merged[0] == orders[0][0]
    for k in range(1, n + 1):  # the first k of everyone are in by then
        assert set(np.concatenate([o[:k] for o in orders])) <= set(merged[: k * targets])


@pytest.mark.parametrize(
    ("keep", "count"), [("0.4", 4), ("0.41", 5), ("1.0", 10), ("0.0001", 1), ("1", 1), ("10", 10), ("0.3", 3)]
)
def test_keep_rules(keep, count):
    assert Keep.parse(keep).cut(np.arange(10), np.ones(10), None) == count


@pytest.mark.parametrize("keep", ["0", "0.0", "-0.5", "1.5", "11", "nan", "inf", "many", "", "²"])
def test_keep_out_of_range(keep):
    with pytest.raises(UsageError, match="`keep="):
        Keep.parse(keep).cut(np.arange(10), np.ones(10), None)
