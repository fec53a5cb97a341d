"""What a backend can do, declared beside it as data: read by ``open_loader`` (which refuses the rest), ``doctor`` and
docs/backends.md, without importing the backend's library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.loaders.spec import DTYPES, TRANSFORMS

if TYPE_CHECKING:
    from dp4tl_fast.loaders.spec import LoaderSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """One backend's row. Whatever is not listed is refused when the loader is opened.

    Attributes:
        summary: What it is, in a few words.
        dtypes, transforms, devices, on_error: The values of the ``LoaderSpec`` fields that work.
        records: Kinds of files that work: all ``jpeg``, all ``raw``, ``mixed``.
        views: The largest ``LoaderSpec.views``.
        partial_decode: Decodes (about) the crop only, not the whole image.
        deterministic: Pixels are a pure function of (seed, epoch, record) for any number of threads, ranks and resumes.
        exact: Can give the pixels of PIL and torchvision within one level (``LoaderSpec.exact``).
        max_ram: Keeps to ``LoaderSpec.max_ram``.
        selective_read: Fetches only the surviving records from storage, not their neighbours.
        requires: Modules that must be importable.
        install: What to do about a missing one.
    """

    summary: str
    dtypes: tuple[str, ...] = DTYPES
    transforms: tuple[str, ...] = TRANSFORMS
    devices: tuple[str, ...] = ("cpu", "cuda")
    records: tuple[str, ...] = ("jpeg", "raw", "mixed")
    on_error: tuple[str, ...] = ("raise", "skip")
    views: int = 64
    partial_decode: bool = False
    deterministic: bool = True
    exact: bool = False
    max_ram: bool = False
    selective_read: bool = True
    requires: tuple[str, ...] = ("torch",)
    install: str = "`pip install dp4tl_fast`"

    def missing(self) -> list[str]:
        """Required modules that are not installed. Imports none of them."""
        return [name for name in self.requires if find_spec(name) is None]

    def check(self, name: str, spec: LoaderSpec, records: str) -> None:
        """Refuse what backend ``name`` cannot do.

        Raises:
            BackendError: A module is missing, or ``spec`` or the kind of ``records`` asks for something undeclared.
        """
        if absent := self.missing():
            raise BackendError(f"backend {name!r} needs {', '.join(absent)}, not installed here. Run {self.install}")
        asked = {
            "dtype": (spec.dtype, self.dtypes),
            "transform": (spec.transform, self.transforms),
            "device": (spec.device.split(":")[0], self.devices),
            "on_error": (spec.on_error, self.on_error),
            "records": (records, self.records),
        }
        for what, (value, known) in asked.items():
            if value not in known:
                raise BackendError(
                    f"backend {name!r} cannot do {what} = {value!r}, only {', '.join(known)}. Choose another backend"
                )
        for what, asked_for, can in (("exact", spec.exact, self.exact), ("max_ram", spec.max_ram, self.max_ram)):
            if asked_for and not can:
                raise BackendError(f"backend {name!r} cannot do {what} = {asked_for!r}. Leave it out, or use native")
        if spec.views > self.views:
            raise BackendError(f"backend {name!r} gives at most {self.views} views, not {spec.views}")


def table(backends: dict[str, Capabilities]) -> list[list[str]]:
    """For ``doctor`` and docs/backends.md: a head with the backends' names, then a row for each property."""

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    def row(what: str, say: Callable[[Capabilities], str]) -> list[str]:
        return [what, *(say(c) for c in backends.values())]

    return [
        ["", *backends],
        row("what it is", lambda c: c.summary),
        row("records", lambda c: ", ".join(c.records)),
        row("dtypes", lambda c: ", ".join(c.dtypes)),
        row("transforms", lambda c: ", ".join(c.transforms)),
        row("devices", lambda c: ", ".join(c.devices)),
        row("views of an image", lambda c: f"1 to {c.views}"),
        row("on a bad record", lambda c: " or ".join(c.on_error)),
        row("`exact` pixels", lambda c: yes(c.exact)),
        row("keeps to `max_ram`", lambda c: yes(c.max_ram)),
        row("decodes only the crop", lambda c: yes(c.partial_decode)),
        row("fetches only what survives", lambda c: yes(c.selective_read)),
        row("same pixels for any threads, ranks, resume", lambda c: yes(c.deterministic)),
    ]


def markdown_table(backends: dict[str, Capabilities]) -> str:
    """The table of docs/backends.md."""
    head, *rows = table(backends)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))
