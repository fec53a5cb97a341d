"""The selection: ranking, set operations, the file, and its refusal of another source."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton.format import MODE_RAW
from dp4tl_fast.beton.sidecars import sidecar
from dp4tl_fast.common.errors import SelectionError
from dp4tl_fast.selection import Selection, rank, records_of


def write_beton(path, labels):
    """One-pixel raw records with these labels."""
    with BetonWriter(path, capacity=len(labels)) as writer:
        for i, label in enumerate(labels):
            writer.append(bytes([label % 256, i % 256, 7]), MODE_RAW, 1, 1, label=int(label), index=i)
        writer.close()
    return Beton(path)


@pytest.fixture
def source(tmp_path):
    return write_beton(tmp_path / "source.beton", [0, 0, 1, 2, 2, 2, 3, 4])


def select(beton, kept, scores=(5, 4, 3, 2, 1)):
    return Selection.of_classes(beton, np.array(kept), method="lm", scores=np.array(scores, float))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_rank_is_by_score_then_tie_break_then_id(pairs):
    scores, ties = np.array(pairs, float).T
    expected = sorted(range(len(pairs)), key=lambda c: (-scores[c], -ties[c], c))
    assert rank(scores, ties).tolist() == expected


def test_indices_are_the_records_of_the_kept_classes(source):
    assert select(source, [2, 0]).indices(source).tolist() == [0, 1, 3, 4, 5]
    assert select(source, [2, 0]).kept_samples == 5


@pytest.mark.parametrize("layout", ["class", "shuffled"])
def test_records_of_classes_in_either_layout(tmp_path, layout):
    rng = np.random.default_rng(3)
    for trial in range(10):
        labels = rng.integers(0, 9, 40)
        labels = labels if layout == "shuffled" else np.sort(labels)
        beton = write_beton(tmp_path / f"{trial}.beton", labels)
        assert beton.layout == layout
        kept = rng.permutation(beton.num_classes)[: 1 + trial % 9].tolist()
        assert records_of(beton, kept).tolist() == np.flatnonzero(np.isin(labels, kept)).tolist()


def test_set_operations(source):
    a, b = select(source, [0, 1]), select(source, [1, 3])
    assert a.union(b, source).kept_classes == [0, 1, 3]
    assert a.intersect(b, source).kept_classes == [1]
    assert a.top(2, source).kept_classes == [0, 1]
    assert a.union(b, source).kept_samples == 4
    with pytest.raises(SelectionError, match="no sample"):
        select(source, [0]).intersect(select(source, [1]), source)
    with pytest.raises(SelectionError, match="has 5"):
        a.top(6, source)


def test_round_trip(source, tmp_path):
    selection = select(source, [1, 3])
    selection.save(tmp_path / "s.json")
    assert Selection.load(tmp_path / "s.json") == selection
    assert not list(tmp_path.glob(".*partial"))


def test_record_selection_round_trip_and_tampering(source, tmp_path):
    records = np.array([1, 4, 7])
    selection = replace(select(source, [0, 2, 4]), records=records, kept_samples=3)
    path = tmp_path / "s.json"
    selection.save(path)
    assert Selection.load(path).indices(source).tolist() == [1, 4, 7]
    side = tmp_path / "s.json.indices.npy"
    np.save(side, np.array([0, 1, 2]))
    with pytest.raises(SelectionError, match="does not belong"):
        Selection.load(path)
    side.unlink()
    with pytest.raises(SelectionError, match="cannot be read"):
        Selection.load(path)


def test_another_source_is_refused_with_both_fingerprints(source, tmp_path):
    other = write_beton(tmp_path / "other.beton", [0, 1, 2, 3, 4, 4])
    with pytest.raises(SelectionError) as error:
        select(source, [1]).indices(other)
    assert "8 samples" in str(error.value) and "6 samples" in str(error.value) and "Prune again" in str(error.value)
    with pytest.raises(SelectionError, match="different sources"):
        select(source, [1]).union(select(other, [1]), source)


def test_a_selection_is_of_one_order_of_one_source(source, tmp_path):
    """As many images of each class, but in another order."""
    with BetonWriter(tmp_path / "other.beton", capacity=8) as writer:
        for i, label in zip((1, 0, 2, 3, 4, 5, 6, 7), source.labels.tolist(), strict=True):
            writer.append(bytes([label, i, 7]), MODE_RAW, 1, 1, label=label, index=i)
        writer.close()
    other = Beton(tmp_path / "other.beton")
    same = {"samples", "classes", "labels_sha256", "class_names_sha256"}
    assert {k for k, v in source.fingerprint.items() if other.fingerprint[k] == v} == same
    with pytest.raises(SelectionError, match="other images, or the same in another order"):
        select(source, [0]).indices(other)
    records = Selection.of_records(source, np.array([0, 3]), method="el2n")
    records.save(tmp_path / "r.json")
    loaded = Selection.load(tmp_path / "r.json")
    assert loaded.indices(source).tolist() == [0, 3]
    with pytest.raises(SelectionError, match="or the same in another order"):
        loaded.indices(other)
    with pytest.raises(SelectionError, match="different sources"):
        records.union(Selection.of_records(other, np.array([0]), method="el2n"), source)
    assert records.union(select(source, [1]), source).records.tolist() == [0, 2, 3]


def test_class_names_in_order_are_part_of_the_identity(source, tmp_path):
    """Two sources whose tables are equal, byte for byte, but whose classes are called otherwise."""
    saved = select(source, [1])
    sidecar(source.path, "classes.json").write_text(json.dumps([{"id": i, "name": n} for i, n in enumerate("abcde")]))
    named = Beton(source.path)
    with pytest.raises(SelectionError, match=r"has classes of other names or in another order\. Prune again"):
        saved.indices(named)
    sidecar(source.path, "classes.json").write_text(json.dumps([{"id": i, "name": n} for i, n in enumerate("abced")]))
    with pytest.raises(SelectionError, match="other names or in another order"):
        select(named, [1]).indices(Beton(source.path))


def test_selections_of_earlier_versions_are_read_with_a_note(source, tmp_path, capsys):
    first = {key: source.fingerprint[key] for key in ("samples", "classes", "labels_sha256")}
    for fingerprint in (first, first | {"records_sha256": source.records_sha256}):
        replace(select(source, [1]), source=fingerprint).save(tmp_path / "old.json")
        assert Selection.load(tmp_path / "old.json").indices(source).tolist() == [2]
        assert "old.json is from an earlier version: class names are not compared" in capsys.readouterr().err
    replace(select(source, [1]), source=first | {"records_sha256": "0"}).save(tmp_path / "old.json")
    with pytest.raises(SelectionError, match="other images"):
        Selection.load(tmp_path / "old.json").indices(source)


def test_what_two_selections_cost_is_what_their_combination_cost(source):
    def made(kept, weights, **seconds):
        return replace(select(source, kept), surrogate={"weights_sha256": weights}, seconds=seconds)

    a, same = made([0], "w", surrogate=30.0, scoring=1.0), made([1], "w", surrogate=30.0, scoring=2.0, cached=4.0)
    other = made([1], "v", surrogate=5.0, scoring=2.0)
    assert a.union(same, source).seconds == {"surrogate": 30.0, "scoring": 3.0, "cached": 4.0}
    assert a.union(other, source).seconds == {"surrogate": 35.0, "scoring": 3.0}
    records = Selection.of_records(source, np.array([0]), method="el2n", seconds={"scoring": 7.0})
    assert a.intersect(records, source).seconds == {"surrogate": 30.0, "scoring": 8.0}


def test_same_classes_in_a_validation_split(source, tmp_path):
    val = write_beton(tmp_path / "val.beton", [4, 3, 2, 1, 0])
    assert select(source, [1, 3]).for_split(val).indices(val).tolist() == [1, 3]
    small = write_beton(tmp_path / "small.beton", [0, 1])
    with pytest.raises(SelectionError, match="only 2 classes"):
        select(source, [1, 3]).for_split(small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99"),
        ({"kept_classes": []}, "non-empty"),
        ({"kept_classes": [3, 1]}, "ascending"),
        ({"kept_classes": [True]}, "ascending"),
        ({"kept_classes": [77]}, "keeps class 77"),
        ({"scores": [1, 2]}, "2 scores for 5"),
        ({"scores": ["a"] * 5}, "finite numbers"),
        ({"scores": [float("nan")] * 5}, "finite numbers"),
        ({"tie_breaks": [1.0]}, "1 tie_breaks"),
        ({"kept_samples": 0}, "kept_samples"),
        ({"kept_samples": 9}, "kept_samples"),
        ({"source": {"samples": 8}}, "fingerprint"),
        ({"source": {"samples": "8", "classes": 5, "labels_sha256": ""}}, "whole numbers"),
        ({"surprise": 1}, "not a selection"),
    ],
)
def test_files_are_not_trusted(source, tmp_path, change, message):
    path = tmp_path / "s.json"
    select(source, [1, 3]).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SelectionError, match=message):
        Selection.load(path)


@given(st.binary(max_size=200))
def test_garbage_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("garbage") / "s.json"
    path.write_bytes(data)
    with pytest.raises(SelectionError):
        Selection.load(path)


NUMBERS = {
    "a mask": (np.array([True, True]), r"must be whole numbers .*np\.flatnonzero"),
    "fractions": (np.array([0.0, 1.5]), "but these are float64"),
    "below the first": (np.array([-1, 0]), "-1 does not exist: they are 0 to "),
    "past the last": (np.array([0, 10**6]), "1000000 does not exist"),
    "one twice": (np.array([1, 0, 1]), "1 is given twice"),
}


@pytest.mark.parametrize("mistake", NUMBERS)
def test_what_are_no_numbers_of_classes_or_records_is_refused(source, mistake):
    numbers, says = NUMBERS[mistake]
    with pytest.raises(SelectionError, match=f": record.* {says}"):
        Selection.of_records(source, numbers, method="el2n")
    with pytest.raises(SelectionError, match=f": class.* {says}"):
        Selection.of_classes(source, numbers, method="lm", scores=np.zeros(source.num_classes))
