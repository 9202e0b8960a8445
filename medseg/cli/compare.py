"""`medseg compare`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli.common import app, say
from medseg.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from medseg.review import Comparison

MOST_DIFFERENCES, LONGEST = 30, 48
PIPE_WIDTH, WIDE = 160, 110  # a file has no edge to wrap at; what a narrow terminal has no room for is left out


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

    from medseg import review

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    letters = comparison.letters
    for letter, entry in zip(letters, comparison.entries, strict=True):
        failed = f", {len(entry.failed)} failed" if entry.failed else ""
        console.print(f"{letter}: {entry.name} ({entry.split}, {len(entry.rows)} cases{failed})", soft_wrap=True)
    console.print(_tests(comparison, wide=console.width >= WIDE))
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
        told_of = zip(letters, difference.shown(most=LONGEST), strict=True)
        told = ", ".join(f"{letter} {text}" for letter, text in told_of)
        console.print(f"differs: {difference.kind} {difference.key}: {told}", soft_wrap=True)
    if len(comparison.differences) > MOST_DIFFERENCES:
        console.print(f"differs: {len(comparison.differences) - MOST_DIFFERENCES} more (--out DIR writes all)")
    for caution in comparison.cautions:
        console.print(f"note: {caution}", soft_wrap=True)


def _tests(comparison: "Comparison", *, wide: bool) -> "Table":
    """One line a test; a narrow terminal gets the corrected p alone."""
    from rich.table import Column, Table

    from medseg import review

    letters = comparison.letters
    columns = ["metric", "pair", "n", "first", "second", "difference (95 %)", "p", "p Holm", "second is"]
    left_out = {"pair"} if len(letters) == 2 else set()
    left_out |= set() if wide else {"p"}
    shown = [name for name in columns if name not in left_out]
    table = Table(*(Column(name, no_wrap=True) for name in shown), box=None, padding=(0, 2 if wide else 1, 0, 0))
    for result in comparison.results:
        test = result.test
        cells = {
            "metric": result.metric,
            "pair": f"{letters[0]} {letters[result.other]}",
            "n": review.pairs_text(result),
            "first": f"{test.mean_a:.3f}",
            "second": f"{test.mean_b:.3f}",
            "difference (95 %)": review.interval_text(result).replace(" (", " (" if wide else "\n("),
            "p": review.p_text(test.p),
            "p Holm": review.p_text(result.p_holm) + (" approx." if test.method == "approximate" else ""),
            "second is": result.verdict,
        }
        table.add_row(*(cells[name] for name in shown))
    return table
