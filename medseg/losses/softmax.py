"""Losses of the softmax over classes that exclude each other.

All are ours: MONAI 1.6 has `ignore_label` in few of its losses and partial labels in none, lets class weights multiply
Dice, keeps a sigmoid in the focal part of its DiceFocalLoss, and takes five seconds to import. Where the two agree, the
tests compare them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.losses.heads import over_heads, parts_over_heads, total
from medseg.losses.targets import merged_sets, softmax_voxels
from medseg.losses.terms import class_sums, cross_entropy, dice_loss, tversky_loss


class Dice(nn.Module):
    """Soft Dice loss of the softmax: 1 - Dice, averaged over samples and classes, in float32 whatever the logits are.

    A class that a sample (with `batch_dice`: the batch) does not have scores `1e-5 / (predicted + 1e-5)`: a loss close
    to 1 almost without gradient. In a sample with `merged` voxels the classes of their set are left out, and the set
    counts as one class instead (if it has no background, or that is included); with `batch_dice`, in samples without
    any of it too.

    Args:
        ignore_label: label value that gives neither loss nor gradient.
        merged: partial labels, label value -> the classes that it may be.
        batch_dice: one Dice over the batch, instead of one a sample; steadier where a class is small or rare.
        include_background: let class 0 count.
        head_weights: of a list of logits, main head first; 1, 1/2, 1/4, ... if None. Both are divided by their sum.

    Reference:
        Milletari et al., "V-Net", 3DV 2016, arXiv:1606.04797 (here with plain, not squared, sums); Shi et al.,
        "Marginal loss and exclusion loss", MedIA 2021, arXiv:2007.03868 (merged sets).
    """

    def __init__(
        self,
        *,
        ignore_label: int | None = None,
        merged: Mapping[int, Sequence[int]] | None = None,
        batch_dice: bool = False,
        include_background: bool = False,
        head_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.ignore_label, self.merged = ignore_label, merged_sets(merged, ignore_label)
        self.batch_dice, self.include_background = batch_dice, include_background
        self.head_weights = head_weights

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Loss of `logits` `(B, C, *spatial)`, or a list of them, beside the integer `label` `(B, 1, *spatial)`."""
        return over_heads(self._head_loss, logits, label, self.head_weights)

    def _head_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        voxels = softmax_voxels(logits, label, self.ignore_label, self.merged)
        return dice_loss(class_sums(voxels, include_background=self.include_background), batch_dice=self.batch_dice)


