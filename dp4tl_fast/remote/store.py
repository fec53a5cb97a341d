"""Objects behind URLs, read in ranges: one version of each, whatever the network does meanwhile.

Through obstore (S3, Google Cloud, Azure, HTTP), whose own retries are off: a transfer that breaks goes on where it broke, so that
nothing comes twice, and only for as long as some of it comes.
"""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import BetonError, Dp4tlError, UsageError
from dp4tl_fast.remote.background import ending, pause
from dp4tl_fast.remote.url import SCHEMES, Url

FIRST = 1 << 16  # bytes of the first request: a header, and the tables of a small file
CHUNK = 1 << 18  # bytes that are handed on at a time; a transfer that breaks loses less than one, so the next hands on fewer
OPENING, READING = 4, 9  # requests in a row that may fail, of a file that is opened and of one that is being read
LONGEST_WAIT = 16.0  # seconds between two of them; the first waits are 0.25, 0.5, 1, ...
SILENT_S = 30.0  # a server that sends nothing for so long is asked again; one that is slow has all the time it needs
CLIENT = {"allow_http": True, "connect_timeout": timedelta(seconds=10), "timeout": timedelta(days=7)}
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_REGION (with boto3 installed also a profile); "
    "AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY, or `az login`",
}
NO_CREDENTIALS = r"169\.254\.169\.254|metadata\.google|[Nn]o credentials|[Mm]issing (access|credential|account)"
IN_ENVIRONMENT = (  # where obstore finds credentials by itself
    "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE",
)  # fmt: skip


@dataclass(frozen=True)
class Version:
    """Tells one version of an object from another. ``modified`` is ISO 8601, for servers that give no ``etag``."""

    size: int
    etag: str
    modified: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.size} bytes, {f'ETag {self.etag}' if self.etag else f'of {self.modified}'}"


