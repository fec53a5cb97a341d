"""Weights that others wrote: which tensors of a file are the network's, under whatever names and beside whatever else.

A file is read with ``weights_only``: besides tensors and plain containers, only the types in ``_harmless`` are rebuilt, none of
which runs code. Then the tensors are matched with the network's own names: the prefix under which most of them are found, with the
right shapes, is taken; what is missing or left over besides is refused, unless it has no say in the outputs.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from dp4tl_fast.common.content import HEAD_BYTES, what_it_is
from dp4tl_fast.common.errors import CheckpointError
from dp4tl_fast.common.files import utf8_name

Tensors = dict[str, torch.Tensor]

# Where a file keeps the network, first choice first; averages last, so that they are taken only where they are all there is,
# or are asked for: FILE#model_ema.
CONTAINERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params", "teacher", "student")
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "averaged_model")
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of DDP, torch.compile, FSDP
ENCODERS = ("encoder_q", "base_encoder", "teacher", "student", "online_encoder", "momentum_encoder", "encoder_k")  # without labels
CLASSIFIERS = ("head.fc", "head", "fc", "classifier", "linear", "cls_head.fc")  # beside a backbone, as mmpretrain names them
HARMLESS = re.compile(  # counters, and classifiers on the way, which eval mode does not use
    r"(.*\.)?(num_batches_tracked|total_ops|total_params|n_averaged|relative_position_index|attn_mask|queue|queue_ptr)"
    r"|(aux\d*|AuxLogits|aux_classifier)\..*"
)
SNAPSHOT = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")


def read(file: Path, key: str = "") -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a file that dp4tl_fast did not write, by their names in it.

    Args:
        key: Which part of it; empty takes the network's, see ``CONTAINERS``.

    Returns:
        Tensors, and ``taken``: which part they are, and what else there was.

    Raises:
        CheckpointError: It is something else, cut short, or holds objects that are not rebuilt.
    """
    head = _head(file)
    if head[:1] == b"{" or head[8:9] == b"{":
        return _safetensors(file), {}
    if head[:2] != b"PK" and head[:1] != b"\x80":
        what = what_it_is(head) or "not a readable weights file: neither safetensors nor what torch.save writes"
        raise CheckpointError(f"{file}: is {what}")
    return _part(_loaded(file, head), file, key)


def _head(file: Path) -> bytes:
    with open(file, "rb") as stream:
        return stream.read(HEAD_BYTES)


