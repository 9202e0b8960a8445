"""Two folders in, one evaluation out: which cases, judged by what, against whom."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg import __version__
from medseg.bundle import Bundle
from medseg.errors import ConfigError, DataError
from medseg.evaluation.consensus import How, check_count
from medseg.evaluation.folder import write_folder
from medseg.evaluation.judging import Record, Task, judge_all
from medseg.evaluation.judgment import Judgment
from medseg.evaluation.pairing import masks_in, pair
from medseg.evaluation.pictures import Loaded, Loader
from medseg.evaluation.probabilities import probabilities_in
from medseg.evaluation.provenance import (
    Predicted,
    about_run,
    read_rows,
    recipe_digest,
    run_folder_of,
    seen_in,
    split_of,
)
from medseg.evaluation.readers import agreed_references, reader_rows
from medseg.evaluation.summing import with_groups
from medseg.reading import read_channels, read_label

HELD_OUT_SPLITS = ("held_out", "test")
SEEN_SPLITS = ("training", "validation", "best_validation")
MOST_NAMED = 5


@dataclass(frozen=True)
class Options:
    """What an evaluation may be told besides its folders.

    Attributes:
        scans: folder of the scans, for pictures.
        probabilities: folder of the model's probabilities.
        table: CSV with `case_id` and further columns: `patient`, `phase`, `labeled`, and those of `groups`.
        patient_pattern: regular expression whose first group in the case id names the patient.
        groups: columns to make subgroups by, besides `phase`.
        source: where the cases come from, for the first box.
        split: what they are of the model's data: "held_out", "test", "validation", "training", or any other name.
        consensus: judge against what the readers agree on.
        only_predicted: name references without a mask, and do not count them as failures.
        tolerances_mm: of the surface Dice.
        jobs: processes; None for what fits.
    """

    scans: Path | None = None
    probabilities: Path | None = None
    table: Path | None = None
    patient_pattern: str = ""
    groups: Sequence[str] = ()
    source: str = ""
    split: str = ""
    consensus: How | None = None
    only_predicted: bool = False
    tolerances_mm: tuple[float, ...] = (2.0, 5.0)
    jobs: int | None = None


@dataclass(frozen=True)
class _Found:
    """Files of an evaluation by case id."""

    masks: Mapping[str, Path]
    references: Mapping[str, Path]
    predicted: Predicted
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def evaluate(
    masks: Path,
    references: Mapping[str, Path],
    out: Path,
    *,
    judgment: Judgment,
    bundle: Bundle | None = None,
    options: Options | None = None,
    done: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Judge a folder of masks and write the evaluation.

    Args:
        masks: folder of the masks, such as the OUT of `medseg predict`.
        references: reader -> folder of references; the first one's count, or what all agree on.
        out: folder to write.
        judgment: what to judge by.
        bundle: the model, if known: for what it was trained on.
        options: all else.
        done: called after each case.

    Returns:
        The content of `summary.json`.

    Raises:
        DataError: if folders hold no masks, or no case has both.
        ConfigError: if options do not fit.
    """
    options = options or Options()
    _check_folders(masks, references, out)
    of_readers = {name: masks_in(folder) for name, folder in references.items()}
    unsound: dict[str, str] = {}
    if options.consensus:
        check_count(len(of_readers), options.consensus)
        agreed, unsound = agreed_references(of_readers, out, judgment, options.consensus)
        of_readers = {options.consensus: agreed, **of_readers}
    name, first = next(iter(of_readers.items()))
    found = _Found(masks_in(masks), first, Predicted.of(masks), _columns(options.table))
    tasks, unasked = _tasks(found, judgment, options)
    unusable = [Record(case_id, "missing", f"the reference cannot be used: {why}") for case_id, why in unsound.items()]
    records = [*judge_all(tasks, jobs=options.jobs, done=done), *unasked, *unusable]
    records = [_completed(record, found, options) for record in sorted(records, key=_case_id)]
    readers: list[dict[str, Any]] = []
    if len(of_readers) > 1:
        readers = reader_rows(records, found.masks, of_readers, judgment, jobs=options.jobs)
    known = _about(found, records, options, bundle) | {"reference": _reference_name(name, references, options)}
    if options.consensus and (alone := set().union(*of_readers.values()) - set(first) - set(unsound)):
        known["warnings"].append(f"{len(alone)} cases lack a reader and are not judged: {_some(sorted(alone))}")
    without = [task.case_id for task in tasks if task.mask is not None and task.probabilities is None]
    if options.probabilities and without:
        known["warnings"].append(f"{len(without)} cases have a mask and no probabilities: {_some(without)}")
    load = _loader(found, options, judgment)
    return write_folder(out, records, judgment, known, load=load, readers=readers)


