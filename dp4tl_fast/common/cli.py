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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import jsonargparse

from dp4tl_fast.common.errors import Dp4tlError

T = TypeVar("T")

RECIPES = Path(__file__).parent.parent / "recipes"
HASH = "_sha256"  # how the settings end that a run adds to its config.yaml: hashes of its files' contents
EXIT_OK, EXIT_INTERNAL, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class Terminated(KeyboardInterrupt):
    """SIGTERM (a pre-emption): unwinds like Ctrl-C, so that a run saves its state in one place."""


class Parser(jsonargparse.ArgumentParser):
    """Flags with dashes for parameters with underscores; ``--resume`` and ``--no-flip`` for booleans; repeatable lists.

    Attributes:
        renamed: Former names of parameters, which keep working in flags and YAML files: ``{"moco_queue": "moco.queue"}``.
    """

    renamed: Mapping[str, str] = {}

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        given = list(sys.argv[1:] if args is None else args)
        normal = self._joined([self._normalise(a, "".join(given[i + 1 : i + 2])) for i, a in enumerate(given)])
        for i, argument in enumerate(normal):
            if argument == "--config" and i + 1 < len(normal):
                normal[i + 1] = self._find_config(normal[i + 1])
            elif argument.startswith("--config="):
                normal[i] = "--config=" + self._find_config(argument.removeprefix("--config="))
        return super().parse_args(normal, *rest, **kwargs)

    def _joined(self, arguments: list[str]) -> list[str]:
        """``--classes -dash`` as ``--classes=-dash``: a value may begin with one dash."""
        found: list[str] = []
        for argument in arguments:
            before = self._option_string_actions.get(found[-1]) if found else None
            takes_value = before is not None and before.nargs is None  # the others take none, or any number
            if takes_value and argument[:1] == "-" != argument[1:2] and argument not in self._option_string_actions:
                found[-1] += f"={argument}"
            else:
                found.append(argument)
        return found

    def _find_config(self, name: str) -> str:
        """A YAML file, or the path of the shipped recipe of that name; its contents where it has former names, was written by
        a run, which adds the hashes of its files, or has the key ``on``."""
        recipe = RECIPES / f"{name}.yaml"
        path = recipe if not Path(name).exists() and recipe.is_file() else Path(name)
        import yaml

        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return str(path)  # jsonargparse says what is wrong with it
        if not isinstance(settings, dict):
            return str(path)
        hashes = [key for key in settings if str(key).endswith(HASH) and f"--{key}" not in self._option_string_actions]
        for key in hashes:
            del settings[key]
        flag = True in settings and "--on" in self._option_string_actions
        if flag:  # how YAML 1.1 reads the key `on`
            settings["on"] = settings.pop(True)
        former = [key for key in self.renamed if key in settings]
        for key in former:
            self._note(key, f"{path}: ")
            *groups, last = self.renamed[key].split(".")
            inner = settings
            for group in groups:
                inner = inner.setdefault(group, {})
            inner[last] = settings.pop(key)
        return json.dumps(settings) if former or hashes or flag else str(path)

    def _note(self, former: str, where: str = "") -> None:
        message(f"note: {where}{former} is now called {self.renamed[former]}")

    def _normalise(self, argument: str, following: str) -> str:
        if not argument.startswith("--"):
            return argument
        flag, equals, value = argument.partition("=")
        flag = "--" + flag[2:].replace("-", "_")
        if flag[2:] in self.renamed:
            self._note(flag[2:])
            flag = f"--{self.renamed[flag[2:]]}"
        if not equals and following.lower() not in ("true", "false"):
            if self._is_bool(flag):
                return f"{flag}=true"
            if flag.startswith("--no_") and self._is_bool(f"--{flag[5:]}"):
                return f"--{flag[5:]}=false"
        if f"{flag}+" in self._option_string_actions and not value.startswith("["):
            flag += "+"  # append to the list
        return flag + equals + value

    def _is_bool(self, flag: str) -> bool:
        return getattr(self._option_string_actions.get(flag), "_typehint", None) is bool

    def format_help(self, *formatter: Any) -> str:
        return _dashes(super().format_help(*formatter))

    def format_usage(self) -> str:
        return _dashes(super().format_usage())

    def error(self, message: str, *rest: Any) -> Any:
        return super().error(_dashes(self.as_flags(message)), *rest)

    def as_flags(self, text: str) -> str:
        """Parameters in a message of the library, as this command spells them: "`batch_size=0`" -> "--batch-size 0"."""

        def flag(match: re.Match[str]) -> str:
            name, _, value = match[1].partition("=")
            if f"--{name}" in self._option_string_actions:
                spelled = "--" + name.replace("_", "-")
            elif any(action.dest == name and not action.option_strings for action in self._actions):
                spelled = name.upper()  # a positional
            else:
                return match[0]
            return f"{spelled} {value}" if value else spelled

        return re.sub(r"`([a-z][a-z0-9_.]*(?:=[^`]*)?)`", flag, text)


def _dashes(text: str) -> str:
    text = re.sub(r"--([a-z0-9_.]+) \{true,false\}", r"--\1 | --no-\1", text)
    return re.sub(r"--[a-z0-9_.-]+", lambda m: m[0].replace("_", "-"), text)


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
    _collect_seldom()
    name = function.__name__
    parser = Parser(prog=f"dp4tl-fast {name}", description=_summary(function))
    parser.add_argument("--config", action="config", help="YAML file with any of the options; flags after it win.")
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
