"""The card: one offline page of an evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from medseg.evaluation import charts
from medseg.evaluation.findings import TITLES
from medseg.evaluation.judging import Record
from medseg.evaluation.judgment import Judgment
from medseg.evaluation.pictures import Worst, legend, score_of
from medseg.evaluation.summing import volumes
from medseg.metrics.case import lesion_name
from medseg.notices import SYNTHETIC, notice
from medseg.report.pages import page_style, page_template

MOST_ROWS = 1000  # of the table of all cases; cases.csv has all
MOST_NAMED = 60  # cases of a finding
OPTIONAL = (
    "checked",
    "git_commit",
    "recipe_sha256",
    "data_sha256",
    "without_reference",
    "medseg",
)
UNITS = {"ml": "mL", "mm2": "mm²", "px": "px"}
REGION_ROWS = (
    ("dice", "Dice", 3),
    ("iou", "IoU", 3),
    ("precision", "Precision", 3),
    ("recall", "Recall", 3),
    ("hd95_{unit}", "HD95, {unit}", 1),
    ("hd95_subvoxel_{unit}", "HD95 on sub-voxel surfaces, {unit}", 1),
    ("assd_{unit}", "Average surface distance, {unit}", 2),
    ("nsd_{tolerance}{unit}", "Surface Dice at {tolerance} {unit}", 3),
)
LESION_ROWS = (
    ("lesion_recall", "Lesion recall", 3),
    ("lesion_precision", "Lesion precision", 3),
    ("lesion_f1", "Lesion F1", 3),
    ("lesion_dice", "Lesion-wise Dice", 3),
    ("panoptic_quality", "Panoptic quality", 3),
)


def card(content: Mapping[str, Any], records: Sequence[Record], judgment: Judgment, worst: Sequence[Worst]) -> str:
    """The page.

    Args:
        content: of `summary.json`.
        records: of all cases.
        judgment: what they were judged by.
        worst: the worst cases with their pictures.
    """
    about = {**dict.fromkeys(OPTIONAL), **content["about"]}
    synthetic = bool(about.get("synthetic"))
    return page_template("card.html.j2").render(
        style=Markup(page_style()),
        title=f"Evaluation of {about.get('model') or 'masks'}",
        notice=notice(synthetic=synthetic),
        synthetic=synthetic,
        synthetic_notice=SYNTHETIC,
        about=about,
        facts=facts(about),
        warnings=about.get("warnings", []),
        findings=list(_findings(records)),
        regions=list(_metric_tables(content, judgment)),
        lesions=_lesion_table(content, judgment) if judgment.lesion_region else [],
        lesion_region=judgment.lesion_region,
        lesion_counts=_lesion_counts(records),
        by_size=list(_by_size(content["by_size"])),
        size_chart=_size_chart(content["by_size"]),
        froc=content["froc"],
        froc_chart=_froc_chart(content["froc"]),
        agreement=list(_agreement(content, records)),
        calibration=list(_calibration(content["calibration"])),
        subgroups=list(_subgroups(content["subgroups"], judgment)),
        readers=list(_readers(content["readers"])),
        has_readers=bool(content["readers"]),
        worst=[_worst(one, judgment) for one in worst],
        legend=legend(),
        cases=[_case(record, judgment) for record in records[:MOST_ROWS]],
        more_cases=max(0, len(records) - MOST_ROWS),
        region_names=list(judgment.regions),
        settings=content["settings"],
    )


def facts(about: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The first box: name, value and whether it is a warning."""
    checked = (
        "by the split of the model's run" if about["checked"] else "as the user says; no run confirms it for all cases"
    )
    held = {True: f"yes, {checked}", False: "NO: read the warnings below"}
    patients = (
        f"{about['patients']}"
        if about["patients_known"]
        else f"{about['patients']} (a case without a name for its patient taken for one)"
    )
    seconds = about["seconds_per_case"]
    failed, missing, extra = about["failed"], about["missing"], len(about.get("without_reference") or [])
    shown = [
        ("Cases (n)", str(about["n"]), ""),
        ("Patients", patients, ""),
        ("Source", str(about.get("source") or "not said (--source)"), ""),
        ("Split", str(about.get("split") or "not said (--split)"), ""),
        ("Held out", held.get(about["held_out"], "unknown"), "" if about.get("held_out") is True else "flag"),
        (f"Empty cases (no {about['empty_region']})", str(about["empty_cases"]), ""),
        ("Failed cases", f"{failed}, counted as failures, named below" if failed else "0", "fail" if failed else ""),
        ("Precision", str(about.get("precision") or "unknown"), ""),
        ("Model", " ".join(filter(None, (about.get("model") or "unknown", about.get("version")))), ""),
        ("Reference", str(about.get("reference") or "one reader"), ""),
        ("Seconds per case", "unknown" if seconds is None else f"{seconds:.1f}", ""),
    ]
    if missing:
        shown.append(("References not judged", f"{missing}, named below, not counted", "flag"))
    if extra:
        shown.append(("Masks without reference", f"{extra}, named below, not counted", "flag"))
    return shown


