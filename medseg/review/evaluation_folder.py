"""The folder of an evaluation, read to be compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg import tracking
from medseg.errors import DataError
from medseg.metrics.case import lesion_name
from medseg.review.entry import VERSIONS, Entry, Row, number, parameters_of, texts

CASES, SUMMARY = "cases.jsonl", "summary.json"
FACTS = ("model", "version", "precision", "source", "split", "held_out", "recipe_sha256", "weights_sha256")


def read_evaluation(folder: Path) -> Entry:
    """An evaluation, from `cases.jsonl` and `summary.json`.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        summary = folder / SUMMARY
        text = summary.read_text(encoding="utf-8") if summary.is_file() else "{}"
        return evaluation((folder / CASES).read_text(encoding="utf-8"), text, folder.name)
    except OSError as error:
        raise DataError(f"{folder.name}: {CASES} cannot be read ({type(error).__name__}); copy it again") from error


def evaluation(cases: str, summary: str, name: str) -> Entry:
    """An evaluation from the text of its two files.

    Args:
        cases: of `cases.jsonl`.
        summary: of `summary.json`.
        name: for messages.

    Raises:
        DataError: if they are damaged.
    """
    try:
        listed = [json.loads(line) for line in cases.splitlines() if line.strip()]
        about = dict(json.loads(summary).get("about") or {})
        return _entry(listed, about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{name}: no whole evaluation ({type(error).__name__} in its tables); run medseg evaluate again"
        ) from error


def _entry(cases: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> Entry:
    judged = [case for case in cases if case.get("metrics")]
    recipe = about.get("recipe") or {}
    seconds = number(about.get("seconds_per_case"))
    parameters = number(about.get("parameters"))
    cost = {
        "ms_per_case": None if seconds is None else 1000 * seconds,
        "memory_mb": number(about.get("peak_memory_mb")),
        "parameters": parameters_of(recipe) if parameters is None and recipe else parameters,
    }
    return Entry(
        name=" ".join(str(about[key]) for key in ("model", "version") if about.get(key)) or "evaluation",
        split=str(about.get("split") or "evaluation"),
        rows={case["case_id"]: _row(case["metrics"]) for case in judged},
        failed=tuple(case["case_id"] for case in cases if case["status"] == "failed"),
        unjudged=tuple(case["case_id"] for case in cases if not case.get("metrics")),
        patients={case["case_id"]: str(case["patient"]) for case in judged if case.get("patient")},
        found={case["case_id"]: _found(case["metrics"].get("lesion_rows") or []) for case in judged},
        recipe=tracking.flat_settings(recipe),
        data=texts({"sha256": about.get("data_sha256")}),
        code=texts({"git commit": about.get("git_commit"), **{key: about.get(key) for key in VERSIONS}}),
        facts=texts({**{key: about.get(key) for key in FACTS}, "synthetic": about.get("synthetic") or None}),
        cost={key: value for key, value in cost.items() if value is not None},
    )


def _row(metrics: Mapping[str, Any]) -> Row:
    """The numbers of a case, by the names of docs/metrics.md."""
    named = {f"{region}_{key}": value for region, scores in metrics["regions"].items() for key, value in scores.items()}
    lesions = {lesion_name(key, metrics["regions"]): value for key, value in (metrics.get("lesions") or {}).items()}
    flat = {**named, **lesions, **(metrics.get("overall") or {})}
    return {key: number(value) for key, value in flat.items() if not isinstance(value, str)}


def _found(lesion_rows: Sequence[Mapping[str, Any]]) -> dict[int, bool]:
    return {int(row["lesion"]): row["status"] == "matched" for row in lesion_rows if row["of"] == "reference"}
