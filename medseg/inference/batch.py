"""A folder of scans: one row of the report for each case, whatever happens to it."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medseg.bundle import Bundle
from medseg.data import Sample
from medseg.errors import DataError
from medseg.inference.predictor import Predictor
from medseg.memory import peak_memory_mb
from medseg.notices import SYNTHETIC
from medseg.reading import Unit, read_channels
from medseg.report.measurements import measure, measure_image, write_csv
from medseg.writing import write_mask_png, write_nifti

logger = logging.getLogger(__name__)

Row = dict[str, Any]
LESION_COLUMNS = {
    "mm": ("case_id", "lesion", "volume_ml", "longest_in_plane_diameter_mm", "x_mm", "y_mm", "z_mm"),
    "px": ("case_id", "lesion", "area_px", "longest_diameter_px", "x_px", "y_px"),
}
MASK_ENDING = {"mm": "_seg.nii.gz", "px": "_seg.png"}


def report_columns(regions: Mapping[str, Sequence[int]], unit: Unit = "mm") -> list[str]:
    """Columns of `report.csv`, in order; regions in mL, of 2D images in pixels."""
    size = "ml" if unit == "mm" else "px"
    return [
        *("case_id", "status", "message", "warnings"),
        *(f"{region}_{size}" for region in regions),
        *("lesion_count", f"longest_diameter_{unit}", "seconds", "peak_memory_mb", "model", "precision", "device"),
    ]


def predict_folder(
    samples: Sequence[Sample],
    out: Path,
    bundle: Bundle,
    *,
    device: str = "cpu",
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Segment cases one after the other.

    Writes `OUT/<case_id>_seg.nii.gz` on each scan's own grid (of a 2D image `_seg.png`, its values the labels), and
    `report.csv` and `lesions.csv` anew after every case.
    A case that fails becomes a row with its message; the others go on.

    Args:
        samples: what to segment, `{"image": path or one path a channel, "case_id": ...}`.
        out: folder for masks and report; made if absent.
        bundle: the model.
        device: `"cpu"`, `"cuda"` or `"cuda:N"`.
        on_row: called with each finished row.

    Returns:
        One row a case, with the columns of `report_columns`.
    """
    predictor = Predictor.from_bundle(bundle, device=device)
    model = f"{bundle.name} {bundle.version}" + (f" ({SYNTHETIC})" if bundle.synthetic else "")
    settings = {"model": model, "precision": bundle.precision, "device": device}
    rows: list[Row] = []
    lesions: list[Row] = []
    for sample in samples:
        started = time.monotonic()
        row: Row = {"case_id": sample["case_id"], **settings}
        try:
            measured, found, warnings = _segment(sample, out, bundle, predictor)
        except Exception as error:  # one bad case must not end the run: it becomes a row
            row |= {"status": "failed", "message": _one_line(error)}
            logger.debug("case %s failed", sample["case_id"], exc_info=True)
        else:
            row |= {"status": "done", "message": "", "warnings": "; ".join(warnings), **measured}
            lesions += [{"case_id": sample["case_id"], **lesion} for lesion in found]
        row |= {"seconds": round(time.monotonic() - started, 2), "peak_memory_mb": _peak_memory_mb(device)}
        rows.append(row)
        try:
            _write_tables(out, rows, lesions, bundle)
        except OSError as error:  # a spreadsheet holds the file on Windows: the next case tries again
            logger.warning("report.csv cannot be written now (%s); close it", type(error).__name__)
        if on_row:
            on_row(row)
    _write_tables(out, rows, lesions, bundle)
    return rows


def _write_tables(out: Path, rows: Sequence[Row], lesions: Sequence[Row], bundle: Bundle) -> None:
    write_csv(out / "report.csv", rows, report_columns(bundle.regions, bundle.unit))
    if bundle.lesion_region:
        write_csv(out / "lesions.csv", lesions, LESION_COLUMNS[bundle.unit])


def _segment(sample: Sample, out: Path, bundle: Bundle, predictor: Predictor) -> tuple[Row, list[Row], tuple[str, ...]]:
    target = out / f"{sample['case_id']}{MASK_ENDING[bundle.unit]}"
    target.unlink(missing_ok=True)  # an earlier run's mask must not stand beside a failed row
    scans = read_channels(sample["image"], bundle.channels)
    label = predictor(scans)
    target.parent.mkdir(parents=True, exist_ok=True)
    if bundle.unit == "px":
        write_mask_png(label, target)
        measured, lesions = measure_image(label, regions=bundle.regions, lesion_region=bundle.lesion_region)
    else:
        write_nifti(label, scans[0].affine, target)
        measured, lesions = measure(label, scans[0].affine, regions=bundle.regions, lesion_region=bundle.lesion_region)
    return measured, lesions, tuple(warning for scan in scans for warning in scan.warnings)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, DataError) else f"{type(error).__name__}: {text}"


def _peak_memory_mb(device: str) -> int:
    """Largest memory held so far in this run, in MB: the GPU's where one is used, else the process's."""
    return round(torch.cuda.max_memory_allocated(device) / 2**20) if device.startswith("cuda") else peak_memory_mb()
