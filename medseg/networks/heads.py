"""The second head of FCN, PSPNet and DeepLab: on the encoder's level before the last, for training.

Reference: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, arXiv:1612.01105, section 3.3.
"""

from collections.abc import Callable

from torch import Tensor, nn

from medseg.errors import ConfigError


def build_auxiliary(
    head: Callable[..., nn.Module], in_channels: int, out_channels: int, *, asked: bool, return_heads: bool
) -> nn.Module | None:
    """The second head, a quarter as wide as its level (8 or more); None unless `asked`.

    Args:
        head: from channels of the features, width, and channels of the logits to a module.
        in_channels: channels of the level.
        out_channels: classes.
        asked: whether to have it.
        return_heads: its logits in evaluation, too.

    Raises:
        ConfigError: if it is to be returned, but not asked for.
    """
    if return_heads and not asked:
        raise ConfigError("return_heads has no extra heads to return; set auxiliary_head=True too")
    return head(in_channels, max(8, in_channels // 4), out_channels) if asked else None


def with_auxiliary(
    logits: Tensor, auxiliary: nn.Module | None, level: Tensor, *, wanted: bool
) -> Tensor | list[Tensor]:
    """The logits, or a list of them and the second head's on the grid of its `level`, if there is one and `wanted`."""
    return logits if auxiliary is None or not wanted else [logits, auxiliary(level)]
