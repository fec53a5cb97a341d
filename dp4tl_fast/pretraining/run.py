"""Train on a source, or on a selection of it, and measure."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.files import npy_bytes, write_atomically
from dp4tl_fast.pretraining import initial
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.pretraining.folder import check_run, epochs_of, open_source, settings_of, summarise
from dp4tl_fast.runs.folder import owned
from dp4tl_fast.runs.trackers import Callback
from dp4tl_fast.selection import Selection
from dp4tl_fast.training.ranks import on_rank_zero, process_group, rank


@process_group()
def pretrain(config: PretrainConfig, *, callback: Callback | None = None) -> dict[str, Any]:
    """Train a network on a source, or on the classes that a selection keeps, and measure the cost.

    Reads only the records of the selection. --resume continues an interrupted run (Ctrl-C, SIGTERM, a crash). Under torchrun, the
    processes share each batch, and the first writes the run folder. Shipped recipes, for --config NAME: resnet18,
    resnet50, resnet101, resnet152, vit_b_16, adversarial_resnet18 and moco_v2_resnet101 (the paper's), moco_v3_vit_b_16,
    fast_resnet50, small_32px, small_64px.

    Args:
        config: What to train, on what, how.
        callback: In Python: called on the first process with the run folder and the metrics of every epoch, by their names in
            metrics.jsonl. What it raises ends the run, which can be resumed.
    """
    if config.compare:
        from dp4tl_fast.pretraining.side_by_side import side_by_side

        return side_by_side(config, partial(pretrain, callback=callback))
    source, selection = open_source(config)
    config = replace(config, epochs=epochs_of(config, source, selection))
    out, settings = Path(config.out), settings_of(config, source, selection)
    finished = on_rank_zero(lambda: check_run(config, settings))
    if finished is None:
        with owned(out) as guard:
            finished = on_rank_zero(lambda: check_run(config, settings))  # another may have ended meanwhile
            if finished is None:
                return _train(config, settings, source, selection, guard, callback)
    if rank() == 0:
        cli.message(f"{out}: this run is complete; nothing to do")
    return finished


def _train(
    config: PretrainConfig, settings: dict[str, Any], source: Beton, selection: Selection | None, guard: Callable[[], None],
    callback: Callback | None,
) -> dict[str, Any]:  # fmt: skip
    from dp4tl_fast.pretraining.batches import eval_size, open_eval, open_train
    from dp4tl_fast.pretraining.learner import build
    from dp4tl_fast.pretraining.training import Training
    from dp4tl_fast.training import checkpoint
    from dp4tl_fast.training.trial import try_forward, try_out

    out = Path(config.out)
    if config.val:  # fail now, not after an epoch
        val = Beton(config.val, **config.cached)
        with open_eval(val, selection, config):
            source.check_split(val)
    with open_train(config, source, selection) as loader:
        learner = build(config, source, selection, len(loader) * config.epochs, settings.get(initial.HASH))
        device = learner.normalise.device
        for size in {config.size, config.end_size or config.size}:
            least = loader.spec.batch_size // config.accumulate
            joint = learner.run.joint
            try_out(joint.network, config.arch, size, device, least=least, head=joint.objective)
        if config.val:
            try_forward(copy.deepcopy(learner.run.model), config.arch, eval_size(config), device)
        training = Training(config, settings, selection, learner, loader, guard, callback)
        training.run()

    def finish() -> dict[str, Any]:
        guard()
        if config.forgetting:
            write_atomically(out / "forgetting.npy", npy_bytes(learner.run.objective.counts()))  # type: ignore[attr-defined]
        summary = summarise(out, config, source, selection, learner.how.precision, learner.normalise.device)
        summary["bad_records"] = len(training.bad.known)
        summary["weights_sha256"] = checkpoint.hashes(out)
        summary["settings"] |= {k: v for k, v in settings.items() if k == initial.HASH}
        write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
        return summary

    return on_rank_zero(finish)
