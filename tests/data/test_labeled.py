"""Which regions were annotated, said in every layout; and each refusal."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.data import Cases, find_cases
from medseg.errors import DataError

REGIONS = {"liver": [1, 2], "tumor": [2]}
NAMES = ["liver_0", "liver_1", "liver_2", "liver_3"]


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((5, 4, 3), np.uint8), np.diag([-0.75, 1.5, 2.5, 1.0])), path)


def write_folders(root: Path, suffix: str = "") -> None:
    for name in NAMES:
        save(root / "imagesTr" / f"{name}{suffix}.nii.gz")
        save(root / "labelsTr" / f"{name}.nii.gz")
    save(root / "imagesTs" / f"liver_9{suffix}.nii.gz")
    save(root / "labelsTs" / "liver_9.nii.gz")


def write_msd(root: Path, **more: object) -> None:
    write_folders(root)
    training = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in NAMES]
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "ct"}, "training": training, **more}))


def write_nnunet(root: Path, **more: object) -> None:
    write_folders(root, "_0000")
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "ct"}, **more}))


def write_csv(root: Path, labeled: dict[str, str]) -> None:
    write_folders(root)
    with (root / "cases.csv").open("w", newline="") as file:
        rows = [[name, f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz", labeled.get(name, "")] for name in NAMES]
        csv.writer(file).writerows([["case_id", "image", "label", "labeled"], *rows])


def write_lits(root: Path) -> None:
    for number in range(4):
        save(root / f"volume-{number}.nii")
        save(root / f"segmentation-{number}.nii")


def cases_in(root: Path) -> Cases:
    return find_cases(root, channels=["ct"], regions=REGIONS, folds=2)


def labeled_in(root: Path) -> dict[str, list[str]]:
    cases = cases_in(root)
    samples = [*cases.training, *cases.validation, *cases.test]
    return {sample["case_id"]: sample["labeled"] for sample in samples if "labeled" in sample}


def test_a_csv_has_a_column_with_semicolons_and_an_empty_cell_is_all(tmp_path: Path) -> None:
    write_csv(tmp_path, {"liver_0": "tumor", "liver_1": " liver ; ", "liver_2": "tumor; liver"})
    assert labeled_in(tmp_path) == {"liver_0": ["tumor"], "liver_1": ["liver"]}


@pytest.mark.parametrize("write", [write_msd, write_nnunet])
def test_a_dataset_json_has_a_key(tmp_path: Path, write) -> None:
    write(tmp_path, labeled={"liver_3": ["tumor"], "liver_9": ["liver"], "liver_1": ["tumor", "liver"]})
    assert labeled_in(tmp_path) == {"liver_3": ["tumor"], "liver_9": ["liver"]}


@pytest.mark.parametrize("write", [write_msd, write_nnunet, write_folders, write_lits])
def test_any_layout_obeys_a_file(tmp_path: Path, write) -> None:
    write(tmp_path)
    name = "volume-2" if write is write_lits else "liver_2"
    (tmp_path / "labeled.json").write_text(json.dumps({name: ["tumor"]}))
    assert labeled_in(tmp_path) == {name: ["tumor"]}


def test_a_csv_obeys_a_file_beside_it(tmp_path: Path) -> None:
    write_csv(tmp_path, {})
    (tmp_path / "labeled.json").write_text(json.dumps({"liver_2": ["liver"]}))
    cases = find_cases(tmp_path / "cases.csv", channels=["ct"], regions=REGIONS, folds=2)
    assert [s["case_id"] for s in cases.training + cases.validation if "labeled" in s] == ["liver_2"]


def test_without_a_word_every_case_has_all_regions(tmp_path: Path) -> None:
    write_msd(tmp_path)
    assert labeled_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"liver_7": ["tumor"]}, r"labeled has case 'liver_7', of which there is no label; correct its name"),
        ({"liver_1": ["tumour"]}, r"labeled of case 'liver_1' names 'tumour', which is no region \(liver, tumor\)"),
        ({"liver_1": "tumor"}, r"labeled of case 'liver_1' is 'tumor'; give a list of regions, or leave the case out"),
        ({"liver_1": []}, r"labeled of case 'liver_1' is \[\]; give a list"),
        ({"liver_1": [["tumor"]]}, r"labeled of case 'liver_1' is \[\['tumor'\]\]; give a list"),
        (["liver_1"], r"labeled is no list of regions a case; write \{case_id: \[regions\]\}"),
    ],
)
@pytest.mark.parametrize("place", ["labeled.json", "MSD dataset.json"])
def test_what_cannot_be_meant_is_refused(tmp_path: Path, place: str, said: object, message: str) -> None:
    write_msd(tmp_path, **({"labeled": said} if place == "MSD dataset.json" else {}))
    if place == "labeled.json":
        (tmp_path / place).write_text(json.dumps(said))
    with pytest.raises(DataError, match=f"{place}: {message}") as raised:
        cases_in(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_csv_with_an_unknown_region_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path, {"liver_2": "liver;spleen"})
    with pytest.raises(DataError, match=r"CSV cases.csv: labeled of case 'liver_2' names 'spleen', which is no region"):
        cases_in(tmp_path)


def test_what_is_said_twice_is_refused(tmp_path: Path) -> None:
    write_msd(tmp_path, labeled={"liver_1": ["tumor"]})
    (tmp_path / "labeled.json").write_text(json.dumps({"liver_1": ["liver"]}))
    with pytest.raises(DataError, match=r"labeled.json: MSD dataset.json says .* as well; keep one of the two"):
        cases_in(tmp_path)
