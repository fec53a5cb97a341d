"""What a process does that cannot join the others: one line that says why, within the stated time, or at once on a signal."""

import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.training import joining


@pytest.fixture
def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(port, rank, world=2):
    told = {"WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in told.items()}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "but not MASTER_ADDR, MASTER_PORT. Start with torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two, which is not a number"),
        (environment(1, 2), "RANK=2 of WORLD_SIZE=2"),
    ],
)
def test_half_an_environment_is_one_line(given, says):
    command = [sys.executable, "-m", "dp4tl_fast.pretrain", "--source=s.beton", "--out=r"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | given)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_does_not_come_is_waited_for_a_stated_time(port, rank, monkeypatch):
    monkeypatch.setattr(joining, "JOIN_S", 0.3)
    for name, value in environment(port, rank).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"only 1 of 2 processes joined within 0 s|no answer at MASTER_ADDR=127.0.0.1"):
        joining.meet()


@pytest.mark.parametrize(("rank", "stop"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_ends_the_wait(port, rank, stop):
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT], env=os.environ | environment(port, rank), stderr=subprocess.PIPE, text=True
    )
    while process.stderr.readline() != "waiting\n":
        pass
    process.send_signal(stop)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said


HANGS = """
import signal, sys
import torch
from dp4tl_fast.common import cli
from dp4tl_fast.training import loop, ranks, waiting

waiting.PATIENCE_S = waiting.SECOND_S = 0.5
signal.signal(signal.SIGINT, signal.default_int_handler)

def wait(*, asked: bool = False) -> None:
    "Wait; asked: as a training does, which saves first."
    with ranks.process_group() as rank:
        if rank == 1:
            print("waiting", file=sys.stderr, flush=True)
            sys.stdin.read()
        with loop.graceful_stop() if asked else ranks.process_group():
            ranks.all_reduce_sum(torch.zeros(1))
sys.exit(ranks.run_command(wait, sys.argv[1:]))
"""


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_one_that_hangs(port, stop, asked):
    """Process 1 has joined and stands still; process 0 is in a call that waits for it."""
    command = [sys.executable, "-c", HANGS, *(["--asked"] if asked else [])]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    other, process = (subprocess.Popen(command, env=os.environ | environment(port, rank), **pipes) for rank in (1, 0))
    assert other.stderr.readline() == "waiting\n"
    for _ in range(30):  # it may not have come to that call yet
        if process.poll() is None:
            process.send_signal(stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
    process.kill()
    other.kill()
    assert process.wait() == 130 and "Traceback" not in process.stderr.read()


WAIT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
from dp4tl_fast.common import cli
from dp4tl_fast.training import joining, ranks

real = joining._connect
def connect(*arguments):
    print("waiting", file=sys.stderr, flush=True)
    return real(*arguments)
joining._connect = connect

def wait(*, flag: int = 0) -> None:
    "Wait."
    with ranks.process_group():
        pass
sys.exit(cli.run(wait, []))
"""
