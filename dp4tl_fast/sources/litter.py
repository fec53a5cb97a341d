"""Files that operating systems, editors and annotation tools leave among images. They are passed over and counted.

Names alone decide only about what is hidden or a system's; anything else of a well-known name must also be no image.
"""

from __future__ import annotations

from collections.abc import Callable

from dp4tl_fast.common.content import image_kind

FOLDERS = (b"__macosx", b"__pycache__", b"@eadir", b"$recycle.bin", b"system volume information", b"lost+found")
SYSTEM = frozenset((b"thumbs.db", b"ehthumbs.db", b"desktop.ini", b"icon\r"))
CHECKSUMS = frozenset((b"md5sums", b"sha1sums", b"sha256sums", b"checksums.txt", b"md5sum.txt", b"sha256sum.txt"))
ANNOTATIONS = (b".json", b".xml", b".md5", b".sha1", b".sha256", b".sha512", b"_boxes.txt")


def is_litter_folder(name: bytes) -> bool:
    """Hidden (``.ipynb_checkpoints``, ``.git``), or a system's."""
    return name.startswith(b".") or name.lower() in FOLDERS


def outside_litter(folder: bytes) -> bytes:
    """The folder, or the innermost one around it that is no litter and lies in none; empty for the root."""
    parts = folder.split(b"/")
    return b"/".join(parts[: next((k for k, part in enumerate(parts) if is_litter_folder(part)), len(parts))])


def is_annotation(name: bytes) -> bool:
    """Whether a file's name is that of an annotation or checksum. In a WebDataset these are not litter."""
    return name.lower().endswith(ANNOTATIONS)


def why_litter(name: bytes, head: Callable[[], bytes]) -> str:
    """Why a file of this name (without folders) is passed over; empty when it is not.

    Args:
        head: Reads its first bytes; called only for well-known names.
    """
    if name.startswith(b"."):
        return "a hidden file"
    lower = name.lower()
    if lower.endswith(ANNOTATIONS):
        why = "an annotation or checksum beside the images"
    elif lower in SYSTEM:
        why = "a system file"
    elif lower in CHECKSUMS:
        why = "a list of checksums"
    else:
        return ""
    return "" if image_kind(head()) else why
