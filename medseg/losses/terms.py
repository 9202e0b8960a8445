"""The terms that losses add: soft overlap (Dice, Tversky) and weighted cross-entropy (focal or not)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medseg.losses.processes import over_batch
from medseg.losses.targets import SoftmaxVoxels

SMOOTH = 1e-5  # as MONAI, in numerator and denominator of Dice and Tversky


class Sums(NamedTuple):
    """Softly counted voxels of each class or region, each `(B, N)`."""

    overlap: Tensor
    predicted: Tensor
    reference: Tensor
    counted: Tensor | None  # which of them have a known reference in the sample; all if None
    absent: Tensor | None = None  # sets of several classes that the sample is known to lack
    within: Tensor | None = None  # (N, N): which class belongs to which set


def dice_loss(sums: Sums, *, batch_dice: bool) -> Tensor:
    """1 - mean soft Dice."""
    return tversky_loss(sums, alpha=0.5, beta=0.5, batch_dice=batch_dice, smooth=SMOOTH / 2)  # Dice counts twice


def tversky_loss(sums: Sums, *, alpha: float, beta: float, batch_dice: bool, smooth: float = SMOOTH) -> Tensor:
    """1 - mean of overlap / (overlap + alpha * false positives + beta * false negatives).

    The mean goes over samples and classes, with `batch_dice` over the classes of the batch; 0 if none counts.
    """
    overlap, predicted, reference, counted, *_ = sums
    if batch_dice:
        if counted is not None:
            counted = _judged_in_batch(sums, counted)
            overlap, predicted, reference = overlap * counted, predicted * counted, reference * counted
            counted = over_batch(counted.sum(0))[0] > 0
        overlap, predicted, reference = over_batch(overlap.sum(0), predicted.sum(0), reference.sum(0))
    union = (1 - alpha - beta) * overlap + alpha * predicted + beta * reference
    score = (overlap + smooth) / (union + smooth)
    if counted is None:
        return 1 - score.mean()
    if batch_dice:  # of the whole batch already
        return ((1 - score) * counted).sum() / counted.sum().clamp_min(1)
    missed, count = over_batch(((1 - score) * counted).sum(), counted.sum())
    return missed / count.clamp_min(1)


def _judged_in_batch(sums: Sums, counted: Tensor) -> Tensor:
    """What each sample `(B, N)` is judged by, where one score is that of the whole batch.

    A set that the batch has is judged in samples without it too, so that none of it may be found there; what would be
    said of its classes one by one, of which the batch has no voxel, is then said already.
    """
    if sums.absent is None or sums.within is None:
        return counted
    (known,) = over_batch((sums.reference * counted).sum(0))
    present = known > 0
    covered = (sums.within & present).any(1)
    return (counted | (sums.absent & present)) & (present | ~covered)


def class_sums(voxels: SoftmaxVoxels, *, include_background: bool) -> Sums:
    """Sums of each class, without a one-hot label; then of each merged set as if it were one class.

    A sample that has voxels of a set does not know its classes one by one: they do not count there, the set does.
    """
    log_probabilities, log_true, target, valid, sets = voxels
    probabilities, p_true = log_probabilities.exp(), log_true.exp()
    if valid is not None:
        probabilities = probabilities * valid
    overlap, reference = [], []
    for index in range(len(sets)):
        is_set = target == index if valid is None else (target == index) & valid
        overlap.append((p_true * is_set).flatten(1).sum(1))
        reference.append(is_set.flatten(1).sum(1))
    predicted = probabilities.flatten(2).sum(2).unbind(1)
    judged = [index for index, members in enumerate(sets) if include_background or 0 not in members]
    sums = Sums(
        torch.stack([overlap[index] for index in judged], dim=1),
        torch.stack([sum_of([predicted[value] for value in sets[index]]) for index in judged], dim=1),
        torch.stack([reference[index] for index in judged], dim=1),
        None,
    )
    if len(sets) == len(predicted):
        return sums
    within = [[set(sets[part]) < set(sets[whole]) for whole in judged] for part in judged]
    return sums._replace(
        counted=torch.stack([_counts(reference, sets, index) for index in judged], dim=1),
        absent=torch.stack([_lacks(reference, sets, index) for index in judged], dim=1),
        within=torch.tensor(within, device=sums.overlap.device),
    )


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of tensors of one shape; unlike indexing by a list, it copies nothing to a GPU."""
    return torch.stack(list(tensors)).sum(0)


def _counts(reference: Sequence[Tensor], sets: Sequence[tuple[int, ...]], index: int) -> Tensor:
    """Which samples `(B,)` can be judged by one of the sets, from the voxels that they have of each."""
    if len(sets[index]) > 1:
        return reference[index] > 0
    (value,) = sets[index]
    unclear = [voxels for voxels, members in zip(reference, sets, strict=True) if len(members) > 1 and value in members]
    return sum_of([torch.zeros_like(reference[index]), *unclear]) == 0


def _lacks(reference: Sequence[Tensor], sets: Sequence[tuple[int, ...]], index: int) -> Tensor:
    """Which samples `(B,)` have no voxel that may be of one of the sets of several classes."""
    if len(sets[index]) == 1:
        return torch.zeros_like(reference[index], dtype=torch.bool)
    return sum_of([voxels for voxels, members in zip(reference, sets, strict=True) if {*members} & {*sets[index]}]) == 0


def cross_entropy(voxels: SoftmaxVoxels, weights: Tensor | None, *, gamma: float = 0.0) -> Tensor:
    """Weighted mean of -(1 - p)^gamma log p over the valid voxels; 0 if there is none.

    Args:
        voxels: `p` is the probability of a voxel's class, or of its merged set.
        weights: one a class `(C,)`; all equal if None. A merged set weighs as the lightest of its classes, the most
            frequent one where weights come from frequencies.
        gamma: 0 is cross-entropy; more is the focal loss, which turns from voxels that are right already.
    """
    log_true, target, valid = voxels.log_true, voxels.target, voxels.valid
    if gamma:
        wrong = (-log_true.expm1()).clamp_min(torch.finfo(log_true.dtype).tiny)  # tiny: gamma < 1 has no slope at 0
        log_true = log_true * wrong**gamma
    if valid is None and weights is None:
        return -log_true.mean()
    if weights is None:
        voxel_weights = torch.ones_like(log_true)
    else:
        weights = weights.to(log_true.device)
        lightest = [torch.stack([weights[value] for value in members]).min() for members in voxels.sets]
        voxel_weights = torch.stack(lightest)[target]
    if valid is not None:
        voxel_weights = voxel_weights * valid
    weighted, weight = over_batch((log_true * voxel_weights).sum(), voxel_weights.sum())
    return -weighted / weight.clamp_min(torch.finfo(torch.float32).tiny)
