"""FFCV's ``.beton`` container: byte layout, reader, writer. Knows no torch."""

from dp4tl_fast.beton.reader import Beton
from dp4tl_fast.beton.writer import BetonWriter

__all__ = ["Beton", "BetonWriter"]
