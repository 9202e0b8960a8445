"""FCN: a classifier made convolutional, its coarse scores joined with those of finer maps; on VGG, or a dilated ResNet.

Reference: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, arXiv:1411.4038 (2D).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import ConfigError
from medseg.networks.aspp import conv_head
from medseg.networks.blocks import (
    CONV,
    TRANSPOSED_CONV,
    ActivationName,
    NormName,
    NormSetting,
    activation_layer,
    check_counts,
    choose,
    conv_norm_act,
    crop_like,
    dropout_layer,
    norm_layers,
    norm_or,
    resize_like,
)
from medseg.networks.dilated import DilatedForm, dilated_encoder
from medseg.networks.encoders import VGG
from medseg.networks.encoders.build import RESNETS
from medseg.networks.encoders.resnet import Dilation
from medseg.networks.heads import build_auxiliary, with_auxiliary

Variant = Literal["8s", "16s", "32s"]
Padding = Literal["same", "pad100"]

FACTORS = {"8s": (2, 2, 8), "16s": (2, 16), "32s": (32,)}  # of each upsampling, from the scores at stride 32
MARGIN = {"same": 0, "pad100": 99}  # zeros around the image; the first convolution pads the 100th
CROPS = {"8s": (5, 9, 31), "16s": (5, 27), "32s": (19,)}  # of pad100, the authors': of each skip, then of the last map


class FCN(nn.Module):
    """Image `(B, in_channels, *spatial)` -> logits `(B, out_channels, *spatial)`, any `spatial`.

    On VGG, the paper's network: two convolutions in place of the fully connected layers, a score layer there and, in
    "16s" and "8s", on the fourth and third pooled maps; transposed convolutions that start as linear interpolation
    bring the sums to the image's grid. The defaults are FCN-8s on VGG-16: 134,489,759 parameters in 2D with 3 channels
    and 21 classes (16s 134,815,994, 32s 136,152,917). In 3D, `fc_width=256, fc_kernel_size=3` keeps it small:
    47,778,249 with 1 channel and 3 classes.

    On another encoder, torchvision's form: a 3x3 convolution and a classifier on the deepest map, dilated to stride 8,
    interpolated to the image. ResNet-50 and -101 with an auxiliary head: 35,322,218 and 54,314,346 parameters.

    Departs from the paper in the 3D form, in "same" padding, in norms and narrow widths if asked for, in dropping whole
    channels, in scores that do not start at zero (so that it learns without a trained encoder), and in one training
    from scratch instead of 32s, 16s and 8s in turn.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        encoder: "vgg16", "vgg16_bn", "resnet50", ..., or an encoder module.
        weights: file of encoder weights.
        widths: channels of a VGG's five blocks; or of a ResNet's stem and of the blocks of each stage, before the
            bottlenecks' factor 4; by default the encoder's own.
        variant: VGG only. Stride of the finest scores: 32, 16 or 8.
        padding: VGG only. "same" keeps every map over the image; "pad100" is the original form with its crops, 2D only.
        fc_width: VGG only. Channels of the two convolutions in place of fully connected layers.
        fc_kernel_size: VGG only. Odd, of the first of the two; with "pad100" 7.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            the encoder its own, a VGG's head none, another's batch norm.
        activation: after every convolution but the classifiers.
        dropout: probability to drop a whole channel before a classifier (the paper: 0.5; torchvision: 0.1).
        output_stride: ResNet only. 8, 16 or 32; 8 if None.
        dilation: ResNet only. Which blocks of a dilated stage dilate: "torchvision" (by default) or "every_block".
        auxiliary_head: ResNet only. A head on the last but one stage while training; it stays on that map's grid
            (torchvision interpolates it).
        return_heads: the auxiliary head in evaluation too.

    Attributes:
        head_weights: of the heads' losses, main first; the auxiliary 0.4 is PSPNet's (arXiv:1612.01105), torchvision's
            reference training has 0.5.

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
        variant: Variant = "8s",
        padding: Padding = "same",
        fc_width: int = 4096,
        fc_kernel_size: int = 7,
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        dropout: float = 0.5,
        output_stride: int | None = None,
        dilation: Dilation | None = None,
        auxiliary_head: bool = False,
        return_heads: bool = False,
    ) -> None:
        super().__init__()
        choose(CONV, "spatial_dims", spatial_dims)
        self.margin = choose(MARGIN, "padding", padding)
        check_counts(out_channels=out_channels, fc_width=fc_width, fc_kernel_size=fc_kernel_size)
        self.return_heads = return_heads
        self.head_weights = (1.0, 0.4) if auxiliary_head else (1.0,)
        is_resnet = isinstance(encoder, str) and encoder in RESNETS
        self.encoder = dilated_encoder(
            encoder,
            spatial_dims,
            in_channels,
            paper=DilatedForm(output_stride=8 if is_resnet else 32, dilation="torchvision"),
            weights=weights,
            widths=widths,
            output_stride=output_stride,
            dilation=dilation,
            norm=norm,
            activation=activation,
        )
        self.head: nn.Module
        self.auxiliary_head: nn.Module | None = None
        if isinstance(self.encoder, VGG):
            if auxiliary_head or return_heads or self.encoder.strides[-1] != 32:
                raise ConfigError(
                    "FCN: auxiliary_head, return_heads and output_stride need a ResNet encoder, this is a VGG; "
                    "leave them out"
                )
            self.head = SkipHead(
                spatial_dims,
                self.encoder.widths[:-1],
                out_channels,
                variant=variant,
                padding=padding,
                fc_width=fc_width,
                fc_kernel_size=fc_kernel_size,
                norm=norm_or(None, norm),
                activation=activation,
                dropout=dropout,
            )
        else:
            if (variant, padding, fc_width, fc_kernel_size) != ("8s", "same", 4096, 7):
                raise ConfigError(
                    "FCN: variant, padding, fc_width and fc_kernel_size need a VGG encoder, such as 'vgg16'; "
                    "leave them out"
                )
            *_, middle, deep = self.encoder.widths
            head = partial(conv_head, spatial_dims, norm=norm_or("batch", norm), activation=activation, dropout=dropout)
            self.head = head(deep, max(8, deep // 4), out_channels)
            self.auxiliary_head = build_auxiliary(
                head, middle, out_channels, asked=auxiliary_head, return_heads=return_heads
            )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`, or main and auxiliary logits."""
        if isinstance(self.encoder, VGG):
            pools, _ = self.encoder.pooled(F.pad(image, (self.margin,) * (2 * (image.ndim - 2))))
            logits: Tensor = self.head(pools, image)
            return logits
        *_, middle, deep = self.encoder(image)
        logits = resize_like(self.head(deep), image)
        return with_auxiliary(logits, self.auxiliary_head, middle, wanted=self.training or self.return_heads)


class SkipHead(nn.Module):
    """Scores of the deepest pooled map, upsampled and added to those of finer ones, down to the image.

    Reference:
        Long et al., CVPR 2015, arXiv:1411.4038, figure 3.

    Raises:
        ConfigError: if `fc_kernel_size` does not go with `padding`, or "pad100" is asked for in 3D.
    """

    def __init__(
        self,
        spatial_dims: int,
        widths: Sequence[int],
        out_channels: int,
        *,
        variant: Variant,
        padding: Padding,
        fc_width: int,
        fc_kernel_size: int,
        norm: NormName,
        activation: ActivationName,
        dropout: float,
    ) -> None:
        super().__init__()
        factors = choose(FACTORS, "variant", variant)
        same = padding == "same"
        if not same and spatial_dims != 2:
            raise ConfigError("FCN: padding 'pad100' is the original 2D form; use 'same' in 3D")
        if fc_kernel_size % 2 == 0 or (not same and fc_kernel_size != 7):
            raise ConfigError(f"FCN: fc_kernel_size is {fc_kernel_size}; use an odd one, with 'pad100' 7")
        self.centered = same
        self.crops = (0,) * len(factors) if same else CROPS[variant]
        conv = CONV[spatial_dims]
        self.fully_connected = nn.Sequential(
            conv(widths[-1], fc_width, fc_kernel_size, padding=fc_kernel_size // 2 if same else 0, bias=norm is None),
            dropout_layer(spatial_dims, dropout),
            *norm_layers(norm, fc_width),
            activation_layer(activation),
            conv_norm_act(
                spatial_dims,
                fc_width,
                fc_width,
                kernel_size=1,
                norm=norm,
                activation=activation,
                dropout=dropout,
            ),
        )
        score_widths = (fc_width, *reversed(widths[-len(factors) : -1]))
        self.scores = nn.ModuleList(conv(width, out_channels, kernel_size=1) for width in score_widths)
        self.upsamplings = nn.ModuleList(
            linear_upsampling(spatial_dims, out_channels, factor, centered=same) for factor in factors
        )
        for layer in (*self.fully_connected.modules(), *self.scores):
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):  # torch's own start fades out in so deep a net without norms
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, pools: Sequence[Tensor], image: Tensor) -> Tensor:
        """Pooled maps of the image with its margin, finest first -> logits `(B, out_channels, *image's grid)`."""
        first, *others = self.scores
        logits: Tensor = first(self.fully_connected(pools[-1]))
        *steps, (last_upsampling, last_crop) = zip(self.upsamplings, self.crops, strict=True)
        for score, pool, (upsampling, offset) in zip(others, pools[-2::-1], steps, strict=False):
            skip = score(pool)
            logits = upsampling(logits)
            logits = crop_like(logits, skip) + skip if self.centered else logits + crop_like(skip, logits, offset)
        return crop_like(last_upsampling(logits), image, last_crop)


def linear_upsampling(spatial_dims: int, channels: int, factor: int, *, centered: bool) -> nn.Module:
    """Learned upsampling by `factor` that starts as linear interpolation of each channel.

    `centered` takes half a coarse voxel off each end, so that each coarse voxel lies over its `factor` fine ones.
    """
    layer = TRANSPOSED_CONV[spatial_dims](
        channels, channels, 2 * factor, stride=factor, padding=factor // 2 if centered else 0, bias=False
    )
    tent = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    kernel = torch.ones(())
    for _ in range(spatial_dims):
        kernel = kernel[..., None] * tent
    each_to_itself = torch.eye(channels).reshape(channels, channels, *[1] * spatial_dims)
    with torch.no_grad():
        layer.weight.copy_(each_to_itself * kernel)
    return layer
