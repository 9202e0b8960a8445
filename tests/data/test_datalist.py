"""Every layout on tiny files: what is found, and each refusal."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.data import find_cases, find_scans
from medseg.errors import ConfigError, DataError
from medseg.reading import read_scan

AFFINE = np.array([[-0.75, 0.0, 0.0, 33.25], [0.0, 1.5, 0.0, -10.5], [0.0, 0.0, 2.5, 7.0], [0, 0, 0, 1]])
SHAPE = (5, 4, 3)
CASES = [f"liver_{number}" for number in (0, 1, 2, 10, 11, 20)]
PHASES = ["portal", "arterial"]


def save(path, *, shape=SHAPE, affine=AFFINE, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full(shape, value, dtype=np.uint8), affine), path)
    return path


def write_msd(root, *, modality=("CT",), shape=SHAPE, test_label=True):
    for case in CASES:
        save(root / "imagesTr" / f"{case}.nii.gz", shape=shape)
        save(root / "labelsTr" / f"{case}.nii.gz")
    for case in ("liver_90", "liver_91"):
        save(root / "imagesTs" / f"{case}.nii.gz", shape=shape)
    if test_label:
        save(root / "labelsTs" / "liver_90.nii.gz")
    description = {
        "modality": {str(number): name for number, name in enumerate(modality)},
        "labels": {"0": "background", "1": "liver"},
        # listed in an order of its own: the order on disk and in the list must not matter
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in reversed(CASES)
        ],
        "test": ["./imagesTs/liver_91.nii.gz", "./imagesTs/liver_90.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def edit_json(root, change):
    description = json.loads((root / "dataset.json").read_text())
    change(description)
    (root / "dataset.json").write_text(json.dumps(description))


def write_nnunet(root, *, names=("CT",)):
    for case in CASES:
        for channel in range(len(names)):
            save(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz", value=channel)
        save(root / "labelsTr" / f"{case}.nii.gz")
    for case in ("liver_90", "liver_91"):
        for channel in range(len(names)):
            save(root / "imagesTs" / f"{case}_{channel:04d}.nii.gz", value=channel)
    save(root / "labelsTs" / "liver_90.nii.gz")
    description = {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "labels": {"background": 0, "liver": 1},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def write_folders(root, images="images", labels="labels", *, channels=1):
    for case in CASES:
        for channel in range(channels):
            suffix = f"_{channel:04d}" if channels > 1 else ""
            save(root / images / f"{case}{suffix}.nii.gz")
        save(root / labels / f"{case}.nii")  # another format than the image's
    return root


def write_lits(root):
    for number in (0, 1, 2, 10, 11):
        batch = root / f"Training Batch {1 + number // 10}"
        save(batch / f"volume-{number}.nii")
        save(batch / f"segmentation-{number}.nii")
    save(root / "test-volume-3.nii")
    return root


def write_csv(root, header, rows):
    root.mkdir(parents=True, exist_ok=True)
    with (root / "cases.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *rows])
    return root


def write_csv_cases(root, channels=1):
    rows = []
    for number, case in enumerate(CASES):
        images = [f"scans/{case}/phase{channel}.nii.gz" for channel in range(channels)]
        for image in images:
            save(root / image)
        save(root / f"expert/{number}.nii.gz")
        rows.append([case, *images, f"expert/{number}.nii.gz", f"patient{number // 2}"])
    return rows


def ids(samples):
    return [sample["case_id"] for sample in samples]


def labeled_ids(cases):
    return sorted(ids(cases.training) + ids(cases.validation))


# layouts


def test_msd_is_found_in_the_order_of_case_ids(tmp_path):
    cases = find_cases(write_msd(tmp_path), channels=["ct"])
    assert cases.layout == "MSD dataset.json"
    assert labeled_ids(cases) == sorted(CASES)
    assert ids(cases.training) == sorted(ids(cases.training))
    assert ids(cases.test) == ["liver_90", "liver_91"]
    assert ["label" in sample for sample in cases.test] == [True, False]
    for sample in cases.training + cases.validation:
        assert sample["image"].endswith(f"{sample['case_id']}.nii.gz")
        assert sample["label"].endswith(f"{sample['case_id']}.nii.gz")
        assert read_scan(sample["label"]).voxels.shape == SHAPE


def test_msd_without_test_list_takes_its_test_folder(tmp_path):
    write_msd(tmp_path)
    edit_json(tmp_path, lambda description: description.pop("test"))
    test = find_cases(tmp_path, channels=["ct"]).test
    assert ids(test) == ["liver_90", "liver_91"]
    assert ["label" in sample for sample in test] == [True, False]


def test_msd_keeps_channels_on_the_fourth_axis(tmp_path):
    write_msd(tmp_path, modality=("FLAIR", "T1w"), shape=(*SHAPE, 2))
    cases = find_cases(tmp_path, channels=["flair", "t1w"])
    assert isinstance(cases.training[0]["image"], str)
    with pytest.raises(DataError, match=r"dataset.json: its channels are in another order, 'FLAIR', 'T1w'; list them"):
        find_cases(tmp_path, channels=["t1w", "flair"])
    with pytest.raises(DataError, match=r"dataset.json modality: 'FLAIR', 'T1w', but no channel 'adc'; correct"):
        find_cases(tmp_path, channels=["flair", "t1w", "adc"])


def test_msd_whose_files_lack_a_channel_is_refused(tmp_path):
    write_msd(tmp_path, modality=("FLAIR", "T1w"), shape=(*SHAPE, 2))
    save(tmp_path / "imagesTr" / "liver_10.nii.gz")
    message = r"case 'liver_10': 1 volumes for the channels \['flair', 't1w'\] .liver_10.nii.gz, shape \(5, 4, 3\)."
    with pytest.raises(DataError, match=message):
        find_cases(tmp_path, channels=["flair", "t1w"])


def test_nnunet_is_the_same_as_msd(tmp_path):
    for fold in range(3):
        settings = {"channels": ["ct"], "fold": fold, "folds": 3, "seed": 7, "held_out_fraction": 0.2}
        msd = find_cases(write_msd(tmp_path / "msd"), **settings)
        raw = find_cases(write_nnunet(tmp_path / "raw"), **settings)
        assert raw.layout == "nnU-Net raw"
        for name in ("training", "validation", "test"):
            assert ids(getattr(raw, name)) == ids(getattr(msd, name))
            assert [set(sample) for sample in getattr(raw, name)] == [set(sample) for sample in getattr(msd, name)]


def test_nnunet_channels_are_matched_by_name(tmp_path):
    write_nnunet(tmp_path, names=("arterial", "portal"))
    by_name = find_cases(tmp_path, channels=PHASES).training[0]
    assert [path[-11:] for path in by_name["image"]] == ["0001.nii.gz", "0000.nii.gz"]
    only = find_cases(tmp_path, channels=["portal"]).training[0]
    assert only["image"].endswith("_0001.nii.gz")
    other_words = find_cases(tmp_path, channels=["first", "second"]).training[0]
    assert [path[-11:] for path in other_words["image"]] == ["0000.nii.gz", "0001.nii.gz"]
    with pytest.raises(DataError, match=r"channel_names: 'arterial', 'portal', but no channel 'late'; correct the rec"):
        find_cases(tmp_path, channels=["portal", "late"])


def test_nnunet_case_without_a_channel_is_refused(tmp_path):
    write_nnunet(tmp_path, names=PHASES)
    (tmp_path / "imagesTr" / "liver_2_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case 'liver_2': channel 'arterial' is missing \(imagesTr/liver_2_0001\)"):
        find_cases(tmp_path, channels=PHASES)


def test_nnunet_file_without_channel_number_is_refused(tmp_path):
    write_nnunet(tmp_path)
    save(tmp_path / "imagesTr" / "liver_77.nii.gz")
    with pytest.raises(DataError, match=r"imagesTr/liver_77.nii.gz: no channel number such as _0000 at its end"):
        find_cases(tmp_path, channels=["ct"])


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("imagesTr", "labelsTr")])
def test_folders_are_paired_by_stem_whatever_the_suffix(tmp_path, images, labels):
    write_folders(tmp_path, images, labels)
    save(tmp_path / "imagesTs" / "new_1.nii.gz")
    (tmp_path / images / "._liver_1.nii.gz").write_bytes(b"what macOS leaves behind")
    (tmp_path / labels / "notes.txt").write_text("no scan")
    cases = find_cases(tmp_path, channels=["mr"])
    assert cases.layout == f"folders {images} and {labels}"
    assert labeled_ids(cases) == sorted(CASES)
    assert cases.test == [{"image": str(tmp_path / "imagesTs" / "new_1.nii.gz"), "case_id": "new_1"}]


def test_folders_with_numbered_channels_are_grouped(tmp_path):
    cases = find_cases(write_folders(tmp_path, channels=2), channels=PHASES)
    assert labeled_ids(cases) == sorted(CASES)
    assert all(path.endswith(f"_{n:04d}.nii.gz") for n, path in enumerate(cases.training[0]["image"]))
    (tmp_path / "images" / "liver_0_0000.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case 'liver_0': channel 'portal' is missing \(images/liver_0_0000\); add it"):
        find_cases(tmp_path, channels=PHASES)


def test_four_digit_case_numbers_are_no_channels(tmp_path):
    for number in range(5):
        save(tmp_path / "images" / f"scan_{number:04d}.nii.gz")
        save(tmp_path / "labels" / f"scan_{number:04d}.nii.gz")
    assert labeled_ids(find_cases(tmp_path, channels=["ct"])) == [f"scan_{number:04d}" for number in range(5)]


def test_lits_is_found_in_its_batches(tmp_path):
    cases = find_cases(write_lits(tmp_path), channels=["ct"])
    assert cases.layout == "LiTS"
    assert labeled_ids(cases) == sorted(f"volume-{number}" for number in (0, 1, 2, 10, 11))
    for sample in cases.training + cases.validation:
        assert sample["label"] == sample["image"].replace("volume", "segmentation")
    assert ids(cases.test) == ["test-volume-3"]


def test_lits_pairs_must_be_whole_and_single(tmp_path):
    write_lits(tmp_path)
    save(tmp_path / "copy" / "volume-10.nii")
    with pytest.raises(DataError, match=r"case 'volume-10': two files volume-10.nii; remove one"):
        find_cases(tmp_path, channels=["ct"])
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "Training Batch 2" / "segmentation-10.nii").unlink()
    with pytest.raises(DataError, match=r"case 'volume-10': an image without label \(segmentation-N\)"):
        find_cases(tmp_path, channels=["ct"])


def test_csv_is_found_by_folder_or_by_name(tmp_path):
    write_csv(tmp_path, ["case_id", "image", "label", "patient"], write_csv_cases(tmp_path))
    for place in (tmp_path, tmp_path / "cases.csv"):
        cases = find_cases(place, channels=["ct"], folds=3)
        assert cases.layout == "CSV cases.csv"
        assert labeled_ids(cases) == sorted(CASES)
        first = min(cases.training + cases.validation, key=lambda sample: sample["case_id"])
        assert first["image"] == str(tmp_path / "scans/liver_0/phase0.nii.gz")
        assert first["label"] == str(tmp_path / "expert/0.nii.gz")


@pytest.mark.parametrize("columns", [["image", "image_2"], ["portal", "arterial"], ["arterial", "portal"]])
def test_csv_names_its_channels_by_column(tmp_path, columns):
    write_csv(tmp_path, ["case_id", *columns, "label", "patient"], write_csv_cases(tmp_path, channels=2))
    image = find_cases(tmp_path, channels=PHASES, folds=3).training[0]["image"]
    expected = ["phase1.nii.gz", "phase0.nii.gz"] if columns[0] == "arterial" else ["phase0.nii.gz", "phase1.nii.gz"]
    assert [Path(path).name for path in image] == expected


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["name", "image", "label"], r"cases.csv: no column 'case_id', it has name, image, label; add it"),
        (["case_id", "scan", "label"], r"cases.csv: no column 'image' for channel 'portal', it has case_id, scan"),
        (
            ["case_id", "image", "label"],
            r"cases.csv: no column 'image_2' for channel 'arterial', it has case_id, image",
        ),
        (["case_id", "image", "mask"], r"cases.csv: no column 'label', it has case_id, image, mask; add it"),
    ],
)
def test_csv_without_a_column_is_refused(tmp_path, header, message):
    write_csv(tmp_path, header, [["a", "b", "c"]])
    with pytest.raises(DataError, match=message):
        find_cases(tmp_path, channels=PHASES)


def test_csv_with_an_empty_or_wrong_cell_is_refused(tmp_path):
    header = ["case_id", "image", "label"]
    write_csv(tmp_path, header, [["a", "", ""]])
    with pytest.raises(DataError, match=r"cases.csv: case 'a' has no image and no label; fill it in"):
        find_cases(tmp_path, channels=["ct"])
    save(tmp_path / "a.nii")
    write_csv(tmp_path, header, [["a", "a.nii", "b.nii"]])
    with pytest.raises(DataError, match=r"b.nii: listed, but no such file; restore it, or remove the case"):
        find_cases(tmp_path, channels=["ct"])
    write_csv(tmp_path, header, [["a", "a.nii", "a.nii"]] * 2)
    with pytest.raises(DataError, match=r"case 'a': listed twice; remove one entry"):
        find_cases(tmp_path, channels=["ct"])


# refusals of every layout


def test_missing_or_unknown_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"^data set 'absent': no such folder; check --dataset_dir$"):
        find_cases(tmp_path / "absent", channels=["ct"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data set 'empty': no known layout in it; medseg reads dataset.json .*LiTS"):
        find_cases(tmp_path / "empty", channels=["ct"])
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset.json: no valid JSON \(.*\); correct it"):
        find_cases(tmp_path, channels=["ct"])
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"dataset.json: neither 'training' \(MSD\) nor 'channel_names' \(nnU-Net raw\)"
    ):
        find_cases(tmp_path, channels=["ct"])
    (tmp_path / "dataset.json").write_text('{"training": []}')
    with pytest.raises(DataError, match=r"no labeled case in it \(MSD dataset.json\); check the folder"):
        find_cases(tmp_path, channels=["ct"])


@pytest.mark.parametrize("write", [write_nnunet, write_folders])
def test_image_without_label_is_refused(tmp_path, write):
    write(tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if path.name in ("labels", "labelsTr")]
    next(folder.glob("liver_10.*")).unlink()
    message = rf"case 'liver_10': an image without label \({folder.name}\); add the missing file, or move this one away"
    with pytest.raises(DataError, match=message):
        find_cases(tmp_path, channels=["ct"])
    next(folder.glob("liver_11.*")).unlink()
    with pytest.raises(DataError, match=r"case 'liver_10' and 1 more unpaired: an image without label"):
        find_cases(tmp_path, channels=["ct"])


@pytest.mark.parametrize("write", [write_nnunet, write_folders])
def test_label_without_image_is_refused(tmp_path, write):
    write(tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if path.name in ("images", "imagesTr")]
    next(folder.glob("liver_10*")).unlink()
    with pytest.raises(DataError, match=r"case 'liver_10': a label without image \(labels"):
        find_cases(tmp_path, channels=["ct"])


def test_msd_entries_must_be_whole(tmp_path):
    write_msd(tmp_path)
    (tmp_path / "labelsTr" / "liver_1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"./labelsTr/liver_1.nii.gz: listed, but no such file; restore it, or remove"):
        find_cases(tmp_path, channels=["ct"])
    edit_json(tmp_path, lambda description: description["training"][0].pop("label"))
    with pytest.raises(DataError, match=r"dataset.json: no image or no label in the training entry .*liver_20"):
        find_cases(tmp_path, channels=["ct"])


def test_case_listed_twice_is_refused(tmp_path):
    write_msd(tmp_path)
    edit_json(tmp_path, lambda description: description["training"].append(description["training"][2]))
    with pytest.raises(DataError, match=r"case 'liver_10': listed twice; remove one entry"):
        find_cases(tmp_path, channels=["ct"])


def test_two_files_of_one_case_are_refused(tmp_path):
    write_folders(tmp_path)
    save(tmp_path / "images" / "liver_1.nii")
    with pytest.raises(DataError, match=r"images: two files for case 'liver_1'; remove liver_1.nii.gz or the other"):
        find_cases(tmp_path, channels=["ct"])


@pytest.mark.parametrize("part", ["Tr", "Ts"])
def test_label_of_another_shape_is_refused(tmp_path, part):
    write_msd(tmp_path)
    case = "liver_10" if part == "Tr" else "liver_90"
    save(tmp_path / f"labels{part}" / f"{case}.nii.gz", shape=(5, 4, 2))
    message = (
        rf"case '{case}': label grid differs from image grid, shape \(5, 4, 2\) against \(5, 4, 3\) "
        rf"\(labels{part}/{case}.nii.gz\); export the label on the image's grid, or remove the case"
    )
    with pytest.raises(DataError, match=message):
        find_cases(tmp_path, channels=["ct"])


def test_label_of_another_place_is_refused_with_both_grids(tmp_path):
    write_msd(tmp_path)
    mirrored = AFFINE.copy()
    mirrored[0] *= -1
    save(tmp_path / "labelsTr" / "liver_10.nii.gz", affine=mirrored)
    message = (
        r"case 'liver_10': label grid differs from image grid, RAS 0.75 x 1.5 x 2.5 mm at \(-33.25, -10.5, 7\) "
        r"against LAS 0.75 x 1.5 x 2.5 mm at \(33.25, -10.5, 7\)"
    )
    with pytest.raises(DataError, match=message):
        find_cases(tmp_path, channels=["ct"])


def test_label_grid_may_differ_by_rounding(tmp_path):
    write_msd(tmp_path)
    save(tmp_path / "labelsTr" / "liver_10.nii.gz", affine=AFFINE + 5e-4)
    find_cases(tmp_path, channels=["ct"])
    save(tmp_path / "labelsTr" / "liver_10.nii.gz", affine=AFFINE + np.eye(4, k=3) * 5e-3)
    with pytest.raises(DataError, match=r"label grid differs from image grid, .*affine entries up to 0.005 apart"):
        find_cases(tmp_path, channels=["ct"])


def test_further_channels_may_have_their_own_grid(tmp_path):
    write_nnunet(tmp_path, names=PHASES)
    save(tmp_path / "imagesTr" / "liver_1_0001.nii.gz", shape=(3, 3, 9), affine=np.diag([3.0, 3.0, 1.0, 1.0]))
    find_cases(tmp_path, channels=PHASES)
    (tmp_path / "imagesTr" / "liver_1_0001.nii.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"liver_1_0001.nii.gz: damaged or cut short"):
        find_cases(tmp_path, channels=PHASES)


def test_4d_file_for_one_channel_is_refused(tmp_path):
    write_folders(tmp_path)
    save(tmp_path / "images" / "liver_1.nii.gz", shape=(*SHAPE, 4))
    with pytest.raises(DataError, match=r"case 'liver_1': 4 volumes for the channels \['ct'\] .*shape \(5, 4, 3, 4\)"):
        find_cases(tmp_path, channels=["ct"])


def test_flat_image_is_refused(tmp_path):
    write_folders(tmp_path)
    save(tmp_path / "images" / "liver_1.nii.gz", shape=(5, 4))
    with pytest.raises(DataError, match=r"case 'liver_1': 1 volumes for the channels \['ct'\] .*shape \(5, 4\)"):
        find_cases(tmp_path, channels=["ct"])


# folds


def test_folds_validate_every_case_once(tmp_path):
    write_folders(tmp_path)
    validated = []
    for fold in range(3):
        cases = find_cases(tmp_path, channels=["ct"], fold=fold, folds=3, seed=5)
        assert labeled_ids(cases) == sorted(CASES)
        assert len(cases.validation) == 2
        validated += ids(cases.validation)
    assert sorted(validated) == sorted(CASES)


def test_split_depends_on_the_seed_alone(tmp_path):
    write_folders(tmp_path)
    splits = [ids(find_cases(tmp_path, channels=["ct"], seed=seed, folds=2).validation) for seed in (1, 1, 2, 3, 4)]
    assert splits[0] == splits[1]
    assert len({tuple(split) for split in splits}) > 1


@pytest.mark.parametrize("by", ["column", "pattern"])
def test_a_patient_is_never_on_both_sides(tmp_path, by):
    header = ["case_id", "image", "label", "patient"]
    rows = write_csv_cases(tmp_path)
    patient_of = {row[0]: row[3] for row in rows}
    if by == "pattern":
        patient_of = {case: case.rpartition("_")[2][0] for case in CASES}  # 0, 1 (three cases), 2 (two)
    write_csv(tmp_path, header, rows)
    pattern = r"_(\d)" if by == "pattern" else None
    for fold in range(2):
        cases = find_cases(
            tmp_path, channels=["ct"], fold=fold, folds=2, held_out_fraction=0.3, patient_pattern=pattern
        )
        sides = [{patient_of[case] for case in ids(part)} for part in (cases.training, cases.validation, cases.test)]
        assert all(sides)
        assert sum(len(side) for side in sides) == len(set().union(*sides)) == 3


def test_held_out_cases_are_labeled_test_cases_of_every_fold(tmp_path):
    write_msd(tmp_path)
    tests = []
    for fold in range(2):
        cases = find_cases(tmp_path, channels=["ct"], fold=fold, folds=2, held_out_fraction=1 / 3)
        held_out = [sample for sample in cases.test if sample["case_id"] in CASES]
        assert all("label" in sample for sample in held_out)
        assert ids(cases.test)[-2:] == ["liver_90", "liver_91"]
        assert sorted(labeled_ids(cases) + ids(held_out)) == sorted(CASES)
        tests.append(ids(held_out))
    assert len(tests[0]) == 2
    assert tests[0] == tests[1]


@pytest.mark.parametrize("name", ["splits.json", "splits_final.json"])
def test_given_split_wins(tmp_path, name):
    write_nnunet(tmp_path)
    given = [{"train": CASES[:4], "val": CASES[4:]}, {"train": CASES[2:], "val": CASES[:2]}]
    (tmp_path / name).write_text(json.dumps(given))
    for fold in range(2):
        cases = find_cases(tmp_path, channels=["ct"], fold=fold, seed=3)
        assert ids(cases.training) == sorted(given[fold]["train"])
        assert ids(cases.validation) == sorted(given[fold]["val"])


def test_held_out_cases_leave_a_given_split(tmp_path):
    write_nnunet(tmp_path)
    (tmp_path / "splits.json").write_text(json.dumps([{"train": CASES[:3], "val": CASES[3:]}]))
    cases = find_cases(tmp_path, channels=["ct"], held_out_fraction=0.3)
    held_out = set(ids(cases.test)) & set(CASES)
    assert len(held_out) == 2
    assert set(ids(cases.training)) == set(CASES[:3]) - held_out
    assert set(ids(cases.validation)) == set(CASES[3:]) - held_out


def test_given_split_that_leaves_cases_out_says_so(tmp_path, caplog):
    write_nnunet(tmp_path)
    (tmp_path / "splits.json").write_text(json.dumps([{"train": CASES[:3], "val": CASES[3:4]}]))
    find_cases(tmp_path, channels=["ct"])
    assert "splits.json leaves 2 of 6 labeled cases out of fold 0" in caplog.text


def test_the_folds_of_a_data_set_can_be_saved_and_given_back_from_elsewhere(tmp_path):
    write_msd(tmp_path / "data")
    settings = {"channels": ["ct"], "folds": 2, "held_out_fraction": 1 / 3}
    before = [find_cases(tmp_path / "data", fold=fold, seed=1, **settings) for fold in range(2)]
    (tmp_path / "saved.json").write_text(json.dumps(before[0].splits))
    for fold, cases in enumerate(before):
        again = find_cases(
            tmp_path / "data", channels=["ct"], fold=fold, seed=2, held_out_fraction=0.5, splits=tmp_path / "saved.json"
        )
        assert again.splits == cases.splits
        for part in ("training", "validation", "test"):
            assert ids(getattr(again, part)) == ids(getattr(cases, part))
    validated = [case for split in before[0].splits for case in split["val"]]
    assert sorted(validated + before[0].splits[0]["held_out"]) == sorted(CASES)


@pytest.mark.parametrize("other", [{"held_out": ["liver_1"]}, {"held_out": []}, {}])
def test_a_split_file_holds_out_the_same_cases_in_every_fold(tmp_path, other):
    write_folders(tmp_path)
    fold = {"train": ["liver_0"], "val": ["liver_2"]}
    (tmp_path / "splits.json").write_text(json.dumps([fold | {"held_out": ["liver_20"]}, fold | other]))
    with pytest.raises(DataError, match=r"splits.json: fold 1 holds out other cases than fold 0"):
        find_cases(tmp_path, channels=["ct"])


@pytest.mark.parametrize(
    ("content", "fold", "error", "message"),
    [
        ("[", 0, DataError, r"splits.json: no valid JSON"),
        ('{"train": []}', 0, DataError, r"splits.json: not a list of \{'train': .*correct it"),
        ('[{"train": []}]', 0, DataError, r"splits.json: not a list of \{'train': \[...\], 'val': \[...\]\}"),
        ('[{"train": ["liver_1"], "val": ["x"]}]', 0, DataError, r"splits.json: case 'x' is not among the labeled"),
        (
            '[{"train": ["liver_1"], "val": ["liver_1"]}]',
            0,
            DataError,
            r"case 'liver_1' is in train and in val of fold",
        ),
        (
            '[{"train": ["liver_1"], "val": ["liver_0"]}]',
            1,
            ConfigError,
            r"fold 1: splits.json has folds 0 to 0; choose",
        ),
    ],
)
def test_unsound_split_file_is_refused(tmp_path, content, fold, error, message):
    write_folders(tmp_path)
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(error, match=message):
        find_cases(tmp_path, channels=["ct"], fold=fold)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 5}, r"fold 5 of 5: give 2 folds or more, and a fold from 0 to folds - 1"),
        ({"fold": -1}, r"fold -1 of 5"),
        ({"folds": 1}, r"fold 0 of 1: give 2 folds or more"),
        ({"folds": 7}, r"6 patients cannot fill 7 folds; lower folds or held_out_fraction"),
        ({"held_out_fraction": 0.5}, r"3 patients cannot fill 5 folds"),
        ({"held_out_fraction": 1.0}, r"held_out_fraction is 1.0; give a share of the patients from 0 up to below 1"),
        ({"held_out_fraction": -0.1}, r"held_out_fraction is -0.1"),
        ({"patient_pattern": "("}, r"patient_pattern '\(': .*; correct the regular expression"),
        ({"patient_pattern": "liver"}, r"patient_pattern 'liver': no group; put \(...\) around the patient's part"),
        ({"patient_pattern": r"spleen_(\d)"}, r"patient_pattern .*: does not match case 'liver_0'; correct it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, message):
    write_folders(tmp_path)
    with pytest.raises(ConfigError, match=message):
        find_cases(tmp_path, channels=["ct"], **settings)


# scans to predict


def test_scans_are_found_below_a_folder_in_order(tmp_path):
    for name in ("b/2.nrrd", "b/10.nii", "a.nii.gz", "c.d.mha", ".hidden/x.nii", "b/.half-y.nii.gz", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not read")
    samples = find_scans(tmp_path, channels=["ct"])
    assert ids(samples) == ["a", "b/10", "b/2", "c.d"]
    assert samples[2]["image"] == str(tmp_path / "b" / "2.nrrd")
    assert all(set(sample) == {"image", "case_id"} for sample in samples)


def test_one_file_is_one_scan(tmp_path):
    save(tmp_path / "sub" / "a.nii.gz")
    (sample,) = find_scans(tmp_path / "sub" / "a.nii.gz", channels=["ct"])
    assert sample == {"image": str(tmp_path / "sub" / "a.nii.gz"), "case_id": "a"}


def test_numbered_channels_are_one_scan_and_a_missing_one_keeps_its_place(tmp_path):
    for name in ("x/a_0000.nii.gz", "x/a_0001.nii.gz", "x/b_0001.nii.gz", "c.nii.gz"):
        save(tmp_path / name)
    samples = find_scans(tmp_path, channels=PHASES)
    assert ids(samples) == ["c", "x/a", "x/b"]
    assert samples[0]["image"] == str(tmp_path / "c.nii.gz")
    for sample, case in zip(samples[1:], "ab", strict=True):
        assert sample["image"] == [str(tmp_path / "x" / f"{case}_{n:04d}.nii.gz") for n in range(2)]
    assert ids(find_scans(tmp_path / "x", channels=["ct"])) == ["a_0000", "a_0001", "b_0001"]


def test_nothing_to_predict_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"scans 'absent': no such file or folder; check the path"):
        find_scans(tmp_path / "absent", channels=["ct"])
    with pytest.raises(DataError, match=r"no scan files \(.nii.gz, .nii, .*.mhd\) in it; check the path"):
        find_scans(tmp_path, channels=["ct"])


def test_two_scans_of_one_name_are_refused(tmp_path):
    save(tmp_path / "a.nii")
    save(tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"case 'a': two scan files have this name; rename or remove one \(a.nii.gz\)"):
        find_scans(tmp_path, channels=["ct"])


# real data


def test_hippocampus_folder_is_found_as_it_is(shared_data):
    cases = find_cases(shared_data / "mr_hippocampus", channels=["mr"], held_out_fraction=0.2)
    assert cases.layout == "folders images and labels"
    assert len(cases.training) + len(cases.validation) + len(cases.test) == 64
    assert len(cases.test) == 13
    assert all(Path(sample["image"]).name == Path(sample["label"]).name for sample in cases.training)


@pytest.mark.parametrize("write", [write_msd, write_nnunet])
def test_a_label_with_another_value_than_the_recipes_is_refused(tmp_path, write):
    root = write(tmp_path / "data")
    assert find_cases(root, channels=["CT"], labels={"background": 0, "Liver": 1, "tumor": 2}).training
    with pytest.raises(DataError, match=r"dataset\.json: label 'liver' is 1, the recipe's is 2"):
        find_cases(root, channels=["CT"], labels={"background": 0, "tumor": 1, "liver": 2})
