"""A table of the scans and series in a folder, from headers alone: written, edited by a person, and read back.

Series descriptions, contrast agents and paths are as the files have them and may hold a patient's name. They stand in
`cases.csv`, which is the user's own working file, and nowhere else: nothing of these columns goes into logs, messages,
reports or masks.
"""

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.errors import ConfigError, DataError
from medseg.geometry import SUPERIOR, spacing_mm, world_axes
from medseg.reading import SUFFIXES, ScanSource, read_grid, scan_stem

COLUMNS = (
    "case_id", "path", "series", "modality", "slices", "thickness_mm", "kernel", "contrast", "description", "chosen",
    "reason",
)  # fmt: skip
NEEDED = ("path", "chosen")
SEPARATORS = (",", ";", "\t")
YES = frozenset({"yes", "y", "ja", "j", "1", "true", "wahr", "x", "oui", "si", "sí"})
NO = frozenset({"no", "n", "nein", "0", "false", "falsch", "non", "-", ""})
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run such a cell
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Row:
    """One scan file or DICOM series.

    Attributes:
        case_id: of a file its relative stem; of a series empty, until a person writes one or `medseg predict` names it.
        source: where it lies.
        modality: empty for a scan file, whose header has none.
        slices: along the body's axis of a file; planes of a series; 0 if unknown.
        thickness_mm: of a slice; NaN if unknown.
        kernel: of a CT reconstruction.
        contrast: agent.
        description: of the series.
        chosen: whether it is to be segmented.
        reason: why, or why not.
        extra: columns that a person added, by name.
    """

    case_id: str
    source: ScanSource
    modality: str = ""
    slices: int = 0
    thickness_mm: float = math.nan
    kernel: str = ""
    contrast: str = ""
    description: str = ""
    chosen: bool = True
    reason: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)


def table(scans: Path, *, all_series: bool = False, modality: str = "") -> list[Row]:
    """Every scan file and DICOM series below a folder, in a zip, or one file; no voxel is read and no model loaded.

    Args:
        scans: folder, zip of DICOM files, or scan file.
        all_series: choose every DICOM volume that can be read, not one a study.
        modality: choose DICOM series of this modality only; empty for any.

    Raises:
        DataError: if there is nothing of the kind, or the zip cannot be read.
    """
    if not scans.exists():
        raise DataError(f"{scans.name}: no such folder or file; check the path")
    if scans.is_file() and scans.name.lower().endswith(SUFFIXES):
        return [_file_row(scans, scan_stem(scans))]
    rows = [_file_row(path, _relative_stem(path, scans)) for path in _scan_files(scans)]
    rows += _series_rows(scans, all_series=all_series, modality=modality)
    if not rows:
        raise DataError(f"{scans.name}: no scan file ({', '.join(SUFFIXES)}) and no DICOM series in it; check the path")
    return sorted(rows, key=_by_path)


