"""Reads one case of a data list, with the checks that training needs."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import Transform

from medseg.errors import DataError
from medseg.geometry import grid_difference
from medseg.reading import MaskCode, Scan, read_channels, read_label


class ReadCased(Transform):
    """Read the files of a sample: `image` becomes a tuple of scans, `label` (if any) a checked label scan.

    Args:
        channels: names of the channels, in order.
        labels: name -> value; any other value in a label is refused.
        ignore_label: a further value that marks voxels nobody annotated.
        masks: what the values of mask files mean, where labels are such.
    """

    def __init__(
        self,
        channels: Sequence[str],
        labels: Mapping[str, int],
        ignore_label: int,
        masks: MaskCode | None = None,
    ) -> None:
        self.channels = tuple(channels)
        self.allowed = {*labels.values(), ignore_label}
        self.masks = masks

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample with paths -> sample with scans.

        Raises:
            DataError: if a file cannot be read, label and image differ in grid, or a label value is not the recipe's.
        """
        try:
            sample = {**data, "image": read_channels(data["image"], self.channels)}
            if "label" in data:
                sample["label"] = self._checked_label(data["label"], sample["image"][0])
        except DataError as error:
            raise DataError(f"case {data['case_id']!r}: {error}") from error
        return sample

    def _checked_label(self, path: str, image: Scan) -> Scan:
        label = read_label(path, self.masks)
        difference = grid_difference(image.voxels.shape, image.affine, label.voxels.shape, label.affine)
        if difference:
            raise DataError(f"the label lies on another grid than the image ({difference}); re-export it on that grid.")
        unknown = sorted({int(value) for value in np.unique(label.voxels)} - self.allowed)
        if unknown:
            raise DataError(
                f"the label holds the values {unknown}, the recipe knows {sorted(self.allowed)}; "
                "correct the label, or add the values to the recipe's `labels` or `ignore_label`."
            )
        return label
