"""How far two surfaces are apart, in mm: Hausdorff, HD95, average symmetric surface distance, surface Dice.

There are two definitions of a mask's surface, and figures of one must not be compared with figures of the other:

- `"voxel"`: the centers of voxels inside the mask that have a face neighbor outside; each counts alike. MONAI's, and
  that of most published figures.
- `"subvoxel"`: the corners of voxels at which the mask changes; each counts by the area of surface there. That of
  DeepMind's `surface-distance` package.

Outside the array is outside the mask, so a mask that touches the border has a surface there, in both definitions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.geometry import bounding_box
from medseg.metrics.nearest import nearest_distances
from medseg.metrics.subvoxel import surface_elements

Definition = Literal["voxel", "subvoxel"]
TIE_MM = 1e-6  # rounding of 3 x 0.7 mm must not put it beyond a tolerance of 2.1 mm


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of every surface element to the other surface, in mm, and how much each counts.

    Attributes:
        pred_to_reference: one an element of the prediction's surface; inf if the reference is empty.
        reference_to_pred: one an element of the reference's.
        pred_weights: 1 each, or areas in mm2 (in 2D lengths in mm).
        reference_weights: the same for the reference.
        weighted: if elements count by their area.
    """

    pred_to_reference: NDArray[np.float64]
    reference_to_pred: NDArray[np.float64]
    pred_weights: NDArray[np.float64]
    reference_weights: NDArray[np.float64]
    weighted: bool = False

    @property
    def empty(self) -> bool:
        """If one of the surfaces, or both, are missing; then no distance is defined."""
        return len(self.pred_to_reference) == 0 or len(self.reference_to_pred) == 0


def surface_distances(
    pred: NDArray[Any], reference: NDArray[Any], axes_mm: ArrayLike, *, definition: Definition = "voxel"
) -> SurfaceDistances:
    """Distances between the surfaces of two masks, both ways.

    Args:
        pred: mask `(X, Y)` or `(X, Y, Z)`; what is not zero is inside.
        reference: mask on the same grid.
        axes_mm: voxel edge lengths, or the step along each axis as a column, `(dims, dims)`: an affine without its
            last row and column. The areas of a sheared grid are taken as if its axes were at right angles.
        definition: of the surface.

    Raises:
        ValueError: if the grids differ or `axes_mm` does not fit them.
    """
    axes = np.asarray(axes_mm, dtype=np.float64)
    axes = np.diag(axes) if axes.ndim == 1 else axes
    if pred.shape != reference.shape:
        raise ValueError(f"pred is {pred.shape} and reference {reference.shape}; bring both to one grid")
    if axes.shape != (pred.ndim, pred.ndim):
        raise ValueError(f"axes_mm is {axes.shape} for {pred.ndim} dimensions; give one spacing or column an axis")
    pred, reference = np.asarray(pred, dtype=bool), np.asarray(reference, dtype=bool)
    box = _shared_box(pred, reference)
    if box is None:
        nothing = np.zeros(0)
        return SurfaceDistances(nothing, nothing, nothing, nothing)
    pred, reference = pred[box], reference[box]
    if definition == "subvoxel":
        spacing = np.linalg.norm(axes, axis=0).tolist()
        (pred_surface, pred_weights), (reference_surface, reference_weights) = (
            surface_elements(mask, spacing) for mask in (pred, reference)
        )
        distances = nearest_distances(pred_surface, reference_surface, axes)
        return SurfaceDistances(*distances, pred_weights, reference_weights, weighted=True)
    distances = nearest_distances(voxel_surface(pred), voxel_surface(reference), axes)
    return SurfaceDistances(*distances, np.ones(len(distances[0])), np.ones(len(distances[1])))


def voxel_surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of the mask with a face neighbor outside it or outside the array."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        along, whole = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        along[1:] &= whole[:-1]
        along[:-1] &= whole[1:]
        along[0], along[-1] = False, False
    return mask & ~inner


def hausdorff(distances: SurfaceDistances, *, percentile: float = 100) -> float | None:
    """Largest distance of both directions, or each direction's percentile and the larger of the two; None if empty.

    Voxel surfaces have the percentile that `numpy.percentile` interpolates; weighted ones the smallest distance within
    which that share of the area lies.

    Reference:
        Huttenlocher et al., "Comparing images using the Hausdorff distance", IEEE TPAMI 1993.
    """
    if distances.empty:
        return None
    found = _weighted_percentile if distances.weighted and percentile < 100 else _percentile
    return max(
        found(distances.pred_to_reference, distances.pred_weights, percentile),
        found(distances.reference_to_pred, distances.reference_weights, percentile),
    )


def average_distance(distances: SurfaceDistances) -> float | None:
    """Average symmetric surface distance: mean over the elements of both surfaces together; None if empty.

    Reference:
        Heimann et al., "Comparison and Evaluation of Methods for Liver Segmentation from CT Datasets", IEEE TMI 2009.
    """
    if distances.empty:
        return None
    total = distances.pred_weights.sum() + distances.reference_weights.sum()
    summed = distances.pred_to_reference @ distances.pred_weights
    return float((summed + distances.reference_to_pred @ distances.reference_weights) / total)


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float | None:
    """Normalized surface Dice: the share of both surfaces within the tolerance of the other; None if both are empty.

    Reference:
        Nikolov et al., 2021 (see `medseg.metrics.subvoxel`).
    """
    total = distances.pred_weights.sum() + distances.reference_weights.sum()
    if total == 0:
        return None
    near = distances.pred_weights[distances.pred_to_reference <= tolerance_mm + TIE_MM].sum()
    near += distances.reference_weights[distances.reference_to_pred <= tolerance_mm + TIE_MM].sum()
    return float(near / total)


def surface_scores(
    distances: SurfaceDistances, tolerances_mm: Sequence[float], *, unit: str = "mm", definition: Definition = "voxel"
) -> dict[str, float | None]:
    """All of the above by name: `hausdorff_mm`, `hd95_mm`, `assd_mm`, `nsd_2mm`, or `hausdorff_subvoxel_mm`, ...

    Args:
        distances: what `surface_distances` gave.
        tolerances_mm: of the surface Dice.
        unit: of the spacing, which ends the names: "mm" or "px".
        definition: which the distances are of.
    """
    kind = "" if definition == "voxel" else "_subvoxel"
    scores = {
        f"hausdorff{kind}_{unit}": hausdorff(distances),
        f"hd95{kind}_{unit}": hausdorff(distances, percentile=95),
        f"assd{kind}_{unit}": average_distance(distances),
    }
    return scores | {f"nsd{kind}_{mm:g}{unit}": surface_dice(distances, mm) for mm in tolerances_mm}


def _percentile(distances: NDArray[np.float64], _: NDArray[np.float64], percentile: float) -> float:
    return float(np.percentile(distances, percentile))


def _weighted_percentile(distances: NDArray[np.float64], weights: NDArray[np.float64], percentile: float) -> float:
    order = np.argsort(distances, kind="stable")
    share = np.cumsum(weights[order])
    place = np.searchsorted(share, percentile / 100 * share[-1] * (1 - 1e-12))  # rounding must not go one too far
    return float(distances[order[min(int(place), len(order) - 1)]])


def _shared_box(pred: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    boxes = [box for box in (bounding_box(pred), bounding_box(reference)) if box is not None]
    if not boxes:
        return None
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in zip(*boxes, strict=True)
    )
