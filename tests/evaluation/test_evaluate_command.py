"""`medseg evaluate` on folders that are not as they should be, with readers, tables and probabilities."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_cases import AFFINE, RECIPE, SHAPE, reference, write_planted
from small_bundle import make_bundle
from typer.testing import CliRunner

from medseg.cli import app
from medseg.errors import ConfigError, DataError
from medseg.evaluation.judging import Task, judge, judge_all
from medseg.evaluation.judgment import Judgment
from medseg.inference.cases import Case
from medseg.inference.run_file import write_run
from medseg.inference.settings import RunSettings
from medseg.notices import SYNTHETIC
from medseg.report.measurements import write_csv
from medseg.writing import write_mask_png, write_nifti

JUDGMENT = Judgment.of_recipe(RECIPE)


def run(*arguments: Any) -> tuple[int, str]:
    told = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if isinstance(told.exception, (ConfigError, DataError)):
        raise told.exception
    assert told.exception is None or isinstance(told.exception, SystemExit), told.output
    return told.exit_code, told.output


def content(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text(encoding="utf-8")))


def lines(out: Path) -> dict[str, dict[str, Any]]:
    read = [json.loads(line) for line in (out / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["case_id"]: line for line in read}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Masks, references and OUT of five cases, masks as of another program."""
    masks, references, _ = write_planted(tmp_path, cases=5)
    (masks / "report.csv").unlink()
    return masks, references, tmp_path / "card"


def test_a_mask_on_another_grid_is_one_line_and_a_failure(folders: tuple[Path, Path, Path]) -> None:
    masks, references, out = folders
    moved = AFFINE.copy()
    moved[0, 3] = 4.0
    write_nifti(reference(1), moved, masks / "case_001_seg.nii.gz")
    code, _ = run(masks, out, "--ref", references)
    assert code == 3
    line = lines(out)["case_001"]
    assert line["status"] == "failed"
    assert line["message"].startswith("case_001_seg.nii.gz: not on the reference's grid")
    assert line["metrics"]["regions"]["liver"]["dice_all"] == 0
    assert content(out)["about"]["n"] == 5


def test_a_mask_that_is_missing_counts_unless_it_was_never_asked_for(folders: tuple[Path, Path, Path]) -> None:
    masks, references, out = folders
    (masks / "case_002_seg.nii.gz").unlink()
    run(masks, out, "--ref", references)
    assert lines(out)["case_002"]["status"] == "failed"
    assert content(out)["summary"]["liver_dice_all"]["mean"] == pytest.approx(4 / 5)
    code, output = run(masks, out, "--ref", references, "--only-predicted")
    assert lines(out)["case_002"]["status"] == "missing"
    assert content(out)["about"] | {"n": 4, "missing": 1, "failed": 0} == content(out)["about"]
    assert content(out)["summary"]["liver_dice_all"]["mean"] == pytest.approx(1)
    assert code == 3
    assert "1 references not judged" in output
    assert "case_002" in (out / "index.html").read_text(encoding="utf-8")


def test_a_mask_without_reference_is_named(folders: tuple[Path, Path, Path]) -> None:
    masks, references, out = folders
    (references / "case_003.nii.gz").unlink()
    code, _ = run(masks, out, "--ref", references)
    assert code == 0
    assert content(out)["about"]["without_reference"] == ["case_003"]
    assert "Masks without reference: 1" in (out / "index.html").read_text(encoding="utf-8")


def test_a_reference_that_cannot_be_read_is_no_failure_of_the_model(folders: tuple[Path, Path, Path]) -> None:
    masks, references, out = folders
    path = references / "case_004.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    run(masks, out, "--ref", references)
    line = lines(out)["case_004"]
    assert line["status"] == "missing"
    assert line["message"].startswith("the reference cannot be used: case_004.nii.gz")
    assert content(out)["about"]["failed"] == 0


