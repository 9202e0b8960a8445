"""The pipelines of training and validation, composed of the steps that prediction uses."""

from collections.abc import Mapping, Sequence

import torch
from monai.transforms import (
    ClassesToIndicesd,
    Compose,
    DeleteItemsd,
    EnsureTyped,
    RandCropByLabelClassesd,
    SelectItemsd,
    Transform,
)

from medseg.preprocessing import ScanToGrid
from medseg.transforms.grid import PadToPatchd, ScanToGridd
from medseg.transforms.reading import ReadCased
from medseg.transforms.slices import AxialSliced

COORDINATES_PER_CLASS = 20_000  # enough to sample evenly from; bounds the memory of a cached case


def whole_cases(
    scan_to_grid: ScanToGrid, channels: Sequence[str], labels: Mapping[str, int], *, ignore_label: int
) -> Compose:
    """Sample -> image `(C, R, A, S)` on the working grid, label `(1, X, Y, Z)` on the scan's own grid."""
    return Compose([ReadCased(channels, labels, ignore_label), ScanToGridd(scan_to_grid, label="scan")])


def training_patches(
    scan_to_grid: ScanToGrid,
    channels: Sequence[str],
    labels: Mapping[str, int],
    *,
    patch_size: Sequence[int],
    patches_per_case: int,
    class_ratios: Sequence[float],
    augmentation: Sequence[Transform],
    ignore_label: int,
) -> Compose:
    """Sample -> list of augmented patches `(C, *patch_size)` with labels `(1, *patch_size)`.

    Everything before the crop is deterministic, so a caching data set computes it once. A patch centers on a voxel of
    a class drawn by `class_ratios` (background first); a case without that class is sampled from its other classes.
    A two-element `patch_size` gives axial slices.
    """
    volume_patch = [*patch_size, 1] if len(patch_size) == 2 else list(patch_size)
    keys = ("image", "label")
    return Compose(
        [
            ReadCased(channels, labels, ignore_label),
            ScanToGridd(scan_to_grid),
            PadToPatchd(volume_patch, ignore_label),
            ClassesToIndicesd("label", num_classes=len(class_ratios), max_samples_per_class=COORDINATES_PER_CLASS),
            SelectItemsd((*keys, "label_cls_indices")),
            RandCropByLabelClassesd(
                keys,
                label_key="label",
                spatial_size=volume_patch,
                ratios=list(class_ratios),
                num_classes=len(class_ratios),
                num_samples=patches_per_case,
                indices_key="label_cls_indices",
                warn=False,
            ),
            DeleteItemsd("label_cls_indices"),
            *([AxialSliced(keys)] if len(patch_size) == 2 else []),
            *augmentation,
            EnsureTyped(keys, dtype=(torch.float32, torch.uint8), track_meta=False),
        ]
    )
