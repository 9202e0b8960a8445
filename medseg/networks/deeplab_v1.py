"""DeepLab v1 (LargeFOV): VGG on a finer grid, its first dense layer an atrous convolution with a wide view.

Reference: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015,
arXiv:1412.7062 (2D; the 3D form is ours).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from medseg.networks.aspp import rates_at
from medseg.networks.blocks import (
    CONV,
    ActivationName,
    NormSetting,
    check_counts,
    choose,
    conv_norm_act,
    dropout_layer,
    norm_or,
    resize_like,
)
from medseg.networks.encoders import build_encoder
from medseg.networks.encoders.build import VGGS


class DeepLabV1(nn.Module):
    """Image `(B, in_channels, *spatial)` -> logits `(B, out_channels, *spatial)`, any `spatial`.

    VGG with pools of 3 voxels, the last two of which keep the grid (output stride 8, fifth block dilated by 2), then
    "fc6", 3x3 with dilation 12, "fc7" and the classifier, both 1x1.

    The defaults are the paper's DeepLab-LargeFOV on VGG-16. RGB, 21 classes: 20,505,429 parameters. Departs from it in
    dropping whole channels instead of single values, and in leaving out the average pool that the authors' release (not
    the paper) has before fc6. The paper's dense CRF is `medseg.crf`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        encoder: "vgg11" to "vgg19", with or without "_bn"; or a module with `widths` and `strides`, whose deepest map
            is used, and to which `weights`, `widths` do not apply.
        weights: file of encoder weights.
        widths: channels of the five blocks of VGG; by default its own.
        output_stride: 8, 16 or 32: image voxels a side of a voxel of the deepest map; by default 8.
        head_width: channels of fc6 and fc7.
        rate: dilation of fc6, in voxels of the deepest map; by default 12 at output stride 8 and as many image voxels
            at another, so 6 at 16.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            none (a VGG with "_bn" keeps its own).
        activation: after every norm.
        dropout: probability to drop a whole channel, after fc6 and fc7.

    Raises:
        ConfigError: for settings that contradict each other.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        encoder: str | nn.Module = "vgg16",
        weights: str | Path | None = None,
        widths: Sequence[int] | None = None,
        output_stride: int | None = None,
        head_width: int = 1024,
        rate: int | None = None,
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        conv = choose(CONV, "spatial_dims", spatial_dims)
        check_counts(out_channels=out_channels, head_width=head_width, rate=rate)
        by_name = isinstance(encoder, str)
        self.encoder = build_encoder(
            encoder,
            spatial_dims,
            in_channels,
            weights=weights,
            widths=widths,
            norm=norm,
            activation=activation,
            output_stride=8 if by_name and output_stride is None else output_stride,
            pool_kernel_size=3 if by_name else None,
            names=VGGS,
        )
        if rate is None:
            (rate,) = rates_at([12], 8, self.encoder.strides[-1])
        block = partial(conv_norm_act, spatial_dims, norm=norm_or(None, norm), activation=activation)
        self.fc6 = block(self.encoder.widths[-1], head_width, kernel_size=3, dilation=rate)
        self.fc7 = block(head_width, head_width, kernel_size=1)
        self.dropout = dropout_layer(spatial_dims, dropout)
        self.head = conv(head_width, out_channels, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`."""
        features = self.encoder(image)[-1]
        features = self.dropout(self.fc6(features))
        features = self.dropout(self.fc7(features))
        return resize_like(self.head(features), image)
