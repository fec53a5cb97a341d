"""ImageNet's own files: the devkit, whose class ids are not in the order of sorted wnids, which is the usual one."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from dp4tl_fast.common.errors import SourceError
from dp4tl_fast.sources.files import check_file

TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


def validation_labels(devkit: Path) -> tuple[list[str], list[int]]:
    """Labels of the validation images, in the order of their names, as positions in the sorted list of wnids.

    Args:
        devkit: ``ILSVRC2012_devkit_t12.tar.gz``, or the folder it unpacks to.

    Returns:
        The wnids, sorted, and one label per image.

    Raises:
        SourceError: The devkit is missing or incomplete.
    """
    truth, meta = _read(devkit, TRUTH), _read(devkit, META)
    try:
        devkit_ids = [int(line) for line in truth.split()]
        wnid_of = _wnids(meta)
        names = sorted(wnid_of.values())
        position = {name: i for i, name in enumerate(names)}
        return names, [position[wnid_of[i]] for i in devkit_ids]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise SourceError(f"{devkit}: cannot be parsed as the ILSVRC2012 devkit: {error!r}") from None


def _wnids(meta: bytes) -> dict[int, str]:
    """ILSVRC2012_ID -> wnid of the leaf classes. ``meta.mat`` also lists inner nodes, which have children."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}


def _read(devkit: Path, name: str) -> bytes:
    try:
        if devkit.is_dir():
            found = sorted(devkit.rglob(name))
            return found[0].read_bytes()
        check_file(devkit)
        with tarfile.open(devkit) as tar:
            member = next(m for m in tar if m.isfile() and Path(m.name).name == name)
            file = tar.extractfile(member)
            return file.read() if file else b""
    except FileNotFoundError:
        raise SourceError(f"{devkit}: no such file. Give ILSVRC2012_devkit_t12.tar.gz") from None
    except (IndexError, StopIteration):
        raise SourceError(f"{devkit}: has no {name}. Give ILSVRC2012_devkit_t12.tar.gz") from None
    except (tarfile.TarError, OSError) as error:
        raise SourceError(f"{devkit}: cannot be read: {error}. Give ILSVRC2012_devkit_t12.tar.gz") from None
