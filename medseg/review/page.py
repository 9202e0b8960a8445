"""The page of a comparison: one file, offline, that prints."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from medseg.errors import ConfigError
from medseg.notices import notice
from medseg.report.pages import page_style, page_template
from medseg.review import charts
from medseg.review.comparing import Comparison, Result, lower_is_better
from medseg.review.evaluation_folder import CASES as CARD_CASES
from medseg.review.paired import SIGNIFICANT
from medseg.review.sources import RUN
from medseg.review.tables import (
    COSTS,
    cost_rows,
    interval_text,
    lesion_sentences,
    p_text,
    pairs_text,
    unpaired_sentences,
    write_tables,
)
from medseg.writing import aside

PAGE = "index.html"
KINDS = {
    "recipe": "Recipe",
    "overrides": "Overrides at the launch",
    "data": "Data",
    "code": "Code and versions",
    "facts": "Model and cases",
}
NOT_SHOWN = ("model", "version", "recipe_sha256", "weights_sha256")  # in the name, or for the table of differences
LONGEST = 160  # characters of a setting; differences.csv has all


def write_comparison(out: Path, comparison: Comparison) -> None:
    """Write `index.html` and the CSV tables.

    Args:
        out: folder, made if absent.
        comparison: what to show.

    Raises:
        ConfigError: if it is a file, a run or an evaluation, whose own page and tables would be gone.
    """
    if out.is_file() or any((out / name).is_file() for name in (CARD_CASES, RUN)):
        raise ConfigError(
            f"{out.name}: no folder for a comparison, for it is a file, a run or an evaluation; name another"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_tables(out, comparison)
    with aside(out / PAGE) as temporary:
        temporary.write_text(page(comparison), encoding="utf-8")


def page(comparison: Comparison) -> str:
    """The page's HTML."""
    letters, entries = comparison.letters, comparison.entries
    return page_template("compare.html.j2").render(
        style=Markup(page_style()),
        title=f"{' and '.join(letters[1:])} against {letters[0]}",
        notice=notice(synthetic=any(entry.synthetic for entry in entries)),
        headlines=headlines(comparison),
        cautions=comparison.cautions,
        entries=[
            {
                "letter": letter,
                "name": entry.name,
                "facts": "; ".join(
                    f"{key.replace('_', ' ')}: {value}" for key, value in entry.facts.items() if key not in NOT_SHOWN
                ),
                "cases": len(entry.rows),
                "failed": len(entry.failed),
            }
            for letter, entry in zip(letters, entries, strict=True)
        ],
        results=[_shown(comparison, result) for result in comparison.results],
        several_entries=len(entries) > 2,
        tests=len(comparison.results),
        seed=comparison.seed,
        charts=_charts(comparison),
        flips=_flips(comparison),
        lesions=lesion_sentences(comparison),
        unpaired=unpaired_sentences(comparison),
        letters=letters,
        costs=[
            {"title": title, "cells": ["not known" if value is None else f"{value:,.0f}" for value in values]}
            for title, values in cost_rows(comparison)
        ],
        differences=_differences(comparison),
    )


def headlines(comparison: Comparison) -> list[str]:
    """What the tests say of each entry, in a sentence."""
    said = []
    for other, letter in list(enumerate(comparison.letters))[1:]:
        results = [result for result in comparison.results if result.other == other]
        verdicts: dict[str, list[str]] = {}
        for result in results:
            verdicts.setdefault(result.verdict, []).append(result.metric)
        clear = [f"{verdict} in {', '.join(names)}" for verdict, names in verdicts.items() if _is_clear(verdict)]
        rest = [f"{verdict} in {', '.join(names)}" for verdict, names in verdicts.items() if not _is_clear(verdict)]
        said.append(f"{letter} against {comparison.letters[0]}: {'; '.join([*clear, *rest])}")
    return said


def _is_clear(verdict: str) -> bool:
    return verdict in ("better", "worse")


