"""U-Net: an encoder and a decoder joined by skips at every level; plain or residual, 2D or 3D.

Reference: Ronneberger et al., "U-Net", MICCAI 2015, arXiv:1505.04597; Cicek et al., "3D U-Net", MICCAI 2016,
arXiv:1606.06650. Departs from the papers as nnU-Net does (Isensee et al., Nature Methods 2021, arXiv:1904.08128):
padded convolutions, instance norm, strided convolutions for pooling, strides and kernels per axis, deep supervision.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    CONV,
    TRANSPOSED_CONV,
    ActivationName,
    NormName,
    PerLevel,
    ResidualBlock,
    choose,
    conv_norm_act,
    crop_like,
    per_level,
    resize_like,
)

Upsampling = Literal["interpolate", "transposed"]


class UNet(nn.Module):
    """Image `(B, in_channels, *spatial)` -> logits `(B, out_channels, *spatial)`, any `spatial`.

    A level's grid is the one above divided by its stride, rounded up; on the way back the skips decide the size. While
    training with `deep_supervision` the result is a list: the logits, then those of the coarser decoder levels on their
    own grids, finest first.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        widths: channels of each level, finest first.
        strides: from each level to the next: one number, or a list of `len(widths) - 1` entries, each one number or one
            an axis.
        kernel_sizes: odd, of each level: one, or a list of `len(widths)` entries, each one or one an axis.
        blocks_per_level: convolutions (or residual blocks of two) in each level of encoder and decoder.
        residual: residual blocks instead of plain convolutions.
        norm: after every convolution of a block.
        activation: after every norm.
        dropout: probability to drop a whole channel, in every block.
        upsampling: linear interpolation after a 1x1 convolution, or a transposed convolution.
        deep_supervision: extra heads while training.

    Raises:
        ConfigError: for settings that contradict each other.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] = (32, 64, 128, 256, 320),
        strides: PerLevel = 2,
        kernel_sizes: PerLevel = 3,
        blocks_per_level: int = 2,
        residual: bool = False,
        norm: NormName = "instance",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
        upsampling: Upsampling = "interpolate",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        conv = choose(CONV, "spatial_dims", spatial_dims)
        if len(widths) < 2 or blocks_per_level < 1:
            raise ConfigError(
                f"UNet: got {len(widths)} widths and {blocks_per_level} blocks_per_level; use at least 2 and 1"
            )
        steps = per_level("strides", strides, len(widths) - 1, spatial_dims)
        kernels = per_level("kernel_sizes", kernel_sizes, len(widths), spatial_dims)
        if any(size % 2 == 0 for kernel in kernels for size in kernel):
            raise ConfigError(f"UNet: kernel_sizes are {kernels}; use odd ones, even ones shift the grid")
        block = ResidualBlock if residual else conv_norm_act
        stage = partial(
            repeated,
            partial(block, spatial_dims, norm=norm, activation=activation, dropout=dropout),
            blocks_per_level,
        )
        self.encoder = UNetEncoder(stage, in_channels, widths, strides=steps, kernel_sizes=kernels)
        self.decoder = UNetDecoder(
            stage, spatial_dims, widths, strides=steps, kernel_sizes=kernels, upsampling=upsampling
        )
        self.head = conv(widths[0], out_channels, kernel_size=1)
        extra_widths = widths[1:-1] if deep_supervision else ()
        self.extra_heads = nn.ModuleList(conv(width, out_channels, kernel_size=1) for width in extra_widths)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`, or a list of logits while training."""
        finest, *coarser = self.decoder(self.encoder(image))
        logits: Tensor = self.head(finest)
        if not (self.training and self.extra_heads):
            return logits
        return [logits, *(head(features) for head, features in zip(self.extra_heads, coarser, strict=True))]


class UNetEncoder(nn.Module):
    """Image -> pyramid of `(B, widths[i], *spatial / stride)`, finest first."""

    def __init__(
        self,
        stage: Callable[..., nn.Module],
        in_channels: int,
        widths: Sequence[int],
        *,
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        steps = (1, *strides)  # the first level keeps the image's grid
        channels = pairwise((in_channels, *widths))
        self.stages = nn.ModuleList(
            stage(above, width, kernel_size=kernel, stride=step)
            for (above, width), kernel, step in zip(channels, kernel_sizes, steps, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """`(B, in_channels, *spatial)` -> the pyramid."""
        pyramid = []
        features = image
        for stage in self.stages:
            features = stage(features)
            pyramid.append(features)
        return pyramid


class UNetDecoder(nn.Module):
    """Pyramid, finest first -> the decoded levels, finest first, without the deepest."""

    def __init__(
        self,
        stage: Callable[..., nn.Module],
        spatial_dims: int,
        widths: Sequence[int],
        *,
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        upsampling: Upsampling,
    ) -> None:
        super().__init__()
        climb = choose(UPSAMPLING, "upsampling", upsampling)
        self.climbs = nn.ModuleList(
            climb(spatial_dims, deep, shallow, stride)
            for (shallow, deep), stride in zip(pairwise(widths), strides, strict=True)
        )
        self.stages = nn.ModuleList(
            stage(2 * width, width, kernel_size=kernel, stride=1)
            for width, kernel in zip(widths[:-1], kernel_sizes[:-1], strict=True)
        )

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid -> levels `(B, widths[i], *spatial / stride)`."""
        *skips, features = pyramid
        levels: list[Tensor] = []
        for climb, stage, skip in zip(reversed(self.climbs), reversed(self.stages), reversed(skips), strict=True):
            features = stage(torch.cat([skip, climb(features, skip)], dim=1))
            levels.insert(0, features)
        return levels


class Interpolation(nn.Module):
    """A 1x1 convolution on the coarse grid, then linear interpolation to the skip's grid."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = CONV[spatial_dims](in_channels, out_channels, kernel_size=1)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """`(B, in_channels, *coarse)` -> `(B, out_channels, *skip's grid)`."""
        return resize_like(self.conv(features), skip)


class TransposedConv(nn.Module):
    """A transposed convolution by `stride`, cropped to the skip's grid where that is odd."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = TRANSPOSED_CONV[spatial_dims](in_channels, out_channels, stride, stride)  # type: ignore[arg-type]

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """`(B, in_channels, *coarse)` -> `(B, out_channels, *skip's grid)`."""
        return crop_like(self.conv(features), skip)


UPSAMPLING: dict[str, type[Interpolation] | type[TransposedConv]] = {
    "interpolate": Interpolation,
    "transposed": TransposedConv,
}


def repeated(
    block: Callable[..., nn.Module],
    count: int,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: Sequence[int],
    stride: int | Sequence[int],
) -> nn.Sequential:
    """`count` blocks in a row; the first one changes the width and the grid."""
    first = block(in_channels, out_channels, kernel_size=kernel_size, stride=stride)
    return nn.Sequential(first, *(block(out_channels, out_channels, kernel_size=kernel_size) for _ in range(count - 1)))
