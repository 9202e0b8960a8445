from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from medseg.errors import ConfigError
from medseg.losses import DiceCrossEntropy
from medseg.networks import UNet
from workflows.memory_plan import GB, fit_recipe, fitting, kept_bytes, largest_stage, smaller_patches, step_memory_gb
from workflows.training import TrainingStep

BUDGETS = [2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 24.0, 80.0]


def by_voxels(patch_size, batch_size):
    """A gigabyte for the weights, and one for every 100 000 voxels."""
    return 1 + batch_size * torch.Size(patch_size).numel() / 1e5


def unet():
    return UNet(3, 1, 3, widths=(8, 16, 32))


def test_more_memory_gives_larger_patches_then_larger_batches_of_the_same_cases_an_update():
    plans = [fitting(by_voxels, gb, patch_size=[96, 96, 64], batch_size=4, accumulation_steps=3) for gb in BUDGETS]
    fits = zip(plans, BUDGETS, strict=True)
    assert all(plan.memory_gb == by_voxels(plan.patch_size, plan.batch_size) <= gb for plan, gb in fits)
    assert all(plan.batch_size * plan.accumulation_steps == 12 for plan in plans)
    sizes = [(torch.Size(plan.patch_size).numel(), plan.batch_size) for plan in plans]
    assert sizes == sorted(sizes)
    assert plans[0].patch_size != plans[-1].patch_size == [96, 96, 64]
    assert [plan.batch_size for plan in plans][-3:] == [1, 3, 4]  # 5.9 GB a case: 6.9, 18.7 and 24.6 GB


def test_the_longest_axis_shrinks_first_and_none_below_32():
    assert list(smaller_patches([56, 40, 20])) == [[56, 40, 20], [48, 40, 20], [32, 40, 20], [32, 32, 20]]


def test_too_little_memory_is_refused_in_one_line():
    with pytest.raises(
        ConfigError, match=r"gpu_memory_gb: 1\.2 is too little, the smallest patch \[32, 32\] needs 2\.0;"
    ):
        fitting(lambda patch_size, batch_size: 2.0, 1.2, patch_size=[64, 64], batch_size=1)


def test_the_estimate_counts_what_autograd_really_keeps():
    """The same pass with content, where each kept map is a real one."""
    network, image = unet(), torch.randn(2, 1, 24, 20, 16)
    counted, _, _ = kept_bytes(network, image, precision="float32")
    really = {}

    def keep(tensor):
        really[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(image)
    for weight in network.parameters():
        really.pop(weight.untyped_storage().data_ptr(), None)
    assert counted == pytest.approx(sum(really.values()), rel=0.02)
    # and the two steps with and without content agree
    estimate = step_memory_gb(unet, image.shape, precision="float32")
    assert estimate * GB > 0.8 * GB + counted


def test_the_estimate_grows_with_batch_patch_and_precision_and_shrinks_with_checkpointing():
    small = step_memory_gb(unet, (1, 1, 64, 64, 64))
    assert step_memory_gb(unet, (2, 1, 64, 64, 64)) > small
    assert step_memory_gb(unet, (1, 1, 96, 64, 64)) > small
    assert step_memory_gb(unet, (1, 1, 64, 64, 64), precision="float32") > small
    assert step_memory_gb(unet, (1, 1, 64, 64, 64), checkpoint_activations=True) < small


def test_checkpointing_leaves_room_for_one_stage():
    network, image = unet(), torch.randn(1, 1, 24, 20, 16)
    stage = largest_stage(network, image, precision="float32")
    assert 0 < stage < kept_bytes(network, image, precision="float32")[0]


def recipe(**changes):
    parser = ConfigParser()
    parser.update(
        {
            "network_def": {
                "_target_": "medseg.networks.UNet",
                **{"spatial_dims": 3, "in_channels": "@in_channels", "out_channels": 3, "widths": [32, 64, 128]},
            },
            **{"in_channels": 1, "patch_size": [128, 128, 96], "patches_per_case": 2, "batch_size": 2},
            **{"accumulation_steps": 1, "precision": "bfloat16", "checkpoint_activations": False},
            **changes,
        }
    )
    parser.parse()
    return parser


def test_a_recipe_gets_what_fits():
    parser = recipe(gpu_memory_gb=6)
    fit_recipe(parser)
    found = {name: parser.get(name) for name in ("patch_size", "batch_size", "accumulation_steps")}
    assert found == {"patch_size": [128, 128, 96], "batch_size": 1, "accumulation_steps": 2}
    smaller = recipe(gpu_memory_gb=3)
    fit_recipe(smaller)
    assert max(smaller.get("patch_size")) < 128
    untouched = recipe(gpu_memory_gb=80)
    fit_recipe(untouched)
    assert (untouched.get("patch_size"), untouched.get("batch_size")) == ([128, 128, 96], 2)


@pytest.mark.parametrize("budget", [0, -1, "8", True, [8]])
def test_a_budget_that_is_no_amount_is_refused(budget):
    with pytest.raises(ConfigError, match=r"gpu_memory_gb: is .*; give a number of GB, or null"):
        fit_recipe(recipe(gpu_memory_gb=budget))


@pytest.mark.slow
def test_a_tiny_budget_is_refused():
    with pytest.raises(ConfigError, match=r"gpu_memory_gb: 0.5 is too little, the smallest patch \[32, 32, 32\] needs"):
        fit_recipe(recipe(gpu_memory_gb=0.5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_step_on_a_gpu_fits_the_estimate(checkpointed):
    from workflows.training import prepared_network

    shape = (2, 1, 128, 128, 96)
    estimate = step_memory_gb(unet, shape, checkpoint_activations=checkpointed)
    network = prepared_network(unet(), "cuda", 3, checkpoint_activations=checkpointed)
    engine = SimpleNamespace(
        network=network,
        optimizer=torch.optim.AdamW(network.parameters()),
        loss_function=DiceCrossEntropy(),
        state=SimpleNamespace(device=torch.device("cuda"), epoch=1),
    )
    batch = {"image": torch.randn(shape), "label": torch.zeros(shape, dtype=torch.uint8)}
    for _ in range(3):
        TrainingStep()(engine, batch)
    assert isinstance(network, nn.Module)
    assert torch.cuda.max_memory_reserved() / GB < estimate
