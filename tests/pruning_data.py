"""Coloured pictures, a surrogate for them, and the prune command with what it always wants here."""

import numpy as np
from PIL import Image

from dp4tl_fast.conversion.run import convert
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.pretraining.run import pretrain
from dp4tl_fast.pruning.config import PruneConfig
from dp4tl_fast.pruning.run import prune
from dp4tl_fast.pruning.surrogate import Surrogate

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 220), (200, 200, 60))
PER_CLASS = 12


def images(folder, colours, count, seed):
    random = np.random.default_rng(seed)
    for c in colours:
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(np.array(COLOURS[c]) + random.normal(0, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}/{i}.jpg")
    convert(str(folder), f"{folder}.beton")


def make(root):
    """A source of four colours, a red and a blue target, and a surrogate trained while forgetting was counted."""
    images(root / "source", range(4), PER_CLASS, 0)
    images(root / "red", [0], 9, 1)
    images(root / "blue", [2], 5, 2)
    pretrain(
        PretrainConfig(
            source=str(root / "source.beton"), out=str(root / "surrogate"), arch="small-4", size=16, batch_size=8, epochs=8,
            lr=0.1, tensorboard=False, precision="fp32", workers=1, forgetting=True, flip=False,
        )
    )  # fmt: skip
    return root


def run(data, out, *targets, **options):
    defaults = {
        "source": str(data / "source.beton"), "surrogate": str(data / "surrogate"), "keep": "2", "workers": 1,
        "cache": str(out.parent / "cache"), "target": [str(data / f"{t}.beton") for t in targets or ("red",)],
    }  # fmt: skip
    return prune(PruneConfig(**{**defaults, "out": str(out), **options}))


def forward_passes(monkeypatch):
    """A list that grows by the name of every file whose images go through a surrogate."""
    calls = []
    real = Surrogate.batches
    monkeypatch.setattr(Surrogate, "batches", lambda self, b, *more: calls.append(b.path.name) or real(self, b, *more))
    return calls
