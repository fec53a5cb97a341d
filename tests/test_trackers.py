"""Metrics to TensorBoard, MLflow, W&B, Trackio and a function: the libraries themselves, on local stores, told the same numbers."""

import json
import re
import struct
import sys
from importlib.util import find_spec

import pytest
from small_runs import noisy_colours, run

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.pretrain import main
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.reporting.runs import read_metrics
from dp4tl_fast.runs.trackers import TrackingConfig


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return noisy_colours(tmp_path_factory.mktemp("trackers"), "source", (8, 8, 8, 8))


@pytest.fixture
def stores(tmp_path, monkeypatch):
    """Where the libraries log by their own settings: files in ``tmp_path``."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    yield tmp_path
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # it reads its settings once in a process


def in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return {name: {e.step: e.value for e in board.Scalars(name)} for name in board.Tags()["scalars"]}


def in_mlflow():
    """The one run: its name, status, parameters, and the newest value of every metric at every step."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("dp4tl_fast").experiment_id
    (found,) = client.search_runs([experiment])
    history = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    values = {name: {m.step: m.value for m in sorted(ms, key=lambda m: m.timestamp)} for name, ms in history.items()}
    return found.info.run_name, found.info.status, found.data.params, values


def in_wandb(folder):
    """Of the run files of a folder, in the order in which they were written: ids, and the metrics by step."""
    from wandb.proto.wandb_internal_pb2 import Record

    ids, values = set(), {}
    for path in sorted(folder.glob("wandb/*/*.wandb"), key=lambda p: p.stat().st_mtime_ns):
        for data in log_records(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            row = {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                if not name.startswith("_"):
                    values.setdefault(name, {})[record.history.step.num] = value
    return ids, values


def log_records(data, block=32768):
    """Of a LevelDB log, which W&B's files are after 7 bytes: checksum, length and type (1 whole, 2 first, 3 middle, 4 last)."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def by_metric(rows):
    return {name: {row["epoch"]: row[name] for row in rows} for name in rows[0]}


def test_all_are_told_the_same_and_a_continued_run_stays_one(source, stores):
    """Stopped in its second epoch, which is logged by then but not saved, and resumed."""
    out, told = stores / "runs/r", []

    def callback(folder, metrics):
        told.append((folder, metrics))
        if len(told) == 2:
            raise KeyboardInterrupt

    options = {"track": "mlflow,wandb", "tensorboard": True}
    with pytest.raises(KeyboardInterrupt):
        run(source, out, callback=callback, **options)
    assert in_mlflow()[1] == "KILLED"
    run(source, out, callback=callback, resume=True, **options)
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1, 2] and {"loss", "top_1", "samples_per_s", "lr"} <= rows[0].keys()
    assert [(folder, m["epoch"]) for folder, m in told] == [(out, 0), (out, 1), (out, 1), (out, 2)]
    assert [told[0][1], told[2][1], told[3][1]] == rows
    name, status, settings, values = in_mlflow()
    assert (name, status) == ("runs/r", "FINISHED") and settings["arch"] == "small-4" and settings["moco.queue"] == "65536"
    assert values == by_metric(rows)
    ids, values = in_wandb(out)
    assert len(ids) == 1 and values == by_metric(rows)
    near = {n: {e: pytest.approx(v, rel=1e-6) for e, v in vs.items()} for n, vs in by_metric(rows).items()}  # stored as float32
    assert in_tensorboard(out) == near


def test_one_that_joins_later_is_told_what_was_before(source, stores):
    def stop(folder, metrics):
        if metrics["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, stores / "r", callback=stop)
    (stores / "r/trackers.json").write_text("[]")
    with pytest.raises(UsageError, match=r"r/trackers\.json: cannot be read"):
        run(source, stores / "r", track="mlflow", resume=True)
    (stores / "r/trackers.json").unlink()
    run(source, stores / "r", track="mlflow", resume=True)
    assert in_mlflow()[3] == by_metric(read_metrics(stores / "r/metrics.jsonl"))


def test_a_finetuning_logs_every_seed(source, stores):
    run(source, stores / "r")
    told = []
    finetune(
        FinetuneConfig(
            checkpoint=str(stores / "r"), train=str(source), test=str(source), out=str(stores / "lp"), seeds=2, epochs=2, workers=1,
            track="tensorboard", tensorboard=False,
        ),
        callback=lambda folder, metrics: told.append((folder.name, metrics["epoch"])),
    )  # fmt: skip
    assert told == [("seed-0", 0), ("seed-0", 1), ("seed-1", 0), ("seed-1", 1)]
    assert in_tensorboard(stores / "lp/seed-1").keys() == read_metrics(stores / "lp/seed-1/metrics.jsonl")[0].keys()


@pytest.mark.skipif(find_spec("trackio") is None, reason="Trackio is not installed: it wants an older Pillow than the tests have")
def test_trackio_is_told_the_same(source, stores):
    run(source, stores / "r", track="trackio")
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = json.loads((stores / "r/trackers.json").read_text()).values()
    logs = SQLiteStorage.get_logs("dp4tl_fast", name)
    rows = read_metrics(stores / "r/metrics.jsonl")
    assert [{k: log[k] for k in rows[0]} for log in logs] == rows


def test_what_is_not_there_is_said_before_anything_is_written(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trackio", None)
    code = main([f"--source={source}", f"--out={tmp_path / 'r'}", "--track=trackio"])
    said = capsys.readouterr().err
    assert code == 2 and said == (
        "dp4tl-fast pretrain: --track trackio: trackio is not installed. pip install 'dp4tl_fast[trackio]'\n"
    )
    assert not (tmp_path / "r").exists()
    with pytest.raises(UsageError, match=r"`track=mlflow,comet`: comet is not known\. Name some of tensorboard, mlflow"):
        TrackingConfig(track="mlflow,comet")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"`tensorboard`: tensorboard is not installed. pip install tensorboard"):
        PretrainConfig(source="s", out="o")


@pytest.mark.parametrize(
    ("track", "name", "value"),
    [("mlflow", "MLFLOW_TRACKING_URI", "http://127.0.0.1:9"), ("mlflow", "MLFLOW_TRACKING_URI", "ftp://nobody"),
     ("wandb", "WANDB_MODE", "online")],
)  # fmt: skip
def test_one_that_cannot_log_is_one_line_and_no_run(source, stores, monkeypatch, track, name, value):
    """No server there, no such kind of server, no credentials."""
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("HOME", str(stores))  # no ~/.netrc
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UsageError, match=rf"^`track={track}`: {track} cannot log here: .+ Set it up, or drop it$") as error:
        run(source, stores / "r", track=track)
    assert "\n" not in str(error.value)
    assert not (stores / "r/config.yaml").exists() and not (stores / "r/metrics.jsonl").exists()


def test_a_run_outlives_its_tracker(source, stores, capsys):
    """Its database is overwritten after the first epoch."""

    def spoil(folder, metrics):
        for path in stores.glob("mlflow.db*"):
            path.write_bytes(b"no database" * 1000)

    summary = run(source, stores / "r", track="mlflow", callback=spoil)
    assert summary["epochs"] == 3 and len(read_metrics(stores / "r/metrics.jsonl")) == 3
    assert len(re.findall("mlflow failed and is left out: .* metrics.jsonl has everything", capsys.readouterr().err)) == 1
