"""Checkpoints: weights as safetensors that plain torchvision loads, and everything else the loop needs to continue.

``DIR/<step>/`` holds ``weights.safetensors``, ``ema.safetensors`` (averaged weights, if asked for) and ``state.pt``. It is
written under a temporary name, synced and renamed, so that one that is there is complete. Nothing is ever unpickled
(``weights_only=True``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dp4tl_fast.common.errors import CheckpointError
from dp4tl_fast.common.files import UNABLE, commit, partial_path, write_atomically
from dp4tl_fast.training import models

WEIGHTS, EMA, STATE, META = "weights.safetensors", "ema.safetensors", "state.pt", "dp4tl"
BEST = "best"  # a link to the checkpoint that validated best; where there are no links, a file with its name
PUBLISHED = "torchvision:"  # torchvision:DEFAULT, torchvision:IMAGENET1K_V1: torchvision's own weights
PREFIXES = ("module.", "_orig_mod.")  # what DDP and torch.compile put before names


def save(
    directory: Path,
    step: int,
    model: nn.Module,
    meta: dict[str, Any],
    state: dict[str, Any],
    *,
    keep: int = 1,
    best: int = -1,
    ema: nn.Module | None = None,
) -> Path:
    """Write a checkpoint and remove all but the newest ``keep`` and that of step ``best``, which ``DIR/best`` links to.

    Args:
        directory: The run's ``checkpoint/`` folder.
        meta: What is needed to rebuild the network (``arch``, ``num_classes``, ``size``), stored inside the weights file.
        state: Tensors, numbers, strings, lists and dicts.
        ema: Averaged weights, written beside the others.

    Raises:
        CheckpointError: It cannot be written (a full disk); the older ones are still there.
    """
    final = directory / f"{step:010d}"
    try:
        _write(final, {WEIGHTS: model} | ({EMA: ema} if ema is not None else {}), meta, state)
        chosen = f"{best:010d}"
        if (directory / chosen).exists() and _pointed_to(directory / BEST) != chosen:
            _link(directory / BEST, chosen)  # also where an earlier save was killed before it came to this
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises RuntimeError where a write fails
        shutil.rmtree(partial_path(final), ignore_errors=True)
        last = checkpoints(directory)[-1:]
        remedy = f"Free some space and continue from {last[0]} with `resume`" if last else "Nothing was saved before"
        raise CheckpointError(f"{final}: cannot be written ({error}). {remedy}") from None
    for old in checkpoints(directory)[:-keep]:
        if old.name != f"{best:010d}":
            shutil.rmtree(old)
    return final


def _write(final: Path, networks: dict[str, nn.Module], meta: dict[str, Any], state: dict[str, Any]) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(final)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, model in networks.items():
        _save_file(partial / name, model, meta)
    torch.save(state, partial / STATE)
    for name in (*networks, STATE):
        with open(partial / name, "rb+") as file:
            os.fsync(file.fileno())
    aside = partial_path(final).with_suffix(".old")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():  # the same step again: stopped at an epoch's last step, and resumed to the epoch's end
        final.replace(aside)  # faster than removing it: the moment without either is as short as can be
    commit(partial, final)
    shutil.rmtree(aside, ignore_errors=True)


def _save_file(path: Path, model: nn.Module, meta: dict[str, Any]) -> None:
    """Weights with their metadata, readable by whom the umask lets read."""
    weights = {strip(k): v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    path.touch()
    mode = path.stat().st_mode
    save_file(weights, path, metadata={META: json.dumps(meta)})
    path.chmod(mode)  # safetensors gives files to their owner alone


def save_weights(path: Path, model: nn.Module, meta: dict[str, Any]) -> None:
    """A weights file by itself, complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        _save_file(partial, model, meta)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        commit(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({error})") from None


def _link(path: Path, target: str) -> None:
    """``path`` -> ``target``, in place of what it pointed to: a link, or a file with the name where the file system has none."""
    partial = partial_path(path)
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(target)
    except OSError as error:
        if error.errno not in UNABLE:
            raise
        write_atomically(path, target + "\n")
    else:
        commit(partial, path)


def _pointed_to(path: Path) -> str:
    if path.is_symlink():
        return str(path.readlink())
    return path.read_text().strip() if path.is_file() else ""


def follow(path: Path) -> Path:
    """``path``, or where a ``best`` that is a file leads: ``RUN/checkpoint/best``, ``RUN/checkpoint/best/ema.safetensors``."""
    for best in (path, path.parent):
        if best.name == BEST and best.is_file() and (target := best.parent / _pointed_to(best)).is_dir():
            return target / path.relative_to(best)
    return path


def checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in directory.glob("[0-9]*") if (p / WEIGHTS).exists() and (p / STATE).exists())


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The loop's state; never unpickles objects."""
    try:
        return torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here: zip, pickle, key and OS errors
        raise CheckpointError(
            f"{checkpoint / STATE}: cannot be read ({error}). Remove {checkpoint} to use an older one"
        ) from None


