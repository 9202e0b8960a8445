"""The overlap-tile strategy: unpadded convolutions eat a margin, which the image's mirror beyond its border supplies.

Reference: Ronneberger et al., "U-Net", MICCAI 2015, arXiv:1505.04597, figure 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class OverlapTile:
    """Mirrors an image so far beyond its border that a U-Net of unpadded convolutions answers for all of it.

    Args:
        strides: one number an axis, of each step from a level to the next.
        lost: voxels that all convolutions of one visit of a level eat, one number an axis, of each level.
    """

    def __init__(self, strides: Sequence[Sequence[int]], lost: Sequence[Sequence[int]]) -> None:
        self.strides, self.lost = [tuple(step) for step in strides], [tuple(level) for level in lost]

    def __call__(self, image: Tensor) -> Tensor:
        """`(B, C, *spatial)` -> `(B, C, *larger)`."""
        for axis, size in enumerate(image.shape[2:]):
            before, after = tile_margins(size, [step[axis] for step in self.strides], [eat[axis] for eat in self.lost])
            image = mirror(image, axis + 2, before, after)
        return image


def tile_margins(size: int, strides: Sequence[int], lost: Sequence[int]) -> tuple[int, int]:
    """Voxels to add before and after an axis, so that an unpadded U-Net gives `size` voxels or a few more.

    Args:
        size: voxels wanted along the axis.
        strides: of each step from a level to the next.
        lost: voxels that the convolutions eat in each level, once on the way down and once on the way up.

    Returns:
        Margins before (what the network eats there) and after (that, and what fills up the deepest voxel).
    """
    *visited_twice, deepest = lost
    coarse = size
    for step, eaten in zip(strides, visited_twice, strict=True):
        coarse = (coarse + eaten + step - 1) // step
    tile, margins = coarse + deepest, deepest
    for step, eaten in zip(reversed(strides), reversed(visited_twice), strict=True):
        tile, margins = step * tile + eaten, step * margins + 2 * eaten
    before = margins // 2
    return before, tile - size - before


def mirror(image: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Continue an axis beyond both ends by mirroring about the border voxels, again and again where it is short."""
    size = image.shape[axis]
    period = max(2 * (size - 1), 1)  # one voxel is repeated
    position = torch.arange(-before, size + after, device=image.device) % period
    return image.index_select(axis, torch.minimum(position, period - position))


def crop_center(features: Tensor, reference: Tensor) -> Tensor:
    """The middle voxels of `features` along every axis, as many as `reference` has."""
    for axis in range(2, features.ndim):
        size = reference.shape[axis]
        features = features.narrow(axis, (features.shape[axis] - size) // 2, size)
    return features


def without_padding(block: nn.Module) -> nn.Module:
    """The block, its convolutions no longer padded."""
    for module in block.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.padding = (0,) * len(module.kernel_size)
    return block
