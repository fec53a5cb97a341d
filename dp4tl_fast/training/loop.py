"""The loop. Reads top to bottom; what differs between objectives is in the objective."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dp4tl_fast.loaders.contract import Batch, IndexedBatch, Loader
from dp4tl_fast.training.feed import ahead, filled, split, timed
from dp4tl_fast.training.state import Run
from dp4tl_fast.training.tally import Tally
from dp4tl_fast.training.watch import LossWatch

CHECK_EVERY = 32  # steps between looks at whether the loss is finite: a look waits for the device


@dataclass
class Normalise:
    """uint8 batches ``[b, 3, h, w]`` -> ``(x / 255 - mean) / std`` on the device, channels-last."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device

    def __post_init__(self) -> None:
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def __call__(self, images: Any, index: torch.Tensor | None = None, epoch: int = 0) -> Any:
        """A batch, or a tuple of views of it; which samples they are does not matter here."""
        if isinstance(images, tuple):
            return tuple(self(view) for view in images)
        x = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return x * self._scale + self._shift


@dataclass(frozen=True)
class Stepping:
    """How a step is taken.

    Attributes:
        precision: Autocast dtype, or ``None`` for fp32.
        accumulate: Parts that a batch is computed in, one after another, to save memory.
        clip_norm: Largest L2 norm of all gradients together; 0 does not clip.
    """

    precision: torch.dtype | None = None
    accumulate: int = 1
    clip_norm: float = 0.0


def train(
    run: Run,
    loader: Loader[IndexedBatch],
    prepare: Any,
    rate: Callable[[int], float],
    *,
    epochs: int,
    how: Stepping = Stepping(),
    on_step: Callable[[Run], bool] = lambda run: False,
    on_epoch: Callable[[Run, dict[str, float]], None] = lambda run, metrics: None,
    energy: Callable[[], float] = lambda: math.nan,
) -> bool:
    """Train from where ``run`` stands to the end of ``epochs``.

    Args:
        prepare: ``Normalise``, or something called alike that augments as well: ``(images, index, epoch) -> images``.
        rate: Step -> learning rate.
        on_step: Called after every optimiser step; returning True (on all ranks) stops, in a state that can be resumed exactly.
        on_epoch: Called with the metrics of each finished epoch.
        energy: Joules that this rank has drawn so far; ``nan`` where that is not known.

    Returns:
        Whether training reached the end.

    Raises:
        NonFiniteLoss: At most ``CHECK_EVERY`` steps after the loss stopped being finite; before ``on_epoch``.
    """
    watch = LossWatch(prepare.device, CHECK_EVERY)
    while run.epoch < epochs:
        run.joint.train()
        tally = run.tally
        before, start = loader.bytes_read - tally.bytes_read, time.perf_counter() - tally.seconds
        drawn = energy() - tally.energy_j
        for batch in ahead(timed(filled(loader), tally), prepare.device):
            for group in run.optimizer.param_groups:
                group["lr"] = rate(run.step) * group.get("scale", 1.0)
            run.draw_from(run.step)
            loss = gradients(run, prepare, batch, how)
            if how.clip_norm:
                run.scaler.unscale_(run.optimizer)
                nn.utils.clip_grad_norm_(run.parameters, how.clip_norm)
            run.scaler.step(run.optimizer)
            run.scaler.update()
            watch.see(run.step, loss, batch.index)
            run.after_step()

            tally.samples, tally.batches = tally.samples + len(batch.labels), tally.batches + 1
            tally.seconds, tally.bytes_read = time.perf_counter() - start, loader.bytes_read - before
            stop = on_step(run)
            if stop or run.step % CHECK_EVERY == 0:
                watch.check()
            if stop:
                tally.energy_j = energy() - drawn
                return False
        watch.check()  # waits for the device
        tally.seconds, tally.energy_j = time.perf_counter() - start, energy() - drawn
        metrics = {"epoch": run.epoch, "lr": rate(max(0, run.step - 1)), **tally.pooled(prepare.device).metrics()}
        run.epoch, run.tally = run.epoch + 1, Tally()
        loader.set_epoch(run.epoch)
        on_epoch(run, metrics)
    return True


def gradients(run: Run, prepare: Any, batch: IndexedBatch, how: Stepping) -> torch.Tensor:
    """Leave the (scaled) gradients of the mean loss of ``batch`` in the parameters. Returns that loss, on the device."""
    run.optimizer.zero_grad(set_to_none=True)
    n, mean = len(batch.labels), torch.zeros((), device=prepare.device)
    parts = list(split(batch, how.accumulate))
    for i, (images, labels, index) in enumerate(parts):
        x, y = prepare(images, index, run.epoch), labels.to(prepare.device, non_blocking=True)
        with contextlib.nullcontext() if i == len(parts) - 1 else unsynchronised(run.parallel):
            with torch.autocast(prepare.device.type, how.precision, enabled=how.precision is not None):
                loss, sums = run.parallel(x, y, index)
            loss = loss * (len(labels) / n)
            run.scaler.scale(loss).backward()
        mean += loss.detach()
        for name, value in sums.items():
            run.tally.add(name, value)
    run.tally.add("loss", mean * n)
    return mean


def unsynchronised(module: nn.Module) -> Any:
    """Keep gradients on their rank: the last part's backward pass averages the sums of all parts."""
    no_sync = getattr(module, "no_sync", None)
    return no_sync() if no_sync else contextlib.nullcontext()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    normalise: Normalise,
    count: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]],
) -> dict[str, float]:
    """Mean of ``count(logits, labels)`` over all images of all ranks, in eval mode and fp32."""
    model.eval()
    tally = Tally()
    for images, labels in batches:
        if len(labels) == 0:  # none of them could be decoded
            continue
        for name, value in count(model(normalise(images)).float(), labels.to(normalise.device)).items():
            tally.add(name, value)
        tally.samples += len(labels)
    tally = tally.pooled(normalise.device)
    return {name: float(value) / max(1, tally.samples) for name, value in tally.sums.items()}


@contextmanager
def graceful_stop(more: Sequence[signal.Signals] = ()) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C, SIGTERM and ``more`` into a question that the loop asks between steps; a second signal interrupts at once.

    Outside the main thread, where Python takes no signal handlers, signals keep what they do.
    """
    caught: list[int] = []

    def note(signum: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signum)

    signals = (signal.SIGINT, signal.SIGTERM, *more) if threading.current_thread() is threading.main_thread() else ()
    previous = {s: signal.signal(s, note) for s in signals}
    try:
        yield lambda: bool(caught)
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