def write_table(rows: Iterable[Row], path: Path) -> None:
    """Write `cases.csv`, its paths relative to its folder; it appears whole or not at all.

    Cells that a spreadsheet would run as a formula begin with an apostrophe, which `read_table` takes off again.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_defused(cell) for cell in _cells(row, path.parent)])
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(text.getvalue().encode("utf-8-sig"))  # without the mark Excel takes it for another encoding
    aside.replace(path)


def read_table(path: Path) -> list[Row]:
    """The rows of a `cases.csv`, also as a spreadsheet saved it: with `;` or tabs, in UTF-8, UTF-16 or Windows-1252.

    Needed are the columns `path` (relative to the file's folder) and `chosen` (yes, no, ja, nein, 1, 0, x or nothing);
    `series` names one DICOM series of a folder or zip, `case_id` the case. Of chosen series the files are looked up, so
    that the source is complete; a series that is not found there keeps none, and reading it says why. Columns of other
    names are `extra`; those that `write_table` wrote are not checked.

    Raises:
        ConfigError: if a column is missing or double, a row is of another length, `chosen` is neither yes nor no, no
            path is given, or a file or series is chosen twice; with the line.
    """
    header, lines = _lines(path)
    rows: list[Row] = []
    seen: dict[tuple[Path, str], int] = {}
    for line, cells in lines:
        where = f"{path.name}, line {line}"
        if len(cells) != len(header):
            raise ConfigError(f"{where}: {len(cells)} cells where the first line has {len(header)}; quote commas in it")
        row = _row({name: _restored(cell.strip()) for name, cell in zip(header, cells, strict=True)}, path, where)
        key = (row.source.path, row.source.series_uid)
        if row.chosen and key in seen:
            raise ConfigError(f"{where}: the same file or series as in line {seen[key]}; choose it once")
        if row.chosen:
            seen[key] = line
        rows.append(row)
    return _with_files(rows)


def _scan_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return found


def _relative_stem(path: Path, folder: Path) -> str:
    return (path.relative_to(folder).parent / scan_stem(path)).as_posix()


def _file_row(path: Path, case_id: str) -> Row:
    try:
        shape, affine = read_grid(path)
    except DataError as error:
        return Row(case_id, ScanSource(path), chosen=False, reason=str(error))
    if len(shape) < 3:
        return Row(case_id, ScanSource(path), chosen=False, reason=f"{len(shape)}D, no volume")
    axis = next(axis for axis, (world, _) in enumerate(world_axes(affine)) if world == SUPERIOR)
    volumes = f", {shape[3]} volumes" if len(shape) > 3 else ""
    return Row(
        case_id,
        ScanSource(path),
        slices=shape[axis],
        thickness_mm=spacing_mm(affine)[axis],
        reason=f"a scan file{volumes}; its header tells no modality",
    )


def _series_rows(scans: Path, *, all_series: bool, modality: str) -> list[Row]:
    from medseg.reading.dicom import choose, find_series  # pydicom takes half a second to import

    return [
        Row(
            "",
            choice.series.source,
            choice.series.modality,
            choice.series.slices,
            choice.series.thickness_mm,
            choice.series.kernel,
            choice.series.contrast,
            choice.series.description,
            choice.chosen,
            choice.reason,
        )
        for choice in choose(find_series(scans), all_series=all_series, modality=modality)
    ]


def _by_path(row: Row) -> str:
    return row.source.path.as_posix()


def _cells(row: Row, base: Path) -> tuple[str, ...]:
    thickness = "" if math.isnan(row.thickness_mm) else f"{row.thickness_mm:.3g}"
    return (
        row.case_id,
        _relative(row.source.path, base),
        row.source.series_uid,
        row.modality,
        str(row.slices or ""),
        thickness,
        row.kernel,
        row.contrast,
        row.description,
        "yes" if row.chosen else "no",
        row.reason,
    )


def _relative(path: Path, base: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), base.resolve())).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_posix()


def _defused(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell


def _restored(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA_STARTS) else cell


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names in the first line, and the cells of each line that has any, with its number."""
    text = _text(path)
    first = text.partition("\n")[0]
    separator = max(SEPARATORS, key=first.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        numbered = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ConfigError(f"{path.name}: not a table of cells ({error}); save it as CSV again") from error
    header = [name.strip().lower() for name in numbered[0][1]] if numbered else []
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise ConfigError(
            f"{path.name}: no column {' and '.join(missing)} in its first line; start from `medseg inspect SCANS -o "
            f"{path.name}`"
        )
    double = sorted({name for name in header if name and header.count(name) > 1})
    if double:
        raise ConfigError(f"{path.name}: the column {double[0]!r} is there twice; remove one")
    return header, [(line, cells) for line, cells in numbered[1:] if any(cell.strip() for cell in cells)]


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be read ({error.strerror}); check the path") from error
    try:
        if content.startswith(UTF16):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeError:
        return content.decode("cp1252", "replace")  # what Excel writes in western Europe


def _row(cells: Mapping[str, str], path: Path, where: str) -> Row:
    answer = cells["chosen"].lower()
    if answer not in YES | NO:
        raise ConfigError(f"{where}: chosen is {cells['chosen'][:20]!r}; write yes or no")
    if not cells["path"]:
        raise ConfigError(f"{where}: no path; write one, or remove the line")
    return Row(
        cells.get("case_id", ""),
        ScanSource(path.parent / cells["path"], series_uid=cells.get("series", "")),
        modality=cells.get("modality", ""),
        kernel=cells.get("kernel", ""),
        contrast=cells.get("contrast", ""),
        description=cells.get("description", ""),
        chosen=answer in YES,
        reason=cells.get("reason", ""),
        extra={name: cell for name, cell in cells.items() if name and name not in COLUMNS},
    )


def _with_files(rows: Sequence[Row]) -> list[Row]:
    """Rows whose chosen series have their files; every folder is looked through once."""
    found: dict[Path, dict[str, list[ScanSource]]] = {}
    for path in dict.fromkeys(row.source.path for row in rows if row.chosen and row.source.series_uid):
        found[path] = _sources_by_uid(path)
    complete = []
    for row in rows:
        sources = found.get(row.source.path, {}).get(row.source.series_uid, []) if row.chosen else []
        complete.append(replace(row, source=sources[0]) if len(sources) == 1 else row)
    return complete


def _sources_by_uid(path: Path) -> dict[str, list[ScanSource]]:
    from medseg.reading.dicom import find_series

    by_uid: dict[str, list[ScanSource]] = {}
    try:
        for series in find_series(path):
            if not series.kind and series.source.path.is_dir() == path.is_dir():  # a zip in the folder is its own place
                by_uid.setdefault(series.source.series_uid, []).append(series.source)
    except DataError:  # gone, or no whole zip: reading the case says so
        return {}
    return by_uid
