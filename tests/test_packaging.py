"""The three ways to install: checkout, editable, wheel. The first two are what the other tests run in."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("dp4tl_fast-*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(n.startswith("dp4tl_fast/kernels/_native.") and n.endswith(".so") for n in names) == 1
    assert "dp4tl_fast/reporting/templates/report.html.j2" in names and "dp4tl_fast/py.typed" in names
    assert {n.split("/")[0].split("-")[0] for n in names} == {"dp4tl_fast"}
    assert not [n for n in names if n.endswith((".cpp", ".h")) or "__pycache__" in n]


def test_wheel_works_away_from_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    code = (
        "import dp4tl_fast, dp4tl_fast.kernels._native as native, torch\n"
        "from dp4tl_fast.kernels import label_counts\n"
        "assert label_counts(torch.eye(3), 3).tolist() == [1, 1, 1]\n"
        "print(dp4tl_fast.__file__, native.__file__)"
    )
    # PYTHONPATH comes first: the wheel, not the editable install, must be what is found.
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert all(Path(p).is_relative_to(site) for p in done.stdout.split())


def test_sdist_holds_what_the_native_module_is_built_from(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path / "dist")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = (tmp_path / "dist").iterdir()
    with tarfile.open(built) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "kernels/csrc").rglob("*") if p.is_file()}
    assert len(sources) > 50
    assert sources | {"CMakeLists.txt", "setup.py", "pyproject.toml", "dp4tl_fast/kernels/__init__.py"} <= names
    assert not [name for name in names if name.endswith(".so") or "__pycache__" in name]


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "dp4tl_fast.pretrain", "--help"],
        ["-m", "pytest", "--version"],
        ["-c", "import dp4tl_fast.kernels._native"],
    ],
)
def test_checkout(command):
    assert subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True).returncode == 0


def test_kernels_is_not_a_top_level_package():
    code = "import sys; sys.path = [p for p in sys.path if p not in ('', sys.argv[1])]; import kernels"
    assert subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, cwd="/").returncode != 0


def test_scripts_look_for_programs_and_not_for_functions_of_their_own():
    """``command -v NAME`` finds a function of that name, too, and then no program is ever missing."""
    for script in (ROOT / "scripts").glob("*.sh"):
        text = script.read_text()
        functions = set(re.findall(r"^(\w+) *\(\)", text, re.M))
        assert not functions & set(re.findall(r"command -v ([\w-]+)", text)), script.name
