"""Images per second of every loader on the same records: JPEG as FFCV wrote them, with entry points, raw; 1 and 2 threads.

Each subject runs in a process of its own and waits while the others work. Epochs have 10,000 images for those that
allocate anew every epoch (FFCV) and for us; the slow ones, which do not, get fewer.
"""

from __future__ import annotations

import io
import math
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import loader_limits, loader_subjects
from benchmarks.child import Child
from benchmarks.harness import Suite, interleave, ratio
from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton.entry_points import add_entry_points
from dp4tl_fast.beton.format import MODE_JPEG

EPOCH, SLOW_EPOCH, SIZE, MAX_SIDE, QUALITY = 10_000, 1_536, 224, 500, 90
SLOW = ("torchvision-pil", "torchvision-io", "spdl", "tf.data", "turboloader", "litdata", "mosaicml-streaming")


class Images:  # what FFCV's writer takes
    def __init__(self, folder: Path) -> None:
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not self.paths:
            raise SystemExit(f"{folder}: no images. Unpack imagenet-sample.tar there")
        self.classes = {name: i for i, name in enumerate(sorted({p.parent.name for p in self.paths}))}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple:
        from PIL import Image

        return Image.open(self.paths[i]).convert("RGB"), self.classes[self.paths[i].parent.name]


def write_with_ffcv(images: Images, path: Path, mode: str) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    image = RGBImageField(write_mode=mode, max_resolution=MAX_SIDE, jpeg_quality=QUALITY)
    DatasetWriter(str(path), {"image": image, "label": IntField()}, num_workers=2).from_indexed_dataset(images)


def write_indexed(source: Path, target: Path) -> None:
    """The same JPEGs with entry points, as ``dp4tl-fast convert`` writes them."""
    beton = Beton(source)
    with BetonWriter(target, beton.num_samples) as writer:
        for i, row in enumerate(beton.images):
            (jpeg,) = add_entry_points([beton.payload(i).tobytes()], [int(row["width"]) * int(row["height"])])
            writer.append(jpeg, MODE_JPEG, int(row["width"]), int(row["height"]), int(beton.labels[i]), i)
        writer.close()


def write_files(source: Path, folder: Path) -> None:
    """Every record as a file, for the loaders that read files: the JPEG itself, or one of best quality of raw pixels."""
    from PIL import Image

    folder.mkdir()
    beton = Beton(source)
    for i, row in enumerate(beton.images):
        data = beton.payload(i).tobytes()
        if row["mode"] != MODE_JPEG:
            buffer = io.BytesIO()
            Image.fromarray(np.frombuffer(data, np.uint8).reshape(row["height"], row["width"], 3)).save(buffer, "BMP")
            data = buffer.getvalue()
        (folder / f"{i:06}{'.jpg' if row['mode'] == MODE_JPEG else '.bmp'}").write_bytes(data)


class Loading(Child):
    """A loader's process; a call runs an epoch and returns its images per second."""

    def __init__(self, subject: str, file: Path, folder: Path, threads: int) -> None:
        self.images = SLOW_EPOCH if subject in SLOW else EPOCH
        options = {"file": str(file), "folder": str(folder), "threads": threads, "images": self.images, "size": SIZE}
        made_by = loader_limits.limit if subject in loader_limits.LIMITS else loader_subjects.subject
        super().__init__(made_by, name=subject, options=options)

    def __call__(self) -> float:
        return self.images / self.work()


def case(suite: Suite, name: str, subjects: dict[str, tuple[str, Path, Path, int]], ratio_to: str) -> dict[str, list[float]]:
    """Measure ``{label: (subject, file, folder, threads)}`` side by side, without those that fail."""
    children: dict[str, Loading] = {}
    failed: set[str] = set()
    for label, arguments in subjects.items():
        try:
            children[label] = Loading(*arguments)
        except RuntimeError as error:
            suite.leave_out(label, error)

    def turn(label: str) -> float:
        try:
            return math.nan if label in failed else children[label]()
        except RuntimeError as error:
            failed.add(label)
            suite.leave_out(label, error)
            return math.nan

    try:
        samples = interleave({label: partial(turn, label) for label in children})
    finally:
        for child in children.values():
            child.close()
    samples = {label: rates for label, rates in samples.items() if label not in failed}
    suite.add(name, samples, "images/s", ratio_to=ratio_to)
    return samples


def best_peer_ratio(samples: dict[str, list[float]], ours: str) -> float:
    """Median over rounds of ours against the best peer of that round."""
    peers = [values for label, values in samples.items() if not label.startswith(("ours", "limit"))]
    return float(np.median([value / max(p) for value, *p in zip(samples[ours], *peers, strict=True)]))


def entropy_rate(suite: Suite, samples: dict[str, list[float]], beton: Beton, threads: int) -> None:
    """What ``limit-entropy`` of a case comes to in bits of JPEGs."""
    name, megabits = "limit-entropy", 8e-6 * float(beton.sizes.mean())
    if name in samples:  # else it was left out
        suite.add("entropy-decoding", {name: [megabits * rate / threads for rate in samples[name]]}, "Mbit/s per core")


def run(suite: Suite) -> None:
    images = Images(suite.require_data())
    with tempfile.TemporaryDirectory(dir=None) as name:
        scratch = Path(name)
        jpeg, indexed, raw, files = (scratch / n for n in ("jpeg.beton", "indexed.beton", "raw.beton", "files"))
        write_with_ffcv(images, jpeg, "jpg")
        write_with_ffcv(images, raw, "raw")
        write_indexed(jpeg, indexed)
        write_files(jpeg, files)

        peers = ("ffcv", "dali-cpu", *SLOW, "limit-entropy")
        subjects = {"ours": ("ours", jpeg, files, 2), "ours-entry-points": ("ours", indexed, files, 2)}
        subjects |= {peer: (peer, jpeg, files, 2) for peer in peers}
        samples = case(suite, "jpeg-2-threads", subjects, "ffcv")
        entropy_rate(suite, samples, Beton(jpeg), 2)
        suite.goal("jpeg", goal=4.5, measured=best_peer_ratio(samples, "ours"), unit="x best peer")
        suite.goal("jpeg-indexed", goal=6.0, measured=best_peer_ratio(samples, "ours-entry-points"), unit="x best peer")

        few = ("ours", "ours-entry-points", "ffcv", "dali-cpu")
        case(suite, "jpeg-1-thread", {s: (*subjects[s][:3], 1) for s in few}, "ffcv")

        samples = case(suite, "raw-2-threads", {s: (s, raw, files, 2) for s in ("ours", "ffcv", "limit-copy")}, "ffcv")
        share = ratio(samples["ours"], samples["limit-copy"], "images/s")
        suite.goal("raw-copy-share", goal=0.8, measured=share, unit="x copying the crops")
        suite.goal("raw", goal=8.0, measured=best_peer_ratio(samples, "ours"), unit="x best peer")

        for label, file in (("jpeg", jpeg), ("jpeg-indexed", indexed), ("raw", raw)):
            threads = {f"ours-{n}-threads": ("ours", file, files, n) for n in (1, 2)}
            samples = case(suite, f"threads-{label}", threads, "ours-1-threads")
            if label == "jpeg":
                pairs = zip(samples["ours-2-threads"], samples["ours-1-threads"], strict=True)
                scaling = float(np.median([two / one for two, one in pairs]))
                suite.goal("thread-scaling", goal=1.9, measured=scaling, unit="x one thread")
