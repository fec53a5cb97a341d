"""How a source is to be read where its files leave a choice."""

from __future__ import annotations

from dataclasses import dataclass

from dp4tl_fast.common.checks import require, require_one_of
from dp4tl_fast.common.errors import UsageError

LABEL_TYPES = ("auto", "id", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """Answers to what a source may ask; see docs/converting.md.

    Attributes:
        labels: ImageNet's devkit, for its validation images.
        split: The split to read, where the source holds several.
        classes_from: ``top`` or ``leaf``: which folders are classes; or a table of file names and classes.
        class_order: ``text``, ``natural``, or a file with one class name per line.
        class_list: The class names by id, where ``class_order`` is a file that was read already.
        label_type: ``id`` (whole numbers), ``text``, or ``auto``: numbers where all labels are numbers.
        allow_empty: Keep classes without images, as classes with an id.
        image_column, label_column: Names of columns in tables, Parquet and Arrow files.
        image_key, label_key: Endings in a WebDataset; ``json:a.b`` is the value of ``b`` in ``a`` in the .json file.
    """

    labels: str = ""
    split: str = ""
    classes_from: str = ""
    class_order: str = "text"
    class_list: tuple[str, ...] = ()
    label_type: str = "auto"
    allow_empty: bool = False
    image_column: str = ""
    label_column: str = ""
    image_key: str = ""
    label_key: str = ""

    def __post_init__(self) -> None:
        require_one_of("label_type", self.label_type, LABEL_TYPES)
        require(bool(self.class_order), "class_order", self.class_order, "text, natural, or a file")

    def refuse(self, src: str, *names: str) -> None:
        """Raise ``UsageError`` where one of these was given: it has no meaning for such a source."""
        for name in names:
            if getattr(self, name):
                raise UsageError(f"`{name}={getattr(self, name)}`: does not apply to {src}. Leave it out")
