"""UNet++: the skips of a U-Net become rows of nodes, each fed by all nodes before it and the one below.

Reference: Zhou et al., "UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation",
IEEE TMI 2020, arXiv:1912.05074; first at DLMIA 2018, arXiv:1807.10165 (2D; the 3D form is ours).
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    CONV,
    MAX_POOL,
    ActivationName,
    InterpolationName,
    NormSetting,
    check_counts,
    choose,
    conv_norm_act,
    norm_or,
    resize_like,
)
from medseg.networks.decoder import levels_on
from medseg.networks.encoders import Encoder, build_encoder

WIDTHS = (32, 64, 128, 256, 512)


class UNetPlusPlus(nn.Module):
    """Image `(B, in_channels, *spatial)` -> logits `(B, out_channels, *spatial)`, any `spatial`.

    Node `X[i][j]` is column `j` of level `i`: two 3x3 convolutions over the nodes `X[i][0] ... X[i][j - 1]` and
    `X[i + 1][j - 1]` brought to their grid; column 0 is the encoder, by max pooling. While training with
    `deep_supervision` the result is a list of logits on the image's grid, from the last node of level 0 to `X[0][1]`.

    The defaults are the published form (github.com/4uiiurz1/pytorch-nested-unet), 9,163,362 parameters with 2 classes
    and 9,163,560 with deep supervision (2D, RGB; the 3,648 biases that a norm follows are left out here). It departs in
    interpolating without aligned corners, and pools round up, so that any size will do. `encoder="resnet34"` with
    `interpolation="nearest"` is segmentation_models.pytorch's form, 26,078,754 parameters.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        widths: channels of the nodes of each level, finest first; by default (32, 64, 128, 256, 512), or the named
            encoder's own (see `ResNet` and `VGG`: those of the blocks, before the bottlenecks' factor 4).
        norm: "batch" or "instance" after every convolution, None for none anywhere; "default" for the published form's:
            batch norm, on an encoder its own there.
        activation: after every norm.
        dropout: probability to drop a whole channel, after every convolution.
        interpolation: from a coarser level: linear or nearest.
        encoder: a name such as "resnet34", or a module with `widths` and `strides`, in place of column 0; the head is
            then a 3x3 convolution. One head only, for pruning could not shorten such an encoder.
        weights: file of the encoder's weights.
        decoder_widths: on an encoder, channels of the last node of each level, finest first, preceded by those of one
            more node on the image's grid if the encoder's finest level is coarser; by default 16, 32, 64, 128, 256.
        deep_supervision: a head on every node of level 0 but the first, all of them given while training.
        return_heads: the extra heads in evaluation, too; their mean is the paper's accurate mode, `prune` its fast one.

    Attributes:
        head_weights: the paper's weights of the heads' losses: all equal.

    Raises:
        ConfigError: for settings that contradict each other.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int] | None = None,
        norm: NormSetting = "default",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
        interpolation: InterpolationName = "linear",
        encoder: str | nn.Module | None = None,
        weights: str | Path | None = None,
        decoder_widths: Sequence[int] | None = None,
        deep_supervision: bool = False,
        return_heads: bool = False,
    ) -> None:
        super().__init__()
        conv = choose(CONV, "spatial_dims", spatial_dims)
        choose(dict.fromkeys(("linear", "nearest")), "interpolation", interpolation)
        if return_heads and not deep_supervision:
            raise ConfigError("UNetPlusPlus: return_heads has no extra heads to return; set deep_supervision=True too")
        check_counts(in_channels=in_channels, out_channels=out_channels, widths=widths)
        block = partial(
            conv_norm_act, spatial_dims, norm=norm_or("batch", norm), activation=activation, dropout=dropout
        )
        self.interpolation: InterpolationName = interpolation
        self.return_heads = return_heads
        self.encoder: Encoder | None = None
        self.finish: nn.Module | None = None
        if encoder is None:
            if weights is not None or decoder_widths is not None:
                raise ConfigError("UNetPlusPlus: weights and decoder_widths need an encoder; set one, e.g. 'resnet34'")
            widths = WIDTHS if widths is None else tuple(widths)
            if len(widths) < 2:
                raise ConfigError(f"UNetPlusPlus: got {len(widths)} widths; use at least 2")
            self.nodes = nn.ModuleDict({**first_column(block, in_channels, widths), **nested_nodes(block, widths)})
            self.pool = MAX_POOL[spatial_dims](2, ceil_mode=True)
            head = partial(conv, widths[0], out_channels, kernel_size=1)
        else:
            if deep_supervision:
                raise ConfigError("UNetPlusPlus: deep_supervision is not for another encoder; leave one of them out")
            self.encoder = build_encoder(
                encoder, spatial_dims, in_channels, weights=weights, widths=widths, norm=norm, activation=activation
            )
            levels = levels_on(self.encoder, spatial_dims, decoder_widths)
            skips, ends = tuple(filter(None, levels.skips)), tuple(levels.widths)
            widths = (*skips, levels.deepest)
            self.nodes = nn.ModuleDict(nested_nodes(block, widths, ends[-len(skips) :]))
            if len(ends) > len(skips):
                self.finish = nn.Sequential(block(ends[1], ends[0]), block(ends[0], ends[0]))
            head = partial(conv, ends[0], out_channels, kernel_size=3, padding=1)
        self.depth = len(widths) - 1
        columns = range(1, self.depth + 1) if deep_supervision else (self.depth,)
        self.heads = nn.ModuleDict({str(column): head() for column in columns})
        self.head_weights = (1.0,) * len(self.heads)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial)`, or a list of logits while training."""
        finest = self.finest_nodes(image)
        if self.finish is not None:
            finest[-1] = self.finish(resize_like(finest[-1], image, self.interpolation))
        gives_all = self.training or self.return_heads
        columns = range(self.depth, 0, -1) if gives_all and len(self.heads) > 1 else (self.depth,)
        main, *extra = [self.heads[str(column)](finest[column]) for column in columns]
        return [main, *extra] if extra else main

    def finest_nodes(self, image: Tensor) -> list[Tensor]:
        """All nodes of level 0."""
        pyramid = None if self.encoder is None else self.encoder(image)
        rows: list[list[Tensor]] = []
        for level in range(self.depth + 1):
            # one more level, then the nodes that it completes: up the diagonal, each from the one just made
            if pyramid is None:
                features = self.nodes[node_name(level, 0)](self.pool(rows[-1][0]) if rows else image)
            else:
                features = pyramid[level]
            rows.append([features])
            for column in range(1, level + 1):
                row = rows[level - column]
                climbed = resize_like(features, row[0], self.interpolation)
                features = self.nodes[node_name(level - column, column)](torch.cat([*row, climbed], dim=1))
                row.append(features)
        return rows[0]

    def prune(self, level: int) -> "UNetPlusPlus":
        """A smaller, faster copy that ends at `X[0][level]`; its logits are those of that node's head.

        Raises:
            ConfigError: if that node has no head.
        """
        if str(level) not in self.heads:
            raise ConfigError(
                f"UNetPlusPlus: level {level} has no head, only {', '.join(self.heads)}; "
                "deep_supervision=True gives every level from 1 on its own"
            )
        pruned = copy.deepcopy(self)
        kept = {name: node for name, node in pruned.nodes.items() if sum(map(int, name.split("_"))) <= level}
        pruned.nodes, pruned.depth = nn.ModuleDict(kept), level
        pruned.heads, pruned.head_weights = nn.ModuleDict({str(level): pruned.heads[str(level)]}), (1.0,)
        return pruned


def node_name(level: int, column: int) -> str:
    """Name of the node `X[level][column]` in the state dict."""
    return f"{level}_{column}"


def first_column(block: Callable[..., nn.Module], in_channels: int, widths: Sequence[int]) -> dict[str, nn.Module]:
    """The nodes of column 0, an encoder: each takes the level above."""
    return {
        node_name(level, 0): nn.Sequential(block(above, width), block(width, width))
        for level, (above, width) in enumerate(pairwise((in_channels, *widths)))
    }


def nested_nodes(
    block: Callable[..., nn.Module], widths: Sequence[int], ends: Sequence[int] | None = None
) -> dict[str, nn.Module]:
    """The nodes of the other columns: each takes all nodes before it and the one below.

    Args:
        block: convolution, norm and activation, from and to a number of channels.
        widths: channels of each level, finest first.
        ends: channels of the last node of each level but the deepest, where they differ.
    """
    depth = len(widths) - 1
    last = (*(widths[:-1] if ends is None else ends), widths[-1])
    nodes: dict[str, nn.Module] = {}
    for level in range(depth):
        for column in range(1, depth - level + 1):
            is_last = column == depth - level
            width, below = (last[level], last[level + 1]) if is_last else (widths[level], widths[level + 1])
            channels = column * widths[level] + below
            nodes[node_name(level, column)] = nn.Sequential(block(channels, width), block(width, width))
    return nodes
