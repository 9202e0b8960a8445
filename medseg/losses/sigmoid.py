"""Losses of the sigmoid: one yes-or-no question a channel, so that regions may lie within each other."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from medseg.errors import ConfigError
from medseg.losses.heads import over_heads, parts_over_heads, total
from medseg.losses.processes import over_batch
from medseg.losses.softmax import check_class_weights
from medseg.losses.targets import (
    RegionTargets,
    at_least_float32,
    check_classes,
    class_numbers,
    merged_sets,
    region_targets,
)
from medseg.losses.terms import Sums, dice_loss


class BinaryCrossEntropy(nn.Module):
    """Each class against the rest: the mean of binary cross-entropies over voxels and classes, in float32.

    The class with the largest logit wins, as with a softmax. A `merged` voxel says nothing about the classes of its
    set, and no to the others.

    Args:
        class_weights: of each class's channel; all equal if None.
        ignore_label: label value that gives neither loss nor gradient.
        merged: partial labels, label value -> the classes that it may be.
        head_weights: of a list of logits, main head first; 1, 1/2, 1/4, ... if None. Both are divided by their sum.
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
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.ignore_label, self.merged = ignore_label, merged_sets(merged, ignore_label)
        self.head_weights = head_weights

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Loss of `logits` `(B, C, *spatial)`, or a list of them, beside the integer `label` `(B, 1, *spatial)`."""
        return over_heads(self._head_loss, logits, label, self.head_weights)

    def _head_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        if logits.shape[1] < 2:
            raise ValueError(
                "logits have 1 class; BinaryCrossEntropy needs one channel a class, background included; "
                "a single region is for RegionDiceBinaryCrossEntropy"
            )
        check_class_weights(self.class_weights, logits)
        check_classes(self.merged, logits.shape[1])
        class_numbers(label, logits.shape[1], self.ignore_label, self.merged)  # refuses what would be no class at all
        targets = region_targets(label, [[value] for value in range(logits.shape[1])], self.ignore_label, self.merged)
        return binary_cross_entropy(at_least_float32(logits), targets, self.class_weights)


class RegionDiceBinaryCrossEntropy(nn.Module):
    """Soft Dice loss plus binary cross-entropy of one sigmoid a region, for regions that contain each other.

    `dice_weight * (1 - Dice) + bce_weight * binary cross-entropy`, each the mean over regions, in float32. The network
    has one output channel a region, in the order of `regions` and none for the background;
    `medseg.back_to_grid.region_logits_to_label` leads back to a label.

    A `merged` voxel counts for the regions that its classes agree on. A sample in which a region is unknown somewhere
    has no Dice of it. A value that no region has is outside of all, as the background is.

    Args:
        regions: name -> the label values it is made of, `{"liver": [1, 2], "tumor": [2]}`.
        ignore_label: label value that gives neither loss nor gradient.
        merged: partial labels, label value -> the classes that it may be.
        batch_dice: one Dice over the batch, instead of one a sample; steadier where a region is small or rare.
        dice_weight: factor of the Dice loss.
        bce_weight: factor of binary cross-entropy.
        head_weights: of a list of logits, main head first; 1, 1/2, 1/4, ... if None. Both are divided by their sum.

    Raises:
        ConfigError: if there is no region, or a region has a merged value.

    Reference:
        Isensee et al., "nnU-Net for Brain Tumor Segmentation", BrainLes 2020, arXiv:2011.00848 (region-based training).
    """

    def __init__(
        self,
        regions: Mapping[str, Sequence[int]],
        *,
        ignore_label: int | None = None,
        merged: Mapping[int, Sequence[int]] | None = None,
        batch_dice: bool = False,
        dice_weight: float = 1.0,
        bce_weight: float = 1.0,
        head_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.regions = {name: tuple(values) for name, values in regions.items()}
        self.ignore_label, self.merged = ignore_label, merged_sets(merged, ignore_label)
        if not self.regions:
            raise ConfigError("regions is empty; name one or more, each with its label values")
        for name, values in self.regions.items():
            if taken := set(values) & set(self.merged):
                raise ConfigError(f"regions::{name} has the value {min(taken)}, which merged has too; give it another")
        self.batch_dice, self.dice_weight, self.bce_weight = batch_dice, dice_weight, bce_weight
        self.head_weights = head_weights

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Loss of `logits` `(B, regions, *spatial)`, or a list of them, beside the integer `label` `(B, 1, *spatial)`.

        Raises:
            ConfigError: if the logits are not one channel a region.
        """
        return total(self.parts(logits, label))

    def parts(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> dict[str, Tensor]:
        """What the loss is the sum of, each with its factor: `dice` and `binary_cross_entropy`."""
        return parts_over_heads(self._head_parts, logits, label, self.head_weights)

    def _head_parts(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        if logits.shape[1] != len(self.regions):
            raise ConfigError(
                f"logits have {logits.shape[1]} channels for {len(self.regions)} regions ({', '.join(self.regions)}); "
                "set out_channels to one a region"
            )
        logits = at_least_float32(logits)
        targets = region_targets(label, list(self.regions.values()), self.ignore_label, self.merged)
        dice = dice_loss(region_sums(logits, targets), batch_dice=self.batch_dice)
        entropy = binary_cross_entropy(logits, targets, None)
        return {"dice": self.dice_weight * dice, "binary_cross_entropy": self.bce_weight * entropy}


def binary_cross_entropy(logits: Tensor, targets: RegionTargets, weights: Tensor | None) -> Tensor:
    """Weighted mean over the voxels and channels that are known; 0 if there is none.

    Args:
        logits: `(B, R, *spatial)`.
        targets: of the same regions.
        weights: one a region `(R,)`; all equal if None.
    """
    inside, valid, unknown = targets
    losses = softplus(torch.where(inside, -logits, logits))
    if valid is None and unknown is None and weights is None:
        return losses.mean()
    counted = torch.ones_like(losses)
    if valid is not None:
        counted = counted * valid
    if unknown is not None:
        counted = counted * ~unknown
    if weights is not None:
        counted = counted * weights.to(logits.device).view(-1, *[1] * (logits.ndim - 2))
    weighted, weight = over_batch((losses * counted).sum(), counted.sum())
    return weighted / weight.clamp_min(torch.finfo(torch.float32).tiny)


def region_sums(logits: Tensor, targets: RegionTargets) -> Sums:
    """Overlap, predicted and reference voxels of each region, softly counted by the sigmoid."""
    inside, valid, unknown = targets
    probabilities = logits.sigmoid()
    if valid is not None:
        probabilities, inside = probabilities * valid, inside & valid
    return Sums(
        (probabilities * inside).flatten(2).sum(2),
        probabilities.flatten(2).sum(2),
        inside.flatten(2).sum(2),
        None if unknown is None else ~unknown.flatten(2).any(2),
    )