def _check_folders(masks: Path, references: Mapping[str, Path], out: Path) -> None:
    """Whether each folder is one of its own: masks agree with themselves, and OUT replaces pages and tables.

    Raises:
        ConfigError: if two are the same, or OUT is a file.
    """
    if out.is_file():
        raise ConfigError(f"{out.name}: OUT is a file; give a folder")
    known = {masks.resolve(): "PRED"}
    for name, folder in [*((f"--ref {name}", folder) for name, folder in references.items()), ("OUT", out)]:
        if other := known.get(folder.resolve()):
            raise ConfigError(f"{folder.name}: {name} is the same folder as {other}; give each a folder of its own")
        known[folder.resolve()] = name


def _tasks(found: _Found, judgment: Judgment, options: Options) -> tuple[list[Task], list[Record]]:
    """What is to be judged, and records of the references that nobody was asked to segment."""
    paired = pair(found.masks, found.references)
    probabilities = probabilities_in(options.probabilities) if options.probabilities else {}
    if options.probabilities and paired.both and not probabilities.keys() & set(paired.both):
        raise DataError(
            f"{options.probabilities.name}: none of its probabilities is of a case with mask and reference: they are "
            f"{_some(sorted(probabilities))}, cases {_some(paired.both)}; rename them alike"
        )
    tasks, unasked = [], []
    for case_id in (*paired.both, *paired.without_mask):
        row = found.predicted.rows.get(case_id)
        status, message = (row.get("status", ""), row.get("message", "")) if row else ("", "")
        mask = None if status == "failed" else found.masks.get(case_id)
        asked = status in ("failed", "done", "edited") or (not found.predicted.rows and not options.only_predicted)
        if mask is None and not asked:
            why = f"{status} in report.csv" if status else "no mask of it, and prediction was not asked for one"
            unasked.append(Record(case_id, "missing", why))
            continue
        tasks.append(
            Task(
                case_id,
                mask,
                found.references[case_id],
                judgment,
                message=message or "no mask",
                labeled=_labeled(found.columns.get(case_id, {}), judgment, case_id),
                probabilities=probabilities.get(case_id),
                scores={} if status == "edited" else found.predicted.scores.get(case_id, {}),
                tolerances_mm=options.tolerances_mm,
            )
        )
    return tasks, unasked


def _completed(record: Record, found: _Found, options: Options) -> Record:
    """With what tables say of the case: patient, groups, seconds, a person's edits."""
    row = found.predicted.rows.get(record.case_id, {})
    columns = {**row, **found.columns.get(record.case_id, {})}
    if columns.get("status") == "edited":
        edited = {"kind": "edited", "text": "a person edited this mask; it is not the model's alone"}
        record = replace(record, findings=(*record.findings, edited))  # type: ignore[arg-type]
    grouping = [*(["phase"] if any("phase" in one for one in found.columns.values()) or "phase" in row else [])]
    grouping += [column for column in options.groups if column not in grouping]
    known = {*row, *(name for one in found.columns.values() for name in one)}
    if absent := [column for column in options.groups if column not in known and known]:
        raise ConfigError(f"--group {absent[0]}: no such column; there are {', '.join(sorted(known))}")
    patient = patient_of(record.case_id, columns, options.patient_pattern)
    grouped = with_groups(record, extra=columns, columns=grouping)
    return replace(grouped, patient=patient_digest(patient), seconds=found.predicted.seconds(record.case_id))


def patient_digest(patient: str) -> str:
    """What stands for a patient in what is written: who is the same stays known, a name is not written; empty if empty.

    It has no key, so that cards of several runs agree; somebody who knows all candidates can still tell who it is.
    """
    return f"patient-{hashlib.sha256(patient.encode()).hexdigest()[:10]}" if patient else ""


def patient_of(case_id: str, columns: Mapping[str, str], pattern: str = "") -> str:
    """Who a case is of: by a pattern, else the column `patient`; empty if neither says it.

    Raises:
        ConfigError: if the pattern is none, has no group, or does not match.
    """
    if not pattern:
        return columns.get("patient") or ""
    try:
        match = re.search(pattern, case_id)
        named = match[1] if match else None
    except (re.error, IndexError) as error:
        raise ConfigError(f"--patient-pattern {pattern!r}: {error}; put (...) around the patient's part") from error
    if named is None:
        raise ConfigError(f"--patient-pattern {pattern!r}: does not match case {case_id!r}; correct it")
    return named


