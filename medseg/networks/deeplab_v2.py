"""DeepLab v2: atrous classifiers of four rates, summed, on a dilated ResNet.

Reference: Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and
Fully Connected CRFs", PAMI 2018, arXiv:1606.00915 (2D; the 3D form is ours).
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from medseg.networks.aspp import AtrousClassifiers
from medseg.networks.blocks import ActivationName, NormName, choose, resize_like
from medseg.networks.encoders import Encoder, ResNet, build_encoder

RESNET_DEPTH = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}


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
            which the next three settings do not apply.
        weights: file of encoder weights.
        widths: channels of stem and stages, finest first; by default the encoder's own.
        stride_in_1x1: the Caffe form; False for torchvision's weights, which have the stride in the 3x3 convolution.
        rates: dilation of each classifier, in voxels of the deepest map.
        norm: after every convolution of the encoder.
        activation: after every norm.

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
        stride_in_1x1: bool = True,
        rates: Sequence[int] = (6, 12, 18, 24),
        norm: NormName = "batch",
        activation: ActivationName = "relu",
    ) -> None:
        super().__init__()
        self.encoder: Encoder
        if isinstance(encoder, str):
            self.encoder = ResNet(
                spatial_dims,
                in_channels,
                depth=choose(RESNET_DEPTH, "encoder", encoder),
                widths=widths or (64, 64, 128, 256, 512),
                output_stride=8,
                dilation="every_block",
                stride_in_1x1=stride_in_1x1,
                norm=norm,
                activation=activation,
                weights=weights,
            )
        else:
            self.encoder = build_encoder(encoder, spatial_dims, in_channels, weights=weights, widths=widths)
        self.head = AtrousClassifiers(spatial_dims, self.encoder.widths[-1], out_channels, rates=rates)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`."""
        return resize_like(self.head(self.encoder(image)[-1]), image)
