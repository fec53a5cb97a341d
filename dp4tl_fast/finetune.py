"""``python -m dp4tl_fast.finetune``: what a pretrained network is worth on the target."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

from dp4tl_fast import cli
from dp4tl_fast.beton import Beton
from dp4tl_fast.errors import UsageError
from dp4tl_fast.files import write_atomically

if TYPE_CHECKING:
    from dp4tl_fast.loaders import BaseLoader

DEFAULTS = {"lp": {"epochs": 50, "lr": 1e-2}, "ff": {"epochs": 200, "lr": 1e-4}}  # the paper's recipes


def finetune(
    *,
    checkpoint: str,
    train: str,
    test: str,
    out: str,
    mode: Literal["lp", "ff"] = "lp",
    arch: str | None = None,
    epochs: int = 0,
    lr: float = 0.0,
    optimizer: Literal["adam", "sgd"] = "adam",
    weight_decay: float = 0.0,
    batch_size: int = 128,
    size: int = 0,
    min_scale: float = 0.5,
    flip: bool = True,
    seeds: int = 3,
    backend: str = "native",
    precision: str = "auto",
    device: str = "auto",
    workers: int = 0,
) -> dict[str, Any]:
    """Train a fresh classifier on the target and report test accuracy over seeds.

    lp (linear probe) freezes the network and trains the classifier on its features, computed once; ff (full finetuning)
    trains everything. The accuracy of the last epoch comes first; the best epoch's, which is chosen on the test set and
    therefore flatters, stands beside it. Shipped recipes (the paper's), for --config NAME: lp, ff, and ff_sgd for Food101,
    StanfordCars and SUN397.

    Args:
        checkpoint: Run folder, checkpoint folder, or weights file.
        train: Target training .beton.
        test: Target test .beton.
        out: Folder for summary.json.
        mode: lp or ff.
        arch: Architecture, where the checkpoint does not say.
        epochs: Passes over the target; 0 is the paper's (lp 50, ff 200).
        lr: Peak learning rate; 0 is the paper's for Adam (lp 0.01, ff 0.0001).
        optimizer: adam, or sgd with momentum 0.9.
        weight_decay: L2 penalty on all weights.
        batch_size: Images a step.
        size: Side of the images; 0 is what the network was trained with, else 224.
        min_scale: Smallest area share of the random crop in ff.
        flip: Mirror half of the training images in ff; turn it off for digits and text.
        seeds: Repetitions; seeds are 0, 1, ...
        backend: native, ffcv, dali or torchvision.
        precision: Of ff: auto, fp32, bf16 or fp16.
        device: auto, cpu, cuda, ...
        workers: Loader threads; 0 is one a core.
    """
    start = time.perf_counter()
    if seeds < 1 or batch_size < 1 or epochs < 0 or lr < 0 or weight_decay < 0:
        raise UsageError("--seeds and --batch-size must be at least 1, --epochs, --lr and --weight-decay at least 0")
    if optimizer == "sgd" and not lr:
        raise UsageError("--optimizer sgd: needs --lr; the default is meant for Adam (the paper's sgd has 0.1)")
    train_set, test_set = Beton(train), Beton(test)
    if test_set.num_classes > train_set.num_classes:
        raise UsageError(
            f"{test} has {test_set.num_classes} classes, but {train} only {train_set.num_classes}. "
            "Convert both splits from the same class folders"
        )
    target = Path(out) / "summary.json"
    if target.exists():
        raise UsageError(f"{target} exists. Remove it, or give another --out")

    from dp4tl_fast.batches import crop_ratio
    from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD, LoaderSpec, open_loader
    from dp4tl_fast.training import checkpoint as checkpoints
    from dp4tl_fast.training import loop, transfer
    from dp4tl_fast.training.device import pick_device, pick_precision

    descent = partial(transfer.make_optimizer, name=optimizer, weight_decay=weight_decay)
    epochs, lr = epochs or int(DEFAULTS[mode]["epochs"]), lr or DEFAULTS[mode]["lr"]
    place = pick_device(device)
    model, meta = checkpoints.load_model(checkpoint, arch)
    model.to(place)
    normalise = loop.Normalise(tuple(meta.get("mean", IMAGENET_MEAN)), tuple(meta.get("std", IMAGENET_STD)), place)
    side = size or meta.get("size", 224)
    common: dict[str, Any] = {"batch_size": batch_size, "size": side, "workers": workers}

    def plain(beton: Beton) -> BaseLoader:
        return open_loader(beton, None, LoaderSpec(**common, crop_ratio=crop_ratio(side)), backend)

    results = []
    bar = cli.progress(None, desc=f"{Path(out).name} ({mode})", unit="epoch", total=epochs * seeds)
    with bar, plain(test_set) as test_loader:
        if mode == "lp":
            with plain(train_set) as loader:
                cached = transfer.features(model, loader, normalise)
            cached_test = transfer.features(model, test_loader, normalise)
        for seed in range(seeds):
            if mode == "lp":
                result = transfer.linear_probe(
                    cached, cached_test, train_set.num_classes,
                    seed=seed, epochs=epochs, lr=lr, batch_size=batch_size, descent=descent, on_epoch=bar.update,
                )  # fmt: skip
            else:
                model, _ = checkpoints.load_model(checkpoint, arch)
                spec = LoaderSpec(
                    **common,
                    transform="random_resized_crop",
                    scale=(min_scale, 1.0),
                    flip=flip,
                    shuffle=True,
                    seed=seed,
                    with_index=True,
                )
                with open_loader(train_set, None, spec, backend) as loader:
                    result = transfer.full_finetune(
                        model.to(place), loader, test_loader, normalise, train_set.num_classes,
                        seed=seed, epochs=epochs, lr=lr, descent=descent, precision=pick_precision(precision, place),
                        on_epoch=bar.update,
                    )  # fmt: skip
            results.append(result)
    summary = {
        "kind": "finetune",
        "mode": mode,
        "checkpoint": str(Path(checkpoint).resolve()),
        "seeds": seeds,
        "epochs": epochs,
        "lr": lr,
        "optimizer": optimizer,
        "top_1_mean": fmean(r["last"] for r in results),
        "top_1_std": stdev(r["last"] for r in results) if seeds > 1 else 0.0,
        "top_1_best_mean": fmean(r["best"] for r in results),
        "top_1": [r["last"] for r in results],
        "seconds": time.perf_counter() - start,
    }
    write_atomically(target, json.dumps(summary, indent=1) + "\n")
    cli.message(
        f"{mode} top-1 {100 * summary['top_1_mean']:.2f} ± {100 * summary['top_1_std']:.2f} % over {seeds} seeds, last epoch "
        f"(best epoch {100 * summary['top_1_best_mean']:.2f} %)"
    )
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(finetune, argv)


if __name__ == "__main__":
    sys.exit(main())
