"""The forms that a network is exported to. Each writes the file, runs what it wrote, and says how far its logits are off."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from dp4tl_fast.common.errors import UsageError
from dp4tl_fast.common.files import utf8_name
from dp4tl_fast.inference.export import CHECKED, as_json
from dp4tl_fast.inference.network import Network
from dp4tl_fast.training import models

KEY = "dp4tl"  # of the metadata


class FromPixels(nn.Module):
    """``uint8 [n, 3, size, size] -> logits``: normalises by itself."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model = network.model
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (network.pixels.mean, network.pixels.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.float() * self.scale + self.shift)


def noise(network: Network, n: int) -> torch.Tensor:
    """The same every time, uint8 ``[n, 3, size, size]``."""
    size = network.pixels.size
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference of two logits ``[n, classes]``, as a share of the largest logit; NaN where either has one."""
    if ours.shape != theirs.shape:
        return float("nan")
    return float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1e-6))


@contextlib.contextmanager
def quiet() -> Any:
    """Exporters print pages of advice on stdout and stderr."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _program(network: Network) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=65536)
    return torch.export.export(FromPixels(network).eval(), (noise(network, 2),), dynamic_shapes=({0: batch},))


@torch.no_grad()
def to_onnx(network: Network, path: Path, about: dict[str, Any]) -> float:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise UsageError(f"`to=onnx`: needs {error.name}: pip install 'dp4tl_fast[onnx]'") from None

    images = noise(network, CHECKED)
    with quiet():
        batch = {0: torch.export.Dim("batch", min=1, max=65536)}
        program = torch.onnx.export(
            FromPixels(network).eval(), (noise(network, 2),), dynamo=True, dynamic_shapes=(batch,), input_names=["images"],
            output_names=["logits"], verbose=False,
        )  # fmt: skip
        assert program is not None  # without a file name torch returns the program
        model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, as_json(about)
    onnx.save(model, str(path))
    with utf8_name(path) as name:
        session = onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return difference(FromPixels(network)(images), torch.from_numpy(logits))


@torch.no_grad()
def to_torch_export(network: Network, path: Path, about: dict[str, Any]) -> float:
    with quiet(), open(path, "w+b") as file:  # by its name it would have to be UTF-8
        torch.export.save(_program(network), file, extra_files={KEY: as_json(about)})
        file.seek(0)
        loaded = torch.export.load(file).module()
    images = noise(network, CHECKED)
    return difference(FromPixels(network)(images), loaded(images))


@torch.no_grad()
def to_torchvision(network: Network, path: Path, about: dict[str, Any]) -> float:
    arch = network.meta["arch"]
    if arch.startswith(("small-", "timm:")) or network.meta.get("blur_pool"):
        why = "with blur-pool" if network.meta.get("blur_pool") else f"{arch}"
        raise UsageError(f"`to=torchvision`: torchvision has no network {why}. Use `to=onnx` or torch-export")
    state = {name: tensor.contiguous() for name, tensor in network.model.state_dict().items()}
    torch.save({"state_dict": state, **about}, path)
    theirs = models.torchvision_model(arch, len(network.names)).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    images = network.pixels.normalise(network.device)(noise(network, CHECKED))
    return difference(network.model(images), theirs(images))


FORMS: dict[str, Callable[[Network, Path, dict[str, Any]], float]] = {
    "onnx": to_onnx, "torch-export": to_torch_export, "torchvision": to_torchvision,
}  # fmt: skip


def sync(file: IO[bytes]) -> None:
    """To the disk."""
    os.fsync(file.fileno())
