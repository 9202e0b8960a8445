"""Reads one case of a data list, with the checks that training needs."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform

from medseg.errors import DataError
from medseg.geometry import grid_difference
from medseg.preprocessing import ImageToGrid, ScanToGrid, Window
from medseg.reading import MaskCode, Scan, read_channels, read_label
from medseg.reading.plausibility import check_hu


def expects_hu(to_grid: ScanToGrid | ImageToGrid) -> bool:
    """Whether a recipe's intensities are a window of Hounsfield units, so that scans must be CT."""
    return isinstance(to_grid, ScanToGrid) and isinstance(to_grid.intensity, Window)


class ReadCased(Transform):
    """Read the files of a sample: `image` becomes a tuple of scans, `label` (if any) a checked label scan.

    Args:
        channels: names of the channels, in order.
        labels: name -> value; any other value in a label is refused.
        ignore_label: a further value that marks voxels nobody annotated.
        masks: what the values of mask files mean, where labels are such.
        hu: whether images must be CT in Hounsfield units.
    """

    def __init__(
        self,
        channels: Sequence[str],
        labels: Mapping[str, int],
        ignore_label: int,
        masks: MaskCode | None = None,
        *,
        hu: bool = False,
    ) -> None:
        self.channels = tuple(channels)
        self.allowed = {*labels.values(), ignore_label}
        self.masks = masks
        self.hu = hu

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample with paths -> sample with scans.

        Raises:
            DataError: if a file cannot be read or is no CT where one is wanted, label and image differ in grid, or a
                label value is not the recipe's.
        """
        try:
            sample = {**data, "image": self._image(data["image"])}
            if "label" in data:
                sample["label"] = self._checked_label(data["label"], sample["image"][0])
        except DataError as error:
            raise DataError(f"case {data['case_id']!r}: {error}") from error
        return sample

    def _image(self, image: str | Sequence[str]) -> tuple[Scan, ...]:
        scans = read_channels(image, self.channels)
        if not self.hu:
            return scans
        names = [image] * len(scans) if isinstance(image, str | Path) else list(image) * (len(scans) // len(image))
        return tuple(check_hu(scan, Path(name).name) for scan, name in zip(scans, names, strict=True))

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
