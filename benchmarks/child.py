"""Functions in processes of their own: ``call`` and ``call_within`` for one answer, ``Child`` for one that waits for its turn.

The process is ``python -m benchmarks.child MODULE:FUNCTION JSON``. It calls the function with the JSON object's items as keyword
arguments. If that returns a function, the process says so and then calls it, with 0, 1, ..., for every line on its standard input.
Every answer is a line of JSON. This module imports little, so that a child measures what it was started for.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

READY = "ready"


class Child:
    """A process that holds what ``function(**arguments)`` returned, a function, and calls it when told to.

    Args:
        function: Defined at the top of a module, so that the child finds it there.
        arguments: For the function; what JSON can hold.

    Raises:
        RuntimeError: With the end of what the child wrote to stderr, when it fails now or later.
    """

    def __init__(self, function: Callable[..., Callable[[int], Any]], **arguments: Any) -> None:
        self._name = function.__name__
        self._process, self._stderr = _start(function, arguments)
        self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name}: {_end_of(self._stderr)}")
        return json.loads(line)

    def work(self) -> Any:
        """What the child's function answers to its next call."""
        print(file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def call(function: Callable[..., Any], **arguments: Any) -> Any:
    """What ``function(**arguments)`` returns in a fresh process. Raises RuntimeError as ``Child`` does."""
    process, stderr = _start(function, arguments)
    answer = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{function.__name__}: {_end_of(stderr)}")
    return json.loads(answer)


def call_within(seconds: float, function: Callable[..., Any], /, **arguments: Any) -> Any:
    """As ``call``, but killed, with all that it started, when it takes longer: a RuntimeError, too. Its stderr is shown."""
    process, stderr = _start(function, arguments, own_group=True)
    try:
        answer = process.communicate(timeout=seconds)[0]
        failure = f"ended with status {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        failure = f"still ran after {seconds:.0f} s"
    finally:
        if process.poll() is None:  # too long, or Ctrl-C here
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    stderr.seek(0)
    sys.stderr.write(stderr.read().decode(errors="replace"))
    if failure:
        raise RuntimeError(f"{function.__name__}: {_end_of(stderr)}\n{failure}")
    return json.loads(answer)


def _start(
    function: Callable[..., Any], arguments: dict[str, Any], own_group: bool = False
) -> tuple[subprocess.Popen[str], IO[bytes]]:
    # Not a pipe: one that is not read would block a library that writes much. Closed when the caller lets go of it.
    stderr = tempfile.TemporaryFile()  # noqa: SIM115
    name = f"{function.__module__}:{function.__qualname__}"
    command = [sys.executable, "-m", "benchmarks.child", name, json.dumps(arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=own_group
    )
    return process, stderr


def _end_of(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    return stderr.read().decode(errors="replace")[-2000:]


def main(name: str, arguments: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is not an answer
    module, function = name.split(":")
    result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print(json.dumps(READY if callable(result) else result), file=answers)
    if callable(result):
        for number, _ in enumerate(sys.stdin):
            print(json.dumps(result(number)), file=answers)
    answers.flush()
    os._exit(0)  # FFCV's and DALI's threads and finalizers would delay the exit


if __name__ == "__main__":
    main(*sys.argv[1:])