def interval(figures: Mapping[str, Any] | None, decimals: int) -> str:
    """A mean with its 95 % interval.

    >>> interval({"mean": 0.5, "ci_low": 0.25, "ci_high": 0.75}, 2)
    '0.50 (0.25-0.75)'
    """
    if not figures or figures.get("mean") is None:
        return "-"
    mean = f"{figures['mean']:.{decimals}f}"
    if figures.get("ci_low") is None:
        return mean
    low, high = f"{figures['ci_low']:.{decimals}f}", f"{figures['ci_high']:.{decimals}f}"
    return f"{mean} ({low} to {high})" if low.startswith("-") else f"{mean} ({low}-{high})"


def _findings(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Each kind of error with the cases that have it and the words for each."""
    for kind, title in TITLES.items():
        told = [
            (record.case_id, finding["text"])
            for record in records
            for finding in record.findings
            if finding["kind"] == kind
        ]
        if told:
            n_cases = len({case_id for case_id, _ in told})
            more = max(0, len(told) - MOST_NAMED)
            yield {"kind": kind, "title": title, "n": n_cases, "cases": told[:MOST_NAMED], "more": more}
    missing = [(record.case_id, record.message) for record in records if record.status == "missing"]
    if missing:
        more = max(0, len(missing) - MOST_NAMED)
        title = "References not judged"
        yield {"kind": "missing", "title": title, "n": len(missing), "cases": missing[:MOST_NAMED], "more": more}


def _metric_tables(content: Mapping[str, Any], judgment: Judgment) -> Iterator[dict[str, Any]]:
    summary, pooled = content["summary"], content["pooled"]
    tolerances = content["settings"].get("tolerances_mm", [])
    for region in judgment.regions:
        rows = []
        for pattern, title, decimals in REGION_ROWS:
            for tolerance in tolerances if "{tolerance}" in pattern else [0]:
                words = {"unit": judgment.unit, "tolerance": f"{tolerance:g}"}
                name = f"{region}_{pattern.format(**words)}"
                if name in summary or f"{name}_all" in summary:
                    rows.append(_row(title.format(**words), summary, pooled, name, decimals))
        yield {"region": region, "rows": rows}


def _row(title: str, summary: Mapping[str, Any], pooled: Mapping[str, Any], name: str, decimals: int) -> dict[str, Any]:
    first, every = summary.get(name, {}), summary.get(f"{name}_all")
    whole = pooled.get(f"{name}_global")
    return {
        "title": title,
        "mean": interval(first, decimals),
        "median": "-" if first.get("median") is None else f"{first['median']:.{decimals}f}",
        "n": first.get("n", 0),
        "left_out": first.get("left_out", 0),
        "every": interval(every, decimals),
        "pooled": "" if whole is None else f"{whole:.{decimals}f}",
    }


def _lesion_table(content: Mapping[str, Any], judgment: Judgment) -> list[dict[str, Any]]:
    summary, pooled = content["summary"], content["pooled"]
    return [
        _row(title, summary, pooled, lesion_name(name, judgment.regions), decimals)
        for name, title, decimals in LESION_ROWS
    ]


def _lesion_counts(records: Sequence[Record]) -> dict[str, int]:
    rows = [record.metrics.lesions for record in records if record.metrics is not None and record.metrics.lesions]
    names = ("count_reference", "matched", "missed", "false_alarms", "merged", "split")
    return {name: sum(int(row[f"lesion_{name}"] or 0) for row in rows) for name in names}


def _by_size(bins: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    for name, figures in bins.items():
        bias = next((key for key in figures if "_bias_" in key), "")
        unit = UNITS.get(bias.rpartition("_")[2], "")
        yield {
            "name": name,
            "n": str(figures["n"]),
            "detected": str(figures["detected"]),
            "recall": _share(figures["recall"]),
            "dice": _number(figures["mean_dice"], 2),
            "false_alarms": str(figures["false_alarms"]),
            "bias": f"{_number(figures.get(bias), 2)} {unit}" if figures.get(bias) is not None else "-",
        }


def _size_chart(bins: Mapping[str, Mapping[str, Any]]) -> charts.Chart | None:
    if not any(figures["n"] for figures in bins.values()):
        return None
    heights = [(name, one["recall"], f"{one['detected']} of {one['n']}") for name, one in bins.items() if one["n"]]
    return charts.bars("Share of lesions found, by size", "recall", heights)


def _froc_chart(froc: Mapping[str, Any] | None) -> charts.Chart | None:
    if not froc or not froc["thresholds"] or froc["recall"][-1] is None:
        return None
    line = [(0.0, 0.0), *zip(froc["false_alarms_per_case"], froc["recall"], strict=True)]
    right = max(1.0, line[-1][0])
    return charts.chart(
        "FROC: lesions found over false alarms per case",
        "false alarms per case",
        "recall",
        x_range=(0, right),
        y_range=(0, 1),
        line=line,
    )


def _agreement(content: Mapping[str, Any], records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    for region, figures in content["agreement"].items():
        unit = UNITS[figures["unit"]]
        pairs = volumes(records, region)
        yield {
            "region": region,
            "unit": unit,
            "n": figures["n"],
            "bias": _number(figures["bias"], 2),
            "limits": f"{_number(figures['limit_low'], 1)} to {_number(figures['limit_high'], 1)}",
            "error": _number(figures["mean_absolute_error"], 2),
            "relative": _share(figures["mean_relative_error"]),
            "icc": _number(figures["icc"], 3),
            "chart": charts.bland_altman(region, unit, pairs, figures) if len(pairs) > 1 else None,
        }


def _calibration(regions: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for region, figures in regions.items():
        points = [(one["probability"], one["frequency"], f"{one['count']} voxels") for one in figures["curve"]]
        yield {
            "region": region,
            "ece": _number(figures["ece"], 3),
            "brier": _number(figures["brier"], 3),
            "chart": charts.chart(
                f"{region}: how often it is there, over the probability given",
                "probability",
                "frequency",
                x_range=(0, 1),
                y_range=(0, 1),
                points=points,
                line=[(x, y) for x, y, _ in points],
                diagonal=True,
            ),
        }


def _subgroups(tables: Mapping[str, Any], judgment: Judgment) -> Iterator[dict[str, Any]]:
    names = [(f"{region}_dice", f"{region} Dice") for region in judgment.regions]
    names += [(f"{region}_dice_all", f"{region} Dice, every case") for region in judgment.regions]
    if judgment.lesion_region:
        names.append((lesion_name("lesion_recall", judgment.regions), "lesion recall"))
    for grouping, groups in tables.items():
        rows = [
            {"group": group, "n": one["n"], "cells": [interval(one.get(name), 2) for name, _ in names]}
            for group, one in groups.items()
        ]
        yield {"grouping": grouping, "titles": [title for _, title in names], "rows": rows}


def _readers(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in sorted(rows, key=_region):  # the model beside the readers
        yield {
            **{key: row[key] for key in ("first", "second", "region", "n")},
            "dice": interval(row["dice"], 3),
            "every": interval(row["dice_all"], 3),
            "hd95": interval(row["hd95"], 1),
            "icc": _number(row["icc"], 3),
        }


def _region(row: Mapping[str, Any]) -> str:
    return str(row["region"])


def _worst(one: Worst, judgment: Judgment) -> dict[str, Any]:
    scores = one.record.metrics.regions if one.record.metrics else {}
    return {
        "case_id": one.record.case_id,
        "score": f"{one.score:.2f}",
        "region": one.region,
        "dice": ", ".join(
            f"{name} {float(scores[name]['dice_all'] or 0):.2f}" for name in judgment.regions if name in scores
        ),
        "findings": [finding["text"] for finding in one.record.findings],
        "pictures": one.pictures,
    }


def _case(record: Record, judgment: Judgment) -> dict[str, Any]:
    regions = record.metrics.regions if record.metrics else {}
    dice = [_number(regions.get(name, {}).get("dice"), 2) for name in judgment.regions]
    return {
        "case_id": record.case_id,
        "status": record.status,
        "dice": dice,
        "every": _number(score_of(record) if record.metrics else None, 2),
        "text": record.message or "; ".join(finding["text"] for finding in record.findings),
    }


def _number(value: Any, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _share(value: Any) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
