"""How long and how large the studies train. A recipe is chosen at run time, by ``--recipe`` or by the device, and recorded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dp4tl_fast.common.errors import UsageError

Options = dict[str, Any]  # of PretrainConfig or of finetune


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options for ``pretrain`` and ``finetune``.

    Attributes:
        network: The full run, in ``epochs``; what is compared with it takes the same steps or a share of them.
        surrogate: What scores. Its training should cost at most a fifth of the full run.
        transfer: Of each way to finetune.
        objective_epochs: The full run's under other objectives than supervised, which cost several times as much per image.
        strong: The surrogate that others are compared with in ``sensitivity``.
    """

    name: str
    network: Options
    surrogate: Options
    transfer: dict[str, Options]
    objective_epochs: int
    strong: Options


_SMALL: Options = {"size": 32, "batch_size": 128, "weight_decay": 5e-4, "lr": 0.2, "tensorboard": False}
_LARGE: Options = {**_SMALL, "size": 64, "batch_size": 256, "lr": 0.4}

# Short runs, what two CPU cores manage: networks of 0.1 M and 0.4 M parameters at 32 pixels. No claim about converged training.
SMALL_16 = Recipe(
    name="small-16",
    network={**_SMALL, "arch": "small-16", "epochs": 8},
    # Half the resolution is a quarter of the work: a sixth of the full run's time.
    surrogate={**_SMALL, "arch": "small-16", "size": 16, "epochs": 4, "batch_size": 256, "lr": 0.4},
    transfer={
        "lp": {"epochs": 50, "lr": 1e-2, "size": 32, "seeds": 3},
        "ff": {"epochs": 5, "lr": 1e-3, "size": 32, "batch_size": 64, "seeds": 1},
        "knn": {"size": 32},
    },
    objective_epochs=8,
    strong={**_SMALL, "arch": "resnet18", "epochs": 6},
)
SMALL_32 = replace(SMALL_16, name="small-32", network={**_SMALL, "arch": "small-32", "epochs": 8})
# Needs a GPU.
RESNET18 = Recipe(
    name="resnet18",
    network={**_LARGE, "arch": "resnet18", "epochs": 40},
    surrogate={**_LARGE, "arch": "small-32", "size": 32, "epochs": 10},
    transfer={
        "lp": {"epochs": 50, "lr": 1e-2, "size": 64, "seeds": 3},
        "ff": {"epochs": 40, "lr": 1e-4, "size": 64, "seeds": 1},
        "knn": {"size": 64},
    },
    objective_epochs=100,
    strong={**_LARGE, "arch": "resnet18", "epochs": 40},
)
RECIPES = {recipe.name: recipe for recipe in (SMALL_16, SMALL_32, RESNET18)}


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
