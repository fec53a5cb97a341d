# Two commands: `make demo` shows the whole pipeline, `make test` checks it (`make test-all`: all of it). Both set up what they need.
PY := .venv/bin/python
CMAKE := .venv/bin/cmake
CTEST := .venv/bin/ctest
WHEELS := $(abspath build/wheels/dist)
NINJA := -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath .venv/bin/ninja)
.PHONY: help demo test test-all setup lint soak docs notebook native-test arm64-test cpu-test wheels wheels-test arm64-wheel-test clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

demo:  ## set up the default install and run the pipeline on embedded data (about 5 minutes on 2 cores)
	@scripts/setup.sh default
	$(PY) -m dp4tl_fast.demo $(ARGS)

setup:  ## set up everything: FFCV, DALI, the developer's tools
	@scripts/setup.sh all

test: setup lint  ## set up everything and run the tests but those that take minutes
	$(PY) -m dp4tl_fast.doctor --require native,ffcv,dali,triton
	$(PY) -m pytest -q -m "not slow"

test-all: setup lint  ## set up everything and run all tests, the C++ ones under sanitizers and the built wheel's too
	$(PY) -m dp4tl_fast.doctor --require native,ffcv,dali,triton
	scripts/wheels.sh $(WHEELS) $(abspath $(PY))
	DP4TL_WHEELS=$(WHEELS) $(PY) -m pytest -q --durations=40 --durations-min=8
	@$(MAKE) --no-print-directory native-test

SOAK_MINUTES := 60
soak:  ## an hour (SOAK_MINUTES) of kills, full disks and mutated images; figures in build/soak.json
	@$(CMAKE) -S . -B build/sanitize $(NINJA) -DDP4TL_TESTS=ON -DDP4TL_SANITIZE=ON -DDP4TL_PYTHON=OFF >/dev/null
	@$(CMAKE) --build build/sanitize --target test_jpeg_sequences >/dev/null
	OMP_NUM_THREADS=1 $(PY) -m benchmarks soak --minutes $(SOAK_MINUTES) --out build/soak.json

native-test:  ## the C++ tests under AddressSanitizer and UBSan
	@$(CMAKE) -S . -B build/sanitize $(NINJA) -DDP4TL_TESTS=ON -DDP4TL_SANITIZE=ON -DDP4TL_PYTHON=OFF >/dev/null
	@$(CMAKE) --build build/sanitize >/dev/null
	$(CTEST) --test-dir build/sanitize --output-on-failure

ARM64_LACKS := install g++-aarch64-linux-gnu, qemu-user-static and libjpeg for arm64 first:\n  dpkg --add-architecture arm64 && apt-get update\n  apt-get install g++-aarch64-linux-gnu qemu-user-static libjpeg62-turbo-dev:arm64   (Ubuntu: libjpeg-turbo8-dev:arm64)\n
arm64-test:  ## the C++ tests cross-built for 64-bit ARM, under qemu (installs nothing)
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64-static >/dev/null && [ -e /usr/lib/aarch64-linux-gnu/libjpeg.so ] || { printf 'arm64-test: $(ARM64_LACKS)' >&2; exit 2; }
	@$(CMAKE) -S . -B build/arm64 $(NINJA) --no-warn-unused-cli -DCMAKE_TOOLCHAIN_FILE=kernels/csrc/arm64.cmake -DDP4TL_TESTS=ON -DDP4TL_PYTHON=OFF >/dev/null
	@$(CMAKE) --build build/arm64 >/dev/null
	$(CTEST) --test-dir build/arm64 --output-on-failure

cpu-test:  ## the C++ tests as processors with x86-64-v2 alone and with AVX2 run them, under qemu (installs nothing)
	@command -v qemu-x86_64-static >/dev/null || { echo 'cpu-test: apt-get install qemu-user-static first' >&2; exit 2; }
	@$(CMAKE) -S . -B build/plain $(NINJA) -DDP4TL_TESTS=ON -DDP4TL_PYTHON=OFF >/dev/null
	@$(CMAKE) --build build/plain >/dev/null
	@for cpu in Nehalem Haswell; do for test in build/plain/test_*; do \
	  printf '%s %s: ' $$cpu $${test##*/}; qemu-x86_64-static -cpu $$cpu $$test 2>build/plain/log || { cat build/plain/log; exit 1; }; echo passed; \
	done; done

PYTHONS = $(foreach minor,10 11 12,$(shell python3.$(minor) -c 'import sys; print(sys.executable)' 2>/dev/null))
wheels:  ## manylinux_2_28 wheels in dist/, for the Pythons found (or PYTHONS=...; 3.12's is for all later ones); ARCH=aarch64: for 64-bit ARM
	scripts/wheels.sh dist $(PYTHONS)

arm64-wheel-test:  ## the wheel for Python 3.11 on 64-bit ARM, built and tried by Debian 12's Python under qemu (installs nothing)
	scripts/try_arm64_wheel.sh

wheels-test: setup  ## the wheel for .venv's Python, built and tried in a bare venv
	scripts/wheels.sh $(WHEELS) $(abspath $(PY))
	DP4TL_WHEELS=$(WHEELS) $(PY) -m pytest -q tests/test_wheels.py

lint:  ## ruff and mypy
	@scripts/setup.sh all
	$(PY) -m ruff check .
	$(PY) -m mypy

docs:  ## the site, in build/site (open build/site/index.html)
	@scripts/setup.sh all
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

notebook:  ## execute the notebook in examples/ anew, in place
	@scripts/setup.sh all
	$(PY) -m jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False examples/which_classes.ipynb

clean:  ## remove what was built; .venv stays
	rm -rf build dist *.egg-info kernels/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
