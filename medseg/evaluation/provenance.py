"""Where masks come from: what `medseg predict` wrote beside them, and what the model's run says of its data."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg import data_half
from medseg.bundle import Bundle

HELD_OUT_NAMES = {"test": "held_out", "training": "training", "validation": "validation"}


@dataclass(frozen=True)
class Predicted:
    """What a folder of masks says of itself; all empty for masks of another program.

    Attributes:
        run: content of run.json.
        rows: of report.csv, by case id.
        scores: case id -> lesion number -> mean probability, of lesions.csv.
    """

    run: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    scores: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Predicted":
        """Read what is there."""
        scores: dict[str, dict[int, float]] = {}
        for row in read_rows(folder / "lesions.csv"):
            with suppress(KeyError, ValueError):
                scores.setdefault(row["case_id"], {})[int(row["lesion"])] = float(row["mean_probability"])
        rows = {row["case_id"]: row for row in read_rows(folder / "report.csv") if row.get("case_id")}
        return cls(read_json(folder / "run.json"), rows, scores)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the run: model, version, digests, precision."""
        found = self.run.get("settings", {})
        return found if isinstance(found, Mapping) else {}

    def seconds(self, case_id: str) -> float | None:
        """What a case took."""
        with suppress(KeyError, ValueError):
            return float(self.rows[case_id]["seconds"])
        return None

    def peak_memory_mb(self) -> float | None:
        """The most memory that a case took."""
        told = [row.get("peak_memory_mb") or "" for row in self.rows.values()]
        return max((float(text) for text in told if text.replace(".", "", 1).isdigit()), default=None)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none if it is absent."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty if it is absent or no object."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def run_folder_of(bundle: Bundle) -> Path | None:
    """The run that a bundle lies in, if it does."""
    folder = bundle.root.parent
    return folder if bundle.root.name == "bundle" and (folder / "run.json").is_file() else None


def split_of(run: Path) -> dict[str, str]:
    """Case id -> the part of the data that it was in when the model was trained."""
    parts = read_json(run / "tracking" / "artifacts" / "split.json")
    return {case_id: HELD_OUT_NAMES.get(part, part) for part, ids in parts.items() for case_id in ids}


def about_run(run: Path) -> dict[str, Any]:
    """Commit and data of a training, as its run folder has them."""
    tags: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        for line in (run / "tracking" / "journal.jsonl").read_text(encoding="utf-8").splitlines():
            tags |= json.loads(line).get("tags") or {}
    return {
        "git_commit": tags.get("mlflow.source.git.commit"),
        "data_sha256": read_json(run / "data.json").get("sha256"),
    }


def recipe_digest(bundle: Bundle) -> str:
    """Hex digest of the data half of a model's recipe, the same as in `run.json` of its predictions."""
    half = json.dumps(data_half.data_half(bundle.recipe), sort_keys=True)
    return hashlib.sha256(half.encode()).hexdigest()


def seen_in(parts: Mapping[str, str], case_ids: Sequence[str]) -> dict[str, list[str]]:
    """Part of the model's data -> the judged cases that were in it; "unknown" for those of no part."""
    found: dict[str, list[str]] = {}
    for case_id in case_ids:
        found.setdefault(parts.get(case_id) or parts.get(case_id.rpartition("/")[2], "unknown"), []).append(case_id)
    return found
