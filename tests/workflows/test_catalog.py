"""Networks of the catalog: all build, and those of the issue train through the recipe with one override."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

from medseg.bundle import open_bundle
from medseg.data_half import build, problems

CATALOG = {
    name: entry
    for name, entry in json.loads((Path(__file__).parents[2] / "configs" / "networks.json").read_text()).items()
    if not name.startswith("_")
}
BY_NAME = ["linknet", "unetplusplus", "deeplabv3_resnet50", "deeplabv3_resnet18", "pspnet_resnet50", "pspnet_resnet18"]
BY_NAME += ["segnet", "fcn8s"]
TRAINED = [name for name in CATALOG if name.rpartition("_")[0] in BY_NAME]


def recipe(entry: dict[str, Any]) -> dict[str, Any]:
    return {"network_def": entry, "in_channels": 2, "out_channels": 3}


def dimensions(entry: dict[str, Any]) -> int:
    return entry.get("network", entry)["spatial_dims"]


@pytest.mark.parametrize("name", CATALOG)
def test_an_entry_builds_for_the_recipes_channels(name: str) -> None:
    if "network" in CATALOG[name]:
        network = build(recipe(CATALOG[name]), "network_def")  # MONAI's compute values while they are made
    else:
        with torch.device("meta"):
            network = build(recipe(CATALOG[name]), "network_def")
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d)]
    assert convolutions[0].in_channels == 2
    assert {len(module.kernel_size) for module in convolutions} == {dimensions(CATALOG[name])}


@pytest.mark.parametrize("name", [name for name in CATALOG if "network" in CATALOG[name]])
def test_a_network_of_monai_takes_any_size(name: str) -> None:
    size = (33, 47, 20)[: dimensions(CATALOG[name])]
    network = build(recipe(CATALOG[name]), "network_def").eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 2, *size)).shape == (1, 3, *size)


def test_both_dimensions_have_every_network_that_has_both() -> None:
    assert len(TRAINED) == 12
    assert sum(dimensions(CATALOG[name]) == 2 for name in TRAINED) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_network_trains_by_name(name: str, phantom: Path, bundle_run: Callable[..., Path]) -> None:
    flat = dimensions(CATALOG[name]) == 2
    overlays = ["configs/slices_2d.json"] if flat else []
    network_def: Any = f"%configs/networks.json::{name}"
    if name == "fcn8s_2d":  # 134 million weights are gigabytes of checkpoints; by its name it is run by hand
        network_def = {**CATALOG[name], "fc_width": 64}
    folder = bundle_run(
        "training",
        *overlays,
        dataset_dir=str(phantom),
        network_def=network_def,
        patch_size=[32, 32] if flat else [24, 24, 16],
        patches_per_case=1,
        max_epochs=1,
        device="cpu",
    )
    bundle = open_bundle(folder)
    assert problems(bundle.recipe) == []
    assert type(bundle.network()).__name__ == CATALOG[name]["_target_"].rpartition(".")[2]
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    run = client.get_run(json.loads((folder / "run.json").read_text())["run_id"])
    assert run.info.status == "FINISHED"
    assert math.isfinite(run.data.metrics["train_loss"])


@pytest.mark.slow
def test_a_network_of_monai_trains_and_predicts_by_name(phantom: Path, bundle_run: Callable[..., Path]) -> None:
    folder = bundle_run(
        "training",
        dataset_dir=str(phantom),
        network_def="%configs/networks.json::segresnet_3d",
        max_epochs=1,
        device="cpu",
    )
    network = open_bundle(folder).network()
    assert network(torch.zeros(1, 1, 9, 10, 11)).shape == (1, 3, 9, 10, 11)


def test_a_flat_network_in_a_3d_recipe_is_refused_before_any_data_is_read(
    phantom: Path, bundle_run: Callable[..., Path]
) -> None:
    with pytest.raises(RuntimeError) as caught:  # MONAI's, around ours
        bundle_run("training", dataset_dir=str(phantom), network_def="%configs/networks.json::linknet_2d")
    assert "network_def::spatial_dims: is 2, but the recipe's spatial_dims is 3" in str(caught.value.__cause__)
