"""Values of DICOM elements, from the bytes that a file holds.

pydicom would check and convert every one, warn with the value in its message, and be slower.
"""

import math

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

CHARACTER_SET = 0x00080005


def _printable(text: str) -> str:
    """Without line breaks and control characters, which would break a message or a table."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)


class Fields:
    """Values of a dataset by tag; empty, None or NaN where there is none."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def _raw(self, tag: int) -> tuple[bytes, bool]:
        if tag not in self.dataset:
            return b"", True
        item = self.dataset.get_item(tag)
        if isinstance(item, RawDataElement):
            return item.value or b"", item.is_little_endian
        return str(getattr(item, "value", "") or "").encode("utf-8", "replace"), True

    def text(self, tag: int) -> str:
        """Latin letters, as codes and identifiers are."""
        return _printable(self._raw(tag)[0].decode("latin-1").strip(" \0"))

    def texts(self, tag: int) -> tuple[str, ...]:
        """Several values, which backslashes part."""
        return tuple(part.strip(" \0") for part in self.text(tag).split("\\"))

    def free_text(self, tag: int) -> str:
        """Text in the file's own character set, its line breaks and control characters as spaces."""
        raw = self._raw(tag)[0]
        names = self.texts(CHARACTER_SET)
        try:
            decoded = pydicom.charset.decode_bytes(raw, pydicom.charset.convert_encodings(list(names)), set())
        except (LookupError, UnicodeError, ValueError):
            decoded = raw.decode("latin-1")
        return " ".join(_printable(decoded).split())

    def numbers(self, tag: int, count: int) -> tuple[float, ...] | None:
        """`count` finite numbers; None if they are not there."""
        try:
            values = tuple(float(part) for part in self.texts(tag))
        except ValueError:
            return None
        return values if len(values) == count and all(math.isfinite(value) for value in values) else None

    def number(self, tag: int) -> float:
        """One finite number, else NaN."""
        values = self.numbers(tag, 1)
        return math.nan if values is None else values[0]

    def whole(self, tag: int) -> int | None:
        """An integer written as text."""
        try:
            return int(float(self.text(tag)))
        except (ValueError, OverflowError):
            return None

    def short(self, tag: int, *, signed: bool = False) -> int | None:
        """A binary integer of two bytes (or four)."""
        raw, little = self._raw(tag)
        return int.from_bytes(raw, "little" if little else "big", signed=signed) if len(raw) in (2, 4) else None

    def items(self, tag: int) -> list["Fields"]:
        """Of a sequence."""
        if tag not in self.dataset:
            return []
        value = self.dataset[tag].value
        return [Fields(item) for item in value] if isinstance(value, pydicom.Sequence) else []

    def item(self, tag: int) -> "Fields":
        """The first of a sequence, or one that is empty."""
        return next(iter(self.items(tag)), Fields(Dataset()))

    def holds(self, tag: int) -> bool:
        """Whether the element is there, perhaps without a value."""
        return tag in self.dataset