class Tversky(nn.Module):
    """Tversky loss of the softmax: Dice that weighs false positives and false negatives apart.

    `1 - overlap / (overlap + alpha * false positives + beta * false negatives)`, averaged as `Dice` is.

    Args:
        alpha: weight of false positives. With 0.5 each it is `Dice`.
        beta: weight of false negatives; above `alpha` it finds more of a small lesion, at the price of false alarms.
        ignore_label: label value that gives neither loss nor gradient.
        merged: partial labels, label value -> the classes that it may be; see `Dice`.
        batch_dice: one score over the batch, instead of one a sample.
        include_background: let class 0 count.
        head_weights: of a list of logits, main head first; 1, 1/2, 1/4, ... if None. Both are divided by their sum.

    Raises:
        ConfigError: if a weight is negative, or both are 0.

    Reference:
        Salehi et al., "Tversky loss function for image segmentation", MLMI 2017, arXiv:1706.05721 (best with 0.3, 0.7).
    """

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        ignore_label: int | None = None,
        merged: Mapping[int, Sequence[int]] | None = None,
        batch_dice: bool = False,
        include_background: bool = False,
        head_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if min(alpha, beta) < 0 or alpha + beta == 0:
            raise ConfigError(f"alpha is {alpha} and beta {beta}; neither can be negative, and one must be above 0")
        self.alpha, self.beta = alpha, beta
        self.ignore_label, self.merged = ignore_label, merged_sets(merged, ignore_label)
        self.batch_dice, self.include_background = batch_dice, include_background
        self.head_weights = head_weights

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Loss of `logits` `(B, C, *spatial)`, or a list of them, beside the integer `label` `(B, 1, *spatial)`."""
        return over_heads(self._head_loss, logits, label, self.head_weights)

    def _head_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        voxels = softmax_voxels(logits, label, self.ignore_label, self.merged)
        sums = class_sums(voxels, include_background=self.include_background)
        return tversky_loss(sums, alpha=self.alpha, beta=self.beta, batch_dice=self.batch_dice)


class CrossEntropy(nn.Module):
    """Cross-entropy of the softmax: the weighted mean over the voxels, in float32 whatever the logits are.

    A `merged` voxel costs `-log` of the summed probability of its classes, and does not prefer one of them.

    Args:
        class_weights: one a class; all equal if None.
        ignore_label: label value that gives neither loss nor gradient.
        merged: partial labels, label value -> the classes that it may be.
        head_weights: of a list of logits, main head first; 1, 1/2, 1/4, ... if None. Both are divided by their sum.

    Reference:
        Shi et al., "Marginal loss and exclusion loss", MedIA 2021, arXiv:2007.03868 (merged sets).
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        class_weights: Sequence[float] | None = None,
        ignore_label: int | None = None,
        merged: Mapping[int, Sequence[int]] | None = None,
        head_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", _tensor(class_weights), persistent=False)
        self.ignore_label, self.merged = ignore_label, merged_sets(merged, ignore_label)
        self.head_weights = head_weights

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Loss of `logits` `(B, C, *spatial)`, or a list of them, beside the integer `label` `(B, 1, *spatial)`."""
        return over_heads(self._head_loss, logits, label, self.head_weights)

    def _head_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        check_class_weights(self.class_weights, logits)
        return cross_entropy(softmax_voxels(logits, label, self.ignore_label, self.merged), self.class_weights)


class DiceCrossEntropy(nn.Module):
    """Soft Dice loss plus cross-entropy of the softmax, in float32 whatever the logits are.

    `dice_weight * (1 - Dice) + ce_weight * cross-entropy`, each as in the classes of that name. A class that is absent
    gives Dice almost no gradient, so that only cross-entropy teaches its absence. `class_weights` do not touch Dice.

    A list of logits is deep supervision, main head first: labels are brought to each head's grid by nearest neighbor.

    Args:
        class_weights: of cross-entropy, one a class; all equal if None.
        ignore_label: label value that gives neither loss nor gradient.
        merged: partial labels, label value -> the classes that it may be.
        batch_dice: one Dice over the batch, instead of one a sample; steadier where a class is small or rare.
        include_background: let class 0 count in Dice.
        dice_weight: factor of the Dice loss.
        ce_weight: factor of cross-entropy.
        head_weights: of a list of logits, main head first; 1, 1/2, 1/4, ... if None. Both are divided by their sum.

    Reference:
        Isensee et al., "nnU-Net", Nature Methods 2021, arXiv:1904.08128 (the sum, the weights of the heads).
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        class_weights: Sequence[float] | None = None,
        ignore_label: int | None = None,
        merged: Mapping[int, Sequence[int]] | None = None,
        batch_dice: bool = False,
        include_background: bool = False,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        head_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", _tensor(class_weights), persistent=False)
        self.ignore_label, self.merged = ignore_label, merged_sets(merged, ignore_label)
        self.batch_dice, self.include_background = batch_dice, include_background
        self.dice_weight, self.ce_weight = dice_weight, ce_weight
        self.head_weights = head_weights

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Loss of `logits` `(B, C, *spatial)`, or a list of them, beside the integer `label` `(B, 1, *spatial)`.

        Raises:
            ValueError: if the label is not integer or not one channel on the grid of the (first) logits, or there is
                only one class.
            ConfigError: if the class weights are not one a class, the head weights not one a head, or `merged` does
                not fit the classes.
        """
        return total(self.parts(logits, label))

    def parts(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> dict[str, Tensor]:
        """What the loss is the sum of, each with its factor: `dice` and `cross_entropy`."""
        return parts_over_heads(self._head_parts, logits, label, self.head_weights)

    def _head_parts(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        check_class_weights(self.class_weights, logits)
        voxels = softmax_voxels(logits, label, self.ignore_label, self.merged)
        dice = dice_loss(class_sums(voxels, include_background=self.include_background), batch_dice=self.batch_dice)
        return {
            "dice": self.dice_weight * dice,
            "cross_entropy": self.ce_weight * cross_entropy(voxels, self.class_weights),
        }


class DiceFocal(nn.Module):
    """Soft Dice loss plus focal loss of the softmax, in float32 whatever the logits are.

    `dice_weight * (1 - Dice) + focal_weight * focal`, where focal is the weighted mean of `-(1 - p)^gamma log p` over
    the voxels (MONAI's mean goes over the classes too, and is smaller by their number).

    Args:
        class_weights: of the focal loss, one a class; all equal if None.
        gamma: how much voxels that are right already lose of their weight; 0 is cross-entropy.
        ignore_label: label value that gives neither loss nor gradient.
        merged: partial labels, label value -> the classes that it may be.
        batch_dice: one Dice over the batch, instead of one a sample.
        include_background: let class 0 count in Dice.
        dice_weight: factor of the Dice loss.
        focal_weight: factor of the focal loss.
        head_weights: of a list of logits, main head first; 1, 1/2, 1/4, ... if None. Both are divided by their sum.

    Raises:
        ConfigError: if `gamma` is negative.

    Reference:
        Lin et al., "Focal loss for dense object detection", ICCV 2017, arXiv:1708.02002; Zhu et al., "AnatomyNet",
        Medical Physics 2019, arXiv:1808.05238 (the sum).
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        class_weights: Sequence[float] | None = None,
        gamma: float = 2.0,
        ignore_label: int | None = None,
        merged: Mapping[int, Sequence[int]] | None = None,
        batch_dice: bool = False,
        include_background: bool = False,
        dice_weight: float = 1.0,
        focal_weight: float = 1.0,
        head_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if gamma < 0:
            raise ConfigError(f"gamma is {gamma}; give 0 (cross-entropy) or more")
        self.register_buffer("class_weights", _tensor(class_weights), persistent=False)
        self.gamma = gamma
        self.ignore_label, self.merged = ignore_label, merged_sets(merged, ignore_label)
        self.batch_dice, self.include_background = batch_dice, include_background
        self.dice_weight, self.focal_weight = dice_weight, focal_weight
        self.head_weights = head_weights

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Loss of `logits` `(B, C, *spatial)`, or a list of them, beside the integer `label` `(B, 1, *spatial)`."""
        return total(self.parts(logits, label))

    def parts(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> dict[str, Tensor]:
        """What the loss is the sum of, each with its factor: `dice` and `focal`."""
        return parts_over_heads(self._head_parts, logits, label, self.head_weights)

    def _head_parts(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        check_class_weights(self.class_weights, logits)
        voxels = softmax_voxels(logits, label, self.ignore_label, self.merged)
        dice = dice_loss(class_sums(voxels, include_background=self.include_background), batch_dice=self.batch_dice)
        return {
            "dice": self.dice_weight * dice,
            "focal": self.focal_weight * cross_entropy(voxels, self.class_weights, gamma=self.gamma),
        }


def check_class_weights(weights: Tensor | None, logits: Tensor) -> None:
    """Refuse class weights that are not one a class."""
    classes = logits.shape[1]
    if weights is not None and len(weights) != classes:
        raise ConfigError(f"class_weights has {len(weights)} entries for {classes} classes; give one a class")


def _tensor(weights: Sequence[float] | None) -> Tensor | None:
    return None if weights is None else torch.tensor(weights, dtype=torch.float32)
