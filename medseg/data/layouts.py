"""One reader a data set layout: which files are a case, paired by case id."""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

from medseg.data.images import (
    IMAGE_FOLDER,
    TEST_FOLDER,
    TEST_MASK_FOLDERS,
    by_stem,
    find_mask_folder,
    image_files,
    masks_of,
)
from medseg.errors import DataError
from medseg.reading import SUFFIXES, is_image, scan_stem

CHANNEL_SUFFIX = re.compile(r"(.+)_(\d{4})")
FOLDER_PAIRS = (("imagesTr", "labelsTr"), ("images", "labels"))
LAYOUTS = (
    "dataset.json (Medical Segmentation Decathlon or nnU-Net raw), cases.csv, volume-N and segmentation-N files "
    "(LiTS), folders images and labels, or 2D images and masks"
)


class Sample(TypedDict, total=False):
    """One case: paths, its id and, where labels are partial, the regions that were labeled."""

    image: str | list[str]
    label: str
    case_id: str
    labeled: list[str]


@dataclass(frozen=True)
class Listing:
    """What a layout's reader found: cases; patients, label values and annotated regions where the layout names them."""

    layout: str
    labeled: list[Sample]
    test: list[Sample] = field(default_factory=list)
    patients: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    annotated: Mapping[str, Any] = field(default_factory=dict)  # case id -> regions; cases that have all are left out


def read_listing(root: Path, channels: Sequence[str]) -> Listing:
    """Find the layout and read it."""
    if root.is_file():
        return _read_csv(root, channels)
    if not root.is_dir():
        raise DataError(f"data set {root.name!r}: no such folder; check --dataset_dir")
    if (root / "cases.csv").is_file():
        return _read_csv(root / "cases.csv", channels)
    if (root / "dataset.json").is_file():
        description = read_json(root / "dataset.json")
        if "channel_names" in description:
            return replace(
                _read_nnunet(root, description["channel_names"], channels),
                labels=_label_values(description.get("labels", {})),
                annotated=description.get("labeled", {}),
            )
        if "training" in description:
            return replace(
                _read_msd(root, description, channels),
                labels=_label_values(description.get("labels", {})),
                annotated=description.get("labeled", {}),
            )
        raise DataError("dataset.json: neither 'training' (MSD) nor 'channel_names' (nnU-Net raw) in it; add one")
    if image_files(root / IMAGE_FOLDER) and not scan_files(root / IMAGE_FOLDER):
        return _read_image_folders(root)
    for images, labels in FOLDER_PAIRS:
        if (root / images).is_dir() and (root / labels).is_dir():
            return _read_folders(root, images, labels, channels)
    if any(path.name.startswith("volume-") for path in scan_files(root, recursive=True)):
        return _read_lits(root, channels)
    raise DataError(f"data set {root.name!r}: no known layout in it; medseg reads {LAYOUTS}")


def _label_values(labels: Mapping[str, Any]) -> dict[str, int]:
    """Value of each label name; MSD writes `{"1": "liver"}`, nnU-Net `{"liver": 1}` (its regions are left out)."""
    if all(key.isdigit() for key in labels):
        return {str(name): int(value) for value, name in labels.items()}
    return {name: value for name, value in labels.items() if isinstance(value, int)}


def _read_msd(root: Path, description: Mapping[str, Any], channels: Sequence[str]) -> Listing:
    """Medical Segmentation Decathlon: pairs listed in dataset.json, several channels on a file's fourth axis."""
    modality = description.get("modality", {})
    if _channel_order(modality, channels, "dataset.json modality") != list(range(len(channels))):
        raise DataError(
            f"dataset.json: its channels are in another order, {_named(modality)}; list them so in the recipe"
        )
    labeled, test = [], []
    for entry in description["training"]:
        if not {"image", "label"} <= set(entry):
            raise DataError(f"dataset.json: no image or no label in the training entry {entry}; add it, or remove it")
        labeled.append(_listed(root, entry["image"], entry["label"]))
    for entry in description.get("test", []):
        entry = {"image": entry} if isinstance(entry, str) else entry
        label = entry.get("label") or _twin(root / "labelsTs", scan_stem(entry["image"]))
        test.append(_listed(root, entry["image"], label))
    if not test:
        test = _test_cases(root, {stem: str(path) for stem, path in _by_stem(root / "imagesTs").items()})
    return Listing("MSD dataset.json", _unique(labeled), _unique(test))


def _read_nnunet(root: Path, channel_names: Mapping[str, str], channels: Sequence[str]) -> Listing:
    """nnU-Net raw: CASE_0000, CASE_0001, ... in imagesTr, CASE in labelsTr; channels are matched by name."""
    order = _channel_order(channel_names, channels, "dataset.json channel_names")
    images = _by_channel(root / "imagesTr", order, channels)
    labeled = _pair(images, _by_stem(root / "labelsTr"), "labelsTr")
    return Listing("nnU-Net raw", labeled, _test_cases(root, _by_channel(root / "imagesTs", order, channels)))


