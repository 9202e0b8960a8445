"""LinkNet: skips are added, not concatenated, so the decoder stays as narrow as the encoder's levels.

Reference: Chaurasia and Culurciello, "LinkNet: Exploiting Encoder Representations for Efficient Semantic Segmentation",
VCIP 2017, arXiv:1707.03718 (2D; the 3D form is ours).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    CONV,
    MAX_POOL,
    TRANSPOSED_CONV,
    ActivationName,
    NormName,
    NormSetting,
    activation_layer,
    check_counts,
    choose,
    conv_norm_act,
    dropout_layer,
    fit_like,
    norm_layers,
    norm_or,
)
from medseg.networks.encoders import build_encoder
from medseg.networks.encoders.build import RESNETS


class LinkNet(nn.Module):
    """Image `(B, in_channels, *spatial)` -> logits `(B, out_channels, *spatial)`, any `spatial`.

    To the output of each decoder block comes what entered the encoder block of the same level; for the finest that is
    the pooled stem.

    The defaults are the authors' release (github.com/e-lab/pytorch-linknet), 11,535,957 parameters with 21 classes (2D,
    RGB; the 64 biases that a norm follows are left out here).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        encoder: name of a ResNet, or a module with `widths` and `strides` whose first levels have strides 2 and 4.
        weights: file of the encoder's weights.
        widths: channels of the named encoder's stem and of the blocks of each stage, before the bottlenecks' factor 4;
            by default its own.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            batch norm.
        activation: after every norm.
        dropout: probability to drop a whole channel, in every convolution of the decoder.

    Raises:
        ConfigError: for an encoder of other strides.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        encoder: str | nn.Module = "resnet18",
        weights: str | Path | None = None,
        widths: Sequence[int] | None = None,
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        choose(CONV, "spatial_dims", spatial_dims)
        check_counts(in_channels=in_channels, out_channels=out_channels)
        self.encoder = build_encoder(
            encoder,
            spatial_dims,
            in_channels,
            weights=weights,
            widths=widths,
            norm=norm,
            activation=activation,
            names=RESNETS,
        )
        levels, strides = self.encoder.widths, self.encoder.strides
        if strides[:2] != (2, 4) or any(coarse not in (fine, 2 * fine) for fine, coarse in pairwise(strides)):
            raise ConfigError(f"LinkNet: the encoder's strides are {strides}; use 2, 4, then each the same or doubled")
        self.pool = MAX_POOL[spatial_dims](3, stride=2, padding=1)  # the stem's, as ResNet has it
        bypasses = (strides[1], *strides[1:])  # the finest bypass is the stem, pooled to the next level's grid
        own_norm = norm_or("batch", norm)
        transposed = partial(TransposedBlock, spatial_dims, norm=own_norm, activation=activation, dropout=dropout)
        block = partial(conv_norm_act, spatial_dims, norm=own_norm, activation=activation, dropout=dropout)
        self.decoder = nn.ModuleList(
            LinkBlock(partial(block, kernel_size=1), transposed, deep, width, stride=coarse // fine)
            for (width, deep), (fine, coarse) in zip(pairwise(levels), pairwise(bypasses), strict=True)
        )
        width = max(4, levels[0] // 2)
        self.climb = transposed(levels[0], width, stride=2)
        self.conv = block(width, width)
        self.head = TRANSPOSED_CONV[spatial_dims](width, out_channels, kernel_size=2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`."""
        stem, *levels, features = self.encoder(image)
        for block, bypass in zip(reversed(self.decoder), reversed([self.pool(stem), *levels]), strict=True):
            features = bypass + block(features, bypass)
        features = self.conv(self.climb(features, stem))
        return fit_like(self.head(features), image)


class LinkBlock(nn.Module):
    """1x1 convolution to a quarter (4 or more), transposed 3x3 convolution by `stride`, 1x1 to `out_channels`."""

    def __init__(
        self,
        pointwise: Callable[..., nn.Module],
        transposed: Callable[..., nn.Module],
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
    ) -> None:
        super().__init__()
        quarter = max(4, in_channels // 4)  # fewer behind a ReLU easily fall silent all at once
        self.narrow = pointwise(in_channels, quarter)
        self.climb = transposed(quarter, quarter, stride=stride)
        self.widen = pointwise(quarter, out_channels)

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        """`(B, in_channels, *coarse)` -> `(B, out_channels, *reference's grid)`."""
        out: Tensor = self.widen(self.climb(self.narrow(features), reference))
        return out


class TransposedBlock(nn.Module):
    """Transposed 3x3 convolution by `stride` (1 or 2) to a reference's grid, norm, activation."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        norm: NormName,
        activation: ActivationName,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv = TRANSPOSED_CONV[spatial_dims](
            in_channels, out_channels, 3, stride, padding=1, output_padding=stride - 1, bias=norm is None
        )
        drop = [dropout_layer(spatial_dims, dropout)] if dropout else []
        self.finish = nn.Sequential(*drop, *norm_layers(norm, out_channels), activation_layer(activation))

    def forward(self, features: Tensor, reference: Tensor) -> Tensor:
        """`(B, in_channels, *coarse)` -> `(B, out_channels, *reference's grid)`."""
        out: Tensor = self.finish(fit_like(self.conv(features), reference))
        return out
