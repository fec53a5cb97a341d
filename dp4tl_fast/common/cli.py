"""How every command behaves: flags and YAML from one signature, one-line errors, exit codes, JSON on stdout.

A command module defines one function (or a dataclass and a function of it) and ends with ``cli.run(function)``. Flags,
help and types come from its signature and docstring through jsonargparse; ``--config FILE.yaml`` and dotted overrides too.
"""

from __future__ import annotations

import atexit
import dataclasses
import gc
import inspect
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, get_type_hints

from dp4tl_fast.common.errors import Dp4tlError

T = TypeVar("T")

HASH = "_sha256"  # how the settings end that a run adds to its config.yaml: hashes of its files' contents
EXIT_OK, EXIT_INTERNAL, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class Terminated(KeyboardInterrupt):
    """SIGTERM (a pre-emption): unwinds like Ctrl-C, so that a run saves its state in one place."""


def run(
    function: Callable[..., Any],
    argv: Sequence[str] | None = None,
    *,
    positional: bool = False,
    variadic: str = "",
) -> int:
    """Parse ``argv``, call ``function``, print its result as JSON under ``--json``, return the exit code.

    Args:
        function: Named like the command. Keyword-only parameters; or a dataclass parameter, and keyword-only ones that are for
            callers in Python alone. Returns a JSON-able dict (or None).
        positional: Required parameters are positional.
        variadic: Name of a list parameter taken from one or more positionals, after the others.
    """
    from dp4tl_fast.common.parser import Parser  # takes 60 ms, and whoever opens a loader needs messages alone

    _collect_seldom()
    name = function.__name__
    parser = Parser(prog=f"dp4tl-fast {name}", description=_summary(function))
    parser.add_argument("--config", action="config", help="YAML file with any of the options; flags after it override it.")
    parser.add_argument("--json", action="store_true", help="Print the result as one JSON object on stdout.")
    config_class = _config_class(function)
    parser.renamed = getattr(config_class, "RENAMED", {})
    _resolve(function, config_class)
    how: dict[str, Any] = {"as_group": False, "as_positional": positional, "skip": {variadic} if variadic else None}
    if config_class is not None:
        parser.add_class_arguments(config_class, **how)
    else:
        parser.add_function_arguments(function, **how)
    if variadic:
        parser.add_argument(variadic, nargs="+", type=str, help=_argument_help(config_class or function, variadic))
    try:
        options = parser.parse_args(argv)
    except SystemExit as exit_:  # --help is 0, a bad flag 2
        return int(exit_.code or 0)
    as_json = options.pop("json")
    options.pop("config", None)
    global _spelling
    spelling, _spelling = _spelling, parser.as_flags
    handled = threading.current_thread() is threading.main_thread()  # Python takes no signal handlers elsewhere
    previous = signal.signal(signal.SIGTERM, _terminate) if handled else None
    try:
        given = parser.instantiate(options).as_dict()
        result = function(config_class(**given)) if config_class is not None else function(**given)
    except Dp4tlError as error:
        message(f"dp4tl-fast {name}: {error}")
        return EXIT_USAGE
    except OSError as error:  # a full disk, a folder that may not be read; what names no file is a bug
        if error.errno is None or not isinstance(error.filename, (str, bytes, os.PathLike)):
            raise
        message(f"dp4tl-fast {name}: {os.fsdecode(error.filename)}: {error.strerror}")
        return EXIT_USAGE
    except KeyboardInterrupt as stop:
        detail = f": {stop}" if str(stop) else ""
        message(f"dp4tl-fast {name}: {'terminated' if isinstance(stop, Terminated) else 'interrupted'}{detail}")
        return EXIT_INTERRUPTED
    finally:
        _spelling = spelling
        if handled:
            signal.signal(signal.SIGTERM, previous)
    if as_json:
        print(json.dumps(result))
    return EXIT_OK


def _config_class(function: Callable[..., Any]) -> type | None:
    parameters = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    hint = get_type_hints(function).get(parameters[0]) if len(parameters) == 1 else None
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _resolve(function: Callable[..., Any], config_class: type | None) -> None:
    """Replace annotations that are strings: to look those up, jsonargparse would import all that the module imports for
    type checking only, and ``--help`` would wait for torch."""
    for each in (function, inspect.unwrap(function)):
        each.__annotations__ = get_type_hints(each)
    if config_class is not None:
        config_class.__init__.__annotations__ = get_type_hints(config_class.__init__)  # type: ignore[misc]


def _summary(function: Callable[..., Any]) -> str:
    """The docstring up to its ``Args:``; the arguments are listed by the parser."""
    return re.split(r"\n\s*(?:Args|Returns|Raises|Attributes):", inspect.cleandoc(function.__doc__ or ""))[0].strip()


def _argument_help(documented: Any, name: str) -> str:
    """What the docstring says about one argument."""
    from docstring_parser import parse

    return next((p.description or "" for p in parse(documented.__doc__ or "").params if p.arg_name == name), "")


def _collect_seldom() -> None:
    """Importing torch makes hundreds of thousands of objects that stay. Looking through them for garbage, over and over
    while they come and twice more when the process ends, takes 0.4 s of every command."""
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)


def _terminate(signum: int, frame: object) -> None:
    raise Terminated


_spelling: Callable[[str], str] = str  # how the running command spells parameters; a Python caller sees them as they are


def message(text: str) -> None:
    """A line for a human: stderr, so that stdout stays machine-readable. Parameters in backticks are shown as flags."""
    print(_spelling(text), file=sys.stderr, flush=True)


def progress(iterable: Iterable[T] | None, *, desc: str, unit: str, total: int | None = None, **kwargs: Any) -> Any:
    """A progress bar with rate and ETA on stderr (tqdm); quiet updates where stderr is not a terminal."""
    from tqdm.auto import tqdm

    interval = 0.1 if sys.stderr.isatty() else 5.0
    return tqdm(
        iterable, desc=desc, unit=unit, total=total, unit_scale=True, mininterval=interval, dynamic_ncols=True, **kwargs
    )
