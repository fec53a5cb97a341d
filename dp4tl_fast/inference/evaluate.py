"""How good a network is on labelled images: accuracy, by class and by group, confusion, calibration, and under attack."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import check_outputs, write_atomically
from dp4tl_fast.inference import accuracy
from dp4tl_fast.inference.config import EvaluateConfig
from dp4tl_fast.runs.bad_records import FILE, BadRecords
from dp4tl_fast.training.ranks import on_rank_zero, process_group

if TYPE_CHECKING:
    from dp4tl_fast.inference.network import Network

MOST_CONFUSED = 10


@process_group()
def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a network on labelled images: top-1 and top-5 accuracy, by class and by group, confusion, calibration, robustness.

    Returns:
        ``images`` that were measured, ``bad_records`` that could not be,
        ``top_1``, ``top_5``, ``loss`` (cross entropy), ``calibration_error`` (expected, 15 bins), ``per_class``, ``per_group``,
        ``most_confused``, and under attack ``robust_top_1``.

    Raises:
        Dp4tlError: A file is bad, or the network cannot know the classes of ``data``.
    """
    out = Path(config.out)
    if config.out:
        names = ("evaluation.json", "per_class.csv", "confusion.csv", FILE)
        check_outputs([("out", out / name) for name in names], [config.data])
    beton = Beton(config.data, **config.cached)
    groups = accuracy.read_groups(config.groups, beton) if config.groups else None

    import torch

    from dp4tl_fast.inference.network import open_network
    from dp4tl_fast.inference.scores import logits_of, robust_top_1, scores
    from dp4tl_fast.training.placement import loader_share
    from dp4tl_fast.training.trial import try_forward

    network = open_network(config, config.device)
    network.check_classifier("evaluate")
    truth, records = match_classes(network, beton, config.known_only)
    network.pixels = network.pixels.as_loaded(config.checkpoint)
    try_forward(network.model, network.meta["arch"], network.pixels.size, network.device)
    share = loader_share(config.batch_size, 1, config.workers, network.device)
    bad = BadRecords(config.max_bad)
    how = share | {"on_error": config.on_bad_record}
    logits = logits_of(network, beton, records, how, config.backend, config.tta, bad)
    bad.pooled()
    if config.out:
        on_rank_zero(lambda: bad.write(out))
    bad.check(config.out or str(beton.path))
    bad.tell()
    left_out, good = beton.num_samples - len(records), ~bad.of("data", records)
    records, logits = records[good], logits[torch.from_numpy(good)]
    labels = truth[beton.labels[records]]
    result: dict[str, Any] = {
        "kind": "evaluate", "checkpoint": str(Path(config.checkpoint).resolve()), "checkpoint_sha256": network.sha256,
        "arch": network.meta["arch"], "data": str(beton.path), "data_records_sha256": beton.records_sha256,
        "images": len(records), "left_out": left_out, "bad_records": len(bad.known), "tta": config.tta, **network.pixels.meta(),
    }  # fmt: skip
    result |= scores(logits, labels)
    predicted = logits.argmax(1).numpy()
    result |= _by_class_and_group(predicted == labels, beton, records, groups)
    confusion = count_pairs(beton.labels[records], predicted, beton.num_classes, len(network.names))
    result["most_confused"] = _most_confused(confusion, truth, beton, network)
    if attack := _attack(network.meta, config):
        result |= robust_top_1(network, beton, records, truth, share, config.backend, attack, config.seed)
    if config.out:
        on_rank_zero(lambda: _write(out, result, confusion, beton, network))
    on_rank_zero(lambda: _tell(result))
    return result


