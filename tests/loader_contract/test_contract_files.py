"""Files that move, vanish or shrink under an open loader, and names that are no text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from contract_cases import AUGMENTED, class_labels, one_pass, payloads, same, spec
from native_files import picture, write

from dp4tl_fast.beton import Beton
from dp4tl_fast.loaders import open_loader


@pytest.fixture
def path(folder: Path, backend: str, jpegs: Beton) -> Path:
    """A copy that a test may do anything to."""
    path = folder / f"copy_for_{backend}.beton"
    path.write_bytes(jpegs.path.read_bytes())
    return path


def test_a_relative_path_survives_a_change_of_folder(
    backend: str, path: Path, jpegs: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    beton = Beton(path.name)
    monkeypatch.chdir("/")
    with open_loader(beton, None, spec(**AUGMENTED), backend) as loader:
        monkeypatch.chdir(path.parent)
        got = list(loader)
    assert same(got, one_pass(jpegs, backend, **AUGMENTED))


@pytest.mark.parametrize("how", ["unlinked", "replaced", "renamed"])
@pytest.mark.parametrize("when", ["before the loader opens", "before it begins", "after a batch"])
def test_an_open_file_is_read_to_its_end(backend: str, path: Path, jpegs: Beton, how: str, when: str) -> None:
    def move() -> None:
        if how == "renamed":
            path.rename(path.with_suffix(".old"))
        elif how == "unlinked":
            path.unlink()
        else:
            write(path.with_suffix(".new"), [picture(9, 9, i) for i in range(3)])
            path.with_suffix(".new").replace(path)

    beton = Beton(path)
    if when == "before the loader opens":
        move()
    with open_loader(beton, None, spec(**AUGMENTED), backend) as loader:
        if when == "before it begins":
            move()
        iterator = iter(loader)
        got = [next(iterator)]
        if when == "after a batch":
            move()
        got += list(iterator)
    assert same(got, one_pass(jpegs, backend, **AUGMENTED))


def test_a_path_that_is_no_text(backend: str, folder: Path, jpegs: Beton) -> None:
    path = Path(os.fsdecode(os.fsencode(folder) + f"/{backend}-".encode() + b"\xff\xfe.beton"))
    path.write_bytes(jpegs.path.read_bytes())
    with open_loader(path, None, spec(**AUGMENTED), backend) as loader:
        got = list(loader)
    assert same(got, one_pass(jpegs, backend, **AUGMENTED))


SHRINKING = """
import os, sys
from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BetonError
from dp4tl_fast.loaders import LoaderSpec, open_loader
path, backend, left, when = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
size = os.path.getsize(path)
real = Beton.check_size
Beton.check_size = lambda self: None  # as if the file shrank right after the consumer looked
loader = open_loader(path, None, LoaderSpec(batch_size=4, size=32, workers=2, with_index=True), backend)
iterator = iter(loader)
if when == "running":
    next(iterator)
os.truncate(path, int(size * left))
Beton.check_size = real if when == "ready" else Beton.check_size
try:
    batches = sum(1 for _ in iterator)
except BetonError as error:
    print(error)
loader.close()
"""


@pytest.mark.parametrize("left", [0, 0.3], ids=["nothing is left", "a part is left"])
@pytest.mark.parametrize("when", ["ready", "begun", "running"])
def test_a_file_that_shrinks_is_an_error_and_no_crash(backend: str, folder: Path, left: float, when: str) -> None:
    """In a process of its own: touching a mapped page that the file no longer has would end it (SIGBUS)."""
    path = folder / f"shrinks_{backend}_{left}_{when}.beton"
    write(path, payloads("mixed") * 8, class_labels(400))
    command = [sys.executable, "-c", SHRINKING, str(path), backend, str(left), when]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"{path}: ") and ran.stdout.count("\n") == 1


LOOKING = """
import os, sys
import numpy as np
from dp4tl_fast.beton import Beton
from dp4tl_fast.common.errors import BetonError
from dp4tl_fast.loaders import LoaderSpec, open_loader
from dp4tl_fast.selection import Selection
path = sys.argv[1]
beton = Beton(path)
selection = Selection.of_records(beton, np.array([0, 399]), method="test")
loader = open_loader(beton, None, LoaderSpec(batch_size=4, size=32))
fresh = Beton(path)
os.truncate(path, 0)
for look in (lambda: loader.dataset[399], lambda: beton.payload(0), lambda: open_loader(fresh, selection),
             lambda: fresh.records_sha256, lambda: fresh.index, lambda: fresh.sizes, lambda: loader.set_records(np.arange(2))):
    try:
        look()
    except BetonError as error:
        print(error)
"""


def test_who_looks_into_a_file_that_shrank_is_told(folder: Path) -> None:
    """Outside the batches, too: at an image, or for the tables of a file that was opened and not read yet."""
    path = folder / "looked_at.beton"
    write(path, payloads("mixed") * 8, class_labels(400))
    ran = subprocess.run([sys.executable, "-c", LOOKING, str(path)], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert len(lines) == 7 and all(line.startswith(f"{path}: shrank from ") for line in lines), lines
