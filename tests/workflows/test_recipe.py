import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lesion_images import write_lesion_images
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from monai.bundle import run as run_bundle

from medseg.errors import ConfigError
from workflows import recipe as recipe_module
from workflows.failure import failure_line
from workflows.recipe import data_half, merged_recipe, overrides, prepare

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

ROOT = Path(__file__).parents[2]
RECIPE = {
    "_about_": "tiny",
    "imports": ["$import workflows.recipe as recipe"],
    "labels": {"background": 0, "liver": 1},
    "regions": {"liver": [1]},
    "channels": ["ct"],
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "patch_size": [8, 9, 10],
    "network_def": {
        "_target_": "medseg.networks.UNet",
        "spatial_dims": "@spatial_dims",
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
        "widths": [2, 4],
    },
    "without_dataset": {"phantom_dir": "runs/phantom", "overlay": "configs/quick.json"},
    "bundle_root": ".",
    "dataset_dir": None,
    "max_epochs": 10,
    "batch_size": 4,
    "steps": ["recipe"],
    "train": {
        "trainer": {"_target_": "types.SimpleNamespace", "max_epochs": "@max_epochs", "data": "@dataset_dir"},
        "loader": {"_target_": "types.SimpleNamespace", "batch_size": "@batch_size", "steps": "@steps"},
    },
    "initialize": ["$recipe.prepare()"],
    "training": [
        "$@train::trainer.max_epochs",
        "$@train::loader.batch_size",
        "$@train::trainer.data",
        "$@train::loader.steps",
    ],
    "inference": ["$@batch_size"],
    "run": "@training",
}
QUICK = {"batch_size": 1, "max_epochs": 2, "+steps": ["quick"]}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder like the repository's root, with a tiny recipe; what a run changes in this process is undone."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text('{"version": "0.0.1"}')
    write(tmp_path, "tiny", RECIPE)
    write(tmp_path, "quick", QUICK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(recipe_module, "_prepared", {})
    return tmp_path


@pytest.fixture
def phantoms(monkeypatch):
    """Folders that were asked for, instead of phantoms."""
    made = []

    def make(out_dir):
        made.append(Path(out_dir).as_posix())
        Path(out_dir).mkdir(parents=True)
        (Path(out_dir) / "dataset.json").write_text("{}")

    monkeypatch.setattr("medseg.data.make_phantom", make)
    return made


def write(project, name, content):
    path = project / "configs" / f"{name}.json"
    path.write_text(json.dumps(content))
    return f"configs/{name}.json"


def start(*files, run_id="training", **settings):
    """The results of the expressions that a run consists of."""
    workflow = create_workflow(run_id=run_id, config_file=list(files) or "configs/tiny.json", **settings)
    return workflow.run()


def refusal(*files, **settings):
    with pytest.raises(RuntimeError) as info:
        start(*files, **settings)
    return failure_line(info.value)


def test_a_sound_recipe_runs(project, phantoms):
    assert start(dataset_dir="ct") == [10, 4, "ct", ["recipe"]]
    assert phantoms == []


def test_what_ran_is_known_afterwards(project):
    start(dataset_dir="ct", **{"max_epochs": 2, "train::trainer::max_epochs": 3})
    assert overrides() == {"dataset_dir": "ct", "max_epochs": 2, "train::trainer::max_epochs": 3}
    assert merged_recipe()["train"]["trainer"]["max_epochs"] == 3
    assert merged_recipe()["max_epochs"] == 2
    assert merged_recipe()["imports"] == RECIPE["imports"]  # nothing is evaluated
    assert "_meta_" not in merged_recipe()
    merged_recipe()["labels"]["liver"] = 7
    assert merged_recipe()["labels"] == RECIPE["labels"]


def test_nothing_is_known_before(project):
    assert overrides() == {}
    with pytest.raises(ConfigError, match=r"no recipe is running; put .*prepare.* first"):
        merged_recipe()


def test_macros_are_expanded_in_what_is_recorded(project):
    write(project, "networks", {"small": {**RECIPE["network_def"], "widths": [3, 5]}})
    start(dataset_dir="ct", network_def="%configs/networks.json::small")
    assert data_half(merged_recipe())["network_def"]["widths"] == [3, 5]
    assert data_half(merged_recipe())["network_def"]["out_channels"] == 2


def test_later_files_and_then_the_command_line_win(project):
    later = write(project, "later", {"max_epochs": 5, "batch_size": 6})
    assert start("configs/tiny.json", later, dataset_dir="ct", batch_size=7)[:2] == [5, 7]


def test_arguments_may_come_from_a_file(project):
    (project / "args.json").write_text(
        json.dumps({"config_file": "configs/tiny.json", "run_id": "training", "dataset_dir": "ct", "batch_size": 3})
    )
    workflow = create_workflow(args_file="args.json", max_epochs=1)
    assert workflow.run()[:2] == [1, 3]
    assert overrides() == {"dataset_dir": "ct", "batch_size": 3, "max_epochs": 1}


def test_monai_can_run_it_by_its_default_id(project):
    run_bundle(config_file="configs/tiny.json", dataset_dir="ct", batch_size=3)
    assert overrides() == {"dataset_dir": "ct", "batch_size": 3}


def test_a_misspelled_override_is_refused(project, phantoms):
    for settings in ({"dataset_dir": "ct"}, {}):  # with and without the phantom
        line = refusal(max_epoch=2, **settings)
        assert line == (
            "medseg: ConfigError: --max_epoch: nothing in the recipe uses this name (did you mean 'max_epochs'?)"
        )
    assert phantoms == []


def test_all_problems_come_at_once(project):
    line = refusal(dataset_dir="ct", batchsize=2, in_channels=2)
    assert "--batchsize: nothing in the recipe uses this name (did you mean 'batch_size'?); in_channels: is 2" in line


def test_a_refused_recipe_has_not_read_any_data(project):
    write(project, "tiny", RECIPE | {"cases": "$1 / 0", "seed": "@cases", "in_channels": 2})
    assert refusal(dataset_dir="ct").startswith("medseg: ConfigError: in_channels: is 2")


def test_without_a_data_set_the_phantom_is_made_once(project, phantoms, caplog):
    caplog.set_level(logging.INFO, "workflows")
    for _ in range(2):
        assert start() == [2, 1, "runs/phantom", ["recipe", "quick"]]
    assert phantoms == ["runs/phantom"]
    said = [record.getMessage() for record in caplog.records if record.name == "workflows.recipe"]
    assert len(said) == 2
    assert said[0].startswith("no dataset_dir given: using the synthetic phantom in runs/phantom with the numbers of")
    assert "configs/quick.json" in said[0]
    assert "--dataset_dir FOLDER" in said[0]


def test_command_line_and_later_files_win_over_the_overlay(project, phantoms):
    later = write(project, "later", {"batch_size": 6, "train::trainer::max_epochs": "$@max_epochs + 1"})
    assert start(max_epochs=8)[:2] == [8, 1]
    assert start("configs/tiny.json", later)[:2] == [3, 6]
    assert start("configs/tiny.json", later, max_epochs=20, batch_size=9)[:2] == [21, 9]
    assert overrides() == {"max_epochs": 20, "batch_size": 9}


def test_an_overlay_given_by_hand_is_not_merged_twice(project, phantoms):
    assert start("configs/tiny.json", "configs/quick.json")[3] == ["recipe", "quick"]


def test_what_the_overlay_changes_is_recorded(project, phantoms):
    start()
    assert merged_recipe()["batch_size"] == 1
    assert merged_recipe()["dataset_dir"] == "runs/phantom"
    assert overrides() == {}


def test_an_overlay_is_checked_like_the_recipe(project, phantoms):
    write(project, "quick", {"max_epoch": 1})
    assert "ConfigError: max_epoch: nothing in the recipe uses this name" in refusal()
    assert phantoms == []


def test_a_phantom_without_an_overlay_keeps_the_recipes_numbers(project, phantoms, caplog):
    write(project, "tiny", RECIPE | {"without_dataset": {"phantom_dir": "runs/other"}})
    assert start() == [10, 4, "runs/other", ["recipe"]]
    assert "with the numbers of" not in caplog.text


def test_a_run_that_reads_no_data_set_needs_no_phantom(project, phantoms):
    assert start(run_id="inference") == [4]
    assert phantoms == []


def test_without_data_set_and_phantom_the_option_is_named(project):
    write(project, "tiny", {id: content for id, content in RECIPE.items() if id != "without_dataset"})
    assert refusal() == (
        "medseg: ConfigError: dataset_dir: is not set, and the recipe has no without_dataset; give --dataset_dir FOLDER"
    )


def test_a_missing_overlay_is_named(project, phantoms):
    (project / "configs" / "quick.json").unlink()
    assert "there is no file configs/quick.json; start from the repository root" in refusal()


def test_monais_own_tracking_and_the_phantom_exclude_each_other(project, phantoms):
    tracking = {"handlers_id": {}, "configs": {}}
    assert "--tracking: medseg tracks every run itself" in refusal(tracking=tracking, save_execute_config=False)


def test_a_workflow_made_by_hand_is_checked_and_filled_in(project, phantoms):
    workflow = ConfigWorkflow(config_file="configs/tiny.json", run_id="training")
    workflow.initialize()
    assert workflow.run() == [2, 1, "runs/phantom", ["recipe", "quick"]]
    assert overrides() == {}


def test_a_workflow_made_by_hand_may_be_changed(project):
    settings = {"dataset_dir": "ct", "train::trainer::max_epochs": 3}
    workflow = ConfigWorkflow(config_file="configs/tiny.json", run_id="training", **settings)
    workflow.initialize()
    assert workflow.run()[0] == 3
    wrong = ConfigWorkflow(config_file="configs/tiny.json", run_id="training", dataset_dir="ct", max_epoch=3)
    with pytest.raises(RuntimeError) as info:
        wrong.initialize()
    assert "ConfigError: max_epoch: nothing in the recipe uses this name" in failure_line(info.value)


def test_prepare_may_be_named_as_a_component(project):
    write(project, "tiny", RECIPE | {"imports": [], "initialize": [{"_target_": "workflows.recipe.prepare"}]})
    assert start(dataset_dir="ct")[0] == 10
    assert "did you mean 'max_epochs'" in refusal(dataset_dir="ct", max_epoch=1)


def test_prepare_outside_a_run_says_so(project):
    with pytest.raises(ConfigError, match=r"works only within `python -m monai.bundle run`"):
        prepare()


def bundle_run(project, *arguments, **environment):
    """The documented command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_documented_command_runs(project):
    write(project, "tiny", RECIPE | {"training": ["$print('RAN', vars(@train::trainer), vars(@train::loader))"]})
    files = "['configs/tiny.json','configs/quick.json']"
    settings = ["--dataset_dir", "ct", "--max_epochs", "2", "--train::trainer::max_epochs", "3"]
    done = bundle_run(project, "training", "--config_file", files, *settings)
    assert done.returncode == 0, done.stderr
    assert "RAN {'max_epochs': 3, 'data': 'ct'} {'batch_size': 1, 'steps': ['recipe', 'quick']}" in done.stdout


@pytest.mark.slow
def test_a_misspelled_override_ends_in_our_line(project):
    arguments = ["training", "--config_file", "configs/tiny.json", "--max_epoch", "2"]
    done = bundle_run(project, *arguments, MEDSEG_ONE_LINE="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("medseg: ConfigError: --max_epoch: nothing in the recipe uses")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_bad_data_end_in_our_line_below_where_they_were_found(project):
    find_cases = {"_target_": "medseg.data.find_cases", "dataset_dir": "@dataset_dir", "channels": "@channels"}
    write(project, "tiny", RECIPE | {"cases": find_cases, "steps": "@cases"})
    done = bundle_run(project, "--config_file", "configs/tiny.json", "--dataset_dir", "nowhere")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("medseg: DataError: ")
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_the_projects_logging_goes_to_stdout(project):
    (project / "configs" / "logging.conf").write_bytes((ROOT / "configs" / "logging.conf").read_bytes())
    (project / "runs" / "phantom").mkdir(parents=True)
    (project / "runs" / "phantom" / "dataset.json").write_text("{}")
    done = bundle_run(project, "training", "--config_file", "configs/tiny.json")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "no dataset_dir given" in line]
    assert "no dataset_dir given" not in done.stderr
    assert "input summary" not in done.stdout


def test_documented_class_weights_count_the_pixels_of_masks(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    described = json.loads((ROOT / "configs" / "unet_liver.json").read_text(encoding="utf-8"))["loss"]["_desc_"]
    expression = described[described.index("$") :]
    assert f"--class_weights '{expression}'" in (ROOT / "README.md").read_text(encoding="utf-8")
    parser = ConfigParser()
    parser.read_config("configs/unet_images.json")
    parser["dataset_dir"] = str(write_lesion_images(tmp_path / "set", 6))
    parser["class_weights"] = expression
    background, lesion = parser.get_parsed_content("class_weights")
    assert 0 < background < 1 < lesion
