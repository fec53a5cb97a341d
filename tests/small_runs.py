"""Small real files to train on, and runs of a second."""

import numpy as np
from PIL import Image

from dp4tl_fast.conversion.run import convert
from dp4tl_fast.pretraining.config import PretrainConfig
from dp4tl_fast.pretraining.run import pretrain

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 220), (200, 200, 60))
FAST = {"arch": "small-4", "size": 16, "batch_size": 8, "epochs": 3, "lr": 0.05, "tensorboard": False, "precision": "fp32",
        "workers": 1}  # fmt: skip


def noisy_colours(root, name, per_class):
    """``root/name.beton`` from JPEGs of 24 x 20 noisy pixels in ``root/name``: a colour is a class, ``per_class`` images each."""
    random = np.random.default_rng(0)
    for c, (colour, n) in enumerate(zip(COLOURS, per_class, strict=False)):
        folder = root / name / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(np.array(colour) + random.normal(0, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
    convert(str(root / name), str(root / f"{name}.beton"))
    return root / f"{name}.beton"


def run(source, out, callback=None, **changes):
    return pretrain(PretrainConfig(source=str(source), out=str(out), **{**FAST, **changes}), callback=callback)


def to_tune(root, epochs=1):
    """``root`` with a target's ``train.beton`` and ``test.beton``, and in ``run`` a network pretrained on the first."""
    noisy_colours(root, "train", (10, 9, 12, 7))
    noisy_colours(root, "test", (5, 6, 4, 7))
    run(root / "train.beton", root / "run", epochs=epochs)
    return root
