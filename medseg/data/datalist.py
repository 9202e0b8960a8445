"""Data sets on disk to lists of cases: found, checked and split, whatever the layout."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.data.folds import Split, chosen_split, deal_folds, read_splits, set_aside
from medseg.data.images import image_files
from medseg.data.labeled import with_labeled_regions
from medseg.data.layouts import CHANNEL_SUFFIX, Sample, case_id_of, read_listing, scan_files
from medseg.errors import ConfigError, DataError
from medseg.geometry import grid_difference
from medseg.reading import IMAGE_SUFFIXES, SUFFIXES, is_image, read_grid, read_label_grid, scan_stem

__all__ = ["Cases", "Sample", "find_cases", "find_scans"]

SPLIT_FILES = ("splits.json", "splits_final.json")


@dataclass(frozen=True)
class Cases:
    """A data set split for one run; every list is in the order of case ids.

    Attributes:
        training: labeled cases to learn from.
        validation: labeled cases to choose the model by.
        test: held-out cases, with a label or without.
        layout: which layout was found, for the log.
        splits: the case ids of every fold, in the form of a `splits.json`.
    """

    training: list[Sample]
    validation: list[Sample]
    test: list[Sample]
    layout: str
    splits: Sequence[Split] = ()


def find_cases(
    dataset_dir: str | Path,
    *,
    channels: Sequence[str],
    labels: Mapping[str, int] | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    fold: int = 0,
    folds: int = 5,
    seed: int = 0,
    held_out_fraction: float = 0.0,
    patient_pattern: str | None = None,
    splits: str | Path | None = None,
) -> Cases:
    """Training, validation and test cases of a data set; headers are checked, voxels are not read.

    A `splits.json` or `splits_final.json` (a list of `{"train": [...], "val": [...]}`) in the folder decides the folds
    and, if each entry also has `"held_out": [...]`, which cases are held out; else patients are shuffled by `seed` and
    dealt into `folds`. The order depends on case ids alone, so the same cases in another layout give the same folds.

    Args:
        dataset_dir: the data set's folder, or its CSV file.
        channels: the recipe's channel names, each of which every case must have.
        labels: the recipe's label values; a name to which the data set gives another value is refused.
        regions: the recipe's, name -> label values; where a data set says which regions of a case were annotated, any
            other name is refused.
        fold: which fold validates.
        folds: how many folds.
        seed: of the shuffle.
        held_out_fraction: share of the patients with labels to set aside as test cases before folds are made.
        patient_pattern: regular expression whose first group in the case id names the patient; without it a CSV's
            column `patient` does, else each case is a patient.
        splits: a split file elsewhere, which then decides, such as that of a cross-validation.

    Raises:
        DataError: if the layout is unknown, a file is missing or unpaired, a channel is missing, a label lies on
            another grid than its image, a label name has another value than the recipe's, or a case or region that
            was annotated is unknown.
        ConfigError: if fold, folds, the fraction or the pattern do not fit the data set.
    """
    root = Path(dataset_dir)
    folder = root if root.is_dir() else root.parent
    listing = with_labeled_regions(read_listing(root, channels), folder, regions)
    if not listing.labeled:
        raise DataError(f"data set {root.name!r}: no labeled case in it ({listing.layout}); check the folder")
    _check_label_values(listing.labels, labels or {})
    for sample in listing.labeled + [sample for sample in listing.test if "label" in sample]:
        _check_grids(sample, channels)
    case_ids = [sample["case_id"] for sample in listing.labeled]
    patients = _patients(case_ids, listing.patients, patient_pattern)
    held_out = set_aside(case_ids, patients, fraction=held_out_fraction, seed=seed)
    given = [Path(splits)] if splits else [folder / name for name in SPLIT_FILES if (folder / name).is_file()]
    if given:
        every_fold = read_splits(given[0], case_ids, held_out=held_out)
    else:
        every_fold = deal_folds(case_ids, patients, folds=folds, seed=seed, held_out=held_out)
    split = chosen_split(every_fold, fold, case_ids=case_ids, name=given[0].name if given else None)
    return Cases(
        [sample for sample in listing.labeled if sample["case_id"] in split["train"]],
        [sample for sample in listing.labeled if sample["case_id"] in split["val"]],
        [sample for sample in listing.labeled if sample["case_id"] in split["held_out"]] + listing.test,
        listing.layout,
        every_fold,
    )


def _check_label_values(found: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    """Refuse a data set whose `dataset.json` gives a label of the recipe another value."""
    by_name = {name.lower(): value for name, value in found.items()}
    for name, value in wanted.items():
        if by_name.get(name.lower(), value) != value:
            raise DataError(
                f"dataset.json: label {name!r} is {by_name[name.lower()]}, the recipe's is {value}; "
                "give the recipe's `labels` the data set's values"
            )


def find_scans(scans: str | Path, *, channels: Sequence[str], images: bool = False) -> list[Sample]:
    """Scans to predict: every scan file below a folder, or one file; nothing is read.

    Case ids are paths relative to the folder without suffix, with "/". With several channels, `CASE_0000`, `CASE_0001`,
    ... are one case; a channel whose file is missing keeps its place in the list, so that reading it fails by name. A
    2D image is always a case of its own.

    Args:
        scans: folder or file.
        channels: the model's.
        images: look for 2D images (PNG, JPEG, TIFF) instead of scan files.

    Raises:
        DataError: if there is no scan, or two files would be the same case.
    """
    root = Path(scans)
    if root.is_file():
        return _group_scans([root], root.parent, channels)
    if not root.is_dir():
        raise DataError(f"scans {root.name!r}: no such file or folder; check the path")
    found = image_files(root, recursive=True) if images else scan_files(root, recursive=True)
    if not found:
        kind = f"image files ({', '.join(IMAGE_SUFFIXES)})" if images else f"scan files ({', '.join(SUFFIXES)})"
        raise DataError(f"scans {root.name!r}: no {kind} in it; check the path")
    return _group_scans(found, root, channels)


def _group_scans(paths: Sequence[Path], root: Path, channels: Sequence[str]) -> list[Sample]:
    samples: dict[str, Sample] = {}
    for path in paths:
        stem = scan_stem(path)
        match = CHANNEL_SUFFIX.fullmatch(stem) if len(channels) > 1 and not is_image(path) else None
        case_id = path.relative_to(root).with_name(match[1] if match else stem).as_posix()
        image: str | list[str] = str(path)
        if match:
            ending = path.name[len(stem) :]
            image = [str(path.with_name(f"{match[1]}_{index:04d}{ending}")) for index in range(len(channels))]
        if samples.setdefault(case_id, Sample(image=image, case_id=case_id))["image"] != image:
            raise DataError(f"case {case_id!r}: two scan files have this name; rename or remove one ({path.name})")
    return sorted(samples.values(), key=case_id_of)


def _check_grids(sample: Sample, channels: Sequence[str]) -> None:
    """Refuse a case whose header lacks a channel, or whose label lies on another grid than its first channel."""
    images = [sample["image"]] if isinstance(sample["image"], str) else sample["image"]
    grids = [read_grid(path) for path in images]  # of every channel, so that a damaged header shows here
    shape, affine = grids[0]
    if all(is_image(path) for path in images):
        _check_pixels(sample, channels, [shape for shape, _ in grids])
        return
    volumes = shape[3] if len(images) == 1 and len(shape) == 4 else len(images)
    if volumes != len(channels) or len(shape) not in (3, 4):
        raise DataError(
            f"case {sample['case_id']!r}: {volumes} volumes for the channels {list(channels)} "
            f"({Path(images[0]).name}, shape {shape}); add what is missing, or correct the recipe's channels"
        )
    label_shape, label_affine = read_grid(sample["label"])
    difference = grid_difference(label_shape, label_affine, shape[:3], affine)
    if difference:
        label = Path(sample["label"])
        raise DataError(
            f"case {sample['case_id']!r}: label grid differs from image grid, {difference} "
            f"({label.parent.name}/{label.name}); export the label on the image's grid, or remove the case"
        )


def _check_pixels(sample: Sample, channels: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
    """Refuse an image of other channels than the recipe's, or whose mask has another size."""
    first = sample["image"] if isinstance(sample["image"], str) else sample["image"][0]
    found = shapes[0][3] if len(shapes) == 1 and len(shapes[0]) == 4 else len(shapes)
    if found != len(channels) and len(channels) > 1:  # three equal ones may be gray: seen when pixels are read
        raise DataError(
            f"case {sample['case_id']!r}: {found} of the channels {list(channels)} ({Path(first).name}); for gray "
            'images set `channels` to ["gray"] and `in_channels` to 1, or convert the image'
        )
    mask = Path(sample["label"])
    sizes = [f"{shape[0]} x {shape[1]}" for shape in (read_label_grid(mask)[0], *shapes)]
    if len(set(sizes)) > 1:
        raise DataError(
            f"case {sample['case_id']!r}: the mask {mask.name} has {sizes[0]} pixels, the image "
            f"{', '.join(sizes[1:])}; export the mask on the image's own pixels, not turned and not scaled"
        )


def _patients(case_ids: Sequence[str], named: Mapping[str, str], pattern: str | None) -> dict[str, str]:
    """The patient of each case."""
    if pattern is None:
        return {case_id: named.get(case_id, case_id) for case_id in case_ids}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"patient_pattern {pattern!r}: {error}; correct the regular expression") from error
    if not expression.groups:
        raise ConfigError(f"patient_pattern {pattern!r}: no group; put (...) around the patient's part")
    patients = {}
    for case_id in case_ids:
        match = expression.search(case_id)
        if not match:
            raise ConfigError(f"patient_pattern {pattern!r}: does not match case {case_id!r}; correct it")
        patients[case_id] = match[1]
    return patients