class Store:
    """A file behind a URL, and what lies beside it.

    Attributes:
        received: Bytes that have come so far.

    Raises:
        UsageError: obstore is not installed, or the URL is none that it reads.
    """

    def __init__(self, url: Url) -> None:
        self.url = url
        if url.scheme not in SCHEMES or not url.name:
            raise UsageError(f"{url}: must begin with one of {', '.join(f'{name}://' for name in SCHEMES)}, and name a file")
        try:
            import obstore
            from obstore import store as stores
        except ImportError:
            raise UsageError(f"{url}: URLs need obstore. Install it with `pip install dp4tl_fast[cloud]`") from None
        self._get = obstore.get  # its asynchronous functions abort the process when its threads come for Python's lock at the end
        self.received, self._counting = 0, threading.Lock()
        client = {**CLIENT, "read_timeout": timedelta(seconds=SILENT_S)}
        how: dict[str, Any] = {"client_options": client, "retry_config": {"max_retries": 0}}
        try:
            if url.is_http:  # also one of S3's, which may be public or signed
                self._store: Any = stores.HTTPStore.from_url(url.folder, **how)
            else:
                self._store = stores.from_url(url.folder, **how, **_profile(url.scheme))
        except Exception as error:  # obstore's own, and those of credentials
            remedy = "" if url.is_http else f". {self._credentials()}"
            raise UsageError(f"{url}: {_first_line(error)}{remedy}") from None

    def first(self) -> tuple[Version, bytes]:
        """The version that is there now, and the first bytes of it."""
        for failures in range(1, OPENING + 1):
            try:
                result = self._get(self._store, self.url.name, options={"range": (0, FIRST)})
                data = bytes(result.bytes())
                self._count(len(data))
                version = _version(result.meta)
                if len(data) == min(FIRST, version.size):
                    return version, data
                why = f"only {len(data)} bytes arrived"
            except Exception as error:
                why = self._failed(error, failures, OPENING)
            _pause(failures)
        raise BetonError(f"{self.url}: cannot be read: {why}. It was tried {OPENING} times")

    def read(self, version: Version, start: int, stop: int) -> Iterator[memoryview]:
        """Bytes ``start`` to ``stop`` of this version, in order, a part at a time.

        Raises:
            BetonError: They cannot be had; the message says why, and what to do.
        """
        at, failures = start, 0
        while at < stop:
            options: Any = {"range": (at, stop)}
            if version.etag.startswith('"'):  # a weak one never matches
                options["if_match"] = version.etag
            why = "no bytes arrived"
            try:
                result = self._get(self._store, self.url.name, options=options)
                self._check(version, _version(result.meta))
                if result.range[0] != at:
                    raise BetonError(f"{self.url}: the server answered with bytes from {result.range[0]} on instead of {at}")
                for chunk in result.stream(min_chunk_size=max(1, CHUNK >> 3 * failures)):
                    part = memoryview(chunk)[: stop - at]
                    at += len(part)
                    self._count(len(part))
                    failures = 0
                    yield part
                    if at == stop:
                        return
                    if ending():
                        raise BetonError(f"{self.url}: the program ended while byte {at} was fetched")
            except Exception as error:
                why = self._failed(error, failures + 1, READING, version)
            failures += 1
            if failures >= READING:
                raise BetonError(
                    f"{self.url}: byte {at} cannot be read: {why}. It was tried {READING} times; what arrived is kept in the "
                    "cache: run the command again"
                )
            _pause(failures)

    def beside(self, name: str, etag: str, to: Path) -> str | None:
        """Fetch another file of the folder, if it is not the one with this ETag, which is there. Returns the ETag of what is there
        now, or ``None`` where there is no such file (or none that may be read)."""
        unless: Any = {"if_none_match": etag} if etag else {}
        for failures in range(1, OPENING + 1):
            try:
                result = self._get(self._store, name, options=unless)
                with open(to, "wb") as file:
                    for chunk in result.stream(min_chunk_size=CHUNK):
                        self._count(file.write(chunk))
                    if file.tell() == result.meta["size"]:
                        return result.meta["e_tag"] or ""
                why = f"{file.tell()} of {result.meta['size']} bytes arrived"
            except OSError as error:
                if error.errno is not None:
                    raise
                return None  # obstore's error for one that does not exist is a FileNotFoundError
            except Exception as error:
                if type(error).__name__ == "NotModifiedError":
                    return etag
                if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
                    return None  # S3's answer for one that does not exist, to those who may not list
                why = self._failed(error, failures, OPENING)
            _pause(failures)
        raise BetonError(f"{self.url}: {name}, beside it, cannot be read: {why}. It was tried {OPENING} times")

    def _failed(self, error: Exception, failures: int, most: int, version: Version | None = None) -> str:
        """Why a request failed, where another may help."""
        if isinstance(error, Dp4tlError) or (isinstance(error, OSError) and error.errno is not None):
            raise error
        kind, text = type(error).__name__, str(error)
        found = re.search(r"status code: (\d+)", text)
        status = int(found[1]) if found else 0
        code = re.search(r"<Code>(\w+)</Code>", text)
        what = f"HTTP {status}{f' {code[1]}' if code else ''}" if status else _first_line(error)
        if isinstance(error, FileNotFoundError):
            raise BetonError(f"{self.url}: no such file (HTTP 404). Is the URL right?") from None
        if kind == "NotSupportedError" or status == 416:
            raise BetonError(
                f"{self.url}: the server does not support range requests, and all of it would have to be fetched. Download it, "
                "or use a server that does"
            ) from None
        if kind == "PreconditionError" or status == 412:
            now, _ = self.first()
            self._check(version or now, now)
            raise BetonError(f"{self.url}: the server refuses its own ETag (HTTP 412). Use another server") from None
        if not status and re.search(NO_CREDENTIALS, text):
            raise BetonError(f"{self.url}: no credentials were found. {self._credentials()}") from None
        if status in (401, 403) or (code and re.search("Token|Credential|Access|Signature", code[1])):
            why = f"may not be read ({what}): wrong or expired credentials? {self._credentials()}"
            raise BetonError(f"{self.url}: {why}") from None
        if status in (301, 307, 308) or "redirect" in text.lower():
            raise BetonError(f"{self.url}: is in another region ({what}). Set AWS_REGION to the bucket's") from None
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise BetonError(f"{self.url}: cannot be read ({what})") from None
        if failures == 3 and most == READING:
            cli.message(f"note: {self.url}: {what}; trying again for a while")
        return what

    def _count(self, received: int) -> None:
        with self._counting:
            self.received += received

    def _credentials(self) -> str:
        if self.url.is_http:
            return "A signed URL is valid only for a limited time: sign it again"
        return f"Set {CREDENTIALS[self.url.scheme]}"

    def _check(self, expected: Version, found: Version) -> None:
        if expected != found:
            raise BetonError(
                f"{self.url}: was replaced while it was being read: it was {expected}, and now is {found}. Run the command again, "
                "which reads the new one"
            )


def _version(meta: Any) -> Version:
    etag = meta["e_tag"] or ""
    return Version(int(meta["size"]), etag, "" if etag else meta["last_modified"].isoformat())


def _profile(scheme: str) -> dict[str, Any]:
    """The user's AWS profile, through boto3 where it is installed; obstore itself looks only at the environment."""
    if scheme != "s3" or any(map(os.environ.get, IN_ENVIRONMENT)):
        return {}
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session = boto3.Session()
    return {"credential_provider": Boto3CredentialProvider(session)} if session.get_credentials() else {}


def _pause(failures: int) -> None:
    pause(min(LONGEST_WAIT, 2.0 ** (failures - 3)) * random.uniform(0.75, 1.25))


def _first_line(error: Exception) -> str:
    if "kind: Timeout" in str(error):
        return f"nothing arrived for {SILENT_S:g} s"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"\?[^ ]*", "", line)[:300]  # without the signature of a URL
