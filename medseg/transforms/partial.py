"""Partial labels in the training pipeline; what they become is decided by the recipe's `partial_labels`."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from monai.transforms import Transform
from numpy.typing import NDArray

from medseg.errors import DataError

CLASSES_KEY = "label_classes"


class Merger(Protocol):
    """Gives labels that were annotated in part the values that the loss knows; `medseg.data.PartialLabels` is one."""

    merged: dict[int, list[int]]

    def __call__(self, label: NDArray[Any], labeled: Sequence[str]) -> NDArray[np.uint8]:
        """Label of a case in which the regions `labeled` were annotated -> a new label of the same shape."""


class MergeUnlabeledd(Transform):
    """Merge the label scan of a case that has `labeled`, the regions that were annotated; other cases pass.

    Args:
        partial_labels: the recipe's; None if no case may be annotated in part.
    """

    def __init__(self, partial_labels: Merger | None) -> None:
        self.partial_labels = partial_labels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample with scans -> sample with scans.

        Raises:
            DataError: if the case is annotated in part and the recipe does not know.
        """
        if "labeled" not in data:
            return dict(data)
        if self.partial_labels is None:
            raise DataError(
                f"case {data['case_id']!r}: only {', '.join(data['labeled'])} was annotated, but training is not told; "
                "set partial_labels of train::preprocessing and merged of loss as configs/unet_liver.json does"
            )
        try:
            voxels = self.partial_labels(data["label"].voxels, data["labeled"])
        except DataError as error:
            raise DataError(f"case {data['case_id']!r}: {error}") from error
        return {**data, "label": replace(data["label"], voxels=voxels)}


class LowestClassd(Transform):
    """The label under another key, each merged value as its lowest class: what a patch may center on.

    Args:
        merged: value -> the classes it stands for.
        key: of the copy.
    """

    def __init__(self, merged: Mapping[int, Sequence[int]], key: str = CLASSES_KEY) -> None:
        self.merged, self.key = dict(merged), key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample with `label` `(1, *spatial)` -> sample with the copy too."""
        classes = torch.as_tensor(data["label"]).clone()
        for value, members in self.merged.items():
            classes[classes == value] = min(members)
        return {**data, self.key: classes}
