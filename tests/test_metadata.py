import contextlib
import copy
import json
from pathlib import Path

import jsonschema
import pytest
from monai.bundle import ConfigParser, verify_metadata

from medseg.bundle import task_metadata

ROOT = Path(__file__).parents[1]
# what MONAI's schema asks for; the file says where it comes from
SCHEMA = ROOT / "tests" / "fixtures" / "meta_schema_20240725.json"
METADATA = json.loads((ROOT / "configs" / "metadata.json").read_text())
RECIPES = [ROOT / "configs" / f"unet_{name}.json" for name in ("liver", "hippocampus", "images")]
VALIDATOR = jsonschema.Draft201909Validator(json.loads(SCHEMA.read_text()))


def metadata_of(recipe_file):
    parser = ConfigParser()
    parser.read_config(recipe_file)
    with contextlib.chdir(ROOT):  # macros name files from there
        parser.parse()
    recipe = parser.get()
    return recipe, task_metadata(METADATA, recipe, name="tiny", synthetic=False, eval_metrics={"mean_dice": 0.9})


def test_the_schema_is_a_schema():
    jsonschema.Draft201909Validator.check_schema(VALIDATOR.schema)


def test_the_projects_metadata_are_valid():
    VALIDATOR.validate(METADATA)


@pytest.mark.filterwarnings("ignore:No hash value provided")
def test_monai_finds_the_metadata_valid(tmp_path):
    # with the schema in place MONAI does not download it
    there = tmp_path / "schema.json"
    there.write_bytes(SCHEMA.read_bytes())
    verify_metadata(meta_file=str(ROOT / "configs" / "metadata.json"), filepath=str(there))
    broken = tmp_path / "metadata.json"
    broken.write_text(json.dumps(METADATA | {"authors": ["A", "B"]}))
    with pytest.raises(ValueError, match="is not of type 'string'"):
        verify_metadata(meta_file=str(broken), filepath=str(there))


@pytest.mark.parametrize(
    "key",
    [
        *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
        *("task", "description", "authors", "copyright", "network_data_format"),
    ],
)
def test_a_missing_key_is_noticed(key):
    with pytest.raises(jsonschema.ValidationError, match=f"'{key}' is a required property"):
        VALIDATOR.validate({name: value for name, value in METADATA.items() if name != key})


@pytest.mark.parametrize("key", ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"])
def test_a_missing_key_of_a_tensor_is_noticed(key):
    metadata = copy.deepcopy(METADATA)
    del metadata["network_data_format"]["inputs"]["image"][key]
    assert not VALIDATOR.is_valid(metadata)


def test_the_version_has_an_entry_in_the_changelog():
    assert METADATA["version"] in METADATA["changelog"]


def test_the_projects_metadata_describe_its_main_recipe():
    recipe = json.loads(RECIPES[0].read_text())
    image = METADATA["network_data_format"]["inputs"]["image"]
    pred = METADATA["network_data_format"]["outputs"]["pred"]
    assert list(image["channel_def"].values()) == recipe["channels"]
    assert image["num_channels"] == recipe["in_channels"]
    assert pred["num_channels"] == recipe["out_channels"]
    assert {name: int(value) for value, name in pred["channel_def"].items()} == recipe["labels"]


@pytest.mark.parametrize("recipe_file", RECIPES, ids=lambda file: file.stem)
def test_the_metadata_of_a_trained_task_are_valid_and_its_own(recipe_file):
    recipe, metadata = metadata_of(recipe_file)
    VALIDATOR.validate(json.loads(json.dumps(metadata)))
    data_format = metadata["network_data_format"]
    assert data_format["inputs"]["image"]["spatial_shape"] == recipe["patch_size"]
    assert data_format["inputs"]["image"]["num_channels"] == len(recipe["channels"])
    assert data_format["outputs"]["pred"]["channel_def"]["0"] == "background"
    assert metadata["description"] == recipe["_about_"]
    assert all(region in metadata["task"] for region in recipe["regions"])
    assert metadata["eval_metrics"] == {"mean_dice": 0.9}
    assert "not a medical device" in metadata["intended_use"]


def test_the_metadata_tell_ct_from_mr():
    formats = [metadata_of(file)[1]["network_data_format"]["inputs"]["image"]["format"] for file in RECIPES]
    assert formats == ["hounsfield", "magnitude", "magnitude"]


def test_the_versions_are_those_installed():
    import monai
    import numpy
    import torch

    metadata = metadata_of(RECIPES[0])[1]
    assert metadata["monai_version"] == monai.__version__
    assert metadata["numpy_version"] == numpy.__version__
    assert torch.__version__.startswith(metadata["pytorch_version"])
