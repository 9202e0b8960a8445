"""ResNet: residual stages of growing width; the last ones may dilate in place of halving the grid.

Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385; dilated stages and
multi-grid: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, arXiv:1706.05587; in 3D:
Chen et al., "Med3D", 2019, arXiv:1904.00625.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    CONV,
    MAX_POOL,
    ActivationName,
    NormName,
    NormSetting,
    activation_layer,
    check_counts,
    choose,
    norm_layers,
    norm_or,
)
from medseg.networks.encoders.weights import load_weights, start_as_he

Dilation = Literal["torchvision", "every_block"]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # a stage
STRIDES = {32: (2, 4, 8, 16, 32), 16: (2, 4, 8, 16, 16), 8: (2, 4, 8, 8, 8)}  # of stem and stages
FIRST_BLOCK_DILATES = {"torchvision": False, "every_block": True}


class ResNet(nn.Module):
    """Image `(B, in_channels, *spatial)` -> five levels `(B, widths[i], *spatial / strides[i])`, finest first.

    The levels are the stem before its pooling, and the four stages; sizes are rounded up. Weights and statistics have
    torchvision's names (MedicalNet has the same in 3D), so that files of theirs load; those of MedicalNet's ResNet-18
    and 34 lack the shortcuts, see `load_weights`. Where width or grid change, the shortcut is a 1x1 convolution (form B
    of the paper).

    The defaults are ResNet-50 as in torchvision, without its classifier: 23,508,032 parameters in 2D with 3 channels,
    46,155,072 in 3D with 1. Departs from the paper in the stride, which is in the 3x3 convolution.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks, which put out 4 times their width).
        widths: channels of the stem and of the blocks of each stage, before the bottlenecks' factor 4.
        output_stride: of the deepest level: 32; at 16 or 8 dilation takes the place of the last strides.
        multi_grid: factors of the dilation of the last stage's blocks in turn, such as (1, 2, 4); of more factors than
            blocks (ResNet-18 has two) the first are used.
        dilation: of the first block of a dilated stage: that of the stage before ("torchvision"), or its own stage's
            ("every_block", as in MedicalNet, semseg and segmentation_models.pytorch).
        deep_stem: three 3x3 convolutions in place of one 7x7, the last of `2 * widths[0]` channels, as in PSPNet.
        stride_in_1x1: the stride of a bottleneck in its first convolution, as in the paper and Caffe.
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            batch norm. Without one, the convolutions have biases.
        activation: after every norm.
        weights: file of weights, see `load_weights`.

    Attributes:
        widths: channels of each level.
        strides: image voxels a side of a voxel of each level.

    Raises:
        ConfigError: for settings that are unknown or contradict each other.
        DataError: for a file of weights that does not fit.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        depth: int = 50,
        widths: Sequence[int] = (64, 64, 128, 256, 512),
        output_stride: int = 32,
        multi_grid: Sequence[int] | None = None,
        dilation: Dilation = "torchvision",
        deep_stem: bool = False,
        stride_in_1x1: bool = False,
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        blocks = choose(BLOCKS, "depth", depth)
        check_counts(in_channels=in_channels, widths=widths, multi_grid=multi_grid)
        norm = norm_or("batch", norm)
        self.strides: tuple[int, ...] = choose(STRIDES, "output_stride", output_stride)
        rates = block_rates(blocks, self.strides, multi_grid, choose(FIRST_BLOCK_DILATES, "dilation", dilation))
        if len(widths) != 5:
            raise ConfigError(f"ResNet: got {len(widths)} widths; give 5, of the stem and the four stages")
        block: Callable[..., BasicBlock | Bottleneck] = BasicBlock
        if depth >= 50:
            block = partial(Bottleneck, stride_in_1x1=stride_in_1x1)
        expansion = Bottleneck.expansion if depth >= 50 else 1
        stem_width, *stage_widths = widths
        self.widths = (2 * stem_width if deep_stem else stem_width, *(expansion * width for width in stage_widths))

        self.deep_stem = deep_stem
        self.conv1 = grid_conv(spatial_dims, in_channels, stem_width, 3 if deep_stem else 7, stride=2, norm=norm)
        self.bn1 = norm_or_identity(norm, stem_width)
        if deep_stem:
            self.conv2 = grid_conv(spatial_dims, stem_width, stem_width, 3, norm=norm)
            self.bn2 = norm_or_identity(norm, stem_width)
            self.conv3 = grid_conv(spatial_dims, stem_width, self.widths[0], 3, norm=norm)
            self.bn3 = norm_or_identity(norm, self.widths[0])
        self.relu = activation_layer(activation)
        self.maxpool = MAX_POOL[spatial_dims](3, 2, padding=1)
        # the pooling has halved the grid for the first stage
        steps = (1, *(coarse // fine for fine, coarse in pairwise(self.strides[1:])))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                *(
                    block(
                        spatial_dims,
                        out if position else above,
                        width,
                        stride=1 if position else step,
                        rate=rate,
                        norm=norm,
                        activation=activation,
                    )
                    for position, rate in enumerate(stage_rates)
                )
            )
            for (above, out), width, step, stage_rates in zip(
                pairwise(self.widths), stage_widths, steps, rates, strict=True
            )
        )
        start_as_he(self)
        if weights is not None:
            load_weights(self, weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        """`(B, in_channels, *spatial)` -> the five levels, finest first."""
        stem = self.relu(self.bn1(self.first_conv(image)))
        if self.deep_stem:
            stem = self.relu(self.bn2(self.conv2(stem)))
            stem = self.relu(self.bn3(self.conv3(stem)))
        pyramid = [stem]
        features = self.maxpool(stem)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
            pyramid.append(features)
        return pyramid

    def first_conv(self, image: Tensor) -> Tensor:
        """`conv1`. Where 5 to 7 planes train on a CPU, zeros make them 8, and what they add is cut off again.

        The gradient of a 7x7x7 kernel with stride 2 is otherwise wrong there, or the process dies (torch 2.13).
        """
        planes = image.shape[2]
        if not (self.training and image.ndim == 5 and image.device.type == "cpu" and 5 <= planes <= 7):
            out: Tensor = self.conv1(image)
            return out
        filled: Tensor = self.conv1(F.pad(image, (0, 0, 0, 0, 0, 8 - planes)))
        return filled[:, :, : (planes + 1) // 2]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        width: int,
        *,
        stride: int,
        rate: int,
        norm: NormName,
        activation: ActivationName,
    ) -> None:
        super().__init__()
        self.conv1 = grid_conv(spatial_dims, in_channels, width, 3, stride=stride, rate=rate, norm=norm)
        self.bn1 = norm_or_identity(norm, width)
        self.conv2 = grid_conv(spatial_dims, width, width, 3, rate=rate, norm=norm)
        self.bn2 = norm_or_identity(norm, width)
        self.downsample = shortcut(spatial_dims, in_channels, width, stride=stride, norm=norm)
        self.relu = activation_layer(activation)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, width, *spatial / stride)`, rounded up."""
        out = self.relu(self.bn1(self.conv1(features)))
        out = self.bn2(self.conv2(out))
        added: Tensor = self.relu(out + self.downsample(features))
        return added


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1, the second of which widens it, beside a shortcut."""

    expansion = 4

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        width: int,
        *,
        stride: int,
        rate: int,
        stride_in_1x1: bool,
        norm: NormName,
        activation: ActivationName,
    ) -> None:
        super().__init__()
        out_channels = self.expansion * width
        first_stride, second_stride = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = grid_conv(spatial_dims, in_channels, width, 1, stride=first_stride, norm=norm)
        self.bn1 = norm_or_identity(norm, width)
        self.conv2 = grid_conv(spatial_dims, width, width, 3, stride=second_stride, rate=rate, norm=norm)
        self.bn2 = norm_or_identity(norm, width)
        self.conv3 = grid_conv(spatial_dims, width, out_channels, 1, norm=norm)
        self.bn3 = norm_or_identity(norm, out_channels)
        self.downsample = shortcut(spatial_dims, in_channels, out_channels, stride=stride, norm=norm)
        self.relu = activation_layer(activation)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, 4 * width, *spatial / stride)`, rounded up."""
        out = self.relu(self.bn1(self.conv1(features)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        added: Tensor = self.relu(out + self.downsample(features))
        return added


def block_rates(
    blocks: Sequence[int], strides: Sequence[int], multi_grid: Sequence[int] | None, first_block_dilates: bool
) -> list[list[int]]:
    """Dilation of every block of every stage.

    Args:
        blocks: of each stage.
        strides: of the stem and each stage; a stage dilates by what its stride lacks to a halving at every level.
        multi_grid: factors for the last stage.
        first_block_dilates: by its own stage's dilation; else by that of the stage before.

    Raises:
        ConfigError: if `multi_grid` has fewer factors than the last stage has blocks.
    """
    levels = [2**level // stride for level, stride in enumerate(strides, start=1)]
    rates = [
        [rate if first_block_dilates else before] + [rate] * (count - 1)
        for count, (before, rate) in zip(blocks, pairwise(levels), strict=True)
    ]
    if multi_grid is not None:
        if len(multi_grid) < blocks[-1]:
            raise ConfigError(
                f"multi_grid is {list(multi_grid)}; give a factor for each of the {blocks[-1]} last blocks"
            )
        rates[-1] = [rate * factor for rate, factor in zip(rates[-1], multi_grid, strict=False)]
    return rates


def grid_conv(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    rate: int = 1,
    norm: NormName,
) -> nn.Module:
    """Convolution that keeps the grid, or divides it by `stride`, rounding up; its bias only where no norm follows."""
    return choose(CONV, "spatial_dims", spatial_dims)(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2 * rate, rate, bias=norm is None
    )


def norm_or_identity(norm: NormName, channels: int) -> nn.Module:
    """The norm as a module of its own, under its own name."""
    return next(iter(norm_layers(norm, channels)), nn.Identity())


def shortcut(spatial_dims: int, in_channels: int, out_channels: int, *, stride: int, norm: NormName) -> nn.Module:
    """The features as they are; a 1x1 convolution where width or grid change."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    conv = grid_conv(spatial_dims, in_channels, out_channels, 1, stride=stride, norm=norm)
    return nn.Sequential(conv, norm_or_identity(norm, out_channels))
