import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from medseg.bundle import open_bundle, task_metadata, without_absolute_paths, write_bundle
from medseg.errors import ConfigError
from medseg.networks import UNet
from medseg.notices import SYNTHETIC
from medseg.served import ServedBundle

RECIPE = {
    "_about_": "liver and tumor",
    "labels": {"background": 0, "liver": 1, "tumor": 2},
    "regions": {"liver": [1, 2], "tumor": [2]},
    "lesion_region": "tumor",
    "channels": ["ct"],
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "patch_size": [9, 8, 7],
    "network_def": {
        "_target_": "medseg.networks.UNet",
        "spatial_dims": "@spatial_dims",
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
        "widths": [2, 4],
    },
    "inferer": {"_target_": "medseg.inference.SlidingWindow", "patch_size": "@patch_size"},
    "dataset_dir": "/data/patients",
    "training": ["$@train::trainer.run()"],
}
METADATA = {"name": "unet_liver", "version": "0.2.0", "synthetic": False}


def network():
    return UNet(3, 1, 3, widths=(2, 4))


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle", recipe=RECIPE, metadata=METADATA, state_dict=network().state_dict())


def add_run(runs_dir, name, run_id):
    run = runs_dir / name
    write_bundle(run / "bundle", recipe=RECIPE, metadata=METADATA, state_dict=network().state_dict())
    (run / "run.json").write_text(json.dumps({"run_id": run_id, "name": name}))
    return run


def zipped(folder, archive, below):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, Path(below) / path.relative_to(folder))
    return archive


def change(bundle, file, **entries):
    path = bundle / "configs" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_written_bundle_gives_the_same_logits(tmp_path):
    trained = network().eval()
    folder = write_bundle(tmp_path / "run" / "b", recipe=RECIPE, metadata=METADATA, state_dict=trained.state_dict())
    opened = open_bundle(folder).network()
    image = torch.rand(1, 1, 9, 10, 11)
    assert not opened.training
    assert torch.equal(opened(image), trained(image))
    assert sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*.*")) == [
        "configs/metadata.json",
        "configs/recipe.json",
        "models/model.pt",
    ]
    assert not list((tmp_path / "run").glob(".*"))


def test_the_weights_are_a_plain_state_dict(bundle):
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert type(state) is dict
    assert set(state) == set(network().state_dict())


def test_a_bundle_tells_what_it_is(bundle):
    opened = open_bundle(bundle)
    assert (opened.name, opened.version, opened.root) == ("unet_liver", "0.2.0", bundle)
    assert opened.labels == {"background": 0, "liver": 1, "tumor": 2}
    assert opened.regions == {"liver": [1, 2], "tumor": [2]}
    assert opened.channels == ["ct"]
    assert opened.lesion_region == "tumor"
    assert opened.precision == "float32"
    assert opened.build("inferer").patch_size == (9, 8, 7)


def test_a_recipe_need_not_name_lesions(bundle):
    recipe = {id: content for id, content in RECIPE.items() if id != "lesion_region"}
    write_bundle(bundle, recipe=recipe, metadata=METADATA, state_dict=network().state_dict())
    assert open_bundle(bundle).lesion_region is None


def test_the_precision_is_that_of_the_innermost_inferer(bundle):
    window = {"_target_": "medseg.inference.SlidingWindow", "patch_size": [8, 8], "precision": "bfloat16"}
    change(bundle, "recipe.json", inferer={"_target_": "medseg.inference.SliceBySlice", "inferer": window})
    assert open_bundle(bundle).precision == "bfloat16"


@pytest.mark.parametrize(("synthetic", "says"), [(True, True), (False, False)])
def test_the_notice_says_when_the_data_were_synthetic(bundle, synthetic, says):
    change(bundle, "metadata.json", synthetic=synthetic)
    opened = open_bundle(bundle)
    assert opened.synthetic is says
    assert "not a medical device" in opened.notice
    assert (SYNTHETIC in opened.notice) is says


def test_the_metadata_of_a_task_keep_the_phantom_notice(bundle):
    metadata = task_metadata(METADATA, RECIPE, name="tiny", synthetic=True)
    write_bundle(bundle, recipe=RECIPE, metadata=metadata, state_dict=network().state_dict())
    opened = open_bundle(bundle)
    assert opened.name == "tiny"
    assert SYNTHETIC in opened.notice
    assert SYNTHETIC in opened.metadata["intended_use"]


