"""A small pipeline under random misfortune, its end compared with that of an undisturbed one, bit by bit.

Each round converts, pretrains and prunes in folders of its own. Every command is killed, stopped by a signal, given a full disk,
forked beside, suspended now and then, made to read slowly, or finds a checkpoint cut short, at random moments, and is then given
again with ``--resume``, until it is left in peace. What must not happen is counted as a failure: another exit code than the
misfortune explains, or other bits at the end. ``--work DIR`` keeps the folders of such rounds there; Ctrl-C ends the soak with the
figures so far.
Between the rounds sequences of mutated JPEGs go through the decoders under AddressSanitizer, where that test has been built
(``make soak`` builds it): each by decoders that live on, and by new ones.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Suite
from dp4tl_fast.common.cli import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from dp4tl_fast.reporting.runs import read_metrics
from dp4tl_fast.training import checkpoint

SEQUENCES = Path("build/sanitize/test_jpeg_sequences")
IMAGES_PER_ROUND = 2000
ENDURED = ("forks", "pauses", "slow reader")  # what ends no command
MISFORTUNES = ("kill", "terminate", "interrupt", "full disk", "truncated checkpoint", *ENDURED)
PRETRAIN = ["--arch=small-4", "--size=16", "--batch-size=8", "--epochs=6", "--lr=0.05", "--precision=fp32", "--workers=2",
            "--no-tensorboard", "--ema-decay=0.9", "--checkpoint.keep-last=3", "--device=cpu"]  # fmt: skip
ENDS = {  # exit codes, besides 0, that each explains; 1 is Python's own for Ctrl-C before the command has begun
    "kill": {-signal.SIGKILL}, "terminate": {EXIT_INTERRUPTED, -signal.SIGTERM}, "interrupt": {EXIT_INTERRUPTED, -signal.SIGINT, 1},
    "full disk": {EXIT_USAGE}, "truncated checkpoint": {EXIT_USAGE},
}  # fmt: skip
TIMES = {"seconds", "samples_per_s", "data_wait_s", "energy_j", "epoch_s"}


@dataclass
class Findings:
    """What came over the pipeline and was survived, by name; and what went wrong, in words."""

    survived: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    rounds: int = 0
    images: int = 0

    def fail(self, what: str) -> None:
        self.failures.append(what)
        print(what, file=sys.stderr, flush=True)


def run(suite: Suite) -> None:
    start = time.monotonic()
    minutes = suite.minutes or 60.0
    found = Findings()

    def more(rounds: int) -> bool:
        passed = (time.monotonic() - start) / 60
        told = f"{sum(found.survived.values())} survived, {len(found.failures)} failures"
        print(f"soak: {passed:.1f} of {minutes:g} minutes, {rounds} rounds, {told}", file=sys.stderr, flush=True)
        return passed < minutes

    if suite.work is not None:
        suite.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dp4tl-soak-", dir=suite.work) as name, contextlib.suppress(KeyboardInterrupt):
        soak(Path(name), more, int(start), found, sequences=SEQUENCES, keep=suite.work)
    suite.settings |= {"seed": int(start), "rounds": found.rounds, "images in a round": IMAGES_PER_ROUND if found.images else 0}
    for what in MISFORTUNES:
        suite.add(what, {"survived": [found.survived[what]]}, "times")
    suite.add("mutated JPEGs in sequences under ASan", {"as alone": [found.images]}, "images")
    suite.add("time", {"soak": [(time.monotonic() - start) / 3600]}, "hours")
    suite.goal("failures", goal=0, measured=len(found.failures), unit="failures", at_most=True)


def soak(
    root: Path, more: Callable[[int], bool], seed: int, found: Findings, sequences: Path | None = None, keep: Path | None = None
) -> None:
    """Rounds in ``root`` while ``more(rounds so far)``, told in ``found``. ``keep``: where the folders of failed ones stay."""
    draw = random.Random(seed)
    images(root / "images")
    quiet = Pipeline(root / "undisturbed", root, found, None)
    quiet.run()
    if quiet.failed:
        return
    shutil.copytree(quiet.out, root / "given")  # every round reads the same source and surrogate
    expected = quiet.result()
    while more(found.rounds) and len(found.failures) < 10:
        one = Pipeline(root / "round", root, found, draw)
        one.durations = quiet.durations
        before = len(found.failures)
        one.run()
        if not one.failed:
            for name, value in one.result().items():
                if value != expected[name]:
                    found.fail(f"seed {seed}, round {found.rounds}: {name} is not that of the undisturbed pipeline")
        found.rounds += 1
        if keep is not None and len(found.failures) > before:
            shutil.copytree(one.out, keep / f"failed-{seed}-{found.rounds}", symlinks=True)
        shutil.rmtree(one.out, ignore_errors=True)
        if sequences is not None and sequences.exists():
            done = subprocess.run([sequences, str(IMAGES_PER_ROUND), str(draw.randrange(2**31))], capture_output=True, text=True)
            found.images += IMAGES_PER_ROUND
            if done.returncode:
                found.fail(f"{sequences}: {done.stderr[-2000:]}")


class Pipeline:
    """convert, pretrain and prune in ``out``, disturbed as ``draw`` says; in peace without it."""

    def __init__(self, out: Path, root: Path, found: Findings, draw: random.Random | None) -> None:
        self.out, self.found, self.draw, self.failed = out, found, draw, False
        self.given = (root / "given") if draw else out
        self.images = root / "images"
        self.durations: dict[str, float] = {}
        self.log = root / "log"
        out.mkdir()

    def run(self) -> None:
        source, given = self.out / "s.beton", self.given / "s.beton"
        self.stage("convert", [str(self.images), str(source)], resumes=lambda: (self.out / ".s.beton.partial").exists())
        run_folder = self.out / "run"
        self.stage("pretrain", [f"--source={given}", f"--val={given}", f"--out={run_folder}", *PRETRAIN],
                   resumes=(run_folder / "config.yaml").exists)  # fmt: skip
        select = [f"--surrogate={self.given / 'run'}", "--keep=2", "--device=cpu", "--accept-surrogate", "--workers=1"]
        self.stage("prune", [f"--source={given}", f"--target={given}", f"--out={self.out / 'sel.json'}", *select], resumes=None)

    def stage(self, name: str, arguments: list[str], resumes: Callable[[], bool] | None) -> None:
        """One command, given again until it has been left in peace."""
        for left in range(self.draw.randint(1, 4) if self.draw else 0, -1, -1):
            what = self.draw.choice(MISFORTUNES) if self.draw and left else ""
            if self.failed or (what == "truncated checkpoint" and not self._cut(name, arguments)):
                continue
            again = ["--resume"] if resumes is not None and resumes() else []
            start = time.monotonic()
            code = self._attempt(name, [*arguments, *again], what)
            self.durations.setdefault(name, time.monotonic() - start)
            if code not in {EXIT_OK} | ENDS.get(what, set()):
                self.failed = True
                self.found.fail(f"{name}, {what or 'in peace'}: exit code {code}\n{self.log.read_text()[-3000:]}")
            elif (what and code != EXIT_OK) or what in ENDURED:
                self.found.survived[what] += 1
            if what == "truncated checkpoint" and code == EXIT_USAGE:  # the message's advice
                shutil.rmtree(checkpoint.checkpoints(self.out / "run/checkpoint")[-1])

    def _cut(self, name: str, arguments: list[str]) -> bool:
        """Kill the run once it has two checkpoints, and cut a file of the newer one short."""
        assert self.draw is not None
        folder = self.out / "run/checkpoint"
        if name != "pretrain":
            return False
        again = ["--resume"] if (self.out / "run/config.yaml").exists() else []
        process = self._start(name, [*arguments, *again], 0, "")
        while process.is_alive() and len(checkpoint.checkpoints(folder)) < 2:
            time.sleep(0.005)
        process.kill()
        process.join()
        kept = checkpoint.checkpoints(folder)
        if len(kept) < 2 or (self.out / "run/summary.json").exists():
            return False
        file = self.draw.choice(sorted(kept[-1].iterdir()))
        os.truncate(file, self.draw.randrange(file.stat().st_size))
        return True

    def _attempt(self, name: str, arguments: list[str], what: str) -> int:
        limit = self.draw.randrange(200, 400_000) if self.draw and what == "full disk" else 0
        process = self._start(name, arguments, limit, what)
        number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}.get(what)
        if number is not None and self.draw:
            wait([process.sentinel], self.draw.uniform(0, 1.2 * self.durations.get(name, 1.0)))
            send(process, number)
        if what == "pauses":
            self._pause(process, self.durations.get(name, 1.0))
        process.join(600)
        if process.exitcode is None:
            process.kill()
            process.join()
            self.found.fail(f"{name}, {what}: hangs\n{self.log.read_text()[-3000:]}")
            self.failed = True
        return process.exitcode or 0

    def _pause(self, process: Any, duration: float) -> None:
        """Suspend it some times, as a scheduler does, or a file system that does not answer."""
        assert self.draw is not None
        for _ in range(5):
            wait([process.sentinel], self.draw.uniform(0, 0.4 * duration))
            send(process, signal.SIGSTOP)
            time.sleep(self.draw.uniform(0, 0.5))
            send(process, signal.SIGCONT)

    def _start(self, name: str, arguments: list[str], limit: int, what: str) -> Any:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["dp4tl_fast.training.loop", "dp4tl_fast.pruning.run", "dp4tl_fast.pretraining.training"])
        process = context.Process(target=child, args=(name, arguments, str(self.log), limit, what))
        process.start()
        return process

    def result(self) -> dict[str, Any]:
        """All that must be the same, whatever happened."""
        selection = json.loads((self.out / "sel.json").read_text())
        weights = checkpoint.find_weights(self.out / "run")
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(self.out / "run/metrics.jsonl")]
        return {
            "the .beton": (self.out / "s.beton").read_bytes(),
            "the weights": weights.read_bytes(),
            "the averaged weights": weights.with_name(checkpoint.EMA).read_bytes(),
            "the metrics": rows,
            "the best checkpoint": checkpoint.find_weights(self.out / "run/checkpoint/best").parent.name,
            "the selection": {k: v for k, v in selection.items() if k not in ("seconds", "environment")},
        }


def send(process: Any, number: int) -> None:
    """A signal, where the process has not ended."""
    if process.is_alive():
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            os.kill(process.pid, number)


def child(name: str, arguments: list[str], log: str, limit: int, what: str) -> None:
    """One command, in a process of its own."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the soak was started in the background
    import importlib

    import torch

    torch.set_num_threads(1)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if what == "forks":
        threading.Thread(target=fork_often, daemon=True).start()
    if what == "slow reader":
        read_slowly([argument.partition("=")[2] for argument in arguments if argument.endswith(".beton")])
    sys.exit(importlib.import_module(f"dp4tl_fast.{name}").main(arguments))


def fork_often() -> None:
    """Children that end at once, with whatever the parent's threads held."""
    while True:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        time.sleep(0.02)


def read_slowly(files: list[str]) -> None:
    """Batches are taken late, and the page cache forgets the files again and again."""
    from dp4tl_fast.loaders.iteration import Iteration

    taken, draw = Iteration.__next__, random.Random(0)

    def late(iteration: Any) -> Any:
        time.sleep(draw.uniform(0, 0.02))
        return taken(iteration)

    def forget() -> None:
        while True:
            for name in filter(os.path.exists, files):
                with open(name, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            time.sleep(0.005)

    Iteration.__next__ = late  # type: ignore[method-assign, assignment]
    threading.Thread(target=forget, daemon=True).start()


def images(root: Path) -> None:
    """Three classes of 20 noisy JPEGs."""
    from PIL import Image

    noise = np.random.default_rng(0)
    for c in range(3):
        folder = root / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(60 * c + noise.normal(60, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=80 + i % 15)
