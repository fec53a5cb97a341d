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

from dp4tl_fast.common import cli
from dp4tl_fast.common.errors import CheckpointError
from dp4tl_fast.common.files import UNABLE, commit, partial_path, utf8_name, write_atomically
from dp4tl_fast.training import foreign, models

WEIGHTS, EMA, STATE, META = "weights.safetensors", "ema.safetensors", "state.pt", "dp4tl"
FOREIGN = "foreign"  # in metadata: the weights were not written here
PRECISION = "precision"  # in metadata: that of the run, by its name
BEST = "best"  # a link to the checkpoint that validated best; where there are no links, a file with its name
PUBLISHED = ("torchvision:", "timm:", "hf-hub:")  # weights that torchvision and timm publish: torchvision:DEFAULT, timm:NAME
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
    """The weights file meant by a run folder (of a finetuning: its first seed's), a checkpoint folder, a snapshot or a file."""
    path = follow(_file_and_part(path)[0])
    if path.is_file():
        return path
    folders = (path, path / "checkpoint", path / "seed-0" / "checkpoint")
    for candidate in (path, *(found for folder in folders for found in reversed(checkpoints(folder)))):
        for name in (WEIGHTS, *foreign.SNAPSHOT):
            if (candidate / name).is_file():
                return candidate / name
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder. Give a run folder, a checkpoint folder or a weights file")
    raise CheckpointError(f"{path}: no checkpoint there. Give a run folder, a checkpoint folder or a .safetensors file")


def _file_and_part(path: str | Path) -> tuple[Path, str]:
    """``FILE#model_ema`` -> the file, and the part of it."""
    file, mark, part = str(path).rpartition("#")
    return (Path(file), part) if mark and not Path(path).exists() else (Path(path), "")


def pin_weights(path: str | Path) -> str:
    """The file that ``path`` means now, or ``path`` itself where torchvision or timm keep the file."""
    if str(path).startswith(PUBLISHED):
        return str(path)
    part = _file_and_part(path)[1]
    return str(find_weights(path)) + (f"#{part}" if part else "")


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a weights file: ours, or of others with what is known of it (``training.foreign``).

    Raises:
        CheckpointError: It is no weights file, damaged, or holds objects that are not rebuilt.
    """
    file, part = find_weights(path), _file_and_part(path)[1]
    try:
        with utf8_name(file) as opened, safe_open(opened, "pt") as handle:
            if META in (handle.metadata() or {}):
                meta = json.loads(handle.metadata()[META])
                return {strip(k): handle.get_tensor(k) for k in handle.keys()}, meta  # noqa: SIM118 (not a dict)
    except PermissionError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    except (SafetensorError, OSError, ValueError):
        pass  # another kind, or damaged: that is told below
    try:
        tensors, meta = foreign.read(file, part)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    return tensors, {**foreign.hub_meta(file), **meta, FOREIGN: True}


def load_model(path: str | Path, arch: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a network with its weights.

    Args:
        path: As for ``find_weights``, or ``torchvision:NAME``, ``timm:NAME``, ``hf-hub:ORG/NAME`` for published weights.
        arch: Needed for weights that do not say it; else it must agree with the file.

    Returns:
        The model in eval mode, and metadata with at least ``arch`` and ``num_classes``; ``classifies`` is False where it has no
        classifier, or an untrained one.
    """
    if str(path).startswith("torchvision:"):
        if not arch:
            raise CheckpointError(f"{path}: its architecture is unknown. Name it with `arch`")
        model, meta = models.published(arch, str(path).removeprefix("torchvision:"))
        return model.eval(), meta
    if str(path).startswith(PUBLISHED):
        tensors, meta = models.published_by_timm(str(path))
        return _foreign_model(tensors, meta, str(path), meta["arch"])
    tensors, meta = read_weights(path)
    if not meta.get(FOREIGN) and arch and meta.get("arch", arch) != arch:
        raise CheckpointError(f"{path}: holds a {meta['arch']}, not a {arch}")
    arch = arch or meta.get("arch")
    if not arch:
        raise CheckpointError(f"{path}: does not say its architecture. Name it with `arch`")
    if meta.get(FOREIGN):
        return _foreign_model(tensors, meta, str(path), arch)
    num_classes = int(meta["num_classes"])
    model = models.build(arch, num_classes, blur_pool=bool(meta.get("blur_pool")), size=int(meta.get("image_size", 0)))
    load_into(model, tensors, f"{path} ({arch})")
    return model.eval(), {**meta, "arch": arch, "num_classes": num_classes}


def _foreign_model(
    tensors: dict[str, torch.Tensor], meta: dict[str, Any], path: str, arch: str
) -> tuple[nn.Module, dict[str, Any]]:
    """A network of weights that others named, with the preprocessing that goes with them."""
    template = models.build(arch, 2)
    name, _ = models.head(template)
    found = foreign.fit(tensors, template.state_dict(), name, f"{path} ({arch})")
    num_classes = 1 if found.headless else int(found.tensors[f"{name}.weight"].shape[0])
    model = models.build(arch, num_classes)
    model.load_state_dict(found.tensors, strict=False)  # what it lacks was looked at
    trained = not (found.headless or found.contrastive)
    if meta.get("taken") or found.prefix:
        under = f", under {found.prefix}*" if found.prefix else ""
        cli.message(f"{path}: using {meta.get('taken') or 'its tensors'}{under}" + ("" if trained else "; there is no classifier"))
    known = {k: v for k, v in meta.items() if k != FOREIGN}
    names = known.get("class_names")
    if names is not None and len(names) != num_classes:
        del known["class_names"]
    pixels = {**models.preprocessing_of(model), **known}
    return model.eval(), {**pixels, "arch": arch, "num_classes": num_classes, "classifies": trained}


def classifies(meta: dict[str, Any]) -> bool:
    """Whether a checkpoint's classifier was trained, by its metadata; those of earlier versions tell the objective."""
    return bool(meta.get("classifies", not str(meta.get("objective", "")).startswith("moco")))


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
    if model is not None and str(path).startswith(PUBLISHED) and not Path(path).exists():
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
