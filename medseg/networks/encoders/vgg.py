"""VGG: blocks of 3x3 convolutions, each followed by a max-pooling whose positions a decoder may ask for.

Reference: Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015, arXiv:1409.1556; with holes: Chen et
al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015, arXiv:1412.7062.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from operator import mul
from pathlib import Path

from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    CONV,
    MAX_POOL,
    ActivationName,
    NormSetting,
    activation_layer,
    check_counts,
    choose,
    norm_layers,
    norm_or,
)
from medseg.networks.encoders.weights import load_weights, start_as_he

CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # a block
POOL_STRIDES = {32: (2, 2, 2, 2, 2), 16: (2, 2, 2, 2, 1), 8: (2, 2, 2, 1, 1)}
POOL_PADDING = {2: 0, 3: 1}


class VGG(nn.Module):
    """Image `(B, in_channels, *spatial)` -> six levels `(B, widths[i], *spatial / strides[i])`, finest first.

    The levels are the five blocks before their pooling, and what the last pooling leaves. `features` is torchvision's
    list of layers, so that files of its weights load; its classifier is left out.

    The defaults are VGG-16: 14,714,688 parameters in 2D with 3 channels. Departs from torchvision in rounding odd grids
    up, so that images of any size pass (`ceil_mode=False` is torchvision's form; at multiples of 32 they are the same).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        depth: 11, 13, 16 or 19, the layers with weights, the three of the classifier included.
        widths: channels of the five blocks.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            none. The convolutions keep their biases, as in torchvision.
        activation: after every norm.
        output_stride: of the deepest level: 32; at 16 the last pooling keeps the grid, at 8 the last two do, and the
            fifth block dilates by 2 (DeepLab v1).
        pool_kernel_size: 2, or 3 with a margin of one voxel. Poolings that keep the grid have 3.
        ceil_mode: an odd grid is rounded up by poolings of 2 voxels, not down; those of 3 round up in any case.
        weights: file of weights, see `load_weights`.

    Attributes:
        widths: channels of each level.
        strides: image voxels a side of a voxel of each level.
        convs_per_block: convolutions of each of the five blocks.

    Raises:
        ConfigError: for settings that are unknown or contradict each other.
        DataError: for a file of weights that does not fit.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        depth: int = 16,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        output_stride: int = 32,
        pool_kernel_size: int = 2,
        ceil_mode: bool = True,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        conv, pool = choose(CONV, "spatial_dims", spatial_dims), MAX_POOL[spatial_dims]
        self.convs_per_block = choose(CONVS, "depth", depth)
        steps = choose(POOL_STRIDES, "output_stride", output_stride)
        choose(POOL_PADDING, "pool_kernel_size", pool_kernel_size)
        check_counts(in_channels=in_channels, widths=widths)
        if len(widths) != 5:
            raise ConfigError(f"VGG: got {len(widths)} widths; give 5, one for each block")
        self.widths = (*widths, widths[-1])
        self.strides = tuple(accumulate(steps, mul, initial=1))
        self.features = nn.Sequential()
        for block, (above, width) in enumerate(pairwise((in_channels, *widths))):
            rate = 2**block // self.strides[block]  # what poolings that keep the grid left out
            for channels in (above, *[width] * (self.convs_per_block[block] - 1)):
                self.features.append(conv(channels, width, 3, padding=rate, dilation=rate))
                self.features.extend([*norm_layers(norm_or(None, norm), width), activation_layer(activation)])
            kernel_size = pool_kernel_size if steps[block] == 2 else 3
            rounds_up = ceil_mode and kernel_size == 2
            padding = POOL_PADDING[kernel_size]
            self.features.append(pool(kernel_size, steps[block], padding, return_indices=True, ceil_mode=rounds_up))
        start_as_he(self)
        if weights is not None:
            load_weights(self, weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        """`(B, in_channels, *spatial)` -> the six levels, finest first."""
        levels, pools, _ = zip(*self._blocks(image), strict=True)
        return [*levels, pools[-1]]

    def pooled(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What each of the five poolings leaves, and where it took it from.

        Args:
            image: `(B, in_channels, *spatial)`.

        Returns:
            The pooled maps `(B, widths[i], *spatial / strides[i + 1])`, finest first, and of the same shapes the
            positions of their voxels, counted over all voxels of the grid before the pooling.
        """
        _, pools, positions = zip(*self._blocks(image), strict=True)
        return list(pools), list(positions)

    def _blocks(self, image: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Each block's map before and after its pooling, and the positions."""
        features = image
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d | nn.MaxPool3d):
                pooled, positions = layer(features)
                yield features, pooled, positions
                features = pooled
            else:
                features = layer(features)
