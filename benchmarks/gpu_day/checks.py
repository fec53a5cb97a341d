"""Is it right? What a GPU computes against what the CPU does, and the same run in other ways.

A check raises SystemExit when it fails; what it measured goes into the table.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_day.photos import photos
from benchmarks.gpu_day.setting import Setting
from benchmarks.harness import Suite
from benchmarks.kernel_checks import check_kernels
from dp4tl_fast.beton import Beton
from dp4tl_fast.common.cli import Terminated
from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.loaders import BACKENDS, LoaderSpec, open_loader
from dp4tl_fast.loaders.spec import IMAGENET_MEAN, IMAGENET_STD
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.pretraining.run import pretrain
from dp4tl_fast.training import checkpoint
from dp4tl_fast.training.loop import Normalise
from dp4tl_fast.training.state import Joint
from dp4tl_fast.training.views import MOCO_V2, Recolour

# Sums in another order and fused operations: float32 rounds at 2^-24, and recolouring chains about 20 operations on values up to 3.
PIXEL_TOLERANCE = 1e-4
LOSS_TOLERANCE = 0.02  # relative, of the first epoch's mean loss, in another precision or compiled


def kernels(suite: Suite, setting: Setting) -> None:
    """Every Triton kernel against its reference, over random shapes."""
    most = setting.size((5_000, 3_000, 2_100), (40, 30, 20))
    cases = check_kernels(setting.device, "triton", setting.size(90, 3), most)
    suite.add("kernels-equal-references", {"Triton": [cases]}, "cases")


def _photos(setting: Setting) -> Beton:
    return photos(setting.folder, *setting.size((512, 8, 500, 375), (16, 2, 60, 50)))


def pinned(suite: Suite, setting: Setting) -> None:
    """Batches in page-locked memory, copied while others are decoded, against batches in plain memory; and other backends."""
    found = _photos(setting)
    batch, size = setting.size((64, 160), (4, 16))
    spec = LoaderSpec(batch_size=batch, size=size, transform="random_resized_crop", shuffle=True, flip=True, with_index=True)
    with open_loader(found, None, spec) as loader:
        expected = list(loader)
    specs = {"pinned": replace(spec, pinned=not setting.rehearsal), "on the device": replace(spec, device=setting.device)}
    for name, own in specs.items():
        with open_loader(found, None, own) as loader:
            got = [(x.to(setting.device, non_blocking=True), y, i) for x, y, i in loader]
        setting.wait()
        pairs = [pair for batches in zip(got, expected, strict=True) for pair in zip(*batches, strict=True)]
        if not all(torch.equal(a.cpu(), b) for a, b in pairs):
            raise SystemExit(f"batches of the native loader, {name}, are not those in plain memory")
    suite.add("batches-equal", {"native": [len(expected)]}, "batches")
    for backend in (b for b in BACKENDS if b != "native"):
        try:
            with open_loader(found, None, replace(spec, device=setting.device), backend) as loader:
                other = list(loader)
        except BackendError as error:
            suite.leave_out(backend, error)
            continue
        both = list(zip(expected, other, strict=True))
        if not all(torch.equal(a.labels, b.labels.cpu()) and torch.equal(a.index, b.index.cpu()) for a, b in both):
            raise SystemExit(f"{backend} delivers other records than the native loader")
        away = [float((a.images.float() - b.images.cpu().float()).abs().mean()) for a, b in both]
        suite.add("mean-difference-from-native", {backend: [float(np.mean(away))]}, "levels")
        if np.mean(away) > 4:  # decoders and resizers differ by a level or two; another crop differs by dozens
            raise SystemExit(f"{backend}'s pixels are {np.mean(away):.1f} levels from the native loader's")


def preprocessing(suite: Suite, setting: Setting) -> None:
    """Normalisation and recolouring on the device against the CPU."""
    generator = torch.Generator().manual_seed(0)
    n, side = setting.size((64, 160), (4, 16))
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    index, worst = torch.arange(n), {}
    for name, recipes in (("normalise", ()), ("recolour", MOCO_V2)):
        results = []
        for device in ("cpu", setting.device):
            normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, torch.device(device))
            prepare: Any = Recolour(normalise, 3, recipes) if recipes else normalise
            results.append(torch.stack([view.cpu() for view in prepare((images,) * max(1, len(recipes)), index, 1)]))
        worst[name] = [float((results[0] - results[1]).abs().max())]
    suite.add("preprocessing-largest-difference", worst, "standard deviations")
    if wrong := [name for name, (value,) in worst.items() if not value <= PIXEL_TOLERANCE]:
        raise SystemExit(f"{wrong}: more than {PIXEL_TOLERANCE} from the CPU's: {worst}")


def _run(setting: Setting, name: str, **changes: Any) -> Path:
    """A short pretraining run of that name in the stage's folder."""
    found = _photos(setting)
    config = PretrainConfig(**{
        "source": str(found.path), "out": str(setting.folder / name), "arch": setting.size("resnet18", "small-4"), "epochs": 2,
        "size": setting.size(96, 16), "batch_size": setting.size(64, 4), "lr": 0.02, "warmup_epochs": 0.5, "precision": "fp32",
        "device": setting.device, "tensorboard": False, **changes,
    })  # fmt: skip
    pretrain(config)
    return Path(config.out)


