"""The recipe of 2D images, end to end: generated skin, real nuclei; and slices that see their neighbors."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from lesion_images import best_threshold_dice, write_lesion_images
from mlflow.tracking import MlflowClient
from monai.bundle import run
from PIL import Image

from medseg.bundle import open_bundle

CHECKOUT = Path(__file__).parents[2]
RECIPE = "configs/unet_images.json"

pytestmark = pytest.mark.slow


def trained_on(dataset_dir: Path, runs: Path, **overrides: Any) -> Path:
    """Run folder of a training in this process, the only one in `runs`."""
    settings = {"dataset_dir": str(dataset_dir), "output_dir": str(runs), "device": "cpu", **overrides}
    run("training", config_file=RECIPE, logging_file=False, **settings)
    (folder,) = (path.parent for path in runs.glob("*/run.json"))
    return folder


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    """Rows of the report of a prediction, by case."""
    with (out / "report.csv").open(encoding="utf-8", newline="") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def skin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight pairs."""
    return write_lesion_images(tmp_path_factory.mktemp("skin") / "set", 48)


@pytest.fixture(scope="module")
def trained(skin: Path, tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], Path]) -> Path:
    """A training of about a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CHECKOUT)
        return trained_on(skin, new_store(tmp_path_factory.mktemp("runs")), max_epochs=25, val_interval=25)


def test_lesions_that_no_threshold_finds_are_found_in_held_out_images(skin: Path, trained: Path) -> None:
    assert best_threshold_dice(skin) < 0.3
    bundle = open_bundle(trained)
    assert bundle.unit == "px"
    assert bundle.metadata["eval_metrics"]["held_out_lesion_dice"] > 0.85


def test_the_table_of_a_training_speaks_of_pixels(trained: Path) -> None:
    client = MlflowClient(f"sqlite:///{trained.parent / 'mlflow.db'}")
    run_id = json.loads((trained / "run.json").read_text())["run_id"]
    with Path(client.download_artifacts(run_id, "held_out_cases.csv")).open(encoding="utf-8", newline="") as file:
        header, first = list(csv.reader(file))[:2]
    assert {"lesion_dice", "lesion_pred_px", "lesion_reference_px"} <= set(header)
    assert not [name for name in header if name.endswith(("_ml", "_mm"))]
    assert float(first[header.index("lesion_reference_px")]) > 100
    assert (trained / "pictures" / "held_out_worst.png").is_file()


def test_masks_lie_on_the_images_own_pixels_and_the_report_counts_them(
    skin: Path, trained: Path, predicted: Callable[..., None], tmp_path: Path
) -> None:
    predicted(skin / "images", tmp_path / "out", trained)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 48
    dice = []
    for path in (skin / "images").iterdir():
        mask = np.asarray(Image.open(tmp_path / "out" / f"{path.stem}_seg.png"))
        expert = np.asarray(Image.open(skin / "masks" / f"{path.stem}.png")) > 0
        assert mask.shape == expert.shape
        assert set(np.unique(mask)) <= {0, 1}
        assert int(rows[path.stem]["lesion_px"]) == mask.sum()
        dice.append(2 * (mask.astype(bool) & expert).sum() / (mask.sum() + expert.sum()))
    assert np.mean(dice) > 0.85


def test_inference_writes_the_commands_bytes_and_evaluation_finds_the_trainings_dice(
    skin: Path,
    trained: Path,
    in_checkout: None,
    predicted: Callable[..., None],
    new_store: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((skin / "images").iterdir())[:3]:
        (few / path.name).write_bytes(path.read_bytes())
    predicted(few, tmp_path / "out", trained)
    places = {"scans_dir": str(few), "masks_dir": str(tmp_path / "masks"), "model": str(trained), "device": "cpu"}
    run("inference", config_file=RECIPE, logging_file=False, **places)
    assert len(list((tmp_path / "masks").glob("*_seg.png"))) == 3
    for path in (tmp_path / "masks").glob("*_seg.png"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()

    runs = new_store(tmp_path / "runs")
    settings = {"dataset_dir": str(skin), "output_dir": str(runs), "model": str(trained), "device": "cpu"}
    run("evaluation", config_file=RECIPE, logging_file=False, **settings)
    (folder,) = (path.parent for path in runs.glob("*/run.json"))
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    judged = client.get_run(json.loads((folder / "run.json").read_text())["run_id"]).data.metrics
    expected = open_bundle(trained).metadata["eval_metrics"]["held_out_lesion_dice"]
    assert judged["held_out_lesion_dice"] == pytest.approx(expected, abs=1e-4)


def test_real_nuclei_in_16_bit_gray_with_a_number_each(
    shared_data: Path,
    in_checkout: None,
    predicted: Callable[..., None],
    new_store: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    source = shared_data / "img2d" / "nuclei"
    pixels, numbers = (np.asarray(Image.open(source / name)) for name in ("img2d.tif", "mask2d.tif"))
    for part, content in (("images", pixels), ("masks", numbers)):
        (tmp_path / "set" / part).mkdir(parents=True)
        for tile in range(6):
            rows, columns = divmod(tile, 3)
            cut = content[rows * 256 : rows * 256 + 256, columns * 171 : columns * 171 + 170]
            Image.fromarray(cut).save(tmp_path / "set" / part / f"tile_{tile:04d}.tif")
    gray = {"channels": ["gray"], "in_channels": 1}
    objects = {"mask_values": {"lesion": 1}, "mask_threshold": 1}
    short = {"folds": 3, "max_epochs": 15, "val_interval": 15, "batch_size": 1, "patches_per_case": 4}
    runs = new_store(tmp_path / "runs")
    model = trained_on(tmp_path / "set", runs, **gray, **objects, **short, warmup_steps=5)
    assert open_bundle(model).metadata["eval_metrics"]["held_out_lesion_dice"] > 0.8
    predicted(tmp_path / "set" / "images", tmp_path / "out", model)
    rows = rows_of(tmp_path / "out")
    assert all(row["status"] == "done" and int(row["lesion_count"]) > 5 for row in rows.values())


def test_a_real_photograph_keeps_its_size_though_the_network_sees_a_smaller_one(
    shared_data: Path,
    in_checkout: None,
    predicted: Callable[..., None],
    new_store: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    for part, pattern in (("images", "*.jpg"), ("masks", "*_segmentation.png")):
        (tmp_path / "set" / part).mkdir(parents=True)
        for path in (shared_data / "img2d" / "skin_isic2017").glob(pattern):
            (tmp_path / "set" / part / path.name).write_bytes(path.read_bytes())
    model = trained_on(
        tmp_path / "set",
        new_store(tmp_path / "runs"),
        longest_edge=192,
        folds=2,
        held_out_fraction=0.0,
        max_epochs=3,
        val_interval=3,
    )
    predicted(tmp_path / "set" / "images", tmp_path / "out", model)
    for path in (tmp_path / "set" / "images").iterdir():
        with Image.open(path) as image, Image.open(tmp_path / "out" / f"{path.stem}_seg.png") as mask:
            assert mask.size == image.size


def test_smooth_masks_stop_a_training_before_it_starts_unless_a_threshold_is_set(
    in_checkout: None, new_store: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = write_lesion_images(tmp_path / "set", 6)
    path = folder / "masks" / "skin_0000.png"
    mask = Image.open(path)
    mask.resize((mask.width * 2, mask.height * 2)).resize(mask.size, Image.Resampling.BILINEAR).save(path)
    settings = {"folds": 2, "held_out_fraction": 0.0, "max_epochs": 1, "val_interval": 1, "patch_size": [32, 32]}
    with pytest.raises(RuntimeError) as raised:
        trained_on(folder, new_store(tmp_path / "runs"), **settings)
    causes = [raised.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert any("mask pixels have values that no label has" in str(cause) for cause in causes)
    other = new_store(tmp_path / "other")
    assert open_bundle(trained_on(folder, other, mask_threshold=128, **settings)).network()


def test_slices_see_their_neighbors_in_training_and_prediction(
    phantom: Path, bundle_run: Callable[..., Path], predicted: Callable[..., None], tmp_path: Path
) -> None:
    folder = bundle_run(
        "training",
        "configs/slices_2d.json",
        dataset_dir=str(phantom),
        patch_size=[32, 32],
        neighbors=1,
        in_channels=3,
        max_epochs=1,
        device="cpu",
    )
    bundle = open_bundle(folder)
    channels = bundle.metadata["network_data_format"]["inputs"]["image"]["channel_def"]
    assert channels == {"0": "ct -1", "1": "ct", "2": "ct +1"}
    predicted(phantom / "imagesTs", tmp_path / "out", folder)
    for path in (tmp_path / "out").glob("*_seg.nii.gz"):
        scan = nib.load(phantom / "imagesTs" / path.name.replace("_seg", ""))
        assert nib.load(path).shape == scan.shape
        assert np.allclose(nib.load(path).affine, scan.affine, atol=1e-4)
