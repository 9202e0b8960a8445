"""All metrics of one case: a prediction against its reference."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.metrics.calibration import CalibrationBins
from medseg.metrics.lesions import MATCH_IOU, SIZE_BINS_MM, LesionRow, lesion_rows, lesion_scores
from medseg.metrics.overlap import class_scores, voxel_scores
from medseg.metrics.pairs import Pair, paired
from medseg.metrics.part import Part
from medseg.metrics.surface import Definition, surface_distances, surface_scores

TOLERANCES_MM = (2.0, 5.0)
DEFINITIONS: tuple[Definition, ...] = ("voxel", "subvoxel")

Number = float | int | str | None


@dataclass(frozen=True)
class CaseMetrics:
    """The metrics of a case, by the names in docs/metrics.md; plain numbers, text, None, lists and dictionaries.

    Attributes:
        regions: region -> its metrics; regions that were not annotated are absent.
        overall: metrics over all classes; empty where only some regions were annotated.
        lesions: metrics of the lesions; None without a lesion region, or if it was not annotated.
        lesion_rows: one a lesion, those of the reference first.
        classes: label values, background 0 first.
        confusion: voxels by reference class (row) and predicted class, in the order of `classes`.
        calibration: region -> sums to pool, the attributes of `CalibrationBins`; empty without probabilities.
        settings: what the numbers depend on.
    """

    regions: dict[str, dict[str, Number]]
    overall: dict[str, float | None]
    lesions: dict[str, float | int | None] | None
    lesion_rows: list[LesionRow]
    classes: list[int]
    confusion: list[list[int]]
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Number]:
        """One flat row: `<region>_<metric>`, then the names of `lesions` and `overall`.

        Where a region is itself called "lesion", the names of `lesions` begin with `lesions_`: its `lesion_dice` is the
        region's.
        """
        named = {f"{name}_{key}": value for name, scores in self.regions.items() for key, value in scores.items()}
        lesions = {lesion_name(key, self.regions): value for key, value in (self.lesions or {}).items()}
        return {**named, **lesions, **self.overall}

    def to_json(self) -> str:
        """The case as JSON; `from_json` reads it."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "CaseMetrics":
        """The case that `to_json` wrote."""
        return cls(**json.loads(text))


def lesion_name(name: str, regions: Collection[str]) -> str:
    """The name of a lesion figure in a flat row; see `CaseMetrics.row`.

    >>> lesion_name("lesion_dice", ["liver"]), lesion_name("lesion_dice", ["lesion"])
    ('lesion_dice', 'lesions_dice')
    """
    return f"lesions_{name.removeprefix('lesion_')}" if "lesion" in regions and name.startswith("lesion_") else name


def case_metrics(
    pred: NDArray[Any],
    reference: NDArray[Any],
    affine_or_spacing: ArrayLike,
    regions: Mapping[str, Sequence[int]],
    *,
    lesion_region: str | None = None,
    ignore_label: int | None = None,
    labeled: Sequence[str] | None = None,
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
    probabilities: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None,
    match_iou: float = MATCH_IOU,
    size_bins_mm: Sequence[float] = SIZE_BINS_MM,
    definitions: Sequence[Definition] = DEFINITIONS,
    unit: Literal["mm", "px"] = "mm",
) -> CaseMetrics:
    """Judge a prediction.

    Each metric of a region comes by two rules for what is missing. Under its own name it is None where the reference
    lacks the region (and for distances and precision where the prediction does), so that means are over cases that have
    it. Under `<name>_all` every case counts: right if both lack it, and the worst if one does: 0, or for distances the
    diagonal of the scan.

    Args:
        pred: predicted label map `(X, Y)`, `(X, Y, Z)` or `(X, Y, 1)`.
        reference: label map on the same grid.
        affine_or_spacing: affine `(4, 4)` (in 2D `(3, 3)`), voxel index -> mm, or voxel edge lengths.
        regions: name -> label values; may overlap.
        lesion_region: region whose connected pieces are lesions.
        ignore_label: reference value whose voxels are not judged; they count as outside in both maps.
        labeled: regions that were annotated in this case; all if not given. The others are not judged.
        tolerances_mm: of the surface Dice.
        probabilities: `(C, *spatial)`, channel c being label value c; or region -> `(*spatial)`.
        match_iou: smallest IoU of lesions that match.
        size_bins_mm: bounds of the lesion size bins.
        definitions: of surfaces; see `medseg.metrics.surface`.
        unit: of the affine or spacing; "px" where an image has no mm.

    Raises:
        ValueError: if the maps, the affine or the probabilities do not fit each other, or a region is unknown.
    """
    _check_names(regions, lesion_region, labeled)
    pair = paired(pred, reference, affine_or_spacing, regions, ignore_label=ignore_label)
    judged = {name: sorted(set(values)) for name, values in regions.items() if labeled is None or name in labeled}
    found: dict[str, dict[str, Number]] = {}
    bins: dict[str, CalibrationBins] = {}
    rows: list[LesionRow] = []
    for name, values in judged.items():
        part = Part.of(pair, values)
        scores = None
        found[name] = _region_metrics(part, tolerances_mm, definitions, unit)
        if probabilities is not None:
            bins[name], scores = part.probability(_channels(probabilities, name, values, np.shape(pred)))
            found[name] |= {"ece": bins[name].ece, "brier": bins[name].brier}
        if name == lesion_region:
            rows = lesion_rows(
                *part.as_given(),
                part.affine,
                match_iou=match_iou,
                size_bins_mm=size_bins_mm,
                scores=None if scores is None else pair.layout.as_given(scores),
                unit=unit,
            )
    confusion = _folded(pair.counts)
    return CaseMetrics(
        regions=found,
        overall=class_scores(confusion) if len(judged) == len(regions) else {},
        lesions=lesion_scores(rows) if lesion_region in judged else None,
        lesion_rows=rows,
        classes=list(pair.values),
        confusion=confusion.tolist(),
        calibration={name: _plain(of_region) for name, of_region in bins.items()},
        settings={
            "regions": {name: list(values) for name, values in regions.items()},
            "lesion_region": lesion_region,
            "labeled": list(judged),
            "ignore_label": ignore_label,
            "tolerances_mm": list(tolerances_mm),
            "match_iou": match_iou,
            "size_bins_mm": list(size_bins_mm),
            "definitions": list(definitions),
            "unit": unit,
        },
    )


