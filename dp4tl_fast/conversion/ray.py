"""A conversion whose parts are made by the machines of a Ray cluster (https://docs.ray.io).

The process that was started lists the source, hands out the parts, and joins them. A worker lists the source, too, once, and makes
parts as any conversion is made: with a journal, so that a part whose worker is lost goes on elsewhere from where it was.
Only plans and counts go over Ray: images and parts lie on storage that all machines see.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO, cast

import dp4tl_fast
from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import BetonError, Dp4tlError, InUseError, SourceError, UsageError
from dp4tl_fast.conversion.conversion import finished
from dp4tl_fast.conversion.parts import Parts
from dp4tl_fast.conversion.plan import Listing, Plan

LOSSES = 5  # of one part's workers: then it is the part
IN_USE_S = 120.0  # a lost worker's file may stay locked for a while: until its process has ended, or NFS's lease
CONNECT_S = 10.0
STOP_S = 15.0  # for workers to end their chunks: the journals keep what was done
ONE_SYSTEM = "Every machine must see the source and the folder of `out` under the same paths"

Made = int  # of a part: how many of its images earlier attempts had done


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to make a part."""

    plan: Plan
    parts: Parts
    identity: dict[str, Any]
    workers: int
    folder: str  # from which relative paths lead


def library() -> Any:
    """Ray.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("`on=ray`: Ray is not installed. pip install 'dp4tl_fast[ray]'") from None
    return ray


# -- where it was started ---------------------------------------------------------------------------------------------


def make_parts(
    listing: Listing, parts: Parts, *, address: str, workers: int, progress: Callable[[int, int], None]
) -> int:
    """Make all parts that are not made yet; returns how many images earlier runs had done.

    Args:
        address: Of the cluster; see ``connected``.
        workers: Threads, and CPUs, of a worker; 0 for as many as the smallest machine has.
        progress: Called with (samples, source bytes) after every part.

    Raises:
        Dp4tlError: What a worker ran into: a bad image, a machine that does not see the files, a full disk.
    """

    def done(part: int, resumed: int) -> int:
        order = listing.order((part, parts.count))
        progress(len(order), int(listing.source.sizes[order].sum()))
        return resumed

    resumed, missing = 0, []
    for part in range(parts.count):
        which = (part, parts.count)
        if finished(parts.path(part), listing.identity(which)) is None:
            missing.append(part)
        else:
            resumed += done(part, len(listing.order(which)))
    if missing:
        with connected(address) as ray:
            threads = cpus_per_worker(ray.nodes(), workers)
            identity = listing.identity()
            job = Job(plan=listing.plan, parts=parts, identity=identity, workers=threads, folder=str(Path.cwd()))
            with closing(results(ray, job, missing)) as made:
                resumed += sum(done(part, again) for part, again in made)
    return resumed


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at ``address``; without one, to that of ``RAY_ADDRESS`` or of this machine, or to a new one
    of this machine alone, which ends with the ``with`` statement. A program that is connected to one stays so."""
    ray = library()
    if ray.is_initialized():
        if address:
            raise UsageError(f"`ray_address={address}`: this program is already connected to a Ray cluster. Leave it out")
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        try:
            _look_for(address)
            ray.init(address or None, log_to_driver=False, logging_level=logging.ERROR)
        except SystemExit:  # how Ray answers SIGTERM
            raise cli.Terminated from None
        except (OSError, ImportError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise _not_connected(address, error) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, terminated)
        with redirect_stdout(cast(TextIO, LessRay(sys.stdout, "ray_listen_error_messages"))):
            yield ray
    finally:
        with redirect_stdout(cast(TextIO, LessRay(sys.stdout, threading.current_thread().name))):
            ray.shutdown()


def _look_for(address: str) -> None:
    """Raise ``OSError`` or ``ValueError`` where nothing listens at HOST:PORT: Ray would try again without end."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _not_connected(address: str, error: BaseException) -> UsageError:
    where = f"`ray_address={address}`" if address else "`on=ray`"
    why = (str(error).splitlines() or [type(error).__name__])[0]
    cause: BaseException | None = error
    while cause is not None:
        if "InvalidAuthToken" in str(cause) or type(cause).__name__ == "AuthenticationError":
            remedy = "Set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from its first machine"
            return UsageError(f"{where}: the Ray cluster requires its token. {remedy}")
        cause = cause.__cause__ or cause.__context__
    return UsageError(f"{where}: no Ray cluster answers: {why}. Start one (`ray start`), or correct the address")


class LessRay:
    """Standard output without what a thread prints: Ray, in one of its own and at the end, prints pages of logs to it."""

    def __init__(self, stream: TextIO, thread: str) -> None:
        self._stream, self._thread = stream, thread

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def cpus_per_worker(nodes: list[dict[str, Any]], wanted: int) -> int:
    """CPUs that each worker takes: as many as the smallest machine has, so that all machines take part."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    cpus = [n for n in cpus if n > 0]
    if not cpus:
        raise UsageError("`on=ray`: no machine of the Ray cluster offers a CPU. Start one without `--num-cpus 0`")
    if wanted > max(cpus):
        raise UsageError(f"`workers={wanted}`: no machine of the Ray cluster has more than {max(cpus)} CPUs. Give at most that")
    return wanted or min(cpus)


