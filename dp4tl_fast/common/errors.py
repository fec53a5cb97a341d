"""Every error a user can cause. Each message names the thing, the value, the rule and the remedy; commands print it as one
line and exit with 2 (see ``dp4tl_fast.common.cli``)."""

from __future__ import annotations


class Dp4tlError(Exception):
    """Base of all errors that dp4tl_fast raises on purpose."""


class UsageError(Dp4tlError):
    """A flag or argument has a value that cannot work."""


class SourceError(Dp4tlError):
    """Input images or folders are missing, empty or unreadable."""


class BetonError(Dp4tlError):
    """A ``.beton`` file is malformed, truncated, unfinished or not what the operation needs."""


class InUseError(BetonError):
    """Another process is writing the file."""


class RecordError(BetonError):
    """One record of a ``.beton`` file cannot be read or decoded; the message names record, class and file."""


class SelectionError(Dp4tlError):
    """A selection is malformed, or was made for another source."""


class CheckpointError(Dp4tlError):
    """A checkpoint is missing, malformed, or does not fit the model or run."""


class TrainingError(Dp4tlError):
    """Training cannot continue: the loss is not finite, or a batch does not fit in memory."""


class BackendError(Dp4tlError):
    """A loader backend or kernel was asked for that cannot work here; the message says why."""
