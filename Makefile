# Two commands: `make demo` shows the whole pipeline, `make test` checks all of it. Both set up what they need.
PY := .venv/bin/python
.PHONY: help demo test setup lint native-test clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

demo:  ## set up the default install and run the pipeline on embedded data (about 5 minutes on 2 cores)
	@scripts/setup.sh default
	$(PY) -m dp4tl_fast.demo $(ARGS)

setup:  ## set up everything: FFCV, DALI, the developer's tools
	@scripts/setup.sh all

test: setup lint  ## set up everything and run all tests
	$(PY) -m dp4tl_fast.doctor --require native,ffcv,dali,triton
	$(PY) -m pytest -q
	@$(MAKE) --no-print-directory native-test

native-test:  ## the C++ tests under AddressSanitizer and UBSan
	@.venv/bin/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath .venv/bin/ninja) -DDP4TL_TESTS=ON -DDP4TL_SANITIZE=ON -DDP4TL_PYTHON=OFF >/dev/null
	@.venv/bin/cmake --build build/sanitize >/dev/null
	.venv/bin/ctest --test-dir build/sanitize --output-on-failure

lint:  ## ruff and mypy
	@scripts/setup.sh all
	$(PY) -m ruff check .
	$(PY) -m mypy

clean:  ## remove what was built; .venv stays
	rm -rf build dist *.egg-info kernels/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