def results(ray: Any, job: Job, missing: list[int]) -> Generator[tuple[int, Made], None, None]:
    """Have the parts made; yields them as they are done. Those of lost workers are made again, where they were left."""

    def on_a_machine(version: str, job: bytes, part: int) -> Made | Exception | str:
        """Travels by value, for machines that lack this package, or have another one: the text says so."""
        import socket

        try:
            from dp4tl_fast import __version__
            from dp4tl_fast.conversion.ray import make_part
        except ImportError as error:
            return f"{socket.gethostname()}: has no dp4tl_fast {version} ({error}). Install it on every machine"
        if __version__ != version:
            return f"{socket.gethostname()}: has dp4tl_fast {__version__}, not {version}. Install one version on every machine"
        return make_part(job, part)

    task = ray.remote(on_a_machine).options(num_cpus=job.workers, max_retries=0, scheduling_strategy="SPREAD")
    packed, losses = ray.put(pickle.dumps(job)), Counter[int]()
    lost = (
        ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError,
        ray.exceptions.LocalRayletDiedError,
    )  # fmt: skip
    running = {task.remote(dp4tl_fast.__version__, packed, part): part for part in missing}
    try:
        while running:
            ready, _ = ray.wait(list(running))
            part = running.pop(ready[0])
            try:
                made = ray.get(ready[0])
            except lost as error:
                losses[part] += 1
                if losses[part] == LOSSES:
                    words = " ".join(str(error).split())
                    raise BetonError(f"{job.parts.path(part)}: {LOSSES} workers were lost while they made it: {words}") from None
                cli.message(f"part {part} of {job.parts.count}: its worker was lost ({type(error).__name__}); another continues")
                running[task.remote(dp4tl_fast.__version__, packed, part)] = part
                continue
            if isinstance(made, str):
                raise UsageError(made)
            if isinstance(made, Exception):
                raise made
            yield part, 0 if losses[part] else made  # by this run
    finally:
        if running:  # no ray.cancel: a driver whose task comes back after it was cancelled may abort (Ray 2.60)
            job.parts.mark.unlink(missing_ok=True)
            ray.wait(list(running), num_returns=len(running), timeout=STOP_S)


# -- on the machines --------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The process that was started makes no more parts."""


def make_part(packed: bytes, part: int) -> Made | Exception:
    """Make a part, here. What a user can cause comes back as it is, without Ray's words around it."""
    try:
        return _make_part(pickle.loads(packed), part)
    except (Dp4tlError, OSError) as error:
        return error
    except Stopped:
        return 0


def _make_part(job: Job, part: int) -> Made:
    here = f"{socket.gethostname()} ({job.folder})"
    if not job.parts.mark.exists():
        raise UsageError(f"{here}: does not see {job.parts.mark.parent}. {ONE_SYSTEM}")
    with suppress(OSError):
        os.chdir(job.folder)
    try:
        listing = _listing(job.plan, job.parts.mark.parent)
    except (Dp4tlError, OSError) as error:
        raise SourceError(f"{here}: {error}. {ONE_SYSTEM}") from None
    _check_same(job, listing, here)
    which, out = (part, job.parts.count), job.parts.path(part)
    deadline = time.monotonic() + IN_USE_S

    def progress(samples: int, size: int) -> None:
        if not job.parts.mark.exists():
            raise Stopped

    while finished(out, listing.identity(which)) is None:  # a worker that was taken for lost may have finished it
        conversion = listing.conversion(out, which, job.workers, True, progress)
        try:
            conversion.run()
        except InUseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return conversion.resumed
    return len(listing.order(which))


@lru_cache(maxsize=1)
def _listing(plan: Plan, scratch: Path) -> Listing:
    """Once per process: it makes many parts."""
    return plan.open(scratch)


def _check_same(job: Job, listing: Listing, here: str) -> None:
    mine = listing.identity()
    if mine["pillow"] != job.identity["pillow"]:
        has = f"has Pillow {mine['pillow']}, but the conversion was started with {job.identity['pillow']}"
        raise UsageError(f"{here}: {has}. Install one version on every machine")
    if mine != job.identity:
        raise SourceError(
            f"{here}: {job.plan.src} has other images there than on the machine that started the conversion "
            f"({len(listing.source):,} found). {ONE_SYSTEM}"
        )
