"""The processes that torchrun started, and this one among them. Alone, everything here does nothing and costs nothing."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from dp4tl_fast.common.errors import Dp4tlError, UsageError
from dp4tl_fast.training import joining
from dp4tl_fast.training.waiting import ended_by_signals

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")

_was_one_of_several = False  # this process has been in a process group


@contextmanager
def process_group() -> Iterator[int]:
    """Join the others under torchrun (gloo on the CPU, NCCL on GPUs, one GPU per process). Yields this process's rank.

    Signals end a wait for another process (``waiting``). Alone it does not import torch. Within another ``process_group`` it is
    that one.

    Raises:
        UsageError: More processes on this machine than GPUs; the environment says only half of what torchrun sets; a process does
            not come (``joining.JOIN_S``), or ends before this one.
    """
    if not joining.several():
        yield 0
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield dist.get_rank()
        return
    if torch.cuda.is_available():
        here, gpus = joining.number("LOCAL_RANK", 0), torch.cuda.device_count()
        if here >= gpus:
            raise UsageError(f"torchrun started process {here + 1} here, but torch sees {gpus} GPUs: --nproc-per-node={gpus}")
        torch.cuda.set_device(here)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    which = joining.number("RANK", 0), joining.number("WORLD_SIZE", 1)
    answer = timedelta(seconds=joining.ANSWER_S)
    dist.init_process_group(backend, store=joining.meet(), rank=which[0], world_size=which[1], timeout=answer)
    global _was_one_of_several
    _was_one_of_several = True
    with ended_by_signals():
        try:
            yield dist.get_rank()
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            raise UsageError("another process has ended or does not answer. Its own message says why") from None
    dist.destroy_process_group()  # after an error the others may be gone: leaving waits for nobody


def leave(code: int) -> int:
    """End a process that was one of several with this exit code; alone, return it.

    Gloo's threads may still be running when the interpreter tears itself down, and torch then aborts the process ("terminate
    called without an active exception", seen in 3 of 20 ends on a busy machine): a finished run would count as failed.
    """
    if _was_one_of_several:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def run_command(function: Callable[..., Any], argv: Sequence[str] | None, **how: Any) -> int:
    """``cli.run`` (``how``: its other options) for a command that may run under torchrun: one process prints the result."""
    from dp4tl_fast.common import cli

    with redirect_stdout(None if os.environ.get("RANK", "0") != "0" else sys.stdout):
        code = cli.run(function, argv, **how)
    return leave(code)


def rank() -> int:
    """This process's rank; 0 outside ``process_group``."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 outside ``process_group``."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def on_rank_zero(function: Callable[[], T]) -> T:
    """Rank 0 calls ``function``; every rank returns its result, or raises its ``Dp4tlError``."""
    if world_size() == 1:
        return function()
    import torch.distributed as dist

    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = function()
        except Dp4tlError as error:
            answer[1] = error
    dist.broadcast_object_list(answer, 0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def is_lost_peer(error: BaseException) -> bool:
    """Whether this is how a process learns that another one has ended, or does not answer."""
    import torch.distributed as dist

    if world_size() == 1:
        return False
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place."""
    return _reduce(values, "SUM")


def all_reduce_max(values: torch.Tensor) -> torch.Tensor:
    """Maximum over ranks, in place."""
    return _reduce(values, "MAX")


def _reduce(values: torch.Tensor, operation: str) -> torch.Tensor:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.all_reduce(values, getattr(dist.ReduceOp, operation))
    return values


def all_gather(rows: torch.Tensor) -> torch.Tensor:
    """``rows`` ``[n, ...]`` of all ranks in their order, ``[ranks * n, ...]``; equal n on every rank, no gradient."""
    import torch

    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_objects(mine: T) -> list[T]:
    """``mine`` of all ranks in their order: numbers, strings, lists and dicts."""
    if world_size() == 1:
        return [mine]
    import torch.distributed as dist

    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def all_reduce_mean(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each (of one dtype) by its mean over ranks, in one message."""
    import torch

    if world_size() == 1 or not tensors:
        return
    flat = all_reduce_sum(torch.cat([t.flatten() for t in tensors])) / world_size()
    parts = flat.split([t.numel() for t in tensors])
    torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])


def parallel(module: nn.Module) -> nn.Module:
    """``module`` whose gradients are averaged over ranks while they are computed (DDP).

    Buffers are left to those who own them: DDP would send a queue of 65,536 keys before every step.
    """
    if world_size() == 1:
        return module
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # as it was called before
    leave_buffers: dict[str, Any] = {name: False}
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **leave_buffers)


class Votes:
    """Whether any rank wants to stop: every rank learns it at the same step, one step late, and waits for nobody."""

    def __init__(self) -> None:
        self._pending: tuple[Any, torch.Tensor] | None = None

    def any(self, mine: bool) -> bool:
        if world_size() == 1:
            return mine
        import torch

        if self._verdict():
            return True
        flag = torch.tensor([int(mine)])
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, async_op=True)
        self._pending = work, flag
        return False

    def _verdict(self) -> bool:
        if self._pending is None:
            return False
        work, flag = self._pending
        self._pending = None
        work.wait()
        return bool(flag)

    def close(self) -> None:
        """Take part in the last vote, so that no message is under way when the group ends."""
        self._verdict()
