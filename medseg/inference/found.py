"""What could be a case, before it has an id: scan files, DICOM series, and what cannot be opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.data.layouts import CHANNEL_SUFFIX
from medseg.errors import DataError
from medseg.inference.walk import walk
from medseg.reading import ScanSource, is_image, scan_stem

ZIP_SUFFIX = ".zip"
NO_SERIES = (
    ".csv", ".tsv", ".txt", ".md", ".json", ".xml", ".yml", ".yaml", ".html", ".pdf", ".doc", ".docx", ".xls", ".xlsx",
    ".log", ".py", ".sh", ".img", ".img.gz", ".raw", ".zraw", ".raw.gz", ".mat", ".bval", ".bvec", ".gz", ".tar", ".7z",
    ".nii", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".stl", ".npy", ".npz",
)  # fmt: skip
PREAMBLE, MAGIC, FIRST_GROUP = 128, b"DICM", b"\x08\x00"


@dataclass(frozen=True)
class Found:
    """Something to segment.

    Attributes:
        sources: one scan a channel.
        relative: path below SCANS; of a series that of its folder or zip.
        identity: what a pseudonym is made from: a file's relative path, a series' UID.
        is_series: whether it is a DICOM series.
        is_stem: whether `relative` is a case id that a person wrote, without a suffix.
        extra: columns that a person added to a table.
        skipped: why it is not to be segmented.
        problem: why it cannot be read.
    """

    sources: tuple[ScanSource, ...]
    relative: Path
    identity: str
    is_series: bool = False
    is_stem: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)
    skipped: str = ""
    problem: str = ""


def files_in(scans: Path, *, suffixes: Sequence[str], series: bool) -> tuple[list[Found], list[Path], int]:
    """Scan files of a folder, or one file.

    Args:
        scans: folder or file.
        suffixes: of scan files.
        series: also look for what may be DICOM.

    Returns:
        The scan files; folders and files where DICOM series may be; and how many files are no scan files.

    Raises:
        DataError: if there is no such file or folder, or a file is of no kind that is read.
    """
    if not scans.is_dir():
        return _one_file(scans, suffixes=suffixes, series=series)
    tree = walk(scans)
    if scans in tree.refused:
        raise DataError(f"scans {scans.name!r}: {tree.refused[scans]}")
    found, others = [], []
    for path in tree.files:
        if path.name.lower().endswith(tuple(suffixes)):
            found.append(_file(path, path.relative_to(scans)))
        else:
            others.append(path)
    for folder, why in tree.refused.items():
        found.append(replace(_file(folder, folder.relative_to(scans)), problem=why, is_stem=True))
    places: list[Path] = []
    for path in others if series else ():
        if tree.files[path] not in places and _may_be_series(path):
            places.append(tree.files[path])
    return found, places, len(others)


def series_in(scans: Path, places: Sequence[Path], *, all_series: bool, modality: str) -> list[Found]:
    """DICOM series below `places`, each chosen, skipped or refused for a reason without texts of headers."""
    if not places:
        return []
    from medseg.reading.dicom import choose, find_series  # pydicom takes its time to import; most scans are NIfTI

    series = []
    for place in places:
        if place == scans and scans.is_file() and scans.name.lower().endswith(ZIP_SUFFIX):
            try:
                series += find_series(scans)
            except DataError as error:  # the one name that the user has just given
                raise DataError(f"{scans.name}: {error}") from error
        elif place.is_dir() or place.name.lower().endswith(ZIP_SUFFIX):
            series += find_series(place)
        else:
            series += [one for one in find_series(place.parent) if one.source.files == (place,)]
            if not series:
                raise DataError(f"{place.name}: one file of a DICOM series; give the folder that holds all of it")
    found = []
    for choice in choose(series, all_series=all_series, modality=modality):
        source, kind = choice.series.source, choice.series.kind
        relative = source.path.relative_to(scans) if source.path != scans and scans.is_dir() else Path()
        reason = choice.reason.replace(f" {choice.series.kernel}", "") if choice.series.kernel else choice.reason
        refused = not choice.chosen and not kind and bool(choice.series.problems)
        found.append(
            Found(
                (source,),
                relative.with_name(relative.stem) if source.path.is_file() and relative.name else relative,
                identity=f"{source.series_uid or relative.as_posix()}\n{kind}".rstrip("\n"),
                is_series=True,
                skipped="" if choice.chosen or refused else reason,
                problem=choice.series.problems[0] if refused else "",
            )
        )
    return found


def by_channel(found: Sequence[Found], channels: Sequence[str]) -> list[Found]:
    """One entry a case: for a model of several channels `CASE_0000`, `CASE_0001`, ... or table rows of one id are one.

    A channel whose file is missing keeps its place, so that reading it fails by its name.
    """
    if len(channels) == 1:
        return list(found)
    cases: dict[tuple[str, bool], Found] = {}
    for one in found:
        if one.is_series or one.problem or one.skipped or is_image(one.relative):
            cases[f"{one.relative}\n{one.identity}", True] = one
            continue
        stem = one.relative.name if one.is_stem else scan_stem(one.relative.name)
        ending = one.relative.name[len(stem) :]
        match = CHANNEL_SUFFIX.fullmatch(stem)
        name = match[1] if match else stem
        relative = one.relative.with_name(f"{name}{ending}")
        known = cases.get((relative.as_posix(), False))
        if one.is_stem:
            sources = (*known.sources, *one.sources) if known else one.sources
            cases[relative.as_posix(), False] = replace(known or one, sources=sources, relative=relative)
        elif match and known is None:
            paths = [one.sources[0].path.with_name(f"{name}_{index:04d}{ending}") for index in range(len(channels))]
            sources = tuple(ScanSource(path) for path in paths)
            cases[relative.as_posix(), False] = replace(one, sources=sources, relative=relative)
        elif not match:
            cases[relative.as_posix(), True] = one
    return list(cases.values())


def _one_file(path: Path, *, suffixes: Sequence[str], series: bool) -> tuple[list[Found], list[Path], int]:
    if not path.is_file():
        raise DataError(f"scans {path.name!r}: no such file or folder; check the path")
    if path.name.lower().endswith(tuple(suffixes)):
        return [_file(path, Path(path.name))], [], 0
    if series and _may_be_series(path):
        return [], [path], 0
    raise DataError(f"{path.name}: not a file that medseg segments ({', '.join(suffixes)}); convert it first")


def _file(path: Path, relative: Path) -> Found:
    return Found((ScanSource(path),), relative, identity=relative.as_posix())


def _may_be_series(path: Path) -> bool:
    """Whether a file is a zip, or DICOM by its name or first bytes."""
    name = path.name.lower()
    if name.endswith(ZIP_SUFFIX):
        return True
    if name.endswith(NO_SERIES):
        return False
    from medseg.reading.dicom.headers import DICOM_SUFFIXES

    if name.endswith(DICOM_SUFFIXES):
        return True
    try:
        with path.open("rb") as file:
            first = file.read(PREAMBLE + len(MAGIC))
    except OSError:  # reading the folder's series says why; a link that leads nowhere is no file
        return path.exists()
    return first[PREAMBLE:] == MAGIC or first.startswith(FIRST_GROUP)
