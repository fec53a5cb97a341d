#!/usr/bin/env bash
# Usage: scripts/setup.sh default|all. Makes .venv with the default install, or with FFCV, DALI and the developer's tools too.
# Doing it again takes a moment: a stamp in .venv records what was installed, from which build files.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-default}
python=${PYTHON:-python3}
say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

# The reports are tested in a browser. Ubuntu has chromium as a snap alone: there it is the user's to install, or that test is skipped.
browser() { command -v chromium || command -v chromium-browser || command -v google-chrome || grep -q '^ID=ubuntu' /etc/os-release; } >/dev/null
has_nginx() { command -v nginx || [ -x /usr/sbin/nginx ]; } >/dev/null  # files behind URLs are tested with it
ready() { ls kernels/_native*.so >/dev/null 2>&1 && { [ "$what" != all ] || { browser && has_nginx; }; }; }

stamp=.venv/.stamp-$what
inputs=(pyproject.toml setup.py CMakeLists.txt scripts/setup.sh $(git ls-files kernels/csrc 2>/dev/null || find kernels/csrc -type f))
now=$(cat "${inputs[@]}" | sha256sum | cut -c1-16)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$now" ] && ready && exit 0

command -v "$python" >/dev/null || fail "No $python found. Install Python 3.10 or newer, or name one: make ... PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$("$python" -V) is too old: Python 3.10 or newer is needed. Name one: make ... PYTHON=/path/to/python3"

# System packages: a compiler and headers that pip cannot bring. Only what is missing is installed.
packages=()
command -v g++ >/dev/null || packages+=(build-essential)
"$python" -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || packages+=(python3-dev)
has_header() { echo "#include <cstdio>
#include <$1>" | g++ -E -x c++ - >/dev/null 2>&1; }
has_header jpeglib.h || packages+=(libjpeg-dev)
if [ "$what" = all ]; then
  command -v pkg-config >/dev/null || packages+=(pkg-config)
  pkg-config --exists opencv4 2>/dev/null || packages+=(libopencv-dev)
  pkg-config --exists libturbojpeg 2>/dev/null || packages+=(libturbojpeg0-dev)
  browser || packages+=(chromium)
  has_nginx || packages+=(nginx-light)
fi
if [ ${#packages[@]} -gt 0 ]; then
  root=()
  if [ "$(id -u)" != 0 ]; then root=(sudo); fi
  if ! command -v apt-get >/dev/null || { [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null && ! [ -t 0 ]; }; then
    fail "Missing system packages. Install them and run this again: apt-get install ${packages[*]}"
  fi
  say "Installing system packages: ${packages[*]}"
  "${root[@]}" apt-get update -qq
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

[ -x .venv/bin/python ] || { say "Making .venv"; "$python" -m venv .venv; }
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
# What builds the package, kept in .venv: later builds then take seconds, and FFCV's build needs it anyway.
say "Installing the build tools"
pip install -q "setuptools>=77" wheel cmake ninja "nanobind>=2.10"
if [ "$what" = all ]; then
  say "Installing dp4tl_fast with FFCV, DALI and the developer's tools (PyTorch is several GB the first time)"
  pip install -q --no-build-isolation -e ".[dali,dev,docs]"
  # FFCV compiles against what is installed: its build does not work in isolation.
  pip install -q --no-build-isolation -e ".[ffcv]"
else
  say "Installing dp4tl_fast (PyTorch is several GB the first time)"
  pip install -q --no-build-isolation -e .
fi
echo "$now" >"$stamp"
