"""One owner for a folder or file, on any file system: nothing but exclusive creation and renaming is asked of it, no ``flock``.

The lock is a small file that says who holds it and is rewritten every few seconds. On its own machine an owner that died is
known at once, by process number and start; on another, once its file stayed unchanged for ``STALE_S`` seconds, by nobody's clock
but the reader's own. One that was taken for dead (a suspended process) finds out by ``check`` before it writes again.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import UsageError

BEAT_S = 5.0
STALE_S = 30.0
LOCK = ".lock"  # in the folder that is owned


class Owner:
    """This process as the owner of a folder, until the end of the ``with`` statement. Makes the folder where there is none.

    Args:
        owned: The folder; or a file, with a ``lock`` of its own.
        what: Goes on in it: for messages.
        lock: The file that says who holds it; the default is ``.lock`` in the folder.

    Raises:
        UsageError: Another process owns it; the message names it. Or the folder cannot be written.
    """

    def __init__(self, owned: str | Path, what: str = "run", lock: Path | None = None) -> None:
        self.owned, self._what = Path(owned), what
        self._path = lock or self.owned / LOCK
        self.folder = self._path.parent
        self._me = {**_here(), "pid": os.getpid(), "started": _started(os.getpid()), "token": secrets.token_hex(8)}
        self._made: list[Path] = []  # folders, the innermost first
        self._end = threading.Event()
        self._beats: threading.Thread | None = None

    def __enter__(self) -> Owner:
        self._made = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._create():
                self._make_way()
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be written ({error.strerror}). Give another `out`") from None
        self._beats = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._beats.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if os.getpid() != self._me["pid"]:
            return  # a child after a fork: the folder is the parent's
        self._end.set()
        if self._beats is not None:
            self._beats.join()
        os.close(self._fd)
        if _read(self._path)[0].get("token") == self._me["token"]:
            with contextlib.suppress(OSError):
                self._path.unlink()
        with contextlib.suppress(OSError):  # not empty: something came of it
            for folder in self._made:
                folder.rmdir()

    def check(self) -> None:
        """Call before writing to the folder.

        Raises:
            UsageError: Another process took it over, as it heard nothing of this one.
        """
        now, _ = _read(self._path)
        if now.get("token") != self._me["token"]:
            by = _name(now) if now else "somebody"
            raise UsageError(f"{self.owned}: taken over by {by} while this process was suspended. It writes nothing more")

    def _create(self) -> bool:
        try:
            self._fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with contextlib.suppress(OSError):  # exFAT, CIFS: all files are alike there
            os.fchmod(self._fd, 0o644)  # whatever the umask: an owner that another user could not read would look dead
        self._write(0)
        return True

    def _write(self, beat: int) -> None:
        os.pwrite(self._fd, json.dumps({**self._me, "beat": f"{beat:12d}"}).encode(), 0)  # always as long

    def _beat(self) -> None:
        beat = 0
        while not self._end.wait(BEAT_S):
            beat += 1
            with contextlib.suppress(OSError):  # a file system that is away for a while
                self._write(beat)

    def _make_way(self) -> None:
        """Remove the lock of an owner that is gone, or refuse."""
        there, raw = _read(self._path)
        if there.get("started") and _same_machine(there, self._me):
            alive = _started(int(there["pid"])) == there["started"]
        else:
            cli.message(f"{self.owned}: owned by {_name(there)}; checking for {STALE_S:.0f} s whether it is alive")
            alive = _changes(self._path, raw)
            there = _read(self._path)[0] or there  # it may have been about to say who it is
        if alive:
            raise UsageError(f"{self.owned}: its {self._what} is still in progress: {_name(there)}. {_remedy(os.environ)}")
        with contextlib.suppress(FileNotFoundError):
            if _read(self._path)[1] == raw:  # and not that of another process which came first
                aside = self._path.with_name(f"{LOCK}.{self._me['token']}")
                self._path.replace(aside)
                aside.unlink()


def _remedy(environment: Mapping[str, str]) -> str:
    tasks = environment.get("SLURM_NTASKS", "1")
    if tasks != "1" and "WORLD_SIZE" not in environment:
        return f"Slurm started {tasks} tasks of this command: start one task per machine, with torchrun (`srun torchrun ...`)"
    return "Wait until it ends, stop it, or write elsewhere"


def _changes(path: Path, raw: bytes) -> bool:
    """Does the owner, whose process cannot be looked at, rewrite its file?"""
    deadline = time.monotonic() + STALE_S
    while time.monotonic() < deadline:
        time.sleep(min(1.0, STALE_S / 10))
        now = _read(path)[1]
        if now != raw:
            return bool(now)  # gone: nobody's
    return False


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown machine')}"


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """What the lock says, nothing where it is unreadable; and its bytes."""
    try:
        raw = path.read_bytes()
    except OSError:
        return {}, b""
    try:
        said = json.loads(raw)
    except ValueError:
        return {}, raw
    return (said if isinstance(said, dict) else {}), raw


def _here() -> dict[str, str]:
    """What tells this machine, since it was started, and this set of process numbers (a container has its own)."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return {"host": socket.gethostname(), "boot": boot.read_text().strip() if boot.exists() else "", "pids": namespace}


def _same_machine(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a.get(key) == b[key] for key in ("host", "boot", "pids"))


def _started(pid: int) -> str:
    """When a living process began, in ticks of the machine's clock; empty where there is none, or only its exit code is left."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
