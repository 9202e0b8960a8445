"""Structures of a mask under the names, colors and codes that viewers and archives know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PRIVATE_SCHEME = "99MEDSEG"  # DICOM: schemes of one's own begin with 99


@dataclass(frozen=True)
class Code:
    """A coded concept: what a thing is, in a vocabulary that others share."""

    value: str
    scheme: str
    meaning: str


ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
MORPHOLOGY = Code("49755003", "SCT", "Morphologically Altered Structure")
TISSUE = Code("85756007", "SCT", "Tissue")
KNOWN: Mapping[str, tuple[Code, Code]] = {  # name in a recipe -> category and type
    "liver": (ANATOMY, Code("10200004", "SCT", "Liver")),
    "tumor": (MORPHOLOGY, Code("108369006", "SCT", "Neoplasm")),
    "lesion": (MORPHOLOGY, Code("52988006", "SCT", "Lesion")),
    "spleen": (ANATOMY, Code("78961009", "SCT", "Spleen")),
    "kidney": (ANATOMY, Code("64033007", "SCT", "Kidney")),
    "pancreas": (ANATOMY, Code("15776009", "SCT", "Pancreas")),
    "hippocampus": (ANATOMY, Code("5366008", "SCT", "Hippocampus")),
}
COLORS: Mapping[str, tuple[int, int, int]] = {"liver": (221, 130, 101), "tumor": (144, 238, 72)}
FURTHER_COLORS = ((31, 119, 180), (255, 187, 51), (148, 103, 189), (23, 190, 207), (227, 119, 194), (188, 189, 34))


@dataclass(frozen=True)
class Segment:
    """One structure of a label map.

    Attributes:
        name: as people read it.
        values: the label values it is made of.
        color: red, green and blue, 0 to 255.
        category: coded, of what kind it is.
        type: coded, what it is.
    """

    name: str
    values: tuple[int, ...]
    color: tuple[int, int, int]
    category: Code
    type: Code


def region_segments(regions: Mapping[str, Sequence[int]]) -> list[Segment]:
    """One structure a region; a region inside another, such as a tumor in its liver, is part of both."""
    return [_segment(name, name, values, index) for index, (name, values) in enumerate(regions.items())]


def label_segments(labels: Mapping[str, int], regions: Mapping[str, Sequence[int]]) -> list[Segment]:
    """One structure a label value, none overlapping, in the order of the values; background is left out.

    A value that is only part of the region of its name is named so: label 1 beside a region liver of the values 1 and 2
    is the "liver without tumor".
    """
    names = {value: name for name, value in labels.items() if value != 0}
    segments = []
    for index, (value, name) in enumerate(sorted(names.items())):
        others = [names[other] for other in regions.get(name, ()) if other != value and other in names]
        shown = f"{name} without {' and '.join(others)}" if others else name
        segments.append(_segment(shown, name, (value,), index))
    return segments


def _segment(shown: str, name: str, values: Sequence[int], index: int) -> Segment:
    category, kind = KNOWN.get(name, (TISSUE, Code(name[:16], PRIVATE_SCHEME, name[:64])))
    color = COLORS.get(name, FURTHER_COLORS[index % len(FURTHER_COLORS)])
    return Segment(shown, tuple(values), color, category, kind)
