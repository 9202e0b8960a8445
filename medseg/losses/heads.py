"""Deep supervision: one loss over a network's heads, on labels brought to each head's grid."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError


class DeepSupervision(nn.Module):
    """Any loss of one head, summed over the heads of a network.

    The losses of this package take lists themselves; this wraps others, such as MONAI's. Labels are brought to each
    head's grid by nearest neighbor, and logits are never resampled.

    Args:
        loss: logits `(B, C, *spatial)` and integer label `(B, 1, *spatial)` -> scalar.
        head_weights: one a head, main first, of any sum; 1, 1/2, 1/4, ... if None. Both are divided by their sum.

    Reference:
        Lee et al., "Deeply-Supervised Nets", AISTATS 2015, arXiv:1409.5185; Isensee et al., "nnU-Net", Nature Methods
        2021, arXiv:1904.08128 (the halved weights).
    """

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], *, head_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.loss, self.head_weights = loss, head_weights

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Loss of `logits` `(B, C, *spatial)`, or a list of them, beside the integer `label` `(B, 1, *spatial)`."""
        return over_heads(self.loss, logits, label, self.head_weights)


def over_heads(
    head_loss: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor | Sequence[Tensor],
    label: Tensor,
    head_weights: Sequence[float] | None,
) -> Tensor:
    """Weighted mean of `head_loss` over a list of logits, main head first; of one tensor, its loss alone.

    Raises:
        ValueError: if the label is not integer, or not one channel on the grid of the (first) logits.
        ConfigError: if the weights are not one a head, or not positive in sum.
    """
    if isinstance(logits, Tensor):
        check_label(logits, label)
        return head_loss(logits, label)
    check_label(logits[0], label)
    weights = normalized_weights(head_weights, len(logits))
    losses = [
        weight * head_loss(head, downsampled(label, head.shape[2:]))
        for weight, head in zip(weights, logits, strict=True)
    ]
    return torch.stack(losses).sum()


def parts_over_heads(
    head_parts: Callable[[Tensor, Tensor], dict[str, Tensor]],
    logits: Tensor | Sequence[Tensor],
    label: Tensor,
    head_weights: Sequence[float] | None,
) -> dict[str, Tensor]:
    """As `over_heads`, for a loss that is a sum: each of its named parts."""
    if isinstance(logits, Tensor):
        check_label(logits, label)
        return head_parts(logits, label)
    check_label(logits[0], label)
    weights = normalized_weights(head_weights, len(logits))
    heads = [head_parts(head, downsampled(label, head.shape[2:])) for head in logits]
    return {
        name: torch.stack([weight * parts[name] for weight, parts in zip(weights, heads, strict=True)]).sum()
        for name in heads[0]
    }


def total(parts: Mapping[str, Tensor]) -> Tensor:
    """The loss whose parts these are."""
    return torch.stack(list(parts.values())).sum()


def normalized_weights(head_weights: Sequence[float] | None, heads: int) -> list[float]:
    """Weights of the heads, main first, with sum 1; by default each weighs half of the one before."""
    weights = [0.5**depth for depth in range(heads)] if head_weights is None else list(head_weights)
    if len(weights) != heads:
        raise ConfigError(f"head_weights has {len(weights)} entries for {heads} heads; give one a head, main first")
    if min(weights) < 0 or sum(weights) == 0:
        raise ConfigError(f"head_weights is {weights}; none can be negative, and one must be above 0")
    return [weight / sum(weights) for weight in weights]


def downsampled(label: Tensor, size: Sequence[int]) -> Tensor:
    """Integer `label` `(B, 1, *spatial)` on a coarser grid of `size` voxels, by nearest neighbor."""
    for axis, (fine, coarse) in enumerate(zip(label.shape[2:], size, strict=True), start=2):
        if fine != coarse:
            label = label.index_select(axis, torch.arange(coarse, device=label.device) * fine // coarse)
    return label


def check_label(logits: Tensor, label: Tensor) -> None:
    """Refuse a label that is not an integer map on the grid of `logits`."""
    batch, _, *spatial = logits.shape
    if list(label.shape) != [batch, 1, *spatial]:
        raise ValueError(
            f"label is {list(label.shape)} for logits {list(logits.shape)}; it must be {[batch, 1, *spatial]}"
        )
    if label.is_floating_point():
        raise ValueError(f"label is {label.dtype}; give integers, one class number a voxel")
