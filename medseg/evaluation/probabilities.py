"""Probabilities that a model gave beside its masks, as arrays on disk."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.evaluation.judgment import Judgment
from medseg.geometry import grid_difference
from medseg.probability_file import PROBABILITIES
from medseg.reading import Scan, read_grid

SUFFIXES = (".npz", ".npy")
NIFTI_ENDINGS = ("_probabilities.nii.gz", "_probabilities.nii")
KEY = "probabilities"
READ_ERRORS = (OSError, EOFError, ValueError, IndexError, zipfile.BadZipFile, zlib.error, ImageFileError)
BYTES_A_VALUE = 12  # float32, and what inflating and scaling it takes; measured with NIfTI, the hungriest


def probabilities_in(folder: Path) -> dict[str, Path]:
    """Files of probabilities below a folder by case id.

    They are `<case_id>.npz` or `.npy`, perhaps with `_prob` at the end, or `<case_id>_probabilities.nii.gz` as
    `medseg predict --probabilities` writes them.

    Raises:
        DataError: if there is none.
    """
    files = {
        path.relative_to(folder).with_name(name).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if not path.name.startswith(".") and (name := _name(path)) and path.is_file()
    }
    if not files:
        raise DataError(
            f"{folder.name}: no probabilities in it (<case_id>.npz, .npy or {NIFTI_ENDINGS[0]}); check the path"
        )
    return files


def temperature_told(path: Path) -> float:
    """What the logits were divided by before they became the probabilities of a file; 1 where it does not say so."""
    if not path.name.endswith(NIFTI_ENDINGS):
        return 1.0
    said = nib.load(path).header["descrip"].item().decode("ascii", "replace")
    try:
        return float(said.removeprefix(PROBABILITIES)) if said.startswith(PROBABILITIES) else 1.0
    except ValueError:
        return 1.0


def read_probabilities(path: Path, judgment: Judgment, reference: Scan) -> dict[str, NDArray[Any]]:
    """Probability of each region.

    Args:
        path: array `(C, X, Y, Z)`, of NIfTI `(X, Y, Z, C)`; a channel a label value, or a region (then C is their
            number and no label's).
        judgment: what the channels mean.
        reference: whose grid they are on.

    Raises:
        DataError: if it cannot be read, lies on another grid, has other channels, or is no probability.
    """
    return of_regions(read_array(path, reference), judgment, path.name)


def read_array(path: Path, reference: Scan) -> NDArray[Any]:
    """The array `(C, X, Y, Z)` of a file, checked; where in the patient it lies, NIfTI alone says.

    Raises:
        DataError: if it cannot be read, lies on another grid, or is no probability.
    """
    shape, affine = reference.voxels.shape, reference.affine
    stored: NDArray[Any]
    try:
        if path.name.endswith(NIFTI_ENDINGS):
            stored = np.moveaxis(nib.load(path).get_fdata(dtype=np.float32), -1, 0)
        else:
            stored = _loaded(path)
    except READ_ERRORS as error:
        raise DataError(f"{path.name}: no array can be read there ({type(error).__name__}); write it again") from error
    if stored.shape[1:] != shape:
        raise DataError(
            f"{path.name}: probabilities are {stored.shape} and the mask {shape}; write them as (C, X, Y, Z)"
        )
    if path.name.endswith(NIFTI_ENDINGS) and (differs := grid_difference(shape, read_grid(path)[1], shape, affine)):
        raise DataError(
            f"{path.name}: not on the reference's grid ({differs}); write probabilities on the scan's own grid"
        )
    if not np.isfinite(stored).all() or stored.min() < -1e-3 or stored.max() > 1 + 1e-3:
        raise DataError(f"{path.name}: values from {stored.min():.3g} to {stored.max():.3g}; give probabilities")
    return stored


def memory_mb(path: Path) -> int:
    """MB that reading the array of a file takes, by its header; 0 for one that cannot be read."""
    try:
        return math.prod(_shape(path)) * BYTES_A_VALUE // 2**20
    except READ_ERRORS:
        return 0


def _shape(path: Path) -> tuple[int, ...]:
    if path.name.endswith(NIFTI_ENDINGS):
        return tuple(nib.load(path).shape)
    if not zipfile.is_zipfile(path):
        return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape)
    with zipfile.ZipFile(path) as content:
        names = content.namelist()
        with content.open(f"{KEY}.npy" if f"{KEY}.npy" in names else names[0]) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return read(stream)[0]


def _name(path: Path) -> str:
    """Last part of the case id; empty if it is no file of probabilities."""
    if path.suffix.lower() in SUFFIXES:
        return path.stem.removesuffix("_prob")
    return next((path.name.removesuffix(ending) for ending in NIFTI_ENDINGS if path.name.endswith(ending)), "")


def _loaded(path: Path) -> NDArray[Any]:
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content
    with content:
        return np.asarray(content[KEY if KEY in content else content.files[0]])


def of_regions(stored: NDArray[Any], judgment: Judgment, name: str) -> dict[str, NDArray[Any]]:
    """Probability of each region from the channels of an array.

    Raises:
        DataError: if there are fewer or more channels than classes or regions.
    """
    check_channels(stored, judgment, name)
    regions = judgment.regions
    if judgment.sigmoid:
        return {
            region: np.clip(channel.astype(np.float32), 0, 1) for region, channel in zip(regions, stored, strict=True)
        }
    return {
        region: np.clip(sum(stored[value].astype(np.float32) for value in set(values)), 0, 1)
        for region, values in regions.items()
    }


def check_channels(stored: NDArray[Any], judgment: Judgment, name: str) -> None:
    """Whether an array has the model's channels.

    Raises:
        DataError: if there are fewer or more than classes or regions.
    """
    needed = len(judgment.regions) if judgment.sigmoid else 1 + max(judgment.labels.values())
    if len(stored) != needed:
        raise DataError(f"{name}: {len(stored)} channels, and the model has {needed}; write one a class, or a region")
