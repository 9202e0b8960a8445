import json
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.bundle import open_bundle, write_bundle
from medseg.errors import ConfigError
from medseg.tracking import import_runs, start_run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints
    import mlflow.pyfunc

RECIPE = {
    "labels": {"background": 0, "liver": 1},
    "regions": {"liver": [1]},
    "channels": ["ct", "late"],
    "spatial_dims": 3,
    "in_channels": 2,
    "out_channels": 2,
    "spacing_mm": [1.0, 1.0, 1.0],
    "intensity": {"_target_": "medseg.preprocessing.Window", "low_hu": -100, "high_hu": 200},
    "patch_size": [8, 8, 8],
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
    "inferer": {"_target_": "medseg.inference.SlidingWindow", "patch_size": "@patch_size"},
    "cleanup": [],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory, new_store):
    folder = tmp_path_factory.mktemp("project")
    new_store(folder / "runs")
    return folder


@pytest.fixture(autouse=True)
def store(project):
    """The project's own, for MLflow's functions too."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{(project / 'runs' / 'mlflow.db').as_posix()}")
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def run(project):
    """A finished run whose bundle is registered."""
    from medseg.networks import UNet

    run = start_run(runs_dir=project / "runs", experiment="liver")
    torch.manual_seed(0)
    state_dict = UNet(3, 2, 2, widths=(4, 8)).state_dict()
    bundle = write_bundle(run.folder / "bundle", recipe=RECIPE, metadata={"name": "liver"}, state_dict=state_dict)
    run.log_model(bundle, register_as="liver", alias="best")
    run.finish("FINISHED")
    return run


def artifacts(run):
    return run.folder.parent / "mlartifacts" / run.run_id / "artifacts"


@pytest.mark.parametrize("address", ["runs:/{run_id}/bundle", "models:/liver@best", "models:/liver/1"])
def test_recorded_model_predicts_what_the_bundle_predicts(run, address):
    image = np.random.default_rng(0).normal(size=(2, 2, 9, 11, 10)).astype(np.float32)
    model = mlflow.pyfunc.load_model(address.format(run_id=run.run_id))
    bundle = open_bundle(run.folder / "bundle")
    network, inferer = bundle.network(), bundle.build("inferer")
    with torch.inference_mode():
        logits = torch.cat([inferer(torch.from_numpy(one)[None], network) for one in image])
    found = model.predict(image)
    np.testing.assert_allclose(found, logits.softmax(1).numpy(), atol=1e-6)
    assert found.dtype == np.float32


def test_model_says_what_it_takes_and_gives(run):
    signature = mlflow.models.get_model_info(f"runs:/{run.run_id}/bundle").signature
    assert signature.inputs.inputs[0].shape == (-1, 2, -1, -1, -1)
    assert signature.outputs.inputs[0].shape == (-1, 2, -1, -1, -1)
    model = mlflow.pyfunc.load_model(f"runs:/{run.run_id}/bundle")
    with pytest.raises(mlflow.MlflowException, match="shape"):
        model.predict(np.zeros((1, 3, 8, 8, 8), np.float32))


IMAGES = {  # as configs/unet_images.json
    "channels": ["red", "green", "blue"],
    "in_channels": 3,
    "scan_to_grid": {"_target_": "medseg.preprocessing.ImageToGrid", "intensity": "@intensity"},
    "intensity": {"_target_": "medseg.preprocessing.ZScore"},
}
SLICES = {"channels": ["ct"], "in_channels": 3, "neighbors": 1}  # as configs/slices_2d.json, with neighbors


@pytest.mark.parametrize(
    ("changes", "taken"), [(IMAGES, (3, 17, 13)), (SLICES, (1, 17, 13, 5))], ids=["images", "slices"]
)
def test_model_of_a_2d_recipe_takes_what_its_signature_says(project, changes, taken):
    from medseg.networks import UNet

    windows = {"_target_": "medseg.inference.SlidingWindow", "patch_size": "@patch_size"}
    inferer = {"_target_": "medseg.inference.SliceBySlice", "inferer": windows, "neighbors": "@neighbors"}
    flat = {"spatial_dims": 2, "patch_size": [8, 8], "neighbors": 0, "inferer": inferer}
    run = start_run(runs_dir=project / "runs", experiment="flat")
    torch.manual_seed(0)
    network = UNet(2, 3, 2, widths=(4, 8)).eval()
    recipe = RECIPE | flat | changes
    if changes is IMAGES:
        del recipe["spacing_mm"]  # images have no mm
    bundle = write_bundle(
        run.folder / "bundle", recipe=recipe, metadata={"name": "flat"}, state_dict=network.state_dict()
    )
    run.log_model(bundle)
    run.finish("FINISHED")
    model = mlflow.pyfunc.load_model(f"runs:/{run.run_id}/bundle")
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, taken[0], *(-1 for _ in taken[1:]))
    image = np.random.default_rng(0).normal(size=(2, *taken)).astype(np.float32)
    found = model.predict(image)
    assert found.shape == (2, 2, *taken[1:])
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    if len(taken) == 3:  # a window as large as the image sees all of it at once
        whole = open_bundle(bundle).build("inferer").inferer
        with torch.inference_mode():
            np.testing.assert_allclose(found, whole(torch.from_numpy(image), network).softmax(1).numpy(), atol=1e-5)


def test_recorded_model_is_the_bundle_itself_and_holds_no_pickle(run):
    names = {path.relative_to(artifacts(run) / "bundle").as_posix() for path in (artifacts(run) / "bundle").rglob("*")}
    files = {name for name in names if "." in name or name == "MLmodel"}
    assert files == {
        "MLmodel",
        "requirements.txt",
        "configs/recipe.json",
        "configs/metadata.json",
        "models/model.pt",
    }
    assert open_bundle(artifacts(run) / "bundle").network() is not None
    torch.load(artifacts(run) / "bundle" / "models" / "model.pt", weights_only=True)


def test_registered_model_is_registered_once(run, project):
    import_runs(run.folder, runs_dir=project / "runs")
    (run.folder / "tracking" / "sent.json").unlink()  # so that all is sent again
    import_runs(run.folder, runs_dir=project / "runs")
    with closing(sqlite3.connect(project / "runs" / "mlflow.db")) as store:
        assert store.execute("SELECT name, version, run_id FROM model_versions").fetchall() == [
            ("liver", 1, run.run_id)
        ]
        assert store.execute("SELECT name, alias, version FROM registered_model_aliases").fetchall() == [
            ("liver", "best", 1)
        ]


def test_alias_without_a_name_is_refused(run):
    with pytest.raises(ConfigError, match="alias 'best' needs the name of a registered model"):
        run.log_model(run.folder / "bundle", alias="best")


def test_folder_that_is_no_bundle_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"is no bundle \(configs/recipe.json cannot be read\)"):
        run.log_model(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "recipe.json").write_text(json.dumps({"spatial_dims": 3, "in_channels": "two"}))
    with pytest.raises(ConfigError, match=r"in_channels of bundle .* is 'two': it must be a number"):
        run.log_model(tmp_path)


def test_model_card_holds_no_folder_of_this_machine(run, project):
    text = (artifacts(run) / "bundle" / "MLmodel").read_text()
    assert str(project) not in text
    assert str(Path.home()) + "/" not in text
