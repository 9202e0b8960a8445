"""Folders of 2D images and masks, paired by file name."""

from collections.abc import Collection, Mapping
from pathlib import Path

from medseg.errors import DataError
from medseg.reading import IMAGE_SUFFIXES, scan_stem

IMAGE_FOLDER, MASK_FOLDERS = "images", ("masks", "labels")
TEST_FOLDER, TEST_MASK_FOLDERS = "imagesTs", ("masksTs", "labelsTs")
MASK_ENDINGS = ("", "_segmentation", "_mask", "_label", "_seg")  # after the image's name, the same for all masks


def image_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Image files in a folder (none if there is no such folder), in the order of their names."""
    paths = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(
        path
        for path in paths
        if path.name.lower().endswith(IMAGE_SUFFIXES)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def find_mask_folder(root: Path, names: Collection[str] = MASK_FOLDERS) -> Path | None:
    """The one of the folders `names` that `root` has.

    Raises:
        DataError: if it has several.
    """
    found = [root / name for name in names if (root / name).is_dir()]
    if len(found) > 1:
        both = " and ".join(f"{folder.name}/" for folder in found)
        raise DataError(f"data set {root.name!r}: {both} both hold masks; keep one")
    return found[0] if found else None


def by_stem(folder: Path) -> dict[str, Path]:
    """Image files by name without suffix.

    Raises:
        DataError: if two files have the same one.
    """
    files: dict[str, Path] = {}
    for path in image_files(folder):
        if files.setdefault(scan_stem(path), path) != path:
            raise DataError(f"{folder.name}: two files for case {scan_stem(path)!r}; remove {path.name} or the other")
    return files


def masks_of(images: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, Path]:
    """Masks by the name of their image: as they are, or without an ending that all of them have.

    >>> masks_of({"a": Path("a.jpg")}, {"a_segmentation": Path("a_segmentation.png")})["a"].name
    'a_segmentation.png'
    """
    for ending in MASK_ENDINGS:
        if all(stem.endswith(ending) for stem in masks):
            shortened = {stem[: len(stem) - len(ending)]: path for stem, path in masks.items()}
            if set(shortened) == set(images):
                return shortened
    return dict(masks)
