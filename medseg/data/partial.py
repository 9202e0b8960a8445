"""Partial labels: what a case does not annotate becomes a value that stands for several classes.

A case says which regions were annotated (`labeled: ["tumor"]`). Two classes that no annotated region tells apart cannot
be told apart in that case: there they share one value, which the losses take as `merged`. Nested regions need no rule
of their own. With liver = [1, 2] and tumor = [2], a case with only its tumors annotated has 2 and {0, 1}; one with only
its liver has 0 and {1, 2}.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.data.datalist import Cases
from medseg.errors import ConfigError, DataError

HIGHEST_VALUE = 254  # labels are 8 bits, and 255 marks ignored voxels by custom


class PartialLabels:
    """The values for what is not annotated in a data set, and how its labels get them; part of a training's recipe.

    Args:
        cases: the data set. All its cases count, so that every fold has the same values.
        labels: name -> value.
        regions: name -> the label values it is made of.
        ignore_label: a value that is no class, and not to be used.

    Attributes:
        merged: value -> the classes it stands for, for the loss; empty if every case has all regions.

    Raises:
        ConfigError: if 8 bits have too few values.
        DataError: if a case names an unknown region.
    """

    def __init__(
        self,
        cases: Cases,
        labels: Mapping[str, int],
        regions: Mapping[str, Sequence[int]],
        *,
        ignore_label: int | None = None,
    ) -> None:
        self.labels, self.regions, self.ignore_label = dict(labels), dict(regions), ignore_label
        samples = [*cases.training, *cases.validation, *cases.test]
        labelings = [sample["labeled"] for sample in samples if "labeled" in sample]
        self.merged = merged_values(labels, regions, labelings, ignore_label=ignore_label)

    def __call__(self, label: NDArray[Any], labeled: Sequence[str]) -> NDArray[np.uint8]:
        """Label of a case in which only the regions `labeled` were annotated -> the label that the loss is given."""
        return merge_unlabeled(
            label, self.labels, self.regions, labeled, merged_values=self.merged, ignore_label=self.ignore_label
        )


def annotated_regions(samples: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Which regions were annotated in each sample, sorted; empty where all were."""
    return [tuple(sorted(sample.get("labeled", ()))) for sample in samples]


def merged_values(
    labels: Mapping[str, int],
    regions: Mapping[str, Sequence[int]],
    labelings: Iterable[Sequence[str]] | None = None,
    *,
    ignore_label: int | None = None,
) -> dict[int, list[int]]:
    """Value -> the classes it stands for, from 254 downward; the setting `merged` of the losses.

    Args:
        labels: name -> value.
        regions: name -> the label values it is made of.
        labelings: the `labeled` lists that occur; their order does not matter. If None, every choice of regions gets
            its values, which are too many from eight separate regions on.
        ignore_label: a value that is no class, and not to be used.

    Raises:
        ConfigError: if the sets need more values than 8 bits have.
        DataError: if a labeling names no region, or one that the recipe does not have.
    """
    classes = _classes(labels, ignore_label)
    free = [value for value in range(HIGHEST_VALUE, max(classes), -1) if value != ignore_label]
    sets: set[tuple[int, ...]] = set()
    for labeled in _every_choice(regions) if labelings is None else labelings:
        sets.update(members for members in _told_apart(classes, regions, labeled) if len(members) > 1)
        if len(sets) > len(free):
            raise ConfigError(
                f"partial labels need more than the {len(free)} values that 8 bits leave beside the classes; "
                "give `labelings`, the combinations of regions that occur"
            )
    return {value: list(members) for value, members in zip(free, sorted(sets), strict=False)}


def merge_unlabeled(
    label: NDArray[Any],
    labels: Mapping[str, int],
    regions: Mapping[str, Sequence[int]],
    labeled: Sequence[str],
    *,
    merged_values: Mapping[int, Sequence[int]],
    ignore_label: int | None = None,
) -> NDArray[np.uint8]:
    """Label of a case in which only the regions `labeled` were annotated, with values for what is unknown.

    Args:
        label: integers of any shape; the values of classes that `labeled` does not tell apart are interchangeable.
        labels: name -> value.
        regions: name -> the label values it is made of.
        labeled: the regions that were annotated everywhere in the case.
        merged_values: what the function of that name gives for the recipe.
        ignore_label: a value that stays.

    Returns:
        A new label of the same shape.

    Raises:
        DataError: if `labeled` is empty or names an unknown region, `label` has a value that is no class, or
            `merged_values` has no value for a set that occurs.
    """
    classes = _classes(labels, ignore_label)
    kept = set() if ignore_label is None else {ignore_label}
    strange = sorted(set(np.unique(label).tolist()) - set(classes) - kept)
    if strange:
        raise DataError(
            f"the label holds the values {strange}, the recipe knows {sorted({*classes, *kept})}; correct it"
        )
    value_of = {tuple(sorted(members)): value for value, members in merged_values.items()}
    table = np.arange(256, dtype=np.uint8)
    for members in _told_apart(classes, regions, labeled):
        if len(members) > 1 and members not in value_of:
            raise DataError(
                f"labeled {list(labeled)} leaves the classes {list(members)} open, for which there is no merged value; "
                "add this combination to the labelings that merged_values is given"
            )
        table[list(members)] = members[0] if len(members) == 1 else value_of[members]
    return table[label]


def _told_apart(
    classes: Sequence[int], regions: Mapping[str, Sequence[int]], labeled: Sequence[str]
) -> list[tuple[int, ...]]:
    """The classes, grouped by which of the `labeled` regions they are in."""
    unknown = [name for name in labeled if name not in regions]
    if unknown or not labeled:
        named = f"names {unknown[0]!r}, which is no region" if unknown else "is empty"
        raise DataError(f"labeled {named}; name one or more of {', '.join(regions)}")
    groups: dict[tuple[bool, ...], list[int]] = {}
    for value in classes:
        groups.setdefault(tuple(value in regions[name] for name in labeled), []).append(value)
    return [tuple(members) for members in groups.values()]


def _classes(labels: Mapping[str, int], ignore_label: int | None) -> list[int]:
    return sorted(value for value in labels.values() if value != ignore_label)


def _every_choice(regions: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(regions, count) for count in range(1, len(regions) + 1))
