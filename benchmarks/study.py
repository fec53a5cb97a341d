"""Pretrain one network on several selections of one source, probe each for several targets, compare: what the suites
``end_to_end``, ``objectives``, ``pruning`` and ``sensitivity`` have in common. Everything runs the functions behind the commands.

Every cell takes as many steps as a stated share of the full run (rounded down to whole epochs), with the same schedule over them.
What is finished in the study's folder is not done again, so that a study can be run in parts; nor is what an earlier result file
holds, so that it can go on where that folder is not.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import targets as data_sets
from benchmarks.cells import Cell, Job, Outcome, part_of, say
from benchmarks.harness import Suite, interleave
from benchmarks.recipes import Options, Recipe
from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.finetuning.config import FinetuneConfig
from dp4tl_fast.finetuning.run import finetune
from dp4tl_fast.mapping.registry import METHODS
from dp4tl_fast.pretraining.config import CheckpointConfig, MocoConfig, PretrainConfig
from dp4tl_fast.pretraining.run import pretrain
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.run import prune
from dp4tl_fast.selection import Selection

MODES = {"lp": "linear probe", "ff": "full finetuning", "knn": "nearest neighbours"}
WARMUP = 1 / 8  # of a run's steps, however many epochs they are
BY_THE_CLOCK, OF_THE_RUNS = "images x seconds per image, medians of interleaved rounds", "of the runs"
CLOCK_IMAGES = 20_000  # of a run that is timed, about; two epochs at least
TRIAL_RECORDS = 2000  # of the run that the estimate of the time rests on


@dataclass
class Study:
    """Cells × targets × seeds × ways to finetune, in ``root``.

    Attributes:
        files: ``{name: .beton}``, as ``benchmarks.targets.build`` names them.
        network: What is pretrained.
        surrogates: What scores, by name; one is trained for every seed.
        earlier: Outcomes of a result file, by cell, target and seed.
        earlier_times: What their times are.
    """

    root: Path
    files: dict[str, Path]
    recipe: Recipe
    targets: Sequence[str]
    modes: Sequence[str]
    network: Options
    surrogates: dict[str, Options] = field(default_factory=dict)
    earlier: dict[tuple[str, str, int], Outcome] = field(default_factory=dict)
    earlier_times: str = OF_THE_RUNS

    # -- what is run ------------------------------------------------------------------------------------------------------

    def jobs(self, cells: Sequence[Cell], targets: Sequence[str], seeds: Sequence[int]) -> list[Job]:
        """Interleaved, so that a slow minute of the machine meets all kinds of cells."""
        return [
            Job(cell, own, seed, tuple(targets if cell.shared else [own]))
            for seed in seeds
            for cell in cells
            for own in ([""] if cell.shared else targets)
        ]  # fmt: skip

    def run_part(self, suite: Suite, cells: Sequence[Cell], targets: Sequence[str], seeds: Sequence[int]) -> None:
        """What ``--cells``, ``--targets`` and ``--seeds`` leave of these; or with ``--cells clock`` the times alone.

        Raises:
            UsageError: They leave nothing, or name what is not there.
        """
        if suite.part.cells == ("clock",):
            self.clock(cells)
        else:
            self.run(*part_of(suite, cells, targets, seeds))

    def run(self, cells: Sequence[Cell], targets: Sequence[str], seeds: Sequence[int]) -> None:
        """Every run that is not finished yet, after an estimate of the time that takes."""
        jobs = [job for job in self.jobs(cells, targets, seeds) if not self.finished(job)]
        if not jobs:
            return
        say(f"{len(jobs)} runs to do, about {spoken(self.estimate(jobs))}")
        for i, job in enumerate(jobs, 1):
            say(f"run {i} of {len(jobs)}: {job.cell.id} for {job.target or 'all targets'}, seed {job.seed}")
            self.pretrain(job)
            for target in job.probed:
                for mode in self.modes:
                    self.probe(job, target, mode)

    def folder(self, job: Job) -> Path:
        return self.root / "runs" / (job.target or "shared") / f"{job.cell.id}-{job.seed}"

    def probe_folder(self, job: Job, target: str, mode: str) -> Path:
        return self.root / "probes" / target / f"{job.cell.id}-{job.seed}-{mode}"

    def finished(self, job: Job) -> bool:
        if all((job.cell.id, target, job.seed) in self.earlier for target in job.probed):
            return True
        ends = [self.folder(job), *(self.probe_folder(job, t, m) for t in job.probed for m in self.modes)]
        return all((folder / "summary.json").exists() for folder in ends)

    def surrogate_folder(self, name: str, seed: int) -> Path:
        return self.root / "surrogates" / f"{name}-{seed}"

    def surrogate(self, name: str, seed: int) -> Path:
        """The run folder of a surrogate, trained if need be."""
        out, recipe = self.surrogate_folder(name, seed), self.surrogates[name]
        unlabelled = recipe.get("objective", "supervised").startswith("moco")
        validate: Options = {} if unlabelled else {"val": str(self.files["val"])}
        self._train(out, {**recipe, **validate}, seed)
        return out

    def select(self, cell: Cell, target: str, seed: int) -> Path | None:
        """The selection of a cell, made if need be."""
        if cell.prune is None:
            return None
        out = self.root / "selections" / (target or "shared") / f"{cell.slug}-{seed}.json"  # the same for every budget
        if not out.exists():
            options = {**cell.prune, "source": str(self.files["source"]), "cache": str(self.root / "cache"), "seed": seed}
            needs = METHODS[options["method"]].needs
            if "target" in needs:
                options["target"] = [str(self.files[f"{target}-train"])]
            if "surrogate" in needs:
                options["surrogate"] = str(self.surrogate(cell.surrogate, seed))
            prune(PruneConfig(**options, out=str(out)))
        return out

    def pretrain(self, job: Job) -> dict[str, Any]:
        """The run's summary."""
        out = self.folder(job)
        if (out / "summary.json").exists():
            return json.loads((out / "summary.json").read_text())
        return self._train(out, self._options(job.cell, job.target, job.seed), job.seed)

    def _options(self, cell: Cell, target: str, seed: int) -> Options:
        path = self.select(cell, target, seed)
        source = Beton(self.files["source"]).num_samples
        records = Selection.load(path).epoch_size if path else source
        drawn: Options = {}
        if cell.fresh:
            records = drawn["epoch_samples"] = int(cell.fresh * records)
        epochs = epochs_within(cell.budget, self.network["epochs"], source, records, self.network["batch_size"])
        return {**self.network, **drawn, **cell.train, "epochs": epochs, "selection": str(path) if path else None}

    def _train(self, out: Path, options: Options, seed: int = 0) -> dict[str, Any]:
        """A run on the source, its summary; saved and validated at its end only."""
        epochs = options["epochs"]
        nested: Options = {"checkpoint": CheckpointConfig(every=epochs)}
        if "moco" in options:
            nested["moco"] = MocoConfig(**options["moco"])
        plain: Options = {"warmup_epochs": epochs * WARMUP, "val_every": epochs, **options, **nested}
        return pretrain(PretrainConfig(source=str(self.files["source"]), out=str(out), seed=seed, resume=True, **plain))

    def probe(self, job: Job, target: str, mode: str) -> float:
        """Percentage of the target's test images that the finetuned network classifies correctly."""
        out = self.probe_folder(job, target, mode)
        if not (out / "summary.json").exists():
            self._finetune(self.folder(job), target, mode, out)
        return 100 * json.loads((out / "summary.json").read_text())["top_1_mean"]

    def _finetune(self, checkpoint: Path, target: str, mode: str, out: Path) -> None:
        train, test = (str(self.files[f"{target}-{part}"]) for part in ("train", "test"))
        options = self.recipe.transfer[mode]
        finetune(FinetuneConfig(checkpoint=str(checkpoint), train=train, test=test, out=str(out), mode=mode, **options))

    # -- how long it takes ------------------------------------------------------------------------------------------------

    def clock(self, cells: Sequence[Cell]) -> None:
        """Measure seconds per image of every kind of cell that has been run, and of surrogates, interleaved: what outcomes' times
        are made of from then on, for the runs themselves may have met whatever else the machine did in those hours."""
        source, subjects = Beton(self.files["source"]).num_samples, {}
        here = [summary.parent.name for summary in self.root.glob("runs/*/*/summary.json")]
        finished = {name.rpartition("@")[0] for name in (*here, *(cell for cell, _, _ in self.earlier))}
        for cell in (cell for cell in cells if cell.slug in finished):
            options = self._options(cell, "" if cell.shared else self.targets[0], 0)
            runs = cell.budget * self.network["epochs"] * source / CLOCK_IMAGES  # of CLOCK_IMAGES each
            subjects[cell.slug] = partial(self._seconds_per_image, {**options, "epochs": max(2, round(options["epochs"] / runs))})
        for name, options in self.surrogates.items():
            subjects[f"surrogate {name}"] = partial(self._seconds_per_image, {**options, "epochs": 2})
        self._clock.write_text(json.dumps(interleave(subjects)))

    @property
    def _clock(self) -> Path:
        return self.root / "clock.json"

    def _seconds_per_image(self, options: Options) -> float:
        with tempfile.TemporaryDirectory(dir=self.root, prefix="clock-") as folder:
            summary = self._train(Path(folder) / "run", options)
        return summary["pretrain_s"] / summary["images"]

    def _seconds(self, kind: str, images: int, own: float) -> float:
        """Of a finished run: by the clock, or before that was measured its ``own``."""
        known = typical(json.loads(self._clock.read_text())) if self._clock.exists() else {}
        return known[kind] * images if kind in known else own

    def estimate(self, jobs: Sequence[Job]) -> float:
        """Seconds that these runs will take, by trial runs of the networks and of every way to finetune."""
        trial, source = self._trial(), Beton(self.files["source"]).num_samples
        seconds = sum(job.cell.budget * self.network["epochs"] * source * trial["network"] for job in jobs)
        seconds += sum(trial[f"{target} {mode}"] for job in jobs for target in job.probed for mode in self.modes)
        needed = {(job.cell.surrogate, job.seed) for job in jobs if job.target}
        missing = [name for name, seed in needed if not self.surrogate_folder(name, seed).joinpath("summary.json").exists()]
        return seconds + sum(self.surrogates[name]["epochs"] * source * trial[f"surrogate {name}"] for name in missing)

    def _trial(self) -> dict[str, float]:
        """Seconds per image of pretraining the ``network`` and each ``surrogate NAME``, and of each finetuning ``TARGET MODE``."""
        path = self.root / "trial.json"
        if not path.exists():
            say("trial runs, to estimate the time")
            with tempfile.TemporaryDirectory(dir=self.root, prefix="trial-") as folder:
                path.write_text(json.dumps(self._try(Path(folder))))
        return json.loads(path.read_text())

    def _try(self, folder: Path) -> dict[str, float]:
        source = Beton(self.files["source"])
        few = np.random.default_rng(0).permutation(source.num_samples)[:TRIAL_RECORDS]
        Selection.of_records(source, few, method="trial").save(folder / "few.json")
        seconds = {}
        for name, options in {"network": self.network, **{f"surrogate {n}": o for n, o in self.surrogates.items()}}.items():
            out = folder / name
            self._train(out, {**options, "epochs": 2, "selection": str(folder / "few.json")})
            rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            seconds[name] = min(row["seconds"] / row["samples"] for row in rows)  # the first epoch starts threads
        for target in self.targets:
            for mode in self.modes:
                out = folder / f"{target}-{mode}"
                self._finetune(folder / "network", target, mode, out)
                seconds[f"{target} {mode}"] = json.loads((out / "summary.json").read_text())["seconds"]
        return seconds

    # -- what came of it --------------------------------------------------------------------------------------------------

    def outcomes(self, cells: Sequence[Cell], seeds: Sequence[int]) -> list[Outcome]:
        """Of all finished runs."""
        each = [replace(job, probed=(t,)) for job in self.jobs(cells, self.targets, seeds) for t in job.probed]
        return [self._outcome(job) for job in each if self.finished(job)]

    def _outcome(self, job: Job) -> Outcome:
        (target,) = job.probed
        trained = self.known(job.cell.surrogate, [job.seed])
        if found := self.earlier.get((job.cell.id, target, job.seed)):
            surrogate = found.surrogate_s
            if surrogate and trained:
                surrogate = self._seconds(f"surrogate {job.cell.surrogate}", trained[0]["images"], surrogate)
            pretrain_s = self._seconds(job.cell.slug, found.images, found.pretrain_s)
            return replace(found, pretrain_s=pretrain_s, surrogate_s=surrogate)
        summary = self.pretrain(job)
        stages, surrogate = dict(summary["pruning_stages_s"]), 0.0
        if not job.cell.shared and stages.pop("surrogate", 0.0):
            surrogate = self._seconds(f"surrogate {job.cell.surrogate}", trained[0]["images"], trained[0]["pretrain_s"])
        return Outcome(
            cell=job.cell.id, name=job.cell.name, budget=job.cell.budget, target=target, seed=job.seed,
            top_1={mode: self.probe(job, target, mode) for mode in self.modes},
            classes=summary["classes_kept"], samples=summary["samples"], images=summary["images"],
            pretrain_s=self._seconds(job.cell.slug, summary["images"], summary["pretrain_s"]),
            scoring_s=sum(stages.values()), surrogate_s=surrogate,
        )  # fmt: skip

    def known(self, name: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """The summaries of a surrogate, for those seeds for which it is trained."""
        paths = [self.surrogate_folder(name, seed) / "summary.json" for seed in seeds]
        return [json.loads(path.read_text()) for path in paths if path.exists()]

    def describe(self, suite: Suite, **more: Any) -> None:
        """What a reader needs to judge the rows."""
        times = BY_THE_CLOCK if self._clock.exists() else self.earlier_times
        suite.settings |= {**self.described(), "times": times, **more}

    def described(self) -> Options:
        """What outcomes of one study have in common."""
        source = Beton(self.files["source"])
        return {
            "recipe": self.recipe.name,
            "source": f"{source.num_samples:,} images of {source.num_classes} classes",
            "targets": {t: describe_target(self.files, t) for t in self.targets},
            "network": self.network,
            "surrogates": self.surrogates,
            "warm-up": f"{WARMUP:g} of the steps",
            **{mode: self.recipe.transfer[mode] for mode in self.modes},
        }


def epochs_within(budget: float, full_epochs: int, source: int, records: int, batch: int) -> int:
    """Epochs of ``records`` that take at most a share ``budget`` of the steps of ``full_epochs`` of the source's; at least 1."""
    return max(1, int(budget * full_epochs * (source // batch) / (records // batch) + 1e-9))


def describe_target(files: dict[str, Path], name: str) -> str:
    train, test = Beton(files[f"{name}-train"]), Beton(files[f"{name}-test"])
    of = "of the source's" if data_sets.TARGETS[name].classes else "of its own"
    return f"{train.num_samples:,} training and {test.num_samples:,} test images of {train.num_classes} classes {of}"


@contextmanager
def study(
    suite: Suite, recipe: Recipe, names: Sequence[str], modes: Sequence[str], *, network: Options | None = None,
    surrogates: dict[str, Options] | None = None,
) -> Iterator[Study]:  # fmt: skip
    """A ``Study`` of these targets in ``--work``, where an interrupted one continues, or else in a temporary folder."""
    data = suite.require_data()
    with tempfile.TemporaryDirectory(prefix="dp4tl-study-") as temporary:
        work = suite.work or Path(temporary)
        files = data_sets.build(data, work / "files", names)
        root = work / suite.name / recipe.name
        root.mkdir(parents=True, exist_ok=True)
        made = Study(
            root, files, recipe, names, modes, network or recipe.network,
            surrogates or {"surrogate": recipe.surrogate},
        )  # fmt: skip
        made.earlier, made.earlier_times = _earlier(suite, made)
        yield made


def _earlier(suite: Suite, work: Study) -> tuple[dict[tuple[str, str, int], Outcome], str]:
    """What ``--earlier`` holds of this study, and what its times are.

    Raises:
        UsageError: It is no such file, or of another study.
    """
    if suite.earlier is None:
        return {}, OF_THE_RUNS
    name, _, part = suite.name.partition("/")  # "objectives/moco" has its tables and settings in those of "objectives"
    try:
        result = json.loads(suite.earlier.read_text())
        settings = result["settings"][name]
        settings = settings[part] if part else settings
        rows = [Outcome(**row) for row in result["tables"][name][f"{part}/outcomes" if part else "outcomes"]]
    except OSError as error:
        raise UsageError(f"--earlier {suite.earlier}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"--earlier {suite.earlier}: no result file of {suite.name!r}: give what its --out wrote") from None
    described = json.loads(json.dumps(work.described()))
    other = [key for key, value in described.items() if settings.get(key) != value]
    if other:
        raise UsageError(f"--earlier {suite.earlier}: a study of something else: {', '.join(other)} differ")
    return {(o.cell, o.target, o.seed): o for o in rows}, str(settings.get("times", OF_THE_RUNS))


def typical(rounds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each subject, its median over interleaved rounds, after what all had in common in a round (the machine's speed then) is
    taken out."""
    pace = [median(each) for each in zip(*rounds.values(), strict=True)]  # of each round
    return {subject: median(pace) * median(x / p for x, p in zip(each, pace, strict=True)) for subject, each in rounds.items()}


def spoken(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
