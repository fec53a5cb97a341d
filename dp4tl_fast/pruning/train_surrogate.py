"""``prune --train-surrogate``: train a small network on the source for as long as it changes its mind.

Rounds of 1, 2, 4, 8, ... epochs, each a complete short run: a learning rate that has come down makes a better network than a longer
run that was cut off, and together they cost at most twice the last. After each round label mapping votes for every target. Training
is long enough when the network is no longer weak (``quality``) and two consecutive rounds agree on what to keep for every target.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dp4tl_fast.beton import Beton
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.stopwatch import Stopwatch
from dp4tl_fast.mapping.keep import Keep
from dp4tl_fast.pruning import quality
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.runs.folder import owned

if TYPE_CHECKING:
    from dp4tl_fast.mapping.registry import Scores

STABLE = 0.5  # of what two consecutive rounds keep, chance taken off; seen on Tiny-ImageNet: 0.1 while weak, 0.5 once not
LONGEST = 16  # epochs of the last round, whether the selection is stable by then or not
WITHOUT_TARGET = 4  # epochs at least, where no target can tell what is enough
QUARTER = Keep.parse("0.25")


def train(source: Beton, targets: list[Beton], config: PruneConfig, cache: Path | None) -> str:
    """Train in ``config.train_surrogate``, or take what is there, as far as it is enough. Returns the folder of the last round.

    With ``config.surrogate_epochs`` it is one run of that length, in the folder itself.
    """
    folder = Path(config.train_surrogate)
    if config.surrogate_epochs:
        return _pretrain(source, folder, config.surrogate_epochs, config)
    if (folder / "config.yaml").exists():
        raise UsageError(
            f"`train_surrogate={folder}`: holds a run of its own, but rounds go into subfolders. Use that run with "
            f"`surrogate={folder}`, or give another folder"
        )
    free = folder.exists() and not os.access(folder, os.W_OK)  # somebody else's, to be read: its rounds are complete, or refused
    with contextlib.nullcontext() if free else owned(folder):
        return _rounds(source, targets, config, cache, folder)


def _rounds(source: Beton, targets: list[Beton], config: PruneConfig, cache: Path | None, folder: Path) -> str:
    """Each twice as long as the one before, until the selection is stable. Returns the folder of the last one."""
    before: list[Scores] | None = None
    epochs, enough = 1, False
    while True:
        path = _pretrain(source, folder / f"epochs-{epochs}", epochs, config)
        weak, scores = _look(path, source, targets, config, cache)
        if targets:
            found = agreement(before, scores, source.class_counts, config) if before else 0.0
            enough = found >= STABLE
            said = f"keeps {100 * max(found, 0):.0f} % of what the round before kept, beyond chance" if before else "first votes"
        else:
            enough, said = epochs >= WITHOUT_TARGET, "no target to vote for"
        cli.message(f"surrogate after {_epochs(epochs)}: {said}{' (still weak)' if weak else ''}")
        if (enough and not weak) or epochs >= LONGEST:
            break
        epochs, before = 2 * epochs, scores
    if not enough:
        cli.message(
            f"warning: surrogate {path}: the last two rounds disagree on what to keep (at least {100 * STABLE:.0f} % should stay). "
            f"{quality.TRAIN_ANOTHER}"
        )
    seconds = training_seconds(path)
    share = f", {seconds / len(targets):.1f} s for each of {len(targets)} targets" if len(targets) > 1 else ""
    cli.message(f"surrogate {path}: {seconds:.1f} s of training in all{share}; `surrogate={path}` uses it again for other targets")
    return path


def agreement(before: list[Scores], after: list[Scores], sizes: np.ndarray, config: PruneConfig) -> float:
    """How much of what a round keeps the next one keeps, less what chance would: 1 is all, 0 no more than chance.

    The worst over the targets, of the narrowest cut of ``config``, or of a quarter of the classes where it cuts something else.
    """
    from dp4tl_fast.pruning.choose import choose

    rules = config.rules if config.groups == "classes" and config.rules else [QUARTER]
    found = []
    for a, b in zip(before, after, strict=True):
        cuts = [[choose([s], [1], sizes, rule, "sum", config.reverse).kept for s in (a, b)] for rule in rules]
        first, second = min(cuts, key=lambda pair: len(pair[1]))
        share = len(np.intersect1d(first, second)) / max(len(first), len(second))
        chance = min(len(first), len(second)) / np.count_nonzero(sizes)
        found.append(1.0 if chance == 1 else (share - chance) / (1 - chance))
    return min(found)


def sides(source: Beton, config: PruneConfig) -> tuple[int, int]:
    """Of the images in the first half of a round and in the second: a quarter and a half of the stored ones' side, at most 128."""
    if config.size:
        return max(8, config.size // 2), config.size
    shorter = np.minimum(source.images["height"], source.images["width"])
    high = int(np.clip(np.median(shorter) // 2 // 16 * 16, 16, 128))
    return max(16, high // 2), high


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count > 1)}"


def training_seconds(path: str) -> float:
    """What training took that led to the run folder ``path``: of rounds, all up to it."""
    here = Path(path)
    rounds = [here]
    if here.name.startswith("epochs-"):
        last = int(here.name.removeprefix("epochs-"))
        rounds = [here.parent / f"epochs-{2**i}" for i in range(last.bit_length())]
    summaries = [r / "summary.json" for r in rounds]
    return sum(float(json.loads(s.read_text())["pretrain_s"]) for s in summaries if s.is_file())


def _look(
    path: str, source: Beton, targets: list[Beton], config: PruneConfig, cache: Path | None
) -> tuple[bool, list[Scores]]:
    """Whether a round's network is weak on its own source, and its votes for each target."""
    from dp4tl_fast.mapping.registry import lm
    from dp4tl_fast.pruning.scoring import SourceInputs
    from dp4tl_fast.pruning.surrogate import Surrogate

    network = Surrogate(path, config, Stopwatch("training"))
    inputs = SourceInputs(source, network, cache, "classes", config.clusters, config.seed, [], "")
    accuracy = quality.measure(inputs, classifier=True, val=None)
    return accuracy is not None and accuracy.weak, [lm(inputs, inputs.target(t)) for t in targets]


def _pretrain(source: Beton, folder: Path, epochs: int, config: PruneConfig) -> str:
    """A short run, or what is left of it to do."""
    from dp4tl_fast.pretraining.config import CheckpointConfig, PretrainConfig
    from dp4tl_fast.pretraining.run import pretrain

    low, high = sides(source, config)
    rising: dict[str, Any] = {"size": low, "end_size": high, "end_size_from": epochs // 2}
    arch = config.arch or ("small-32" if high <= 64 else "resnet18")
    cli.message(f"training the surrogate in {folder}: {arch}, {_epochs(epochs)} at {low} and {high} pixels")
    pretrain(
        PretrainConfig(
            source=config.source, out=str(folder), arch=arch, epochs=epochs, warmup_epochs=epochs / 4,
            batch_size=min(256, source.num_samples), checkpoint=CheckpointConfig(every=epochs), tensorboard=False,
            resume=(folder / "config.yaml").exists(), forgetting=True, backend=config.backend, device=config.device,
            workers=config.workers, seed=config.seed, cache_dir=config.cache_dir, cache_limit=config.cache_limit,
            on_bad_record=config.on_bad_record, max_bad=config.max_bad, **rising,
        )
    )  # fmt: skip
    return str(folder)
