"""An encoder by name, or a module that is one."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import ActivationName, NormName, NormSetting, choose, norm_or
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
    norm: NormSetting = "default",
    activation: ActivationName = "relu",
    output_stride: int | None = None,
    multi_grid: Sequence[int] | None = None,
    dilation: Dilation | None = None,
    deep_stem: bool | None = None,
    stride_in_1x1: bool | None = None,
    pool_kernel_size: int | None = None,
    names: Collection[str] = (*RESNETS, *VGGS),
) -> Encoder:
    """The encoder of a name, or the module given.

    Args:
        encoder: "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg11", "vgg13", "vgg16", "vgg19", these
            four with "_bn" for batch norm; or a module with `widths` and `strides`, to which no other setting applies.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        weights: file of weights, see `load_weights`.
        widths: channels, see `ResNet` and `VGG`; None for the published ones.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            batch norm, and none in a VGG without "_bn". With a module, that of the network around it.
        activation: after every norm. With a module, that of the network around it.
        output_stride: of the deepest level: 32 (None), 16 or 8.
        multi_grid: ResNet only, see there.
        dilation: ResNet only, see there; a VGG has one form.
        deep_stem: ResNet only, see there.
        stride_in_1x1: ResNet only, see there.
        pool_kernel_size: VGG only, see there.
        names: those that the network around it can take.

    Raises:
        ConfigError: for an unknown name, a module without `widths` and `strides`, or settings that do not apply.
        DataError: for a file of weights that does not fit.
    """
    of_resnet = {
        "multi_grid": multi_grid,
        "dilation": dilation,
        "deep_stem": deep_stem,
        "stride_in_1x1": stride_in_1x1,
    }
    of_vgg = {"pool_kernel_size": pool_kernel_size}
    if isinstance(encoder, nn.Module):
        given = {"weights": weights, "widths": widths, **of_resnet, **of_vgg}
        refuse_given("encoder is a module; set {} where it is made", given)
        if not (hasattr(encoder, "widths") and hasattr(encoder, "strides")):
            raise ConfigError(f"encoder is a {type(encoder).__name__} without widths and strides; see Encoder")
        module = cast(Encoder, encoder)
        if output_stride not in (None, module.strides[-1]):
            raise ConfigError(
                f"output_stride is {output_stride}, but the encoder module's is {module.strides[-1]}; leave it out"
            )
        return module
    choose(dict.fromkeys(names), "encoder", encoder)
    if encoder in RESNETS:
        refuse_given(f"encoder is {encoder!r}; leave {{}} out (of a VGG)", of_vgg)
        return ResNet(
            spatial_dims,
            in_channels,
            depth=RESNETS[encoder],
            widths=(64, 64, 128, 256, 512) if widths is None else widths,
            output_stride=32 if output_stride is None else output_stride,
            multi_grid=multi_grid,
            dilation="torchvision" if dilation is None else dilation,
            deep_stem=bool(deep_stem),
            stride_in_1x1=bool(stride_in_1x1),
            norm=norm,
            activation=activation,
            weights=weights,
        )
    refuse_given(f"encoder is {encoder!r}; leave {{}} out (of a ResNet)", of_resnet)
    depth, own_norm = VGGS[encoder]
    return VGG(
        spatial_dims,
        in_channels,
        depth=depth,
        widths=(64, 128, 256, 512, 512) if widths is None else widths,
        norm=norm_or(own_norm, norm),
        activation=activation,
        output_stride=32 if output_stride is None else output_stride,
        pool_kernel_size=2 if pool_kernel_size is None else pool_kernel_size,
        weights=weights,
    )


def refuse_given(message: str, settings: Mapping[str, object]) -> None:
    """Refuse the settings that are not None.

    Raises:
        ConfigError: `message` with their names.
    """
    given = [name for name, value in settings.items() if value is not None]
    if given:
        raise ConfigError(message.format(" and ".join(given)))
