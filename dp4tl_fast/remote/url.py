"""Names of files that lie elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

SCHEMES = ("s3", "gs", "az", "https", "http")
_URL = re.compile(r"([a-z][a-z0-9]+)://", re.IGNORECASE)


def is_url(path: object) -> bool:
    """Whether it names a file elsewhere: ``s3://bucket/x.beton``, say. Windows drives and ``torchvision:`` are none."""
    return isinstance(path, Url) or (isinstance(path, str) and _URL.match(path) is not None)


def shown(path: str) -> str:
    """For messages and for files that are kept: a path as it is, a URL without what signs it."""
    return str(Url(path)) if is_url(path) else path


def unsigned(url: str) -> str:
    """Any URL without what may sign it, a query, a user or a password: for messages."""
    scheme, _, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.rpartition('@')[2]}{slash}{path}"


@dataclass(frozen=True)
class Url:
    """Where a file lies. As text it has neither the query nor the password that signed URLs have: for messages and logs.

    Attributes:
        full: As it was given.
    """

    full: str

    def __str__(self) -> str:
        return unsigned(self.full.partition("#")[0]) if self.is_http else self.full

    @property
    def scheme(self) -> str:
        return self.full.partition(":")[0].lower()

    @property
    def is_http(self) -> bool:
        return self.scheme in ("http", "https")

    @property
    def name(self) -> str:
        """Of the file, in its folder."""
        last = str(self).rpartition("/")[2]
        return unquote(last) if self.is_http else last

    @property
    def folder(self) -> str:
        """The URL of its folder, with the query."""
        path = str(self).rpartition("/")[0] if not self.is_http else self.full.partition("?")[0].rpartition("/")[0]
        query = self.full.partition("?")[2] if self.is_http else ""
        return f"{path}/?{query}" if query else f"{path}/"
