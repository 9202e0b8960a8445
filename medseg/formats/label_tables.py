"""Label tables of viewers: ITK-SNAP's label descriptions and 3D Slicer's color table."""

from collections.abc import Sequence
from pathlib import Path

from medseg.formats.segments import Segment
from medseg.writing import aside

ITKSNAP_HEADER = "# ITK-SNAP label descriptions: index, red, green, blue, opacity, visible, mesh visible, name"


def write_itksnap_labels(segments: Sequence[Segment], path: str | Path) -> None:
    """Write the file that ITK-SNAP takes under "Segmentation > Import Label Descriptions".

    Args:
        segments: of one label value each.
        path: where to write; an older file is replaced.
    """
    rows = ['0 0 0 0 0 0 0 "Clear Label"']
    for segment in segments:
        red, green, blue = segment.color
        rows.append(f'{_value(segment)} {red} {green} {blue} 1 1 1 "{segment.name}"')
    _write([ITKSNAP_HEADER, *rows], path)


def write_slicer_colors(segments: Sequence[Segment], path: str | Path) -> None:
    """Write a color table (`.ctbl`) for 3D Slicer.

    Args:
        segments: of one label value each.
        path: where to write; an older file is replaced.
    """
    rows = ["0 background 0 0 0 0"]
    for segment in segments:
        red, green, blue = segment.color
        rows.append(f"{_value(segment)} {segment.name.replace(' ', '_')} {red} {green} {blue} 255")
    _write(rows, path)


def _value(segment: Segment) -> int:
    if len(segment.values) != 1:
        raise ValueError(f"segment {segment.name!r} has the values {segment.values}; a label table names one a line")
    return segment.values[0]


def _write(lines: Sequence[str], path: str | Path) -> None:
    with aside(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