def find_weights(path: str | Path) -> Path:
    """The weights file meant by a run folder (of a finetuning: its first seed's), a checkpoint folder or a file."""
    path = follow(Path(path))
    if path.is_file():
        return path
    folders = (path, path / "checkpoint", path / "seed-0" / "checkpoint")
    for candidate in (path, *(found for folder in folders for found in reversed(checkpoints(folder)))):
        if (candidate / WEIGHTS).is_file():
            return candidate / WEIGHTS
    raise CheckpointError(f"{path}: no checkpoint there. Give a run folder, a checkpoint folder or a .safetensors file")


def pin_weights(path: str | Path) -> str:
    """The file that ``path`` means now, or ``path`` itself where torchvision keeps the file."""
    return str(path) if str(path).startswith(PUBLISHED) else str(find_weights(path))


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and our metadata (empty for foreign files) of a safetensors file, or a state dict saved by ``torch.save``."""
    file = find_weights(path)
    if file.suffix != ".safetensors":
        try:
            body = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0]  # torch adds a page of advice
            raise CheckpointError(f"{file}: not a state dict that loads without unpickling objects ({reason})") from None
        body = body.get("state_dict", body.get("model", body)) if isinstance(body, dict) else body
        if not isinstance(body, dict) or not all(isinstance(v, torch.Tensor) for v in body.values()):
            raise CheckpointError(f"{file}: holds no plain dictionary of tensors")
        return {strip(k): v for k, v in body.items()}, {}
    try:
        with safe_open(file, "pt") as handle:
            meta = json.loads((handle.metadata() or {}).get(META, "{}"))
            return {strip(k): handle.get_tensor(k) for k in handle.keys()}, meta  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not a safetensors file ({error})") from None


def load_model(path: str | Path, arch: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a network with its weights.

    Args:
        path: As for ``find_weights``, or ``torchvision:NAME`` for weights that torchvision publishes.
        arch: Needed for weights that dp4tl_fast did not write; else it must agree with the file.

    Returns:
        The model in eval mode, and metadata with at least ``arch`` and ``num_classes``.
    """
    if str(path).startswith(PUBLISHED):
        if not arch:
            raise CheckpointError(f"{path}: of which architecture? Name it with `arch`")
        model, meta = models.published(arch, str(path).removeprefix(PUBLISHED))
        return model.eval(), meta
    tensors, meta = read_weights(path)
    if arch and meta.get("arch", arch) != arch:
        raise CheckpointError(f"{path}: holds a {meta['arch']}, not a {arch}")
    arch = arch or meta.get("arch")
    if not arch:
        raise CheckpointError(f"{path}: does not say its architecture. Name it with `arch`")
    num_classes = meta.get("num_classes") or _head_width(arch, tensors)
    model = models.build(arch, int(num_classes), blur_pool=bool(meta.get("blur_pool")))
    load_into(model, tensors, f"{path} ({arch})")
    return model.eval(), {**meta, "arch": arch, "num_classes": int(num_classes)}


def load_into(model: nn.Module, tensors: dict[str, torch.Tensor], what: str) -> None:
    """Load all weights, or say which names or shapes do not fit."""
    wanted = model.state_dict()
    missing, extra = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    shapes = [k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape]
    if missing or extra or shapes:
        example = sorted(missing or extra or shapes)[0]
        raise CheckpointError(
            f"{what}: {len(missing)} weights missing, {len(extra)} unknown, {len(shapes)} of another shape (e.g. {example}). "
            "Is it of another architecture or class count?"
        )
    model.load_state_dict(tensors)


def weights_hash(path: str | Path, model: nn.Module | None = None) -> str:
    """SHA-256 of the weights file: a surrogate's identity. Of ``model``'s tensors, where torchvision keeps the file."""
    if model is not None and str(path).startswith(PUBLISHED):
        tensors = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            tensors.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return tensors.hexdigest()
    return _file_hash(find_weights(path))


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of every weights file that a run has kept, by its path in the run's folder; the newest checkpoint's come first."""
    kept = reversed(checkpoints(run / "checkpoint"))
    files = [folder / name for folder in kept for name in (WEIGHTS, EMA) if (folder / name).exists()]
    return {str(file.relative_to(run)): _file_hash(file) for file in files}


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


def strip(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _head_width(arch: str, tensors: dict[str, torch.Tensor]) -> int:
    name, _ = models.head(models.build(arch, 2))
    if f"{name}.weight" not in tensors:
        raise CheckpointError(f"has no {name}.weight, which a {arch} has. Is it of another architecture?")
    return int(tensors[f"{name}.weight"].shape[0])
