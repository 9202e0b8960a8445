"""Runs as rows: what a run is about, how it ended and how good it is; filtered and sorted."""

import difflib
import math
import operator
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg import tracking
from medseg.errors import ConfigError

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
    "~": operator.contains,
}
CONDITION = re.compile(r"\s*([^<>=!~]+?)\s*(>=|<=|!=|==|>|<|=|~)\s*(.+?)\s*")
PREFIXES = ("held_out_", "best_validation_", "out_of_fold_", "validation_")  # which cases a bare metric is of
COLUMNS = ("name", "status", "started", "minutes", "experiment", "overrides", "commit", "run_id")
SYSTEM = "system/"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """Such as `liver_dice > 0.9`: a name, a comparison and a number or text."""

    name: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """The condition that a text states.

        Raises:
            ConfigError: if it is none.
        """
        found = CONDITION.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"--where {text!r} is no condition: write NAME, one of {' '.join(OPERATORS)}, and a value, such as "
                "'liver_dice>0.9' or 'status=FINISHED'"
            )
        condition = cls(*found.groups())
        if condition.sign in (">", "<", ">=", "<=") and _number(condition.value) is None and not _is_date(condition):
            raise ConfigError(f"--where {text!r}: {condition.sign} compares numbers, and {condition.value!r} is none")
        return condition

    def holds(self, row: Row) -> bool:
        """Whether a row meets it; one without the value does not."""
        found = value_of(row, self.name)
        if found is None:
            return False
        number, asked = _number(found), _number(self.value)
        if self.sign != "~" and number is not None and asked is not None:
            return OPERATORS[self.sign](number, asked)
        return OPERATORS[self.sign](str(found).lower(), self.value.lower())


def list_rows(
    runs_dir: Path, *, where: Sequence[str] = (), sort: str | None = None, descending: bool = False
) -> list[dict[str, Any]]:
    """One row a run: the columns `COLUMNS`, then its latest figures and settings by their names.

    Args:
        runs_dir: the project's folder of runs.
        where: conditions, all of which a run must meet.
        sort: name of what to sort by; runs without it come last. Newest first if None.
        descending: largest first.

    Raises:
        ConfigError: if the store cannot be reached, a condition is none, or no run has what is asked for.
    """
    rows = [run_row(run) for run in tracking.list_runs(runs_dir)]
    conditions = [Condition.parse(text) for text in where]
    for name in [condition.name for condition in conditions] + ([sort] if sort else []):
        _check_name(name, rows)
    kept = [row for row in rows if all(condition.holds(row) for condition in conditions)]
    return sorted_rows(kept, sort, descending=descending) if sort else kept


def run_row(run: tracking.Recorded) -> dict[str, Any]:
    """The row of a run."""
    ended, started = run.ended_ms, run.started_ms
    minutes = round((ended - started) / 60_000, 1) if ended and started else None
    own = {
        "name": run.name,
        "status": run.status,
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(started / 1000)) if started else None,
        "minutes": minutes,
        "experiment": run.experiment,
        "overrides": run.tags.get("overrides") or None,
        "commit": (run.tags.get("mlflow.source.git.commit") or "")[:8] or None,
        "run_id": run.run_id,
    }
    metrics = {key: value for key, value in run.metrics.items() if not key.startswith(SYSTEM)}
    return {**run.params, **metrics, **own}


def figures_of(rows: Iterable[Row]) -> list[str]:
    """The figures worth a column: each region's Dice on the most telling cases that a run has.

    >>> figures_of([{"held_out_liver_dice": 0.9, "validation_liver_dice": 0.95, "held_out_mean_dice": 0.9}])
    ['liver_dice']
    """
    found: dict[str, None] = {}
    for row in rows:
        for key in row:
            prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
            if prefix and key.endswith("_dice") and isinstance(row[key], float):
                found[key.removeprefix(prefix)] = None
    regions = [name for name in found if name != "mean_dice"]
    return regions or list(found)


def value_of(row: Row, name: str) -> Any:
    """What a row holds under a name; a bare metric such as `liver_dice` is of the most telling cases it has."""
    for key in (name, *(f"{prefix}{name}" for prefix in PREFIXES)):
        if row.get(key) is not None:
            return row[key]
    return None


def sorted_rows(rows: Iterable[dict[str, Any]], name: str, *, descending: bool = False) -> list[dict[str, Any]]:
    """Rows by a value, numbers before text, those without it last either way."""
    known = [(value, row) for row in rows if (value := value_of(row, name)) is not None]
    unknown = [row for row in rows if value_of(row, name) is None]
    keyed = [(_order(value), number, row) for number, (value, row) in enumerate(known)]
    ordered = sorted(keyed, key=operator.itemgetter(0), reverse=descending)
    return [row for *_, row in ordered] + unknown


def _order(value: Any) -> tuple[int, float, str]:
    number = _number(value)
    return (1, 0.0, str(value).lower()) if number is None else (0, number, "")


def _check_name(name: str, rows: Sequence[Row]) -> None:
    if not rows or any(value_of(row, name) is not None for row in rows) or name in COLUMNS:
        return
    known = sorted({key.removeprefix(prefix) for row in rows for key in row for prefix in ("", *PREFIXES)})
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "`medseg runs --json` shows all names"
    raise ConfigError(f"no run has {name!r}; {hint}")


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _is_date(condition: Condition) -> bool:
    """Dates written as here compare as text."""
    return condition.name == "started" and re.fullmatch(r"\d{4}(-\d\d){0,2}( \d\d:\d\d)?", condition.value) is not None
