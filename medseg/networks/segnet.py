"""SegNet: a decoder that mirrors VGG and puts each value back to the voxel that the pooling took it from.

Reference: Badrinarayanan et al., "SegNet", PAMI 2017, arXiv:1511.00561 (2D; the 3D form is ours).
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    CONV,
    MAX_POOL,
    ActivationName,
    NormSetting,
    check_counts,
    choose,
    conv_norm_act,
    norm_or,
)
from medseg.networks.decoder import Interpolation, TransposedConv
from medseg.networks.encoders import VGG, build_encoder
from medseg.networks.encoders.build import VGGS

Upsampling = Literal["unpool", "interpolate", "transposed"]

CLIMBS = {  # to the grid before a pooling; None for its positions
    "unpool": None,
    "interpolate": partial(Interpolation, interpolation="linear", projects=False),
    "transposed": partial(TransposedConv, fits=True),
}


class SegNet(nn.Module):
    """Image `(B, in_channels, *spatial)` -> logits `(B, out_channels, *spatial)`, any `spatial`.

    The defaults are the paper's: VGG-16 with batch norm, 13 convolutions down and 13 up. In 2D with 3 channels and 21
    classes it has 29,455,125 parameters, in 3D with 1 channel and 3 classes 88,283,139; both count 3,712 biases of the
    decoder that a norm would cancel, and that are left out here.

    No skip carries features to the decoder; the positions of the maxima do, so that edges stay sharp and the unpooling
    has no weights. Odd sizes are rounded up on the way down, and unpooled to what they were.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        encoder: "vgg11_bn", "vgg16_bn", ..., or a `VGG`, to which `norm` and `activation` then do not apply.
        weights: file of encoder weights.
        widths: channels of the five blocks, finest first; 64 to 512 if None.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            batch norm, and the encoder its own.
        activation: after every norm.
        dropout: probability to drop a whole channel, in every convolution of the decoder.
        upsampling: by the positions of the maxima, as in the paper; or interpolation, or a transposed convolution.

    Raises:
        ConfigError: for an encoder without pooling indices, or with overlapping poolings.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        encoder: str | nn.Module = "vgg16_bn",
        weights: str | Path | None = None,
        widths: Sequence[int] | None = None,
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
        upsampling: Upsampling = "unpool",
    ) -> None:
        super().__init__()
        conv = choose(CONV, "spatial_dims", spatial_dims)
        climb = choose(CLIMBS, "upsampling", upsampling)
        check_counts(out_channels=out_channels)
        vgg = build_encoder(
            encoder,
            spatial_dims,
            in_channels,
            weights=weights,
            widths=widths,
            norm=norm,
            activation=activation,
            names=VGGS,
        )
        if not isinstance(vgg, VGG):
            raise ConfigError(f"SegNet: encoder is a {type(vgg).__name__}; use a VGG, which pools with indices")
        pools = [layer for layer in vgg.features if isinstance(layer, MAX_POOL[spatial_dims])]
        if any(pool.kernel_size != pool.stride for pool in pools):
            raise ConfigError("SegNet: the encoder's poolings overlap; use a VGG of output_stride 32 and pool size 2")
        self.encoder: VGG = vgg
        block = partial(
            conv_norm_act, spatial_dims, norm=norm_or("batch", norm), activation=activation, dropout=dropout
        )
        widths = vgg.widths[:-1]
        steps = []
        for shallow, width, convs in zip((widths[0], *widths[:-1]), widths, vgg.convs_per_block, strict=True):
            steps.append(nn.Sequential(*(block(width, width) for _ in range(convs - 1)), block(width, shallow)))
        del steps[0][-1]  # the last convolution of the finest step is the classifier
        self.steps = nn.ModuleList(steps)
        self.climbs: nn.ModuleList | None = None
        if climb is not None:
            self.climbs = nn.ModuleList(climb(spatial_dims, width, width, (2,) * spatial_dims) for width in widths)
        self.head = conv(widths[0], out_channels, kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`."""
        pools, indices = self.encoder.pooled(image)
        finer, features = (image, *pools[:-1]), pools[-1]
        for level in reversed(range(len(pools))):
            if self.climbs is None:
                features = unpool(features, indices[level], finer[level].shape[2:])
            else:
                features = self.climbs[level](features, finer[level])
            features = self.steps[level](features)
        logits: Tensor = self.head(features)
        return logits


def unpool(features: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    """Each value at the voxel its pooling took it from, zeros elsewhere.

    A scatter, which repeats itself on a GPU if asked to; torch's own unpooling refuses there.

    Args:
        features: `(B, C, *coarse)`.
        indices: of the maxima, as torch's pooling gives them: counted over all voxels of `size`; no two equal, as where
            windows do not overlap.
        size: grid before the pooling.

    Returns:
        `(B, C, *size)`.
    """
    batch, channels = features.shape[:2]
    flat = features.new_zeros(batch, channels, prod(size)).scatter(2, indices.flatten(2), features.flatten(2))
    return flat.view(batch, channels, *size)