def _region_metrics(
    part: Part, tolerances_mm: Sequence[float], definitions: Sequence[Definition], unit: str
) -> dict[str, Number]:
    """Overlap, sizes and surfaces of one region, each by both rules for what is missing."""
    tp, fp, fn, tn = part.counts
    scores = voxel_scores(tp, fp, fn)
    for definition in definitions:
        distances = surface_distances(part.pred, part.reference, part.pair.layout.steps_mm, definition=definition)
        scores |= surface_scores(distances, tolerances_mm, unit=unit, definition=definition)
    missing = {(False, False): "neither", (False, True): "pred", (True, False): "reference", (True, True): "both"}
    empty = missing[tp + fn == 0, tp + fp == 0]
    sizes = _sizes(part.pair, tp + fp, tp + fn, unit)
    present = scores if tp + fn else dict.fromkeys(scores)
    every = {
        f"{name}_all": _every_case(name, value, empty, part.pair.layout.diagonal_mm, unit)
        for name, value in scores.items()
    }
    return {"tp": tp, "fp": fp, "fn": fn, "tn": tn, "empty": empty, **sizes, **present, **every}


def _every_case(name: str, value: float | None, empty: str, diagonal: float, unit: str) -> float | None:
    """A metric by the rule that lets no case out: the best value if both are empty, the worst if one is."""
    distance = name.endswith(f"_{unit}")
    if empty == "both":
        return 0.0 if distance else 1.0
    if empty == "neither":
        return value
    return diagonal if distance else 0.0


def _sizes(pair: Pair, predicted: int, reference: int, unit: str) -> dict[str, float]:
    if unit == "px":
        name, of_voxel = "px", 1.0
    elif pair.layout.dims == 2:
        name, of_voxel = "mm2", pair.layout.voxel_size
    else:
        name, of_voxel = "ml", pair.layout.voxel_size / 1000
    kind = "volume" if name == "ml" else "area"
    return {
        f"pred_{name}": predicted * of_voxel,
        f"reference_{name}": reference * of_voxel,
        f"{kind}_error_{name}": (predicted - reference) * of_voxel,
    }


def _folded(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The table without its last class, all values of no region, which go to 0."""
    rows = counts[:-1].copy()
    rows[0] += counts[-1]
    folded = rows[:, :-1].copy()
    folded[:, 0] += rows[:, -1]
    return folded


def _plain(bins: CalibrationBins) -> dict[str, Any]:
    return {
        "count": bins.count.tolist(),
        "probability": bins.probability.tolist(),
        "positive": bins.positive.tolist(),
        "squared_error": bins.squared_error,
    }


def _channels(
    probabilities: NDArray[Any] | Mapping[str, NDArray[Any]], name: str, values: Sequence[int], shape: tuple[int, ...]
) -> list[NDArray[Any]]:
    """The maps whose sum is the region's probability."""
    if isinstance(probabilities, Mapping):
        if name not in probabilities:
            raise ValueError(f"probabilities lack region {name!r}; they have {', '.join(probabilities) or 'none'}")
        channels = [np.asarray(probabilities[name])]
    elif max(values) < len(probabilities):
        channels = [np.asarray(probabilities[value]) for value in values]
    else:
        raise ValueError(f"probabilities have {len(probabilities)} channels and region {name!r} is of {list(values)}")
    if channels[0].shape != shape:
        raise ValueError(f"probabilities are on a grid {channels[0].shape} and the maps on {shape}; bring them to it")
    return channels


def _check_names(
    regions: Mapping[str, Sequence[int]], lesion_region: str | None, labeled: Sequence[str] | None
) -> None:
    for setting, names in (("lesion_region", [lesion_region] if lesion_region else []), ("labeled", labeled or ())):
        unknown = [name for name in names if name not in regions]
        if unknown:
            raise ValueError(
                f"{setting} names {unknown[0]!r}, which is no region; the regions are {', '.join(regions)}"
            )
