"""Where does ``--keep auto`` cut, and what does a sweep over the share of classes say there? Tiny-ImageNet to CIFAR-10.

The same small network is pretrained for the same epochs on the best 10 %, 20 %, ... of the classes by label mapping, and
on what ``auto`` keeps; a linear probe says what each is worth. A *short run*, as in ``end_to_end``, whose settings and
data it takes: about 11 minutes on two CPU cores. With so few epochs more classes are also more steps, so the sweep rises
where a converged one would be flat.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import end_to_end
from benchmarks.harness import Suite
from dp4tl_fast.finetune import finetune
from dp4tl_fast.pretrain import PretrainConfig, pretrain
from dp4tl_fast.prune import prune
from dp4tl_fast.selection import Selection

SEEDS = (0,)
SHARES = tuple(f"{tenths / 10}" for tenths in range(1, 11))
RULES = ("auto:0.75", "auto")  # of the votes
# Better than end_to_end's: one that has hardly learned gathers the votes in few classes, and auto follows the votes.
SURROGATE = {**end_to_end.SURROGATE, "arch": "small-16", "epochs": 6}


def run(suite: Suite) -> None:
    with tempfile.TemporaryDirectory(prefix="dp4tl-auto-") as folder:
        root = Path(folder)
        files = end_to_end.convert_all(suite.require_data(), root)
        pretrain(PretrainConfig(source=str(files["source"]), out=str(root / "surrogate"), **SURROGATE))
        chosen = {keep: _select(root, files, keep) for keep in (*SHARES, *RULES)}
        subjects = [f"keep {keep}" for keep in chosen]
        seconds: dict[str, list[float]] = {subject: [] for subject in subjects}
        accuracy: dict[str, list[float]] = {subject: [] for subject in subjects}
        for seed in SEEDS:
            for subject, path in zip(subjects, chosen.values(), strict=True):
                spent, top_1 = _train(root, files, path, seed)
                seconds[subject].append(spent)
                accuracy[subject].append(100 * top_1)
        selections = {subject: Selection.load(path) for subject, path in zip(subjects, chosen.values(), strict=True)}
    everything = f"keep {SHARES[-1]}"
    suite.add("classes kept", {subject: [len(s.kept_classes)] for subject, s in selections.items()}, "classes")
    suite.add("votes carried", {subject: [_votes(s)] for subject, s in selections.items()}, "%")
    suite.add("pretraining", seconds, "s", ratio_to=everything)
    suite.add("cifar10 linear probe", accuracy, "% top-1", ratio_to=everything)


def _select(root: Path, files: dict[str, Path], keep: str) -> Path:
    out = root / f"{keep.replace(':', '-')}.json"
    prune(
        source=str(files["source"]), target=[str(files["train"])], surrogate=str(root / "surrogate"), keep=keep, out=str(out)
    )  # fmt: skip
    return out


def _train(root: Path, files: dict[str, Path], selection: Path, seed: int) -> tuple[float, float]:
    """Seconds of pretraining on a selection, and the accuracy of the linear probe on it."""
    out = root / "runs" / f"{selection.stem}-{seed}"
    config = PretrainConfig(
        source=str(files["source"]), out=str(out), selection=str(selection), seed=seed, **end_to_end.NETWORK
    )
    spent = pretrain(config)["pretrain_s"]
    probe = finetune(
        checkpoint=str(out), train=str(files["train"]), test=str(files["test"]), out=f"{out}-lp", seeds=1,
        **end_to_end.TRANSFER["lp"],
    )  # fmt: skip
    return spent, probe["top_1_mean"]


def _votes(selection: Selection) -> float:
    """Share of the target's images that chose a kept class, in percent."""
    return 100 * sum(selection.scores[c] for c in selection.kept_classes) / sum(selection.scores)
