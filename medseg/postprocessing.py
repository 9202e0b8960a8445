"""From logits back to labels on the scan's own grid.

The clean-up rules of `medseg.cleanup` are found here too: bundles written before they moved name them here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.cleanup import CleanupRule, KeepLargest, RemoveSmall, RemoveSmallArea
from medseg.data_half import painted_values
from medseg.errors import ConfigError
from medseg.preprocessing import Grid, apply_along, from_working_axes, interpolation_matrix

__all__ = [
    "CleanupRule",
    "KeepLargest",
    "RemoveSmall",
    "RemoveSmallArea",
    "label_maker",
    "logits_to_label",
    "painted_regions",
    "region_logits_to_label",
    "winning_class",
]

SLAB_VOXELS = 2**22  # per class: 16 MB of float32 logits at a time


def logits_to_label(logits: Tensor, grid: Grid) -> NDArray[np.uint8]:
    """Logits on the working grid -> the winning class on the scan's own grid.

    Logits are interpolated linearly, a slab of axial slices at a time, and the winner is a running maximum over the
    classes: the full stack of resampled logits never exists. Ties go to the lower class.

    Args:
        logits: `(C, R, A, S)` on `grid`.
        grid: where the logits lie, and the scan's own grid.

    Returns:
        Labels `(X, Y, Z)` on the scan's grid.
    """
    return _slab_by_slab(logits, grid, winning_class)


def region_logits_to_label(logits: Tensor, grid: Grid, values: Sequence[int]) -> NDArray[np.uint8]:
    """Logits of one sigmoid a region, on the working grid -> a label on the scan's own grid.

    Logits are interpolated as in `logits_to_label`. Each region of probability above 0.5 is painted over the ones
    before it.

    Args:
        logits: `(R, R, A, S)`, one channel a region, on `grid`.
        grid: where the logits lie, and the scan's own grid.
        values: the label value of each region, as `painted_values` gives them.

    Returns:
        Labels `(X, Y, Z)` on the scan's grid; 0 where no region is.

    Raises:
        ConfigError: if the values are not one a channel.
    """
    if len(values) != len(logits):
        raise ConfigError(f"{len(logits)} region channels for {len(values)} label values; give one a channel, in order")
    return _slab_by_slab(logits, grid, partial(painted_regions, values=values))


def label_maker(activation: str, regions: Mapping[str, Sequence[int]]) -> Callable[[Tensor, Grid], NDArray[np.uint8]]:
    """What makes labels of a network's logits: `logits_to_label`, or `region_logits_to_label` with its values.

    Args:
        activation: the recipe's: `"softmax"`, a channel a class, or `"sigmoid"`, a channel a region.
        regions: name -> label values, larger regions before those inside them.

    Raises:
        ConfigError: if there is no such activation, or the regions cannot be painted one over the other.
    """
    if activation == "softmax":
        return logits_to_label
    if activation == "sigmoid":
        return partial(region_logits_to_label, values=painted_values(regions))
    raise ConfigError(f"activation: is {activation!r}; give 'softmax' or 'sigmoid'")


def _slab_by_slab(logits: Tensor, grid: Grid, choose: Callable[[Iterable[Tensor]], Tensor]) -> NDArray[np.uint8]:
    """Interpolate a slab of axial slices of each channel, let `choose` make a label of them, put the slabs together."""
    logits = logits.detach().float().cpu()
    covered = grid.covered
    size = [side.stop - side.start for side in covered]
    weights = [
        interpolation_matrix(n_in, n_out, 1 / scale, first=side.start / scale - start)
        for n_in, n_out, scale, side, start in zip(grid.shape, size, grid.scale, covered, grid.start, strict=True)
    ]
    turned = torch.zeros(grid.turned_shape, dtype=torch.uint8)
    inside = turned[covered]
    thickness = max(1, SLAB_VOXELS // (size[0] * size[1]))
    for start in range(0, size[2], thickness):
        rows = weights[2][start : start + thickness]
        inside[:, :, start : start + thickness] = choose(
            apply_along(weights[1], apply_along(weights[0], apply_along(rows, channel, 2), 0), 1) for channel in logits
        )
    return from_working_axes(turned.numpy(), grid)  # type: ignore[return-value]


def winning_class(channels: Iterable[Tensor]) -> Tensor:
    """Index of the largest channel at each voxel, uint8; ties go to the earlier channel.

    Channels `(*spatial)` are taken one after the other, which is many times faster than `argmax` over a stack.
    """
    remaining = iter(channels)
    best = next(remaining)
    winner = torch.zeros(best.shape, dtype=torch.uint8)
    for index, channel in enumerate(remaining, start=1):
        winner[channel > best] = index
        best = torch.maximum(best, channel)
    return winner


def painted_regions(channels: Iterable[Tensor], values: Sequence[int]) -> Tensor:
    """Value of the last region whose logit is above 0 at each voxel, uint8; 0 where there is none."""
    layers = zip(channels, values, strict=True)
    first, value = next(layers)
    label = (first > 0).to(torch.uint8) * value
    for channel, value in layers:
        label[channel > 0] = value
    return label
