"""What the losses compare: true classes (or sets of classes) a voxel, and which voxels count.

Partial labels are values that stand for a set of classes, `merged` = `{254: [0, 1]}`: "background or liver, nobody
looked". They come from `medseg.data.merge_unlabeled`.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from medseg.errors import ConfigError, DataError

Merged = Mapping[int, tuple[int, ...]]


class SoftmaxVoxels(NamedTuple):
    """Logits and label of one head, for losses of the softmax.

    Each voxel's truth is one of `sets`: first every class by itself, then the merged sets.
    """

    log_probabilities: Tensor  # (B, C, *spatial)
    log_true: Tensor  # (B, 1, *spatial): log-probability of the voxel's set
    target: Tensor  # (B, 1, *spatial): index of the voxel's set
    valid: Tensor | None  # (B, 1, *spatial): voxels that count; all if None
    sets: list[tuple[int, ...]]


class RegionTargets(NamedTuple):
    """A label as one yes-or-no question a region."""

    inside: Tensor  # (B, R, *spatial)
    valid: Tensor | None  # (B, 1, *spatial): voxels that count; all if None
    unknown: Tensor | None  # (B, R, *spatial): voxels whose set is neither inside nor outside; none if None


def softmax_voxels(logits: Tensor, label: Tensor, ignore_label: int | None, merged: Merged) -> SoftmaxVoxels:
    """Log-probabilities of the classes and of each voxel's truth, in float32 (float64 stays).

    The probability of a set is the sum over its classes: the marginal of Shi et al., MedIA 2021, arXiv:2007.03868.

    Raises:
        DataError: if the label has a value that is no class, not ignored and not merged.
    """
    classes = logits.shape[1]
    if classes < 2:
        raise ValueError("logits have 1 class; softmax needs 2 or more, background included")
    check_classes(merged, classes)
    log_probabilities = at_least_float32(logits).log_softmax(dim=1)
    valid = valid_voxels(label, ignore_label)
    target = class_numbers(label, classes, ignore_label, merged)
    log_true = log_probabilities.gather(1, target)
    for index, (value, members) in enumerate(merged.items(), start=classes):
        here = label == value
        log_set = reduce(torch.logaddexp, [log_probabilities[:, member : member + 1] for member in members])
        log_true = torch.where(here, log_set, log_true)
        target = target.masked_fill(here, index)
    sets = [*((value,) for value in range(classes)), *merged.values()]
    return SoftmaxVoxels(log_probabilities, log_true, target, valid, sets)


def class_numbers(label: Tensor, classes: int, ignore_label: int | None, merged: Merged) -> Tensor:
    """`label` as int64, 0 where it is ignored or a merged set.

    Raises:
        DataError: if another value is no class.
    """
    numbers = label.long()
    for value in (*merged, *(() if ignore_label is None else (ignore_label,))):
        numbers = numbers.masked_fill(label == value, 0)
    lowest, highest = torch.stack(numbers.aminmax()).tolist()  # one wait for a GPU, which an index beyond would break
    if lowest < 0 or highest >= classes:
        raise DataError(
            f"label has the value {lowest if lowest < 0 else highest}, but the classes run from 0 to {classes - 1}; "
            "set ignore_label or merged to say what it means, or correct the label"
        )
    return numbers


def region_targets(
    label: Tensor, regions: Sequence[Sequence[int]], ignore_label: int | None, merged: Merged
) -> RegionTargets:
    """Inside or outside of each region; a set of classes of which only some are inside is unknown."""
    inside, unknown = [], []
    for values in regions:
        within = [value for value, members in merged.items() if set(members) <= set(values)]
        across = [value for value, members in merged.items() if set(members) & set(values) and value not in within]
        inside.append(_is_any(label, [*values, *within]))
        unknown.append(_is_any(label, across))
    return RegionTargets(
        torch.cat(inside, dim=1), valid_voxels(label, ignore_label), torch.cat(unknown, dim=1) if merged else None
    )


def merged_sets(merged: Mapping[int, Sequence[int]] | None, ignore_label: int | None) -> dict[int, tuple[int, ...]]:
    """The setting `merged`, checked; keys may be strings, as JSON has no others.

    Raises:
        ConfigError: if a set has fewer than two classes, or a value means something else already.
    """
    sets = {int(value): tuple(sorted(set(members))) for value, members in (merged or {}).items()}
    for value, members in sets.items():
        if len(members) < 2:
            raise ConfigError(f"merged::{value} is {list(members)}; a merged value stands for two or more classes")
        if value == ignore_label:
            raise ConfigError(f"merged::{value} is the ignore_label too; give the set another value")
    return sets


def check_classes(merged: Merged, classes: int) -> None:
    """Refuse merged sets that do not fit the number of classes."""
    for value, members in merged.items():
        if value < classes:
            raise ConfigError(f"merged::{value} is the value of a class already; values from {classes} on are free")
        if members[0] < 0 or members[-1] >= classes:
            raise ConfigError(f"merged::{value} is {list(members)}; the classes run from 0 to {classes - 1}")
        if len(members) == classes:
            raise ConfigError(
                f"merged::{value} is every class, which teaches nothing; mark such voxels by ignore_label"
            )


def valid_voxels(label: Tensor, ignore_label: int | None) -> Tensor | None:
    """Where `label` is not `ignore_label`; None if there is none."""
    return None if ignore_label is None else label != ignore_label


def at_least_float32(logits: Tensor) -> Tensor:
    """Half precision cannot sum voxels; float64 stays."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _is_any(label: Tensor, values: Sequence[int]) -> Tensor:
    found = torch.zeros_like(label, dtype=torch.bool)
    for value in values:
        found |= label == value
    return found
