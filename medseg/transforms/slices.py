"""Axial slices of prepared volumes for 2D networks; with `neighbors`, the slices around each one as channels too."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import MapTransform, Transform
from torch.nn.functional import pad

from medseg.preprocessing import neighbor_slices


class SliceMajord(MapTransform):
    """Lay tensors `(C, R, A, S)` out in memory one axial slice after the other; shape and values stay.

    A crop of one slice then reads that slice alone, not all of the volume, from a case that is mapped from disk.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample -> sample with the same tensors in another layout."""
        turned = {key: data[key].movedim(-1, 0).contiguous().movedim(0, -1) for key in self.key_iterator(data)}
        return {**data, **turned}


class RepeatEndSlicesd(Transform):
    """Repeat the first and last axial slice of the image `neighbors` times; the label gets `ignore_label` there.

    So every slice of the case may be the middle of a crop, and no crop centers on a repeated one.

    Args:
        neighbors: slices on each side.
        ignore_label: value of the label's new slices; no class.
    """

    def __init__(self, neighbors: int, ignore_label: int) -> None:
        self.neighbors, self.ignore_label = neighbors, ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample with `(C, R, A, S)` tensors -> sample with `(C, R, A, S + 2 * neighbors)` tensors."""
        image = data["image"]
        slices = torch.arange(-self.neighbors, image.shape[-1] + self.neighbors).clamp(0, image.shape[-1] - 1)
        label = pad(data["label"], (self.neighbors, self.neighbors), value=self.ignore_label)
        return {**data, "image": image[..., slices], "label": label}


class AxialSliced(Transform):
    """Patch of one slice, or of one with its neighbors -> 2D patch.

    Args:
        neighbors: slices on each side that become channels, as `medseg.preprocessing.neighbor_slices` orders them.
    """

    def __init__(self, neighbors: int = 0) -> None:
        self.neighbors = neighbors

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Image `(C, R, A, 2 n + 1)` and label `(1, R, A, 2 n + 1)` -> `(C (2 n + 1), R, A)`, `(1, R, A)`."""
        middle = slice(self.neighbors, self.neighbors + 1)
        image = neighbor_slices(data["image"], self.neighbors, middle)
        return {**data, "image": image[..., 0], "label": data["label"][..., self.neighbors]}