def _read_folders(root: Path, images: str, labels: str, channels: Sequence[str]) -> Listing:
    """Image and label folders, paired by file name without suffix; CASE_0000, CASE_0001, ... with several channels."""
    label_files = _by_stem(root / labels)
    labeled = _pair(_images(root / images, label_files, channels), label_files, labels)
    test = _test_cases(root, _images(root / "imagesTs", _by_stem(root / "labelsTs"), channels))
    return Listing(f"folders {images} and {labels}", labeled, test)


def _read_image_folders(root: Path) -> Listing:
    """2D images in images/, masks in masks/ or labels/, paired by file name; test images in imagesTs/."""
    mask_folder = find_mask_folder(root)
    if mask_folder is None:
        raise DataError(f"data set {root.name!r}: images/ but neither masks/ nor labels/ beside it; add the masks")
    images = by_stem(root / IMAGE_FOLDER)
    paths = {stem: str(path) for stem, path in images.items()}
    labeled = _pair(paths, masks_of(images, by_stem(mask_folder)), mask_folder.name)
    test_images = by_stem(root / TEST_FOLDER)
    test_masks = masks_of(test_images, by_stem(find_mask_folder(root, TEST_MASK_FOLDERS) or root / "none"))
    test = [
        Sample(image=str(path), case_id=stem)
        | (Sample(label=str(test_masks[stem])) if stem in test_masks else Sample())
        for stem, path in sorted(test_images.items())
    ]
    return Listing(f"images and {mask_folder.name}", labeled, test)


def _read_lits(root: Path, channels: Sequence[str]) -> Listing:
    """LiTS: volume-N beside segmentation-N, in the folder or its batches; test-volume-N has no label."""
    kinds: dict[str, dict[str, Path]] = {"volume-": {}, "segmentation-": {}, "test-volume-": {}}
    for path in scan_files(root, recursive=True):
        kind = next((kind for kind in kinds if path.name.startswith(kind)), None)
        if kind is None:
            continue
        stem = scan_stem(path).replace("segmentation-", "volume-")
        if stem in kinds[kind]:
            raise DataError(f"case {stem!r}: two files {path.name}; remove one")
        kinds[kind][stem] = path
    images = {stem: str(path) for stem, path in kinds["volume-"].items()}
    test = [Sample(image=str(path), case_id=stem) for stem, path in kinds["test-volume-"].items()]
    return Listing("LiTS", _pair(images, kinds["segmentation-"], "segmentation-N"), sorted(test, key=case_id_of))


def _read_csv(path: Path, channels: Sequence[str]) -> Listing:
    """CSV: case_id, image (image_2, ... or a column a channel), label; paths from its folder.

    Perhaps patient, and labeled (annotated regions with ";" between; empty: all).
    """
    with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: Excel writes a byte order mark
        table = csv.DictReader(file)
        rows = list(table)
        present = list(table.fieldnames or ())
    by_name = set(channels) <= set(present)
    columns = list(channels) if by_name else ["image", *(f"image_{number}" for number in range(2, len(channels) + 1))]
    if "image_2" not in present and rows and all(is_image(row.get("image") or "") for row in rows):
        columns = ["image"]  # red, green and blue in one file
    for column in ("case_id", "label", *columns):
        if column not in present:
            channel = f" for channel {channels[columns.index(column)]!r}" if column in columns else ""
            raise DataError(f"{path.name}: no column '{column}'{channel}, it has {', '.join(present)}; add it")
    labeled, patients, annotated = [], {}, {}
    for row in rows:
        empty = [column for column in ("case_id", *columns, "label") if not row[column]]
        if empty:
            raise DataError(f"{path.name}: case {row['case_id']!r} has no {' and no '.join(empty)}; fill it in")
        images = [row[column] for column in columns]
        sample = _listed(path.parent, images[0] if len(images) == 1 else images, row["label"])
        labeled.append(Sample(image=sample["image"], label=sample["label"], case_id=row["case_id"]))
        if "patient" in present:
            patients[row["case_id"]] = row["patient"] or row["case_id"]
        if names := [name.strip() for name in (row.get("labeled") or "").split(";") if name.strip()]:
            annotated[row["case_id"]] = names
    return Listing(f"CSV {path.name}", _unique(labeled), patients=patients, annotated=annotated)


def _channel_order(names: Mapping[str, str], channels: Sequence[str], where: str) -> list[int]:
    """Position in the data set of each channel of the recipe: by name where names agree, else by count."""
    known = {str(name).lower(): int(position) for position, name in names.items()}
    wanted = [channel.lower() for channel in channels]
    missing = [channel for channel in channels if channel.lower() not in known]
    if not missing:
        return [known[channel] for channel in wanted]
    if not names or (len(names) == len(wanted) == len(missing)):
        return list(range(len(wanted)))  # other words for the same channels
    raise DataError(f"{where}: {_named(names)}, but no channel {missing[0]!r}; correct the recipe's channels or add it")


