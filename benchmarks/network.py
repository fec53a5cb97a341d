"""Part of the ``io`` suite: a file behind a URL, from nginx on the same machine.

``remote-K%``: MB/s of fetching K % of the classes into an empty cache, beside a plain parallel download of the same bytes from the
same server into a file. ``remote-K%-excess``: what the server sent beyond the wanted records, by its own log, as a fraction of the
file. ``remote-K%-first-batch``: what had come when a shuffled loader gave its first batch of 64, of what was wanted; the server is
slowed to 64 KiB/s per connection there, as decoding would otherwise be slower than the network.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.child import call
from benchmarks.harness import ROUNDS, Suite
from benchmarks.servers import nginx, sent

if TYPE_CHECKING:
    from dp4tl_fast.beton import Beton

KEEP = (0.6, 0.4, 0.2)
RATE = "64k"  # bytes per second and connection: a record takes longer on the way than to decode
BATCH = 64


def network(suite: Suite, path: Path) -> None:
    """Measure, and state the goals. ``path``: a file in layout ``class``."""
    excess: list[float] = []
    shares: list[float] = []
    first: list[float] = []
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        work = Path(name)
        with nginx(path.parent, work, RATE) as url:
            for keep in KEEP:
                seen: dict[str, list[float]] = {"ours": [], "plain parallel download": []}
                beyond = []
                for seed in range(ROUNDS):
                    before = sent(work)
                    ours = _fresh(work, fetch, url=f"{url}{path.name}", keep=keep, seed=seed)
                    beyond.append((sent(work) - before - ours["wanted"]) / ours["file"])
                    plain = _fresh(work, download, url=url, path=str(path), keep=keep, seed=seed)
                    for subject, measured in zip(seen, (ours, plain), strict=True):
                        seen[subject].append(measured["wanted"] / measured["seconds"] / 1e6)
                case = f"remote-{round(100 * keep)}%"
                rows = suite.add(case, seen, "MB/s", ratio_to="plain parallel download")
                shares.append(rows["ours"].ratio or 0.0)
                suite.add(f"{case}-excess", {"ours": beyond}, "fraction of file")
                excess += beyond
                begun = [_fresh(work, first_batch, url=f"{url}slow/{path.name}", keep=keep, seed=seed) for seed in range(ROUNDS)]
                share = [b["came"] / b["wanted"] for b in begun]
                suite.add(f"{case}-first-batch", {"ours": share}, "of wanted bytes")
                first += share
    suite.goal("remote-excess-bytes", goal=0.02, measured=max(excess), unit="fraction of file", at_most=True)
    suite.goal("remote-throughput-share", goal=0.8, measured=min(shares), unit="of a plain download")
    suite.goal("remote-first-batch", goal=0.05, measured=max(first), unit="of wanted bytes", at_most=True)


def _fresh(work: Path, function: object, **arguments: object) -> dict[str, float]:
    """In a process of its own, with an empty folder ``out``."""
    with tempfile.TemporaryDirectory(dir=work) as out:
        return call(function, out=out, **arguments)  # type: ignore[arg-type]


def _wanted(beton: Beton, keep: float, seed: int) -> np.ndarray:
    kept = np.random.default_rng(seed).permutation(beton.num_classes)[: round(keep * beton.num_classes)]
    return np.flatnonzero(np.isin(beton.labels, kept))


def fetch(url: str, keep: float, seed: int, out: str) -> dict[str, float]:
    """``seconds`` from opening the URL until the records are there, their bytes (``wanted``) and the file's (``file``)."""
    import obstore.store  # noqa: F401  (before the clock starts, as in `download`)

    from dp4tl_fast.beton import Beton
    from dp4tl_fast.remote import file  # noqa: F401

    start = time.perf_counter()
    beton = Beton(url, cache_dir=out)
    records = _wanted(beton, keep, seed)
    with beton.arriving([], records):
        beton.fetch(records)
    return {"seconds": time.perf_counter() - start, "wanted": int(beton.sizes[records].sum()), "file": beton.file_size}


def download(url: str, path: str, keep: float, seed: int, out: str) -> dict[str, float]:
    """The same by as many threads, which know beforehand what to ask for."""
    import obstore
    from obstore.store import HTTPStore

    from dp4tl_fast.beton import Beton
    from dp4tl_fast.remote.arrivals import CONNECTIONS, PIECE

    beton = Beton(path)
    records = _wanted(beton, keep, seed)
    starts, sizes = beton.images["data_ptr"][records].astype(np.int64), beton.sizes[records]
    first = np.flatnonzero(np.r_[True, starts[1:] != (starts + sizes)[:-1]])
    stretches = zip(starts[first].tolist(), np.add.reduceat(sizes, first).tolist(), strict=True)
    pieces = [(at, min(at + PIECE, start + size)) for start, size in stretches for at in range(start, start + size, PIECE)]
    fd = os.open(Path(out) / "plain", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, beton.file_size)
    begun = time.perf_counter()
    store = HTTPStore.from_url(url, client_options={"allow_http": True})

    def one(piece: tuple[int, int]) -> None:
        os.pwrite(fd, memoryview(obstore.get_range(store, Path(path).name, start=piece[0], end=piece[1])), piece[0])

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(one, pieces))
    return {"seconds": time.perf_counter() - begun, "wanted": int(sizes.sum())}


def first_batch(url: str, keep: float, seed: int, out: str) -> dict[str, float]:
    """Bytes that had come when the first shuffled batch was given (``came``), of those that an epoch reads (``wanted``)."""
    from dp4tl_fast.beton import Beton
    from dp4tl_fast.loaders import LoaderSpec, open_loader

    beton = Beton(url, cache_dir=out)
    records = _wanted(beton, keep, seed)
    spec = LoaderSpec(batch_size=BATCH, size=224, transform="random_resized_crop", shuffle=True, workers=2, seed=seed)
    with open_loader(beton, records, spec) as loader:
        next(iter(loader))
        return {"came": beton.bytes_fetched, "wanted": int(beton.sizes[records].sum())}
