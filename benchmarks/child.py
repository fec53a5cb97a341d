"""A subject in a process of its own, which works when it is told to and waits while the others do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any


class Child:
    """``python -m MODULE SUBJECT JSON``, run by ``serve``."""

    def __init__(self, module: str, subject: str, options: dict[str, Any]) -> None:
        self.name = subject
        command = [sys.executable, "-m", module, subject, json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._read()

    def _read(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: {self._process.stderr.read()[-2000:]}")
        return line

    def work(self) -> Any:
        """What the subject says of one epoch."""
        print("epoch", file=self._process.stdin, flush=True)
        return json.loads(self._read())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve(make: Callable[[str, dict[str, Any]], Callable[[int], Any]]) -> None:
    """The child's side: ``make(subject, options)`` gives what runs epoch number n and answers with something for JSON."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is not an answer
    epoch = make(sys.argv[1], json.loads(sys.argv[2]))
    print("ready", file=answers)
    for number, _ in enumerate(sys.stdin):
        print(json.dumps(epoch(number)), file=answers)
    answers.flush()
    os._exit(0)  # FFCV's and DALI's threads and finalizers would hold the exit up
