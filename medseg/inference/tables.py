"""Where results go: names of masks, columns of `report.csv` and `lesions.csv`, and when the tables are written."""

import importlib.util
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.bundle import Bundle
from medseg.errors import ConfigError
from medseg.inference.cases import Case
from medseg.inference.messages import Row
from medseg.reading import Unit
from medseg.report.measurements import organ_of, without_lesions, write_csv
from medseg.writing import aside

if TYPE_CHECKING:
    from medseg.report.pages import About

logger = logging.getLogger(__name__)

LESION_COLUMNS = {
    "mm": (
        *("case_id", "lesion", "volume_ml", "longest_in_plane_diameter_mm", "longest_3d_diameter_mm"),
        *("mean_hu", "mean_probability", "location", "x_mm", "y_mm", "z_mm"),
    ),
    "px": ("case_id", "lesion", "area_px", "longest_diameter_px", "mean_probability", "x_px", "y_px"),
}
MASK_ENDING = {"mm": "_seg.nii.gz", "px": "_seg.png"}
INSTANCES_ENDING = "_instances.nii.gz"
CONFIDENCE_ENDINGS = {"mm": "_confidence.nii.gz", "px": "_confidence.png"}
PROBABILITIES_ENDING = "_probabilities.nii.gz"
CONFIDENCE, AGREEMENT = "_confidence", "_agreement"  # columns of a region: mean probability; Dice between members
HIDDEN_COLUMNS = ("extras",)  # of a row, and in no table
SHORTEST_S = 5.0  # between two writings of the tables while cases are being done
LIST_EVERY_S = 60.0  # the list of cases is read by people
COST_SHARE = 0.05  # of the time may go into tables, however many rows they have


def mask_path(out: Path, case: Case, bundle: Bundle) -> Path:
    """Where the mask of a case belongs."""
    return out / f"{case.case_id}{MASK_ENDING[bundle.unit]}"


def further_paths(out: Path, case: Case, bundle: Bundle) -> list[Path]:
    """Every file beside its mask that a case may have, there or not."""
    from medseg.formats.choice import format_paths
    from medseg.report.pages import page_path

    endings = (INSTANCES_ENDING, CONFIDENCE_ENDINGS[bundle.unit], PROBABILITIES_ENDING)
    maps = [out / f"{case.case_id}{ending}" for ending in endings]
    return [*maps, *format_paths(out / case.case_id, bundle.regions), page_path(out, case.case_id)]


def report_columns(
    regions: Mapping[str, Sequence[int]], unit: Unit = "mm", *, lesion_region: str | None = None
) -> list[str]:
    """Columns of `report.csv`, in order; regions in mL, of 2D images in pixels.

    Those of agreement are left out of a report whose cases had nothing to compare: one network, no mirroring.

    Args:
        regions: of the model.
        unit: "px" for a model of 2D images.
        lesion_region: region of the lesions; the organ around them is told without them too.
    """
    size = "ml" if unit == "mm" else "px"
    organ = organ_of(regions, lesion_region) if unit == "mm" else None
    return [
        *("case_id", "status", "message", "flags", "warnings"),
        *(f"{region}_{size}" for region in regions),
        *([f"{without_lesions(organ, lesion_region)}_ml"] if organ and lesion_region else []),
        *("lesion_count", f"longest_diameter_{unit}"),
        *(f"{region}{CONFIDENCE}" for region in regions),
        *(f"{region}{AGREEMENT}" for region in regions),
        "notes",
        *("seconds", "peak_memory_mb", "model", "precision", "device"),
    ]


def with_own_columns(case: Case, columns: Iterable[str]) -> Case:
    """A case whose further columns never stand for those of the report: `status` becomes `status (given)`.

    Args:
        case: perhaps of a table to which a person, or a merge with an earlier report, has added columns.
        columns: of the report.
    """
    taken = {*columns, *HIDDEN_COLUMNS}
    extra = {f"{name} (given)" if name in taken else name: cell for name, cell in case.extra.items()}
    return case if extra == case.extra else replace(case, extra=extra)


def about_pages(bundle: Bundle, *, model: str, precision: str, window: tuple[float, float] | None = None) -> "About":
    """What all pages of a folder share; see `medseg.report.pages`."""
    from medseg.report.pages import About  # Pillow and jinja2, for those who have pages

    return About(model, precision, bundle.synthetic, bundle.regions, bundle.lesion_region, bundle.unit, window)


