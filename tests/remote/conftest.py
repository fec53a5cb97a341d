"""A small file behind a URL, and the same beside it."""

import zlib

import numpy as np
import pytest
from cloud_servers import Server
from native_files import jpeg, picture
from remote_cases import CLASSES, PER_CLASS

from dp4tl_fast.beton import Beton, BetonWriter
from dp4tl_fast.beton import format as fmt
from dp4tl_fast.beton.sidecars import Contents
from dp4tl_fast.remote import store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``x.beton`` with its sidecar, and the same without, in a folder."""
    root = tmp_path_factory.mktemp("www")
    payloads = [jpeg(picture(96, 80, i)) for i in range(CLASSES * PER_CLASS)]
    with BetonWriter(root / "x.beton", len(payloads)) as writer:
        for i, payload in enumerate(payloads):
            writer.append(payload, fmt.MODE_JPEG, 96, 80, i // PER_CLASS, i)
        sums = np.array([zlib.crc32(p) for p in payloads], np.uint32)
        writer.close(Contents(class_names=[f"c{c}" for c in range(CLASSES)], checksums=[sums]))
    (root / "plain.beton").write_bytes((root / "x.beton").read_bytes())
    return root


@pytest.fixture
def server(folder):
    """One that misbehaves, with ``x.beton`` and its sidecar."""
    files = {name: (folder / name).read_bytes() for name in ("x.beton", "x.info.zip")}
    running = Server(x_beton=files["x.beton"], x_info_zip=files["x.info.zip"])
    yield running
    running.close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """A failed request is made again at once: no test waits for a clock. And no proxy stands before the tests' servers."""
    monkeypatch.setattr(store, "LONGEST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def remote(server, tmp_path):
    return Beton(server.url + "x.beton", cache_dir=tmp_path / "cache")


@pytest.fixture
def original(folder):
    return Beton(folder / "x.beton")
