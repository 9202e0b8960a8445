"""Runs and evaluations against the first of them, case by case."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase

from medseg.errors import ConfigError, DataError
from medseg.metrics.case import lesion_name
from medseg.review.differences import Difference, cautions, differences
from medseg.review.entry import Entry
from medseg.review.paired import SAME, SIGNIFICANT, PairedTest, holm, paired_test

OF_REGIONS = ("dice", "dice_all", "nsd_2mm", "nsd_2px", "hd95_mm", "hd95_px")
OF_LESIONS = ("lesion_recall", "lesion_f1")
SIGNED = re.compile(r"(^|_)(volume|area)_error_(ml|mm2|px)$")
LOWER_IS_BETTER = re.compile(
    r"(^|_)((hausdorff|hd95|assd)(_subvoxel)?_(mm|px)(_all)?|(volume|area)_error_(ml|mm2|px)|(ece|brier)(_global)?|fp|fn"
    r"|(?<=lesion_)(missed|false_alarms|merged|split)|(?<=lesions_)(missed|false_alarms|merged|split))$"
)
NEITHER = re.compile(r"(^|_)((pred|reference)_(ml|mm2|px)|count_(pred|reference))$")  # as large as what is there
MOST_ENTRIES = len(ascii_uppercase)


@dataclass(frozen=True)
class Result:
    """One metric of one entry against the first one.

    Attributes:
        metric: its name.
        other: number of the entry that is compared with entry 0.
        test: of the pairs.
        p_holm: p corrected for all tests of the comparison.
        left_out: pairs in which the metric is not defined for both.
        tests: how many tests p was corrected for.
    """

    metric: str
    other: int
    test: PairedTest
    p_holm: float
    left_out: int
    tests: int

    @property
    def gain(self) -> float:
        """Mean difference, positive where the other is better."""
        return -self.test.difference if lower_is_better(self.metric) else self.test.difference

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no difference shown`, `too few pairs`, or `differs` where mean and ranks disagree."""
        if self.p_holm < SIGNIFICANT:
            if self.test.favors * self.test.difference <= 0:
                return "differs, mean and ranks disagree"
            return "better" if self.gain > 0 else "worse"
        return "too few pairs" if self.tests * self.test.least_p >= SIGNIFICANT else "no difference shown"


@dataclass(frozen=True)
class Change:
    """A case whose figure changed: `gain` is positive where the other entry is better."""

    case_id: str
    metric: str
    other: int
    first: float
    second: float
    gain: float
    note: str = ""


@dataclass(frozen=True)
class Lesions:
    """Lesions of the references of the cases that were paired, by who found them."""

    other: int
    both: int
    first_only: int
    second_only: int
    neither: int


@dataclass(frozen=True)
class Comparison:
    """What comparing gave.

    Attributes:
        entries: what was compared; the first is what the others are compared with.
        letters: A, B, ...
        metrics: that were tested.
        results: one a metric and other entry.
        changes: every case's change, by the metrics that `flipped` looks at.
        lesions: one an other entry, where lesions are known.
        unpaired: number of an other entry -> (cases that the first alone has, that the other alone has).
        differences: what differs in recipe, overrides, data and code.
        cautions: sentences on what to keep in mind.
        seed: of the bootstrap.
    """

    entries: tuple[Entry, ...]
    letters: tuple[str, ...]
    metrics: tuple[str, ...]
    results: tuple[Result, ...]
    changes: tuple[Change, ...]
    lesions: tuple[Lesions, ...]
    unpaired: Mapping[int, tuple[tuple[str, ...], tuple[str, ...]]]
    differences: tuple[Difference, ...]
    cautions: tuple[str, ...] = field(default=())
    seed: int = 0

    def looked_at(self) -> list[tuple[str, int]]:
        """Metrics whose cases are shown one by one, and the other entry: every Dice, or the first metric without."""
        metrics = [metric for metric in self.metrics if metric.endswith("_dice")] or [self.metrics[0]]
        present = {(change.metric, change.other) for change in self.changes}
        others = range(1, len(self.entries))
        return [(metric, other) for other in others for metric in metrics if (metric, other) in present]

    def flipped(self, metric: str, other: int, *, most: int = 5) -> tuple[list[Change], list[Change]]:
        """The cases that lost most and that gained most, worst and best first."""
        of_metric = [c for c in self.changes if c.metric == metric and c.other == other and abs(c.gain) > SAME]
        losses = sorted((c for c in of_metric if c.gain < 0), key=_by_gain)
        gains = sorted((c for c in of_metric if c.gain > 0), key=_by_gain, reverse=True)
        return losses[:most], gains[:most]


