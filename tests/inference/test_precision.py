import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from small_bundle import make_bundle, write_scan

from medseg import cli
from medseg.bundle import open_bundle
from medseg.errors import ConfigError, DataError
from medseg.inference import Predictor
from medseg.inference.precision import agreement, overlap, passes, store, summary
from medseg.reading import Scan, read_scan
from medseg.writing import write_nifti

REGIONS = {"liver": [1, 2], "tumor": [2]}


def scan_of(voxels: np.ndarray) -> Scan:
    return Scan(voxels, np.eye(4), (), "mm")


@pytest.fixture
def maps() -> dict[str, np.ndarray]:
    mine = np.zeros((10, 10, 10), np.uint8)
    mine[2:8, 2:8, 2:8] = 1
    mine[4:6, 4:6, 4:6] = 2
    its = mine.copy()
    its[4, 4, 4] = 1  # 7 of 8 tumor voxels
    label = mine.copy()
    label[4, 4, 4:6] = 1  # 6 of 8
    return {"mine": mine, "its": its, "label": label}


def test_without_a_label_the_masks_are_compared_with_each_other(maps: dict[str, np.ndarray]) -> None:
    found = agreement(lambda _: maps["mine"], lambda _: maps["its"], [([], None)], regions=REGIONS)
    assert (found["cases"], found["labeled"], found["agreement"]) == (1, 0, 0.999)
    assert found["dice_difference"] == {"liver": 0, "tumor": pytest.approx(1 - 2 * 7 / (8 + 7))}
    assert not passes(found)


def test_with_a_label_it_is_the_dice_that_must_not_differ(maps: dict[str, np.ndarray]) -> None:
    found = agreement(
        lambda _: maps["mine"], lambda _: maps["its"], [([], maps["label"]), ([], maps["label"])], regions=REGIONS
    )
    assert (found["cases"], found["labeled"]) == (2, 2)
    assert found["dice_difference"]["tumor"] == pytest.approx(abs(2 * 6 / (8 + 6) - 2 * 6 / (7 + 6)))


def test_the_worst_case_counts() -> None:
    zeros, answers = np.zeros((2, 5, 10), np.uint8), iter([0, 1])

    def other(scans: list[Scan]) -> np.ndarray:
        changed = zeros.copy()
        changed[0, 0, : next(answers)] = 1
        return changed

    found = agreement(lambda _: zeros, other, [([], None), ([], None)], regions={"liver": [1]})
    assert found["agreement"] == 0.99
    assert found["dice_difference"]["liver"] == 0.5  # a region that only one of the two has in one of two cases


def test_empty_regions_agree() -> None:
    assert overlap(np.zeros(3, bool), np.zeros(3, bool)) == 1


@pytest.mark.parametrize(
    ("share", "difference", "expected"), [(1, 0, True), (0.999, 0.001, True), (0.9989, 0, False), (1, 0.0011, False)]
)
def test_a_precision_passes_within_the_limits(share: float, difference: float, expected: bool) -> None:
    assert passes({"agreement": share, "dice_difference": {"liver": 0.0, "tumor": difference}}) is expected


def test_cases_that_cannot_be_compared_are_refused(maps: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match="there is no case to compare the precisions on; give scans"):
        agreement(lambda _: maps["mine"], lambda _: maps["its"], [], regions=REGIONS)
    with pytest.raises(DataError, match=r"a label is \(2, 2, 2\) voxels, its scan \(10, 10, 10\); export both"):
        agreement(lambda _: maps["mine"], lambda _: maps["its"], [([], np.zeros((2, 2, 2)))], regions=REGIONS)


def test_a_check_that_passed_sets_the_bundles_precision(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", version="3")
    found = {"cases": 2, "labeled": 0, "agreement": 0.9995, "dice_difference": {"liver": 0.0004}}
    assert bundle.precision == "float32"
    assert store(bundle, "bfloat16", found)
    stored = open_bundle(bundle.root)
    assert stored.precision == "bfloat16"
    assert stored.metadata["precision_check"] == {"precision": "bfloat16", "passed": True, **found}
    assert stored.version == "3"
    assert not store(stored, "bfloat16", found | {"agreement": 0.9})
    assert open_bundle(bundle.root).precision == "float32"


def test_a_zip_is_not_changed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as zipped:
        for file in bundle.root.rglob("*.*"):
            zipped.write(file, file.relative_to(tmp_path))
    with pytest.raises(ConfigError, match="model 'test net' is a zip, which is not changed; unpack it"):
        store(open_bundle(tmp_path / "bundle.zip"), "bfloat16", {"agreement": 1, "dice_difference": {}})


def test_a_summary_says_all() -> None:
    found = {"cases": 3, "labeled": 0, "agreement": 0.99951, "dice_difference": {"liver": 0.0004, "tumor": 0.01}}
    assert summary(found) == (
        "99.9510% of voxels or more equal, Dice differs by liver 0.0004, tumor 0.0100 (3 cases, against each other, "
        "none labeled)"
    )
    assert summary(found | {"labeled": 3}).endswith("(3 cases, 3 labeled)")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_checks_and_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    write_scan(tmp_path / "scans" / "a.nii.gz")
    code = run(monkeypatch, "bundle", "precision", bundle.root, tmp_path / "scans", "--device", "cpu")
    checked = json.loads((bundle.root / "configs" / "metadata.json").read_text())["precision_check"]
    assert checked["cases"] == 1
    scan = read_scan(tmp_path / "scans" / "a.nii.gz")
    masks = [Predictor.from_bundle(bundle, precision=name)([scan]) for name in ("float32", "bfloat16")]
    assert checked["agreement"] == pytest.approx(np.mean(masks[0] == masks[1]), abs=1e-3)
    assert code == (0 if checked["passed"] else 3)
    assert f"bfloat16: {checked['agreement']:.4%} of voxels or more equal" in capsys.readouterr().out
    write_nifti(masks[0], scan.affine, tmp_path / "labels" / "a.nii.gz")
    run(
        monkeypatch,
        "bundle",
        "precision",
        bundle.root,
        tmp_path / "scans",
        "--labels",
        tmp_path / "labels",
        "--device",
        "cpu",
    )
    assert open_bundle(bundle.root).metadata["precision_check"]["labeled"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "--precision: is 'int8'; give bfloat16 or float16"),
        (["--labels", "nothing"], "a: 0 labels of this name in --labels; give one each"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    write_scan(tmp_path / "scans" / "a.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "bundle", "precision", bundle.root, "scans", "--device", "cpu", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_label_on_another_grid_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    write_scan(tmp_path / "scans" / "a.nii.gz")
    write_nifti(np.zeros((21, 18, 13), np.uint8), np.eye(4), tmp_path / "labels" / "a.nii.gz")
    arguments = ["bundle", "precision", bundle.root, tmp_path / "scans", "--labels", tmp_path / "labels"]
    assert run(monkeypatch, *arguments) == 2
    assert "a: its label has another " in capsys.readouterr().err
