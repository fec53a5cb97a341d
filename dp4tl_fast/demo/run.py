"""The whole pipeline on embedded data, full and pruned side by side."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from dp4tl_fast.common import cli, machine
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import write_atomically
from dp4tl_fast.common.machine import cores

# One recipe for all three, chosen so that the whole demo takes a few minutes on two cores. Digits must not be mirrored.
PRETRAIN: dict[str, Any] = {
    "size": 32,
    "batch_size": 64,
    "lr": 0.2,
    "warmup_epochs": 1.0,
    "min_scale": 0.6,
    "flip": False,
    "weight_decay": 5e-4,
}
ARCH, EPOCHS = "small-16", 8
SURROGATE: dict[str, Any] = {"arch": "small-8", "epochs": 2, "size": 16, "batch_size": 128, "lr": 0.4, "warmup_epochs": 0.5}
LINEAR_PROBE: dict[str, Any] = {"mode": "lp", "epochs": 50, "lr": 1e-2}
FULL_FINETUNE: dict[str, Any] = {"mode": "ff", "epochs": 15, "lr": 2e-3, "batch_size": 64}


def demo(
    *,
    out: str = "demo-out",
    keep: str = "0.35",
    seeds: int = 3,
    per_class: int = 100,
    epochs: int = EPOCHS,
    backend: str = "native",
    seed: int = 0,
) -> dict[str, Any]:
    """Show on real handwritten digits what pruning the pretraining classes does; takes a few minutes on two cores.

    Generates a mixed source (about 300 classes: glyphs from fonts, and textures unrelated to digits),
    converts it and scikit-learn's digits to .beton, trains a tiny surrogate, scores the source classes by label mapping,
    pretrains the same network on everything, on the label-mapping selection and on a random selection of the same size,
    finetunes each on the digits, and writes a table and report.html. Nothing in the table is assumed.

    Args:
        out: Folder for everything the demo writes; replaces an earlier demo there.
        keep: How many source classes to keep: a fraction or a number.
        seeds: Repetitions of pretraining and finetuning for the accuracy columns.
        per_class: Images to generate for each source class.
        epochs: Passes over the full or selected source.
        backend: Library that loads the .beton files: native, ffcv, dali or torchvision.
        seed: Random seed for the generated images and the surrogate.
    """
    if seeds < 1 or per_class < 1:
        raise UsageError("`seeds` and `per_class` must be at least 1")
    start = time.perf_counter()
    root = _fresh_folder(Path(out))
    source, train, test = _make_data(root, per_class, seed)

    from dp4tl_fast.finetuning.config import FinetuneConfig
    from dp4tl_fast.finetuning.run import finetune
    from dp4tl_fast.pretraining.config import CheckpointConfig, PretrainConfig
    from dp4tl_fast.pretraining.run import pretrain
    from dp4tl_fast.pruning.config import PruneConfig
    from dp4tl_fast.pruning.run import prune

    def train_on(name: str, seed: int, selection: Path | None = None, **recipe: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {**PRETRAIN, "arch": ARCH, "epochs": epochs, **recipe}
        config = PretrainConfig(
            source=str(source), out=str(root / name), selection=str(selection) if selection else None,
            seed=seed, backend=backend, tensorboard=False, checkpoint=CheckpointConfig(every=settings["epochs"]), **settings,
        )  # fmt: skip
        return pretrain(config)

    cli.message("\n— surrogate: a tiny network trained on the whole source, at low resolution")
    train_on("surrogate", seed, **SURROGATE)
    lm = root / "lm.json"
    surrogate = str(root / "surrogate")
    chosen = prune(
        PruneConfig(source=str(source), target=[str(train)], surrogate=surrogate, keep=keep, out=str(lm), backend=backend)
    )
    for i in range(seeds):  # interleaved, so that a slow minute of the machine hits all three alike
        cli.message(f"\n— pretraining and finetuning, seed {i} of 0..{seeds - 1}")
        draw = root / f"random-{i}.json"
        prune(PruneConfig(source=str(source), method="random", keep=keep, seed=i, out=str(draw)))
        for name, selection in ((f"full-{i}", None), (f"lm-{i}", lm), (f"random-{i}", draw)):
            run = f"runs/{name}"
            train_on(run, i, selection)
            for recipe in (LINEAR_PROBE, FULL_FINETUNE):
                config = FinetuneConfig(
                    checkpoint=str(root / run), train=str(train), test=str(test), out=str(root / f"{run}-{recipe['mode']}"),
                    flip=False, min_scale=0.8, seeds=1, backend=backend, tensorboard=False, **recipe,
                )  # fmt: skip
                finetune(config)
    return _finish(root, chosen, time.perf_counter() - start)


def _fresh_folder(root: Path) -> Path:
    """An empty folder, unless it holds something that no demo made."""
    marker = root / ".dp4tl-demo"
    if root.exists() and any(root.iterdir()) and not marker.exists():
        raise UsageError(f"{root} exists and was not made by the demo. Give another `out`")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    marker.touch()
    return root


def _make_data(root: Path, per_class: int, seed: int) -> tuple[Path, Path, Path]:
    """Generate and convert. Returns source, target training and target test .beton."""
    from dp4tl_fast.conversion.run import convert
    from dp4tl_fast.demo import data as demo_data

    classes = demo_data.source_classes()
    made = demo_data.write_source(root / "images/source", per_class=per_class, seed=seed, workers=cores())
    for _ in cli.progress(made, desc="generate the source", unit="class", total=len(classes)):
        pass
    demo_data.write_target(root / "images/digits", train_per_class=30, seed=seed)
    files = {"source": "source", "train": "digits/train", "test": "digits/test"}
    for name, folder in files.items():
        convert(src=str(root / "images" / folder), out=str(root / f"{name}.beton"))
    return root / "source.beton", root / "train.beton", root / "test.beton"


def _finish(root: Path, chosen: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The table, summary.json and report.html."""
    from rich.console import Console

    from dp4tl_fast.beton import Beton
    from dp4tl_fast.demo import data as demo_data
    from dp4tl_fast.reporting import plots
    from dp4tl_fast.reporting.compare import compare
    from dp4tl_fast.reporting.page import write_page
    from dp4tl_fast.reporting.runs import find_runs
    from dp4tl_fast.reporting.tables import print_table
    from dp4tl_fast.selection import Selection

    runs = find_runs([root / "runs"])
    rows = compare(runs)
    names = Beton(root / "source.beton").class_names
    glyphs = sum(demo_data.is_glyph(n) for n in names)
    kept_glyphs = sum(demo_data.is_glyph(names[c]) for c in chosen["kept_classes"])
    notes = [
        f"Label mapping kept {len(chosen['kept_classes'])} of {len(names)} classes, among them {kept_glyphs} of the {glyphs} glyph "
        f"classes; the surrogate took {chosen['seconds']['surrogate']:.1f} s, scoring {chosen['seconds']['scoring']:.1f} s.",
        f"The target is scikit-learn's handwritten digits: {Beton(root / 'train.beton').num_samples} images to train on, "
        f"{Beton(root / 'test.beton').num_samples:,} to test. The source is generated.",
    ]
    print_table(rows, "The same network, pretrained on all classes and on a selection, then finetuned on digits")
    console = Console(stderr=True)
    for note in [*notes, f"Everything took {seconds:.0f} s."]:
        console.print(note, highlight=False)
    summary = {
        "kind": "demo", "rows": rows, "glyph_classes": glyphs, "glyph_classes_kept": kept_glyphs,
        "seconds": seconds, "environment": machine.environment(),
    }  # fmt: skip
    write_atomically(root / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_page(root / "report.html", runs, rows, title="dp4tl_fast demo", notes=notes)
    plots.save(plots.class_scores(Selection.load(root / "lm.json")), root / "class-scores.png")
    plots.save(plots.tradeoff(rows, "lp"), root / "linear-probe.png")
    plots.save(plots.tradeoff(rows, "ff"), root / "full-finetuning.png")
    console.print(f"\nOpen {root / 'report.html'} to see what was kept and what was dropped.")
    return summary

