import re
import subprocess
import sys

import pytest
import torch
from monai.bundle import ConfigParser

from medseg.data_half import build, contradictions, data_half, literal, problems
from medseg.errors import ConfigError
from medseg.inference import SlidingWindow
from medseg.networks import UNet

RECIPE = {
    "_about_": "liver and tumor",
    "labels": {"background": 0, "liver": 1, "tumor": 2},
    "regions": {"liver": [1, 2], "tumor": [2]},
    "lesion_region": "tumor",
    "channels": ["ct"],
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "spacing_mm": [1.5, 1.5, 2.0],
    "precision": "bfloat16",
    "patch_size": [9, 8, 7],
    "network_def": {
        "_target_": "medseg.networks.UNet",
        "_desc_": "tiny",
        "spatial_dims": "@spatial_dims",
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
        "widths": [2, 4],
    },
    "inferer": {
        "_target_": "medseg.inference.SlidingWindow",
        "patch_size": "@patch_size",
        "precision": "@precision",
    },
    "cleanup": [
        {"_target_": "medseg.postprocessing.KeepLargest", "values": "@regions::liver"},
        {"_target_": "medseg.postprocessing.RemoveSmall", "value": "@regions#liver#1", "below_ml": 0.1},
    ],
    "device": "$torch.device('cpu')",
    "train": {"trainer": "@network_def"},
}


def changed(**ids):
    return {**RECIPE, **ids}


def test_the_data_half_stands_alone():
    half = data_half(RECIPE)
    assert half["network_def"]["out_channels"] == 3
    assert half["inferer"] == {
        "_target_": "medseg.inference.SlidingWindow",
        "patch_size": [9, 8, 7],
        "precision": "bfloat16",  # from outside the data half: carried along
    }
    assert [rule.get("values", rule.get("value")) for rule in half["cleanup"]] == [[1, 2], 2]
    assert not {"device", "train", "precision", "_about_"} & set(half)
    assert data_half(half) == half


def test_a_network_is_the_one_that_monai_would_make():
    torch.manual_seed(0)
    ours = build(RECIPE, "network_def")
    torch.manual_seed(0)
    theirs = ConfigParser(RECIPE | {"device": None}).get_parsed_content("network_def")
    assert isinstance(ours, UNet)
    image = torch.rand(1, 1, 9, 10, 11)
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image))


def test_parts_are_built_with_the_values_they_refer_to():
    window = build(RECIPE, "inferer")
    keep, remove = build(RECIPE, "cleanup")
    assert isinstance(window, SlidingWindow)
    assert tuple(window.patch_size) == (9, 8, 7)
    assert window.precision == "bfloat16"
    assert list(keep.values) == [1, 2]
    assert remove.value == 2
    assert build(RECIPE, "cleanup::1").value == 2


def test_a_disabled_component_is_left_out():
    disabled = {**RECIPE["cleanup"][0], "_disabled_": "True"}
    recipe = changed(cleanup=[disabled, RECIPE["cleanup"][1]])
    assert len(build(recipe, "cleanup")) == len(data_half(recipe)["cleanup"]) == 1


def test_text_with_an_at_sign_is_text():
    assert literal({"labels": "someone@example.org"}, "labels") == "someone@example.org"


@pytest.mark.parametrize(
    ("patch_size", "message"),
    [
        ("$[96] * 3", r"patch_size: holds the expression '\$\[96\] \* 3'.*only values and references"),
        (["$1", 2, 3], r"patch_size::0: holds the expression"),
        ("%configs/quick.json::patch_size", "patch_size: holds the macro .*expanded"),
        ("@patchsize", "patch_size: refers to '@patchsize', which the recipe does not have"),
        ("@spacing_mm::3", "patch_size: refers to '@spacing_mm::3'"),
        ("@spatial_dims::x", "patch_size: refers to '@spatial_dims::x'"),
        ("@inferer::patch_size", "'@patch_size' leads back to itself"),
        ("@device", "device: holds the expression"),
    ],
)
def test_what_cannot_be_read_without_running_is_refused(patch_size, message):
    recipe = changed(patch_size=patch_size)
    with pytest.raises(ConfigError, match=message):
        data_half(recipe)
    assert problems(recipe)


