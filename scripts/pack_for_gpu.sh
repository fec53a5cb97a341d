#!/usr/bin/env bash
# Usage: scripts/pack_for_gpu.sh FOLDER. What `python -m benchmarks gpu_day` needs on a bare machine with Python 3.12, without a network
# or a compiler: the native module for that Python with its JPEG library, in kernels/, and wheels in FOLDER.
# Needs here: Python 3.12 with its headers (PYTHON=...), a compiler, libjpeg's headers, a network.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?folder for the wheels}
python=${PYTHON:-python3.12}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || { echo "$python is no Python 3.12; name one: PYTHON=..." >&2; exit 2; }

tools=build/pack-tools
[ -x $tools/bin/python ] || "$python" -m venv $tools
$tools/bin/python -m pip install -q cmake ninja "nanobind==3.1.*"
# $ORIGIN: the loader looks for the JPEG library beside the module, not in the system.
PATH=$PWD/$tools/bin:$PATH cmake -S . -B build/pack -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$PWD/$tools/bin/python" \
  -DDP4TL_MODULE_DIR="$PWD/kernels" -DCMAKE_BUILD_RPATH='$ORIGIN' -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON >/dev/null
PATH=$PWD/$tools/bin:$PATH cmake --build build/pack --target _native >/dev/null
module=$(ls kernels/_native.cpython-312-*.so)
jpeg=$(ldd "$module" | awk '/libjpeg/ {print $3}')
case $jpeg in "$PWD"/kernels/*) ;; *) cp -L "$jpeg" kernels/ ;; esac

mkdir -p "$out"
# Pure Python all of them. --no-deps: torch, numpy and the like are there.
$tools/bin/python -m pip download -q --no-deps --only-binary=:all: -d "$out" \
  jsonargparse docstring-parser typeshed-client importlib-resources flash-kmeans flashlib
du -ch "$module" kernels/libjpeg.so.* "$out"/*.whl
