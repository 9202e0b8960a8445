"""Which mask belongs to which reference: by case id, never by the order of files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import DataError
from medseg.inference.out_files import FOLDER, MASK_ENDINGS
from medseg.reading import IMAGE_SUFFIXES, SUFFIXES, scan_stem

ENDINGS = ("_seg", "_segmentation", "_mask", "_label", "_pred")  # of all masks of a folder; the first is medseg's
RUN_FILE = "run.json"  # of medseg predict; what is passed on has it, and no FOLDER
LITS = ("segmentation-", "volume-")  # its references and its scans


@dataclass(frozen=True)
class Paired:
    """What was found in both folders.

    Attributes:
        both: ids of cases with a mask and a reference, sorted.
        without_reference: ids of masks that nothing is known of.
        without_mask: ids of references that have no mask.
    """

    both: tuple[str, ...]
    without_reference: tuple[str, ...]
    without_mask: tuple[str, ...]


def masks_in(folder: Path) -> dict[str, Path]:
    """Mask files below a folder by case id.

    A case id is the path from the folder without suffix, and without an ending such as `_seg` that every mask has.
    `segmentation-3` (LiTS) is the reference of `volume-3`. Of a folder that `medseg predict` has written only its masks
    are taken, not its other files of them.

    Raises:
        DataError: if there is no such folder, no mask in it, or two masks of a case.
    """
    if not folder.is_dir():
        raise DataError(f"{folder.name}: no such folder of masks; check the path")
    files = [path for path in sorted(folder.rglob("*")) if _is_mask(path.relative_to(folder)) and path.is_file()]
    own = [path for path in files if path.name.endswith(MASK_ENDINGS)]
    if (folder / FOLDER).is_dir() or (own and (folder / RUN_FILE).is_file()):
        files = own  # instances and .seg.nrrd files show the same masks again
    if not files and not (folder / "report.csv").is_file():  # of medseg predict, where every case failed
        raise DataError(f"{folder.name}: no masks in it ({', '.join(SUFFIXES + IMAGE_SUFFIXES)}); check the path")
    ending = _common_ending([scan_stem(path) for path in files])
    found: dict[str, Path] = {}
    for path in files:
        stem = scan_stem(path).removesuffix(ending)
        if stem.startswith(LITS[0]):
            stem = LITS[1] + stem.removeprefix(LITS[0])
        case_id = path.relative_to(folder).with_name(stem).as_posix()
        if case_id in found:
            raise DataError(
                f"case {case_id!r}: two masks, {found[case_id].name} and {path.name}; move one out of {folder.name}"
            )
        found[case_id] = path
    return found


def pair(masks: Iterable[str], references: Iterable[str]) -> Paired:
    """Sort case ids into those of both and those of one alone.

    Raises:
        DataError: if no id is in both.
    """
    of_masks, of_references = set(masks), set(references)
    both = of_masks & of_references
    if of_masks and not both:
        raise DataError(
            f"no case id is in both: masks are {_some(of_masks)}, references {_some(of_references)}; rename them alike"
        )
    return Paired(tuple(sorted(both)), tuple(sorted(of_masks - of_references)), tuple(sorted(of_references - of_masks)))


def _is_mask(relative: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)  # half-written files, and medseg's own
    return not hidden and relative.name.lower().endswith(SUFFIXES + IMAGE_SUFFIXES)


def _common_ending(stems: Sequence[str]) -> str:
    return next((ending for ending in ENDINGS if all(stem.endswith(ending) for stem in stems)), "")


def _some(ids: Iterable[str]) -> str:
    listed = sorted(ids)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
