"""Forks, pickles, threads, signals, the end of the interpreter: a loader works where it was opened, and never hangs elsewhere."""

from __future__ import annotations

import copy
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract_cases import AUGMENTED, N, flat, keep, spec

from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BackendError, BetonError
from dp4tl_fast.loaders import LoaderSpec, open_loader

LIMIT = 300  # seconds that a program may take: a hang, not slowness, is what fails

PRELUDE = """
import os, signal, sys, threading, warnings
import torch
from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.loaders import LoaderSpec, open_loader
warnings.simplefilter("ignore")  # Python 3.12 warns of every fork in a process with threads
beton = Beton(sys.argv[1])
loader = open_loader(beton, None, LoaderSpec(batch_size=4, size=64, workers=2, shuffle=True), sys.argv[2])
"""


def program(path: Path, backend: str, code: str, cores: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PRELUDE + code, str(path), backend]
    if cores:  # fewer, on which threads that wait for each other are seen to
        command = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores])), *command]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, errors = child.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # its own children, too, which hold the pipes open
        pytest.fail(f"hangs; it said: {child.communicate()}")
    return subprocess.CompletedProcess(command, child.returncode, out, errors)


# -- fork ------------------------------------------------------------------------------------------------------------

FORKS = """
ACTIONS = {
    "goes on": lambda: next(iterator),
    "iterates": lambda: next(iter(loader)),
    "closes": lambda: loader.close(),
    "drops": lambda: [globals().pop(name) for name in ("iterator", "loader", "held")],
    "exits": lambda: None,
    "opens its own": lambda: print(len(list(open_loader(beton, None, LoaderSpec(batch_size=4, size=16)))), flush=True),
}
for name, act in ACTIONS.items():
    iterator = iter(loader)
    held = next(iterator)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that hangs
        try:
            act()
        except BackendError as error:
            print(error, flush=True)
        sys.exit(7)  # as any program ends, finalising everything
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 1 + len(list(iterator)), flush=True)

class Images(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(loader)

next(iter(loader))
try:
    next(iter(torch.utils.data.DataLoader(Images(), batch_size=None, num_workers=1, multiprocessing_context="fork")))
except Exception as error:
    print("a worker", "Open it in the child" in str(error), flush=True)
"""


