"""The parser of every command: what jsonargparse lacks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonargparse

from dp4tl_fast.common.cli import HASH, message

RECIPES = Path(__file__).parent.parent / "recipes"
# Bytes of a path that are not UTF-8 are lone surrogates in text, which YAML does not take: it is given other characters for them.
HIDDEN = {0xDC80 + i: 0x10FF80 + i for i in range(128)}
SHOWN = {other: byte for byte, other in HIDDEN.items()}


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
        found = super().parse_args([argument.translate(HIDDEN) for argument in normal], *rest, **kwargs)
        for key, value in list(found.items()):
            found[key] = _shown(value)
        return found

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
        return _as_json(settings) if former or hashes or flag or name.translate(HIDDEN) != name else str(path)

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
        return super().error(_dashes(self.as_flags(_shown(message))), *rest)

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


def _as_json(settings: dict[str, Any]) -> str:
    """As YAML reads it, which knows no pairs of surrogates (JSON's emoji) and takes no control characters but as escapes."""
    text = json.dumps(settings, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _shown(value: Any) -> Any:
    """Text as it was given, also in lists."""
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return value.translate(SHOWN) if isinstance(value, str) else value


def _dashes(text: str) -> str:
    text = re.sub(r"--([a-z0-9_.]+) \{true,false\}", r"--\1 | --no-\1", text)
    return re.sub(r"--[a-z0-9_.-]+", lambda m: m[0].replace("_", "-"), text)
