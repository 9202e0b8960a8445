"""The pipelines of training and validation, composed of the steps that prediction uses."""

from collections.abc import Mapping, Sequence
from math import radians

import torch
from monai.transforms import (
    ClassesToIndicesd,
    Compose,
    DeleteItemsd,
    EnsureTyped,
    RandAdjustContrastd,
    RandAffined,
    RandCropByLabelClassesd,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
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


def augmentation(
    spatial_dims: int,
    *,
    flip_axes: Sequence[int] = (),
    rotation_degrees: float = 10.0,
    scaling: float = 0.1,
    spatial_probability: float = 0.3,
    noise: float = 0.02,
    brightness: float = 0.1,
    contrast: float = 0.1,
    intensity_probability: float = 0.3,
) -> list[Transform]:
    """Random flips, rotation with scaling, noise, brightness, contrast and gamma for patches.

    Args:
        spatial_dims: 2 or 3.
        flip_axes: axes mirrored with probability one half; an abdomen has a left and a right, so none by default.
        rotation_degrees: largest angle about each axis.
        scaling: largest relative change of size.
        spatial_probability: how often rotation with scaling happens.
        noise: standard deviation of Gaussian noise, in units of the prepared image.
        brightness: largest shift, in units of the prepared image.
        contrast: largest relative change of contrast, and of the exponent of gamma.
        intensity_probability: how often each change of intensity happens.
    """
    keys = ("image", "label")
    angle = radians(rotation_degrees)
    return [
        *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in flip_axes),
        RandAffined(
            keys,
            prob=spatial_probability,
            rotate_range=[angle] * (1 if spatial_dims == 2 else 3),
            scale_range=[scaling] * spatial_dims,
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        RandGaussianNoised("image", prob=intensity_probability, std=noise),
        RandShiftIntensityd("image", offsets=brightness, prob=intensity_probability),
        RandScaleIntensityd("image", factors=contrast, prob=intensity_probability),
        RandAdjustContrastd("image", prob=intensity_probability, gamma=(1 - contrast, 1 + contrast)),
    ]
