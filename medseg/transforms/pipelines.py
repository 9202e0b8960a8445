"""The pipelines of training and validation, composed of the steps that prediction uses."""

from collections.abc import Mapping, Sequence

import torch
from monai.transforms import Compose, EnsureTyped, Transform

from medseg.crf import needs_scan
from medseg.crf.rule import Rule
from medseg.preprocessing import ImageToGrid, ScanToGrid
from medseg.reading import MaskCode
from medseg.transforms.grid import PadToPatchd, ScanToGridd
from medseg.transforms.partial import CLASSES_KEY, LowestClassd, Merger, MergeUnlabeledd
from medseg.transforms.patches import CompactCased, CropByClassd, ImagePrecision
from medseg.transforms.reading import ReadCased, expects_hu
from medseg.transforms.slices import AxialSliced, RepeatEndSlicesd, SliceMajord


def whole_cases(
    scan_to_grid: ScanToGrid | ImageToGrid,
    channels: Sequence[str],
    labels: Mapping[str, int],
    *,
    ignore_label: int,
    masks: MaskCode | None = None,
    cleanup: Sequence[Rule] = (),
) -> Compose:
    """Sample -> image `(C, R, A, S)` on the working grid, label `(1, X, Y, Z)` on the scan's own grid.

    Where a rule of `cleanup` looks at the scan, the first channel's voxels come along under `scan`.
    """
    to_grid = ScanToGridd(scan_to_grid, label="scan", keep_scan=needs_scan(cleanup))
    return Compose([ReadCased(channels, labels, ignore_label, masks, hu=expects_hu(scan_to_grid)), to_grid])


def training_patches(
    scan_to_grid: ScanToGrid | ImageToGrid,
    channels: Sequence[str],
    labels: Mapping[str, int],
    *,
    patch_size: Sequence[int],
    patches_per_case: int,
    class_ratios: Sequence[float],
    augmentation: Sequence[Transform],
    ignore_label: int,
    partial_labels: Merger | None = None,
    masks: MaskCode | None = None,
    neighbors: int = 0,
    image_precision: ImagePrecision = "float32",
) -> Compose:
    """Sample -> list of augmented patches `(C, *patch_size)` with labels `(1, *patch_size)`.

    Everything before the crop is deterministic, so a caching data set computes it once. A patch centers on a voxel of
    a class drawn by `class_ratios` (background first); a case without that class is sampled from its other classes.
    A two-element `patch_size` gives axial slices, with `neighbors` slices on each side as further channels. In cases
    that were annotated in part, `partial_labels` (a `medseg.data.PartialLabels`) says what the label becomes; a merged
    value is drawn as its lowest class. Cases are kept in `image_precision`, see `CompactCased`; patches are float32.
    """
    sliced = len(patch_size) == 2
    smallest = [*patch_size, 1] if sliced else list(patch_size)
    crop = [*patch_size, 2 * neighbors + 1] if sliced else list(patch_size)
    keys = ("image", "label")
    merged = partial_labels.merged if partial_labels else {}
    classes_key = CLASSES_KEY if merged else "label"
    return Compose(
        [
            ReadCased(channels, labels, ignore_label, masks, hu=expects_hu(scan_to_grid)),
            MergeUnlabeledd(partial_labels),
            ScanToGridd(scan_to_grid),
            PadToPatchd(smallest, ignore_label),
            *([RepeatEndSlicesd(neighbors, ignore_label)] if sliced and neighbors else []),
            *([SliceMajord(keys)] if sliced else []),
            *([LowestClassd(merged)] if merged else []),
            CompactCased(class_ratios, classes_key=classes_key, image_precision=image_precision),
            CropByClassd(crop, class_ratios, count=patches_per_case),
            *([AxialSliced(neighbors)] if sliced else []),
            *augmentation,
            EnsureTyped(keys, dtype=(torch.float32, torch.uint8), track_meta=False),
        ]
    )
