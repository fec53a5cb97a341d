"""What is installed, what works here, and how to fix what does not: every part is tried for real."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import BackendError
from dp4tl_fast.loaders import capabilities
from dp4tl_fast.loaders.capabilities import table as backend_rows

# name -> (distribution, what it is for, what to do when it does not work)
PARTS = {
    "torch": ("torch", "everything", "pip install torch torchvision"),
    "cuda": ("", "training on a GPU", "optional: an NVIDIA driver and a CUDA build of torch"),
    "native": ("", "the native loader and CPU kernels", "apt install build-essential libjpeg-dev; pip install -e ."),
    "triton": ("triton", "GPU kernels", "pip install triton"),
    "ffcv": ("ffcv", "--backend ffcv", "make setup, or: apt install pkg-config libopencv-dev libturbojpeg0-dev; "
             "pip install --no-build-isolation ffcv==1.0.2"),
    "dali": ("nvidia-dali-cuda130", "--backend dali", "make setup, or: pip install nvidia-dali-cuda130"),
}  # fmt: skip
RATES = (  # kernel, dtype, and depth of features or number of classes
    ("linear_argmax", "float32", 64), ("linear_argmax", "float32", 512), ("linear_argmax", "bfloat16", 512),
    ("label_counts", "float32", 1_000), ("label_counts", "bfloat16", 1_000),
)  # fmt: skip
PROBE_TIMEOUT = 180  # seconds; FFCV compiles its pipeline for some


def doctor(*, require: str = "") -> dict[str, Any]:
    """Test every part on real work, each in its own process, and say how to fix those that fail.

    The native, FFCV and DALI backends each decode a batch of real JPEG records; Triton runs a kernel (in its interpreter if
    there is no GPU). ``rates`` shows the GFLOP/s of each CPU kernel's alternative implementations, which give the same result,
    and of a training step in fp32 and bf16, which differ by rounding; and which of them is used on this machine (to force one,
    set e.g. DP4TL_FAST_WAYS=linear_argmax=float32,label_counts=avx2,training=fp32).

    Args:
        require: Parts that must work, separated by commas, e.g. native,ffcv,dali,triton; exits with 2 if one does not.
    """
    unknown = [name for name in filter(None, require.split(",")) if name not in PARTS]
    if unknown:
        raise BackendError(f"`require={unknown[0]}`: known parts are {', '.join(PARTS)}")
    result: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    result["backends"] = {name: asdict(can) for name, can in capabilities().items()}
    for name in cli.progress(list(PARTS), desc="doctor", unit="part", leave=False):
        works, why = _run_probe(name)
        result[name] = {
            "works": works,
            "why": why,
            "version": _version(PARTS[name][0]),
            "remedy": "" if works else PARTS[name][2],
        }
    result["rates"], why = _run_rates() if result["native"]["works"] and result["torch"]["works"] else ({}, "")
    if why:
        result["native"] |= {"works": False, "why": why, "remedy": PARTS["native"][2]}
    _print(result)
    failed = [name for name in filter(None, require.split(",")) if not result[name]["works"]]
    if failed:
        raise BackendError("; ".join(f"{n} does not work: {result[n]['why']}. Remedy: {PARTS[n][2]}" for n in failed))
    return result


def _run_probe(name: str) -> tuple[bool, str]:
    """Run one probe in a fresh process: a part that crashes or hangs takes nothing down with it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"from dp4tl_fast.reporting.installed import probe; probe({name!r})"],
            capture_output=True, text=True, timeout=PROBE_TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"did not finish in {PROBE_TIMEOUT} s"
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            answer = json.loads(line)
            return answer["works"], answer["why"]
    last = done.stderr.strip().splitlines()[-1:] or ["no output"]
    return False, f"exit code {done.returncode}: {last[0]}"


def probe(name: str) -> None:
    """Try one part and print ``{"works", "why"}``."""
    try:
        why = {"torch": _torch, "cuda": _cuda, "triton": _triton}.get(name, lambda: _backend(name))()
        works = True
    except Exception as error:  # whatever it is, it is the answer
        works, why = False, f"{type(error).__name__}: {error}".splitlines()[0]
    print(json.dumps({"works": works, "why": why}))


