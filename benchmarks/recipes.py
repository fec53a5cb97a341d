"""How long and how large the studies train. A recipe is chosen at run time, by ``--recipe`` or by the device, and recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dp4tl_fast.common.errors import UsageError

Options = dict[str, Any]  # of PretrainConfig or of finetune


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options for ``pretrain`` and ``finetune``.

    Attributes:
        network: What is compared on selections.
        surrogate: The one that scores.
        brief: Where a surrogate that is barely trained differs from it.
        transfer: Of each way to finetune.
        moco_epochs, adversarial_epochs: In place of the network's.
        strong_epochs: Of the ResNet-18 that other surrogates are compared with.
        seeds: Runs of each case in the small suites.
    """

    name: str
    network: Options
    surrogate: Options
    brief: Options
    transfer: dict[str, Options]
    moco_epochs: int
    adversarial_epochs: int
    strong_epochs: int
    seeds: tuple[int, ...]


_SMALL: Options = {"size": 32, "batch_size": 128, "warmup_epochs": 1.0, "weight_decay": 5e-4, "tensorboard": False}
_LARGE: Options = {**_SMALL, "size": 64, "batch_size": 256, "warmup_epochs": 2.0}

# A short run, what two CPU cores manage: a network of 0.1 M parameters at 32 pixels. No claim about converged training.
SMALL_16 = Recipe(
    name="small-16",
    network={**_SMALL, "arch": "small-16", "epochs": 12, "lr": 0.2},
    # Of a few tried, the best on the source's validation images for its time: half the resolution is a quarter of the work.
    surrogate={**_SMALL, "arch": "small-16", "size": 16, "epochs": 6, "lr": 0.2},
    brief={"epochs": 1, "warmup_epochs": 0.5},
    transfer={
        "lp": {"epochs": 30, "lr": 1e-2, "size": 32},
        "ff": {"epochs": 5, "lr": 1e-3, "size": 32, "batch_size": 64},
        "knn": {"size": 32},
    },
    moco_epochs=6,
    adversarial_epochs=4,
    strong_epochs=4,
    seeds=(0, 1),
)
RESNET18 = Recipe(
    name="resnet18",
    network={**_LARGE, "arch": "resnet18", "epochs": 40, "lr": 0.4},
    surrogate={**_LARGE, "arch": "small-32", "epochs": 10, "lr": 0.4},
    brief={"epochs": 1, "warmup_epochs": 0.5},
    transfer={
        "lp": {"epochs": 50, "lr": 1e-2, "size": 64},
        "ff": {"epochs": 40, "lr": 1e-4, "size": 64},
        "knn": {"size": 64},
    },
    moco_epochs=100,
    adversarial_epochs=40,
    strong_epochs=40,
    seeds=(0, 1, 2),
)
RECIPES = {recipe.name: recipe for recipe in (SMALL_16, RESNET18)}


def find(name: str) -> Recipe:
    """The recipe of that name, or for ``auto`` what this machine manages: ``resnet18`` with a CUDA GPU, else ``small-16``.

    Raises:
        UsageError: There is none.
    """
    if name == "auto":
        import torch

        return RESNET18 if torch.cuda.is_available() else SMALL_16
    if name not in RECIPES:
        raise UsageError(f"--recipe {name}: known are auto, {', '.join(RECIPES)}")
    return RECIPES[name]