def _about(found: _Found, records: Sequence[Record], options: Options, bundle: Bundle | None) -> dict[str, Any]:
    """What the first box says of model and data."""
    settings = found.predicted.settings
    about: dict[str, Any] = {
        "model": settings.get("model") or (bundle.name if bundle else ""),
        "version": settings.get("version") or (bundle.version if bundle else ""),
        "precision": settings.get("precision") or "",
        "recipe_sha256": settings.get("recipe_sha256") or (recipe_digest(bundle) if bundle else None),
        "weights_sha256": settings.get("weights_sha256"),
        "synthetic": bundle.synthetic if bundle else bool(found.predicted.run.get("judgment", {}).get("synthetic")),
        "source": options.source,
        "peak_memory_mb": found.predicted.peak_memory_mb(),
        "device": found.predicted.run.get("device"),
        "medseg": __version__,
        **found.predicted.run.get("versions", {}),
        "recipe": dict(bundle.recipe) if bundle else {},
        "without_reference": sorted(set(found.masks) - set(found.references) - {record.case_id for record in records}),
        "warnings": [],
    }
    run = run_folder_of(bundle) if bundle else None
    parts = split_of(run) if run else {}
    if run:
        about |= about_run(run)
    return about | split_and_warnings(parts, [r.case_id for r in records if r.counted], options.split)


def split_and_warnings(parts: Mapping[str, str], case_ids: Sequence[str], split: str) -> dict[str, Any]:
    """`split`, `held_out` (True, False or "unknown"), whether a run says so of all cases (`checked`), and `warnings`.

    Args:
        parts: case id -> part of the model's data, as far as its run is known.
        case_ids: of the judged cases.
        split: what the user says they are.
    """
    seen = seen_in(parts, case_ids)
    warnings = []
    for part in SEEN_SPLITS:
        if ids := seen.get(part):
            what = "trained on" if part == "training" else "chosen by"
            warnings.append(f"{len(ids)} judged cases have ids that the model was {what}: {_some(ids)}")
    held_out: bool | str = "unknown"
    if warnings or split in SEEN_SPLITS:
        held_out = False
        if not warnings:
            warnings.append(f"These are {split.replace('_', ' ')} cases: the model has learned from them or by them.")
    elif split in HELD_OUT_SPLITS or set(seen) == {"held_out"}:
        held_out = True
    told = split or ", ".join(f"{part} {len(ids)}" for part, ids in seen.items() if part != "unknown")
    checked = set(seen) == {"held_out"} or any(part in seen for part in SEEN_SPLITS)
    return {"split": told, "held_out": held_out, "checked": checked, "warnings": warnings}


def _reference_name(name: str, references: Mapping[str, Path], options: Options) -> str:
    if options.consensus:
        return f"{options.consensus} of {', '.join(references)}"
    return (
        f"{name}, of {len(references)} readers"
        if len(references) > 1
        else name
        if name != "reference"
        else "one reader"
    )


def _loader(found: _Found, options: Options, judgment: Judgment) -> Loader:
    scans = masks_in(options.scans) if options.scans else {}

    def load(case_id: str) -> Loaded:
        reference = read_label(found.references[case_id], judgment.code_of_references())
        pred = read_label(found.masks[case_id], judgment.code_of_predictions()).voxels
        path = next((scans[name] for name in (case_id, f"{case_id}_0000") if name in scans), None)
        image = None
        if path is not None:
            channels = ("red", "green", "blue") if judgment.unit == "px" else ("scan",)
            try:
                image = read_channels(path, channels)[0]
            except DataError:
                image = read_channels(path, channels[:1])[0] if judgment.unit == "px" else None
        return Loaded(image, pred, reference)

    return load


def _columns(table: Path | None) -> dict[str, dict[str, str]]:
    """Rows of the user's table by case id."""
    if table is None:
        return {}
    rows = read_rows(table)
    if not rows or "case_id" not in rows[0]:
        raise DataError(f"{table.name}: no column case_id; give a CSV with one row a case")
    return {row["case_id"]: row for row in rows}


def _labeled(columns: Mapping[str, str], judgment: Judgment, case_id: str) -> tuple[str, ...] | None:
    names = tuple(name.strip() for name in (columns.get("labeled") or "").split(";") if name.strip())
    if unknown := [name for name in names if name not in judgment.regions]:
        raise DataError(f"case {case_id!r}: labeled names {unknown[0]!r}; regions are {', '.join(judgment.regions)}")
    return names or None


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:MOST_NAMED]) + (", ..." if len(ids) > MOST_NAMED else "")


def _case_id(record: Record) -> str:
    return record.case_id
