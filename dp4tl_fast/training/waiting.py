"""Ctrl-C and SIGTERM while this process waits for another one, which may never answer.

Such a wait is one call into torch, before whose end Python runs no signal handler: up to ``joining.ANSWER_S``. So a thread, which
hears of signals from the system, ends the process where the main thread does not come back to Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator

from dp4tl_fast.common import cli

PATIENCE_S = 10.0  # after a first signal: what runs may come to its end, so that the run is saved
SECOND_S = 1.0  # after a second one
ENDING = (signal.SIGINT, signal.SIGTERM)

_answered = threading.Event()


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
def _answer(_: object) -> int:
    """Called by the interpreter, in the main thread, where it calls signal handlers, too."""
    _answered.set()
    return 0


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it, a signal that the main thread does not come to handle ends the process.

    Nothing is done outside the main thread, where Python takes no signals, and where a program has a ``signal.set_wakeup_fd``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told, tell = socket.socketpair()
    tell.setblocking(False)
    before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    if before != -1:
        signal.set_wakeup_fd(before)
    watch = threading.Thread(target=_watch, args=(told,), name="signals", daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        tell.close()  # ends the thread
        watch.join()
        told.close()


def _watch(told: socket.socket) -> None:
    deadline, came, name = math.inf, 0, ""
    while True:
        waits = deadline < math.inf
        if select.select([told], [], [], 0.05 if waits else None)[0]:
            numbers = told.recv(64)
            if not numbers:
                return
            for number in filter(ENDING.__contains__, numbers):
                came, name = came + 1, signal.Signals(number).name
                deadline = min(deadline, time.monotonic() + (PATIENCE_S if came == 1 else SECOND_S))
                _answered.clear()
                ctypes.pythonapi.Py_AddPendingCall(_answer, None)
        if _answered.is_set():
            deadline = math.inf
        if time.monotonic() > deadline:
            cli.message(f"ended by {name}, as another process does not answer. What was saved is kept")
            os._exit(cli.EXIT_INTERRUPTED)
