"""The formats that a person may ask for beside the NIfTI mask, and how a case's files are named."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError, DataError
from medseg.formats.label_tables import write_itksnap_labels, write_slicer_colors
from medseg.formats.mesh import write_stl
from medseg.formats.seg_nrrd import write_seg_nrrd
from medseg.formats.segments import label_segments, region_segments
from medseg.reading import ScanSource

Format = Literal["seg", "rtstruct", "nrrd", "stl"]
FORMATS: tuple[Format, ...] = get_args(Format)
_ENDINGS = {"seg": "_seg.dcm", "rtstruct": "_rtstruct.dcm", "nrrd": ".seg.nrrd"}  # of surfaces one a region
ITKSNAP_LABELS, SLICER_COLORS = "labels_itksnap.txt", "labels.ctbl"


@dataclass(frozen=True)
class Structures:
    """What the values of a model's masks mean, and which model made them.

    Attributes:
        labels: name -> value, with the background.
        regions: name -> values.
        model: the model's name.
        version: the model's version.
    """

    labels: Mapping[str, int]
    regions: Mapping[str, Sequence[int]]
    model: str
    version: str


def parse_formats(text: str) -> tuple[Format, ...]:
    """Formats from words with commas between them, such as "seg,stl".

    Raises:
        ConfigError: if one is not known.
    """
    asked = [word.strip() for word in text.split(",") if word.strip()]
    unknown = sorted(set(asked) - set(FORMATS))
    if unknown:
        raise ConfigError(f"--formats: {', '.join(unknown)} is not known; choose of {', '.join(FORMATS)}")
    return tuple(each for each in FORMATS if each in asked)


def write_formats(
    label: NDArray[np.unsignedinteger],
    affine: NDArray[np.float64],
    stem: Path,
    *,
    formats: Sequence[Format],
    source: ScanSource,
    structures: Structures,
) -> list[str]:
    """Write a case's further files: `STEM_seg.dcm`, `STEM_rtstruct.dcm`, `STEM.seg.nrrd`, `STEM_<region>.stl`.

    A format that cannot be written takes nothing from the others: it becomes a warning. Files of formats that are not
    asked for show an earlier mask of the case and are removed.

    Args:
        label: `(X, Y, Z)` on the scan's own grid.
        affine: `(4, 4)`, voxel index to RAS mm.
        stem: path of the case's files without an ending.
        formats: which ones.
        source: the scan; DICOM SEG and RT structures need a DICOM series.
        structures: what the mask's values mean.

    Returns:
        Warnings, one sentence each.
    """
    separate = label_segments(structures.labels, structures.regions)
    whole = region_segments(structures.regions)
    warnings = []
    for path in (path for kind in FORMATS if kind not in formats for path in _files(kind, stem, structures.regions)):
        path.unlink(missing_ok=True)
    for kind in formats:
        try:
            if kind == "nrrd":
                write_seg_nrrd(label, affine, separate, stem.with_name(f"{stem.name}{_ENDINGS[kind]}"))
            elif kind == "stl":
                warnings += _write_surfaces(label, affine, stem, structures.regions)
            elif not source.is_dicom:
                warnings.append(f"no {_named(kind)}: the scan is no DICOM series")
            else:
                segments = separate if kind == "seg" else whole
                path = stem.with_name(f"{stem.name}{_ENDINGS[kind]}")
                of_model = (structures.model, structures.version)
                _dicom_writer(kind)(
                    label, affine, path, source=source, segments=segments, model=of_model[0], version=of_model[1]
                )
        except DataError as error:
            warnings.append(f"no {_named(kind)}: {error}")
            for path in _files(kind, stem, structures.regions):  # an earlier mask's must not stand beside this one
                path.unlink(missing_ok=True)
    return warnings


def format_paths(stem: Path, regions: Iterable[str]) -> list[Path]:
    """Every file that `write_formats` may write for a case of a model with these regions, there or not."""
    return [path for kind in FORMATS for path in _files(kind, stem, regions)]


def write_label_tables(folder: Path, structures: Structures) -> None:
    """Write `labels_itksnap.txt` and `labels.ctbl`, which name the values of all masks of a folder."""
    segments = label_segments(structures.labels, structures.regions)
    write_itksnap_labels(segments, folder / ITKSNAP_LABELS)
    write_slicer_colors(segments, folder / SLICER_COLORS)


def _write_surfaces(
    label: NDArray[np.unsignedinteger], affine: NDArray[np.float64], stem: Path, regions: Mapping[str, Sequence[int]]
) -> list[str]:
    warnings = []
    for name, values in regions.items():
        path = stem.with_name(f"{stem.name}_{name}.stl")
        mask = np.isin(label, values)
        if mask.any():
            write_stl(mask, affine, path)
        else:
            path.unlink(missing_ok=True)  # an earlier run's surface must not stand beside a mask without it
            warnings.append(f"no surface of {name}: none found")
    return warnings


def _dicom_writer(kind: Format) -> Callable[..., None]:
    """Loaded only where asked for: highdicom takes a second to import."""
    if kind == "seg":
        from medseg.formats.dicom_seg import write_dicom_seg

        return write_dicom_seg
    from medseg.formats.rtstruct import write_rtstruct

    return write_rtstruct


def _files(kind: Format, stem: Path, regions: Iterable[str]) -> list[Path]:
    endings = [f"_{name}.stl" for name in regions] if kind == "stl" else [_ENDINGS[kind]]
    return [stem.with_name(f"{stem.name}{ending}") for ending in endings]


def _named(kind: Format) -> str:
    return {"seg": "DICOM SEG", "rtstruct": "RT structure set", "nrrd": ".seg.nrrd", "stl": "surface"}[kind]
