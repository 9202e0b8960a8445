"""One reference of several readers."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError, DataError
from medseg.geometry import grid_difference
from medseg.reading import Scan

How = Literal["staple", "majority"]
WAYS: tuple[How, ...] = ("staple", "majority")
MOST_LABELS = 255  # that leave one of the 256 values of a byte for "undecided"


def consensus(readers: Mapping[str, Scan], how: How, *, ignore_label: int | None = None) -> Scan:
    """The label map that the readers agree on; where they do not, background; ignored where one of them ignores.

    Args:
        readers: name -> label map, all on one grid.
        how: "staple" weighs each reader by how well it fits the others; "majority" counts heads, and needs three.
        ignore_label: value of voxels that are not judged.

    Raises:
        ConfigError: for a majority of two.
        DataError: if the grids differ, or there are more label values than can be told apart.

    Reference:
        Warfield et al., "Simultaneous truth and performance level estimation (STAPLE)", 2004; for several labels
        Rohlfing et al., 2004. SimpleITK's implementations.
    """
    check_count(len(readers), how)
    (name, first), *others = readers.items()
    for other_name, other in others:
        if differs := grid_difference(first.voxels.shape, first.affine, other.voxels.shape, other.affine):
            raise DataError(
                f"the references of {name} and {other_name} are on different grids ({differs}); export them on the "
                "scan's"
            )
    maps = [scan.voxels for scan in readers.values()]
    voxels = np.zeros(first.voxels.shape, dtype=np.result_type(*maps))
    judged = np.ones(voxels.shape, dtype=bool)
    if ignore_label is not None:
        for one in maps:
            judged &= one != ignore_label
    if not judged.all():  # then the type holds the label
        voxels[~judged] = ignore_label
    voxels[judged] = _agreed([one[judged] for one in maps], how)
    return Scan(voxels, first.affine, unit=first.unit)


def _agreed(votes: Sequence[NDArray[np.generic]], how: How) -> NDArray[np.generic]:
    """The label value of each voxel `(N,)`; 0 where none prevails."""
    import SimpleITK

    values = np.unique(np.concatenate([np.unique(one) for one in votes]))
    if len(values) > MOST_LABELS:
        raise DataError(f"the readers' references have {len(values)} label values; {MOST_LABELS} can be told apart")
    numbers = [np.searchsorted(values, one).astype(np.uint8)[np.newaxis] for one in votes]  # an image of one row
    bring_together = SimpleITK.LabelVoting if how == "majority" else SimpleITK.MultiLabelSTAPLE
    agreed = bring_together([SimpleITK.GetImageFromArray(one) for one in numbers], len(values))
    undecided = np.zeros(1, dtype=values.dtype)
    found: NDArray[np.generic] = np.append(values, undecided)[SimpleITK.GetArrayFromImage(agreed)[0]]
    return found


def check_count(n_readers: int, how: How) -> None:
    """Whether so many readers can be brought together so.

    Raises:
        ConfigError: if not.
    """
    if n_readers < 2 or (how == "majority" and n_readers < 3):
        least = 3 if how == "majority" else 2
        raise ConfigError(f"consensus {how}: {n_readers} readers, and it needs {least}; give more with --ref NAME=DIR")
