"""The loop. Reads top to bottom; what differs between objectives is in the objective."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from dp4tl_fast.training import norm, ranks
from dp4tl_fast.training.ema import Ema
from dp4tl_fast.training.watch import LossWatch

CHECK_EVERY = 32  # steps between looks at whether the loss is finite: a look waits for the device


class Objective(Protocol):
    """What is learned: ``(network, images, labels, index) -> (mean loss, {metric: sum over the batch})``.

    A ``torch.nn.Module``. ``index`` (int64 ``[batch]``, on the CPU) says which samples these are.
    """

    views: int  # independently augmented views of each image that it wants
    classifies: bool  # whether the network's own logits can be validated

    def __call__(
        self, network: nn.Module, images: Any, labels: torch.Tensor, index: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...
    def after_step(self, network: nn.Module) -> None: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Batches(Protocol):
    """``(images, labels, index)``: uint8 images or a tuple of views of them, int64 labels and sample ids, on the CPU."""

    bytes_read: int

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...
    def set_epoch(self, epoch: int) -> None: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


@dataclass
class Tally:
    """Sums over the part of an epoch that has run; part of the resumable state."""

    samples: int = 0
    batches: int = 0
    seconds: float = 0.0
    data_wait_s: float = 0.0
    bytes_read: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, name: str, value: torch.Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value.double()

    def pooled(self, device: torch.device) -> Tally:
        """Over all ranks: sums of what was done, the longest of the times. Called on every rank."""
        names = ranks.first_does(lambda: sorted(self.sums))  # a rank may have had no batch, but then not rank 0
        counts = torch.tensor([self.samples, self.bytes_read], dtype=torch.double, device=device)
        sums = ranks.total(torch.cat([counts, *(self.sums.get(n, counts.new_zeros(1)).view(1) for n in names)]))
        times = ranks.greatest(torch.tensor([self.seconds, self.data_wait_s], dtype=torch.double, device=device)).tolist()
        named = dict(zip(names, sums[2:], strict=True))
        return Tally(int(sums[0]), self.batches, times[0], times[1], int(sums[1]), named)

    def metrics(self) -> dict[str, float]:
        """Rates and means; waits for the device."""
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

    def __call__(self, images: Any, index: torch.Tensor | None = None, epoch: int = 0) -> Any:
        """A batch, or a tuple of views of it; which samples they are does not matter here."""
        if isinstance(images, tuple):
            return tuple(self(view) for view in images)
        x = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return x * self._scale + self._shift


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
        seed: Random numbers of a step (dropout, attacks, permutations) are drawn anew from (seed, step, rank).
        best: Step and value of the best checkpoint so far.
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

    def __post_init__(self) -> None:
        self.joint = Joint(self.network or self.model, self.objective)
        self.parallel = ranks.parallel(self.joint)
        self.parameters = [p for p in self.joint.parameters() if p.requires_grad]
        self._statistics = norm.running(self.joint)

    def draw_from(self, step: int) -> None:
        """Begin the random numbers of a step: nothing of a generator needs to be saved."""
        key = f"{self.seed}/{step}/{ranks.rank_and_ranks()[0]}"
        torch.manual_seed(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little"))

    def after_step(self) -> None:
        """What follows the optimiser."""
        ranks.average(self._statistics)
        self.objective.after_step(self.joint.network)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)

    def state_dict(self, loader: Batches) -> dict[str, Any]:
        """Called on every rank; the same on all."""
        tally = self.tally.pooled(self.parameters[0].device)
        return {
            "step": self.step,
            "epoch": self.epoch,
            "best": self.best,
            "tally": {**vars(tally), "sums": {k: v.cpu() for k, v in tally.sums.items()}},
            "loader": {**loader.state_dict(), "batch": tally.batches},  # it may have delivered one more, not yet used
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], loader: Batches) -> None:
        self.step, self.epoch, self.best = state["step"], state["epoch"], state["best"]
        device = self.parameters[0].device
        whole = Tally(**{**state["tally"], "sums": {k: v.to(device) for k, v in state["tally"]["sums"].items()}})
        self.tally = whole if ranks.rank_and_ranks()[0] == 0 else _nothing_of(whole)
        loader.load_state_dict(state["loader"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.scaler.load_state_dict(state["scaler"])


def _nothing_of(whole: Tally) -> Tally:
    """The share of a rank whose part another rank holds: the clock goes on, the sums begin at zero."""
    zeros = {name: torch.zeros_like(value) for name, value in whole.sums.items()}
    return Tally(0, whole.batches, whole.seconds, whole.data_wait_s, 0, zeros)


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
    loader: Batches,
    prepare: Any,
    rate: Callable[[int], float],
    *,
    epochs: int,
    how: Stepping = Stepping(),
    on_step: Callable[[Run], bool] = lambda run: False,
    on_epoch: Callable[[Run, dict[str, float]], None] = lambda run, metrics: None,
) -> bool:
    """Train from where ``run`` stands to the end of ``epochs``.

    Args:
        prepare: ``Normalise``, or something called alike that augments as well: ``(images, index, epoch) -> images``.
        rate: Step -> learning rate.
        on_step: Called after every optimiser step; returning True (on all ranks) stops, in a state that can be resumed exactly.
        on_epoch: Called with the metrics of each finished epoch.

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
        for images, labels, index in ahead(timed(loader, tally), prepare.device):
            for group in run.optimizer.param_groups:
                group["lr"] = rate(run.step)
            run.draw_from(run.step)
            loss = gradients(run, prepare, (images, labels, index), how)
            if how.clip_norm:
                run.scaler.unscale_(run.optimizer)
                nn.utils.clip_grad_norm_(run.parameters, how.clip_norm)
            run.scaler.step(run.optimizer)
            run.scaler.update()
            watch.see(run.step, loss, index)
            run.after_step()

            tally.samples, tally.batches = tally.samples + len(labels), tally.batches + 1
            tally.seconds, tally.bytes_read = time.perf_counter() - start, loader.bytes_read - before
            stop = on_step(run)
            if stop or run.step % CHECK_EVERY == 0:
                watch.check()
            if stop:
                return False
        watch.check()
        metrics = {"epoch": run.epoch, "lr": rate(max(0, run.step - 1)), **tally.pooled(prepare.device).metrics()}
        run.epoch, run.tally = run.epoch + 1, Tally()
        loader.set_epoch(run.epoch)
        on_epoch(run, metrics)
    return True


