"""Everything that changes while training, and so everything that a checkpoint holds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from dp4tl_fast.loaders.contract import IndexedBatch, Loader
from dp4tl_fast.training import norm, ranks
from dp4tl_fast.training.ema import Ema
from dp4tl_fast.training.tally import Tally, nothing_of


class Objective(Protocol):
    """What is learned: ``(network, images, labels, index) -> (mean loss, {metric: sum over the batch})``.

    A ``torch.nn.Module``. ``index`` (int64 ``[batch]``, on the CPU) says which samples these are.
    """

    def __call__(
        self, network: nn.Module, images: Any, labels: torch.Tensor, index: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...
    def after_step(self, network: nn.Module) -> None: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Joint(nn.Module):
    """Network and objective as one module: DDP sees everything that is trained, in one forward pass a part."""

    def __init__(self, network: nn.Module, objective: Any) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, images: Any, labels: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.objective(self.network, images, labels, index)


@dataclass
class Run:
    """Everything that changes while training, and so everything that a checkpoint holds.

    Attributes:
        model: What is evaluated and saved.
        network: What the objective is given: ``model``, or it without its classifier.
        ema: Averaged weights beside the model's own.
        seed: Random numbers of a step (dropout, attacks, permutations) are a function of (seed, step, rank).
        best: Step and value of the best checkpoint so far.
        pending: Metrics of an epoch that has been trained and is yet to be measured.
        bad: Records left out so far, which cannot be decoded, and why.
    """

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # disabled but for fp16
    network: nn.Module | None = None
    ema: Ema | None = None
    seed: int = 0
    step: int = 0
    epoch: int = 0
    tally: Tally = field(default_factory=Tally)
    best: dict[str, float] = field(default_factory=dict)
    pending: dict[str, float] | None = None
    bad: dict[tuple[str, int], tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.joint = Joint(self.network or self.model, self.objective)
        self.parallel = ranks.parallel(self.joint)
        self.parameters = [p for p in self.joint.parameters() if p.requires_grad]
        self._statistics = norm.running(self.joint)

    def draw_from(self, step: int) -> None:
        """Begin the random numbers of a step: nothing of a generator needs to be saved."""
        key = f"{self.seed}/{step}/{ranks.rank()}"
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        torch.default_generator.manual_seed(number)  # torch.manual_seed visits every kind of device: 100 times as long
        if self.parameters[0].is_cuda:
            torch.cuda.manual_seed(number)

    def after_step(self) -> None:
        """What follows the optimiser."""
        ranks.all_reduce_mean(self._statistics)
        self.objective.after_step(self.joint.network)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)

    def state_dict(self, loader: Loader[IndexedBatch]) -> dict[str, Any]:
        """Called on every rank; the same on all."""
        tally = self.tally.pooled(self.parameters[0].device)
        return {
            "step": self.step,
            "epoch": self.epoch,
            "best": self.best,
            "pending": self.pending,
            "bad": self.bad,
            "tally": {**vars(tally), "sums": {k: v.cpu() for k, v in tally.sums.items()}},
            "loader": {**loader.state_dict(), "batch": tally.batches},  # it may have delivered one more, not yet used
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], loader: Loader[IndexedBatch]) -> None:
        self.step, self.epoch, self.best = state["step"], state["epoch"], state["best"]
        self.pending, self.bad = state.get("pending"), state.get("bad", {})  # older versions had neither
        device = self.parameters[0].device
        older = {"energy_j": math.nan}  # checkpoints of runs that did not meter it
        whole = Tally(**{**older, **state["tally"], "sums": {k: v.to(device) for k, v in state["tally"]["sums"].items()}})
        self.tally = whole if ranks.rank() == 0 else nothing_of(whole)
        loader.load_state_dict(state["loader"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.scaler.load_state_dict(state["scaler"])
