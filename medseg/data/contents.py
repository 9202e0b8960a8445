"""What a list of samples holds: a fingerprint of its files, voxels a label."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.layouts import Sample
from medseg.errors import DataError
from medseg.geometry import voxel_volume_ml
from medseg.reading import MaskCode, read_label

READERS = 4  # labels read at a time; unpacking them lets others work


def fingerprint(samples: Sequence[Sample]) -> dict[str, str | int]:
    """Hash over the content of every file, with the counts of cases, labels and files; no paths, any order.

    Files count by case id, by their part (which channel, or label) and by their bytes, so a copy in another layout has
    the same fingerprint. Which regions were annotated counts where it is not all.
    """
    hashes, files = [], 0
    for sample in samples:
        images = [sample["image"]] if isinstance(sample["image"], str) else sample["image"]
        parts = {f"image {channel}": path for channel, path in enumerate(images)}
        if "label" in sample:
            parts["label"] = sample["label"]
        hashes += [_file_hash(sample["case_id"], part, Path(path)) for part, path in parts.items()]
        files += len(parts)
        if "labeled" in sample:
            hashes.append("\n".join((sample["case_id"], "labeled", *sorted(sample["labeled"]))))
    return {
        "sha256": hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest(),
        "cases": len(samples),
        "labels": sum("label" in sample for sample in samples),
        "files": files,
    }


def count_labels(
    samples: Sequence[Sample], n_classes: int, *, ignore_label: int | None = None, masks: MaskCode | None = None
) -> list[int]:
    """Voxels of each label value 0 ... `n_classes` - 1 over all samples that have a label.

    A case that is annotated in part counts with the values in its file: of liver and tumor, the liver of a case with
    its tumors alone counts as background, and the tumors of a case with its liver alone as liver.

    Args:
        samples: cases, whose labels are read.
        n_classes: how many values the recipe has.
        ignore_label: a value that is not counted and not refused.
        masks: what the values of mask files mean, where labels are such.

    Raises:
        DataError: if a label has another value, or cannot be read.
    """
    counts = np.zeros(n_classes, dtype=np.int64)
    for sample in samples:
        if "label" not in sample:
            continue
        for value, amount in _value_counts(read_label(sample["label"], masks).voxels).items():
            if 0 <= value < n_classes:
                counts[value] += amount
            elif value != ignore_label:
                raise DataError(
                    f"case {sample['case_id']!r}: label value {value} in {amount} voxels "
                    f"({Path(sample['label']).name}), but the recipe has 0 to {n_classes - 1}; correct one of them"
                )
    return counts.tolist()


def region_volumes(
    samples: Sequence[Sample], regions: Mapping[str, Sequence[int]], masks: MaskCode | None = None
) -> list[dict[str, Any]]:
    """A row for each sample that has a label: `case_id`, then `<region>_ml`, or `<region>_px` of 2D images.

    A region that was not annotated in a case has no volume in its row.

    Args:
        samples: cases, whose labels are read.
        regions: name -> label values.
        masks: what the values of mask files mean, where labels are such.

    Raises:
        DataError: if a label cannot be read.
    """
    measured = partial(_region_row, regions=regions, masks=masks)
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(measured, [sample for sample in samples if "label" in sample]))


def _region_row(sample: Sample, regions: Mapping[str, Sequence[int]], masks: MaskCode | None) -> dict[str, Any]:
    label = read_label(sample["label"], masks)
    counts = _value_counts(label.voxels)
    unit, size = ("px", 1.0) if label.unit == "px" else ("ml", voxel_volume_ml(label.affine))
    annotated = sample.get("labeled", list(regions))
    row: dict[str, Any] = {"case_id": sample["case_id"]}
    for region in (name for name in regions if name in annotated):
        row[f"{region}_{unit}"] = round(sum(counts.get(value, 0) for value in regions[region]) * size, 3)
    return row


def _value_counts(voxels: NDArray[np.generic]) -> dict[int, int]:
    if voxels.dtype != np.uint8:
        values, amounts = np.unique(voxels, return_counts=True)
        return dict(zip(values.tolist(), amounts.tolist(), strict=True))
    totals = np.zeros(256, dtype=np.int64)
    for plane in np.moveaxis(voxels, -1, 0):  # bincount copies to 8 bytes a voxel
        totals += np.bincount(plane.ravel(order="K"), minlength=256)
    return {int(value): int(totals[value]) for value in np.flatnonzero(totals)}


def _file_hash(case_id: str, part: str, path: Path) -> str:
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(f"{case_id}\n{part}\n{content}".encode()).hexdigest()