def compare(entries: Sequence[Entry], *, metrics: Sequence[str] = (), seed: int = 0) -> Comparison:
    """Compare entries with the first of them.

    P values are corrected by Holm for all metrics and entries together, so that many metrics find nothing by chance.

    Args:
        entries: two or more.
        metrics: what to test, by the names of docs/metrics.md; Dice, surface Dice and HD95 of each region and the
            lesions' recall and F1, as far as all entries have them, if not given.
        seed: of the bootstrap.

    Raises:
        ConfigError: if there are fewer than two entries, or one lacks a metric.
        DataError: if two entries have no case in common.
    """
    if not 2 <= len(entries) <= MOST_ENTRIES:
        raise ConfigError(f"{len(entries)} to compare: give 2 to {MOST_ENTRIES} runs or evaluations")
    first, letters = entries[0], tuple(ascii_uppercase[: len(entries)])
    tested = _checked(metrics, entries) if metrics else default_metrics(entries)
    tests: list[tuple[str, int, PairedTest, int]] = []
    changes: list[Change] = []
    lesions: list[Lesions] = []
    unpaired: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for other, entry in enumerate(entries[1:], start=1):
        shared = [case_id for case_id in first.rows if case_id in entry.rows]
        if not shared:
            raise DataError(
                f"{letters[0]} and {letters[other]} have no case in common: cases are paired by case_id; compare "
                "evaluations of the same cases"
            )
        unpaired[other] = (_missing(first, entry), _missing(entry, first))
        for metric in tested:
            pairs = [(case_id, _value(first, case_id, metric), _value(entry, case_id, metric)) for case_id in shared]
            defined = [(case_id, a, b) for case_id, a, b in pairs if a is not None and b is not None]
            if not defined:
                continue
            ids, values_a, values_b = zip(*defined, strict=True)
            patients = [first.patients.get(case_id) or entry.patients.get(case_id) or case_id for case_id in ids]
            test = paired_test(values_a, values_b, patients, seed=seed)
            tests.append((metric, other, test, len(shared) - len(defined)))
            changes += [_change(metric, other, pair, first, entry, letters) for pair in defined]
        if first.found and entry.found:
            lesions.append(_lesions(other, first, entry, shared))
    if not tests:
        raise DataError("no metric is defined in both of any pair of cases: there is nothing to test")
    corrected = holm([test.p for _, _, test, _ in tests])
    results = tuple(
        Result(metric, other, test, p_holm, left_out, len(tests))
        for (metric, other, test, left_out), p_holm in zip(tests, corrected, strict=True)
    )
    unsigned = (f"{metric}: its size is compared, without its sign" for metric in tested if SIGNED.search(metric))
    return Comparison(
        entries=tuple(entries),
        letters=letters,
        metrics=tuple(metric for metric in tested if any(result.metric == metric for result in results)),
        results=results,
        changes=tuple(changes),
        lesions=tuple(lesions),
        unpaired=unpaired,
        differences=tuple(differences(entries)),
        cautions=(*unsigned, *cautions(entries, letters)),
        seed=seed,
    )


def default_metrics(entries: Sequence[Entry]) -> list[str]:
    """What is tested where nothing is asked for: what all entries have.

    Dice by the second rule only where a reference is empty, for else it is Dice.

    Raises:
        ConfigError: if they have none of it.
    """
    shared = _shared_metrics(entries)
    called = ["lesion"] if "lesion_iou" in shared else []  # a region of that name: lesions' own figures are lesions_...
    of_lesions = {lesion_name(name, called) for name in ("lesion_dice", "lesion_matched_dice")}
    regions = [name.removesuffix("_dice") for name in shared if name.endswith("_dice") and name not in of_lesions]
    empty = {
        region for region in regions if any(_lacks(row, region) for entry in entries for row in entry.rows.values())
    }
    wanted = [f"{region}_{name}" for region in regions for name in OF_REGIONS if name != "dice_all" or region in empty]
    wanted += [lesion_name(name, called) for name in OF_LESIONS]
    found = [name for name in wanted if name in shared]
    if not found:
        raise ConfigError("the entries have no Dice in common: name what to compare with --metric")
    return found


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one; told by its end, for regions may have any name.

    >>> lower_is_better("tumor_hd95_mm"), lower_is_better("tumor_dice")
    (True, False)
    """
    return LOWER_IS_BETTER.search(metric) is not None


def _value(entry: Entry, case_id: str, metric: str) -> float | None:
    """A figure of a case; of a signed error its size, for too little is no better than too much."""
    value = entry.rows[case_id].get(metric)
    return abs(value) if value is not None and SIGNED.search(metric) else value


def _lacks(row: Mapping[str, float | None], region: str) -> bool:
    return row.get(f"{region}_dice") is None and row.get(f"{region}_dice_all") is not None


def _shared_metrics(entries: Sequence[Entry]) -> list[str]:
    """Names that every entry has in some case, in the order of the first one."""
    names = [dict.fromkeys(name for row in entry.rows.values() for name in row) for entry in entries]
    return [name for name in names[0] if all(name in of_entry for of_entry in names)]


def _checked(metrics: Sequence[str], entries: Sequence[Entry]) -> list[str]:
    shared = _shared_metrics(entries)
    for metric in metrics:
        if metric not in shared:
            raise ConfigError(f"not all entries have metric {metric!r}; they share {', '.join(shared) or 'none'}")
        if NEITHER.search(metric):
            raise ConfigError(f"metric {metric!r} is a size, and larger is neither better nor worse; test its error")
    return list(dict.fromkeys(metrics))


def _missing(here: Entry, there: Entry) -> tuple[str, ...]:
    """Cases of one entry that the other does not have."""
    return tuple(case_id for case_id in here.rows if case_id not in there.rows)


def _change(
    metric: str, other: int, pair: tuple[str, float, float], first: Entry, entry: Entry, letters: Sequence[str]
) -> Change:
    case_id, value_a, value_b = pair
    gain = value_a - value_b if lower_is_better(metric) else value_b - value_a
    names = ((letters[0], first), (letters[other], entry))
    failed = [letter for letter, which in names if case_id in which.failed]
    return Change(case_id, metric, other, value_a, value_b, gain, f"failed in {' and '.join(failed)}" if failed else "")


def _lesions(other: int, first: Entry, entry: Entry, shared: Sequence[str]) -> Lesions:
    """Who found which lesion; those of a reference have the same numbers in both evaluations."""
    counts = {(one, two): 0 for one in (True, False) for two in (True, False)}
    for case_id in shared:
        here, there = first.found.get(case_id, {}), entry.found.get(case_id, {})
        for lesion in here.keys() & there.keys():
            counts[here[lesion], there[lesion]] += 1
    return Lesions(other, counts[True, True], counts[True, False], counts[False, True], counts[False, False])


def _by_gain(change: Change) -> float:
    return change.gain
