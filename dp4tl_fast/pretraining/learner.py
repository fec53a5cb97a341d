"""What a pretraining run trains: network, objective and optimiser, made from its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.loaders import IMAGENET_MEAN, IMAGENET_STD
from dp4tl_fast.pretraining.batches import eval_size
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.selection import Selection
from dp4tl_fast.training import models, norm, ranks, views
from dp4tl_fast.training.adversarial import Adversarial
from dp4tl_fast.training.device import pick_device, pick_precision
from dp4tl_fast.training.ema import Ema
from dp4tl_fast.training.forgetting import Forgetting
from dp4tl_fast.training.loop import Normalise, Stepping
from dp4tl_fast.training.moco import MoCo
from dp4tl_fast.training.moco_v3 import MoCoV3
from dp4tl_fast.training.state import Run
from dp4tl_fast.training.supervised import Supervised


@dataclass
class Learner:
    """What is trained, how, and how batches reach it."""

    run: Run
    normalise: Normalise
    prepare: Any  # normalise, or what augments colours before it
    how: Stepping
    meta: dict[str, Any]  # what a checkpoint says of its network


@dataclass
class Given:
    """What an objective may be made from."""

    config: PretrainConfig
    network: nn.Module
    width: int  # of the network's features
    source: Beton
    renumber: torch.Tensor | None
    total_steps: int


def build(config: PretrainConfig, source: Beton, selection: Selection | None, total_steps: int) -> Learner:
    """Network, objective and optimiser on their device, freshly initialised from the seed: the same on every rank."""
    device = pick_device(config.device)
    if device.index is not None and ranks.world_size() > 1:
        raise UsageError(f"--device {config.device}: torchrun gives each process a GPU of its own. Use --device {device.type}")
    precision = pick_precision(config.precision, device)
    torch.manual_seed(config.seed)
    classes = selection.kept_classes if selection else list(range(source.num_classes))
    num_classes = len(classes) if config.compact_labels else source.num_classes
    model = models.build(config.arch, num_classes, blur_pool=config.blur_pool).to(device)
    if config.sync_bn:
        model = norm.synchronise(model, device)
    network = models.headless(model) if config.views > 1 else model
    renumber = None
    if config.compact_labels:
        renumber = torch.full((source.num_classes,), -1)
        renumber[classes] = torch.arange(len(classes))
    width = models.head(model)[1].in_features
    objective = OBJECTIVES[config.objective](Given(config, network, width, source, renumber, total_steps)).to(device)
    if config.sync_bn:
        objective = norm.synchronise(objective, device)
    optimizer = make_optimizer((network, objective), config.optimizer, config.peak_lr, config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    ema = Ema(model, config.ema_decay) if config.ema_decay else None
    if config.compile:
        network.compile(dynamic=False)  # in place: names of weights stay; a graph of its own for each resolution
    run = Run(model, objective, optimizer, scaler, network=network, ema=ema, seed=config.seed)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, device)
    colours = COLOURS.get(config.objective)
    prepare = views.Recolour(normalise, config.seed, colours) if colours else normalise
    meta = {
        "arch": config.arch,
        "num_classes": num_classes,
        "size": eval_size(config),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "classes": classes if config.compact_labels else None,
        "blur_pool": config.blur_pool,
        "source": source.fingerprint,
        "source_records_sha256": source.records_sha256,
        "objective": config.objective,
    }
    return Learner(run, normalise, prepare, Stepping(precision, config.accumulate, config.clip_norm), meta)


def _supervised(given: Given) -> Any:
    plain = Supervised(given.config.label_smoothing, given.renumber)
    if not given.config.forgetting:
        return plain
    if ranks.world_size() > 1:
        raise UsageError("--forgetting: counts in one process only. Run it without torchrun")
    return Forgetting(plain, given.source.index)


def _adversarial(given: Given) -> Any:
    config = given.config
    return Adversarial(
        eps=config.adv_eps / 255, steps=config.adv_steps, norm=config.adv_norm, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        label_smoothing=config.label_smoothing, renumber=given.renumber,
    )  # fmt: skip


def _moco(given: Given) -> Any:
    config = given.config
    return MoCo(
        given.network, given.width, queue=config.moco_queue, momentum=config.moco_momentum,
        temperature=config.moco_temperature,
    )  # fmt: skip


def _moco_v3(given: Given) -> Any:
    config, patches = given.config, models.patch_projection(given.network)
    if patches is not None:
        patches.requires_grad_(False)  # random and fixed: trained, it makes ViTs unstable (section 4.2 of the paper)
    return MoCoV3(
        given.network, given.width, total_steps=given.total_steps, momentum=config.moco_momentum,
        temperature=config.moco_temperature, layers=2 if patches is None else 3,
    )  # fmt: skip


OBJECTIVES: dict[str, Callable[[Given], Any]] = {
    "supervised": _supervised,
    "moco": _moco,
    "moco_v3": _moco_v3,
    "adversarial": _adversarial,
}
COLOURS = {"moco": views.MOCO_V2, "moco_v3": views.MOCO_V3}


def make_optimizer(modules: Sequence[nn.Module], name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 or AdamW; biases and normalisation are not decayed."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True)
        # torch takes uninitialised memory for the momentum, and leaves it so if loss scaling skips the very first step.
        for p in parameters:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
    return torch.optim.AdamW(groups, lr=lr, fused=True)
