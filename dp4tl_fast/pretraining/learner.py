"""What a pretraining run trains: network, objective and optimiser, made from its settings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.pretraining.batches import eval_size
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.pretraining.initial import initialise
from dp4tl_fast.pretraining.objectives import OBJECTIVES, Given
from dp4tl_fast.runs.session import Learner
from dp4tl_fast.selection import Selection
from dp4tl_fast.training import checkpoint, models, norm, ranks, views
from dp4tl_fast.training.device import PRECISIONS, pick_device, precision_of_run
from dp4tl_fast.training.ema import Ema
from dp4tl_fast.training.loop import Stepping
from dp4tl_fast.training.optimizer import make_optimizer
from dp4tl_fast.training.preprocessing import Preprocessing, start_meta
from dp4tl_fast.training.state import Run


def build(
    config: PretrainConfig, source: Beton, selection: Selection | None, total_steps: int, init_sha256: str | None = None
) -> Learner:
    """Network, objective and optimiser on their device, initialised from the seed or ``init``: the same on every rank."""
    device = pick_device(config.device)
    if device.index is not None and ranks.world_size() > 1:
        raise UsageError(f"`device={config.device}`: torchrun gives each process a GPU of its own. Use `device={device.type}`")
    precise = precision_of_run(config.precision, device, Path(config.out) / "checkpoint")
    precision = PRECISIONS[precise]
    torch.manual_seed(config.seed)
    classes = selection.kept_classes if selection else list(range(source.num_classes))
    num_classes = len(classes) if config.compact_labels else source.num_classes
    names = [source.class_names[c] for c in classes] if config.compact_labels else list(source.class_names)
    model = models.build(config.arch, num_classes, blur_pool=config.blur_pool, size=config.size)
    origin = initialise(model, config, names, init_sha256)
    wanted: dict[str, Any] = {k: origin[k] for k in ("mean", "std", "interpolation") if k in origin}
    pixels = Preprocessing.of({**wanted, "size": eval_size(config)}).as_loaded(str(config.init))
    model.to(device)
    if config.sync_bn:
        model = norm.synchronise(model, device)
    facts = OBJECTIVES[config.objective]
    network = model if facts.classifies else models.headless(model)
    renumber = None
    if config.compact_labels:
        renumber = torch.full((source.num_classes,), -1)
        renumber[classes] = torch.arange(len(classes))
    width = models.head(model)[1].in_features
    objective = facts.make(Given(config, network, width, source, renumber, total_steps, pixels)).to(device)
    if config.sync_bn:
        objective = norm.synchronise(objective, device)
    trained = [*network.parameters(), *objective.parameters()]
    optimizer = make_optimizer(trained, config.optimizer, config.peak_lr, config.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    ema = Ema(model, config.ema_decay) if config.ema_decay else None
    if config.compile:
        network.compile(dynamic=False)  # in place: names of weights stay; a graph of its own for each resolution
    run = Run(model, objective, optimizer, scaler, network=network, ema=ema, seed=config.seed)
    normalise = pixels.normalise(device)
    prepare = views.Recolour(normalise, config.seed, facts.colours()) if facts.colours else normalise
    meta = {
        "arch": config.arch,
        "num_classes": num_classes,
        "class_names": names,
        **pixels.meta(),
        **models.size_meta(model),
        **start_meta(origin),
        "classes": classes if config.compact_labels else None,
        "blur_pool": config.blur_pool,
        "source": source.fingerprint,
        "source_records_sha256": source.records_sha256,
        "objective": config.objective,
        "classifies": facts.classifies,
        **({"attack": asdict(config.adv)} if config.objective == "adversarial" else {}),
        checkpoint.PRECISION: precise,
        **({"start_sha256": init_sha256} if init_sha256 else {}),
    }
    return Learner(run, normalise, prepare, Stepping(precision, config.accumulate, config.clip_norm), meta)

