"""Pictures of the worst cases: reference and prediction as contours where they differ most."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.evaluation.judging import Record
from medseg.evaluation.judgment import Judgment
from medseg.geometry import bounding_box
from medseg.reading import Scan
from medseg.regions import is_one_of
from medseg.report.views import (
    ACROSS,
    UPRIGHT,
    PatientArray,
    Plane,
    Scene,
    around,
    as_data_uri,
    css_colors,
    own_window,
    picture,
    to_patient,
)

MOST = 10
SIZE = 340
NAMES = ("prediction", "reference")  # in the order of the colors


class Loaded(NamedTuple):
    """What a case's pictures are made of; `image` is None where the scan is not at hand."""

    image: Scan | None
    pred: NDArray[np.generic]
    reference: Scan


Loader = Callable[[str], Loaded]


@dataclass(frozen=True)
class Worst:
    """A case and its pictures.

    Attributes:
        record: of the case.
        score: mean over the regions of Dice by the second rule.
        region: the one that is shown, the worst.
        pictures: of the case: `uri`, `alt`, `caption`.
    """

    record: Record
    score: float
    region: str
    pictures: tuple[Mapping[str, str], ...] = ()


def worst_cases(
    records: Sequence[Record], judgment: Judgment, load: Loader | None = None, *, most: int = MOST
) -> list[Worst]:
    """The worst of the judged cases, worst first; failed ones have no picture and are named apart.

    Args:
        records: of all cases.
        judgment: what they were judged by.
        load: reads what the pictures are made of.
        most: how many.
    """
    ranked = sorted((score_of(r), r.case_id, r) for r in records if r.status == "judged" and r.metrics is not None)
    found = []
    for score, _, record in ranked[:most]:
        region = worst_region(record)
        shown: tuple[Mapping[str, str], ...] = ()
        if load is not None:
            try:
                shown = draw(load(record.case_id), judgment, region)
            except DataError as error:
                shown = ({"uri": "", "alt": "", "caption": f"no picture: {error}"},)
        found.append(Worst(record, score, region, shown))
    return found


def score_of(record: Record) -> float:
    """Mean over the regions of Dice by the second rule, of a case that has metrics."""
    dice = [float(scores["dice_all"] or 0) for scores in record.metrics.regions.values()] if record.metrics else []
    return float(np.mean(dice)) if dice else 1.0


def worst_region(record: Record) -> str:
    """The region with the least Dice by the second rule."""
    regions = record.metrics.regions if record.metrics else {}
    return min(regions, key=lambda name: float(regions[name]["dice_all"] or 0), default="")


def draw(loaded: Loaded, judgment: Judgment, region: str) -> tuple[Mapping[str, str], ...]:
    """Slices through the place where most voxels differ: axial and coronal, of an image the whole.

    Args:
        loaded: scan, prediction and reference.
        judgment: regions, unit and window.
        region: what is drawn.
    """
    affine = UPRIGHT if judgment.unit == "px" else loaded.reference.affine
    values = judgment.regions[region]
    pred, reference = (is_one_of(label, values) for label in (loaded.pred, loaded.reference.voxels))
    both = to_patient(pred + np.uint8(2) * reference, affine)  # 1: predicted alone, 2: of the reference alone
    voxels = _gray(loaded, affine)
    window = judgment.window if judgment.window and loaded.image is not None else own_window(voxels.voxels)
    scene = Scene(voxels, window, both, {"prediction": [1, 3], "reference": [2, 3]})
    wrong = is_one_of(both.voxels, [1, 2])
    planes: tuple[Plane, ...] = ("axial",) if judgment.unit == "px" else ("axial", "coronal")
    inside = None if judgment.unit == "px" else bounding_box(both.voxels)
    whole = tuple(slice(0, n) for n in wrong.shape)
    shown = []
    for plane in planes:
        sums = wrong.sum(axis=tuple(axis for axis in range(3) if axis != ACROSS[plane]))
        box = None if judgment.unit == "px" else around(inside or whole, wrong.shape, voxels.spacing_mm)
        if box is not None and plane != "axial":
            box = (box[0], slice(0, wrong.shape[1]), box[2])
        drawn = picture(scene, plane, int(sums.argmax()), size=SIZE, box=box, marks=judgment.unit == "mm")
        where = "the image" if judgment.unit == "px" else f"{plane} slice where most differs"
        shown.append(
            {"uri": as_data_uri(drawn), "alt": f"{where}, {region}: prediction and reference", "caption": where}
        )
    return tuple(shown)


def legend() -> dict[str, str]:
    """The colors of prediction and reference."""
    return css_colors(list(NAMES))


def _gray(loaded: Loaded, affine: NDArray[np.float64]) -> PatientArray:
    if loaded.image is None:
        return to_patient(np.zeros(loaded.reference.voxels.shape, dtype=np.uint8), affine)
    voxels = loaded.image.voxels
    if voxels.shape[:3] != loaded.reference.voxels.shape:
        raise DataError(f"the scan is {voxels.shape} and the reference {loaded.reference.voxels.shape}")
    return to_patient(voxels[..., 0] if voxels.ndim == 4 else voxels, affine)
