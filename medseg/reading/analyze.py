"""The grid of Analyze 7.5 pairs, whose header has voxel sizes and one number for the orientation, but no origin.

Reference:
    "ANALYZE 7.5 file format", Mayo Clinic, field `orient`: 0 transverse, 1 coronal and 2 sagittal unflipped, stored
    from right to left; 3 to 5 the same flipped. Programs disagree about which axis a flip means, so it is refused.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.nifti_header import NiftiHeader
from medseg.reading.grid import checked_affine

ORIENT_BYTE = 252
LEFT, ANTERIOR, SUPERIOR = (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
UNFLIPPED = {  # where the three stored axes point
    0: ("transverse", (LEFT, ANTERIOR, SUPERIOR)),
    1: ("coronal", (LEFT, SUPERIOR, ANTERIOR)),
    2: ("sagittal", (ANTERIOR, SUPERIOR, LEFT)),
}
SPM_SUFFIX = ".mat"


def analyze_grid(header: NiftiHeader, path: Path) -> tuple[NDArray[np.float64], str]:
    """Affine by the header's orientation field, its origin at the first voxel, and the warning that goes with it.

    Args:
        header: of the pair.
        path: of the pair, for messages and to look for SPM's orientation file beside it.

    Raises:
        DataError: if the orientation is flipped or unknown, or SPM has placed the scan by a file of its own.
    """
    name = path.name
    if path.with_suffix(SPM_SUFFIX).is_file():
        raise DataError(f"{name}: Analyze with SPM's orientation in a .mat file; convert it to NIfTI with SPM first")
    orient = header.bytes[ORIENT_BYTE]
    if orient not in UNFLIPPED:
        raise DataError(
            f"{name}: Analyze of orientation {orient}, which programs read differently; convert it to NIfTI"
        )
    plane, axes = UNFLIPPED[orient]
    affine = np.eye(4)
    affine[:3, :3] = np.array(axes).T * header.spacing
    if (header.spacing < 0).any():
        raise DataError(f"{name}: negative voxel sizes in the header; convert it to NIfTI")
    return checked_affine(affine, name), (
        f"Analyze 7.5: left and right follow its orientation field ({plane} unflipped, stored from right to left), "
        "which many programs do not set; check the sides"
    )