def test_a_missing_id_is_named():
    with pytest.raises(ConfigError, match="scan_to_grid: is missing from the recipe; add it"):
        build(RECIPE, "scan_to_grid")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "UNet",
        "torch.nn.Conv3d",
        "medseg.cli.main",
        "medseg.data.find_cases",
        "medseg.networks_of_another.UNet",
        "monai.networks.nets_.UNet",
        "medseg",
        3,
        None,
    ],
)
def test_a_class_off_the_list_is_refused_before_it_is_imported(target):
    recipe = changed(network_def={"_target_": target})
    with pytest.raises(ConfigError, match=r"network_def: '_target_' .* is not allowed.*medseg\.networks"):
        build(recipe, "network_def")
    assert "not allowed" in problems(recipe)[0]


@pytest.mark.parametrize(
    "target",
    [
        "medseg.networks.unet.torch.hub.load",  # a path through what a module imports
        "medseg.networks.unet.nn.Module",
        "medseg.networks.UNett",
        "medseg.crf.Nothing.Of",
    ],
)
def test_a_class_that_is_not_there_is_named(target):
    with pytest.raises(ConfigError, match=f"network_def: there is no {re.escape(target)}; check its spelling"):
        build(changed(network_def={"_target_": target}), "network_def")


@pytest.mark.parametrize("target", ["medseg.networks.unet.partial", "medseg.networks.blocks.conv_norm_act"])
def test_only_the_listed_packages_own_classes_are_made(target):
    # the first is a class, but only imported there; the second is no class
    with pytest.raises(ConfigError, match=f"network_def: {re.escape(target)} is not one of the classes of medseg"):
        build(changed(network_def={"_target_": target}), "network_def")


def test_settings_that_a_class_does_not_take_are_named():
    network_def = {**RECIPE["network_def"], "width": 3}
    with pytest.raises(ConfigError, match=r"network_def: medseg.networks.UNet does not take these settings: .*'width'"):
        build(changed(network_def=network_def), "network_def")


def test_a_network_of_monai_is_allowed():
    # in a process of its own: the point of the data half is that MONAI comes in only here
    code = (
        "import sys; from medseg.data_half import build; assert 'monai' not in sys.modules; "
        "target = {'_target_': 'monai.networks.nets.BasicUNet', 'spatial_dims': 2, 'features': [2] * 6}; "
        "assert type(build({'network_def': target}, 'network_def')).__name__ == 'BasicUNet'"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_sound_recipe_has_no_problems():
    assert problems(RECIPE) == []
    assert problems({**RECIPE, "spatial_dims": 2, "patch_size": [9, 8]}) == []  # a 2D network on scans in 3D
    assert problems({"_about_": "no data half at all"}) == []
    assert problems({**RECIPE, "activation": "softmax"}) == []
    assert problems({**RECIPE, "activation": "sigmoid", "out_channels": 2}) == []  # a channel a region


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"in_channels": 2}, "in_channels: is 2, but channels names 1 (ct)"),
        ({"channels": "ct"}, "channels: must be a list of names, got 'ct'"),
        ({"out_channels": 2}, "out_channels: is 2, but the labels run from 0 to 2; set it to 3"),
        ({"labels": {"background": 0, "liver": 1}}, "out_channels: is 3, but the labels run from 0 to 1; set it to 2"),
        (
            {"activation": "tanh"},
            "activation: is 'tanh'; give 'softmax' (a class a voxel) or 'sigmoid' (a channel a reg",
        ),
        (
            {"activation": "sigmoid"},
            "out_channels: is 3, but activation is 'sigmoid', one channel a region (liver, tumor); set it to 2",
        ),
        (
            {"activation": "sigmoid", "out_channels": 2, "regions": {"tumor": [2], "liver": [1, 2]}},
            "regions::tumor has 0 label values that no later region has",
        ),
        ({"labels": {"background": 0.0}}, "labels: must map each name to an integer"),
        ({"labels": {"background": 0, "liver": 1, "cyst": 1, "tumor": 2}}, "labels: 'cyst' and 'liver' are both 1"),
        ({"regions": {"liver": 1}}, "regions: must map each name to a list"),
        ({"regions": {"liver": [1, 7], "tumor": [2]}}, "regions::liver: names label value 7, which labels does not"),
        ({"regions": {"liver": [], "tumor": [2]}}, "regions::liver: names no label value"),
        ({"lesion_region": "lesion"}, "lesion_region: 'lesion' is not one of the regions (liver, tumor)"),
        ({"patch_size": [9, 8]}, "patch_size: has 2 lengths [9, 8], but spatial_dims is 3"),
        ({"spacing_mm": [1.5, 2.0]}, "spacing_mm: has 2 lengths [1.5, 2.0], but spatial_dims is 3"),
    ],
)
def test_contradictions_are_found(ids, message):
    found = problems(changed(**ids))
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"body_only": True, "intensity": {"_target_": "medseg.preprocessing.ZScore"}}, "but intensity is ZScore; set"),
        ({"body_only": True}, "body_only: is true, which needs HU, but intensity is missing"),
        ({"scan_to_grid": {"body_only": True}}, "body_only: is true, which needs HU"),
        ({"body_only": "yes"}, "body_only: is 'yes'; give true or false"),
        ({"body_only": [1]}, r"body_only: is \[1\]; give true or false"),
    ],
)
def test_a_body_box_needs_hu(ids, message):
    (found,) = problems(changed(**ids))
    assert re.search(message, found)


