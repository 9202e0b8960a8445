import json
import re
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from workflows.checks import reached, recipe_problems

RECIPES = ("unet_liver", "unet_hippocampus", "unet_images")
ROOT = Path(__file__).parents[2]
RECIPE = {
    "_about_": "tiny",
    "imports": ["$import json"],
    "labels": {"background": 0, "liver": 1},
    "regions": {"liver": [1]},
    "channels": ["ct"],
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "network_def": {
        "_target_": "medseg.networks.UNet",
        "spatial_dims": "@spatial_dims",
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
        "widths": [2, 4],
    },
    "dataset_dir": None,
    "scans_dir": None,
    "device": "cpu",
    "max_epochs": 3,
    "cases": {"_target_": "medseg.data.find_cases", "dataset_dir": "@dataset_dir", "channels": "@channels"},
    "train": {
        "dataset": {"_target_": "Dataset", "data": "$@cases.training"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@train::dataset", "batch_size": 1},
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": "@max_epochs",
            "train_data_loader": "@train::dataloader",
            "network": "@network_def",
        },
    },
    "evaluator": {"_target_": "types.SimpleNamespace", "scans": "@scans_dir", "anything": 1},
    "training": ["$@train::trainer.run()"],
    "inference": ["$@evaluator.run()"],
    "checking": ["$print(@device)"],
}


def problems_of(recipe, **settings):
    parser = ConfigParser(json.loads(json.dumps(recipe)))
    parser.parse()
    return recipe_problems(parser, **settings)


def changed(**ids):
    parser = ConfigParser(json.loads(json.dumps(RECIPE)))
    parser.update(ids)
    return parser.get()


def test_a_sound_recipe_passes():
    assert problems_of(RECIPE, run_ids=("initialize", "checking", "finalize")) == []


@pytest.mark.parametrize(
    "names",
    [
        ["unet_liver"],
        ["unet_liver", "quick"],
        ["unet_liver", "slices_2d"],
        ["unet_hippocampus"],
        *([recipe, overlay] for recipe in RECIPES for overlay in ("nnunet_schedule", "multi_gpu")),
        ["unet_hippocampus", "regions"],
    ],
    ids="+".join,
)
def test_the_projects_recipes_pass(names, monkeypatch):
    monkeypatch.chdir(ROOT)  # macros name files from there
    files = [Path("configs") / f"{name}.json" for name in names]
    parser = ConfigParser()
    parser.read_config(files)
    parser.parse()
    assert recipe_problems(parser, files=files, run_ids=["initialize", "training", "finalize"]) == []


def test_a_run_id_of_ones_own_is_known_only_when_it_is_run():
    assert problems_of(RECIPE) == ["checking: nothing in the recipe uses this name"]


def test_every_problem_is_told():
    recipe = changed(in_channels=2, max_epoch=1, **{"train::trainer::network": "@netwrok_def"})
    found = problems_of(recipe, run_ids=["checking"])
    assert len(found) == 3


@pytest.mark.parametrize(
    ("ids", "asked", "message"),
    [
        (
            {"max_epoch": 2},
            ["max_epoch"],
            "--max_epoch: nothing in the recipe uses this name (did you mean 'max_epochs'?)",
        ),
        ({"max_epoch": 2}, [], "max_epoch: nothing in the recipe uses this name (did you mean 'max_epochs'?)"),
        ({"run_ids": "x"}, ["run_ids"], "--run_ids: nothing in the recipe uses this name (did you mean 'run_id'?)"),
        ({"xyzzy": 2}, [], "xyzzy: nothing in the recipe uses this name"),
        (
            {"train::dataloder": 2},
            ["train#dataloder"],
            "--train::dataloder: nothing in the recipe uses this name (did you mean 'train::dataloader'?)",
        ),
        ({"loop": "@loop::x"}, [], "loop: nothing in the recipe uses this name"),
    ],
)
def test_a_name_that_nothing_uses_is_refused(ids, asked, message):
    assert message in problems_of(changed(**ids), asked=asked, run_ids=["checking"])


@pytest.mark.parametrize("ids", [{"_note_": 1}, {"seed": 0}, {"output_dir": "runs"}, {"train::_note_": "x"}])
def test_notes_and_names_that_are_read_by_name_pass(ids):
    assert problems_of(changed(**ids), run_ids=["checking"]) == []


