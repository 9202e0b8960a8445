"""A comparison as tables: what the terminal, the CSV files and the page show."""

from pathlib import Path
from typing import Any

from medseg.report.measurements import write_csv
from medseg.review.comparing import Comparison, Result
from medseg.review.differences import plural

RESULTS, CASES, DIFFERENCES = "comparison.csv", "cases.csv", "differences.csv"
COSTS = {
    "ms_per_case": "ms a case",
    "memory_mb": "peak memory, MB",
    "run_memory_mb": "memory of the run's process, MB",
    "run_gpu_memory_mb": "GPU memory of the run, MB",
    "parameters": "parameters",
}


def result_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a metric and entry, as `comparison.csv` has them; p as text, for small ones would be rounded to 0."""
    return [_result_row(comparison, result) for result in comparison.results]


def write_tables(out: Path, comparison: Comparison) -> None:
    """Write `comparison.csv`, `cases.csv` (every case and metric) and `differences.csv` into a folder."""
    letters = comparison.letters
    rows = result_rows(comparison)
    write_csv(out / RESULTS, rows, list(rows[0]))
    changes = [
        {
            "case_id": change.case_id,
            "metric": change.metric,
            "first": letters[0],
            "second": letters[change.other],
            "value_first": change.first,
            "value_second": change.second,
            "gain": change.gain,
            "note": change.note,
        }
        for change in comparison.changes
    ]
    write_csv(out / CASES, changes, list(changes[0]))
    differing = [
        {"kind": difference.kind, "key": difference.key, **dict(zip(letters, difference.values, strict=True))}
        for difference in comparison.differences
    ]
    write_csv(out / DIFFERENCES, differing, ["kind", "key", *letters])


def p_text(p: float) -> str:
    """A p value as it is read.

    >>> p_text(0.0421), p_text(1e-9)
    ('0.042', '<0.0001')
    """
    return "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def interval_text(result: Result) -> str:
    """Mean difference with its interval."""
    test = result.test
    decimals = 3 if abs(test.difference) < 1 and max(abs(test.mean_a), abs(test.mean_b)) <= 1 else 2
    if test.ci_low is None or test.ci_high is None:
        return f"{test.difference:+.{decimals}f}"
    return f"{test.difference:+.{decimals}f} ({test.ci_low:+.{decimals}f} to {test.ci_high:+.{decimals}f})"


def pairs_text(result: Result) -> str:
    """How many pairs were tested, of how many that there are, and of how many patients where these are fewer."""
    test = result.test
    of_all = f" of {test.n + result.left_out}" if result.left_out else ""
    return f"{test.n}{of_all}" + (f" ({test.patients} patients)" if test.patients < test.n else "")


def cost_rows(comparison: Comparison) -> list[tuple[str, list[float | None]]]:
    """What is known of the cost, one row a kind with a value (or None) an entry."""
    return [
        (title, [entry.cost.get(key) for entry in comparison.entries])
        for key, title in COSTS.items()
        if any(key in entry.cost for entry in comparison.entries)
    ]


def unpaired_sentences(comparison: Comparison) -> list[str]:
    """Which cases have no partner, with all their names."""
    said = []
    for other, (first_only, other_only) in comparison.unpaired.items():
        for letter, cases in ((comparison.letters[0], first_only), (comparison.letters[other], other_only)):
            if cases:
                pair = f"{comparison.letters[0]} and {comparison.letters[other]}"
                said.append(f"of {pair}, {letter} alone has {plural(len(cases), 'case')}: {', '.join(cases)}")
    return said


def lesion_sentences(comparison: Comparison) -> list[str]:
    """Who found which lesions."""
    said = []
    for found in comparison.lesions:
        first, second = comparison.letters[0], comparison.letters[found.other]
        if not (found.both or found.first_only or found.second_only or found.neither):
            continue
        total = found.both + found.first_only + found.second_only + found.neither
        said.append(
            f"of {total} lesions both {first} and {second} found {found.both}, {first} alone {found.first_only}, "
            f"{second} alone {found.second_only}, neither {found.neither}"
        )
    return said


def _result_row(comparison: Comparison, result: Result) -> dict[str, Any]:
    test = result.test
    return {
        "metric": result.metric,
        "first": comparison.letters[0],
        "second": comparison.letters[result.other],
        "name_first": comparison.entries[0].name,
        "name_second": comparison.entries[result.other].name,
        "n": test.n,
        "patients": test.patients,
        "ties": test.ties,
        "left_out": result.left_out,
        "mean_first": test.mean_a,
        "mean_second": test.mean_b,
        "difference": test.difference,
        "ci_low": test.ci_low,
        "ci_high": test.ci_high,
        "p": f"{test.p:.3g}",
        "method": test.method,
        "p_holm": f"{result.p_holm:.3g}",
        "verdict": result.verdict,
    }
