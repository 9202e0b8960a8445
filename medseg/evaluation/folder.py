"""The files of an evaluation: `cases.jsonl`, `cases.csv`, `lesions.csv`, `summary.json`, `index.html`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.evaluation.card import card
from medseg.evaluation.judging import Record
from medseg.evaluation.judgment import Judgment
from medseg.evaluation.pictures import Loader, worst_cases
from medseg.evaluation.readers import flat_reader_row
from medseg.evaluation.summing import add_up
from medseg.report.measurements import write_csv
from medseg.writing import aside

MARK = "summary.json"  # says that a folder is an evaluation


def write_folder(
    out: Path,
    records: Sequence[Record],
    judgment: Judgment,
    about: Mapping[str, Any],
    *,
    load: Loader | None = None,
    readers: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write an evaluation; the content of `summary.json`.

    Args:
        out: folder, made if absent.
        records: of all cases, in the order of the tables.
        judgment: what they were judged by.
        about: what is known of model and data; numbers of cases are added here.
        load: case id -> image (or None), prediction and reference, for the pictures; none are drawn without.
        readers: one row a pair of readers (the model is one) and region.
    """
    figures = add_up(records, judgment)
    content = {
        "about": {**about, **numbers(records, figures, judgment)},
        **figures,
        "readers": list(readers),
        "settings": next((r.metrics.settings for r in records if r.metrics is not None), {}),
    }
    worst = worst_cases(records, judgment, load)
    content["worst"] = [{"case_id": one.record.case_id, "score": one.score} for one in worst]
    _write(out / "cases.jsonl", "".join(json.dumps(record.as_json(), allow_nan=False) + "\n" for record in records))
    rows = [flat_row(record) for record in records]
    write_csv(out / "cases.csv", rows, _columns(rows) or ["case_id"])
    lesions = [
        {"case_id": record.case_id, **row, "overlaps": " ".join(map(str, row["overlaps"]))}
        for record in records
        if record.metrics is not None
        for row in record.metrics.lesion_rows
    ]
    if lesions:
        write_csv(out / "lesions.csv", lesions, _columns(lesions))
    if readers:
        flat = [flat_reader_row(row) for row in readers]
        write_csv(out / "readers.csv", flat, _columns(flat))
    _write(out / "index.html", card(content, records, judgment, worst))
    _write(out / MARK, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return content


def judged_cases(out: Path) -> list[str]:
    """Ids of the cases of an evaluation that were judged: neither failed nor missing."""
    lines = (out / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["case_id"] for row in map(json.loads, lines) if row["status"] == "judged"]


def flat_row(record: Record) -> dict[str, Any]:
    """A row of `cases.csv`."""
    return {
        "case_id": record.case_id,
        "status": record.status,
        "message": record.message,
        "patient": record.patient,
        "findings": "; ".join(finding["text"] for finding in record.findings if finding["kind"] != "failed"),
        **record.groups,
        "seconds": record.seconds,
        **(record.metrics.row() if record.metrics is not None else {}),
    }


def numbers(records: Sequence[Record], figures: Mapping[str, Any], judgment: Judgment) -> dict[str, Any]:
    """What the first box counts."""
    counted = [record for record in records if record.counted]
    seconds = [record.seconds for record in records if record.seconds is not None]
    region = judgment.lesion_region or next(iter(judgment.regions))
    return {
        "n": len(counted),
        "patients": len({record.patient or record.case_id for record in counted}),
        "patients_known": all(record.patient for record in counted),
        "failed": sum(record.status == "failed" for record in records),
        "missing": sum(record.status == "missing" for record in records),
        "empty_cases": figures["empty"][region]["reference"],
        "empty_region": region,
        "seconds_per_case": round(sum(seconds) / len(seconds), 3) if seconds else None,
    }


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _write(path: Path, text: str) -> None:
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
