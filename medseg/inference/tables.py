"""Where results go: names of masks, columns of `report.csv` and `lesions.csv`, and when the tables are written."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medseg.bundle import Bundle
from medseg.inference.cases import Case
from medseg.inference.messages import Row
from medseg.reading import Unit
from medseg.report.measurements import organ_of, without_lesions, write_csv

logger = logging.getLogger(__name__)

LESION_COLUMNS = {
    "mm": (
        *("case_id", "lesion", "volume_ml", "longest_in_plane_diameter_mm", "longest_3d_diameter_mm"),
        *("mean_hu", "mean_probability", "location", "x_mm", "y_mm", "z_mm"),
    ),
    "px": ("case_id", "lesion", "area_px", "longest_diameter_px", "x_px", "y_px"),
}
MASK_ENDING = {"mm": "_seg.nii.gz", "px": "_seg.png"}
SHORTEST_S = 5.0  # between two writings of the tables while cases are being done
COST_SHARE = 0.05  # of the time may go into tables, however many rows they have


def mask_path(out: Path, case: Case, bundle: Bundle) -> Path:
    """Where the mask of a case belongs."""
    return out / f"{case.case_id}{MASK_ENDING[bundle.unit]}"


def report_columns(
    regions: Mapping[str, Sequence[int]], unit: Unit = "mm", *, lesion_region: str | None = None
) -> list[str]:
    """Columns of `report.csv`, in order; regions in mL, of 2D images in pixels.

    Args:
        regions: of the model.
        unit: "px" for a model of 2D images.
        lesion_region: region of the lesions; the organ around them is told without them too.
    """
    size = "ml" if unit == "mm" else "px"
    organ = organ_of(regions, lesion_region) if unit == "mm" else None
    return [
        *("case_id", "status", "message", "warnings"),
        *(f"{region}_{size}" for region in regions),
        *([f"{without_lesions(organ, lesion_region)}_ml"] if organ and lesion_region else []),
        *("lesion_count", f"longest_diameter_{unit}", "notes"),
        *("seconds", "peak_memory_mb", "model", "precision", "device"),
    ]


class Tables:
    """`report.csv` and `lesions.csv` of OUT, written whole at most every few seconds.

    Args:
        out: the folder.
        bundle: the model, for the columns.
        cases: whose further columns the report carries.
    """

    def __init__(self, out: Path, bundle: Bundle, cases: Iterable[Case] = ()) -> None:
        self.out, self.bundle = out, bundle
        own = report_columns(bundle.regions, bundle.unit, lesion_region=bundle.lesion_region)
        further = {column: None for case in cases for column in case.extra if column not in own}
        self.columns = [*own, *further]
        self._next = 0.0

    def write_now_and_then(self, rows: Iterable[Row], lesions: Iterable[Row]) -> None:
        """Write if the last time was long enough ago; a file that cannot be written now is written the next time."""
        started = time.monotonic()
        if started < self._next:
            return
        try:
            self.write(rows, lesions)
        except OSError as error:  # a spreadsheet holds the file on Windows
            logger.warning("report.csv cannot be written now (%s); close it", type(error).__name__)
        ended = time.monotonic()
        self._next = ended + max(SHORTEST_S, (ended - started) / COST_SHARE)

    def write(self, rows: Iterable[Row], lesions: Iterable[Row]) -> None:
        """Write both tables; `lesions.csv` only for a model that seeks lesions.

        Raises:
            OSError: if one cannot be written.
        """
        known = [{column: row[column] for column in self.columns if column in row} for row in rows]
        write_csv(self.out / "report.csv", known, self.columns)
        if self.bundle.lesion_region:
            write_csv(self.out / "lesions.csv", list(lesions), LESION_COLUMNS[self.bundle.unit])
