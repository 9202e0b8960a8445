"""How well a prediction covers the reference: confusion matrix, then Dice, IoU and volumes of each region."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion(
    pred: NDArray[Any], label: NDArray[Any], n_classes: int, *, ignore_label: int | None = None
) -> NDArray[np.int64]:
    """Voxels by reference class (row) and predicted class (column), `(n_classes, n_classes)`; read once.

    Args:
        pred: predicted classes, integers `(*spatial)`.
        label: reference classes on the same grid.
        n_classes: classes, background included.
        ignore_label: reference value whose voxels are left out.

    Raises:
        ValueError: if the grids differ or a value is not in `0 ... n_classes - 1`.
    """
    matrix = np.zeros(n_classes * n_classes, dtype=np.int64)
    for pred_voxels, label_voxels in _slabs(pred, label, ignore_label):
        for name, voxels in (("pred", pred_voxels), ("label", label_voxels)):
            if voxels.size and voxels.max() >= n_classes:
                raise ValueError(f"{name} has value {voxels.max()}; expected 0 to {n_classes - 1}")
        matrix += np.bincount(label_voxels.astype(np.intp) * n_classes + pred_voxels, minlength=matrix.size)
    return matrix.reshape(n_classes, n_classes)


def region_overlap(
    pred: NDArray[Any],
    label: NDArray[Any],
    regions: Mapping[str, Sequence[int]],
    *,
    voxel_ml: float,
    ignore_label: int | None = None,
) -> dict[str, dict[str, float]]:
    """Overlap and volumes of each region: `{region: {"dice", "iou", "pred_ml", "reference_ml"}}`.

    Dice and IoU are nan where neither reference nor prediction has the region, 0 where only one has. Volumes leave out
    ignored voxels too.

    Args:
        pred: predicted classes, non-negative integers `(*spatial)`.
        label: reference classes on the same grid.
        regions: class values of each region; other values belong to none.
        voxel_ml: volume of a voxel in mL.
        ignore_label: reference value whose voxels are left out.

    Raises:
        ValueError: if the grids differ or a value is negative.

    Reference:
        Dice, "Measures of the Amount of Ecologic Association Between Species", Ecology 1945; Jaccard, 1912.
    """
    other = 1 + max(
        (value for values in regions.values() for value in values), default=0
    )  # all values above share a bin
    matrix = np.zeros((other + 1) ** 2, dtype=np.int64)
    for pred_voxels, label_voxels in _slabs(pred, label, ignore_label):
        row, column = (np.minimum(voxels.astype(np.intp), other) for voxels in (label_voxels, pred_voxels))
        matrix += np.bincount(row * (other + 1) + column, minlength=matrix.size)
    table = matrix.reshape(other + 1, other + 1)
    return {region: _overlap(table, sorted(set(values)), voxel_ml) for region, values in regions.items()}


def mean_over_cases(rows: Sequence[Mapping[str, Mapping[str, float]]], region: str, key: str) -> float:
    """Mean of `key` over the cases whose reference has the region; nan if none has.

    Args:
        rows: what `region_overlap` returned, one a case; without the regions that were not annotated.
        region: name of the region.
        key: "dice", "iou", "pred_ml" or "reference_ml".
    """
    values = [row[region][key] for row in _having(rows, region)]
    return float(np.mean(values)) if values else float("nan")


def count_cases(rows: Sequence[Mapping[str, Mapping[str, float]]], region: str) -> int:
    """How many cases `mean_over_cases` takes the mean over."""
    return len(_having(rows, region))


def voxel_scores(tp: int, fp: int, fn: int) -> dict[str, float | None]:
    """`dice`, `iou`, `precision` and `recall` of a region from its voxel counts; None where nothing is divided by.

    Reference:
        Dice, 1945; Jaccard, 1912. Their relation to each other: Taha and Hanbury, "Metrics for evaluating 3D medical
        image segmentation", BMC Medical Imaging 2015.
    """
    return {
        "dice": ratio(2 * tp, 2 * tp + fp + fn),
        "iou": ratio(tp, tp + fp + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
    }


def class_scores(matrix: NDArray[np.int64]) -> dict[str, float | None]:
    """Pixel accuracy and the means over classes, from one confusion matrix or the sum of many.

    The mean pixel accuracy has two forms, and papers give either without saying which. The recall form, the mean of
    TP / (TP + FN) over the classes in the reference, is that of the formula in the FCN paper; the precision form, of
    TP / (TP + FP) over the classes in the prediction, is what some describe in words.

    Args:
        matrix: voxels by reference class (row) and predicted class, as `confusion` gives it.

    Returns:
        `pixel_accuracy`, `mean_pixel_accuracy_recall`, `mean_pixel_accuracy_precision`, `mean_iou` (over classes in
        either) and `frequency_weighted_iou`; None without any voxel.

    Reference:
        Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
    """
    right = np.diag(matrix).astype(np.float64)
    of_reference, of_pred = matrix.sum(axis=1), matrix.sum(axis=0)
    either = of_reference + of_pred - right
    total = float(matrix.sum())
    return {
        "pixel_accuracy": ratio(right.sum(), total),
        "mean_pixel_accuracy_recall": _mean_ratio(right, of_reference),
        "mean_pixel_accuracy_precision": _mean_ratio(right, of_pred),
        "mean_iou": _mean_ratio(right, either),
        "frequency_weighted_iou": ratio((of_reference * right / np.maximum(either, 1)).sum(), total),
    }


def _mean_ratio(parts: NDArray[np.float64], wholes: NDArray[Any]) -> float | None:
    there = wholes > 0
    return float((parts[there] / wholes[there]).mean()) if there.any() else None


def ratio(part: float, whole: float) -> float | None:
    """`part / whole`, None if there is nothing to divide by."""
    return float(part / whole) if whole else None


def _having(rows: Sequence[Mapping[str, Mapping[str, float]]], region: str) -> list[Mapping[str, Mapping[str, float]]]:
    """The cases whose reference has the region; none in which it was not annotated."""
    return [row for row in rows if region in row and row[region]["reference_ml"] > 0]


def _overlap(table: NDArray[np.int64], values: Sequence[int], voxel_ml: float) -> dict[str, float]:
    both = int(table[np.ix_(values, values)].sum())
    reference, predicted = int(table[values, :].sum()), int(table[:, values].sum())
    any_voxels = reference + predicted
    return {
        "dice": 2 * both / any_voxels if any_voxels else float("nan"),
        "iou": both / (any_voxels - both) if any_voxels else float("nan"),
        "pred_ml": predicted * voxel_ml,
        "reference_ml": reference * voxel_ml,
    }


def _slabs(
    pred: NDArray[Any], label: NDArray[Any], ignore_label: int | None
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Both maps, slab by slab as flat voxels, without the ignored ones: a whole scan's pairs would take gigabytes."""
    pred, label = np.asarray(pred), np.asarray(label)
    if pred.shape != label.shape:
        raise ValueError(f"pred is {pred.shape} and label {label.shape}; bring the prediction to the label's grid")
    if pred.flags.f_contiguous:  # as NIfTI files come: the last axis is the outermost in memory
        pred, label = pred.T, label.T
    for pred_slab, label_slab in zip(pred, label, strict=True):
        pred_voxels, label_voxels = pred_slab.reshape(-1), label_slab.reshape(-1)
        if ignore_label is not None:
            kept = label_voxels != ignore_label
            pred_voxels, label_voxels = pred_voxels[kept], label_voxels[kept]
        if min(pred_voxels.min(initial=0), label_voxels.min(initial=0)) < 0:
            raise ValueError(
                "pred or label has negative values; classes are 0 and up, pass a negative ignore_label by name"
            )
        yield pred_voxels, label_voxels