def _shown(comparison: Comparison, result: Result) -> dict[str, Any]:
    test = result.test
    return {
        "metric": result.metric,
        "pair": f"{comparison.letters[0]}, {comparison.letters[result.other]}",
        "n": pairs_text(result),
        "first": f"{test.mean_a:.3f}",
        "second": f"{test.mean_b:.3f}",
        "difference": interval_text(result),
        "p": p_text(test.p),
        "p_holm": p_text(result.p_holm),
        "method": test.method,
        "verdict": result.verdict,
        "significant": result.p_holm < SIGNIFICANT,
    }


def _charts(comparison: Comparison) -> list[dict[str, Any]]:
    """Intervals of all metrics, then pairs and gains of each Dice, then the cost."""
    drawn = []
    for title, in_length in (("Mean gain, with 95 % interval", False), ("Mean gain in mm or pixels", True)):
        rows = [_interval(comparison, r) for r in comparison.results if r.metric.endswith(("_mm", "_px")) == in_length]
        if rows:
            drawn.append({"svg": charts.intervals(title, rows), "caption": f"{title}; filled: significant after Holm"})
    for metric, other in comparison.looked_at():
        changes = [change for change in comparison.changes if change.metric == metric and change.other == other]
        names = (comparison.letters[0], comparison.letters[other])
        title = f"{metric}: {names[0]} and {names[1]}, case by case"
        better = "below" if lower_is_better(metric) else "above"
        points = [(change.case_id, change.first, change.second) for change in changes]
        svg = charts.pairs(title, points, names=(f"{metric}, {names[0]}", f"{metric}, {names[1]}"))
        drawn.append({"svg": svg, "caption": f"{title}; {better} the line {names[1]} is better"})
        title = f"{metric}: gain of each case, {names[1]} against {names[0]}"
        svg = charts.gains(title, [(change.case_id, change.gain) for change in changes])
        drawn.append({"svg": svg, "caption": title})
    return drawn + _cost_charts(comparison)


def _cost_charts(comparison: Comparison) -> list[dict[str, Any]]:
    """The main metric over each cost that two entries or more have."""
    metric = comparison.looked_at()[0][0]
    figures = {0: next(r.test.mean_a for r in comparison.results if r.metric == metric)}
    figures |= {r.other: r.test.mean_b for r in comparison.results if r.metric == metric}
    drawn = []
    for key, title in COSTS.items():
        points = [
            (letter, entry.cost[key], figures[number])
            for number, (letter, entry) in enumerate(zip(comparison.letters, comparison.entries, strict=True))
            if key in entry.cost and number in figures
        ]
        if len(points) > 1:
            said = f"{metric} against {title}"
            drawn.append({"svg": charts.cost(said, points, names=(title, metric)), "caption": said})
    return drawn


def _interval(comparison: Comparison, result: Result) -> tuple[str, float, float | None, float | None, bool]:
    test = result.test
    low, high = test.ci_low, test.ci_high
    if lower_is_better(result.metric):
        low, high = (None if high is None else -high), (None if low is None else -low)
    name = result.metric if len(comparison.entries) == 2 else f"{comparison.letters[result.other]} {result.metric}"
    return name, result.gain, low, high, result.p_holm < SIGNIFICANT


def _flips(comparison: Comparison) -> list[dict[str, Any]]:
    """Worst losses and best gains of each metric that is looked at."""
    shown = []
    for metric, other in comparison.looked_at():
        losses, gains = comparison.flipped(metric, other)
        sides = [
            {
                "title": title,
                "rows": [(c.case_id, f"{c.first:.3f}", f"{c.second:.3f}", f"{c.gain:+.3f}", c.note) for c in changes],
            }
            for title, changes in (("Worst losses", losses), ("Best gains", gains))
        ]
        pair = f"{comparison.letters[other]} against {comparison.letters[0]}"
        letters = (comparison.letters[0], comparison.letters[other])
        shown.append({"title": f"{metric}, {pair}", "letters": letters, "sides": sides})
    return shown


def _differences(comparison: Comparison) -> list[dict[str, Any]]:
    """What differs, by kind."""
    shown = []
    for kind, title in KINDS.items():
        rows = [
            {"key": one.key, "cells": one.shown(most=LONGEST)} for one in comparison.differences if one.kind == kind
        ]
        if rows:
            shown.append({"title": title, "rows": rows})
    return shown
