"""What is done in OUT: one JSON file a case, so that a re-run does only what is missing or has changed.

`OUT/.medseg/cases/` holds the records, `OUT/.medseg/claims/` which process does which case now.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from medseg.errors import ConfigError
from medseg.inference.cases import Case
from medseg.inference.settings import RunSettings
from medseg.writing import aside

FOLDER = ".medseg"
Action = Literal["do", "done", "edited", "failed", "busy"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """What to do with a case.

    Attributes:
        action: "do"; or leave it: it is "done", its mask was "edited" by a person, it "failed" before, or another
            process is "busy" with it.
        row: the row that stands for it in the report, where it is not to be done.
        reason: why it is to be done, or left.
    """

    action: Action
    row: Row | None = None
    reason: str = ""


class Ledger:
    """The records of OUT, as one process sees and adds to them.

    Args:
        out: folder of the masks.
        settings: of this run.
    """

    def __init__(self, out: Path, settings: RunSettings) -> None:
        self.out, self.settings = out, settings
        self._records: dict[str, dict[str, Any]] = {}

    @classmethod
    def open(cls, out: Path, settings: RunSettings, *, redo: bool = False) -> "Ledger":
        """The ledger of OUT, made if absent.

        Args:
            out: folder of the masks.
            settings: of this run.
            redo: do every case again that was done with other settings.

        Raises:
            ConfigError: if OUT was made with another model or other settings; says what differs.
        """
        ledger = cls(out, settings)
        file = out / FOLDER / "settings.json"
        if file.is_file():
            before = RunSettings.from_json(json.loads(file.read_text(encoding="utf-8")))
            different = before.differences(settings)
            if different and not redo:
                raise ConfigError(
                    f"{out.name} was made with other settings ({'; '.join(different)}); choose another OUT, or redo "
                    "all its cases with --redo"
                )
        with aside(file) as temporary:
            temporary.write_text(json.dumps(settings.as_json(), indent=2), encoding="utf-8")
        return ledger

    def start(self, total: int) -> None:
        """Say that this process works on OUT, for others and `medseg status`; `total` cases are there in all."""

    def close(self) -> None:
        """Say that this process has ended."""

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def decide(self, case: Case, *, verify: bool = False, retry_failed: bool = False) -> Decision:
        """Whether a case is to be done.

        Args:
            case: which.
            verify: compare scans and mask byte for byte, not by size, time and ends alone.
            retry_failed: do again what failed.
        """
        record = self._read(case.case_id)
        if record is None or record["settings"] != self.settings.digest:
            return Decision("do")
        if record["row"]["status"] == "failed":
            return Decision("do") if retry_failed else Decision("failed", record["row"])
        if not (self.out / record["mask"]).is_file():
            return Decision("do")
        return Decision("done", record["row"])

    def claim(self, case: Case) -> bool:
        """Take a case for this process; False if another one has it, or has finished it meanwhile."""
        return True

    def release(self, case: Case) -> None:
        """Give a claimed case back undone."""

    def record(
        self,
        case: Case,
        row: Mapping[str, Any],
        lesions: Sequence[Mapping[str, Any]],
        *,
        inputs_sha256: Sequence[str] = (),
        mask: Path | None = None,
    ) -> None:
        """Write down that a claimed case is done or has failed, and release it.

        Args:
            case: which.
            row: of the report, with its `status`.
            lesions: rows of `lesions.csv`.
            inputs_sha256: of each source, as read; empty if none was read to its end.
            mask: the file that was written under its final name, if any.
        """
        content = {
            "case_id": case.case_id,
            "settings": self.settings.digest,
            "mask": mask.relative_to(self.out).as_posix() if mask else None,
            "inputs_sha256": list(inputs_sha256),
            "row": dict(row),
            "lesions": [dict(lesion) for lesion in lesions],
            "written": time.time(),
        }
        with aside(self._file(case.case_id)) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def rows(self) -> list[Row]:
        """Rows of the report, in the order of case ids, of this and of every other process."""
        return [record["row"] for record in self._all()]

    def lesions(self) -> list[Row]:
        """Rows of `lesions.csv`, in the order of case ids."""
        return [lesion for record in self._all() for lesion in record["lesions"]]

    def _all(self) -> list[dict[str, Any]]:
        files = (self.out / FOLDER / "cases").glob("[!.]*.json")
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return sorted(found, key=_case_id)

    def _read(self, case_id: str) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self._file(case_id).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record

    def _file(self, case_id: str) -> Path:
        name = hashlib.sha256(case_id.encode()).hexdigest()[:32]
        return self.out / FOLDER / "cases" / f"{name}.json"


def _case_id(record: Mapping[str, Any]) -> str:
    return str(record["case_id"])
