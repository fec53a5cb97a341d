"""Without a GPU the Triton kernels run under Triton's interpreter, which must be chosen before triton is imported."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Hypothesis would fail an example that took 200 ms: a first import or a compilation does, and a busy machine.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


@pytest.fixture(autouse=True)
def in_the_same_folder():
    """A test's folder is removed after it: those that follow could not run in it."""
    before = Path.cwd()
    yield
    assert Path.cwd() == before, "a test has changed the folder; monkeypatch.chdir undoes that"


@pytest.fixture
def tests_on_the_childs_path(monkeypatch):
    """For functions of a test module that run in a process of ``benchmarks.child``."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Files for the prune command; see ``pruning_data.make``. Tests leave them as they are."""
    import pruning_data

    return pruning_data.make(tmp_path_factory.mktemp("pruning"))


@pytest.fixture(scope="module")
def browser():
    """The system's chromium."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        needs = "needs chromium: `make setup` installs it, or apt-get install chromium"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(needs)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