def test_a_body_box_of_ct_is_sound():
    window = {"_target_": "medseg.preprocessing.Window", "low_hu": -100, "high_hu": 200}
    assert problems(changed(body_only=True, intensity=window)) == []
    assert problems(changed(body_only=False)) == []


def test_the_ignored_value_is_no_class():
    labels = {"background": 0, "liver": 1, "tumor": 2, "unknown": 255}
    assert contradictions({"labels": labels, "out_channels": 3, "ignore_label": 255}) == []
    assert "set it to 256" in contradictions({"labels": labels, "out_channels": 3})[0]


@pytest.mark.parametrize("ignored", [0, 2, -1, 256, "none"])
def test_an_ignored_value_that_a_region_has_or_no_file_can_hold_is_refused(ignored):
    half = {"labels": {"background": 0, "liver": 1, "tumor": 2}, "regions": {"tumor": [2]}, "ignore_label": ignored}
    assert f"ignore_label: is {ignored!r}; give a value from 1 to 255" in contradictions(half)[-1]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_of_other_dimensions_is_found(wrapped):
    network_def = {**RECIPE["network_def"], "spatial_dims": 2}
    if wrapped:
        network_def = {"_target_": "medseg.networks.PadToMultiple", "network": network_def, "multiple": 8}
    found = problems(changed(network_def=network_def))
    assert found == [
        "network_def::spatial_dims: is 2, but the recipe's spatial_dims is 3; take the network's 3D form, or the "
        "recipe's 2D one (configs/slices_2d.json makes 2D of 3D)"
    ]


def test_weights_that_a_training_started_from_are_not_opened(tmp_path):
    network_def = {
        "_target_": "medseg.networks.UNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "encoder": "resnet18",
        "weights": str(tmp_path / "gone.pth"),
    }
    assert isinstance(build(changed(network_def=network_def), "network_def"), UNet)


def test_a_network_of_monai_without_monai_says_what_to_install(monkeypatch):
    network_def = {"_target_": "monai.networks.nets.VNet"}

    def missing(module):
        raise ModuleNotFoundError("No module named 'monai'", name="monai")

    monkeypatch.setattr("medseg.data_half.import_module", missing)
    with pytest.raises(ConfigError, match=r"monai\.networks\.nets\.VNet needs MONAI: pip install 'medseg\[train\]'"):
        build(changed(network_def=network_def), "network_def")


def test_a_package_that_a_network_needs_is_named(monkeypatch):
    class NeedsMore:
        """Stands for a network of MONAI that imports einops when it is made."""

        def __init__(self):
            raise ImportError("from einops import rearrange (No module named 'einops').\nFor details ...")

    monkeypatch.setattr("medseg.data_half._find_class", lambda target, where: NeedsMore)
    with pytest.raises(ConfigError, match=r"needs a package that is not installed \(from einops import rearrange"):
        build(changed(network_def={"_target_": "monai.networks.nets.SwinUNETR"}), "network_def")
