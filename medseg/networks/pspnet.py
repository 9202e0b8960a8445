"""PSPNet: the deepest map beside its own means over 1, 2, 3 and 6 parts of every axis.

Reference: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, arXiv:1612.01105 (2D; the 3D form is ours).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg.networks.aspp import conv_head
from medseg.networks.blocks import (
    ActivationName,
    NormName,
    NormSetting,
    average_bins,
    check_counts,
    conv_norm_act,
    norm_or,
    resize_like,
)
from medseg.networks.dilated import DilatedForm, dilated_encoder
from medseg.networks.encoders.resnet import Dilation
from medseg.networks.glore import GraphReasoning
from medseg.networks.heads import build_auxiliary, with_auxiliary


class PSPNet(nn.Module):
    """Image `(B, in_channels, *spatial)` -> logits `(B, out_channels, *spatial)`, any `spatial`.

    With `auxiliary_head`, while training, a list: the logits, then those of the encoder's level before the last on its
    own grid; the paper weights them 1 and 0.4 (`head_weights`).

    The defaults are the paper's PSPNet-50 in the form its authors released (semseg): deep stem, output stride 8, every
    block dilated. RGB, 21 classes, with auxiliary head: 49,081,578 parameters. Departs from it in pixel centers that
    stay aligned when maps are resized (`align_corners=False`) and in padding no image: any size is taken.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        encoder: name of an encoder, or a module with `widths` and `strides`; the next six settings belong to a name.
        weights: file of encoder weights.
        widths: channels of the encoder's stem and of the blocks of each stage, before the bottlenecks' factor 4 (of a
            VGG: of its five blocks); by default the encoder's own.
        output_stride: 8, 16 or 32: image voxels a side of a voxel of the deepest map; by default 8.
        multi_grid: further dilation of the last stage's blocks, see `ResNet`.
        dilation: which convention a ResNet's dilated stages follow, see there; by default "every_block".
        deep_stem: three 3x3 convolutions in place of a ResNet's one 7x7, by default; False for torchvision's weights.
        bins: parts of every axis, one branch each.
        bin_width: channels of each branch; by default the deepest map's, divided among the branches.
        head_width: channels of the 3x3 convolution before the classifier.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            batch norm, and the encoder its own.
        activation: after every norm.
        dropout: probability to drop a whole channel before a classifier.
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
        encoder: str | nn.Module = "resnet50",
        weights: str | Path | None = None,
        widths: Sequence[int] | None = None,
        output_stride: int | None = None,
        multi_grid: Sequence[int] | None = None,
        dilation: Dilation | None = None,
        deep_stem: bool | None = None,
        bins: Sequence[int] = (1, 2, 3, 6),
        bin_width: int | None = None,
        head_width: int = 512,
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        dropout: float = 0.1,
        graph_reasoning: bool = False,
        auxiliary_head: bool = False,
        return_heads: bool = False,
    ) -> None:
        super().__init__()
        check_counts(out_channels=out_channels, bins=bins, bin_width=bin_width, head_width=head_width)
        self.return_heads = return_heads
        self.head_weights = (1.0, 0.4) if auxiliary_head else (1.0,)
        self.encoder = dilated_encoder(
            encoder,
            spatial_dims,
            in_channels,
            paper=DilatedForm(output_stride=8, deep_stem=True),
            weights=weights,
            widths=widths,
            output_stride=output_stride,
            multi_grid=multi_grid,
            dilation=dilation,
            deep_stem=deep_stem,
            norm=norm,
            activation=activation,
        )
        *_, middle, deep = self.encoder.widths
        head_norm = norm_or("batch", norm)
        head = partial(conv_head, spatial_dims, norm=head_norm, activation=activation, dropout=dropout)
        self.reasoning = GraphReasoning(spatial_dims, deep, norm=head_norm) if graph_reasoning else nn.Identity()
        self.pyramid = PyramidPooling(
            spatial_dims, deep, bins=bins, width=bin_width, norm=head_norm, activation=activation
        )
        self.head = head(self.pyramid.out_channels, head_width, out_channels)
        self.auxiliary_head = build_auxiliary(
            head, middle, out_channels, asked=auxiliary_head, return_heads=return_heads
        )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`, or a list of logits while training."""
        *_, middle, deep = self.encoder(image)
        logits = resize_like(self.head(self.pyramid(self.reasoning(deep))), image)
        return with_auxiliary(logits, self.auxiliary_head, middle, wanted=self.training or self.return_heads)


class PyramidPooling(nn.Module):
    """Features beside their means over coarse grids: `(B, C, *spatial)` -> `(B, C + bins * width, *spatial)`.

    A grid of one voxel is safe to normalize, see `blocks`. Bins finer than the map share voxels.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the features.
        bins: parts of every axis, one branch each.
        width: channels of each branch; by default `in_channels` divided among them, at least 8.
        norm: after the 1x1 convolution of each branch.
        activation: after the norm.

    Raises:
        ConfigError: if there are no bins, or one is below 1.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        bins: Sequence[int] = (1, 2, 3, 6),
        width: int | None = None,
        norm: NormName = "batch",
        activation: ActivationName = "relu",
    ) -> None:
        super().__init__()
        check_counts(bins=bins)
        width = max(8, in_channels // len(bins)) if width is None else width
        self.bins = tuple(bins)
        self.out_channels = in_channels + len(bins) * width
        self.branches = nn.ModuleList(
            conv_norm_act(spatial_dims, in_channels, width, kernel_size=1, norm=norm, activation=activation)
            for _ in bins
        )

    def forward(self, features: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`."""
        means = [
            resize_like(branch(average_bins(features, count)), features)
            for count, branch in zip(self.bins, self.branches, strict=True)
        ]
        return torch.cat([features, *means], dim=1)
