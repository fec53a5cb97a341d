"""How the processes of one run find one another, within a stated time, and so that a signal ends the wait."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from dp4tl_fast.common.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed import Store

JOIN_S = 600.0  # until the last process must have come
ANSWER_S = 1800.0  # until the others must have come to the same place, later on: an error then
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets besides WORLD_SIZE


def number(name: str, default: int) -> int:
    """An environment variable that holds a number.

    Raises:
        UsageError: It holds something else.
    """
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"the environment says {name}={text}, which is not a number. Start with torchrun, or unset it") from None


def several() -> bool:
    """Whether this is one of several processes.

    Raises:
        UsageError: It is, but the environment does not say which one, or where the others are.
    """
    world = number("WORLD_SIZE", 1)
    if world <= 1:
        return False
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise UsageError(
            f"the environment says WORLD_SIZE={world}, but not {', '.join(missing)}. Start with torchrun, or unset WORLD_SIZE"
        )
    if not 0 <= number("RANK", 0) < world:
        raise UsageError(f"the environment says RANK={os.environ['RANK']} of WORLD_SIZE={world}. Start with torchrun")
    return True


def meet() -> Store:
    """A store that all processes have joined. Waits in short steps, so that Ctrl-C and SIGTERM end it.

    Raises:
        UsageError: Not all came within ``JOIN_S`` seconds, or the port is another program's.
    """
    import torch.distributed as dist

    rank, world = number("RANK", 0), number("WORLD_SIZE", 1)
    deadline = time.monotonic() + JOIN_S
    store = _connect(rank, deadline)
    store = dist.PrefixStore(f"dp4tl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    came = store.add("came", 1)
    while came < world:
        if time.monotonic() > deadline:
            raise UsageError(f"only {came} of {world} processes joined within {JOIN_S:.0f} s. Start them all with one torchrun")
        time.sleep(0.05)
        came = store.add("came", 0)
    return store


def _connect(rank: int, deadline: float) -> Store:
    """The store that torchrun keeps; without one, the first process's."""
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], number("MASTER_PORT", 0)
    keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while True:
        try:
            return dist.TCPStore(host, port, None, keeps, timedelta(seconds=2), wait_for_workers=False)
        except RuntimeError as error:
            if keeps:
                raise UsageError(f"MASTER_PORT={port}: {str(error).splitlines()[0]}. Choose another port") from None
            if time.monotonic() > deadline:
                raise UsageError(
                    f"no answer at MASTER_ADDR={host}, MASTER_PORT={port} within {JOIN_S:.0f} s. Is process 0 running there?"
                ) from None
            time.sleep(0.05)
