"""The wheel that `make wheels` builds, installed in a bare venv: it works, with the same bits and the same instruction sets.

DP4TL_WHEELS names the folder that it was built into: `make test-all` builds it first, `make wheels-test` runs these alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from dp4tl_fast.kernels import _native

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
FOLDER = os.environ.get("DP4TL_WHEELS", "")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv's Python that has the wheel, and from here what the wheel depends on: PyTorch alone is several GB."""
    if not FOLDER:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("`make wheels-test` builds the wheel and runs these")
    venv = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    found = venv / "bin/python"
    subprocess.run(
        [str(found), "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--find-links", FOLDER, "dp4tl-fast"],
        check=True,
        env={"PATH": str(venv / "bin")},  # no compiler: a source archive could not be built
    )
    # Later in the path than the wheel. A .pth file here does not run the .pth files there, so the editable install stays unseen.
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


def run(python: Path, cwd: Path, *command: str, **env: str) -> str:
    done = subprocess.run(
        [str(python), *command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": str(python.parent), "HOME": str(cwd), "OMP_NUM_THREADS": "1"} | env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_module_is_the_wheels_and_brings_its_libjpeg(python: Path, tmp_path: Path) -> None:
    code = (
        "import dp4tl_fast, dp4tl_fast.kernels._native as native\n"
        "print(dp4tl_fast.__file__, native.__file__, *{l.split()[-1] for l in open('/proc/self/maps') if 'dp4tl_fast.libs' in l})"
    )
    files = [Path(name) for name in run(python, tmp_path, "-c", code).split()]
    assert sum("libjpeg" in file.name and "dp4tl_fast.libs" in file.parts for file in files) == 1
    assert all(file.is_relative_to(python.parent.parent) for file in files)


def test_the_processors_instructions_are_used(python: Path, tmp_path: Path) -> None:
    """Asked in a process without torch, whose libraries bring GCC's runtime along."""
    code = "from dp4tl_fast.kernels import _native as n; print(n.isas(), n.has_bf16_products())"
    assert run(python, tmp_path, "-c", code).strip() == f"{_native.isas()} {_native.has_bf16_products()}"


def test_the_default_install_works(python: Path, tmp_path: Path) -> None:
    run(python, tmp_path, "-m", "dp4tl_fast.doctor", "--require", "torch,native,triton")


def test_images_are_converted_and_read(python: Path, tmp_path: Path) -> None:
    from native_files import jpeg, picture

    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "photos" / name / f"{i}.jpg").write_bytes(jpeg(picture(40 + i, 30)))
    run(python, tmp_path, "-m", "dp4tl_fast.convert", "photos", "photos.beton")
    run(python, tmp_path, "-m", "dp4tl_fast.inspect", "photos.beton")


def test_pixels_are_those_of_this_checkout(python: Path, tmp_path: Path) -> None:
    """The JPEG tests compare with Pillow's bits; what they import is the wheel's module, for tests/ has no package beside it."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    where = "import dp4tl_fast, sys, pytest; assert sys.prefix in dp4tl_fast.__file__; sys.exit(pytest.main(sys.argv[1:]))"
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    run(python, tmp_path, "-c", where, *options, "tests/test_native_jpeg.py")


# The main thread ends while others compute without Python's lock. Among the interpreter's last deeds it clears `sys`, which takes
# longer than their work: they come back for the lock meanwhile. No torch: its own threads' end is not what is asked.
ENDING = """
import io, sys, threading
from PIL import Image
from dp4tl_fast.kernels import _native

file = io.BytesIO()
Image.effect_noise((1000, 1000), 99).save(file, "jpeg")
begun = threading.Barrier(5)

def compute(data=file.getvalue(), work=_native.jpeg_add_index):
    work(data)
    begun.wait()
    while True:
        work(data)

class Last:
    def __del__(self, sum=sum, range=range):
        sum(range(10_000_000))

sys.last_deed = Last()
for _ in range(4):
    threading.Thread(target=compute, daemon=True).start()
begun.wait()
for _ in range(10):  # the others leave the barrier meanwhile
    _native.jpeg_add_index(file.getvalue())
"""


def test_threads_that_come_back_after_the_end_disturb_nothing(python: Path, tmp_path: Path) -> None:
    for _ in range(3):
        run(python, tmp_path, "-c", ENDING)
