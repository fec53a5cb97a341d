"""The loop. Reads top to bottom; what differs between objectives is in the objective."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from dp4tl_fast.errors import Dp4tlError

Images = torch.Tensor | tuple[torch.Tensor, ...]


class Objective(Protocol):
    """What is learned: ``(model, images, labels) -> (mean loss, {metric: sum over the batch})``. A ``torch.nn.Module``."""

    views: int  # independently augmented views of each image that it wants
    classifies: bool  # whether the network's own logits can be validated

    def __call__(
        self, model: nn.Module, images: Any, labels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...
    def after_step(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Batches(Protocol):
    bytes_read: int

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...
    def set_epoch(self, epoch: int) -> None: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


class NonFiniteLoss(Dp4tlError):
    """The loss became NaN or infinite."""


@dataclass
class Tally:
    """Sums over the part of an epoch that has run; part of the resumable state."""

    samples: int = 0
    seconds: float = 0.0
    data_wait_s: float = 0.0
    bytes_read: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, name: str, value: torch.Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value.double()

    def metrics(self) -> dict[str, float]:
        """Rates and means; the one place that waits for the device."""
        n = max(1, self.samples)
        means = {name: float(value) / n for name, value in self.sums.items()}
        return {
            "seconds": self.seconds,
            "samples": self.samples,
            "samples_per_s": self.samples / max(self.seconds, 1e-9),
            "data_wait_s": self.data_wait_s,
            "bytes_read": self.bytes_read,
            **means,
        }


@dataclass
class Normalise:
    """uint8 batches ``[b, 3, h, w]`` -> ``(x / 255 - mean) / std`` on the device, channels-last."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device

    def __post_init__(self) -> None:
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def __call__(self, images: Any) -> Any:
        """A batch, or a tuple of views of it."""
        if isinstance(images, tuple):
            return tuple(self(view) for view in images)
        x = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return x * self._scale + self._shift


@dataclass
class Run:
    """Everything that changes while training, and so everything that a checkpoint holds."""

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # disabled but for fp16
    step: int = 0
    epoch: int = 0
    tally: Tally = field(default_factory=Tally)

    def state_dict(self, loader: Batches) -> dict[str, Any]:
        tally = {**vars(self.tally), "sums": {k: v.cpu() for k, v in self.tally.sums.items()}}
        return {
            "step": self.step,
            "epoch": self.epoch,
            "tally": tally,
            "loader": loader.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "scaler": self.scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        }

    def load_state_dict(self, state: dict[str, Any], loader: Batches) -> None:
        self.step, self.epoch = state["step"], state["epoch"]
        self.tally = Tally(**state["tally"])
        loader.load_state_dict(state["loader"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def train(
    run: Run,
    loader: Batches,
    normalise: Normalise,
    rate: Callable[[int], float],
    *,
    epochs: int,
    precision: torch.dtype | None = None,
    on_step: Callable[[Run], bool] = lambda run: False,
    on_epoch: Callable[[Run, dict[str, float]], None] = lambda run, metrics: None,
) -> bool:
    """Train from where ``run`` stands to the end of ``epochs``.

    Args:
        rate: Step -> learning rate.
        precision: Autocast dtype, or ``None`` for fp32.
        on_step: Called after every optimiser step; returning True stops, in a state that can be resumed exactly.
        on_epoch: Called with the metrics of each finished epoch.

    Returns:
        Whether training reached the end.

    Raises:
        NonFiniteLoss: At the end of the epoch in which the loss stopped being finite (checking each step would
            synchronise with the device).
    """
    device, objective, scaler = normalise.device, run.objective, run.scaler
    while run.epoch < epochs:
        run.model.train()
        tally, before, start = (
            run.tally,
            loader.bytes_read - run.tally.bytes_read,
            time.perf_counter() - run.tally.seconds,
        )
        for images, labels in timed(loader, tally):
            for group in run.optimizer.param_groups:
                group["lr"] = rate(run.step)
            x, y = normalise(images), labels.to(device, non_blocking=True)
            with torch.autocast(device.type, precision, enabled=precision is not None):
                loss, sums = objective(run.model, x, y)
            run.optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(run.optimizer)
            scaler.update()
            objective.after_step()

            run.step += 1
            tally.samples += len(labels)
            tally.add("loss", loss.detach() * len(labels))
            for name, value in sums.items():
                tally.add(name, value)
            tally.seconds, tally.bytes_read = time.perf_counter() - start, loader.bytes_read - before
            if on_step(run):
                return False
        metrics = {"epoch": run.epoch, "lr": rate(max(0, run.step - 1)), **tally.metrics()}
        tally.seconds = time.perf_counter() - start  # after the wait for the device in metrics()
        if not math.isfinite(metrics["loss"]):
            raise NonFiniteLoss(
                f"the loss is {metrics['loss']} after epoch {run.epoch} (step {run.step}). Lower the learning rate "
                "(--lr), lengthen the warm-up, or use --precision bf16 or fp32"
            )
        run.epoch, run.tally = run.epoch + 1, Tally()
        loader.set_epoch(run.epoch)
        on_epoch(run, metrics)
    return True


def timed(batches: Iterable[tuple[Any, ...]], tally: Tally) -> Iterator[tuple[Any, ...]]:
    """Pass batches on and count the seconds spent waiting for them."""
    iterator = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(iterator, None)
        tally.data_wait_s += time.perf_counter() - start
        if batch is None:
            return
        yield batch


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Any, ...]],
    normalise: Normalise,
    count: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]],
) -> dict[str, float]:
    """Mean of ``count(logits, labels)`` over all images, in eval mode and fp32."""
    model.eval()
    tally = Tally()
    for images, labels in batches:
        for name, value in count(model(normalise(images)).float(), labels.to(normalise.device)).items():
            tally.add(name, value)
        tally.samples += len(labels)
    return {name: float(value) / max(1, tally.samples) for name, value in tally.sums.items()}


@contextmanager
def graceful_stop() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question that the loop asks between steps; a second signal interrupts at once."""
    caught: list[int] = []

    def note(signum: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signum)

    previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
