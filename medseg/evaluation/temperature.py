"""The temperature of a model, from the probabilities that it gave for validation cases."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError, DataError
from medseg.evaluation.judgment import Judgment
from medseg.evaluation.pairing import masks_in
from medseg.evaluation.probabilities import check_channels, probabilities_in, read_array, temperature_told
from medseg.geometry import bounding_box
from medseg.metrics import fit_temperature, log_probabilities
from medseg.reading import read_label

VOXELS_A_CASE = 20_000
MARGIN = 8  # voxels around what is labeled: far away every model is sure, and right
LEAST = 1e-6


def temperature_of(
    probabilities: Path,
    references: Path,
    judgment: Judgment,
    *,
    case_ids: Collection[str] | None = None,
    seed: int = 0,
) -> tuple[float, int]:
    """The temperature that fits the probabilities to the references, and the number of cases it is fitted to.

    Args:
        probabilities: folder of arrays `(C, X, Y, Z)`, a channel a class (with a sigmoid, a region).
        references: folder of references.
        judgment: what channels and labels mean.
        case_ids: cases to take, such as the judged ones; all if None.
        seed: of the voxels drawn: so many a case, in the box around what is labeled or predicted.

    Raises:
        DataError: if no case has both, or an array does not fit.
        ConfigError: if all probabilities are 0 or 1, which no temperature softens.

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    arrays, labels = probabilities_in(probabilities), masks_in(references)
    common = sorted(arrays.keys() & labels.keys())
    if not common:
        raise DataError(f"{probabilities.name}: no case of it has a reference; name files alike")
    if case_ids is not None:
        common = [case_id for case_id in common if case_id in case_ids]
    if not common:
        raise DataError(f"{probabilities.name}: no case of it was judged; see the card for why")
    rng = np.random.default_rng(seed)
    drawn = [_draw(arrays[case_id], labels[case_id], judgment, rng) for case_id in common]
    logits = np.concatenate([one for one, _ in drawn], axis=1)
    truth = np.concatenate([one for _, one in drawn], axis=-1)
    if not ((logits > np.log(LEAST)) & (logits < np.log1p(-LEAST))).any() and not judgment.sigmoid:
        raise ConfigError(f"{probabilities.name}: all probabilities are 0 or 1; write them as the model gave them")
    ignored = None if judgment.sigmoid else judgment.ignore_label
    return fit_temperature(logits, truth, ignore_label=ignored, sigmoid=judgment.sigmoid), len(common)


def _draw(
    array: Path, reference: Path, judgment: Judgment, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits `(C, N)`, before any temperature, and labels (with a sigmoid `(C, N)`, 0 or 1) of voxels of a case."""
    scan = read_label(reference, judgment.code_of_references())
    label = scan.voxels.astype(np.int64)
    stored, told = read_array(array, scan), temperature_told(array)
    check_channels(stored, judgment, array.name)
    if not judgment.sigmoid:
        _check_values(label, len(stored), judgment, reference.name)
    inside = label > 0 if judgment.sigmoid else (label > 0) | (stored.argmax(axis=0) > 0)
    box = bounding_box(inside) or tuple(slice(0, size) for size in label.shape)
    wide = tuple(slice(max(part.start - MARGIN, 0), part.stop + MARGIN) for part in box)
    label = label[wide].reshape(-1)
    found = stored[(slice(None), *wide)].reshape(len(stored), -1)
    kept = np.arange(label.size)
    if judgment.ignore_label is not None:
        kept = kept[label != judgment.ignore_label]
    if kept.size > VOXELS_A_CASE:
        kept = rng.choice(kept, VOXELS_A_CASE, replace=False)
    label, found = label[kept], found[:, kept].astype(np.float64)
    if not judgment.sigmoid:
        return told * log_probabilities(found), label
    clipped = np.clip(found, LEAST, 1 - LEAST)
    regions = np.stack([np.isin(label, values) for values in judgment.regions.values()]).astype(np.int64)
    return told * np.log(clipped / (1 - clipped)), regions


def _check_values(label: NDArray[np.int64], n_classes: int, judgment: Judgment, name: str) -> None:
    """Whether each value of a reference is a class or ignored."""
    unknown = label[(label < 0) | (label >= n_classes)]
    if judgment.ignore_label is not None:
        unknown = unknown[unknown != judgment.ignore_label]
    if unknown.size:
        raise DataError(
            f"{name}: label value {unknown[0]}, and the model's are 0 to {n_classes - 1}; correct the label"
        )