def _named(names: Mapping[str, str]) -> str:
    return ", ".join(repr(name) for name in names.values())


def _listed(root: Path, image: str | list[str], label: str | None) -> Sample:
    """A sample from a list's own paths, each of which must exist."""
    images = [image] if isinstance(image, str) else image
    for relative in images + ([label] if label else []):
        if not (root / relative).is_file():
            raise DataError(f"{relative}: listed, but no such file; restore it, or remove the case from the list")
    paths = [str(root / relative) for relative in images]
    sample = Sample(image=paths if len(paths) > 1 else paths[0], case_id=scan_stem(images[0]))
    if label:
        sample["label"] = str(root / label)
    return sample


def _images(folder: Path, labels: Mapping[str, Path], channels: Sequence[str]) -> dict[str, str | list[str]]:
    """Images by case id; the numbers of CASE_0000 count channels unless a label has them too."""
    files = _by_stem(folder)
    if files and not set(files) & set(labels) and all(CHANNEL_SUFFIX.fullmatch(stem) for stem in files):
        return _by_channel(folder, range(len(channels)), channels)
    return {stem: str(path) for stem, path in files.items()}


def _by_channel(folder: Path, order: Sequence[int], channels: Sequence[str]) -> dict[str, str | list[str]]:
    """Images by case id from CASE_0000, CASE_0001, ..., those of the channels in `order`."""
    cases: dict[str, dict[int, Path]] = {}
    for stem, path in _by_stem(folder).items():
        match = CHANNEL_SUFFIX.fullmatch(stem)
        if not match:
            raise DataError(f"{folder.name}/{path.name}: no channel number such as _0000 at its end; rename it")
        cases.setdefault(match[1], {})[int(match[2])] = path
    images: dict[str, str | list[str]] = {}
    for case_id, files in cases.items():
        for position, channel in zip(order, channels, strict=True):
            if position not in files:
                raise DataError(
                    f"case {case_id!r}: channel {channel!r} is missing ({folder.name}/{case_id}_{position:04d}); add it"
                )
        paths = [str(files[position]) for position in order]
        images[case_id] = paths if len(paths) > 1 else paths[0]
    return images


def _pair(images: Mapping[str, str | list[str]], labels: Mapping[str, Path], where: str) -> list[Sample]:
    """One sample a case id, which must have both."""
    unpaired = sorted(set(images) ^ set(labels))
    if unpaired:
        case_id = unpaired[0]
        wrong = "an image without label" if case_id in images else "a label without image"
        more = f" and {len(unpaired) - 1} more unpaired" if len(unpaired) > 1 else ""
        raise DataError(f"case {case_id!r}{more}: {wrong} ({where}); add the missing file, or move this one away")
    return [Sample(image=images[case_id], label=str(labels[case_id]), case_id=case_id) for case_id in sorted(images)]


def _test_cases(root: Path, images: Mapping[str, str | list[str]]) -> list[Sample]:
    """Cases of imagesTs, with their label where labelsTs has one."""
    labels = _by_stem(root / "labelsTs")
    test = []
    for case_id in sorted(images):
        sample = Sample(image=images[case_id], case_id=case_id)
        if case_id in labels:
            sample["label"] = str(labels[case_id])
        test.append(sample)
    return test


def _twin(folder: Path, stem: str) -> str | None:
    """The label file of a case in `folder`, as a path from the folder's parent."""
    path = _by_stem(folder).get(stem)
    return f"{folder.name}/{path.name}" if path else None


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in scan_files(folder):
        if files.setdefault(scan_stem(path), path) != path:
            raise DataError(f"{folder.name}: two files for case {scan_stem(path)!r}; remove {path.name} or the other")
    return files


def scan_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Scan files in a folder (none if there is no such folder), in the order of their names."""
    paths: Iterable[Path] = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(path for path in paths if _is_scan(path.relative_to(folder)) and path.is_file())


def _is_scan(relative: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)  # half-written files, and those of macOS
    return not hidden and relative.name.lower().endswith(SUFFIXES)


def _unique(samples: list[Sample]) -> list[Sample]:
    samples = sorted(samples, key=case_id_of)
    for sample, following in pairwise(samples):
        if sample["case_id"] == following["case_id"]:
            raise DataError(f"case {sample['case_id']!r}: listed twice; remove one entry")
    return samples


def case_id_of(sample: Sample) -> str:
    """Sorting key: the order of every list of samples."""
    return sample["case_id"]


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        DataError: if it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path.name}: no valid JSON ({error}); correct it") from error
