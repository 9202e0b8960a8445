"""One reference of several readers."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError, DataError
from medseg.geometry import grid_difference
from medseg.reading import Scan

How = Literal["staple", "majority"]
WAYS: tuple[How, ...] = ("staple", "majority")
UNDECIDED = 255


def consensus(readers: Sequence[Scan], how: How) -> Scan:
    """The label map that the readers agree on; where they do not, background.

    Args:
        readers: label maps on one grid.
        how: "staple" weighs each reader by how well it fits the others; "majority" counts heads, and needs three.

    Raises:
        ConfigError: for a majority of two.
        DataError: if the grids differ.

    Reference:
        Warfield et al., "Simultaneous truth and performance level estimation (STAPLE)", 2004; for several labels
        Rohlfing et al., 2004. SimpleITK's implementations.
    """
    check_count(len(readers), how)
    first = readers[0]
    for other in readers[1:]:
        if differs := grid_difference(first.voxels.shape, first.affine, other.voxels.shape, other.affine):
            raise DataError(f"the readers' references are on different grids ({differs}); export them on the scan's")
    import SimpleITK

    images = [SimpleITK.GetImageFromArray(np.ascontiguousarray(scan.voxels.astype(np.uint8))) for scan in readers]
    bring_together = SimpleITK.LabelVoting if how == "majority" else SimpleITK.MultiLabelSTAPLE
    agreed = bring_together(images, UNDECIDED)
    voxels: NDArray[np.uint8] = SimpleITK.GetArrayFromImage(agreed).astype(np.uint8)
    voxels[voxels == UNDECIDED] = 0
    return Scan(voxels, first.affine, unit=first.unit)


def check_count(n_readers: int, how: How) -> None:
    """Whether so many readers can be brought together so.

    Raises:
        ConfigError: if not.
    """
    if n_readers < 2 or (how == "majority" and n_readers < 3):
        least = 3 if how == "majority" else 2
        raise ConfigError(f"consensus {how}: {n_readers} readers, and it needs {least}; give more with --ref NAME=DIR")