def test_the_metadata_name_the_channels_that_the_network_gives():
    by_class = task_metadata(METADATA, RECIPE, name="tiny", synthetic=False)["network_data_format"]["outputs"]["pred"]
    assert by_class["channel_def"] == {"0": "background", "1": "liver", "2": "tumor"}
    recipe = RECIPE | {"activation": "sigmoid", "out_channels": 2}
    by_region = task_metadata(METADATA, recipe, name="tiny", synthetic=False)["network_data_format"]["outputs"]["pred"]
    assert by_region["channel_def"] == {"0": "liver", "1": "tumor"}
    assert by_region["num_channels"] == 2


def test_a_bundle_knows_its_activation(bundle):
    assert open_bundle(bundle).activation == "softmax"
    change(bundle, "recipe.json", activation="sigmoid", out_channels=2)
    assert open_bundle(bundle).activation == "sigmoid"


def test_a_served_model_gives_the_probabilities_of_its_activation(tmp_path):
    recipe = RECIPE | {"activation": "sigmoid", "out_channels": 2}
    folder = write_bundle(
        tmp_path / "b", recipe=recipe, metadata=METADATA, state_dict=UNet(3, 1, 2, widths=(2, 4)).state_dict()
    )
    image = torch.rand(1, 1, 9, 8, 7)
    probabilities = ServedBundle(str(folder)).predict(image.numpy())
    with torch.inference_mode():
        logits = open_bundle(folder).network()(image)
    torch.testing.assert_close(torch.from_numpy(probabilities), 1 / (1 + torch.exp(-logits)), atol=1e-5, rtol=0)


def test_folder_run_zip_and_run_id_open_the_same_bundle(tmp_path, bundle):
    run = add_run(tmp_path / "runs", "20260101-unet", "0123456789abcdef0123456789abcdef")
    models = [
        bundle,
        str(bundle),
        run,
        run / "bundle",
        zipped(bundle, tmp_path / "flat.zip", "."),
        zipped(bundle, tmp_path / "nested.zip", "unet_liver"),
        "01234567",
        "0123456789abcdef0123456789abcdef",
    ]
    for model in models:
        opened = open_bundle(model, runs_dir=tmp_path / "runs")
        assert opened.recipe["labels"] == RECIPE["labels"]
        assert len(opened.network().state_dict()) == len(network().state_dict())


def test_an_unreadable_run_is_passed_over(tmp_path):
    run = add_run(tmp_path, "good", "0123456789abcdef")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    assert open_bundle("01234567", runs_dir=tmp_path).root == run / "bundle"


def test_an_ambiguous_run_id_is_refused(tmp_path):
    add_run(tmp_path, "a", "0123456789abcdef")
    add_run(tmp_path, "b", "0123456700000000")
    with pytest.raises(ConfigError, match=r"run id '01234567' fits 2 runs \(a, b\).*give more of it"):
        open_bundle("01234567", runs_dir=tmp_path)
    assert open_bundle("012345678", runs_dir=tmp_path).root.parent.name == "a"


def test_a_run_id_nobody_has_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="run id 'deadbeef' fits no run"):
        open_bundle("deadbeef", runs_dir=tmp_path)


def test_a_run_without_a_bundle_yet_is_refused(tmp_path):
    run = tmp_path / "new"
    run.mkdir()
    (run / "run.json").write_text('{"run_id": "deadbeef00"}')
    with pytest.raises(ConfigError, match="run 'new' has written no bundle yet"):
        open_bundle("deadbeef", runs_dir=tmp_path)


def test_a_missing_model_lists_what_was_looked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"no model 'unet'.*configs/recipe.json.*a run.*zip.*MLflow run id in"):
        open_bundle("unet", runs_dir=tmp_path)


def test_a_zip_of_something_else_is_no_model(tmp_path):
    other = zipped(tmp_path / "nothing", tmp_path / "other.zip", ".")
    with pytest.raises(ConfigError, match="no model"):
        open_bundle(other)


@pytest.mark.parametrize("missing", ["configs/metadata.json", "models/model.pt"])
def test_half_a_bundle_is_refused(bundle, tmp_path, missing):
    (bundle / missing).unlink()
    for model in (bundle, zipped(bundle, tmp_path / "half.zip", ".")):
        with pytest.raises(ConfigError, match=f"is not a whole bundle.*{missing}.*copy it again"):
            open_bundle(model)


def test_a_broken_recipe_file_is_refused(bundle):
    (bundle / "configs" / "recipe.json").write_text("{")
    with pytest.raises(ConfigError, match="is not a whole bundle"):
        open_bundle(bundle)