def _losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def _compare_losses(suite: Suite, case: str, runs: dict[str, Path]) -> None:
    """Of the first epoch; the first run is what the others are compared with."""
    losses = {name: _losses(run) for name, run in runs.items()}
    suite.add(case, {name: values[:1] for name, values in losses.items()}, "loss")
    (reference, expected), *others = losses.items()
    for name, values in others:
        if not all(map(math.isfinite, values)) or abs(values[0] - expected[0]) > LOSS_TOLERANCE * expected[0]:
            raise SystemExit(f"loss of {name}: {values}, of {reference}: {expected}")


def amp(suite: Suite, setting: Setting) -> None:
    """Training in bf16 and fp16 (whose gradients are scaled) against fp32."""
    runs = {precision: _run(setting, f"amp-{precision}", precision=precision) for precision in ("fp32", "bf16", "fp16")}
    _compare_losses(suite, "amp-first-epoch", runs)


def compiled(suite: Suite, setting: Setting) -> None:
    """Training with ``--compile`` against without, in bf16; two sizes, as progressive resolution has them."""
    more = {"precision": setting.size("bf16", "fp32"), "end_size": setting.size(128, 24), "end_size_from": 1}
    runs = {name: _run(setting, name, compile=name == "compiled", **more) for name in ("eager", "compiled")}
    _compare_losses(suite, "compile-first-epoch", runs)


def resume(suite: Suite, setting: Setting) -> None:
    """A run stopped by SIGTERM in mid-epoch and continued sees the same images at the same steps, and ends with those weights."""
    arch = setting.size("small-16", "small-4")  # no max pooling, whose gradient is summed in any order
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)  # what has none says so on stderr
    with _watched() as whole:
        one = _run(setting, "whole", arch=arch)
    stop = len(whole) * 3 // 4  # in the second of two epochs
    with _watched(stop) as seen:
        try:
            _run(setting, "stopped", arch=arch)
            raise SystemExit(f"the run did not stop at SIGTERM in step {stop}")
        except Terminated:
            other = _run(setting, "stopped", arch=arch, resume=True)
    suite.add("resume", {"steps seen": [len(seen)], "steps of the whole run": [len(whole)]}, "steps")
    if seen != whole:
        first = next((i for i, (a, b) in enumerate(zip(seen, whole, strict=False)) if a != b), min(len(seen), len(whole)))
        raise SystemExit(f"stopped in step {stop} and continued, it saw other images than the whole run from step {first} on")
    weights = [checkpoint.read_weights(run)[0] for run in (one, other)]
    away = max(float((weights[0][k].float() - weights[1][k].float()).abs().max()) for k in weights[0])
    suite.add("resume-weights", {"largest difference": [away]}, "")
    if away > 0:  # with deterministic algorithms, everything that a step computes follows from what was saved
        raise SystemExit(f"the weights of the continued run are up to {away:.3g} from those of the whole run")


@contextmanager
def _watched(stop: int = -1) -> Iterator[list[str]]:
    """Notes a hash of every step's images and record numbers, and sends this process SIGTERM in step ``stop``."""
    seen: list[str] = []

    def note(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if not isinstance(module, Joint):
            return
        images, _, index = arguments
        seen.append(hashlib.sha256(images.detach().cpu().contiguous().numpy().tobytes() + index.numpy().tobytes()).hexdigest())
        if len(seen) == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
