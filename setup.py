"""Build the package; CMake compiles the native module ``dp4tl_fast.kernels._native``.

Everything declarative is in pyproject.toml. ``kernels/`` lives at the repository's root and is imported as
``dp4tl_fast.kernels`` through the relative symlink ``dp4tl_fast/kernels``: the checkout, an editable install and a wheel
then all see the same package (a ``package_dir`` mapping would be shadowed by the checkout's ``dp4tl_fast/``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configure and build with CMake, and put the module where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # A wheel's module goes elsewhere than the checkout's: a folder of its own, or the next build of the checkout's own
        # folder would put the module into the wheel's.
        checkout = ROOT in target.parents and ROOT / "build" not in target.parents
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}{'' if checkout else '-wheel'}"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DDP4TL_MODULE_DIR={target.parent}",
        ]  # fmt: skip
        # Build isolation puts cmake and ninja into a fresh environment each time: a cached absolute path would be stale.
        configure += ["-U", "CMAKE_MAKE_PROGRAM", "-U", "nanobind_DIR"]
        subprocess.run(configure + os.environ.get("CMAKE_ARGS", "").split(), check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", "_native"], check=True)


setup(
    packages=find_packages(include=["dp4tl_fast", "dp4tl_fast.*"]),
    package_data={
        "dp4tl_fast": ["reporting/templates/*", "recipes/*.yaml", "py.typed"],
        "dp4tl_fast.kernels": ["_native.pyi"],
    },
    ext_modules=[Extension("dp4tl_fast.kernels._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
