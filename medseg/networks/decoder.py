"""A U-Net's way back: from the deepest level of a pyramid up to the image's grid, each level joined with its skip."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import CONV, TRANSPOSED_CONV, InterpolationName, check_counts, fit_like, resize_like
from medseg.networks.channels_last import LAYOUTS, double, doubles, is_taken
from medseg.networks.encoders import Encoder
from medseg.networks.overlap_tile import crop_center


class DecoderLevels(NamedTuple):
    """What a decoder climbs, each list finest first.

    `skips` are the channels of the skip of each level, 0 where a level has the image's grid and no skip; `deepest`
    those of the map it starts from; `widths` what each level gives; `strides` the step down from each level.
    """

    skips: Sequence[int]
    deepest: int
    widths: Sequence[int]
    strides: Sequence[Sequence[int]]
    kernel_sizes: Sequence[Sequence[int]]


def levels_on(encoder: Encoder, spatial_dims: int, widths: Sequence[int] | None) -> DecoderLevels:
    """The decoder levels of a pyramid; one more, without a skip, if its finest level is coarser than the image.

    Raises:
        ConfigError: if `widths` has not one entry a level, of 1 or more.
    """
    check_counts(decoder_widths=widths)
    *skips, deepest = encoder.widths
    strides = encoder.strides
    if strides[0] != 1:
        skips, strides = [0, *skips], (1, *strides)
    widths = [16 * 2**level for level in range(len(skips))] if widths is None else widths
    if len(widths) != len(skips):
        raise ConfigError(f"decoder_widths has {len(widths)} entries; this encoder needs {len(skips)}")
    steps = [(coarse // fine,) * spatial_dims for fine, coarse in pairwise(strides)]
    return DecoderLevels(skips, deepest, widths, steps, [(3,) * spatial_dims] * len(skips))


class UNetDecoder(nn.Module):
    """Pyramid, finest first -> the decoded levels, finest first, without the deepest.

    Args:
        stage: the convolutions of a level.
        spatial_dims: 2 or 3.
        levels: channels, strides and kernels.
        climb: module from a coarse map and the finer skip to the finer grid.
        keeps_width: climbing does not narrow the features to the finer level's width; the level's stage does.
        crops_skips: skips are larger than what comes from below.
    """

    def __init__(
        self,
        stage: Callable[..., nn.Module],
        spatial_dims: int,
        levels: DecoderLevels,
        *,
        climb: Callable[..., nn.Module],
        keeps_width: bool,
        crops_skips: bool,
    ) -> None:
        super().__init__()
        self.skips, self.crops_skips = tuple(levels.skips), crops_skips
        below = (*levels.widths[1:], levels.deepest)
        climbed = below if keeps_width else levels.widths
        self.climbed = tuple(climbed)
        self.climbs = nn.ModuleList(
            climb(spatial_dims, deep, width, stride)
            for deep, width, stride in zip(below, climbed, levels.strides, strict=True)
        )
        self.stages = nn.ModuleList(
            stage(skip + deep, width, kernel_size=kernel, stride=1)
            for skip, deep, width, kernel in zip(self.skips, climbed, levels.widths, levels.kernel_sizes, strict=True)
        )

    def forward(self, pyramid: Sequence[Tensor], image: Tensor) -> list[Tensor]:
        """The pyramid, and the image for its grid -> levels `(B, widths[i], *spatial / stride)`.

        Without gradients a pyramid given as a list is emptied on the way: a skip is freed as soon as it is joined.
        """
        remaining = pyramid if isinstance(pyramid, list) and not torch.is_grad_enabled() else list(pyramid)
        features = remaining.pop()
        levels: list[Tensor] = []
        for climb, stage, width, channels in zip(
            reversed(self.climbs), reversed(self.stages), reversed(self.climbed), reversed(self.skips), strict=True
        ):
            skip = remaining.pop() if channels else image
            if channels and not self.crops_skips and not torch.is_grad_enabled() and is_taken(skip):
                skip = _room_beside(skip, width)  # by the same name: the skip's own map is freed
                features = _filled(skip, channels, climb, features)
            else:
                features = climb(features, skip)
                if channels:
                    features = torch.cat([crop_center(skip, features) if self.crops_skips else skip, features], dim=1)
            del skip
            features = stage(features)
            levels.insert(0, features)
        return levels


def _room_beside(skip: Tensor, channels: int) -> Tensor:
    """A map with the channels of `skip` and `channels` more that are still to be written, channels-last."""
    sizes = (skip.shape[0], skip.shape[1] + channels, *skip.shape[2:])
    room = torch.empty(sizes, dtype=skip.dtype, device=skip.device, memory_format=LAYOUTS[skip.ndim])
    room.narrow(1, 0, skip.shape[1]).copy_(skip)
    return room


def _filled(room: Tensor, channels: int, climb: nn.Module, features: Tensor) -> Tensor:
    """A skip of `channels`, and beside it the features that have climbed to its grid, without a copy where possible."""
    skip, place = room.narrow(1, 0, channels), room.narrow(1, channels, room.shape[1] - channels)
    climbed = climb(features, skip, out=place) if isinstance(climb, Interpolation) else climb(features, skip)
    if climbed is place:
        return room
    if climbed.dtype != room.dtype:
        return torch.cat([skip, climbed], dim=1)
    place.copy_(climbed)
    return room


class Interpolation(nn.Module):
    """Interpolation to the skip's grid; with `projects` after a 1x1 convolution on the coarse grid."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        *,
        interpolation: InterpolationName,
        projects: bool,
    ) -> None:
        super().__init__()
        self.conv = CONV[spatial_dims](in_channels, out_channels, kernel_size=1) if projects else nn.Identity()
        self.interpolation: InterpolationName = interpolation

    def forward(self, features: Tensor, skip: Tensor, *, out: Tensor | None = None) -> Tensor:
        """`(B, in_channels, *coarse)` -> `(B, out_channels, *skip's grid)`.

        What is given as `out` is written to, and returned, where that spares time; else it stays as it is.
        """
        coarse = self.conv(features)
        linear = self.interpolation == "linear"
        if out is not None and linear and out.dtype == coarse.dtype and doubles(coarse, out.shape[2:]):
            return double(coarse, out)
        return resize_like(coarse, skip, self.interpolation)


class TransposedConv(nn.Module):
    """A transposed convolution by `stride`; with `fits` brought to the skip's grid, which may be odd."""

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, stride: Sequence[int], *, fits: bool
    ) -> None:
        super().__init__()
        self.conv = TRANSPOSED_CONV[spatial_dims](in_channels, out_channels, stride, stride)  # type: ignore[arg-type]
        self.fits = fits

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """`(B, in_channels, *coarse)` -> `(B, out_channels, *skip's grid)`."""
        finer: Tensor = self.conv(features)
        return fit_like(finer, skip) if self.fits else finer
