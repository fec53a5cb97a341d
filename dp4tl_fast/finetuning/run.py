"""What a pretrained network is worth on the target."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.finetuning import accuracy
from dp4tl_fast.finetuning.few_shots import few_shots
from dp4tl_fast.finetuning.targets import open_target

if TYPE_CHECKING:
    import torch

    from dp4tl_fast.loaders import BaseLoader

    Features = tuple[torch.Tensor, torch.Tensor]

DEFAULTS = {"lp": (50, 1e-2), "ff": (200, 1e-4), "knn": (0, 0.0)}  # epochs and learning rate: the paper's recipes


def finetune(
    *,
    checkpoint: str,
    train: str,
    test: str,
    out: str,
    mode: Literal["lp", "ff", "knn"] = "lp",
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
    shots: int = 0,
    groups: str = "",
    neighbours: int = 20,
    temperature: float = 0.07,
    backend: str = "native",
    precision: str = "auto",
    device: str = "auto",
    workers: int = 0,
) -> dict[str, Any]:
    """Train a fresh classifier on the target and report test accuracy over seeds.

    lp (linear probe) freezes the network and trains the classifier on its features, computed once; ff (full finetuning)
    trains everything; knn trains nothing and lets the nearest training features vote. The accuracy of the last epoch comes
    first; the best epoch's, which is chosen on the test set and therefore flatters, stands beside it. Shipped recipes (the
    paper's), for --config NAME: lp, ff, and ff_sgd for Food101, StanfordCars and SUN397.

    Args:
        checkpoint: Run folder, checkpoint folder, or weights file.
        train: Target training .beton, or a data set of torchvision's: ``torchvision:CIFAR10?root=DIR&split=train``, which is
            converted once and kept in .dp4tl-cache beside OUT.
        test: Target test .beton, or likewise ``torchvision:CIFAR10?root=DIR&split=test``.
        out: Folder for summary.json.
        mode: lp, ff or knn.
        arch: Architecture, where the checkpoint does not say.
        epochs: Passes over the target; 0 is the paper's (lp 50, ff 200).
        lr: Peak learning rate; 0 is the paper's for Adam (lp 0.01, ff 0.0001).
        optimizer: adam, or sgd with momentum 0.9.
        weight_decay: L2 penalty on all weights.
        batch_size: Images a step.
        size: Side of the images; 0 is the checkpoint's size for evaluation, else 224.
        min_scale: Smallest area share of the random crop in ff.
        flip: Mirror half of the training images in ff; turn it off for digits and text.
        seeds: Repetitions; seeds are 0, 1, ...
        shots: Train on so many random images a class, drawn anew for each seed; 0 is all of them.
        groups: CSV with columns index and group for the test records: the accuracy of each group, and the worst one's, as
            Waterbirds wants it (group: bird and background).
        neighbours: Of knn.
        temperature: Of knn: a neighbour weighs exp(cosine / temperature).
        backend: native, ffcv, dali or torchvision.
        precision: Of ff: auto, fp32, bf16 or fp16.
        device: auto, cpu, cuda, ...
        workers: Loader threads; 0 is one a core.
    """
    start = time.perf_counter()
    if seeds < 1 or batch_size < 1 or epochs < 0 or lr < 0 or weight_decay < 0:
        raise UsageError("--seeds and --batch-size must be at least 1, --epochs, --lr and --weight-decay at least 0")
    if shots < 0 or neighbours < 1 or temperature <= 0:
        raise UsageError("--shots must be at least 0, --neighbours at least 1, --temperature above 0")
    if optimizer == "sgd" and not lr:
        raise UsageError("--optimizer sgd: needs --lr; the default is meant for Adam (the paper's sgd has 0.1)")
    target = Path(out) / "summary.json"
    if target.exists():
        raise UsageError(f"{target} exists. Remove it, or give another --out")
    train_set, test_set = open_target(train, out), open_target(test, out)
    train_set.check_split(test_set)
    test_groups = accuracy.read_groups(groups, test_set) if groups else None
    if mode == "knn" and not shots:
        seeds = 1  # nothing is drawn
    chosen = [few_shots(train_set, shots, seed) if shots else None for seed in range(seeds)]

    from dp4tl_fast.finetuning import probes
    from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD, LoaderSpec, open_loader
    from dp4tl_fast.training import checkpoint as checkpoints
    from dp4tl_fast.training import loop
    from dp4tl_fast.training.device import pick_device, pick_precision

    descent = partial(probes.make_optimizer, name=optimizer, weight_decay=weight_decay)
    epochs, lr = epochs or DEFAULTS[mode][0], lr or DEFAULTS[mode][1]
    place = pick_device(device)
    model, meta = checkpoints.load_model(checkpoint, arch)
    model.to(place)
    normalise = loop.Normalise(tuple(meta.get("mean", IMAGENET_MEAN)), tuple(meta.get("std", IMAGENET_STD)), place)
    side = size or meta.get("size", 224)
    common: dict[str, Any] = {"batch_size": batch_size, "size": side, "workers": workers, "pinned": place.type == "cuda"}

    def plain(beton: Beton) -> BaseLoader:
        return open_loader(beton, None, LoaderSpec.evaluation(**common), backend)

    def frozen(beton: Beton) -> Features:
        with plain(beton) as loader:
            return probes.features(model, loader, normalise)

    def finetuned(seed: int, records: np.ndarray | None) -> probes.Result:
        spec = LoaderSpec(
            **common, transform="random_resized_crop", scale=(min_scale, 1.0), flip=flip, shuffle=True, seed=seed,
            with_index=True,
        )  # fmt: skip
        fresh, _ = checkpoints.load_model(checkpoint, arch)
        with open_loader(train_set, records, spec, backend) as loader, plain(test_set) as test_loader:
            return probes.full_finetune(
                fresh.to(place), loader, test_loader, normalise, train_set.num_classes,
                seed=seed, epochs=epochs, lr=lr, descent=descent, precision=pick_precision(precision, place), on_epoch=bar.update,
            )  # fmt: skip

    def probed(seed: int, records: np.ndarray | None) -> probes.Result:
        x, y = cached if records is None else (tensor[records] for tensor in cached)
        if mode == "knn":
            return probes.knn_probe((x, y), cached_test, classes, neighbours=neighbours, temperature=temperature)
        return probes.linear_probe(
            (x, y), cached_test, classes,
            seed=seed, epochs=epochs, lr=lr, batch_size=batch_size, descent=descent, on_epoch=bar.update,
        )  # fmt: skip

    classes = train_set.num_classes
    with cli.progress(None, desc=f"{Path(out).name} ({mode})", unit="epoch", total=epochs * seeds) as bar:
        if mode != "ff":
            cached, cached_test = frozen(train_set), frozen(test_set)
        results = [(finetuned if mode == "ff" else probed)(seed, records) for seed, records in enumerate(chosen)]
    summary: dict[str, Any] = {
        "kind": "finetune",
        "mode": mode,
        "checkpoint": str(Path(checkpoint).resolve()),
        "train": str(train_set.path),
        "train_records_sha256": train_set.records_sha256,
        "test": str(test_set.path),
        "test_records_sha256": test_set.records_sha256,
        "seeds": seeds,
        "epochs": epochs,
        "lr": lr,
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "size": side,
        "min_scale": min_scale,
        "flip": flip,
        "shots": shots,
        "neighbours": neighbours,
        "temperature": temperature,
        "backend": backend,
        "precision": precision,
        "top_1_mean": fmean(r.last for r in results),
        "top_1_std": stdev(r.last for r in results) if seeds > 1 else 0.0,
        "top_1_best_mean": fmean(r.best for r in results),
        "top_1": [r.last for r in results],
        **accuracy.summary(np.stack([r.predicted.numpy() for r in results]), test_set, test_groups),
        "seconds": time.perf_counter() - start,
    }
    write_atomically(target, json.dumps(summary, indent=1) + "\n")
    cli.message(
        f"{mode} top-1 {100 * summary['top_1_mean']:.2f} ± {100 * summary['top_1_std']:.2f} % over {seeds} seeds, last epoch "
        f"(best epoch {100 * summary['top_1_best_mean']:.2f} %)"
    )
    if test_groups:
        cli.message(f"worst group {100 * summary['worst_group_mean']:.2f} ± {100 * summary['worst_group_std']:.2f} %")
    return summary

