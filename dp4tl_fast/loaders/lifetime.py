"""What becomes of a process's loaders when it forks, and when its interpreter ends.

A thread that gives a tensor back after the interpreter's end has begun aborts the process: torch takes Python's lock in a
destructor, and before Python 3.14 the interpreter ends a thread that asks for it then by unwinding its stack, which C++ does not
let pass. So daemon threads that come for a batch while the process ends are held in ``next``, and the end begins when they are
there.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dp4tl_fast.loaders.base import BaseLoader

WAIT_S = 2.0  # at the end, for threads that take batches: one that is elsewhere for longer is not waited for

_open: weakref.WeakSet[BaseLoader] = weakref.WeakSet()
_ending = False
_held: set[threading.Thread] = set()
_seen: set[str] = set()


def register(loader: BaseLoader) -> None:
    """Look after ``loader`` until it is gone."""
    _open.add(loader)


def come_first(backend: str) -> None:
    """At exit, before what a backend has registered by its first iteration: DALI ends its pipelines there."""
    if backend not in _seen:
        _seen.add(backend)
        atexit.unregister(_end)
        atexit.register(_end)


def hold() -> None:
    """Keep the calling thread here for good where the process ends and it is another one that ends it."""
    me = threading.current_thread()
    if _ending and me is not threading.main_thread():
        _held.add(me)
        threading.Event().wait()  # never set: Python's lock is not asked for again


def _end() -> None:
    """At exit, when all threads that the interpreter waits for are done: close loaders once their consumers are held."""
    global _ending
    _ending = True
    deadline = time.monotonic() + WAIT_S
    for loader in list(_open):
        if loader._process != os.getpid():
            continue
        while (busy := _elsewhere(loader)) and time.monotonic() < deadline:
            time.sleep(0.001)
        if not busy:
            loader.close()


def _elsewhere(loader: BaseLoader) -> bool:
    """Whether a thread that took batches may still be using some."""
    others = loader._takers - _held - {threading.current_thread()}
    return any(thread.is_alive() for thread in others)


def _leave_to_the_parent() -> None:
    """In a child after a fork: never finalise the parent's loaders, which would wait for threads that do not exist here."""
    for loader in list(_open):
        for thing in (loader, loader._iteration()):
            never_finalise(thing)


def never_finalise(thing: object) -> None:
    """Keep it as it is to the end of the process, and through the interpreter's."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


os.register_at_fork(after_in_child=_leave_to_the_parent)
