"""U-Net: an encoder and a decoder joined by skips at every level; plain or residual, 2D or 3D, on any encoder.

Reference: Ronneberger et al., "U-Net", MICCAI 2015, arXiv:1505.04597; Cicek et al., "3D U-Net", MICCAI 2016,
arXiv:1606.06650. The defaults depart from the papers as nnU-Net does (Isensee et al., Nature Methods 2021,
arXiv:1904.08128): padded convolutions, instance norm, strided convolutions for pooling, strides and kernels per axis,
deep supervision.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    CONV,
    MAX_POOL,
    ActivationName,
    InterpolationName,
    NormName,
    NormSetting,
    PerLevel,
    ResidualBlock,
    check_counts,
    choose,
    conv_norm_act,
    crop_like,
    norm_or,
    per_level,
)
from medseg.networks.decoder import DecoderLevels, Interpolation, TransposedConv, UNetDecoder, levels_on
from medseg.networks.encoders import Encoder, build_encoder
from medseg.networks.glore import GraphReasoning
from medseg.networks.overlap_tile import OverlapTile, without_padding

Upsampling = Literal["interpolate", "transposed"]
Downsampling = Literal["strided", "max_pool"]
Padding = Literal["same", "valid"]
Widening = Literal["first", "last"]

WIDTHS = (32, 64, 128, 256, 320)
CHOICES = {
    "upsampling": ("interpolate", "transposed"),
    "interpolation": ("linear", "nearest"),
    "downsampling": ("strided", "max_pool"),
    "padding": ("same", "valid"),
    "widening": ("first", "last"),
}


class UNet(nn.Module):
    """Image `(B, in_channels, *spatial)` -> logits `(B, out_channels, *spatial)`, any `spatial`.

    A level's grid is the one above divided by its stride, rounded up; on the way back the skips decide the size. While
    training with `deep_supervision` the result is a list: the logits, then those of the coarser decoder levels on their
    own grids, finest first.

    Published forms:

    - U-Net 2015, 31,030,658 parameters (2D, 1 -> 2): `widths=(64, 128, 256, 512, 1024)`, `norm=None`,
      `padding="valid"`, `downsampling="max_pool"`, `upsampling="transposed"`.
    - 3D U-Net 2016, 19,075,523 parameters (3 -> 3; the 2,336 biases that a norm follows are left out here):
      `widths=(64, 128, 256, 512)`, `norm="batch"`, `widening="last"`, `downsampling="max_pool"`,
      `upsampling="transposed"`.
    - segmentation_models.pytorch's Unet, 24,436,514 parameters (2D, RGB -> 2): `encoder="resnet34"`,
      `interpolation="nearest"`. (Its form for VGG differs: one more block at the bottom, no skip on the image's grid.)

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        widths: channels of each level, finest first; by default (32, 64, 128, 256, 320), or the named encoder's own
            (see `ResNet` and `VGG`: those of the blocks, before the bottlenecks' factor 4).
        strides: from each level to the next: one number, or a list of `len(widths) - 1` entries, each one number or one
            an axis.
        kernel_sizes: odd, of each level: one, or a list of `len(widths)` entries, each one or one an axis.
        blocks_per_level: convolutions (or residual blocks of two) in each level of encoder and decoder.
        residual: residual blocks instead of plain convolutions.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            instance norm, on an encoder its own and batch norm in the decoder. Without one the weights start as in
            2015, by the number of inputs.
        activation: after every norm.
        dropout: probability to drop a whole channel, in every block.
        upsampling: interpolation, or a transposed convolution.
        interpolation: linear or nearest; after a 1x1 convolution to the finer level's width, except on an encoder.
        downsampling: a strided convolution opens each level, or max pooling precedes it.
        padding: "valid" leaves the convolutions unpadded; the image is mirrored beyond its border by as much as they
            eat (the overlap-tile strategy of 2015), and skips are cropped to their center.
        widening: which convolution of an encoder level widens the features: the first (2015), or the last, the others
            being half as wide and the upsampling keeping its width (2016).
        encoder: a name such as "resnet34" or "vgg16_bn", or a module with `widths` and `strides`, in place of the
            U-Net's own; `blocks_per_level`, `residual` and `dropout` then shape the decoder, and heads are 3x3.
        weights: file of the encoder's weights.
        decoder_widths: channels of each decoder level on an encoder, finest first; by default 16, 32, 64, 128, 256.
        graph_reasoning: global reasoning on the deepest level.
        deep_supervision: extra heads while training.
        return_heads: the extra heads in evaluation, too.

    Raises:
        ConfigError: for settings that contradict each other.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] | None = None,
        strides: PerLevel = 2,
        kernel_sizes: PerLevel = 3,
        blocks_per_level: int = 2,
        residual: bool = False,
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
        upsampling: Upsampling = "interpolate",
        interpolation: InterpolationName = "linear",
        downsampling: Downsampling = "strided",
        padding: Padding = "same",
        widening: Widening = "first",
        encoder: str | nn.Module | None = None,
        weights: str | Path | None = None,
        decoder_widths: Sequence[int] | None = None,
        graph_reasoning: bool = False,
        deep_supervision: bool = False,
        return_heads: bool = False,
    ) -> None:
        super().__init__()
        conv = choose(CONV, "spatial_dims", spatial_dims)
        check_choices(
            upsampling=upsampling,
            interpolation=interpolation,
            downsampling=downsampling,
            padding=padding,
            widening=widening,
        )
        check_counts(
            in_channels=in_channels, out_channels=out_channels, widths=widths, strides=strides,
            kernel_sizes=kernel_sizes, blocks_per_level=blocks_per_level,
        )  # fmt: skip
        least = 1 if widening == "first" else 2
        own_widths = WIDTHS if widths is None else tuple(widths)
        if len(own_widths) < 2 or blocks_per_level < least:
            raise ConfigError(
                f"UNet: got {len(own_widths)} widths and {blocks_per_level} blocks_per_level; "
                f"use at least 2 and {least}"
            )
        if upsampling == "transposed" and interpolation != "linear":
            raise ConfigError("UNet: interpolation does nothing with upsampling='transposed'; leave one out")
        if return_heads and not deep_supervision:
            raise ConfigError("UNet: return_heads has no extra heads to return; set deep_supervision=True too")
        block_norm: NormName = norm_or("instance" if encoder is None else "batch", norm)
        stage = partial(
            repeated,
            partial(
                ResidualBlock if residual else conv_norm_act,
                spatial_dims,
                norm=block_norm,
                activation=activation,
                dropout=dropout,
            ),
            blocks_per_level,
        )
        self.tile: OverlapTile | None = None
        self.encoder: Encoder | UNetEncoder
        if encoder is None:
            if weights is not None or decoder_widths is not None:
                raise ConfigError("UNet: weights and decoder_widths need an encoder; set one, e.g. 'resnet34'")
            steps = per_level("strides", strides, len(own_widths) - 1, spatial_dims)
            kernels = per_level("kernel_sizes", kernel_sizes, len(own_widths), spatial_dims)
            if any(size % 2 == 0 for kernel in kernels for size in kernel):
                raise ConfigError(f"UNet: kernel_sizes are {kernels}; use odd ones, even ones shift the grid")
            if padding == "valid":
                if residual or deep_supervision or (downsampling, upsampling) != ("max_pool", "transposed"):
                    raise ConfigError(
                        "UNet: padding='valid' goes with downsampling='max_pool' and upsampling='transposed', without "
                        "residual and deep_supervision; set these so"
                    )
                lost = [[blocks_per_level * (size - 1) for size in kernel] for kernel in kernels]
                self.tile = OverlapTile(steps, lost)
            own = UNetEncoder(
                partial(stage, widening=widening),
                spatial_dims,
                in_channels,
                own_widths,
                strides=steps,
                kernel_sizes=kernels,
                downsampling=downsampling,
            )
            if block_norm is None:
                start_by_fan_in(own)
            self.encoder = own
            levels = DecoderLevels(own_widths[:-1], own_widths[-1], own_widths[:-1], steps, kernels[:-1])
        else:
            if (strides, kernel_sizes, downsampling, padding, widening) != (2, 3, "strided", "same", "first"):
                raise ConfigError(
                    "UNet: strides, kernel_sizes, downsampling, padding and widening shape the U-Net's own encoder; "
                    "leave them out with another"
                )
            chosen = build_encoder(
                encoder,
                spatial_dims,
                in_channels,
                weights=weights,
                widths=widths,
                norm=norm,
                activation=activation,
            )
            self.encoder, levels = chosen, levels_on(chosen, spatial_dims, decoder_widths)
        keeps_width = widening == "last" or (encoder is not None and upsampling == "interpolate")
        climb: Callable[..., nn.Module] = (
            partial(Interpolation, interpolation=interpolation, projects=not keeps_width)
            if upsampling == "interpolate"
            else partial(TransposedConv, fits=self.tile is None)
        )
        self.decoder = UNetDecoder(
            stage, spatial_dims, levels, climb=climb, keeps_width=keeps_width, crops_skips=self.tile is not None
        )
        if self.tile is not None:
            without_padding(self)
        if block_norm is None:
            start_by_fan_in(self.decoder)
        self.reasoning: nn.Module = (
            GraphReasoning(spatial_dims, levels.deepest, norm=block_norm) if graph_reasoning else nn.Identity()
        )
        head = partial(conv, kernel_size=1) if encoder is None else partial(conv, kernel_size=3, padding=1)
        self.head = head(levels.widths[0], out_channels)
        extra_widths = levels.widths[1:] if deep_supervision else ()
        self.extra_heads = nn.ModuleList(head(width, out_channels) for width in extra_widths)
        self.return_heads = return_heads

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`, or a list of logits while training."""
        pyramid = self.encoder(image if self.tile is None else self.tile(image))
        pyramid[-1] = self.reasoning(pyramid[-1])
        finest, *coarser = self.decoder(pyramid, image)
        logits: Tensor = self.head(finest)
        if self.tile is not None:
            logits = crop_like(logits, image)
        if not (self.extra_heads and (self.training or self.return_heads)):
            return logits
        return [logits, *(head(features) for head, features in zip(self.extra_heads, coarser, strict=True))]


class UNetEncoder(nn.Module):
    """Image -> pyramid of `(B, widths[i], *spatial / stride)`, finest first."""

    def __init__(
        self,
        stage: Callable[..., nn.Module],
        spatial_dims: int,
        in_channels: int,
        widths: Sequence[int],
        *,
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        downsampling: Downsampling,
    ) -> None:
        super().__init__()
        unchanged = (1,) * spatial_dims  # the first level keeps the image's grid
        pooled = downsampling == "max_pool"
        self.pools = nn.ModuleList(
            MAX_POOL[spatial_dims](step, ceil_mode=True) if pooled else nn.Identity()  # type: ignore[arg-type]
            for step in (unchanged, *strides)
        )
        self.stages = nn.ModuleList(
            stage(above, width, kernel_size=kernel, stride=unchanged if pooled else step)
            for (above, width), kernel, step in zip(
                pairwise((in_channels, *widths)), kernel_sizes, (unchanged, *strides), strict=True
            )
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """`(B, in_channels, *spatial)` -> the pyramid."""
        pyramid = []
        features = image
        for pool, stage in zip(self.pools, self.stages, strict=True):
            features = stage(pool(features))
            pyramid.append(features)
        return pyramid


def repeated(
    block: Callable[..., nn.Module],
    count: int,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: Sequence[int],
    stride: int | Sequence[int],
    widening: Widening = "first",
) -> nn.Sequential:
    """`count` blocks in a row; the first one changes the grid, and the first or last one the width."""
    before_last = out_channels if widening == "first" else max(1, out_channels // 2)
    channels = (in_channels, *[before_last] * (count - 1), out_channels)
    steps = (stride, *[1] * (count - 1))
    return nn.Sequential(
        *(
            block(above, width, kernel_size=kernel_size, stride=step)
            for (above, width), step in zip(pairwise(channels), steps, strict=True)
        )
    )


def start_by_fan_in(module: nn.Module) -> None:
    """Gaussian weights of variance 2 / inputs, as in 2015: without norms the features else fade from level to level."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)) and part.bias is not None:
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)


def check_choices(**settings: str) -> None:
    """Refuse a word that a setting does not know.

    Raises:
        ConfigError: naming the words it knows.
    """
    for name, value in settings.items():
        choose(dict.fromkeys(CHOICES[name]), name, value)
