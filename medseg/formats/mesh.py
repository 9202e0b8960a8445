"""Surfaces of structures as STL: closed, in world mm, with the volume of the mask.

Every connected piece is meshed by itself, at the level of the slightly blurred mask at which the surface encloses the
piece's own volume: a surface at the fixed level 0.5 would lose a small lesion altogether.

Reference:
    Lewiner et al., "Efficient Implementation of Marching Cubes' Cases with Topological Guarantees", 2003 (as
    implemented by scikit-image); the choice of the level is ours.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.geometry import connected_lesions
from medseg.writing import aside

BLUR_VOXELS = 0.7  # takes the stairs off; the level gives the volume back
AROUND = 4  # voxels of margin: the blur ends inside it, so that every surface is closed
VOLUME_TOLERANCE = 0.002
LEVELS = (0.005, 0.995)
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
STL_HEADER = b"medseg SPACE=LPS"  # 3D Slicer reads the space from here
HEADER_BYTES = 80

Mesh = tuple[NDArray[np.float64], NDArray[np.int64]]


def surface(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> Mesh:
    """Closed surface around a mask.

    Args:
        mask: `(X, Y, Z)`.
        affine: `(4, 4)`, voxel index to world mm.

    Returns:
        Vertices `(V, 3)` in world mm and triangles `(T, 3)`, counterclockwise seen from outside; none for an empty
        mask.
    """
    from scipy.ndimage import find_objects

    pieces = connected_lesions(mask)
    vertices: list[NDArray[np.float64]] = [np.empty((0, 3))]
    triangles: list[NDArray[np.int64]] = [np.empty((0, 3), dtype=np.int64)]
    count = 0
    for number, box in enumerate(find_objects(pieces), start=1):
        points, faces = _piece(pieces[box] == number)
        points += [part.start for part in box]
        vertices.append(points @ affine[:3, :3].T + affine[:3, 3])
        triangles.append(faces + count)
        count += len(points)
    faces = np.concatenate(triangles)
    return np.concatenate(vertices), faces[:, ::-1] if np.linalg.det(affine[:3, :3]) < 0 else faces


def enclosed_volume(mesh: Mesh) -> float:
    """Volume inside a closed surface, in the cubed unit of its vertices; positive if triangles face outward."""
    first, second, third = (mesh[0][mesh[1][:, corner]] for corner in range(3))
    return float(np.einsum("ij,ij->i", first, np.cross(second, third)).sum() / 6)


def write_stl(mask: NDArray[np.bool_], affine: NDArray[np.float64], path: str | Path) -> None:
    """Write the surface of a structure as binary STL, whole or not at all.

    Coordinates are mm in DICOM's patient space (to the left, posterior, superior), as programs that read STL without
    further words expect; the header says so.

    Args:
        mask: `(X, Y, Z)`, not empty.
        affine: `(4, 4)`, voxel index to RAS mm.
        path: where to write; an older file is replaced.

    Raises:
        DataError: if the mask is empty.
    """
    import trimesh

    target = Path(path)
    if not mask.any():
        raise DataError(f"{target.name}: the structure is empty, so it has no surface; leave it out")
    vertices, triangles = surface(mask, RAS_TO_LPS @ affine)
    content: bytes = trimesh.Trimesh(vertices, triangles, process=False).export(file_type="stl")
    with aside(target) as temporary:
        temporary.write_bytes(STL_HEADER.ljust(HEADER_BYTES, b"\0") + content[HEADER_BYTES:])


def _piece(mask: NDArray[np.bool_]) -> Mesh:
    """Surface of one connected piece, in voxel indices of the array given."""
    from scipy.ndimage import gaussian_filter
    from scipy.optimize import brentq
    from skimage.measure import marching_cubes

    blurred = gaussian_filter(np.pad(mask.astype(np.float32), AROUND), BLUR_VOXELS, truncate=AROUND / BLUR_VOXELS)
    wanted = float(mask.sum())

    def at(level: float) -> Mesh:
        points, faces, _, _ = marching_cubes(blurred, level, allow_degenerate=False)
        return points.astype(np.float64), faces.astype(np.int64)[:, ::-1]

    def excess(level: float) -> float:
        difference = abs(enclosed_volume(at(level))) / wanted - 1
        return 0.0 if abs(difference) < VOLUME_TOLERANCE else difference

    low, high = LEVELS[0], min(LEVELS[1], float(blurred.max()) * 0.999)
    level = brentq(excess, low, high, xtol=1e-5) if excess(0.5 * (low + high)) else 0.5 * (low + high)
    points, faces = at(level)
    if enclosed_volume((points, faces)) < 0:
        faces = faces[:, ::-1]
    return points - AROUND, faces
