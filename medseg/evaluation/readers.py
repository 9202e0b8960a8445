"""Several readers: the model against each, beside reader against reader."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from medseg.errors import DataError
from medseg.evaluation.consensus import How, consensus
from medseg.evaluation.judging import Record, Task, judge_all
from medseg.evaluation.judgment import Judgment
from medseg.evaluation.summing import agreements
from medseg.metrics import summary
from medseg.reading import read_label
from medseg.writing import write_nifti

References = Mapping[str, Path]


def agreed_references(
    readers: Mapping[str, References], out: Path, judgment: Judgment, how: How
) -> tuple[dict[str, Path], dict[str, str]]:
    """Write what the readers agree on to `out/consensus`, for cases that all have.

    Returns:
        Path by case id; and by case id why there is none, where a reference cannot be read or grids differ.

    Raises:
        DataError: if no case has all readers, or none a sound consensus.
        ConfigError: if there are too few readers.
    """
    common = sorted(set.intersection(*(set(found) for found in readers.values())))
    if not common:
        raise DataError(f"no case has a reference of each of {', '.join(readers)}; name their files alike")
    written, unsound = {}, {}
    for case_id in common:
        try:
            maps = {name: read_label(found[case_id], judgment.code_of_references()) for name, found in readers.items()}
            agreed = consensus(maps, how, ignore_label=judgment.ignore_label)
        except DataError as error:
            unsound[case_id] = str(error)
            continue
        written[case_id] = out / "consensus" / f"{case_id}.nii.gz"  # of images too: label values on a grid of pixels
        write_nifti(agreed.voxels, agreed.affine, written[case_id])
    if not written:
        raise DataError(f"case {common[0]!r}: {unsound[common[0]]}; no case has a sound consensus")
    return written, unsound


def reader_rows(
    records: Sequence[Record],
    masks: References,
    readers: Mapping[str, References],
    judgment: Judgment,
    *,
    jobs: int | None = None,
) -> list[dict[str, Any]]:
    """A row a pair and region, over the judged cases that all readers have.

    Args:
        records: the model against the first reader.
        masks: of the model, by case id.
        readers: name -> references by case id.
        judgment: what to judge by.
        jobs: processes; None for what fits.

    Returns:
        `first`, `second`, `region`, `n`, `dice`, `dice_all` and `hd95` (summaries), `icc` of the sizes.
    """
    judged = {record.case_id: record for record in records if record.status == "judged"}
    common = sorted(case_id for case_id in judged if all(case_id in found for found in readers.values()))
    first, *others = readers
    rows = _rows("model", first, [judged[case_id] for case_id in common], judgment)
    pairs = [("model", masks, other) for other in others]
    pairs += [(one, readers[one], other) for one, other in combinations(readers, 2)]
    for name, files, other in pairs:
        tasks = [
            Task(case_id, files[case_id], readers[other][case_id], judgment, mask_by_reader=name != "model")
            for case_id in common
        ]
        against = [
            replace(record, patient=judged[record.case_id].patient)
            for record in judge_all(tasks, jobs=jobs)
            if record.status == "judged"
        ]
        rows += _rows(name, other, against, judgment)
    return rows


def _rows(first: str, second: str, records: Sequence[Record], judgment: Judgment) -> list[dict[str, Any]]:
    metrics = [record.metrics.row() for record in records if record.metrics is not None]
    patients = [record.patient or record.case_id for record in records if record.metrics is not None]
    agreed = agreements(records, judgment)
    rows = []
    for region in judgment.regions:
        names = {"dice": f"{region}_dice", "dice_all": f"{region}_dice_all", "hd95": f"{region}_hd95_{judgment.unit}"}
        told = summary(metrics, names=list(names.values()), patients=patients)
        rows.append(
            {
                "first": first,
                "second": second,
                "region": region,
                "n": len(records),
                **{short: told[name] for short, name in names.items()},
                "icc": agreed.get(region, {}).get("icc"),
            }
        )
    return rows


def flat_reader_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `readers.csv`."""
    figures = {
        f"{name}_{key}": row[name][key]
        for name in ("dice", "dice_all", "hd95")
        for key in ("mean", "ci_low", "ci_high")
    }
    return {**{key: row[key] for key in ("first", "second", "region", "n")}, **figures, "icc": row["icc"]}