def _run_rates() -> tuple[dict[str, Any], str]:
    """What ``rates`` prints, from a fresh process, or why it failed."""
    code = "from dp4tl_fast.reporting.installed import rates; rates()"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_TIMEOUT)
    except subprocess.TimeoutExpired:
        return {}, f"the CPU kernels did not finish in {PROBE_TIMEOUT} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {}, f"the CPU kernels failed: {last[0]}"
    return json.loads(done.stdout.splitlines()[-1]), ""


def rates() -> None:
    """Measure, and print ``{work: {"gflops": {way: rate}, "chosen": way}}``."""
    import torch

    from dp4tl_fast.kernels import training_step
    from dp4tl_fast.kernels.label_counts import native_impl as label_counts
    from dp4tl_fast.kernels.linear_argmax import native_impl as linear_argmax

    kernels: dict[str, Any] = {
        "linear_argmax": (linear_argmax.race, linear_argmax.faster_products),
        "label_counts": (label_counts.race, label_counts.fastest_isa),
    }
    found: dict[str, Any] = {}
    for name, dtype, width in RATES:
        make, choose = kernels[name]
        race = make(getattr(torch, dtype), width)
        found[race.name] = {"gflops": race.rates(again=True), "chosen": choose(getattr(torch, dtype), width)}
    race = training_step.race()
    found[race.name] = {"gflops": race.rates(again=True), "chosen": training_step.faster()}
    print(json.dumps(found))


def _torch() -> str:
    import torch

    return f"{torch.get_num_threads()} CPU threads"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA GPU; training runs on the CPU")
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _triton() -> str:
    import os

    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    from dp4tl_fast.kernels import label_counts

    logits = torch.randn(64, 10, device="cuda" if torch.cuda.is_available() else "cpu")
    got = label_counts(logits, 10, implementation="triton").cpu()
    if not torch.equal(got, logits.argmax(1).bincount(minlength=10).cpu()):
        raise RuntimeError("the label_counts kernel gives a wrong result")
    return "a kernel ran " + ("on the GPU" if torch.cuda.is_available() else "in the interpreter (no GPU)")


def _backend(name: str) -> str:
    import io

    import numpy as np
    from PIL import Image

    from dp4tl_fast.beton import BetonWriter
    from dp4tl_fast.beton.format import MODE_JPEG
    from dp4tl_fast.loaders import LoaderSpec, open_loader

    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.beton"
        with BetonWriter(path, capacity=8) as writer:
            for i in range(8):
                data = io.BytesIO()
                Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(data, "JPEG")
                writer.append(data.getvalue(), MODE_JPEG, 48, 40, label=i, index=i)
            writer.close()
        with open_loader(path, None, LoaderSpec(batch_size=8, size=32), name) as loader:
            images, labels = next(iter(loader))
        if tuple(images.shape) != (8, 3, 32, 32) or labels.tolist() != list(range(8)):
            raise RuntimeError(f"read a wrong batch: {tuple(images.shape)}, labels {labels.tolist()}")
    return "decoded a batch"


def _version(distribution: str) -> str:
    try:
        return version(distribution) if distribution else ""
    except PackageNotFoundError:
        return "not installed"


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"dp4tl_fast on Python {result['python']}, {result['platform']}")
    for column in ("part", "version", "works", "result, and what to do", "needed for"):
        table.add_column(column)
    for name, (_, purpose, remedy) in PARTS.items():
        row = result[name]
        advice = row["why"] if row["works"] else f"{row['why']}\n→ {remedy}"
        table.add_row(name, row["version"], "[green]yes[/]" if row["works"] else "[red]no[/]", advice, purpose)
    console = Console(stderr=True)
    console.print(table)
    speeds = Table(title="CPU: implementations of one operation, speed as just measured")
    for column in ("operation", "GFLOP/s", "used"):
        speeds.add_column(column)
    for name, found in result["rates"].items():
        speeds.add_row(name, ", ".join(f"{way} {rate:,.0f}" for way, rate in found["gflops"].items()), found["chosen"])
    if result["rates"]:
        console.print(speeds)
    head, *rows = backend_rows(capabilities())
    backends = Table(title="what each backend can do; a loader refuses the rest when it is opened", show_lines=True)
    for name in head:
        backends.add_column(name)
    for cells in rows:
        backends.add_row(*cells)
    console.print(backends)

