"""Probabilities that a model gave beside its masks, as arrays on disk."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.evaluation.judgment import Judgment

SUFFIXES = (".npz", ".npy")
KEY = "probabilities"


def probabilities_in(folder: Path) -> dict[str, Path]:
    """Files of probabilities below a folder by case id: `<case_id>.npz` or `.npy`, perhaps with `_prob` at the end.

    Raises:
        DataError: if there is none.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files:
        raise DataError(f"{folder.name}: no probabilities in it (<case_id>.npz or .npy); check the path")
    return {path.relative_to(folder).with_name(path.stem.removesuffix("_prob")).as_posix(): path for path in files}


def read_probabilities(path: Path, judgment: Judgment, shape: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Probability of each region.

    Args:
        path: array `(C, X, Y, Z)`; a channel a label value, or a region (then C is their number and no label's).
        judgment: what the channels mean.
        shape: of the mask.

    Raises:
        DataError: if it cannot be read, lies on another grid, has other channels, or is no probability.
    """
    return of_regions(read_array(path, shape), judgment, path.name)


def read_array(path: Path, shape: Sequence[int]) -> NDArray[Any]:
    """The array `(C, X, Y, Z)` of a file, checked.

    Raises:
        DataError: if it cannot be read, lies on another grid, or is no probability.
    """
    try:
        content = np.load(path, allow_pickle=False)
        stored = content if isinstance(content, np.ndarray) else content[KEY if KEY in content else content.files[0]]
    except (OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name}: no array can be read there ({type(error).__name__}); write it again") from error
    if stored.shape[1:] != tuple(shape):
        raise DataError(
            f"{path.name}: probabilities are {stored.shape} and the mask {tuple(shape)}; write them as (C, X, Y, Z)"
        )
    if not np.isfinite(stored).all() or stored.min() < -1e-3 or stored.max() > 1 + 1e-3:
        raise DataError(f"{path.name}: values from {stored.min():.3g} to {stored.max():.3g}; give probabilities")
    return stored


def of_regions(stored: NDArray[Any], judgment: Judgment, name: str) -> dict[str, NDArray[Any]]:
    """Probability of each region from the channels of an array.

    Raises:
        DataError: if there are fewer or more channels than classes or regions.
    """
    regions = judgment.regions
    needed = len(regions) if judgment.sigmoid else 1 + max(judgment.labels.values())
    if len(stored) != needed:
        raise DataError(f"{name}: {len(stored)} channels, and the model has {needed}; write one a class, or a region")
    if judgment.sigmoid:
        return {
            region: np.clip(channel.astype(np.float32), 0, 1) for region, channel in zip(regions, stored, strict=True)
        }
    return {
        region: np.clip(sum(stored[value].astype(np.float32) for value in set(values)), 0, 1)
        for region, values in regions.items()
    }