def test_a_name_stays_known_when_the_command_line_replaces_the_reference(tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(RECIPE))
    recipe = changed(**{"train::trainer::max_epochs": 7})
    assert problems_of(recipe, files=[file], run_ids=["checking"]) == []
    assert problems_of(recipe, run_ids=["checking"]) == ["max_epochs: nothing in the recipe uses this name"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"device": "@devise"}, "device: '@devise' leads to nothing in the recipe"),
        ({"device": "$str(@max_epoch) + 'x'"}, "device: '@max_epoch' leads to nothing .*did you mean 'max_epochs'"),
        ({"device": ["@train::trainr"]}, "device::0: '@train::trainr' .*did you mean 'train::trainer'"),
        ({"device": "@channels::1"}, "device: '@channels::1' leads to nothing"),
    ],
)
def test_a_reference_to_nothing_is_refused(ids, message):
    found = "\n".join(problems_of(changed(**ids), run_ids=["checking"]))
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("id", "target", "hint"),
    [
        ("network_def", "medseg.networks.Unet", " (did you mean 'medseg.networks.UNet'?)"),
        ("cases", "medseg.dta.find_cases", ""),
        ("train::dataset", "Datset", " (did you mean 'Dataset'?)"),
        ("cases", "string.digits", ""),
    ],
)
def test_a_target_that_is_not_there_is_refused(id, target, hint):
    found = problems_of(changed(**{f"{id}::_target_": target}), run_ids=["checking"])
    assert f"{id}: there is no class or function '{target}'{hint}" in found


def test_a_module_that_fails_to_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import a_module_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = problems_of(changed(**{"cases::_target_": "broken_module.find_cases"}), run_ids=["checking"])
    assert found == ["cases: 'broken_module.find_cases' cannot be imported: No module named 'a_module_nobody_has'"]


def test_an_argument_that_a_class_does_not_have_is_refused():
    recipe = changed(**{"network_def::width": 3, "train::trainer::max_epoch": 1})
    assert problems_of(recipe, run_ids=["checking"]) == [
        "network_def: medseg.networks.UNet has no argument 'width' (did you mean 'widths'?)",
        "train::trainer: SupervisedTrainer has no argument 'max_epoch' (did you mean 'max_epochs'?)",
    ]


@pytest.mark.parametrize(
    "component",
    [
        {"_target_": "$json.loads", "anything": 1},  # known only once the recipe runs
        {"_target_": "medseg.networks.UNet", "_disabled_": True, "width": 1},
        {"_target_": "SimpleInferer", "_desc_": "a note", "_mode_": "callable"},
        {"_target_": "types.SimpleNamespace", "anything": 1},  # takes any argument
    ],
)
def test_what_cannot_or_need_not_be_checked_passes(component):
    assert problems_of(changed(device=component), run_ids=["checking"]) == []


def test_the_data_half_is_checked_too():
    recipe = changed(in_channels=2, patch_size="$[8, 8, 8]", inferer={"_target_": "SimpleInferer"})
    found = problems_of(recipe, run_ids=["checking"])
    assert [problem.split(":")[0] for problem in found] == ["patch_size", "inferer", "in_channels"]


@pytest.mark.parametrize(
    ("id", "value", "advice"),
    [
        ("max_epochs", 0, "give a whole number, 1 or more"),
        ("max_epochs", 2.5, "give a whole number, 1 or more"),
        ("patience", True, "give a whole number, 0 or more"),
        ("num_workers", -1, "give a whole number, 0 or more"),
        ("learning_rate", 0, "give a number above 0"),
        ("learning_rate", float("nan"), "give a number above 0"),
        ("max_gradient_norm", "high", "give a number above 0"),
        ("precision", "bf16", "give 'bfloat16' or 'float32'"),
    ],
)
def test_a_number_that_no_training_can_have_is_refused(id, value, advice):
    assert f"{id}: is {value!r}; {advice}" in problems_of(changed(**{id: value}))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"none_found": ["spleen"]}, "flags: no region spleen; this recipe has liver"),
        ({"volume": {"liver": [1, 2]}}, "flags: give rules of volume_ml, .*, each with its thresholds"),
        ({"volume_ml": {"liver": "$[1, 2]"}}, "flags::volume_ml::liver: holds the expression"),
        ({"at_border": "@regoins"}, "flags::at_border: "),
    ],
)
def test_rules_for_flags_are_checked_before_the_training(flags, message):
    found = problems_of(changed(flags=flags), run_ids=["checking"])
    assert any(re.match(message, problem) for problem in found), found


def test_a_number_that_is_known_only_when_the_recipe_runs_passes():
    found = problems_of(changed(batch_size="$@max_epochs * 2", learning_rate="@max_epochs"))
    assert not [problem for problem in found if "give a" in problem]


def test_reached_follows_references_all_the_way():
    assert "dataset_dir" in reached(RECIPE, ["training"])
    assert "dataset_dir" not in reached(RECIPE, ["inference"])
    assert {"scans_dir", "evaluator"} <= reached(RECIPE, ["inference"])


def test_lists_of_classes_follow_the_labels_where_channels_are_regions():
    regional = {"activation": "sigmoid", "out_channels": 1, "class_ratios": [1, 1]}
    assert not [problem for problem in problems_of(changed(**regional)) if "entries" in problem]
    found = problems_of(changed(**{**regional, "class_ratios": [1]}))
    assert "class_ratios: has 1 entries [1], but there are 2 classes; give one a class" in found


def test_regions_json_fits_the_recipe(monkeypatch):
    monkeypatch.chdir(ROOT)
    files = [ROOT / "configs" / name for name in ("unet_liver.json", "regions.json")]
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    parser.parse()
    assert recipe_problems(parser, files=files) == []
    assert len(ConfigParser.load_config_file(files[1])) <= 15