@pytest.mark.parametrize("cores", [0, 1])
def test_a_forked_child_is_told_to_open_its_own_and_never_hangs(backend: str, jpegs: Beton, cores: int) -> None:
    ran = program(jpegs.path, backend, FORKS, cores)
    told = rf"{backend} loader of {jpegs.path} was opened by process \d+, .*\. Open it in the child \(process \d+\)"
    whole = -(-N // 4)
    want = [
        told, f"goes on 7 {whole}", told, f"iterates 7 {whole}", f"closes 7 {whole}", f"drops 7 {whole}", f"exits 7 {whole}",
        str(whole), f"opens its own 7 {whole}", "a worker True",
    ]  # fmt: skip
    lines = ran.stdout.splitlines()
    assert len(lines) == len(want) and all(map(re.fullmatch, want, lines)), (lines, ran.stderr)
    assert ran.returncode == 0 and "Traceback" not in ran.stderr


HELD = """
inside, go = threading.Event(), threading.Event()

def slowly(images):
    inside.set()
    go.wait()
    return images

held = open_loader(beton, None, LoaderSpec(batch_size=4, size=16, workers=1), sys.argv[2], transform=slowly)
iterator = iter(held)
thread = threading.Thread(target=lambda: next(iterator))
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends a child that hangs
    for act in (lambda: next(iterator), lambda: next(iter(held)), held.close):
        try:
            act()
        except BackendError as error:
            print("Open it in the child" in str(error), flush=True)
    sys.exit(7)
go.set()
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 1 + len(list(iterator)), flush=True)
"""


def test_a_forked_child_waits_for_no_thread_that_takes_a_batch(backend: str, jpegs: Beton) -> None:
    """Another thread of the parent is in the middle of ``next`` when it is forked."""
    ran = program(jpegs.path, backend, HELD)
    assert (ran.stdout.splitlines(), ran.returncode) == (["True", "True", f"7 {-(-N // 4)}"], 0), ran.stderr


# -- pickle ----------------------------------------------------------------------------------------------------------


def test_a_loader_says_that_it_cannot_be_pickled(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(BackendError, match=f"{backend} loader of .* cannot be pickled or copied.*Pickle its Beton"):
                attempt(loader)


def test_what_opens_a_loader_is_pickled(jpegs: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "there.beton"
    path.write_bytes(jpegs.path.read_bytes())
    monkeypatch.chdir(tmp_path)
    selection, options = keep(jpegs, 1, 3), spec(**AUGMENTED)
    pickled = pickle.dumps((Beton("there.beton"), selection, options))
    monkeypatch.chdir("/")
    beton, again, same = pickle.loads(pickled)
    assert same == options and again == selection
    with open_loader(beton, again, same) as loader:
        assert sorted(flat(list(loader), 1)) == [1] * 10 + [3] * 10
    path.write_bytes(jpegs.path.read_bytes()[:-1])
    with pytest.raises(BetonError, match=r"there\.beton"):
        pickle.loads(pickled)


def test_a_pickled_file_that_has_other_records_is_refused(jpegs: Beton, by_ffcv: Beton, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(jpegs.path.read_bytes())
    pickled = pickle.dumps(Beton(path))
    path.write_bytes(by_ffcv.path.read_bytes())
    with pytest.raises(BetonError, match=r"x\.beton: is not the file that was pickled"):
        pickle.loads(pickled)


# -- threads and signals -----------------------------------------------------------------------------------------------


def test_closing_from_another_thread_ends_the_iteration(backend: str, jpegs: Beton) -> None:
    loader = open_loader(jpegs, None, spec(size=96, **AUGMENTED), backend)
    begun, ended = threading.Event(), []

    def consume() -> None:
        try:
            while True:
                for _ in loader:
                    begun.set()
        except BackendError as error:
            ended.append(str(error))

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert begun.wait(LIMIT)
    loader.close()
    consumer.join(LIMIT)
    assert not consumer.is_alive()
    assert len(ended) == 1 and ("ended by closing the loader" in ended[0] or "is closed" in ended[0])


def test_closing_in_the_middle_of_next_ends_the_iteration(
    backend: str, jpegs: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler does it: on the consumer's own stack, below a batch that is not ready."""
    loader = open_loader(jpegs, None, spec(), backend)
    real = type(loader)._load

    def interrupted(self: Any, *of_the_epoch: Any) -> Any:
        for batch in real(self, *of_the_epoch):
            signal.raise_signal(signal.SIGUSR1)
            yield batch

    monkeypatch.setattr(type(loader), "_load", interrupted)
    previous = signal.signal(signal.SIGUSR1, lambda *_: loader.close())
    try:
        iterator = iter(loader)
        for _ in range(2):
            with pytest.raises(BackendError, match="ended by closing the loader"):
                next(iterator)
        with pytest.raises(BackendError, match="is closed"):
            iter(loader)
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_two_threads_share_an_iteration(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(batch_size=1), backend) as loader:
        iterator = iter(loader)
        taken: list[int] = []

        def consume() -> None:
            taken.extend(int(index[0]) for *_, index in iterator)

        consumers = [threading.Thread(target=consume) for _ in range(3)]
        for thread in consumers:
            thread.start()
        for thread in consumers:
            thread.join(LIMIT)
        assert sorted(taken) == jpegs.index.tolist()


def test_an_iteration_that_failed_does_not_look_complete(backend: str, jpegs: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        iterator = iter(loader)
        next(iterator)
        monkeypatch.setattr(Beton, "check_size", _raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
        monkeypatch.undo()
        with pytest.raises(BackendError, match=r"ended by its error \(KeyboardInterrupt\)"):
            next(iterator)


def _raise_interrupt(self: Beton) -> None:
    raise KeyboardInterrupt


DAEMON = """
begun = threading.Event()
def consume():
    while True:
        for images, labels in loader:
            for _ in range(1000):
                images[0] + 1
            begun.set()
threading.Thread(target=consume, daemon=True).start()
begun.wait()
"""


def test_a_daemon_thread_that_takes_batches_does_not_disturb_the_end_of_the_interpreter(backend: str, jpegs: Beton) -> None:
    """It works on a batch then: torch aborts a process in which a thread gives a tensor back after the end has begun."""
    ran = program(jpegs.path, backend, DAEMON)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_loader_in_a_thread_that_is_not_the_main_one(backend: str, jpegs: Beton) -> None:
    counts: list[int] = []

    def whole() -> None:
        with open_loader(jpegs, None, spec(), backend) as loader:
            counts.append(sum(len(labels) for _, labels, _ in loader))

    thread = threading.Thread(target=whole)
    thread.start()
    thread.join(LIMIT)
    assert counts == [N]


# -- what is refused ---------------------------------------------------------------------------------------------------

BAD: dict[str, dict[str, Any]] = {
    "size=24.5": {"size": 24.5},
    "size=True": {"size": True},
    "size=0": {"size": 0},
    "batch_size=2.0": {"batch_size": 2.0},
    "batch_size=1073741824": {"batch_size": 2**30},
    "max_ram=-1": {"max_ram": -1},
    "seed=-1": {"seed": -1},
    "shuffle=no": {"shuffle": "no"},
    r"mean=\(nan, 0.5, 0.5\)": {"mean": (float("nan"), 0.5, 0.5)},
    r"std=\(inf, 0.5, 0.5\)": {"std": (float("inf"), 0.5, 0.5)},
    r"mean=\(0.5, 0.5\)": {"mean": (0.5, 0.5)},
    r"aspect=\(0.5, inf\)": {"aspect": (0.5, float("inf"))},
    r"scale=\(nan, 1.0\)": {"scale": (float("nan"), 1.0)},
    "crop_ratio=nan": {"crop_ratio": float("nan")},
    "crop_ratio=half": {"crop_ratio": "half"},
    "mean=0.5": {"mean": 0.5},
    "std=None": {"std": None},
}


@pytest.mark.parametrize("says", BAD)
def test_a_spec_checks_its_values(says: str) -> None:
    with pytest.raises(Exception, match=f"`{says}`: must be ") as error:
        LoaderSpec(**BAD[says])
    assert type(error.value).__name__ == "UsageError"


def test_numpys_integers_are_whole_numbers() -> None:
    assert LoaderSpec(size=np.int64(24), batch_size=np.uint8(7)) == LoaderSpec(size=24, batch_size=7)
    assert LoaderSpec(mean=np.zeros(3), scale=[1, 1]) == LoaderSpec(mean=(0.0, 0.0, 0.0), scale=(1.0, 1.0))  # type: ignore[arg-type]


def test_a_size_that_is_none_is_refused_and_the_old_one_stays(backend: str, jpegs: Beton) -> None:
    with open_loader(jpegs, None, spec(), backend) as loader:
        for size in (0, 24.5, 10**6):
            with pytest.raises(Exception, match=f"`size={size}`"):
                loader.set_size(size)  # type: ignore[arg-type]
        assert next(iter(loader)).images.shape[-1] == 24


def test_closing_after_a_size_that_does_not_fit_in_memory(backend: str, jpegs: Beton, limited: Callable[[], None]) -> None:
    loader = open_loader(jpegs, None, spec(dtype="float32"), backend)
    next(iter(loader))
    loader.set_size(16000)  # 8 images of 3 GB
    limited()
    with pytest.raises(BackendError, match=f"{backend} loader: no memory for a batch of 24576000000 bytes.* smaller"):
        next(iter(loader))
    loader.set_size(24)
    assert len(list(loader)) == len(loader)
    loader.set_size(16000)
    loader.close()
    loader.close()
