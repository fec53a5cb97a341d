"""Records that cannot be decoded: named and left out where ``prune`` is asked to, else an error."""

import json

import numpy as np
import pytest
from pruning_data import run
from test_preemption import broken

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import RecordError, TrainingError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:skipped")


@pytest.fixture
def bad(data, tmp_path):
    """The source without record 2, and the target without records 0 and 4."""
    return {"source": str(broken(data / "source.beton", tmp_path / "source.beton", [2])),
            "target": [str(broken(data / "red.beton", tmp_path / "red.beton", [0, 4]))]}  # fmt: skip


def test_bad_images_have_no_vote_and_are_named(data, tmp_path, bad, capsys):
    whole = run(data, tmp_path / "whole.json")
    found = run(data, tmp_path / "a.json", on_bad_record="skip", **bad)
    said = capsys.readouterr().err
    assert "red.beton: 2 records cannot be decoded, left out: 0 (class " in said
    listed = [{"file": bad["target"][0], "record": 0, "class": 0}, {"file": bad["target"][0], "record": 4, "class": 0},
              {"file": bad["source"], "record": 2, "class": 0}]  # fmt: skip
    assert found["parameters"]["bad_records"] == listed and found["bad_records"] == 3 and whole["bad_records"] == 0
    assert json.loads((tmp_path / "a.json").read_text())["parameters"]["bad_records"] == listed
    assert "bad_records" not in whole["parameters"]
    images = Beton(bad["target"][0]).num_samples
    assert sum(whole["scores"]) == images and sum(found["scores"]) == images - 2
    assert all(a <= b for a, b in zip(found["scores"], whole["scores"], strict=True))


def test_a_bad_source_record_changes_no_class_mean(data, tmp_path, bad):
    """fm looks for the nearest class mean: with the record gone, the mean is that of the others."""
    found = run(data, tmp_path / "a.json", method="fm", on_bad_record="skip", source=bad["source"])
    assert sum(found["scores"]) == Beton(data / "red.beton").num_samples and np.isfinite(found["scores"]).all()


def test_without_being_asked_or_with_too_many_it_is_an_error_also_from_the_cache(data, tmp_path, bad):
    for _ in range(2):
        with pytest.raises(RecordError, match=r"record \d \(class .*`on_bad_record=skip`"):
            run(data, tmp_path / "a.json", **bad)
        with pytest.raises(UsageError, match="2 records cannot be decoded, more than `max_bad=1`"):
            run(data, tmp_path / "a.json", on_bad_record="skip", max_bad=1, **bad)
        run(data, tmp_path / "a.json", on_bad_record="skip", **bad)  # fills the cache


def test_methods_that_score_single_records_refuse(data, tmp_path, bad):
    for method in ("moderate", "grand"):
        with pytest.raises(UsageError, match=f"`method={method}`: scores every record"):
            run(data, tmp_path / "a.json", method=method, on_bad_record="skip", source=bad["source"])


def test_a_surrogate_is_trained_without_bad_records(data, tmp_path, bad):
    """Rounds of them, which also vote; what is skipped is skipped in all of the command."""
    options = {"surrogate": None, "arch": "small-4", "size": 16, "accept_surrogate": True, **bad}
    with pytest.raises(RecordError, match=r"record 2 .*`on_bad_record=skip`"):
        run(data, tmp_path / "a.json", train_surrogate=str(tmp_path / "a"), **options)
    found = run(data, tmp_path / "b.json", train_surrogate=str(tmp_path / "b"), on_bad_record="skip", **options)
    assert sum(found["scores"]) == Beton(bad["target"][0]).num_samples - 2
    assert json.loads((tmp_path / "b/epochs-1/summary.json").read_text())["bad_records"] == 1
    with pytest.raises(TrainingError, match=r"1 records cannot be decoded, more than `max_bad=0`"):
        run(data, tmp_path / "c.json", train_surrogate=str(tmp_path / "c"), on_bad_record="skip", max_bad=0, **options)


@pytest.mark.parametrize(("method", "tried"), [("lm", 48), ("fm", 24)])  # fm: on every other record of each class
def test_a_surrogate_is_tried_on_the_other_records(data, tmp_path, bad, capsys, method, tried):
    """A record that cannot be decoded is no answer, neither right nor wrong; where it was not to be skipped it is an error."""
    assert run(data, tmp_path / "whole.json", method=method)["surrogate"]["accuracy"]["images"] == tried
    options = {"method": method, "source": bad["source"]}
    found = run(data, tmp_path / "a.json", on_bad_record="skip", **options)["surrogate"]["accuracy"]
    assert "source.beton: 1 record cannot be decoded, left out: 2 (class 0, " in capsys.readouterr().err
    assert found["images"] == tried - 1
    with pytest.raises(RecordError, match=r"record 2 \(class .*`on_bad_record=skip`"):
        run(data, tmp_path / "b.json", **options)
    with pytest.raises(UsageError, match="1 record cannot be decoded, more than `max_bad=0`"):
        run(data, tmp_path / "c.json", on_bad_record="skip", max_bad=0, **options)


@pytest.mark.parametrize("method", ["lm", "fm"])
def test_a_source_of_which_nothing_can_be_decoded_is_refused(data, tmp_path, method):
    source = str(broken(data / "source.beton", tmp_path / "source.beton", range(48)))
    with pytest.raises(UsageError, match=r"none of 48 records to try the surrogate on can be|no record of class 0"):
        run(data, tmp_path / "a.json", source=source, on_bad_record="skip", method=method)
