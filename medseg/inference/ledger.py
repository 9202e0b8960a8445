"""What is done in OUT, so that a re-run does only what is missing or has changed; see `Ledger`."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from medseg.errors import ConfigError
from medseg.inference.cases import Case
from medseg.inference.changes import TOUCHED, change_of, fingerprints
from medseg.inference.claims import Claims
from medseg.inference.fingerprints import is_same_mask, mask_mark
from medseg.inference.out_files import FOLDER, MASK_ENDINGS, create_once, sweep
from medseg.inference.records import Record, Records, Stamp, record_name
from medseg.inference.settings import RunSettings
from medseg.writing import aside

Action = Literal["do", "done", "edited", "failed", "busy"]
Row = dict[str, Any]

SWEEP_S = 60.0  # where no process works, a half-written file of this age belongs to nobody
EDITED = "the mask was changed since medseg wrote it: it is kept, not measured; remove it to have the case done again"
FOREIGN = "a mask that medseg did not write lies in its place: it is kept; remove it to have the case done"


@dataclass(frozen=True)
class Decision:
    """What to do with a case.

    Attributes:
        action: "do"; or leave it: it is "done", its mask was "edited" by a person, it "failed" before, or another
            process is "busy" with it.
        row: the row that stands for it in the report, where it is left and not busy.
        reason: why it is to be done.
    """

    action: Action
    row: Row | None = None
    reason: str = ""


class Ledger:
    """The records of OUT, as one process sees and adds to them.

    `OUT/.medseg/settings.json` says what OUT was made with, `cases/` holds one record a case, `claims/` and
    `processes/` say which process does which case now. A case is decided, claimed, done, recorded; a record is written
    whole, after the mask it speaks of has its final name.

    Args:
        out: folder of the masks.
        settings: of this run.
    """

    def __init__(self, out: Path, settings: RunSettings) -> None:
        self.out, self.settings = out, settings
        self._records, self._claims = Records(out / FOLDER / "cases"), Claims(out / FOLDER)
        self._decided: dict[str, Stamp | None] = {}  # the record that a decision was made by
        self._claimed: dict[str, Case] = {}
        self._inputs: dict[str, list[dict[str, Any] | None]] = {}  # of claimed cases, before they are read
        self._written: dict[str, dict[str, Any]] = {}  # masks whose record the disk did not take
        self._edited: dict[str, Row] = {}
        self._extra: dict[str, Mapping[str, str]] = {}

    @classmethod
    def open(cls, out: Path, settings: RunSettings, *, redo: bool = False) -> "Ledger":
        """The ledger of OUT, made if absent; what killed runs left half written is removed.

        Args:
            out: folder of the masks.
            settings: of this run.
            redo: do every case again that was done with other settings.

        Raises:
            ConfigError: if OUT was made with another model or other settings (says what differs), or another process
                works on it with them.
        """
        ledger = cls(out, settings)
        file = out / FOLDER / "settings.json"
        if not create_once(file, json.dumps(settings.as_json(), indent=2)):
            different = _settings_in(file).differences(settings)
            if different and not redo:
                raise ConfigError(
                    f"OUT was made with other settings: {'; '.join(different)}; choose another OUT, or do all its "
                    "cases again with --redo"
                )
            others = ledger._claims.living()
            if different and others:
                raise ConfigError(
                    f"OUT is being written with other settings by process {others[0].process['pid']}: "
                    f"{'; '.join(different)}; wait for it, or end it"
                )
            if different:
                with aside(file) as temporary:
                    temporary.write_text(json.dumps(settings.as_json(), indent=2), encoding="utf-8")
        ledger._claims.forget_dead()
        if not ledger._claims.living():
            sweep(out, older_than_s=SWEEP_S)
        return ledger

    def start(self, total: int) -> None:
        """Say that this process works on OUT, for other processes and `medseg status`.

        Args:
            total: cases of this run, those done already among them.
        """
        self._claims.start(total)

    def close(self) -> None:
        """Give back what is claimed, and say that this process has ended."""
        for case in list(self._claimed.values()):
            self.release(case)
        self._claims.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def decide(self, case: Case, *, verify: bool = False, retry_failed: bool = False) -> Decision:
        """Whether a case is to be done; cheap, for a folder of thousands.

        Args:
            case: which.
            verify: compare scans and mask byte for byte, not by size, time and ends alone.
            retry_failed: do again what failed.

        Raises:
            OSError: if OUT cannot be read.
        """
        name = record_name(case.case_id)
        self._decided[name] = self._records.stamp(name)
        self._extra[case.case_id] = case.extra
        record = self._records.read(name)
        kept = self._kept_mask(case, record, verify=verify)
        if kept:
            self._edited[case.case_id] = row = _edited_row(case, record, kept)
            return Decision("edited", row)
        self._edited.pop(case.case_id, None)
        reason = self._reason_to_do(case, record, verify=verify, retry_failed=retry_failed)
        if not reason and record is not None:
            return Decision("failed" if record["row"]["status"] == "failed" else "done", record["row"] | case.extra)
        return Decision("busy") if self._claims.is_busy(name) else Decision("do", reason=reason)

    def claim(self, case: Case) -> bool:
        """Take a case for this process; False if another one has it, or has finished it since it was decided.

        Raises:
            OSError: if OUT cannot be written.
        """
        name = record_name(case.case_id)
        if not self._claims.take(name, case.case_id):
            return False
        if name in self._decided and self._records.stamp(name) != self._decided[name]:
            self._claims.release(name)
            return False
        self._claimed[name], self._inputs[name] = case, fingerprints(case.sources)
        return True

    def release(self, case: Case) -> None:
        """Give a claimed case back undone; a mask that this process wrote and did not record goes."""
        name = record_name(case.case_id)
        if self._claimed.pop(name, None):
            with suppress(OSError):  # OUT is away
                self._remove_unrecorded(case)
        self._inputs.pop(name, None)
        self._claims.release(name)

    def record(
        self,
        case: Case,
        row: Mapping[str, Any],
        lesions: Sequence[Mapping[str, Any]],
        *,
        inputs_sha256: Sequence[str] = (),
        mask: Path | None = None,
        further: Sequence[Path] = (),
    ) -> None:
        """Write down that a claimed case is done or has failed, and release it.

        The mask that an earlier run wrote for a case that has failed now is removed, and what shows it: they are not
        this scan's.

        Args:
            case: which.
            row: of the report, with its `status`.
            lesions: rows of `lesions.csv`.
            inputs_sha256: of each scan, as read; empty if none was read to its end.
            mask: the file that was written under its final name, if any.
            further: files that show an earlier mask of a case that has failed, there or not.

        Raises:
            OSError: if OUT cannot be written.
        """
        name = record_name(case.case_id)
        mark = mask_mark(mask) if mask else None
        if mark:
            self._written[name] = mark
        content = {
            "case_id": case.case_id,
            "settings": self.settings.digest,
            "inputs": self._inputs.get(name) or fingerprints(case.sources),
            "inputs_sha256": list(inputs_sha256),
            "mask": {"name": mask.relative_to(self.out).as_posix(), **mark} if mask and mark else None,
            "row": dict(row),
            "lesions": [dict(lesion) for lesion in lesions],
            "written": time.time(),
        }
        if mask is None:
            self._remove_unrecorded(case)
            before = self._records.read(name)
            if before and before["mask"] and not self._kept_mask(case, before):
                for path in (self.out / before["mask"]["name"], *further):
                    path.unlink(missing_ok=True)
        self._records.write(name, content)
        for known in (self._claimed, self._inputs, self._written):
            known.pop(name, None)
        self._claims.release(name)

    def rows(self) -> list[Row]:
        """Rows of the report, in the order of case ids, of this and of every other process."""
        rows = {record["case_id"]: record["row"] for record in self._records.all()} | self._edited
        return [rows[case_id] | self._extra.get(case_id, {}) for case_id in sorted(rows)]

    def lesions(self) -> list[Row]:
        """Rows of `lesions.csv`, in the order of case ids."""
        records = (record for record in self._records.all() if record["case_id"] not in self._edited)
        return [lesion for record in records for lesion in record["lesions"]]

    def _reason_to_do(self, case: Case, record: Record | None, *, verify: bool, retry_failed: bool) -> str:
        """Why a case whose mask nobody has edited is to be done; empty if it is not."""
        if record is None:
            return "not done yet"
        if record["settings"] != self.settings.digest:
            return "done with other settings"
        failed = record["row"]["status"] == "failed"
        if failed and retry_failed:
            return "failed before"
        if not failed and record["mask"] and not (self.out / record["mask"]["name"]).is_file():
            return "its mask is gone"
        change = change_of(case.sources, record["inputs"], record["inputs_sha256"], verify=verify and not failed)
        if change == TOUCHED:  # from now on its time is known
            self._records.write(record_name(case.case_id), record | {"inputs": fingerprints(case.sources)})
        return "" if change == TOUCHED else change

    def _kept_mask(self, case: Case, record: Record | None, *, verify: bool = False) -> str:
        """Why the mask that lies in the place of a case must not be overwritten; empty if it may."""
        mark = record["mask"] if record else None
        for path in [self.out / mark["name"]] if mark else self._places(case):
            try:
                if mark and is_same_mask(path, mark, verify=verify):
                    continue
                if self._claims.is_from_dead(record_name(case.case_id), path):
                    continue
            except FileNotFoundError:
                continue
            return EDITED if mark else FOREIGN
        return ""

    def _remove_unrecorded(self, case: Case) -> None:
        """Remove a mask that this process, or a dead one before it, has written and nobody has recorded.

        Where there is a record, it is removed only if it is known to be ours: else it may be an edit.
        """
        name = record_name(case.case_id)
        record, written = self._records.read(name), self._written.pop(name, None)
        for path in self._places(case):
            if record and record["mask"]:
                ours = written is not None and is_same_mask(path, written)
            else:
                ours = self._claims.is_from_here(name, path) or self._claims.is_from_dead(name, path)
            if ours:
                path.unlink()

    def _places(self, case: Case) -> list[Path]:
        return [path for ending in MASK_ENDINGS if (path := self.out / f"{case.case_id}{ending}").exists()]


def _settings_in(file: Path) -> RunSettings:
    try:
        return RunSettings.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"OUT/{FOLDER}/{file.name} cannot be read ({type(error).__name__}), so what OUT was made with is not "
            "known; choose another OUT"
        ) from error


def _edited_row(case: Case, record: Record | None, message: str) -> Row:
    known = record["row"] if record else {}
    kept = {column: known[column] for column in ("model", "precision") if column in known}
    return {"case_id": case.case_id, "status": "edited", "message": message, **kept, **case.extra}
