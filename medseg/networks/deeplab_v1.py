"""DeepLab v1 (LargeFOV): VGG on a finer grid, its first dense layer an atrous convolution with a wide view.

Reference: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015,
arXiv:1412.7062 (2D; the 3D form is ours).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from medseg.networks.blocks import CONV, DROPOUT, ActivationName, NormName, choose, conv_norm_act, resize_like
from medseg.networks.encoders import VGG, Encoder, build_encoder

VGG_DEPTH = {"vgg11": 11, "vgg13": 13, "vgg16": 16, "vgg19": 19}


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
        encoder: "vgg11", "vgg13", "vgg16" or "vgg19"; or a module with `widths` and `strides`, whose deepest map is
            used, and to which `weights`, `widths` do not apply.
        weights: file of encoder weights.
        widths: channels of the five blocks of VGG; by default its own.
        head_width: channels of fc6 and fc7.
        rate: dilation of fc6, in voxels of the deepest map.
        norm: after every convolution but the classifier; the paper has none.
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
        head_width: int = 1024,
        rate: int = 12,
        norm: NormName = None,
        activation: ActivationName = "relu",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        conv = choose(CONV, "spatial_dims", spatial_dims)
        self.encoder: Encoder = (
            VGG(
                spatial_dims,
                in_channels,
                depth=choose(VGG_DEPTH, "encoder", encoder),
                widths=widths or (64, 128, 256, 512, 512),
                norm=norm,
                activation=activation,
                output_stride=8,
                pool_kernel_size=3,
                weights=weights,
            )
            if isinstance(encoder, str)
            else build_encoder(encoder, spatial_dims, in_channels, weights=weights, widths=widths)
        )
        block = partial(conv_norm_act, spatial_dims, norm=norm, activation=activation)
        self.fc6 = block(self.encoder.widths[-1], head_width, kernel_size=3, dilation=rate)
        self.fc7 = block(head_width, head_width, kernel_size=1)
        self.dropout = DROPOUT[spatial_dims](dropout)
        self.head = conv(head_width, out_channels, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`."""
        features = self.encoder(image)[-1]
        features = self.dropout(self.fc6(features))
        features = self.dropout(self.fc7(features))
        return resize_like(self.head(features), image)
