"""Bundles of several folds: averaged, and reduced to one."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.bundle import open_bundle, task_metadata, write_bundle
from medseg.data import find_scans
from medseg.errors import ConfigError
from medseg.inference import (
    Predictor,
    SlidingWindow,
    ensemble_logits,
    predict_folder,
    reduce_ensemble,
    write_ensemble,
)
from medseg.inference.ensemble import reduction
from medseg.networks import UNet
from medseg.postprocessing import label_maker
from medseg.reading import read_scan
from medseg.served import ServedBundle
from medseg.writing import write_nifti

RECIPE: dict[str, Any] = {
    "labels": {"background": 0, "liver": 1, "tumor": 2},
    "regions": {"liver": [1, 2], "tumor": [2]},
    "lesion_region": "tumor",
    "channels": ["ct"],
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "spacing_mm": [2.0, 2.0, 3.0],
    "intensity": {"_target_": "medseg.preprocessing.Window", "low_hu": -100, "high_hu": 200},
    "patch_size": [16, 14, 12],
    "network_def": {
        "_target_": "medseg.networks.UNet",
        "spatial_dims": "@spatial_dims",
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
        "widths": [4, 8],
    },
    "scan_to_grid": {
        "_target_": "medseg.preprocessing.ScanToGrid",
        "spacing_mm": "@spacing_mm",
        "intensity": "@intensity",
    },
    "inferer": {"_target_": "medseg.inference.SlidingWindow", "patch_size": "@patch_size", "overlap": 0.25},
    "cleanup": [],
}
MEASURED = {
    "best_fold": 2,
    "held_out_cases": 4,
    "dice": {"ensemble": {"liver_dice": 0.9}, "fold_0": {"liver_dice": 0.85}, "fold_2": {"liver_dice": 0.8}},
    "out_of_fold": {"fold_0": {"liver_dice": 0.7}, "fold_2": {"liver_dice": 0.75}},
    "seconds_per_case": {"ensemble": 3.0, "fold_0": 1.1, "fold_2": 1.2},
}


def member(folder: Path, fold: int, recipe: dict[str, Any] = RECIPE) -> Path:
    """The bundle of a fold with random weights."""
    torch.manual_seed(fold)
    network = UNet(3, 1, recipe["out_channels"], widths=[4, 8])
    metadata = task_metadata({}, recipe, name=f"fold {fold}", synthetic=True)
    return write_bundle(folder / f"fold_{fold}", recipe=recipe, metadata=metadata, state_dict=network.state_dict())


def ensemble(folder: Path, folds: tuple[int, ...] = (0, 2, 3), recipe: dict[str, Any] = RECIPE, **known: Any) -> Path:
    members = {fold: open_bundle(member(folder, fold, recipe)) for fold in folds}
    metadata = task_metadata({}, recipe, name="all folds", synthetic=True)
    return write_ensemble(folder / "ensemble", members, metadata=metadata, measured=MEASURED | known)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(0).integers(-200, 300, (21, 18, 13)).astype(np.int16)
    folder = tmp_path / "scans"
    write_nifti(voxels, np.diag([-1.5, 1.5, 4.0, 1.0]), folder / "a.nii.gz")
    write_nifti(voxels[:, ::-1], np.diag([2.5, 1.5, 3.0, 1.0]), folder / "b.nii.gz")
    return folder


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_an_ensemble_labels_by_the_mean_logits_of_its_folds(tmp_path: Path, scans: Path, activation: str) -> None:
    recipe = RECIPE | {"activation": activation, "out_channels": 3 if activation == "softmax" else 2}
    bundle = open_bundle(ensemble(tmp_path, recipe=recipe))
    assert bundle.folds == (0, 2, 3)
    scan = read_scan(scans / "a.nii.gz")
    image, grid = bundle.build("scan_to_grid")([scan])
    inferer = bundle.build("inferer")
    with torch.inference_mode():
        logits = torch.stack(
            [inferer(image[None], open_bundle(tmp_path / f"fold_{fold}").network()) for fold in (0, 2, 3)]
        )
        averaged = ensemble_logits(
            image[None],
            bundle.network(0),
            inferer=inferer,
            folds=[lambda fold=fold: bundle.state_dict(fold) for fold in bundle.folds],
        )
    torch.testing.assert_close(averaged, logits.double().mean(dim=0).float(), atol=1e-5, rtol=1e-5)
    expected = label_maker(activation, bundle.regions)(logits.mean(dim=0)[0], grid)
    found = Predictor.from_bundle(bundle)([scan])
    assert np.mean(found == expected) > 0.9999  # ties of float32 sums
    alone = [Predictor.from_bundle(open_bundle(tmp_path / f"fold_{fold}"))([scan]) for fold in (0, 2, 3)]
    assert not any(np.array_equal(found, other) for other in alone)


def test_no_more_than_one_folds_weights_and_the_sum_are_held() -> None:
    """Weights are read anew for each fold, and let go of before the next ones."""
    alive = 0
    most = 0

    class Weights(dict[str, Tensor]):
        def __init__(self, value: float) -> None:
            super().__init__(weight=torch.tensor([[[[value]]]]))
            nonlocal alive, most
            alive += 1
            most = max(alive, most)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    image = torch.rand(1, 1, 7, 9)
    network = nn.Conv2d(1, 1, 1, bias=False)
    with torch.inference_mode():
        logits = ensemble_logits(
            image, network, inferer=SlidingWindow([4, 4]), folds=[lambda v=v: Weights(v) for v in (1.0, 2.0, 6.0)]
        )
    torch.testing.assert_close(logits, image * 3)
    assert (alive, most) == (0, 1)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_an_ensemble_is_a_bundle_like_any_other(tmp_path: Path, scans: Path, form: str) -> None:
    model = ensemble(tmp_path)
    assert sorted(path.name for path in (model / "models").iterdir()) == ["fold_0.pt", "fold_2.pt", "fold_3.pt"]
    expected = predict_folder(find_scans(scans, channels=["ct"]), tmp_path / "expected", open_bundle(model))
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
            for path in sorted(model.rglob("*.*")):
                archive.write(path, path.relative_to(model))
        model = tmp_path / "e.zip"
    rows = predict_folder(find_scans(scans, channels=["ct"]), tmp_path / "out", open_bundle(model))
    assert [row["status"] for row in rows] == [row["status"] for row in expected] == ["done", "done"]
    for name in ("a", "b"):
        masks = [(tmp_path / out / f"{name}_seg.nii.gz").read_bytes() for out in ("expected", "out")]
        assert masks[0] == masks[1]


def test_an_ensemble_of_one_fold_predicts_what_the_fold_does(tmp_path: Path, scans: Path) -> None:
    bundle = open_bundle(ensemble(tmp_path, folds=(3,)))
    for model, out in ((bundle, "ensemble"), (open_bundle(tmp_path / "fold_3"), "fold")):
        predict_folder(find_scans(scans, channels=["ct"]), tmp_path / out, model)
    assert (tmp_path / "ensemble/a_seg.nii.gz").read_bytes() == (tmp_path / "fold/a_seg.nii.gz").read_bytes()


@pytest.mark.parametrize("fold", [0, 2, 3, None])
def test_a_reduced_ensemble_predicts_byte_for_byte_what_the_folds_own_bundle_does(
    tmp_path: Path, scans: Path, fold: int | None
) -> None:
    reduced = open_bundle(reduce_ensemble(open_bundle(ensemble(tmp_path)), tmp_path / "reduced", fold=fold))
    assert (reduced.folds, reduced.synthetic) == ((), True)
    taken = MEASURED["best_fold"] if fold is None else fold
    assert reduced.name == f"all folds-fold_{taken}"
    for model, out in ((reduced, "reduced_out"), (open_bundle(tmp_path / f"fold_{taken}"), "fold_out")):
        predict_folder(find_scans(scans, channels=["ct"]), tmp_path / out, model)
    for name in ("a_seg.nii.gz", "b_seg.nii.gz", "lesions.csv"):
        assert (tmp_path / "reduced_out" / name).read_bytes() == (tmp_path / "fold_out" / name).read_bytes()
    held_out = {"held_out_liver_dice": {0: 0.85, 2: 0.8}[taken]} if taken in (0, 2) else {}
    assert reduced.metadata["eval_metrics"] == held_out


def test_the_cost_of_a_reduction_is_said_where_it_was_measured(tmp_path: Path) -> None:
    assert reduction(open_bundle(ensemble(tmp_path)), 0) == (
        "fold 0 instead of 3 folds; Dice on 4 held-out cases: liver 0.850 (ensemble 0.900); "
        "1.10 s a case (ensemble 3.00 s)"
    )
    unknown = open_bundle(ensemble(tmp_path, dice={}, held_out_cases=0))
    assert reduction(unknown, 0) == (
        "fold 0 instead of 3 folds; Dice of the ensemble is not known: every labeled case has trained some fold "
        "(held_out_fraction sets cases aside); Dice of the fold on its own validation cases: liver 0.700; "
        "1.10 s a case (ensemble 3.00 s)"
    )


def test_a_served_ensemble_gives_the_probabilities_of_the_mean_logits(tmp_path: Path) -> None:
    bundle = ensemble(tmp_path)
    image = torch.rand(2, 1, 16, 14, 12)
    with torch.inference_mode():
        logits = [open_bundle(tmp_path / f"fold_{fold}").network()(image) for fold in (0, 2, 3)]
    probabilities = torch.from_numpy(ServedBundle(str(bundle)).predict(image.numpy()))
    expected = (sum(logits) / 3).double().exp()
    torch.testing.assert_close(probabilities.double(), expected / expected.sum(dim=1, keepdim=True), atol=1e-4, rtol=0)


def test_an_ensemble_written_again_holds_the_new_folds_alone(tmp_path: Path) -> None:
    ensemble(tmp_path)
    bundle = open_bundle(ensemble(tmp_path, folds=(1,)))
    assert bundle.folds == (1,)
    assert [path.name for path in (tmp_path / "ensemble" / "models").iterdir()] == ["fold_1.pt"]
    assert not list(tmp_path.glob(".*"))


def test_an_ensemble_has_no_single_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'all folds' is an ensemble of 3 folds.*medseg bundle reduce MODEL OUT"):
        open_bundle(ensemble(tmp_path)).network()
    with pytest.raises(ConfigError, match=r"fold 1: model 'all folds' has the folds 0, 2, 3; choose another"):
        open_bundle(tmp_path / "ensemble").network(1)
    with pytest.raises(ConfigError, match=r"fold 1: model 'fold 0' is no ensemble of folds"):
        open_bundle(tmp_path / "fold_0").network(1)


def test_an_ensemble_that_lacks_a_fold_is_not_whole(tmp_path: Path) -> None:
    folder = ensemble(tmp_path)
    (folder / "models" / "fold_2.pt").unlink()
    with pytest.raises(ConfigError, match=r"not a whole bundle .*no models/fold_2.pt; copy it again"):
        open_bundle(folder)


def test_wrong_weights_of_a_later_fold_are_found_before_the_first_case(tmp_path: Path) -> None:
    folder = ensemble(tmp_path)
    (folder / "models" / "fold_3.pt").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"models/fold_3.pt of model 'all folds' cannot be read as plain weights"):
        Predictor.from_bundle(open_bundle(folder))


def test_folds_of_different_recipes_make_no_ensemble(tmp_path: Path) -> None:
    members = {0: open_bundle(member(tmp_path, 0)), 1: open_bundle(member(tmp_path, 1))}
    recipe = tmp_path / "fold_1" / "configs" / "recipe.json"
    recipe.write_text(json.dumps(RECIPE | {"spacing_mm": [1.0, 1.0, 1.0]}))
    members[1] = open_bundle(tmp_path / "fold_1")
    with pytest.raises(ConfigError, match=r"fold 1 was trained with another scan_to_grid, spacing_mm than fold 0"):
        write_ensemble(tmp_path / "e", members, metadata={}, measured={})
    with pytest.raises(ConfigError, match="an ensemble needs the bundle of one fold or more"):
        write_ensemble(tmp_path / "e", {}, metadata={}, measured={})
    nested = {0: open_bundle(ensemble(tmp_path))}
    with pytest.raises(ConfigError, match="fold 0 is an ensemble itself"):
        write_ensemble(tmp_path / "e", nested, metadata={}, measured={})


def test_what_cannot_be_reduced_is_said(tmp_path: Path) -> None:
    bundle = open_bundle(ensemble(tmp_path))
    with pytest.raises(ConfigError, match=r"fold 1 is not in it; give --fold with one of 0, 2, 3"):
        reduce_ensemble(bundle, tmp_path / "out", fold=1)
    with pytest.raises(ConfigError, match="is there already; choose another OUT"):
        reduce_ensemble(bundle, tmp_path, fold=0)
    with pytest.raises(ConfigError, match="'fold 0' is no ensemble of folds; there is nothing to reduce"):
        reduce_ensemble(open_bundle(tmp_path / "fold_0"), tmp_path / "out")
    bundle.metadata["ensemble"].pop("best_fold")
    with pytest.raises(ConfigError, match="no fold is known to be the best; give --fold"):
        reduce_ensemble(bundle, tmp_path / "out")
