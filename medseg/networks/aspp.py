"""Atrous spatial pyramid pooling in its two published forms, and the convolutional head that follows context modules.

Atrous (dilated) convolutions side by side see the same map at several scales. DeepLab v2 sums a classifier a scale;
v3 concatenates features of each scale with those of the whole image.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from medseg.networks.blocks import CONV, ActivationName, NormName, check_counts, choose, conv_norm_act, dropout_layer


class AtrousClassifiers(nn.Module):
    """Sum of 3x3 classifiers with one dilation each: features `(B, C, *spatial)` -> logits on the same grid.

    Reference:
        Chen et al., "DeepLab", PAMI 2018, arXiv:1606.00915, figure 7 (ASPP of v2, 2D; the 3D form is ours).

    Raises:
        ConfigError: if there is no rate, or one is below 1.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, *, rates: Sequence[int]) -> None:
        super().__init__()
        conv = choose(CONV, "spatial_dims", spatial_dims)
        check_counts(rates=rates)
        self.classifiers = nn.ModuleList(
            conv(in_channels, out_channels, kernel_size=3, padding=rate, dilation=rate) for rate in rates
        )

    def forward(self, features: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`."""
        return torch.stack([classifier(features) for classifier in self.classifiers]).sum(0)


class ASPP(nn.Module):
    """A 1x1 convolution, atrous 3x3 convolutions and image pooling side by side, joined by a 1x1 projection.

    The image's mean is one voxel: batch norm there uses its running statistics where the batch is one sample too, and
    instance norm normalizes over channels (see `blocks`).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the encoder's deepest map.
        width: channels of every branch, and of the result.
        rates: dilation of each atrous branch, in voxels of the map.
        separable: depthwise separable atrous convolutions (v3+).
        norm: after every convolution.
        activation: after every norm.
        dropout: probability to drop a whole channel of the result.

    Reference:
        Chen et al., "Rethinking Atrous Convolution", 2017, arXiv:1706.05587 (v3, 2D; the 3D form is ours).

    Raises:
        ConfigError: if there is no rate, or one is below 1.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        width: int,
        *,
        rates: Sequence[int],
        separable: bool = False,
        norm: NormName = "batch",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts(rates=rates)
        point = partial(conv_norm_act, spatial_dims, kernel_size=1, norm=norm, activation=activation)
        spread = partial(
            separable_conv_norm_act if separable else conv_norm_act, spatial_dims, norm=norm, activation=activation
        )
        self.point = point(in_channels, width)
        self.atrous = nn.ModuleList(spread(in_channels, width, dilation=rate) for rate in rates)
        self.image_pooling = point(in_channels, width)
        self.projection = point((2 + len(self.atrous)) * width, width)
        self.dropout = dropout_layer(spatial_dims, dropout)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, width, *spatial)`."""
        size = features.shape[2:]
        mean = features.mean(tuple(range(2, features.ndim)), keepdim=True)
        whole = self.image_pooling(mean).expand(-1, -1, *size)
        branches = [self.point(features), *(branch(features) for branch in self.atrous), whole]
        out: Tensor = self.dropout(self.projection(torch.cat(branches, dim=1)))
        return out


def separable_conv_norm_act(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    *,
    dilation: int = 1,
    norm: NormName = "batch",
    activation: ActivationName = "relu",
) -> nn.Sequential:
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution, norm and activation; keeps the grid.

    As v3+ defines it (section 3.1); its Xception adds norm and activation between the two.

    Reference:
        Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018, arXiv:1802.02611.
    """
    depthwise = CONV[spatial_dims](
        in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
    )
    point = conv_norm_act(spatial_dims, in_channels, out_channels, kernel_size=1, norm=norm, activation=activation)
    return nn.Sequential(depthwise, *point)


def conv_head(
    spatial_dims: int,
    in_channels: int,
    width: int,
    out_channels: int,
    *,
    convs: int = 1,
    separable: bool = False,
    norm: NormName = "batch",
    activation: ActivationName = "relu",
    dropout: float = 0.0,
) -> nn.Sequential:
    """`convs` 3x3 convolutions to `width` channels, dropout of whole channels, a 1x1 classifier; keeps the grid."""
    block = partial(
        separable_conv_norm_act if separable else conv_norm_act, spatial_dims, norm=norm, activation=activation
    )
    sources = [in_channels, *[width] * convs]
    layers = [block(source, width) for source in sources[:-1]]
    classifier = choose(CONV, "spatial_dims", spatial_dims)(sources[-1], out_channels, kernel_size=1)
    return nn.Sequential(*layers, dropout_layer(spatial_dims, dropout), classifier)


def rates_at(rates: Sequence[int], paper_stride: int, output_stride: int) -> tuple[int, ...]:
    """A paper's dilations, in voxels of a map of another stride: as wide in the image at every stride."""
    return tuple(max(1, rate * paper_stride // output_stride) for rate in rates)
