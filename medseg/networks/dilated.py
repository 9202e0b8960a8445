"""The encoder of DeepLab and PSPNet: its last stages dilate in place of halving; or a module of one's own."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ActivationName, NormName
from medseg.networks.encoders import Encoder, build_encoder
from medseg.networks.encoders.resnet import Dilation as Dilation  # belongs to the signature below


def dilated_encoder(
    encoder: str | nn.Module,
    spatial_dims: int,
    in_channels: int,
    *,
    weights: str | Path | None,
    widths: Sequence[int] | None,
    output_stride: int | None,
    default_stride: int,
    multi_grid: Sequence[int] | None,
    dilation: Dilation,
    deep_stem: bool = False,
    norm: NormName,
    activation: ActivationName,
) -> Encoder:
    """The encoder a name asks for, at `output_stride`; a module as it is, if its stride agrees.

    Args:
        encoder: a name for `build_encoder`, or a module with `widths` and `strides`.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        weights: file of encoder weights; for a name only, as all that follow but `output_stride`.
        widths: channels of each level; None for the encoder's own.
        output_stride: of the deepest map; None for `default_stride`, or for the module's own.
        default_stride: that of the network's paper.
        multi_grid: further dilation of each block of the last stage.
        dilation: convention of the dilated stages.
        deep_stem: three 3x3 convolutions in place of one 7x7.
        norm: after every convolution; None for the encoder's own.
        activation: after every norm.

    Raises:
        ConfigError: if the name or a setting is unknown, or a module has another stride.
    """
    if isinstance(encoder, str):
        if encoder.startswith("vgg") and (multi_grid is not None or deep_stem):
            raise ConfigError(f"encoder is {encoder!r}; give multi_grid=None and deep_stem=False, they are of a ResNet")
        return build_encoder(
            encoder,
            spatial_dims,
            in_channels,
            weights=weights,
            widths=widths,
            norm=norm,
            activation=activation,
            output_stride=output_stride or default_stride,
            multi_grid=multi_grid,
            dilation=dilation,
            deep_stem=deep_stem,
        )
    module = build_encoder(encoder, spatial_dims, in_channels, weights=weights, widths=widths)
    if output_stride not in (None, module.strides[-1]):
        raise ConfigError(
            f"output_stride is {output_stride}, but the encoder module's is {module.strides[-1]}; leave it out"
        )
    return module
