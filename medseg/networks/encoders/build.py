"""An encoder by name, or a module that is one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ActivationName, NormName, choose
from medseg.networks.encoders.resnet import BLOCKS, Dilation, ResNet
from medseg.networks.encoders.vgg import CONVS, VGG

RESNETS = {f"resnet{depth}": depth for depth in BLOCKS}
VGGS: dict[str, tuple[int, NormName]] = {
    **{f"vgg{depth}": (depth, None) for depth in CONVS},
    **{f"vgg{depth}_bn": (depth, "batch") for depth in CONVS},
}


class Encoder(Protocol):
    """An `nn.Module` that makes a pyramid of an image: levels `(B, widths[i], *spatial / strides[i])`, finest first."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, image: Tensor) -> list[Tensor]:
        """`(B, in_channels, *spatial)` -> the levels; sizes are rounded up."""


def build_encoder(
    encoder: str | nn.Module,
    spatial_dims: int,
    in_channels: int,
    *,
    weights: str | Path | None = None,
    widths: Sequence[int] | None = None,
    norm: NormName = None,
    activation: ActivationName = "relu",
    output_stride: int = 32,
    multi_grid: Sequence[int] | None = None,
    dilation: Dilation = "torchvision",
    deep_stem: bool = False,
) -> Encoder:
    """The encoder of a name, or the module given.

    Args:
        encoder: "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg11", "vgg13", "vgg16", "vgg19", these
            four with "_bn" for batch norm; or a module with `widths` and `strides`, to which no other setting applies.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        weights: file of weights, see `load_weights`.
        widths: channels, see `ResNet` and `VGG`; None for the published ones.
        norm: after every convolution; None for batch norm, and for none in a VGG without "_bn".
        activation: after every norm.
        output_stride: of the deepest level: 32, 16 or 8.
        multi_grid: ResNet only, see there.
        dilation: ResNet only, see there; a VGG has one form.
        deep_stem: ResNet only, see there.

    Raises:
        ConfigError: for an unknown name, a module without `widths` and `strides`, or settings that do not apply.
        DataError: for a file of weights that does not fit.
    """
    if isinstance(encoder, nn.Module):
        if weights is not None or widths is not None:
            raise ConfigError("encoder is a module, and weights or widths are given; set them where the module is made")
        if not (hasattr(encoder, "widths") and hasattr(encoder, "strides")):
            raise ConfigError(f"encoder is a {type(encoder).__name__} without widths and strides; see Encoder")
        return cast(Encoder, encoder)
    choose({**RESNETS, **VGGS}, "encoder", encoder)
    if encoder in RESNETS:
        return ResNet(
            spatial_dims,
            in_channels,
            depth=RESNETS[encoder],
            widths=widths or (64, 64, 128, 256, 512),
            output_stride=output_stride,
            multi_grid=multi_grid,
            dilation=dilation,
            deep_stem=deep_stem,
            norm=norm or "batch",
            activation=activation,
            weights=weights,
        )
    if multi_grid is not None or deep_stem:
        raise ConfigError(f"encoder is {encoder!r}; multi_grid and deep_stem need a ResNet, leave them out")
    depth, own_norm = VGGS[encoder]
    return VGG(
        spatial_dims,
        in_channels,
        depth=depth,
        widths=widths or (64, 128, 256, 512, 512),
        norm=norm or own_norm,
        activation=activation,
        output_stride=output_stride,
        weights=weights,
    )
