"""Tiny-ImageNet as source, CIFAR-10 as target, through the same commands a user runs: full, label and feature mapping, random.

It measures the whole chain (convert, surrogate, prune, pretrain, finetune). With a GPU: ResNet-18 at 64 pixels, 40 epochs, 3
seeds, 20 to 80 % of the classes pruned. Without one a *short run*: a small network at 32 pixels, few epochs, what two CPU
cores manage in about 15 minutes; it is no claim about converged training.
Needs ``--data DIR`` with ``tiny-imagenet/train`` and ``cifar10/{train,test}``, folders of class folders.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Suite
from dp4tl_fast.compare import compare, find_runs
from dp4tl_fast.convert import convert
from dp4tl_fast.finetune import finetune
from dp4tl_fast.pretrain import PretrainConfig, pretrain
from dp4tl_fast.prune import prune

GPU = torch.cuda.is_available()
METHODS = ("lm", "fm", "random")
SEEDS = (0, 1, 2) if GPU else (0, 1)
KEEP = ("0.8", "0.6", "0.4", "0.2") if GPU else ("0.4", "0.2")
COMMON: dict[str, Any] = {"size": 32, "batch_size": 128, "warmup_epochs": 1.0, "weight_decay": 5e-4, "tensorboard": False}
SURROGATE: dict[str, Any] = {**COMMON, "arch": "small-8", "epochs": 3, "lr": 0.2}
NETWORK: dict[str, Any] = {**COMMON, "arch": "small-16", "epochs": 8, "lr": 0.2, "checkpoint_every": 8}
TRANSFER: dict[str, dict[str, Any]] = {
    "lp": {"mode": "lp", "epochs": 30, "lr": 1e-2, "size": 32},
    "ff": {"mode": "ff", "epochs": 5, "lr": 1e-3, "size": 32, "batch_size": 64},
}
if GPU:
    COMMON |= {"size": 64, "batch_size": 256, "warmup_epochs": 2.0}
    SURROGATE = {**COMMON, "arch": "small-32", "epochs": 10, "lr": 0.4}
    NETWORK = {**COMMON, "arch": "resnet18", "epochs": 40, "lr": 0.4, "checkpoint_every": 40}
    TRANSFER = {
        "lp": {"mode": "lp", "epochs": 50, "lr": 1e-2, "size": 64},
        "ff": {"mode": "ff", "epochs": 40, "lr": 1e-4, "size": 64},
    }
LOSS = 0.5  # points of accuracy that count as nothing lost


def run(suite: Suite) -> None:
    with tempfile.TemporaryDirectory(prefix="dp4tl-end-to-end-") as folder:
        root = Path(folder)
        source, train, test = convert_all(suite.require_data(), root).values()
        pretrain(PretrainConfig(source=str(source), out=str(root / "surrogate"), **SURROGATE))
        for method in METHODS:
            for keep in KEEP if method != "random" else ():
                prune(
                    source=str(source), target=[str(train)], surrogate=str(root / "surrogate"), method=method, keep=keep,
                    out=str(root / f"{method}-{keep}.json"),
                )  # fmt: skip
        for seed in SEEDS:  # interleaved: a slow minute of the machine hits all alike
            for name in ("full", *(f"{m}-{k}" for k in KEEP for m in METHODS)):
                _one(root, name, seed, source, train, test)
        _record(suite, root)


def convert_all(data: Path, root: Path) -> dict[str, Path]:
    """``source`` (Tiny-ImageNet), ``train`` and ``test`` (CIFAR-10) as .beton files in ``root``."""
    folders = {"source": "tiny-imagenet/train", "train": "cifar10/train", "test": "cifar10/test"}
    for name, folder in folders.items():
        convert(str(data / folder), str(root / f"{name}.beton"))
    return {name: root / f"{name}.beton" for name in folders}


def _one(root: Path, name: str, seed: int, source: Path, train: Path, test: Path) -> None:
    """Pretrain once and finetune it both ways."""
    method, _, keep = name.partition("-")
    selection = root / f"{name}.json" if method != "full" else None
    if method == "random":  # another draw for every seed
        selection = root / f"{name}-{seed}.json"
        prune(source=str(source), method="random", keep=keep, seed=seed, out=str(selection))
    out = root / "runs" / f"{name}-{seed}"
    config = PretrainConfig(
        source=str(source), out=str(out), selection=str(selection) if selection else None, seed=seed, **NETWORK
    )
    pretrain(config)
    for mode, recipe in TRANSFER.items():
        finetune(checkpoint=str(out), train=str(train), test=str(test), out=f"{out}-{mode}", seeds=1, **recipe)


def _record(suite: Suite, root: Path) -> None:
    """One row a run set and quantity; the spread is over seeds."""
    runs = find_runs([root / "runs"])
    by_case: dict[tuple[str, int], list[tuple[Path, dict[str, Any]]]] = {}
    for folder, summary in runs:
        if summary["kind"] == "pretrain":
            by_case.setdefault((summary["method"], summary["classes_kept"]), []).append((folder, summary))
    pruning = {(r["name"], r["classes_kept"]): r["pruning_s"] for r in compare(runs)}

    def collect(value: Any) -> dict[str, list[float]]:
        return {f"{m} {c} classes": [value(folder, s) for folder, s in group] for (m, c), group in by_case.items()}

    def accuracy(mode: str) -> Any:
        found = {s["checkpoint"]: 100 * s["top_1_mean"] for _, s in runs if s["kind"] == "finetune" and s["mode"] == mode}
        return lambda folder, s: found[str(folder)]

    reference = next(f"{m} {c} classes" for m, c in by_case if m == "full")
    suite.add("pretraining", collect(lambda f, s: s["pretrain_s"]), "s", ratio_to=reference)
    with_pruning = collect(lambda f, s: s["pretrain_s"] + pruning[s["method"], s["classes_kept"]])
    suite.add("pretraining with pruning", with_pruning, "s", ratio_to=reference)
    suite.add("bytes read", collect(lambda f, s: s["bytes_read"]), "bytes", ratio_to=reference)
    suite.add("cifar10 linear probe", collect(accuracy("lp")), "% top-1")
    suite.add("cifar10 full finetuning", collect(accuracy("ff")), "% top-1")
    _goals(suite, compare(runs))


def _goals(suite: Suite, rows: list[dict[str, Any]]) -> None:
    """The paper's claims, asked of this run: pruning 40 to 80 % of the classes is lossless and 2 to 5 times as fast."""
    full = next(r for r in rows if r["name"] == "full")
    least = min((r for r in rows if r["name"] == "lm"), key=lambda r: r["classes_kept"])
    pruned = round(100 * (1 - least["classes_kept"] / full["classes_kept"]))
    suite.goal(f"speedup-at-{pruned}", goal=2.0, measured=least["speedup_with_pruning"], unit="x full, pruning included")
    for method in METHODS[:2]:
        lossless = [
            1 - r["classes_kept"] / full["classes_kept"]
            for r in rows
            if r["name"] == method and 100 * (full["lp_mean"] - r["lp_mean"]) <= LOSS
        ]
        suite.goal(f"lossless-ratio-{method}", goal=0.4, measured=max(lossless, default=0.0), unit="of the classes, linear probe")