def match_classes(network: Network, beton: Beton, known_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """The network's output for every class of ``beton``, int64 ``[classes]`` (-1: none), and the records of those it knows.

    Raises:
        UsageError: It does not know a class that has records, and those are not to be left out.
    """
    names = beton.class_names
    by_name = network.named and bool(beton.sidecar.class_names)
    if by_name and len(names) == len(network.names) and not set(names) & set(network.names):
        by_name = False  # ImageNet's "tench" and n01440764, say: two ways to call the same classes
        cli.message(
            f"note: {beton.path} has other class names ({names[0]}) than {network.path} ({network.names[0]}); they are "
            "matched by number"
        )
    if by_name:
        number = {name: i for i, name in enumerate(network.names)}
        truth = np.array([number.get(name, -1) for name in names], np.int64)
    elif kept := network.meta.get("classes"):  # a head of the kept classes alone
        truth = np.full(len(names), -1, np.int64)
        inside = [(i, c) for i, c in enumerate(kept) if c < len(names)]
        truth[[c for _, c in inside]] = [i for i, _ in inside]
    else:
        truth = np.where(np.arange(len(names)) < len(network.names), np.arange(len(names)), -1)
    missing = np.flatnonzero((truth < 0) & (beton.class_counts > 0))
    records = np.flatnonzero(truth[beton.labels] >= 0)
    if len(records) == 0 or (len(missing) and not known_only):
        remedy = "It was trained for other classes" if len(records) == 0 else "Give `known_only` to leave them out"
        raise UsageError(
            f"{network.path}: knows {len(network.names)} classes, but not {len(missing)} of the {len(names)} in {beton.path}, "
            f"such as {names[missing[0]]!r}. {remedy}"
        )
    return truth, records


def count_pairs(truth: np.ndarray, predicted: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """How often each pair occurs, int64 ``[rows, columns]``, of two int64 ``[n]``."""
    return np.bincount(truth * columns + predicted, minlength=rows * columns).reshape(rows, columns)


def _by_class_and_group(
    right: np.ndarray, beton: Beton, records: np.ndarray, groups: tuple[list[str], np.ndarray] | None
) -> dict[str, Any]:
    classes = accuracy.by_key(right[None], beton.labels[records], beton.num_classes)[0]
    found: dict[str, Any] = {"per_class": {beton.class_names[c]: float(v) for c, v in enumerate(classes) if not np.isnan(v)}}
    if groups is not None:
        names, keys = groups
        values = accuracy.by_key(right[None], keys[records], len(names))[0]
        found["per_group"] = {name: float(v) for name, v in zip(names, values, strict=True) if not np.isnan(v)}
        found["worst_group"] = min(found["per_group"].values())
    return found


def _most_confused(confusion: np.ndarray, truth: np.ndarray, beton: Beton, network: Network) -> list[dict[str, Any]]:
    """Pairs of a class and what it is taken for, most frequent first."""
    wrong = confusion.copy()
    known = np.flatnonzero(truth >= 0)
    wrong[known, truth[known]] = 0
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        {"class": beton.class_names[int(a)], "taken_for": network.names[int(b)], "images": int(wrong[a, b])}
        for a, b in pairs if wrong[a, b]
    ]  # fmt: skip


def _attack(meta: dict[str, Any], config: EvaluateConfig) -> dict[str, Any] | None:
    """What to attack with, if at all. Checkpoints of earlier versions do not tell what they were trained against."""
    own, eps = meta.get("attack") or {}, config.attack_eps
    if eps == -1:
        eps = float(own.get("eps", 0))
        if not eps and meta.get("objective") == "adversarial":
            cli.message("note: this checkpoint does not record its training attack; give `attack_eps` for robust accuracy")
    norm = config.attack_norm or own.get("norm", "linf")
    return {"eps": eps, "steps": config.attack_steps, "norm": norm} if eps else None


def _write(out: Path, result: dict[str, Any], confusion: np.ndarray, beton: Beton, network: Network) -> None:
    counts = confusion.sum(1)
    per_class = [(name, int(counts[c]), result["per_class"].get(name, "")) for c, name in enumerate(beton.class_names)]
    write_atomically(out / "per_class.csv", _csv([("class", "images", "top_1"), *per_class]))
    table = [(name, *row) for name, row in zip(beton.class_names, confusion.tolist(), strict=True)]
    write_atomically(out / "confusion.csv", _csv([("true \\ predicted", *network.names), *table]))
    write_atomically(out / "evaluation.json", json.dumps(result, indent=1) + "\n")


def _csv(rows: list[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _tell(result: dict[str, Any]) -> None:
    left = f" ({result['left_out']:,} of unknown classes left out)" if result["left_out"] else ""
    cli.message(
        f"{result['images']:,} images{left}: top-1 {100 * result['top_1']:.2f} %, top-5 {100 * result['top_5']:.2f} %, "
        f"calibration error {100 * result['calibration_error']:.2f} %"
    )
    if "worst_group" in result:
        cli.message(f"worst group {100 * result['worst_group']:.2f} %")
    if "robust_top_1" in result:
        attack = result["attack"]
        cli.message(
            f"robust top-1 {100 * result['robust_top_1']:.2f} % under {attack['steps']} steps of PGD, {attack['norm']}, "
            f"{attack['eps']:g}/255"
        )
    for pair in result["most_confused"][:3]:
        cli.message(f"{pair['class']} is classified as {pair['taken_for']} {pair['images']} times")