def _safetensors(file: Path) -> Tensors:
    try:
        with utf8_name(file) as opened, safe_open(opened, "pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        cut = " It is cut short: an incomplete download?" if "incomplete" in str(error).lower() else ""
        raise CheckpointError(f"{file}: not a safetensors file ({error}).{cut}") from None


def _harmless() -> list[Any]:
    """Types beside the weights that hold values and run nothing; by other names where other versions call them so."""
    core = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # type: ignore[attr-defined]
    arrays = [(getattr(core, name), f"numpy.{part}.multiarray.{name}")
              for name in ("scalar", "_reconstruct") for part in ("core", "_core")]  # fmt: skip
    dtypes = [getattr(np.dtypes, name) for name in dir(np.dtypes) if re.fullmatch(r"(Bool|U?Int\d+|Float\d+)DType", name)]
    paths: list[Any] = [(pathlib.PurePosixPath, f"pathlib{where}.{name}") for where in ("", "._local")
             for name in ("PosixPath", "PurePosixPath", "Path")]  # fmt: skip
    paths += [(pathlib.PureWindowsPath, f"pathlib{where}.{name}") for where in ("", "._local")
              for name in ("WindowsPath", "PureWindowsPath")]  # fmt: skip
    return [argparse.Namespace, defaultdict, list, dict, np.ndarray, np.dtype, *arrays, *dtypes, *paths]


def _loaded(file: Path, head: bytes) -> Any:
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here: zip, pickle, key and OS errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        cut = head[:2] == b"PK" and not zipfile.is_zipfile(file)
        if cut or isinstance(error, EOFError) or "unexpected EOF" in str(error):
            raise CheckpointError(f"{file}: is cut short: an incomplete download? ({reason})") from None
        types = re.findall(r"GLOBAL ([\w.]+)", str(error)) or re.findall(r"class '([\w.]+)'", str(error))
        if types or "nsupported" in str(error):
            what = ", ".join(dict.fromkeys(types)) or "objects"
            raise CheckpointError(
                f"{file}: not a state dict that loads without unpickling objects: it holds {what}, whose loading could run any "
                "code. If you trust it, load it where it was made and save its `state_dict()` alone"
            ) from None
        if head[:2] == b"\x80\x02" and isinstance(error, UnicodeDecodeError):
            raise CheckpointError(f"{file}: is a pickle of Python 2. Load it there, and save its tensors as safetensors") from None
        raise CheckpointError(f"{file}: not a state dict that loads without unpickling objects ({reason})") from None


def _part(body: Any, file: Path, key: str) -> tuple[Tensors, dict[str, Any]]:
    """The network's tensors in what a file holds."""
    if key:
        for name in key.split("."):
            if not isinstance(body, Mapping) or name not in body:
                known = ", ".join(map(str, body)) if isinstance(body, Mapping) else "none"
                raise CheckpointError(f"{file}#{key}: has no part {name}. Its parts: {known[:300]}")
            body = body[name]
    path, others = [key] if key else [], []
    for _ in range(3):
        if not isinstance(body, Mapping):
            break
        parts = [name for name in (*CONTAINERS, *AVERAGES) if isinstance(body.get(name), Mapping)]
        if not parts:
            break
        others += [name for name in parts[1:] if any(isinstance(v, torch.Tensor) for v in body[name].values())]
        path.append(parts[0])
        body = body[parts[0]]
    tensors = {k: v for k, v in body.items() if isinstance(v, torch.Tensor)} if isinstance(body, Mapping) else {}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(f"{file}: holds no plain dictionary of tensors")
    taken = ".".join(path)
    note = f"{taken}; it also holds {', '.join(others)}: {file.name}#{others[0]} selects that" if others else taken
    return tensors, {"taken": note} if note else {}


def hub_meta(file: Path) -> dict[str, Any]:
    """What the config.json of a snapshot from the Hub says, beside weights of one of its names.

    Raises:
        CheckpointError: It is of another library than timm.
    """
    path = file.parent / "config.json"
    if file.name not in SNAPSHOT or not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if "architecture" not in config and ("architectures" in config or "model_type" in config):
            kind = config.get("architectures") or config["model_type"]
            raise CheckpointError(f"{file.parent}: is a network of transformers ({kind}); only timm's and torchvision's work")
        if "architecture" not in config:
            return {}
        cfg = {**config, **config.get("pretrained_cfg", {})}
        meta = {"arch": f"timm:{config['architecture']}", **timm_meta(cfg)}
        if names := config.get("label_names") or cfg.get("label_names"):
            meta["class_names"] = [str(name) for name in names]
        return meta
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def timm_meta(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing as timm's configs tell it -> as our checkpoints do."""
    meta: dict[str, Any] = {k: list(map(float, cfg[k])) for k in ("mean", "std") if cfg.get(k)}
    if cfg.get("input_size"):
        meta["size"] = int(cfg["input_size"][-1])
    if cfg.get("crop_pct"):
        meta["crop_ratio"] = min(1.0, float(cfg["crop_pct"]))
    if cfg.get("interpolation"):
        meta["interpolation"] = str(cfg["interpolation"])
    return meta


@dataclass
class Fit:
    """A file's tensors under a network's names.

    Attributes:
        headless: There is no classifier among them.
        contrastive: They are an encoder's that was trained without labels: its last layer is no classifier.
        prefix: That they had.
    """

    tensors: Tensors
    headless: bool
    contrastive: bool
    prefix: str
    missing: list[str] = field(default_factory=list)


def fit(tensors: Tensors, wanted: Tensors, classifier: str, what: str) -> Fit:
    """Match a file's tensors with a network's.

    Args:
        wanted: The network's state, with a classifier of any number of classes.
        classifier: The classifier's name in it.
        what: The file and the architecture, for messages.

    Raises:
        CheckpointError: Weights are missing, or there are others that have a say.
    """
    own = {f"{classifier}.weight", f"{classifier}.bias"} & wanted.keys()
    tensors = _unwrapped(tensors)
    found: Counter[str] = Counter()
    for name, tensor in tensors.items():
        parts = name.split(".")
        for i in range(len(parts)):
            inner = ".".join(parts[i:])
            if inner in wanted and inner not in own and wanted[inner].shape == tensor.shape and not HARMLESS.fullmatch(inner):
                found["".join(f"{p}." for p in parts[:i])] += 1
    if not found:
        example = next(iter(tensors))
        raise CheckpointError(f"{what}: none of its {len(tensors)} tensors is one of this architecture (e.g. {example})")
    prefix = min(found, key=lambda p: (-found[p], _rank(p), len(p)))
    mine = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    contrastive = any(part in ENCODERS for part in prefix.split("."))
    if not own & mine.keys() and prefix:
        mine |= _classifier_beside(tensors, prefix, wanted, classifier)
    headless = not own & mine.keys()
    missing = sorted(k for k in wanted if k not in mine and k not in (own if headless else ()) and not HARMLESS.fullmatch(k))
    extra = sorted(k for k in mine if k not in wanted and not HARMLESS.fullmatch(k))
    if contrastive or headless:  # a projection in the classifier's place: fc.0, fc.2, head.mlp ...
        extra = [k for k in extra if k.split(".")[0] not in (classifier.split(".")[0], "head", "projector", "predictor", "fc")]
    shapes = sorted(k for k in mine.keys() & wanted.keys() if k not in own and mine[k].shape != wanted[k].shape)
    if missing or extra or shapes:
        example = (missing or extra or shapes)[0]
        raise CheckpointError(
            f"{what}: {len(missing)} weights missing, {len(extra)} unknown, {len(shapes)} of another shape (e.g. {example}). "
            "Is it of another architecture or class count?"
        )
    return Fit({k: v for k, v in mine.items() if k in wanted}, headless, contrastive, prefix)


def _unwrapped(tensors: Tensors) -> Tensors:
    """Without what wrappers put into names, wherever it stands."""
    plain = {".".join(p for p in name.split(".") if p not in WRAPPERS): t for name, t in tensors.items()}
    return plain if len(plain) == len(tensors) else tensors


def _rank(prefix: str) -> int:
    """Of encoders of equal fit, the one that the paper evaluates."""
    return min((ENCODERS.index(p) for p in prefix.split(".") if p in ENCODERS), default=-1)


def _classifier_beside(tensors: Tensors, prefix: str, wanted: Tensors, classifier: str) -> Tensors:
    """A linear classifier that a file keeps outside the backbone: mmpretrain's ``head.fc`` beside ``backbone.*``."""
    width = wanted[f"{classifier}.weight"].shape[1:]
    outer = prefix.rstrip(".").rpartition(".")[0]
    for name in CLASSIFIERS:
        at = f"{outer}.{name}" if outer else name
        weight = tensors.get(f"{at}.weight")
        if weight is not None and weight.shape[1:] == width:
            bias = tensors.get(f"{at}.bias")
            return {f"{classifier}.weight": weight} | ({f"{classifier}.bias": bias} if bias is not None else {})
    return {}
