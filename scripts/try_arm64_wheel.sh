#!/usr/bin/env bash
# Usage: scripts/try_arm64_wheel.sh. Builds the wheel for 64-bit ARM and Python 3.11, and has Debian 12's Python of that architecture run
# its native module under qemu: what it writes of a JPEG must be what this machine's module writes.
# Needs: qemu-user-static, libjpeg62-turbo-dev:arm64, python3.11, apt with arm64, PyPI. Packages are unpacked in build/wheels/arm64.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "arm64-wheel-test: $*" >&2; exit 2; }
command -v qemu-aarch64-static >/dev/null || fail "install qemu-user-static first"
dpkg --print-foreign-architectures | grep -qx arm64 || fail "dpkg --add-architecture arm64 && apt-get update first"
work=$PWD/build/wheels/arm64 here=$PWD python=$PWD/.venv/bin/python
mkdir -p "$work" && rm -rf "$work/site" "$work/dist"
ARCH=aarch64 scripts/wheels.sh "$work/dist" "${PYTHON:-python3.11}"
if [ ! -d "$work/root" ]; then
  mkdir -p "$work/debs"
  (cd "$work/debs" && apt-get download -q {python3.11-minimal,libpython3.11-{minimal,stdlib},libc6,libstdc++6,libgcc-s1,zlib1g,libexpat1}:arm64)
  for package in "$work"/debs/*.deb; do dpkg -x "$package" "$work/root"; done
fi
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --platform manylinux_2_28_aarch64 \
  --python-version 3.11 -d "$work/pypi" "numpy==$("$python" -c 'import numpy; print(numpy.__version__)')"
for wheel in "$work"/pypi/*.whl "$work"/dist/*.whl; do "$python" -m zipfile -e "$wheel" "$work/site"; done

"$python" -c "import sys, numpy as np; from PIL import Image
noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
Image.fromarray(noise).save(sys.argv[1], quality=90)" "$work/noise.jpg"
run='
import hashlib, platform, sys
import numpy as np
from dp4tl_fast.kernels import _native
jpeg, order = open(sys.argv[1], "rb").read(), np.empty(1000, np.int64)
_native.permute(order, 1, 2)
made = _native.jpeg_add_index(jpeg) + _native.jpeg_shrink(jpeg, 400, 300, 200, 150, 90) + order.tobytes()
print(hashlib.sha256(made).hexdigest(), platform.machine())
'
cd "$work"
theirs=$(PYTHONPATH=$work/site qemu-aarch64-static -L "$work/root" "$work/root/usr/bin/python3.11" -c "$run" noise.jpg)
ours=$(PYTHONPATH=$here "$python" -c "$run" noise.jpg)
echo "$theirs"
[ "${theirs% *}" = "${ours% *}" ] || fail "the module writes other bytes than this machine's: $ours"
