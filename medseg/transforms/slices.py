"""Axial slices of prepared volumes, for 2D networks."""

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import MapTransform


class AxialSliced(MapTransform):
    """Drop the last axis of a patch that is one slice thick: `(C, R, A, 1)` -> `(C, R, A)`."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample with `(C, R, A, 1)` tensors -> sample with `(C, R, A)` tensors."""
        return {**data, **{key: data[key].squeeze(-1) for key in self.key_iterator(data)}}
