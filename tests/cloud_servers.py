"""Real servers for files behind URLs, besides nginx (``benchmarks.servers``): moto's S3, and one that misbehaves as it is told."""

from __future__ import annotations

import contextlib
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextlib.contextmanager
def s3(root: Path, bucket: str) -> Iterator[dict[str, str]]:
    """The files of ``root`` in a bucket of moto's server. Yields what a program needs in its environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
        how = {"region_name": "us-east-1", "aws_access_key_id": "test", "aws_secret_access_key": "test"}
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **how)
        client.create_bucket(Bucket=bucket)
        for path in root.iterdir():
            client.upload_file(str(path), bucket, f"sets/{path.name}")
        yield {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    finally:
        server.stop()


class Server:
    """Files over HTTP with ranges, ETags and conditions, and what goes wrong.

    Attributes:
        files: Contents by name.
        asked: Of every request for a range: name with its query, first byte, last + 1.
        sent: Bytes of files that were answered with, as far as the other side took them.
        fault: Called with (name, start, stop, number of the request) before an answer: a status to answer with instead;
            ``cut`` (half of the body, then no more), ``stall`` (half of it, then silence until the server is closed), ``drip``
            (2,000 bytes at a time), ``short`` (half of the range, said so), ``flip`` (a wrong byte), or nothing.
    """

    def __init__(self, **files: bytes) -> None:
        self.files = {name.replace("_", "."): data for name, data in files.items()}
        self.asked: list[tuple[str, int, int]] = []
        self.sent = 0
        self.paths: list[str] = []
        self.fault: Callable[[str, int, int, int], int | str | None] = lambda *_: None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, http: BaseHTTPRequestHandler) -> None:
        name = http.path.partition("?")[0].rpartition("/")[2]
        data = self.files.get(name)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", http.headers.get("Range", ""))
        start, stop = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, len(data or b""))
        stop = min(stop, len(data or b""))
        with self._lock:
            self.paths.append(http.path)
            number = len(self.paths)
            if wanted:
                self.asked.append((http.path.rpartition("/")[2], start, stop))
        fault = self.fault(name, start, stop, number)
        etag = f'"{zlib.crc32(data or b""):08x}"'
        body = b"" if data is None else data[start:stop]
        if fault == "short" and wanted:
            stop = start + max(1, len(body) // 2)
            body = body[: stop - start]
        if fault == "flip" and body:
            body = body[:-1] + bytes([body[-1] ^ 255])
        if isinstance(fault, tuple):
            status, body = fault
        elif isinstance(fault, int):
            status, body = fault, b"<html>a page about it</html>"
        elif data is None:
            status = 404
        elif http.headers.get("If-None-Match") == etag:
            status, body = 304, b""
        elif http.headers.get("If-Match", etag) != etag:
            status, body = 412, b""
        else:
            status = 206 if wanted else 200
        http.send_response(status)
        http.send_header("ETag", etag)
        http.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        http.send_header("Retry-After", "1")
        if status == 206:
            http.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data or b'')}")
        http.send_header("Content-Length", str(len(body)))
        http.end_headers()
        if fault == "cut":
            body = body[: len(body) // 2]
            http.close_connection = True
        with self._lock:
            self.sent += len(body) if status in (200, 206) else 0
        with contextlib.suppress(OSError):  # the other side may have gone
            if fault == "stall":
                http.wfile.write(body[: len(body) // 2])
                self._closed.wait()
            elif fault == "drip":
                for at in range(0, len(body), 2000):
                    http.wfile.write(body[at : at + 2000])
                    self._closed.wait(0.005)
            else:
                http.wfile.write(body)
