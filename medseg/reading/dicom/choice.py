"""Which series of a study is the one to segment, with the reason in plain words."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from medseg.reading.dicom.kernels import kernel_sharpness
from medseg.reading.dicom.kinds import derived_as
from medseg.reading.dicom.series import Series

FEWEST_SLICES = 20
THICKEST_MM = 5.0
ROUNDING_MM = 0.05  # 5.02 mm is 5 mm
PREFERENCE = ("soft", "unknown", "sharp")


@dataclass(frozen=True)
class Choice:
    """Whether a series is to be segmented, and why, or why not."""

    series: Series
    chosen: bool
    reason: str


def choose(series: Sequence[Series], *, all_series: bool = False, modality: str = "") -> list[Choice]:
    """One choice a series, in the order given.

    Chosen is, of each study, the thinnest soft-kernel CT series that is axial, of at least 20 slices, at most 5 mm and
    original. A kernel whose name says nothing is taken only where no soft one is; a sharp one never by itself. Of other
    modalities no header says which series is wanted (T1, T2, ...): one alone in its study is chosen, of several none.

    Args:
        series: of one or more studies, as `find_series` gives them.
        all_series: take every original volume that can be read, of whatever plane, thickness, length and kernel.
        modality: take this one only, such as "CT"; empty for any.
    """
    refusals = [_refusal(one, all_series=all_series, modality=modality) for one in series]
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, one in enumerate(series):
        if not refusals[index]:
            groups[(one.patient, one.study, one.modality)].append(index)
    reasons: dict[int, tuple[bool, str]] = {}
    for members in groups.values():
        candidates = [series[index] for index in members]
        picked = [(True, "every volume is taken")] * len(members) if all_series else _pick(candidates)
        reasons.update(zip(members, picked, strict=True))
    return [Choice(one, *reasons.get(index, (False, refusals[index]))) for index, one in enumerate(series)]


def _refusal(one: Series, *, all_series: bool, modality: str) -> str:
    """Why a series is not even a candidate; empty if it is."""
    if one.kind:
        return f"is {one.kind}, no volume"
    if one.problems:
        return one.problems[0]
    if modality and one.modality != modality:
        return f"{one.modality or 'unknown modality'}, where {modality} is wanted"
    derived = derived_as(one.image_type)
    if derived:
        return f"derived from other images ({derived})"
    if all_series:
        return ""
    if one.orientation != "axial":
        return f"{one.orientation}, not axial"
    if one.slices < FEWEST_SLICES:
        return f"{one.slices} slices, fewer than {FEWEST_SLICES}"
    thickest = _thickness_mm(one)
    if thickest > THICKEST_MM + ROUNDING_MM:
        return f"slices of {thickest:.3g} mm, over {THICKEST_MM:g} mm"
    return ""


def _thickness_mm(one: Series) -> float:
    """The larger of a slice's thickness and its distance to the next: both blur what lies between."""
    step = one.spacing_mm[2]
    return step if math.isnan(one.thickness_mm) else max(one.thickness_mm, step)


def _pick(candidates: Sequence[Series]) -> list[tuple[bool, str]]:
    """Of one study and modality: the one to take, and why not the others."""
    if candidates[0].modality != "CT":
        if len(candidates) == 1:
            return [(True, f"the only {candidates[0].modality} volume of its study")]
        why = f"one of {len(candidates)} {candidates[0].modality} volumes of its study, no header says which is wanted"
        return [(False, f"{why}: choose yourself")] * len(candidates)
    best = min(candidates, key=_rank)
    if kernel_sharpness(best.kernel) == "sharp":
        return [
            (False, f"sharp kernel {one.kernel}, for bone or lung: choose it yourself if need be") for one in candidates
        ]
    return [_verdict(one, best, alone=len(candidates) == 1) for one in candidates]


def _rank(one: Series) -> tuple[int, float, int, bool, int, str]:
    """Soft before unknown before sharp, thin before thick, long before short, with contrast before without."""
    return (
        PREFERENCE.index(kernel_sharpness(one.kernel)),
        round(_thickness_mm(one), 1),
        -one.slices,
        not one.contrast,
        -1 if one.number is None else one.number,
        one.source.series_uid,
    )


def _verdict(one: Series, best: Series, *, alone: bool) -> tuple[bool, str]:
    sharpness, thickness = kernel_sharpness(one.kernel), f"{_thickness_mm(one):.3g} mm"
    if sharpness == "unknown":
        said = f"kernel {one.kernel} unknown" if one.kernel else "kernel not stated"
    else:
        said = f"{sharpness} kernel {one.kernel}"
    if one is best:
        return True, f"{said}, {thickness}, {'the only one' if alone else 'the thinnest such'} of its study"
    best_sharpness = kernel_sharpness(best.kernel)
    if sharpness != best_sharpness:
        return False, f"{said}; its study has one of a {best_sharpness} kernel"
    if round(_thickness_mm(one), 1) > round(_thickness_mm(best), 1):
        return False, f"{said}, {thickness}; its study has a thinner one"
    return False, f"{said}, {thickness}; its study has another as thin, which is longer or comes first"
