"""Benchmarks: one module a suite, run with ``python -m benchmarks NAME``. Nothing imports this package."""