@pytest.mark.parametrize("content", ["[]", '"text"', "null"])
def test_a_recipe_must_be_an_object(bundle, content):
    (bundle / "configs" / "recipe.json").write_text(content)
    with pytest.raises(ConfigError, match="is not a whole bundle"):
        open_bundle(bundle)


def test_an_expression_in_the_data_half_never_runs(bundle, tmp_path):
    trap = tmp_path / "ran"
    change(bundle, "recipe.json", patch_size=f"$__import__('pathlib').Path({str(trap)!r}).touch()")
    with pytest.raises(ConfigError, match="patch_size: holds the expression"):
        open_bundle(bundle)
    assert not trap.exists()


def test_the_monai_half_is_neither_read_nor_run(bundle, tmp_path):
    trap = tmp_path / "ran"
    change(bundle, "recipe.json", initialize=[f"$__import__('pathlib').Path({str(trap)!r}).touch()"], device="@nowhere")
    open_bundle(bundle).network()
    assert not trap.exists()


def test_contradictions_are_found_on_opening(bundle):
    change(bundle, "recipe.json", in_channels=2)
    with pytest.raises(ConfigError, match="recipe that cannot be used: in_channels: is 2"):
        open_bundle(bundle)


def test_a_part_that_cannot_be_built_names_model_and_id(bundle):
    change(bundle, "metadata.json", name="renamed")
    with pytest.raises(ConfigError, match="model 'renamed', scan_to_grid: is missing"):
        open_bundle(bundle).build("scan_to_grid")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_that_are_a_program_do_not_run(bundle, tmp_path):
    trap = tmp_path / "ran"
    (bundle / "models" / "model.pt").write_bytes(pickle.dumps(Trap(trap), protocol=2))
    with pytest.raises(ConfigError, match=r"model.pt of model 'unet_liver' cannot be read as plain weights"):
        open_bundle(bundle).network()
    assert not trap.exists()


def test_cut_weights_are_refused(bundle):
    weights = bundle / "models" / "model.pt"
    weights.write_bytes(weights.read_bytes()[:-500])
    with pytest.raises(ConfigError, match="cannot be read as plain weights; copy the bundle again"):
        open_bundle(bundle).network()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("head.bias"), r"lacks 1 weights \(head.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), r"has unexpected 1 weights \(extra"),
        (lambda state: state.update({"head.bias": torch.zeros(7)}), "is not of its network_def"),
    ],
)
def test_weights_of_another_network_are_refused(bundle, spoil, message):
    state = network().state_dict()
    assert "head.bias" in state
    spoil(state)
    torch.save(state, bundle / "models" / "model.pt")
    with pytest.raises(ConfigError, match=message):
        open_bundle(bundle).network()


def test_weights_that_are_no_dictionary_are_refused(bundle):
    torch.save([torch.zeros(1)], bundle / "models" / "model.pt")
    with pytest.raises(ConfigError, match="is not of its network_def"):
        open_bundle(bundle).network()


def test_writing_again_replaces_the_weights(bundle):
    better = network()
    write_bundle(bundle, recipe=RECIPE, metadata=METADATA, state_dict=better.state_dict())
    assert torch.equal(open_bundle(bundle).network().state_dict()["head.bias"], better.state_dict()["head.bias"])
    assert not list(bundle.rglob(".*"))


def test_a_failed_write_leaves_no_new_bundle_and_keeps_the_old_one(tmp_path, bundle):
    before = (bundle / "models" / "model.pt").read_bytes()
    for folder in (tmp_path / "new", bundle):
        with pytest.raises(AttributeError):
            write_bundle(folder, recipe=RECIPE, metadata=METADATA, state_dict={"head.bias": "no tensor"})
    assert (bundle / "models" / "model.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_absolute_paths_stay_behind(bundle):
    written = json.loads((bundle / "configs" / "recipe.json").read_text())
    assert written["dataset_dir"] is None
    content = {"a": ["C:\\Users\\someone\\ct", "/home/someone", "runs/phantom", "$@a + '/b'"], "b": 3}
    assert without_absolute_paths(content) == {"a": [None, None, "runs/phantom", "$@a + '/b'"], "b": 3}


def test_opening_loads_no_torch_and_predicting_no_monai(bundle):
    code = (
        "import sys; from medseg.bundle import open_bundle; opened = open_bundle(sys.argv[1]); "
        "opened.regions, opened.precision; assert 'torch' not in sys.modules; opened.network(); "
        "assert not {'monai', 'mlflow', 'ignite', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle)], check=True)
