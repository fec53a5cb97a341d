"""What a checkpoint says of its network, as a dictionary and as text. Reads the file's header and shapes, not its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHOWN = 20  # class names in the text
FROM = ("start_sha256", "start_interpolation", "source_records_sha256", "mode", "seed", "attack", "taken")


def is_checkpoint(path: str) -> bool:
    """Whether ``inspect`` should take a path for a checkpoint: a folder, or a file that is named like weights."""
    return Path(path).is_dir() or Path(path).suffix in (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")


def describe(path: str, arch: str | None = None) -> dict[str, Any]:
    """Architecture, classes, preprocessing and origin, as ``load_model`` would take them.

    Raises:
        CheckpointError: There are no weights, or they cannot be read.
    """
    from dp4tl_fast.training import checkpoint
    from dp4tl_fast.training.preprocessing import Preprocessing

    file = checkpoint.find_weights(path)
    tensors, meta = checkpoint.read_weights(file)
    arch = arch or meta.get("arch")
    names = meta.get("class_names")
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "sha256": checkpoint.weights_hash(file),
        "arch": arch,
        "num_classes": meta.get("num_classes"),
        "class_names": names,
        "preprocessing": Preprocessing.of(meta).meta() if meta else None,
        "objective": meta.get("objective"),
        "parameters": sum(t.numel() for t in tensors.values()),
        "tensors": len(tensors),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
        "from": {k: meta[k] for k in FROM if k in meta},
    }


def as_text(result: dict[str, Any]) -> str:
    """A few lines for a terminal."""
    names = result["class_names"]
    pixels = result["preprocessing"]
    lines = [
        f"{result['file']}: {result['arch'] or 'architecture unknown: name it with `arch`'}, "
        f"{result['parameters'] / 1e6:,.2f} M values in {result['tensors']} tensors ({', '.join(result['dtypes'])})",
        f"sha256      {result['sha256']}",
        f"objective   {result['objective'] or 'unknown'}",
        f"classes     {result['num_classes'] if result['num_classes'] is not None else 'unknown'}"
        + (f": {', '.join(names[:SHOWN])}" + (", ..." if len(names) > SHOWN else "") if names else ""),
    ]
    if pixels is None:
        lines.append("images      unknown; ImageNet's mean and std would be used")
    else:
        mean, std = (" ".join(f"{v:.4g}" for v in pixels[k]) for k in ("mean", "std"))
        lines.append(
            f"images      {pixels['size']} pixels from the centre {100 * pixels['crop_ratio']:.4g} %, {pixels['interpolation']}; "
            f"mean {mean}, std {std}"
        )
    lines += [f"{key:21} {value}" for key, value in result["from"].items()]
    return "\n".join(lines)
