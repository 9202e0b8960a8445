"""The encoder of FCN, DeepLab and PSPNet: its last stages dilate in place of halving; or a module of one's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from torch import nn

from medseg.networks.blocks import ActivationName, NormSetting
from medseg.networks.encoders import Encoder, build_encoder
from medseg.networks.encoders.build import RESNETS
from medseg.networks.encoders.resnet import Dilation

MultiGrid = Sequence[int] | Literal["default"] | None


class DilatedForm(NamedTuple):
    """What a network's paper has for the settings that are left out; all but the stride for a ResNet only."""

    output_stride: int
    multi_grid: Sequence[int] | None = None
    dilation: Dilation = "every_block"
    deep_stem: bool = False


def dilated_encoder(
    encoder: str | nn.Module,
    spatial_dims: int,
    in_channels: int,
    *,
    paper: DilatedForm,
    weights: str | Path | None,
    widths: Sequence[int] | None,
    output_stride: int | None,
    multi_grid: MultiGrid = "default",
    dilation: Dilation | None = None,
    deep_stem: bool | None = None,
    norm: NormSetting,
    activation: ActivationName,
) -> Encoder:
    """The encoder a name asks for, with the paper's settings where none is given; a module as it is.

    Args:
        encoder: a name for `build_encoder`, or a module with `widths` and `strides`.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        paper: what "default" and None stand for.
        weights: file of encoder weights; for a name only, as all that follow but `output_stride`.
        widths: channels of each level; None for the encoder's own.
        output_stride: of the deepest map; for a module its own, or None.
        multi_grid: further dilation of each block of the last stage; None for none.
        dilation: convention of the dilated stages.
        deep_stem: three 3x3 convolutions in place of one 7x7.
        norm: see `build_encoder`.
        activation: after every norm.

    Raises:
        ConfigError: if the name or a setting is unknown or does not apply, or a module has another stride.
    """
    own_multi_grid = None if multi_grid == "default" else multi_grid
    if isinstance(encoder, str):
        output_stride = paper.output_stride if output_stride is None else output_stride
        if encoder in RESNETS:
            own_multi_grid = paper.multi_grid if multi_grid == "default" else own_multi_grid
            dilation = paper.dilation if dilation is None else dilation
            deep_stem = paper.deep_stem if deep_stem is None else deep_stem
    return build_encoder(
        encoder,
        spatial_dims,
        in_channels,
        weights=weights,
        widths=widths,
        norm=norm,
        activation=activation,
        output_stride=output_stride,
        multi_grid=own_multi_grid,
        dilation=dilation,
        deep_stem=deep_stem,
    )
