"""DeepLab v3 and v3+: image pooling beside atrous convolutions, and (v3+) a short decoder onto a finer level.

Reference: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, arXiv:1706.05587; Chen et
al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018, arXiv:1802.02611 (both 2D; the 3D form is ours).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.aspp import ASPP, conv_head, rates_at
from medseg.networks.blocks import ActivationName, NormSetting, check_counts, conv_norm_act, norm_or, resize_like
from medseg.networks.dilated import DilatedForm, MultiGrid, dilated_encoder
from medseg.networks.encoders.resnet import Dilation
from medseg.networks.glore import GraphReasoning
from medseg.networks.heads import build_auxiliary, with_auxiliary

RATES = (6, 12, 18)  # the papers', at output stride 16


class DeepLabV3(nn.Module):
    """Image `(B, in_channels, *spatial)` -> logits `(B, out_channels, *spatial)`, any `spatial`.

    With `auxiliary_head`, while training, a list: the logits, then those of the encoder's level before the last on its
    own grid; torchvision weights them 1 and 0.5 (`head_weights`).

    The defaults are the paper's on ResNet-101 with multi-grid (1, 2, 4) and output stride 16. RGB, 21 classes:
    58,040,661 parameters. torchvision's form is `output_stride=8, multi_grid=None, dilation="torchvision",
    head_convs=1, auxiliary_head=True`: ResNet-50 42,004,074 parameters, ResNet-101 60,996,202. Bottlenecks have
    their stride in the 3x3 convolution, as torchvision's weights need it.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        encoder: name of an encoder, or a module with `widths` and `strides`; the next five settings belong to a name.
        weights: file of encoder weights.
        widths: channels of the encoder's stem and of the blocks of each stage, before the bottlenecks' factor 4 (of a
            VGG: of its five blocks); by default the encoder's own.
        output_stride: 8, 16 or 32: image voxels a side of a voxel of the deepest map; by default 16.
        multi_grid: further dilation of the last stage's blocks, see `ResNet`; None for none, "default" for (1, 2, 4)
            on a named ResNet.
        dilation: which convention a ResNet's dilated stages follow, see there; by default "every_block".
        rates: dilation of each atrous branch, in voxels of the deepest map; by default (6, 12, 18) at output stride 16
            and as many image voxels at another, so (12, 24, 36) at 8.
        aspp_width: channels of every branch, and of what joins them.
        head_convs: 3x3 convolutions between that and the classifier.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            batch norm, and the encoder its own.
        activation: after every norm.
        dropout: probability to drop a whole channel, after the branches are joined and in the auxiliary head.
        graph_reasoning: a GloRe block on the deepest map.
        auxiliary_head: a second head, for training.
        return_heads: its logits in evaluation, too.

    Raises:
        ConfigError: for settings that contradict each other.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        encoder: str | nn.Module = "resnet101",
        weights: str | Path | None = None,
        widths: Sequence[int] | None = None,
        output_stride: int | None = None,
        multi_grid: MultiGrid = "default",
        dilation: Dilation | None = None,
        rates: Sequence[int] | None = None,
        aspp_width: int = 256,
        head_convs: int = 0,
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        dropout: float = 0.1,
        graph_reasoning: bool = False,
        auxiliary_head: bool = False,
        return_heads: bool = False,
    ) -> None:
        super().__init__()
        check_counts(out_channels=out_channels, rates=rates, aspp_width=aspp_width)
        check_counts(0, head_convs=head_convs)
        self.return_heads = return_heads
        self.head_weights = (1.0, 0.5) if auxiliary_head else (1.0,)
        self.encoder = dilated_encoder(
            encoder,
            spatial_dims,
            in_channels,
            paper=DilatedForm(output_stride=16, multi_grid=(1, 2, 4)),
            weights=weights,
            widths=widths,
            output_stride=output_stride,
            multi_grid=multi_grid,
            dilation=dilation,
            norm=norm,
            activation=activation,
        )
        head_norm = norm_or("batch", norm)
        head = partial(conv_head, spatial_dims, norm=head_norm, activation=activation)
        *_, middle, deep = self.encoder.widths
        self.reasoning = GraphReasoning(spatial_dims, deep, norm=head_norm) if graph_reasoning else nn.Identity()
        self.aspp = ASPP(
            spatial_dims,
            deep,
            aspp_width,
            rates=rates_at(RATES, 16, self.encoder.strides[-1]) if rates is None else rates,
            norm=head_norm,
            activation=activation,
            dropout=dropout,
        )
        self.head = head(aspp_width, aspp_width, out_channels, convs=head_convs)
        self.auxiliary_head = build_auxiliary(
            partial(head, dropout=dropout), middle, out_channels, asked=auxiliary_head, return_heads=return_heads
        )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`, or a list of logits while training."""
        *_, middle, deep = self.encoder(image)
        logits = resize_like(self.head(self.aspp(self.reasoning(deep))), image)
        return with_auxiliary(logits, self.auxiliary_head, middle, wanted=self.training or self.return_heads)


class DeepLabV3Plus(nn.Module):
    """Image `(B, in_channels, *spatial)` -> logits `(B, out_channels, *spatial)`, any `spatial`.

    The joined ASPP is brought to the grid of the encoder's level of stride 4 (ResNet's first stage), put beside its
    projection, and refined by 3x3 convolutions. With `auxiliary_head`, while training, a list as in `DeepLabV3`.

    The defaults are the paper's decoder on ResNet-101, output stride 16. RGB, 21 classes: 59,344,309 parameters, with
    and without `multi_grid=(1, 2, 4)`. Departs from the paper in the encoder (its modified Xception is left out).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        encoder: name of an encoder, or a module with `widths` and `strides`; the next five settings belong to a name.
        weights: file of encoder weights.
        widths: channels of the encoder's stem and of the blocks of each stage, before the bottlenecks' factor 4 (of a
            VGG: of its five blocks); by default the encoder's own.
        output_stride: 8, 16 or 32: image voxels a side of a voxel of the deepest map; by default 16.
        multi_grid: further dilation of the last stage's blocks, see `ResNet`; None for none.
        dilation: which convention a ResNet's dilated stages follow, see there; by default "every_block".
        rates: dilation of each atrous branch, in voxels of the deepest map; by default (6, 12, 18) at output stride 16
            and as many image voxels at another, so (12, 24, 36) at 8.
        aspp_width: channels of every branch, of what joins them, and of the decoder.
        low_level_width: channels of the finer level's projection.
        head_convs: 3x3 convolutions of the decoder.
        separable: depthwise separable convolutions in ASPP and decoder.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            batch norm, and the encoder its own.
        activation: after every norm.
        dropout: probability to drop a whole channel, after the branches are joined and before the classifier.
        graph_reasoning: a GloRe block on the deepest map.
        auxiliary_head: a second head, for training; the paper has none.
        return_heads: its logits in evaluation, too.

    Raises:
        ConfigError: for settings that contradict each other, or an encoder without a level of stride 4.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        encoder: str | nn.Module = "resnet101",
        weights: str | Path | None = None,
        widths: Sequence[int] | None = None,
        output_stride: int | None = None,
        multi_grid: Sequence[int] | None = None,
        dilation: Dilation | None = None,
        rates: Sequence[int] | None = None,
        aspp_width: int = 256,
        low_level_width: int = 48,
        head_convs: int = 2,
        separable: bool = False,
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        dropout: float = 0.1,
        graph_reasoning: bool = False,
        auxiliary_head: bool = False,
        return_heads: bool = False,
    ) -> None:
        super().__init__()
        check_counts(out_channels=out_channels, rates=rates, aspp_width=aspp_width, low_level_width=low_level_width)
        check_counts(0, head_convs=head_convs)
        self.return_heads = return_heads
        self.head_weights = (1.0, 0.5) if auxiliary_head else (1.0,)
        self.encoder = dilated_encoder(
            encoder,
            spatial_dims,
            in_channels,
            paper=DilatedForm(output_stride=16),
            weights=weights,
            widths=widths,
            output_stride=output_stride,
            multi_grid=multi_grid,
            dilation=dilation,
            norm=norm,
            activation=activation,
        )
        widths, strides = self.encoder.widths, self.encoder.strides
        if 4 not in strides[:-1]:
            raise ConfigError(f"DeepLabV3Plus: the encoder has strides {list(strides)}; its decoder needs a level of 4")
        self.low_level = strides.index(4)
        head_norm = norm_or("batch", norm)
        head = partial(conv_head, spatial_dims, norm=head_norm, activation=activation, dropout=dropout)
        self.reasoning = GraphReasoning(spatial_dims, widths[-1], norm=head_norm) if graph_reasoning else nn.Identity()
        self.aspp = ASPP(
            spatial_dims,
            widths[-1],
            aspp_width,
            rates=rates_at(RATES, 16, strides[-1]) if rates is None else rates,
            separable=separable,
            norm=head_norm,
            activation=activation,
            dropout=dropout,
        )
        self.projection = conv_norm_act(
            spatial_dims, widths[self.low_level], low_level_width, kernel_size=1, norm=head_norm, activation=activation
        )
        self.head = head(aspp_width + low_level_width, aspp_width, out_channels, convs=head_convs, separable=separable)
        self.auxiliary_head = build_auxiliary(
            head, widths[-2], out_channels, asked=auxiliary_head, return_heads=return_heads
        )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`, or a list of logits while training."""
        pyramid = self.encoder(image)
        fine = self.projection(pyramid[self.low_level])
        context = resize_like(self.aspp(self.reasoning(pyramid[-1])), fine)
        logits = resize_like(self.head(torch.cat([context, fine], dim=1)), image)
        return with_auxiliary(logits, self.auxiliary_head, pyramid[-2], wanted=self.training or self.return_heads)
