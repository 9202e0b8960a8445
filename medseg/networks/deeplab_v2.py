"""DeepLab v2: atrous classifiers of four rates, summed, on a dilated ResNet.

Reference: Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and
Fully Connected CRFs", PAMI 2018, arXiv:1606.00915 (2D; the 3D form is ours).
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from medseg.networks.aspp import AtrousClassifiers, rates_at
from medseg.networks.blocks import ActivationName, NormSetting, check_counts, dropout_layer, resize_like
from medseg.networks.encoders import build_encoder
from medseg.networks.encoders.build import RESNETS

RATES = (6, 12, 18, 24)  # the paper's, at output stride 8


class DeepLabV2(nn.Module):
    """Image `(B, in_channels, *spatial)` -> logits `(B, out_channels, *spatial)`, any `spatial`.

    The defaults are the paper's DeepLab-ASPP-L on ResNet-101 in its Caffe form (the stride of a bottleneck in its first
    1x1 convolution, every block of a dilated stage dilated), output stride 8. RGB, 21 classes: 44,048,532 parameters.
    Departs from it in running at one scale (the paper takes the maximum over three), in a stem pool that rounds as
    torchvision's does, and in batch norm that learns. The paper's dense CRF is `medseg.crf`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        encoder: "resnet18" to "resnet152"; or a module with `widths` and `strides`, whose deepest map is used, and to
            which `weights`, `widths`, `stride_in_1x1`, `norm` and `activation` do not apply.
        weights: file of encoder weights.
        widths: channels of the stem and of the blocks of each stage, before the bottlenecks' factor 4; by default the
            encoder's own.
        output_stride: 8, 16 or 32: image voxels a side of a voxel of the deepest map; by default 8.
        stride_in_1x1: the Caffe form (True), or the stride in the 3x3 convolution (False), as in torchvision's files of
            weights, which have the same names; by default the Caffe form, with `weights` torchvision's.
        rates: dilation of each classifier, in voxels of the deepest map; by default (6, 12, 18, 24) at output stride 8
            and as many image voxels at another, so (3, 6, 9, 12) at 16.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            batch norm.
        activation: after every norm.
        dropout: probability to drop a whole channel of the deepest map, before the classifiers; the paper has none.

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
        stride_in_1x1: bool | None = None,
        rates: Sequence[int] | None = None,
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts(out_channels=out_channels, rates=rates)
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
            dilation="every_block" if by_name else None,
            stride_in_1x1=weights is None if by_name and stride_in_1x1 is None else stride_in_1x1,
            names=RESNETS,
        )
        rates = rates_at(RATES, 8, self.encoder.strides[-1]) if rates is None else rates
        self.dropout = dropout_layer(spatial_dims, dropout)
        self.head = AtrousClassifiers(spatial_dims, self.encoder.widths[-1], out_channels, rates=rates)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`."""
        return resize_like(self.head(self.dropout(self.encoder(image)[-1])), image)