def gradients(run: Run, prepare: Any, batch: tuple[Any, ...], how: Stepping) -> torch.Tensor:
    """Leave the (scaled) gradients of the mean loss of ``batch`` in the parameters. Returns that loss, on the device."""
    run.optimizer.zero_grad(set_to_none=True)
    n, mean = len(batch[1]), torch.zeros((), device=prepare.device)
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


def split(batch: tuple[Any, ...], parts: int) -> Iterator[tuple[Any, ...]]:
    """A batch as consecutive parts of nearly equal size, none of them empty."""
    images, labels, index = batch
    views = images if isinstance(images, tuple) else (images,)
    pieces = [x.tensor_split(min(parts, len(labels))) for x in (*views, labels, index)]
    for *some, y, i in zip(*pieces, strict=True):
        yield tuple(some) if isinstance(images, tuple) else some[0], y, i


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


def ahead(batches: Iterator[tuple[Any, ...]], device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Batches on a GPU, each copied while the step before it computes; on the CPU there is nothing to copy.

    The index stays on the CPU.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def move(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(move(view) for view in x)
        return (x if x.is_cuda else x.pin_memory()).to(device, non_blocking=True)

    def copy(batch: tuple[Any, ...]) -> tuple[tuple[Any, ...], torch.cuda.Event]:
        with torch.cuda.stream(stream):
            images, labels, index = batch
            return (move(images), move(labels), index), stream.record_event()

    waiting = None
    for batch in batches:
        arriving = copy(batch)
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = arriving
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: tuple[Any, ...], event: torch.cuda.Event) -> tuple[Any, ...]:
    """The batch, once the compute stream may use it; its memory is not reused before that stream is done with it."""
    compute = torch.cuda.current_stream()
    compute.wait_event(event)
    for part in (*(batch[0] if isinstance(batch[0], tuple) else (batch[0],)), batch[1]):
        part.record_stream(compute)
    return batch


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Any, ...]],
    normalise: Normalise,
    count: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]],
) -> dict[str, float]:
    """Mean of ``count(logits, labels)`` over all images of all ranks, in eval mode and fp32."""
    model.eval()
    tally = Tally()
    for images, labels in batches:
        for name, value in count(model(normalise(images)).float(), labels.to(normalise.device)).items():
            tally.add(name, value)
        tally.samples += len(labels)
    tally = tally.pooled(normalise.device)
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
