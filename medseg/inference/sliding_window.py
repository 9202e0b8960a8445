"""Whole images through a network that sees patches: overlapping windows, blended; slice by slice for 2D networks."""

from collections.abc import Callable, Sequence
from itertools import product
from types import EllipsisType
from typing import Any, Literal

import torch
from torch import Tensor

from medseg.errors import ConfigError
from medseg.preprocessing import neighbor_slices

Blend = Literal["gaussian", "constant"]
Precision = Literal["float32", "bfloat16"]
Window = tuple[EllipsisType | slice, ...]  # `...`, then one slice a spatial axis

SIGMA = 0.125  # of the Gaussian, in window lengths
SLICES_AT_ONCE = 32  # with neighbors
LOWEST_WEIGHT = 1e-3  # a voxel that only window corners see must not be divided by nearly nothing


class SlidingWindow:
    """Logits of a whole image from overlapping windows of `patch_size`.

    Windows and weights are those of MONAI's `sliding_window_inference`; an image smaller than the patch is padded with
    the lowest value of each channel, and the result cropped. Run it under `torch.inference_mode()`, with the network in
    evaluation mode.

    Args:
        patch_size: voxels of a window along each axis.
        overlap: share of a window that the next one sees again, in `[0, 1)`.
        blend: weigh a window by a Gaussian around its center, or all its voxels equally.
        batch_size: windows a forward pass.
        precision: of the network; "bfloat16" runs it under autocast, the blending stays float32.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        *,
        overlap: float = 0.5,
        blend: Blend = "gaussian",
        batch_size: int = 1,
        precision: Precision = "float32",
    ) -> None:
        if not 0 <= overlap < 1:
            raise ConfigError(f"SlidingWindow: overlap is {overlap}; use a share from 0 to less than 1, such as 0.5")
        if min(patch_size) < 1 or batch_size < 1:
            raise ConfigError(
                f"SlidingWindow: patch_size is {list(patch_size)}, batch_size {batch_size}; use 1 or more"
            )
        if blend not in ("gaussian", "constant"):
            raise ConfigError(f"SlidingWindow: blend is {blend!r}; use 'gaussian' or 'constant'")
        if precision not in ("float32", "bfloat16"):
            raise ConfigError(f"SlidingWindow: precision is {precision!r}; use 'float32' or 'bfloat16'")
        self.patch_size = tuple(patch_size)
        self.overlap, self.blend = overlap, blend
        self.batch_size, self.precision = batch_size, precision

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits `(B, K, *spatial)`, float32, on the device of `inputs`.

        Args:
            inputs: images `(B, C, *spatial)`.
            network: windows `(N, C, *patch_size)` -> logits `(N, K, *patch_size)`.
            args: handed on to the network.
            kwargs: handed on to the network.

        Raises:
            ValueError: if `inputs` has not as many axes as the patch, or the network does not answer with logits on the
                window's grid.
        """
        image = inputs.as_subclass(Tensor)  # MONAI's MetaTensor would follow every window's slice
        if image.ndim != len(self.patch_size) + 2 or not image.numel():
            raise ValueError(
                f"image is {list(image.shape)} for a patch of {list(self.patch_size)}; expected (B, C, *spatial)"
            )
        padded, inside = pad_to(image, self.patch_size)
        windows = window_slices(padded.shape[2:], self.patch_size, self.overlap)
        weights = window_weights(self.patch_size, self.blend).to(image.device)

        places = list(product(range(len(padded)), windows))
        for first in range(0, len(places), self.batch_size):
            batch = places[first : first + self.batch_size]
            crops = torch.stack([padded[item][window] for item, window in batch])
            logits = self._logits(crops, network, *args, **kwargs)
            if first == 0:
                total = image.new_zeros((len(padded), logits.shape[1], *padded.shape[2:]), dtype=torch.float32)
            for (item, window), window_logits in zip(batch, logits, strict=True):
                total[item][window].addcmul_(window_logits, weights)
        total /= summed_weights(padded.shape[2:], windows, weights)
        return total[inside]

    def _logits(self, crops: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(crops.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = network(crops, *args, **kwargs)
        if not isinstance(logits, Tensor):
            raise ValueError(f"the network answered with a {type(logits).__name__}, not logits; put it in eval() mode")
        if logits.shape[2:] != crops.shape[2:]:
            raise ValueError(
                f"the network answered {list(logits.shape)} to a window {list(crops.shape)}; the grids must be equal"
            )
        return logits


class SliceBySlice:
    """A 2D network over the last axis of a volume.

    Args:
        inferer: 2D inferer; the slices are its batch.
        neighbors: slices on each side that the network sees as further channels, as in training; beyond the ends of the
            volume the end slice repeats.

    Raises:
        ConfigError: if `neighbors` is negative.
    """

    def __init__(self, inferer: SlidingWindow, *, neighbors: int = 0) -> None:
        if neighbors < 0:
            raise ConfigError(f"SliceBySlice: neighbors is {neighbors}; use 0 or more slices on each side")
        self.inferer, self.neighbors = inferer, neighbors

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Volume `(B, C, X, Y, Z)` -> logits `(B, K, X, Y, Z)`, float32.

        Raises:
            ValueError: if `inputs` is not a batch of volumes.
        """
        if inputs.ndim != 5:
            raise ValueError(f"image is {list(inputs.shape)}; slice by slice needs a volume (B, C, X, Y, Z)")
        volume = inputs.as_subclass(Tensor)
        depth = volume.shape[-1]
        step = SLICES_AT_ONCE if self.neighbors else depth  # every slice is there several times
        slabs = []
        for first in range(0, depth, step):
            slab = neighbor_slices(volume, self.neighbors, slice(first, first + step)).movedim(-1, 1)
            logits = self.inferer(slab.flatten(0, 1), network, *args, **kwargs)
            slabs.append(logits.view(*slab.shape[:2], *logits.shape[1:]))
        return (torch.cat(slabs, dim=1) if len(slabs) > 1 else slabs[0]).movedim(1, -1)


def starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis of `size` voxels; the last window ends with the axis."""
    step = max(int(patch * (1 - overlap)), 1)
    last = max(size - patch, 0)
    return [*range(0, last, step), last]


def window_slices(shape: Sequence[int], patch_size: Sequence[int], overlap: float) -> list[Window]:
    """Every window of an image of `shape`."""
    axes = [
        [slice(start, start + patch) for start in starts(size, patch, overlap)]
        for size, patch in zip(shape, patch_size, strict=True)
    ]
    return [(..., *window) for window in product(*axes)]


def window_weights(patch_size: Sequence[int], blend: Blend) -> Tensor:
    """Weight of each voxel of a window, `(*patch_size)` float32."""
    weights = torch.ones(tuple(patch_size))
    if blend == "gaussian":
        for axis, patch in enumerate(patch_size):
            distance = torch.arange(patch, dtype=torch.float32) - (patch - 1) / 2
            profile = torch.exp(distance**2 / (-2 * (SIGMA * patch) ** 2))
            weights *= profile.view([-1 if other == axis else 1 for other in range(len(patch_size))])
    return weights.clamp_min(LOWEST_WEIGHT)


def summed_weights(shape: Sequence[int], windows: Sequence[Window], weights: Tensor) -> Tensor:
    """Weight that each voxel of an image of `shape` gets from all windows, `(*shape)`."""
    total = weights.new_zeros(tuple(shape))
    for window in windows:
        total[window] += weights
    return total


def pad_to(image: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, Window]:
    """Image at least as large as the patch, and where the given one lies in it.

    Args:
        image: `(B, C, *spatial)`; padded on both sides with the lowest value of each sample's channel.
        patch_size: voxels along each axis.
    """
    spatial = image.shape[2:]
    missing = [max(patch - size, 0) for size, patch in zip(spatial, patch_size, strict=True)]
    inside: Window = (
        ...,
        *(slice(short // 2, short // 2 + size) for size, short in zip(spatial, missing, strict=True)),
    )
    if not any(missing):
        return image, inside
    lowest = image.amin(dim=tuple(range(2, image.ndim)), keepdim=True)
    padded = lowest.repeat(1, 1, *(size + short for size, short in zip(spatial, missing, strict=True)))
    padded[inside] = image
    return padded, inside
