"""What scoring costs: Tiny-ImageNet for CIFAR-10, by every method, through the command and its own profile.

``overhead``: the time of label mapping that is not the surrogate's forward pass, as a share of it, for surrogates of random
weights (their speed does not depend on them). ``another ratio``: the whole command, process start included, once features are
cached. ``seconds per method``: with one trained surrogate, features of source and target cached. The survivors of label and
feature mapping at 20 % are listed by name in the settings, to be judged by a reader. About 8 minutes on two CPU cores.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.harness import Suite, interleave
from benchmarks.recipes import Options, Recipe, find
from benchmarks.study import Study, study
from dp4tl_fast.beton import Beton
from dp4tl_fast.mapping.registry import METHODS
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.run import prune
from dp4tl_fast.selection import Selection
from dp4tl_fast.selection.names import readable
from dp4tl_fast.training.models import build

TARGET, KEEP = "cifar10", "0.2"
UNTRAINED = (("small-16", 16), ("small-32", 32), ("small-64", 32), ("resnet18", 64))
VARIANTS: dict[str, dict[str, Any]] = {  # what a method is run with besides the surrogate and the target
    "handpicked": {"classes": ["0", "1"], "keep": ""},
    "fm, kmeans": {"method": "fm", "groups": "kmeans", "clusters": 200},
    "ssl-prototypes": {"clusters": 200},
}


def trained(recipe: Recipe) -> Options:
    """The surrogate that every method is run with."""
    return {**recipe.surrogate, "arch": "small-32", "size": 32, "epochs": 6, "forgetting": True}


def run(suite: Suite) -> None:
    recipe = find(suite.recipe)
    with study(suite, recipe, (TARGET,), (), surrogates={"surrogate": trained(recipe)}) as work:
        _overhead(suite, work)
        work.surrogate("surrogate", 0)
        _another_ratio(suite, work)
        _every_method(suite, work)
        kept = {name: _survivors(suite, work, name) for name in ("lm", "fm")}
        work.describe(suite, **{f"kept by {name}": ", ".join(names) for name, names in kept.items()})


def _prune(work: Study, method: str, **options: Any) -> dict[str, Any]:
    """One run of the command's function; what the method does not need is left out."""
    surrogate, target = work.surrogate_folder("surrogate", 0), work.files[f"{TARGET}-train"]
    given: dict[str, Any] = {"surrogate": str(surrogate), "target": [str(target)]}
    needs = METHODS[method].needs
    options = {"keep": KEEP, **{name: value for name, value in given.items() if name in needs}, **options}
    return prune(PruneConfig(source=str(work.files["source"]), method=method, out=str(work.root / f"{method}.json"), **options))


def _overhead(suite: Suite, work: Study) -> None:
    classes = Beton(work.files["source"]).num_classes

    def percent(how: dict[str, Any]) -> float:
        return 100 * _prune(work, "lm", **how)["profile"]["overhead"]

    subjects: dict[str, Callable[[], float]] = {}
    for arch, size in UNTRAINED:
        weights = work.root / f"{arch}.pth"
        torch.save(build(arch, classes).state_dict(), weights)
        how = {"surrogate": str(weights), "arch": arch, "size": size, "cache": "none", "accept_surrogate": True}
        subjects[f"{arch} at {size} pixels"] = partial(percent, how)
    rows = suite.add("overhead of label mapping", interleave(subjects), "% of the forward pass")
    for subject, row in rows.items():
        suite.goal(f"overhead-{subject.replace(' ', '-')}", goal=10.0, measured=row.value, unit=row.unit, at_most=True)


def _another_ratio(suite: Suite, work: Study) -> None:
    """A whole process each time, on cached features."""

    def command(method: str, keep: str) -> float:
        files = ["--source", str(work.files["source"]), "--target", str(work.files[f"{TARGET}-train"])]
        how = ["--surrogate", str(work.surrogate_folder("surrogate", 0)), "--method", method, "--keep", keep]
        out = ["--out", str(work.root / "again.json")]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dp4tl_fast.prune", *files, *how, *out], check=True, capture_output=True)
        return time.perf_counter() - start

    for method in ("lm", "fm"):
        command(method, "0.5")  # caches the features
    rows = suite.add("another ratio", interleave({m: partial(command, m, "0.3") for m in ("lm", "fm")}), "s")
    worst = max(row.value for row in rows.values())
    suite.goal("another-ratio-seconds", goal=2.0, measured=worst, unit="s", at_most=True)


def _every_method(suite: Suite, work: Study) -> None:
    scores = work.root / "scores.csv"
    classes = Beton(work.files["source"]).num_classes
    scores.write_text("class,score\n" + "".join(f"{c},{c}\n" for c in range(classes)))
    options = {**VARIANTS, "influence": {"scores": str(scores)}}
    names = [*METHODS, *(name for name in VARIANTS if name not in METHODS)]
    seconds = {name: [_prune(work, **{"method": name, **options.get(name, {})})["profile"]["total"]] for name in names}
    suite.add("seconds per method", seconds, "s")


def _survivors(suite: Suite, work: Study, method: str) -> list[str]:
    """Names of what is kept, the best first."""
    _prune(work, method)
    selection = Selection.load(work.root / f"{method}.json")
    kept = set(selection.kept_classes)
    listing = suite.require_data() / "tiny-imagenet/classes.tsv"
    names = readable(Beton(work.files["source"]).class_names, str(listing) if listing.exists() else "")
    return [names[c] for c in selection.ranking() if c in kept]
