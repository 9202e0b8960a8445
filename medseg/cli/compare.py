"""`medseg compare`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli.common import app, say
from medseg.errors import ConfigError

if TYPE_CHECKING:
    from medseg.review import Comparison

MOST_DIFFERENCES, LONGEST = 30, 48
PIPE_WIDTH = 160  # a file has no edge to wrap at


@app.command()
def compare(
    entries: Annotated[
        list[str], typer.Argument(metavar="A B [...]", help="MLflow run ids, run folders, or folders of evaluations.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the page and the CSV tables.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="What to test (docs/metrics.md); may be repeated.")] = None,
    split: Annotated[str | None, typer.Option(help="Cases of runs: evaluation, held_out, validation, ...")] = None,
    names: Annotated[str, typer.Option(help="What to call them, with commas between.")] = "",
    runs: Annotated[Path, typer.Option(help="Folder of runs, for run ids.")] = Path("runs"),
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Compare runs or evaluations case by case.

    Paired tests of the same cases against A, what differs in recipe, data and code, figures against cost, and which
    cases changed most.
    """
    from dataclasses import replace

    from medseg import review

    found = review.read_entries(entries, runs_dir=runs, split=split)
    given = [name.strip() for name in names.split(",")] if names else []
    if given and len(given) != len(found):
        raise ConfigError(f"--names has {len(given)} names for {len(found)} to compare: give one each, commas between")
    found = [replace(entry, name=name) for entry, name in zip(found, given, strict=True)] if given else found
    comparison = review.compare(found, metrics=metric or (), seed=seed)
    _print(comparison)
    if out is None:
        say("--out DIR writes the page and the tables")
        return
    review.write_comparison(out, comparison)
    say(f"written: {out / 'index.html'}")


def _print(comparison: "Comparison") -> None:
    from rich.console import Console
    from rich.table import Table

    from medseg import review

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    letters = comparison.letters
    for letter, entry in zip(letters, comparison.entries, strict=True):
        failed = f", {len(entry.failed)} failed" if entry.failed else ""
        console.print(f"{letter}: {entry.name} ({entry.split}, {len(entry.rows)} cases{failed})", soft_wrap=True)
    table = Table("metric", "pair", "n", "first", "second", "difference (95 %)", "p", "p Holm", "second is")
    for result in comparison.results:
        test = result.test
        approximate = " approx." if test.method == "approximate" else ""
        table.add_row(
            result.metric,
            f"{letters[0]} {letters[result.other]}",
            str(test.n),
            f"{test.mean_a:.3f}",
            f"{test.mean_b:.3f}",
            review.interval_text(result),
            review.p_text(test.p) + approximate,
            review.p_text(result.p_holm),
            result.verdict,
        )
    console.print(table)
    for title, values in review.cost_rows(comparison):
        known = [f"{letter} {value:,.0f}" for letter, value in zip(letters, values, strict=True) if value is not None]
        console.print(f"{title}: {', '.join(known)}", soft_wrap=True)
    for shown_metric, other in comparison.looked_at():
        losses, gains = comparison.flipped(shown_metric, other, most=3)
        pair = f"{letters[other]} against {letters[0]}"
        for what, changes in (("worst losses", losses), ("best gains", gains)):
            told = ", ".join(f"{change.case_id} {change.gain:+.3f}" for change in changes) or "none"
            console.print(f"{shown_metric}, {pair}, {what}: {told}", soft_wrap=True)
    for line in [*review.lesion_sentences(comparison), *review.unpaired_sentences(comparison)]:
        console.print(line, soft_wrap=True)
    for difference in comparison.differences[:MOST_DIFFERENCES]:
        shown = zip(letters, difference.shown(most=LONGEST), strict=True)
        told = ", ".join(f"{letter} {value}" for letter, value in shown)
        console.print(f"differs: {difference.kind} {difference.key}: {told}", soft_wrap=True)
    if len(comparison.differences) > MOST_DIFFERENCES:
        console.print(f"differs: {len(comparison.differences) - MOST_DIFFERENCES} more (--out DIR writes all)")
    for caution in comparison.cautions:
        console.print(f"note: {caution}", soft_wrap=True)
