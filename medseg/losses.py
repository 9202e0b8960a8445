"""Losses: soft Dice plus weighted cross-entropy, deep supervision, and class weights from label counts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError

SMOOTH = 1e-5  # as MONAI's DiceLoss, in numerator and denominator


class DiceCrossEntropy(nn.Module):
    """Soft Dice loss plus cross-entropy of the softmax, in float32 whatever the logits are.

    `dice_weight * (1 - Dice) + ce_weight * cross-entropy`. Dice is averaged over samples and classes; a class
    that a sample (with `batch_dice`: the batch) does not have scores `1e-5 / (predicted + 1e-5)`: a loss close to 1
    almost without gradient, so that only cross-entropy teaches its absence. Cross-entropy is the mean over the voxels,
    weighted by `class_weights`, which do not touch Dice.

    A list of logits is deep supervision, main head first: labels are brought to each head's grid by nearest neighbor,
    and the heads weigh 1, 1/2, 1/4, ... of their sum.

    Args:
        class_weights: of cross-entropy, one a class; all equal if None.
        ignore_label: label value that gives neither loss nor gradient.
        batch_dice: one Dice over the batch, instead of one a sample; steadier where a class is small or rare.
        include_background: let class 0 count in Dice.
        dice_weight: factor of the Dice loss.
        ce_weight: factor of cross-entropy.

    Reference:
        Milletari et al., "V-Net", 3DV 2016, arXiv:1606.04797 (soft Dice; here with plain, not squared, sums);
        Isensee et al., "nnU-Net", Nature Methods 2021, arXiv:1904.08128 (the sum, the weights of the heads).
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        class_weights: Sequence[float] | None = None,
        ignore_label: int | None = None,
        batch_dice: bool = False,
        include_background: bool = False,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
    ) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.ignore_label = ignore_label
        self.batch_dice = batch_dice
        self.include_background = include_background
        self.dice_weight, self.ce_weight = dice_weight, ce_weight

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Loss of `logits` `(B, C, *spatial)`, or a list of them, beside the integer `label` `(B, 1, *spatial)`.

        Raises:
            ValueError: if the label is not integer or not one channel on the grid of the (first) logits, there is only
                one class, or the class weights are not one a class.
        """
        heads = [logits] if isinstance(logits, Tensor) else list(logits)
        check_shapes(heads[0], label, self.class_weights)
        weights = [0.5**depth for depth in range(len(heads))]
        losses = [
            weight * self._head_loss(head, downsampled(label, head.shape[2:]))
            for weight, head in zip(weights, heads, strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)

    def _head_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        log_probabilities = logits.float().log_softmax(dim=1)
        valid = None if self.ignore_label is None else label != self.ignore_label
        target = (label if valid is None else label.where(valid, 0)).long()
        log_true = log_probabilities.gather(1, target)
        return self.dice_weight * self._dice_loss(log_probabilities, log_true, target, valid) + self.ce_weight * (
            cross_entropy(log_true, target, valid, self.class_weights)
        )

    def _dice_loss(self, log_probabilities: Tensor, log_true: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        overlap, predicted, reference = class_sums(log_probabilities, log_true, target, valid)
        if not self.include_background:
            overlap, predicted, reference = overlap[:, 1:], predicted[:, 1:], reference[:, 1:]
        if self.batch_dice:
            overlap, predicted, reference = overlap.sum(0), predicted.sum(0), reference.sum(0)
        return 1 - ((2 * overlap + SMOOTH) / (predicted + reference + SMOOTH)).mean()


def class_weights(counts: Sequence[int]) -> list[float]:
    """Weights for cross-entropy from the voxels of each class: the inverse square root of the frequency, mean 1.

    The square root keeps a rare class from drowning the others. A class without voxels gets 1.

    Args:
        counts: voxels per class, background first.

    Raises:
        ConfigError: if no class has a voxel, or a count is negative.
    """
    if min(counts, default=0) < 0 or sum(counts) == 0:
        raise ConfigError(f"class counts are {list(counts)}; at least one class needs voxels, and none can be negative")
    raw = [count**-0.5 for count in counts if count]
    mean = sum(raw) / len(raw)
    return [count**-0.5 / mean if count else 1.0 for count in counts]


def cross_entropy(log_true: Tensor, target: Tensor, valid: Tensor | None, weights: Tensor | None) -> Tensor:
    """Weighted mean over the valid voxels; 0 if there is none.

    Args:
        log_true: log-probability of the true class `(B, 1, *spatial)`.
        target: class of each voxel, same shape.
        valid: which voxels count, same shape; all if None.
        weights: one a class `(C,)`; all equal if None.
    """
    if valid is None and weights is None:
        return -log_true.mean()
    voxel_weights = torch.ones_like(log_true) if weights is None else weights.to(log_true.device)[target]
    if valid is not None:
        voxel_weights = voxel_weights * valid
    return -(log_true * voxel_weights).sum() / voxel_weights.sum().clamp_min(torch.finfo(torch.float32).tiny)


def class_sums(
    log_probabilities: Tensor, log_true: Tensor, target: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, predicted and reference voxels, softly counted, each `(B, C)`; without a one-hot label."""
    probabilities, p_true = log_probabilities.exp(), log_true.exp()
    if valid is not None:
        probabilities = probabilities * valid
    overlap, reference = [], []
    for value in range(log_probabilities.shape[1]):
        is_class = target == value if valid is None else (target == value) & valid
        overlap.append((p_true * is_class).flatten(1).sum(1))
        reference.append(is_class.flatten(1).sum(1))
    return torch.stack(overlap, dim=1), probabilities.flatten(2).sum(2), torch.stack(reference, dim=1)


def downsampled(label: Tensor, size: Sequence[int]) -> Tensor:
    """Integer `label` `(B, 1, *spatial)` on a coarser grid of `size` voxels, by nearest neighbor."""
    for axis, (fine, coarse) in enumerate(zip(label.shape[2:], size, strict=True), start=2):
        if fine != coarse:
            label = label.index_select(axis, torch.arange(coarse, device=label.device) * fine // coarse)
    return label


def check_shapes(logits: Tensor, label: Tensor, weights: Tensor | None) -> None:
    """Refuse a label or class weights that do not fit `logits`."""
    batch, classes, *spatial = logits.shape
    if list(label.shape) != [batch, 1, *spatial]:
        raise ValueError(
            f"label is {list(label.shape)} for logits {list(logits.shape)}; it must be {[batch, 1, *spatial]}"
        )
    if label.is_floating_point():
        raise ValueError(f"label is {label.dtype}; give integers, one class number a voxel")
    if classes < 2:
        raise ValueError("logits have 1 class; softmax needs 2 or more, background included")
    if weights is not None and len(weights) != classes:
        raise ConfigError(f"class_weights has {len(weights)} entries for {classes} classes; give one a class")
