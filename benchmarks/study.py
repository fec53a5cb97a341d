"""Pretrain the same network on several selections of one source, finetune each for one target, compare: what the suites
``end_to_end``, ``objectives`` and ``sensitivity`` have in common. Everything goes through the functions behind the commands.

Tiny-ImageNet is the source, CIFAR-10 the target; ``--data DIR`` holds ``tiny-imagenet/{train,val}`` and
``cifar10/{train,test}``, folders of class folders. How long and how large they train is in ``benchmarks/recipes.py``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.harness import Suite
from benchmarks.recipes import Recipe
from dp4tl_fast.beton import Beton
from dp4tl_fast.conversion.run import convert
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.pretraining.config import CheckpointConfig, PretrainConfig
from dp4tl_fast.pretraining.objectives import OBJECTIVES
from dp4tl_fast.pretraining.run import pretrain
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.run import prune
from dp4tl_fast.selection import Selection

MODES = {"lp": "cifar10 linear probe", "ff": "cifar10 full finetuning", "knn": "cifar10 nearest neighbours"}
FOLDERS = {
    "source": "tiny-imagenet/train",
    "val": "tiny-imagenet/val",
    "train": "cifar10/train",
    "test": "cifar10/test",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to pretrain on.

    Attributes:
        name: Its subject in the tables, and its folder.
        prune: Options of ``prune``; without them the full source is read. A random choice is drawn anew for every seed.
        network: Where the network's recipe differs from the study's.
    """

    name: str
    prune: dict[str, Any] | None = None
    network: dict[str, Any] = field(default_factory=dict)


