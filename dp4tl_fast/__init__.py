"""dp4tl_fast: prune the pretraining set for the task you have, then read and train on only what survives.

Chen et al., *Selectivity Drives Productivity*, NeurIPS 2023 (arXiv 2310.08782). The names below are imported when they are
first used: importing this package is cheap, it imports neither torch nor any backend.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp4tl_fast.beton import Beton as Beton
    from dp4tl_fast.conversion.run import convert as convert
    from dp4tl_fast.finetuning.config import FinetuneConfig as FinetuneConfig
    from dp4tl_fast.finetuning.run import finetune as finetune
    from dp4tl_fast.inference.config import EvaluateConfig as EvaluateConfig
    from dp4tl_fast.inference.config import ExportConfig as ExportConfig
    from dp4tl_fast.inference.config import PredictConfig as PredictConfig
    from dp4tl_fast.inference.evaluate import evaluate as evaluate
    from dp4tl_fast.inference.export import export as export
    from dp4tl_fast.inference.predict import predict as predict
    from dp4tl_fast.loaders import LoaderSpec as LoaderSpec
    from dp4tl_fast.loaders import open_loader as open_loader
    from dp4tl_fast.pretraining.config import PretrainConfig as PretrainConfig
    from dp4tl_fast.pretraining.run import pretrain as pretrain
    from dp4tl_fast.pruning.config import PruneConfig as PruneConfig
    from dp4tl_fast.pruning.run import prune as prune
    from dp4tl_fast.reporting.page import report as report
    from dp4tl_fast.selection import Selection as Selection

__version__ = "0.2.0"

# The front door: name -> module that defines it.
_HOMES = {
    "Beton": "beton",
    "EvaluateConfig": "inference.config",
    "ExportConfig": "inference.config",
    "FinetuneConfig": "finetuning.config",
    "LoaderSpec": "loaders",
    "PredictConfig": "inference.config",
    "PretrainConfig": "pretraining.config",
    "PruneConfig": "pruning.config",
    "Selection": "selection",
    "convert": "conversion.run",
    "evaluate": "inference.evaluate",
    "export": "inference.export",
    "finetune": "finetuning.run",
    "open_loader": "loaders",
    "predict": "inference.predict",
    "pretrain": "pretraining.run",
    "prune": "pruning.run",
    "report": "reporting.page",
}
__all__ = [*_HOMES, "__version__"]


class _FrontDoor(ModuleType):
    """``dp4tl_fast.prune`` is the function, although importing the command's module would bind it here."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _FrontDoor