def test_a_failed_case_is_worst_even_where_the_reference_is_empty(tmp_path: Path) -> None:
    write_nifti(np.zeros(SHAPE, dtype=np.uint8), AFFINE, tmp_path / "a.nii.gz")
    record = judge(Task("a", None, tmp_path / "a.nii.gz", JUDGMENT, message="gone"))
    assert record.metrics is not None
    assert record.metrics.regions["tumor"]["empty"] == "both"
    assert record.metrics.regions["tumor"]["dice_all"] == 0
    assert record.metrics.lesions is not None
    assert record.metrics.lesions["lesion_f1_all"] == 0
    assert record.metrics.regions["tumor"]["dice"] is None


@pytest.mark.slow
def test_processes_find_what_one_process_finds(folders: tuple[Path, Path, Path]) -> None:
    masks, references, _ = folders
    ids = [f"case_{number:03d}" for number in range(5)]
    tasks = [Task(id, masks / f"{id}_seg.nii.gz", references / f"{id}.nii.gz", JUDGMENT) for id in ids]
    ticks: list[int] = []
    assert judge_all(tasks, jobs=2) == judge_all(tasks, jobs=1, done=lambda: ticks.append(1))
    assert len(ticks) == 5


def test_readers_stand_beside_the_model(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    masks, references, out = folders
    for number in range(5):
        moved = np.roll(reference(number), 1, axis=0)
        write_nifti(moved, AFFINE, tmp_path / "second" / f"case_{number:03d}.nii.gz")
    run(masks, out, "--ref", references, "--ref", f"second={tmp_path / 'second'}")
    rows = {(row["first"], row["second"], row["region"]): row for row in content(out)["readers"]}
    one = reference(0) == 2
    other = np.roll(one, 1, axis=0)
    dice = 2 * (one & other).sum() / (one.sum() + other.sum())
    assert rows["model", "reference", "tumor"]["dice"]["mean"] == 1
    assert rows["reference", "second", "tumor"]["n"] == 5
    assert rows["reference", "second", "tumor"]["dice"]["min"] == pytest.approx(dice, abs=0.02)
    assert rows["model", "second", "tumor"]["dice"] == rows["reference", "second", "tumor"]["dice"]
    assert (out / "readers.csv").read_text(encoding="utf-8").count("\n") == 1 + 6


def test_a_majority_of_readers_is_what_two_of_three_say(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    masks, references, out = folders
    for number in range(5):
        write_nifti(reference(number), AFFINE, tmp_path / "second" / f"case_{number:03d}.nii.gz")
        wrong = np.zeros(SHAPE, dtype=np.uint8)
        write_nifti(wrong, AFFINE, tmp_path / "third" / f"case_{number:03d}.nii.gz")
    readers = ["--ref", references, "--ref", f"second={tmp_path / 'second'}", "--ref", f"third={tmp_path / 'third'}"]
    run(masks, out, *readers, "--consensus", "majority")
    assert content(out)["summary"]["tumor_dice"]["mean"] == 1
    assert content(out)["about"]["reference"] == "majority of reference, second, third"
    with pytest.raises(ConfigError, match="consensus majority: 2 readers, and it needs 3"):
        run(masks, out, *readers[:4], "--consensus", "majority")
    run(masks, out, *readers[:4], "--consensus", "staple")
    assert content(out)["summary"]["tumor_dice"]["mean"] == 1


def test_probabilities_give_calibration_and_froc(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    masks, references, out = folders
    (tmp_path / "prob").mkdir()
    for number in range(5):
        label = reference(number)
        sure = np.stack([np.where(label == value, 0.8, 0.1) for value in range(3)])
        np.savez_compressed(tmp_path / "prob" / f"case_{number:03d}.npz", probabilities=sure.astype(np.float16))
    run(masks, out, "--ref", references, "--probabilities", tmp_path / "prob")
    # a tumor voxel has 0.8 and is one in all cases, the others 0.1 and are none
    assert content(out)["calibration"]["tumor"]["ece"] == pytest.approx(0.1, abs=0.1)
    assert content(out)["calibration"]["tumor"]["curve"][-1]["probability"] == pytest.approx(0.8, abs=1e-3)
    assert content(out)["froc"]["froc_score"] == 1
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "FROC score 1.000" in page
    assert "Expected calibration error" in page
    np.savez_compressed(tmp_path / "prob" / "case_000.npz", probabilities=sure[:, :3].astype(np.float16))
    run(masks, out, "--ref", references, "--probabilities", tmp_path / "prob")
    assert "write them as (C, X, Y, Z)" in lines(out)["case_000"]["message"]


def test_cases_without_probabilities_are_named(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    masks, references, out = folders
    array = tmp_path / "prob" / "other_000.npz"
    array.parent.mkdir()
    sure = np.stack([np.where(reference(0) == value, 0.8, 0.1) for value in range(3)])
    np.savez_compressed(array, probabilities=sure.astype(np.float16))
    with pytest.raises(DataError, match=r"prob: none of its probabilities .* they are other_000, cases case_000"):
        run(masks, out, "--ref", references, "--probabilities", array.parent)
    array.rename(array.with_name("case_000.npz"))
    _, output = run(masks, out, "--ref", references, "--probabilities", array.parent)
    warning = "4 cases have a mask and no probabilities: case_001, case_002, case_003, case_004"
    assert f"warning: {warning}" in output
    assert warning in (out / "index.html").read_text(encoding="utf-8")


def test_scores_of_the_masks_own_lesion_table_give_froc_too(folders: tuple[Path, Path, Path]) -> None:
    masks, references, out = folders
    rows = [
        {"case_id": f"case_{number:03d}", "lesion": lesion, "mean_probability": 0.9}
        for number in range(5)
        for lesion in (1, 2)
    ]
    write_csv(masks / "lesions.csv", rows, list(rows[0]))
    run(masks, out, "--ref", references)
    assert content(out)["froc"]["thresholds"] == [0.9]


def test_a_table_tells_patients_phases_and_what_was_annotated(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    masks, references, out = folders
    rows = [
        {"case_id": f"case_{n:03d}", "patient": f"p{n // 2}", "phase": "late" if n else "early", "labeled": ""}
        for n in range(5)
    ]
    rows[4]["labeled"] = "liver"
    write_csv(tmp_path / "cases.csv", rows, list(rows[0]))
    run(masks, out, "--ref", references, "--cases", tmp_path / "cases.csv", "--group", "patient")
    assert content(out)["about"]["patients"] == 3
    assert content(out)["subgroups"]["phase"]["late"]["n"] == 4
    assert content(out)["subgroups"]["patient"]["p0"]["n"] == 2
    assert content(out)["summary"]["tumor_dice"]["n"] == 4
    with pytest.raises(ConfigError, match="--group scanner: no such column; there are case_id"):
        run(masks, out, "--ref", references, "--cases", tmp_path / "cases.csv", "--group", "scanner")
    run(masks, out, "--ref", references, "--patient-pattern", r"case_0(\d)")
    assert content(out)["about"]["patients"] == 1
    with pytest.raises(ConfigError, match=r"--patient-pattern 'x.x.': does not match case 'case_000'"):
        run(masks, out, "--ref", references, "--patient-pattern", "x(x)")


def test_validation_cases_are_not_called_held_out(folders: tuple[Path, Path, Path]) -> None:
    masks, references, out = folders
    _, output = run(masks, out, "--ref", references, "--split", "validation")
    assert content(out)["about"]["held_out"] is False
    assert "warning: These are validation cases" in output
    run(masks, out, "--ref", references)
    assert content(out)["about"]["held_out"] == "unknown"


def test_an_edited_mask_is_named(tmp_path: Path) -> None:
    masks, references, _ = write_planted(tmp_path, cases=2)
    text = (masks / "report.csv").read_text(encoding="utf-8").replace("case_001,done", "case_001,edited")
    (masks / "report.csv").write_text(text, encoding="utf-8")
    run(masks, tmp_path / "card", "--ref", references)
    assert [finding["kind"] for finding in lines(tmp_path / "card")["case_001"]["findings"]] == ["edited"]


def test_masks_of_images_are_judged_in_pixels(tmp_path: Path) -> None:
    recipe = {
        "labels": {"background": 0, "lesion": 1},
        "regions": {"lesion": [1]},
        "lesion_region": "lesion",
        "mask_values": {"lesion": 255},
        "scan_to_grid": {"_target_": "medseg.preprocessing.ImageToGrid"},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    for name in ("a", "b"):
        mask = np.zeros((30, 20, 1), dtype=np.uint8)
        mask[5:15, 5:15] = 1
        (tmp_path / "ref").mkdir(exist_ok=True)
        (tmp_path / "pred").mkdir(exist_ok=True)
        write_mask_png(mask * 255, tmp_path / "ref" / f"{name}.png")
        mask[10:15] *= name == "a"
        write_mask_png(mask, tmp_path / "pred" / f"{name}_seg.png")
    run(tmp_path / "pred", tmp_path / "card", "--ref", tmp_path / "ref", "--recipe", tmp_path / "recipe.json")
    assert lines(tmp_path / "card")["b"]["metrics"]["regions"]["lesion"]["dice"] == pytest.approx(2 * 50 / 150)
    assert content(tmp_path / "card")["agreement"]["lesion"]["unit"] == "px"
    summary = content(tmp_path / "card")["summary"]
    assert summary["lesion_dice"]["mean"] == pytest.approx((1 + 2 * 50 / 150) / 2)  # of the region, which has this name
    assert summary["lesions_recall"]["mean"] == 1
    assert summary["lesion_recall"]["mean"] == pytest.approx(0.75)
    assert lines(tmp_path / "card")["a"]["metrics"]["regions"]["lesion"]["hd95_px"] == 0


def test_masks_without_a_word_on_their_labels_need_a_model(folders: tuple[Path, Path, Path]) -> None:
    masks, references, out = folders
    (masks / "run.json").unlink()
    with pytest.raises(ConfigError, match="OUT: which label is what is not said there; add --model"):
        run(masks, out, "--ref", references)
    with pytest.raises(ConfigError, match="two readers are called 'reference'"):
        run(masks, out, "--ref", references, "--ref", references, "--recipe", "configs/unet_liver.json")
    with pytest.raises(ConfigError, match=r"nothing\.json: no recipe can be read there"):
        run(masks, out, "--ref", references, "--recipe", "nothing.json")
    code, _ = run(masks, out, "--ref", references, "--recipe", "configs/unet_liver.json")
    assert code == 0


def test_masks_of_predict_are_judged_without_their_model_and_keep_its_notice(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "model")
    case = Case("a", ())
    masks, references = tmp_path / "OUT", tmp_path / "ref"
    write_nifti(reference(0), AFFINE, masks / "a_seg.nii.gz")
    write_nifti(reference(0), AFFINE, references / "a.nii.gz")
    write_run(masks, RunSettings.of(bundle), command=[], cases=[case], to_do=1, device="cpu", bundle=bundle)
    code, output = run(masks, tmp_path / "card", "--ref", references)
    assert code == 0
    assert SYNTHETIC in output
    assert SYNTHETIC in (tmp_path / "card" / "index.html").read_text(encoding="utf-8")
    about = content(tmp_path / "card")["about"]
    assert (about["model"], about["precision"]) == ("test net", "float32")
    assert lines(tmp_path / "card")["a"]["metrics"]["settings"]["regions"] == {"liver": [1, 2], "tumor": [2]}


def test_a_case_that_lacks_a_reader_is_named(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    masks, references, out = folders
    for number in range(3):
        write_nifti(reference(number), AFFINE, tmp_path / "second" / f"case_{number:03d}.nii.gz")
    readers = ["--ref", references, "--ref", f"second={tmp_path / 'second'}"]
    _, output = run(masks, out, *readers, "--consensus", "staple")
    assert "2 cases lack a reader and are not judged: case_003, case_004" in output
    assert content(out)["about"]["n"] == 3


def test_what_is_compared_with_itself_is_refused_and_nothing_is_written_over(folders: tuple[Path, Path, Path]) -> None:
    masks, references, out = folders
    before = {path: path.read_bytes() for path in masks.iterdir()}
    with pytest.raises(ConfigError, match=r"--ref reference is the same folder as PRED"):
        run(masks, out, "--ref", masks / ".." / masks.name)
    with pytest.raises(ConfigError, match=r"--ref b is the same folder as --ref a"):
        run(masks, out, "--ref", f"a={references}", "--ref", f"b={references}")
    with pytest.raises(ConfigError, match=r"OUT is the same folder as PRED"):
        run(masks, masks, "--ref", references)
    assert {path: path.read_bytes() for path in masks.iterdir()} == before
    assert not out.exists()


def test_out_that_is_a_file_is_refused(folders: tuple[Path, Path, Path]) -> None:
    masks, references, out = folders
    out.write_text("mine")
    with pytest.raises(ConfigError, match="card: OUT is a file; give a folder"):
        run(masks, out, "--ref", references)
    assert out.read_text() == "mine"


def test_patients_of_whom_some_are_not_named_are_not_called_known(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    masks, references, out = folders
    write_csv(tmp_path / "cases.csv", [{"case_id": "case_000", "patient": "7"}], ["case_id", "patient"])
    run(masks, out, "--ref", references, "--cases", tmp_path / "cases.csv")
    assert content(out)["about"] | {"patients": 5, "patients_known": False} == content(out)["about"]


def test_false_alarms_per_case_are_of_cases_whose_lesions_were_judged(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    masks, references, out = folders
    alarm = reference(0)
    alarm[2:5, 2:5, 2:5] = 2
    write_nifti(alarm, AFFINE, masks / "case_000_seg.nii.gz")
    rows = [
        {"case_id": f"case_{case:03}", "lesion": lesion, "mean_probability": 0.5}
        for case in range(5)
        for lesion in range(1, 20)
    ]
    write_csv(masks / "lesions.csv", rows, list(rows[0]))
    table = [{"case_id": f"case_{case:03}", "labeled": "" if case < 2 else "liver"} for case in range(5)]
    write_csv(tmp_path / "cases.csv", table, list(table[0]))
    run(masks, out, "--ref", references, "--cases", tmp_path / "cases.csv")
    assert content(out)["froc"]["false_alarms_per_case"] == [0.5]  # one, in the two cases that have tumors annotated


def test_where_every_case_failed_the_card_says_so(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, references, out = folders
    masks = tmp_path / "all_failed"
    rows = [{"case_id": f"case_{case:03}", "status": "failed", "message": "damaged"} for case in range(5)]
    write_csv(masks / "report.csv", rows, list(rows[0]))
    (masks / "run.json").write_text(json.dumps({"judgment": RECIPE}))
    code, _ = run(masks, out, "--ref", references)
    assert code == 3
    assert content(out)["about"] | {"n": 5, "failed": 5} == content(out)["about"]
    assert content(out)["summary"]["liver_dice_all"]["mean"] == 0


def test_a_reference_of_which_nothing_is_labeled_is_no_success(folders: tuple[Path, Path, Path]) -> None:
    masks, references, _ = folders
    write_nifti(np.full(SHAPE, 255, dtype=np.uint8), AFFINE, references / "case_001.nii.gz")
    judgment = Judgment.of_recipe({**RECIPE, "ignore_label": 255})
    told = judge(Task("case_001", masks / "case_001_seg.nii.gz", references / "case_001.nii.gz", judgment))
    assert (told.status, told.counted, told.message) == ("missing", False, "nothing of the reference is labeled")