class Study:
    """Cases × seeds × ways to finetune, in ``root``. What is finished there is not done again.

    Args:
        network: What is pretrained; the recipe's own by default.
        modes: Ways to finetune, of the recipe's.
    """

    def __init__(
        self, root: Path, data: Path, recipe: Recipe, modes: Sequence[str], network: dict[str, Any] | None = None
    ) -> None:
        self.root, self.recipe, self.modes = root, recipe, modes
        self.network = recipe.network if network is None else network
        self.files = {name: root / f"{name}.beton" for name in FOLDERS}
        for name, file in self.files.items():
            if not file.exists():
                convert(str(data / FOLDERS[name]), str(file))
        self.runs: dict[str, list[dict[str, Any]]] = {}  # case -> what each seed's run came to

    def surrogate(self, name: str, **recipe: Any) -> dict[str, Any]:
        """Train a surrogate in ``root/name``; returns its summary."""
        classifies = OBJECTIVES[recipe.get("objective", "supervised")].classifies
        validate: dict[str, Any] = {"val": str(self.files["val"])} if classifies else {}
        every: dict[str, Any] = {"val_every": recipe["epochs"], "checkpoint": CheckpointConfig(every=recipe["epochs"])}
        out = str(self.root / name)
        return pretrain(PretrainConfig(source=str(self.files["source"]), out=out, resume=True, **validate, **every, **recipe))

    def select(self, case: Case, seed: int) -> Path | None:
        """The selection of a case."""
        if case.prune is None:
            return None
        options = {"surrogate": str(self.root / "surrogate"), "target": [str(self.files["train"])], **case.prune}
        if options.get("method") == "random":
            options = {"method": "random", "keep": options["keep"], "seed": seed}
        out = self.root / "selections" / (f"{case.name}-{seed}.json" if "seed" in options else f"{case.name}.json")
        if not out.exists():
            prune(PruneConfig(source=str(self.files["source"]), out=str(out), **options))
        return out

    def chosen(self, case: Case) -> Selection:
        """What a case keeps (with the first seed)."""
        path = self.select(case, 0)
        assert path is not None
        return Selection.load(path)

    def run(self, cases: Sequence[Case], seeds: Sequence[int]) -> None:
        """Everything, interleaved: a slow minute of the machine hits all cases alike."""
        for seed in seeds:
            for case in cases:
                self.runs.setdefault(case.name, []).append(self._one(case, seed))

    def _one(self, case: Case, seed: int) -> dict[str, Any]:
        selection, out = self.select(case, seed), self.root / "runs" / f"{case.name}-{seed}"
        recipe = {**self.network, **case.network}
        config = PretrainConfig(
            source=str(self.files["source"]), out=str(out), selection=str(selection) if selection else None, seed=seed,
            checkpoint=CheckpointConfig(every=recipe["epochs"]), resume=True, **recipe,
        )  # fmt: skip
        summary = pretrain(config)
        for mode in self.modes:
            path = Path(f"{out}-{mode}")
            if not (path / "summary.json").exists():
                finetune(FinetuneConfig(
                    checkpoint=str(out), train=str(self.files["train"]), test=str(self.files["test"]), out=str(path),
                    mode=mode, seeds=1, tensorboard=False, **self.recipe.transfer[mode],
                ))  # fmt: skip
            summary[mode] = 100 * json.loads((path / "summary.json").read_text())["top_1_mean"]
        return summary

    def collect(self, value: Callable[[dict[str, Any]], float]) -> dict[str, list[float]]:
        """Case -> a number of each seed's run."""
        return {name: [value(run) for run in runs] for name, runs in self.runs.items()}

    def mean(self, name: str, mode: str) -> float:
        """Mean accuracy of a case over its seeds, in percent."""
        return fmean(run[mode] for run in self.runs[name])

    def record(self, suite: Suite, reference: str) -> None:
        """Rows of everything; costs are compared with the case ``reference``."""
        self.record_accuracy(suite)
        suite.add("classes", self.collect(lambda r: r["classes_kept"]), "classes")
        suite.add("images seen", self.collect(lambda r: r["samples"] * r["epochs"]), "images")
        suite.add("pretraining", self.collect(lambda r: r["pretrain_s"]), "s", ratio_to=reference)
        suite.add(
            "pretraining with pruning", self.collect(lambda r: r["pretrain_s"] + r["pruning_s"]), "s", ratio_to=reference
        )
        suite.add("bytes read", self.collect(lambda r: r["bytes_read"]), "bytes", ratio_to=reference)
        suite.add("images per second", self.collect(lambda r: r["samples_per_s"]), "images/s")
        suite.add("waiting for data", self.collect(lambda r: 100 * r["data_wait_share"]), "% of the time")

    def record_accuracy(self, suite: Suite) -> None:
        """Rows of what each case is worth on the target."""
        for mode in self.modes:
            suite.add(MODES[mode], self.collect(itemgetter(mode)), "% top-1")

    def describe(self, suite: Suite, seeds: Sequence[int], **more: Any) -> None:
        """What a reader needs to judge the rows."""
        source, train, test = (Beton(self.files[f]) for f in ("source", "train", "test"))
        suite.settings |= {
            "source": f"{source.num_samples:,} images of {source.num_classes} classes",
            "target": f"{train.num_samples:,} training and {test.num_samples:,} test images of {train.num_classes} classes",
            **({"seeds": len(seeds), "network": self.network} if seeds else {}),
            "recipe": self.recipe.name,
            **{mode: self.recipe.transfer[mode] for mode in self.modes},
            **more,
        }


def shown(method: str, keep: str) -> str:
    """A method and the share that it keeps, as a case's name: ``lm 40 %``."""
    return f"{method} {100 * float(keep):.0f} %"


@contextmanager
def study(suite: Suite, recipe: Recipe, modes: Sequence[str], network: dict[str, Any] | None = None) -> Iterator[Study]:
    """A ``Study`` in ``--work``, where an interrupted one continues, or else in a temporary folder."""
    data = suite.require_data()
    with tempfile.TemporaryDirectory(prefix="dp4tl-study-") as temporary:
        root = suite.work / suite.name if suite.work else Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        yield Study(root, data, recipe, modes, network)


def votes_carried(selection: Selection) -> float:
    """Share of the target's images that chose a kept class, in percent."""
    return 100 * sum(selection.scores[c] for c in selection.kept_classes) / sum(selection.scores)
