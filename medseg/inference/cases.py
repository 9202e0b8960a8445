"""Which cases lie in what `medseg predict` is given: a folder, a file, a zip or an edited `cases.csv`."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from medseg.errors import ConfigError, DataError
from medseg.inference.found import Found, by_channel, files_in, series_in
from medseg.inference.identity import keyed_digits, pseudonym
from medseg.inference.names import digest, distinct, file_id, safe_name
from medseg.inspecting import read_table
from medseg.reading import IMAGE_SUFFIXES, SUFFIXES, ScanSource, Unit, scan_stem

Ids = Literal["default", "original", "pseudonym"]
TABLE = ".csv"


@dataclass(frozen=True)
class Case:
    """One thing to segment.

    Attributes:
        case_id: relative path without suffix and with "/"; unique, also where upper and lower case are one.
        sources: one scan a channel.
        extra: further columns of a `cases.csv`, for the report.
        skipped: why it is not to be segmented; empty if it is.
        problem: what already keeps it from being read; its row is failed with this message. Empty if nothing does.
        keyed: whether the id is a pseudonym, so that names of files and folders must not appear beside it.
    """

    case_id: str
    sources: tuple[ScanSource, ...]
    extra: Mapping[str, str] = field(default_factory=dict)
    skipped: str = ""
    problem: str = ""
    keyed: bool = False


@dataclass(frozen=True)
class CaseList:
    """The cases of SCANS, in the order of their ids, and how many files were passed over as no scans."""

    cases: list[Case]
    passed_over: int = 0


def cases_in(
    scans: Path,
    *,
    channels: Sequence[str],
    unit: Unit = "mm",
    ids: str = "default",
    key: bytes | None = None,
    all_series: bool = False,
    modality: str = "",
) -> list[Case]:
    """The cases of SCANS, in the order of their ids; see `list_cases`."""
    return list_cases(
        scans, channels=channels, unit=unit, ids=ids, key=key, all_series=all_series, modality=modality
    ).cases


def list_cases(
    scans: Path,
    *,
    channels: Sequence[str],
    unit: Unit = "mm",
    ids: str = "default",
    key: bytes | None = None,
    all_series: bool = False,
    modality: str = "",
) -> CaseList:
    """What there is to segment in SCANS; no voxel is read.

    With several channels, `CASE_0000`, `CASE_0001`, ... are one case, and so are rows of a table with the same id. A
    DICOM series that is not chosen is a case that is skipped; one that cannot be read, a file or a folder that cannot
    be opened, is a case that fails. Files of other kinds are counted.

    Args:
        scans: folder, scan file, zip of DICOM files, or a `cases.csv` of `medseg inspect`.
        channels: the model's.
        unit: "px" looks for 2D images, "mm" for scans.
        ids: "default" (a file is called by its relative name, a DICOM series by a pseudonym), "original" (a series by
            its folder and UID) or "pseudonym" (all).
        key: secret of the pseudonyms, as `medseg.inference.identity.open_key` gives; without it they are of one use.
        all_series: take every DICOM series that can be segmented, not one a study.
        modality: take DICOM series of this modality only; empty for any.

    Raises:
        DataError: if there is no case.
        ConfigError: if `ids` is not one of the three, or a table cannot be read.
    """
    if ids not in get_args(Ids):
        raise ConfigError(f"ids: is {ids!r}; give {', '.join(get_args(Ids))}")
    passed_over = 0
    if scans.name.lower().endswith(TABLE) and scans.is_file():
        found = _table(scans)
    else:
        suffixes = IMAGE_SUFFIXES if unit == "px" else SUFFIXES
        found, maybe_series, passed_over = files_in(scans, suffixes=suffixes, series=unit == "mm")
        series = series_in(scans, maybe_series, all_series=all_series, modality=modality)
        found += series
        passed_over -= sum(len(one.sources[0].files) for one in series)
        if not found:
            kinds = ", ".join(suffixes) + (" or DICOM" if unit == "mm" else "")
            raise DataError(f"scans {scans.name!r}: no file to segment in it ({kinds}); check the path")
    grouped = by_channel(found, channels)
    cases = _named(grouped, ids, key or secrets.token_bytes(32))
    return CaseList(sorted(cases, key=_case_id), max(passed_over, 0))


def check_out(scans: Path, out: Path) -> None:
    """Refuse an OUT that does not do for SCANS.

    Raises:
        ConfigError: if OUT is a file, or one lies in the other: masks would be taken for scans.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; OUT must be a folder")
    if not scans.is_dir():
        return
    inner, outer = out.resolve(), scans.resolve()
    if inner.is_relative_to(outer):
        raise ConfigError(f"{out} lies inside {scans}: masks would be taken for scans; choose another OUT")
    if outer.is_relative_to(inner):
        raise ConfigError(f"{scans} lies inside {out}: masks might be taken for scans; choose another OUT")


def _table(path: Path) -> list[Found]:
    """The rows of an edited table; what a person wrote as case id is kept, its other columns stay in it."""
    found = []
    for row in read_table(path):
        parts = [part for part in row.case_id.replace("\\", "/").split("/") if part]
        place = row.source.path
        lies_at = place.relative_to(path.parent) if place.is_relative_to(path.parent) else place
        found.append(
            Found(
                (row.source,),
                Path(*parts) if parts else Path(place.name),
                identity=row.source.series_uid or lies_at.as_posix(),
                is_series=bool(row.source.series_uid) and not parts,
                is_stem=bool(parts),
                extra=row.extra,
                skipped="" if row.chosen else "not chosen in the table",
            )
        )
    if all(one.skipped for one in found):
        raise DataError(f"{path.name}: no row is chosen; write yes in the column chosen")
    return found


def _named(found: Sequence[Found], ids: str, key: bytes) -> list[Case]:
    """Cases with ids of their own."""
    keyed = [ids == "pseudonym" or (one.is_series and ids == "default") for one in found]
    keys = [key if is_keyed else None for is_keyed in keyed]
    plain = [pseudonym(own, one.identity) if own else _own_id(one) for one, own in zip(found, keys, strict=True)]
    made = distinct(plain, [_endings(one, own) for one, own in zip(found, keys, strict=True)])
    return [
        Case(case_id, one.sources, one.extra, one.skipped, one.problem, is_keyed)
        for case_id, one, is_keyed in zip(made, found, keyed, strict=True)
    ]


def _own_id(found: Found) -> str:
    if found.is_stem:
        *folders, name = found.relative.parts
        return "/".join([*(safe_name(part, folder=True) for part in folders), safe_name(name)])
    if not found.is_series:
        return file_id(found.relative)
    folders = [safe_name(part, folder=True) for part in found.relative.parts]
    return "/".join([*folders, safe_name(found.identity.partition("\n")[0])])


def _endings(found: Found, key: bytes | None) -> list[str]:
    """What tells a case from others of its id: for a file its suffix, then digits of what it is."""
    first = [path.name for path in found.sources[0].files[:1]]
    whole = "\n".join([found.identity, found.relative.as_posix(), *first])
    if key:
        return [f"-{keyed_digits(key, whole, digits)}" for digits in (6, 64)]
    suffix = found.relative.name[len(scan_stem(found.relative.name)) :]
    return [suffix or f"~{digest(whole, 8)}", f"~{digest(whole, 8)}", f"~{digest(whole, 64)}"]


def _case_id(case: Case) -> str:
    return case.case_id
