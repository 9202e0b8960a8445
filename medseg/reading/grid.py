"""Where the voxels lie in the patient: what is accepted, accepted with a warning, and refused."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.geometry import spacing_mm

USUAL_SPACING_MM = (0.2, 10.0)  # outside: a warning
POSSIBLE_SPACING_MM = (0.02, 50.0)  # outside: lengths in another unit, or a broken header
UNSEEN_SHEAR_DEGREES = 0.1  # rounding in headers; below it a file of 500 mm is off by less than a voxel
MOST_SHEAR_DEGREES = 35.0  # no gantry tilts further
MOST_MM = 1e9  # in any unit; beyond it arithmetic overflows
SINGULAR = 1e-3  # volume of the axes' unit vectors


def checked_affine(affine: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """`affine` itself, refused if it is no grid in space.

    Raises:
        DataError: if an entry is not finite, or the voxels have no volume.
    """
    if not np.isfinite(affine).all():
        raise DataError(f"{name}: the affine has NaN or infinite entries; export the scan again")
    largest = np.abs(affine).max()
    if largest > MOST_MM:
        raise DataError(f"{name}: the affine has entries up to {largest:.3g}; export the scan again")
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not edges.all() or abs(np.linalg.det(affine[:3, :3] / edges)) < SINGULAR:
        raise DataError(f"{name}: the affine is singular, so voxels have no volume; export the scan again")
    return affine


def grid_warnings(shape: Sequence[int], affine: NDArray[np.float64], name: str) -> tuple[str, ...]:
    """What is unusual about a sound grid, one sentence each.

    Args:
        shape: voxels along each stored axis, at least three.
        affine: voxel index to RAS mm, finite and invertible.
        name: file name, for messages.

    Raises:
        DataError: if no scanner makes such a grid: voxels too small or too large for mm, or axes far from right angles.
    """
    spacing = spacing_mm(affine)
    lengths = " x ".join(f"{length:.4g}" for length in spacing)
    if min(spacing) < POSSIBLE_SPACING_MM[0] or max(spacing) > POSSIBLE_SPACING_MM[1]:
        raise DataError(
            f"{name}: voxels of {lengths} mm, so lengths are in another unit or wrong; export the scan again in mm"
        )
    shear = shear_degrees(affine)
    if shear > MOST_SHEAR_DEGREES:
        raise DataError(f"{name}: the axes are {shear:.0f} degrees from right angles; export the scan again")
    warnings = []
    if min(spacing) < USUAL_SPACING_MM[0] or max(spacing) > USUAL_SPACING_MM[1]:
        warnings.append(f"unusual voxels of {lengths} mm; check the unit")
    if shear > UNSEEN_SHEAR_DEGREES:
        warnings.append(f"the axes are {shear:.1f} degrees from right angles (a tilted gantry?); used as they are")
    if 1 in shape[:3]:
        thickness = spacing[list(shape[:3]).index(1)]
        warnings.append(f"a single slice; volumes take its thickness for {thickness:.4g} mm")
    return tuple(warnings)


def shear_degrees(affine: NDArray[np.float64]) -> float:
    """How far the stored axes are from right angles to each other, at most; 0 for every scan without a tilt."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(axes.T @ axes - np.diag(np.einsum("ij,ij->j", axes, axes)))
    return float(np.degrees(np.arcsin(min(1.0, cosines.max()))))