def check_parquet() -> None:
    """Refuse Parquet files where what writes them is not installed.

    Raises:
        ConfigError: says what to install.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError("--parquet needs pyarrow: pip install 'medseg[parquet]'")


class Tables:
    """`report.csv`, `report.json`, `lesions.csv` and `index.html` of OUT, written whole at most every few seconds.

    Args:
        out: the folder.
        bundle: the model, for the columns.
        cases: whose further columns the report carries.
        told: model and precision, as each row tells them; with them the list of cases is written, at most once a
            minute.
        parquet: write `report.parquet` and `lesions.parquet` too, at the end.
    """

    def __init__(
        self,
        out: Path,
        bundle: Bundle,
        cases: Iterable[Case] = (),
        *,
        told: Mapping[str, str] | None = None,
        parquet: bool = False,
    ) -> None:
        self.out, self.bundle = out, bundle
        own = report_columns(bundle.regions, bundle.unit, lesion_region=bundle.lesion_region)
        further = {column: None for case in cases for column in case.extra if column not in own}
        self.columns = [*own, *further]
        self.told, self.parquet = told, parquet
        self._next = self._next_list = 0.0

    def write_now_and_then(self, rows: Iterable[Row], lesions: Iterable[Row]) -> None:
        """Write if the last time was long enough ago; a file that cannot be written now is written the next time."""
        started = time.monotonic()
        if started < self._next:
            return
        try:
            self.write(rows, lesions, running=True)
        except OSError as error:  # a spreadsheet holds the file on Windows
            logger.warning("report.csv cannot be written now (%s); close it", type(error).__name__)
        ended = time.monotonic()
        self._next = ended + max(SHORTEST_S, (ended - started) / COST_SHARE)

    def write(self, rows: Iterable[Row], lesions: Iterable[Row], *, running: bool = False) -> None:
        """Write the tables; `lesions.csv` only for a model that seeks lesions.

        Args:
            rows: of all cases.
            lesions: of all cases.
            running: whether more is to come; the list of cases is then written at most once a minute.

        Raises:
            OSError: if one cannot be written.
        """
        known = [{column: row[column] for column in self.columns if column in row} for row in rows]
        found = list(lesions)
        write_csv(self.out / "report.csv", known, self._told_columns(known))
        if self.bundle.lesion_region:
            write_csv(self.out / "lesions.csv", found, LESION_COLUMNS[self.bundle.unit])
        self._write_json(known, found)
        if self.told is not None and not (running and time.monotonic() < self._next_list):
            self._write_list(known, running=running)
            self._next_list = time.monotonic() + LIST_EVERY_S
        if self.parquet and not running:
            self._write_parquet(known, found)

    def _told_columns(self, rows: Sequence[Row]) -> list[str]:
        """Columns, those of agreement only where several predictions were compared."""
        unused = {f"{region}{AGREEMENT}" for region in self.bundle.regions}
        unused = {column for column in unused if not any(row.get(column) not in (None, "") for row in rows)}
        return [column for column in self.columns if column not in unused]

    def _write_json(self, rows: Iterable[Row], lesions: Iterable[Row]) -> None:
        """`report.json`: each row of the report with its lesions."""
        of_case: dict[str, list[Row]] = {}
        for lesion in lesions:
            rest = {key: value for key, value in lesion.items() if key != "case_id"}
            of_case.setdefault(lesion["case_id"], []).append(rest)
        content = {
            "notice": self.bundle.notice,
            "cases": [{**row, "lesions": of_case.get(row["case_id"], [])} for row in rows],
        }
        with aside(self.out / "report.json") as temporary:
            temporary.write_text(json.dumps(content, default=str) + "\n", encoding="utf-8")

    def _write_list(self, rows: Sequence[Row], *, running: bool) -> None:
        from medseg.report.pages import mark_edited, page_path, write_index

        told = self.told or {}
        for row in rows:
            if row["status"] == "edited":
                mark_edited(page_path(self.out, row["case_id"]))
        about = about_pages(self.bundle, model=told["model"], precision=told["precision"])
        write_index(self.out / "index.html", about, rows, running=running)

    def _write_parquet(self, rows: Sequence[Row], lesions: Sequence[Row]) -> None:
        import pyarrow
        import pyarrow.parquet

        columns = {"report": self._told_columns(rows), "lesions": list(LESION_COLUMNS[self.bundle.unit])}
        for name, table in (("report", rows), ("lesions", lesions)):
            if name == "lesions" and not self.bundle.lesion_region:
                continue
            values = {column: [_known(row.get(column)) for row in table] for column in columns[name]}
            with aside(self.out / f"{name}.parquet") as temporary:
                pyarrow.parquet.write_table(pyarrow.table(values), temporary)


def _known(value: object) -> object:
    """A cell of a Parquet file, where what is not known is null in a column of any type."""
    return None if value == "" else value
