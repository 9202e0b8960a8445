"""Which cases lie in what `medseg predict` is given: a folder, a file, a zip or an edited `cases.csv`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medseg.data import find_scans
from medseg.reading import ScanSource, Unit

SCHEMES = ("default", "original", "pseudonym")


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


def cases_in(
    scans: Path,
    *,
    channels: Sequence[str],
    unit: Unit = "mm",
    ids: str = "default",
    key: bytes | None = None,
    all_series: bool = False,
) -> list[Case]:
    """The cases of SCANS, in the order of their ids; no voxel is read.

    Args:
        scans: folder, scan file, zip of DICOM files, or a `cases.csv` of `medseg inspect`.
        channels: the model's.
        unit: "px" looks for 2D images, "mm" for scans.
        ids: "default" (files by name, DICOM series by pseudonym), "original" or "pseudonym".
        key: secret of the pseudonyms, as `medseg.inference.identity.open_key` gives.
        all_series: take every DICOM series that can be segmented, not one a study.

    Raises:
        DataError: if there is no case.
    """
    samples = find_scans(scans, channels=channels, images=unit == "px")
    found = []
    for sample in samples:
        paths = [sample["image"]] if isinstance(sample["image"], str) else sample["image"]
        found.append(Case(sample["case_id"], tuple(ScanSource(Path(path)) for path in paths)))
    return found
