"""Files that operating systems, editors and annotation tools leave among images. They are passed over and counted.

Names alone decide only about what is hidden or a system's; anything else of a well-known name must also be no image.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dp4tl_fast.common.content import image_kind

FOLDERS = (b"__macosx", b"__pycache__", b"@eadir", b"$recycle.bin", b"system volume information", b"lost+found")
FILES = (b"thumbs.db", b"ehthumbs.db", b"desktop.ini", b"icon\r", b"md5sums", b"sha1sums", b"sha256sums", b"checksums.txt",
         b"md5sum.txt", b"sha256sum.txt")  # fmt: skip
_ANNOTATION = re.compile(rb".*(\.json|\.xml|\.md5|\.sha1|\.sha256|\.sha512|_boxes\.txt)")


def is_litter_folder(name: bytes) -> bool:
    """Hidden (``.ipynb_checkpoints``, ``.git``), or a system's."""
    return name.startswith(b".") or name.lower() in FOLDERS


def is_annotation(name: bytes) -> bool:
    """Whether a file's name is that of an annotation or checksum. In a WebDataset these are not litter."""
    return _ANNOTATION.fullmatch(name.lower()) is not None


def why_litter(name: bytes, head: Callable[[], bytes]) -> str:
    """Why a file of this name (without folders) is passed over; empty when it is not.

    Args:
        head: Reads its first bytes; called only for well-known names.
    """
    if name.startswith(b"."):
        return "a hidden file"
    lower = name.lower()
    if lower in FILES:
        why = "a system file" if lower.endswith((b".db", b".ini", b"\r")) else "a list of checksums"
    elif is_annotation(name):
        why = "an annotation or checksum beside the images"
    else:
        return ""
    return "" if image_kind(head()) else why
