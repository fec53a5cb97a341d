"""nginx, for suites and tests that read files behind URLs."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dp4tl_fast.common.errors import UsageError

PLACES = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin"
LOG = "sent"  # in the working folder: a line per request, with the bytes of its body
NGINX = """daemon off; master_process off; error_log stderr; pid {work}/pid;
events {{ worker_connections 256; }}
http {{ log_format body $body_bytes_sent; access_log {work}/{log} body; sendfile on; keepalive_requests 100000;
client_body_temp_path {work}/1; proxy_temp_path {work}/2; fastcgi_temp_path {work}/3; uwsgi_temp_path {work}/4;
scgi_temp_path {work}/5;
server {{ listen 127.0.0.1:{port}; root {root};
location /whole/ {{ alias {root}/; max_ranges 0; }} location /slow/ {{ alias {root}/; limit_rate {rate}; }} }} }}
"""


@contextlib.contextmanager
def nginx(root: Path, work: Path, rate: str = "1m") -> Iterator[str]:
    """The URL of ``root``, with a trailing slash; below ``whole/`` the same files without ranges, below ``slow/`` with ``rate``
    bytes per second and connection. It works in ``work``.

    Raises:
        UsageError: nginx is not installed.
    """
    program = shutil.which("nginx", path=PLACES)
    if program is None:
        raise UsageError("nginx is not installed: `make setup` installs it, or apt-get install nginx-light")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (work / "nginx.conf").write_text(NGINX.format(root=root, work=work, port=port, log=LOG, rate=rate))
    process = subprocess.Popen([program, "-p", str(work), "-c", str(work / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            if process.poll() is not None:
                raise UsageError(f"nginx ended with status {process.returncode}")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


def sent(work: Path) -> int:
    """Bytes of all bodies so far."""
    return sum(map(int, (work / LOG).read_text().split()))
