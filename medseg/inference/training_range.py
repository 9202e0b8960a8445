"""What scans a model has learned from, and in what a new one is unlike all of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import spacing_mm, world_axes
from medseg.reading import Header, Scan

AXES = ("right", "front", "head")
PERCENTILES = (5, 50, 95)
SAMPLES = 500_000  # voxels that percentiles are taken of, at regular distances
LENGTH_MARGIN = 0.1  # relative; training ranges come from few scans
INTENSITY_MARGIN = 0.1  # of the span from the lowest to the highest percentile in training


def training_range(
    cases: Iterable[Sequence[Scan]], *, channels: Sequence[str], modality: str = "", headers: Iterable[Header] = ()
) -> dict[str, Any]:
    """The range of the cases that a model learns from, for its bundle's metadata as `training_range`.

    Args:
        cases: the channels of each case whose voxels are looked at; one case at a time is held.
        channels: their names.
        modality: such as "CT", if it is known.
        headers: of the cases whose voxels are not looked at; their spacing and field of view count.

    Returns:
        JSON data: `cases`, `channels`, `modality`, `spacing_mm` and `field_of_view_mm` (`low` and `high` along right,
        front and head), `percentiles` (of each channel, by percentile, the lowest and the highest).
    """
    lengths, views = [], []
    values: list[list[list[float]]] = []
    for scans in cases:
        lengths.append(_lengths_mm(scans[0].affine))
        views.append(_field_of_view_mm(scans[0].affine, scans[0].voxels.shape))
        values.append([_percentiles(scan.voxels) for scan in scans])
    for header in headers:
        lengths.append(_lengths_mm(header.affine))
        views.append(_field_of_view_mm(header.affine, header.shape))
    found: dict[str, Any] = {"cases": len(lengths), "channels": list(channels), "modality": modality}
    for name, rows in (("spacing_mm", lengths), ("field_of_view_mm", views)):
        found[name] = {"low": np.min(rows, axis=0).round(3).tolist(), "high": np.max(rows, axis=0).round(3).tolist()}
    low, high = np.min(values, axis=0).round(3).tolist(), np.max(values, axis=0).round(3).tolist()
    found["percentiles"] = {
        channel: {str(percent): [low[c][p], high[c][p]] for p, percent in enumerate(PERCENTILES)}
        for c, channel in enumerate(channels)
    }
    return found


def outside_range(scans: Sequence[Scan], known: Mapping[str, Any] | None) -> list[str]:
    """In what a case lies outside the range of the model's training, one phrase each.

    Args:
        scans: the case's channels.
        known: as of `training_range`; None for a model that does not tell.
    """
    if not known or scans[0].unit != "mm":
        return []
    found = []
    trained = known.get("modality", "")
    for modality in dict.fromkeys(scan.modality for scan in scans):
        if trained and modality and modality != trained:
            found.append(f"modality {modality}, trained on {trained}")
    affine, shape = scans[0].affine, scans[0].voxels.shape
    for name, title, lengths in (
        ("spacing_mm", "spacing", _lengths_mm(affine)),
        ("field_of_view_mm", "field of view", _field_of_view_mm(affine, shape)),
    ):
        for axis, length, low, high in zip(AXES, lengths, known[name]["low"], known[name]["high"], strict=True):
            if not low * (1 - LENGTH_MARGIN) <= length <= high * (1 + LENGTH_MARGIN):
                found.append(f"{title} along {axis} {length:.4g} mm, trained on {low:.4g} to {high:.4g} mm")
    for scan, (channel, ranges) in zip(scans, known["percentiles"].items(), strict=False):
        spans = [ranges[str(percent)] for percent in PERCENTILES]
        margin = INTENSITY_MARGIN * (spans[-1][1] - spans[0][0])
        for percent, value, (low, high) in zip(PERCENTILES, _percentiles(scan.voxels), spans, strict=True):
            if not low - margin <= value <= high + margin:
                found.append(
                    f"{percent}th percentile of {channel} {value:.4g}, trained on {low:.4g} to {high:.4g}"
                    f"{' HU' if known.get('modality') == 'CT' else ''}"
                )
    return [f"unlike the training scans: {phrase}" for phrase in found]


def _lengths_mm(affine: NDArray[np.float64]) -> list[float]:
    """Voxel edges along right, front and head."""
    edges = spacing_mm(affine)
    return [edges[axis] for axis in _axes(affine)]


def _field_of_view_mm(affine: NDArray[np.float64], shape: Sequence[int]) -> list[float]:
    edges = spacing_mm(affine)
    return [edges[axis] * shape[axis] for axis in _axes(affine)]


def _axes(affine: NDArray[np.float64]) -> list[int]:
    """The scan's axis along right, front and head."""
    return [int(axis) for axis in np.argsort([world for world, _ in world_axes(affine)])]


def _percentiles(voxels: NDArray[np.generic]) -> list[float]:
    flat = voxels.ravel(order="K")
    step = max(1, flat.size // SAMPLES)
    return [float(value) for value in np.percentile(flat[::step].astype(np.float32), PERCENTILES)]
