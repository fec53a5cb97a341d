"""Bytes that reach a loader from the device, cold, for selections of 100, 60, 40 and 20 % of the classes of a 2 GB file.

Read from the process's own counters (``read_bytes`` in /proc/self/io), after the file was dropped from the page cache.
``excess``: bytes read beyond the wanted records, as a fraction of the file.

What is read does not depend on how fast it is decoded, so that the peers, which need most of the time, read once; the
rows say how many rounds each had. Epoch times are ours alone, of both layouts: a peer's first epoch has its compiling in
it, and how fast each decodes is the ``loaders`` suite's. About 15 minutes on 2 cores. The same file behind a URL: ``network``.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.child import call
from benchmarks.children import quasi_random_labels, read_cold, shuffle_buffer
from benchmarks.harness import ROUNDS, Suite
from benchmarks.loaders import Images
from benchmarks.network import network
from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton.format import MODE_JPEG
from dp4tl_fast.loaders import LoaderSpec
from dp4tl_fast.loaders.native import NativeLoader

FILE_BYTES, CLASSES, KEEP = 2 << 30, 1000, (1.0, 0.6, 0.4, 0.2)
LAYOUTS = ("class", "shuffled")
RAM = 512 << 20
# ours-max-ram: with shuffle buffers, two of which fit into RAM; backend-*: our FFCV and DALI backends; ffcv: its own loader
SUBJECT_ROUNDS = {"ours": ROUNDS, "ours-max-ram": 2, "backend-ffcv": 1, "backend-dali": 1, "ffcv": 1, "ffcv-quasi-random": 1}

def write_layouts(images: Images, by_class: Path, shuffled: Path) -> None:
    """The photographs' own JPEGs over and over until the file is FILE_BYTES long, in both layouts."""
    jpegs = []
    for path in images.paths:
        with Image.open(path) as image:
            if (image.format, image.mode, image.info.get("progressive")) == ("JPEG", "RGB", None):  # what every peer decodes
                jpegs.append((path.read_bytes(), *image.size))
    n = len(jpegs) * FILE_BYTES // sum(len(jpeg) for jpeg, *_ in jpegs)
    labels = np.sort(np.arange(n) % CLASSES)
    for path, order in ((by_class, np.arange(n)), (shuffled, np.random.default_rng(0).permutation(n))):
        with BetonWriter(path, n) as writer:
            for i in order.tolist():
                jpeg, width, height = jpegs[i % len(jpegs)]
                writer.append(jpeg, MODE_JPEG, width, height, int(labels[i]), i)
            writer.close()


def measure(path: Path, keep: float, subject: str, seed: int) -> dict[str, float]:
    subject, ram = ("ours", RAM) if subject == "ours-max-ram" else (subject, 0)
    return call(read_cold, path=str(path), keep=keep, subject=subject, max_ram=ram, seed=seed)


def mixing(labels: np.ndarray, classes: int, batch: int = 256) -> tuple[list[float], list[float]]:
    """Of every whole batch: distinct classes, and chi-square against equally frequent classes by degree of freedom."""
    batches = labels[: len(labels) // batch * batch].reshape(-1, batch)
    counts = [np.bincount(b, minlength=classes) for b in batches]
    expected = batch / classes
    return [float((c > 0).sum()) for c in counts], [float(((c - expected) ** 2).sum() / expected / (classes - 1)) for c in counts]


def label_mixing(suite: Suite, by_class: Path) -> None:
    """How well batches of a class layout mix the classes; a true shuffle has a chi-square of 1."""
    beton = Beton(by_class)
    loaders = {name: NativeLoader(beton, None, LoaderSpec(size=32, shuffle=True, workers=1, shuffle_buffer=shuffle_buffer(ram)))
               for name, ram in (("ours", 0), ("ours-max-ram", RAM))}  # fmt: skip
    orders = {name: beton.labels[loader.epoch_order()] for name, loader in loaders.items()}
    orders["ffcv-quasi-random"] = np.array(call(quasi_random_labels, path=str(by_class)))
    orders["file-order"] = beton.labels
    measured = {name: mixing(labels, beton.num_classes) for name, labels in orders.items()}
    suite.add("mixing-distinct-classes", {name: distinct for name, (distinct, _) in measured.items()}, "classes per batch")
    suite.add("mixing-chi-square", {name: chi for name, (_, chi) in measured.items()}, "of a true shuffle")


def run(suite: Suite) -> None:
    with tempfile.TemporaryDirectory() as name:
        files = {layout: Path(name) / f"{layout}.beton" for layout in LAYOUTS}
        write_layouts(Images(suite.require_data()), *files.values())
        label_mixing(suite, files["class"])
        network(suite, files["class"])
        reads = measure_all(files)
    for layout, keep in product(LAYOUTS, KEEP):
        seen = {subject: reads[subject, layout, keep] for subject in SUBJECT_ROUNDS if (subject, layout, keep) in reads}
        case = f"{layout}-{round(100 * keep)}%"
        suite.add(f"{case}-read", {s: [r["read"] / r["file"] for r in rounds] for s, rounds in seen.items()}, "fraction of file")
        suite.add(f"{case}-excess", {s: list(map(excess, rounds)) for s, rounds in seen.items()}, "fraction of file")
    for keep in KEEP:
        seconds = {f"ours-{layout}": [r["seconds"] for r in reads["ours", layout, keep]] for layout in LAYOUTS}
        suite.add(f"epoch-{round(100 * keep)}%", seconds, "s", ratio_to="ours-shuffled")
    worst = max(excess(r) for s, keep in product(("ours", "ours-max-ram"), KEEP) for r in reads[s, "class", keep])
    suite.goal("excess-bytes-read", goal=0.02, measured=worst, unit="fraction of file", at_most=True)


def excess(reading: dict[str, float]) -> float:
    """Bytes read beyond the wanted ones, as a fraction of the file."""
    return (reading["read"] - reading["wanted"]) / reading["file"]


def measure_all(files: dict[str, Path]) -> dict[tuple[str, str, float], list[dict[str, float]]]:
    """What each round of (subject, layout, share kept) read, round by round."""
    reads: dict[tuple[str, str, float], list[dict[str, float]]] = {}
    for seed, keep, layout, (subject, rounds) in product(range(ROUNDS), KEEP, LAYOUTS, SUBJECT_ROUNDS.items()):
        # FFCV's own order for files that do not fit into memory is meant for neighbours: shown where it has the most of them.
        elsewhere = subject == "ffcv-quasi-random" and (layout, keep) != ("class", 0.2)
        if seed < rounds and not elsewhere:
            reads.setdefault((subject, layout, keep), []).append(measure(files[layout], keep, subject, seed))
    return reads
