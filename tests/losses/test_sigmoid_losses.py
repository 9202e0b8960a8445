import math

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from medseg.errors import ConfigError
from medseg.losses import BinaryCrossEntropy, RegionDiceBinaryCrossEntropy

SIZE = (7, 5, 6)
REGIONS = {"liver": [1, 2], "tumor": [2]}


def example(spatial_dims=3, channels=2):
    size = SIZE[:spatial_dims]
    logits = (2 * torch.randn(2, channels, *size)).requires_grad_()
    return logits, torch.randint(0, 3, (2, 1, *size), dtype=torch.uint8)


def liver_and_tumor(label):
    return torch.cat([(label == 1) | (label == 2), label == 2], dim=1).float()


def assert_same(ours, theirs, logits):
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_three_voxels_computed_by_hand():
    # probabilities of liver and of tumor in three voxels: background, liver, tumor
    probabilities = torch.tensor([[0.1, 0.8, 0.9], [0.2, 0.4, 0.6]])
    logits, label = probabilities.logit().view(1, 2, 3, 1), torch.tensor([0, 1, 2]).view(1, 1, 3, 1)
    liver, tumor = 2 * (0.8 + 0.9) / (1.8 + 2), 2 * 0.6 / (1.2 + 1)
    entropy = -sum(math.log(p) for p in (0.9, 0.8, 0.9, 0.8, 0.6, 0.6)) / 6
    assert RegionDiceBinaryCrossEntropy(REGIONS)(logits, label).item() == pytest.approx(
        1 - (liver + tumor) / 2 + entropy, abs=1e-5
    )
    loss = RegionDiceBinaryCrossEntropy(REGIONS, dice_weight=0.5, bce_weight=2)(logits, label)
    assert loss.item() == pytest.approx(0.5 * (1 - (liver + tumor) / 2) + 2 * entropy, abs=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_the_region_loss_is_that_of_monai_on_multi_hot_labels(spatial_dims, batch_dice):
    logits, label = example(spatial_dims)
    ours = RegionDiceBinaryCrossEntropy(REGIONS, batch_dice=batch_dice)(logits, label)
    theirs = DiceLoss(sigmoid=True, batch=batch_dice)(logits, liver_and_tumor(label))
    theirs = theirs + binary_cross_entropy_with_logits(logits, liver_and_tumor(label))
    assert_same(ours, theirs, logits)


def test_one_region_is_monais_binary_segmentation():
    logits, label = example(channels=1)
    ours = RegionDiceBinaryCrossEntropy({"tumor": [2]})(logits, label)
    assert_same(ours, DiceCELoss(sigmoid=True)(logits, (label == 2).float()), logits)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_binary_cross_entropy_is_that_of_torch_on_one_hot_labels(spatial_dims):
    logits, label = example(spatial_dims, channels=3)
    hot = one_hot(label[:, 0].long(), 3).movedim(-1, 1).float()
    assert_same(BinaryCrossEntropy()(logits, label), binary_cross_entropy_with_logits(logits, hot), logits)
    logits, label = example(spatial_dims, channels=3)
    hot = one_hot(label[:, 0].long(), 3).movedim(-1, 1).float()
    weights = torch.tensor([0.5, 1.0, 3.0])
    parts = binary_cross_entropy_with_logits(logits, hot, reduction="none").movedim(1, -1).flatten(0, -2).mean(0)
    weighted = BinaryCrossEntropy(class_weights=weights.tolist())(logits, label)
    assert_same(weighted, (parts * weights).sum() / 4.5, logits)


LOSSES = [BinaryCrossEntropy, lambda **settings: RegionDiceBinaryCrossEntropy(REGIONS, **settings)]


@pytest.mark.parametrize("loss", LOSSES, ids=["classes", "regions"])
def test_ignored_voxels_count_as_if_cut_off(loss):
    logits, label = example(channels=3 if loss is BinaryCrossEntropy else 2)
    label[:, :, :3] = 255
    assert_same(loss(ignore_label=255)(logits, label), loss()(logits[:, :, 3:], label[:, :, 3:]), logits)
    nothing = loss(ignore_label=255)(logits, torch.full_like(label, 255))
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


@pytest.mark.parametrize("settings", [{}, {"ignore_label": 255, "merged": {254: [0, 1], 253: [1, 2]}}])
@pytest.mark.parametrize("loss", LOSSES, ids=["classes", "regions"])
def test_gradients_are_finite_differences(loss, settings):
    channels = 3 if loss is BinaryCrossEntropy else 2
    logits = torch.randn(2, channels, 3, 2, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 255, 2, 254, 253, 2] if settings else [1, 2, 0, 0, 0, 1]])
    function = loss(**settings)
    assert torch.autograd.gradcheck(lambda given: function(given, label.view(2, 1, 3, 2)), logits)


@pytest.mark.parametrize("loss", LOSSES, ids=["classes", "regions"])
def test_half_precision_is_summed_in_float32(loss):
    channels = 3 if loss is BinaryCrossEntropy else 2
    logits, label = torch.randn(1, channels, 32, 32, 32).bfloat16(), torch.randint(0, 3, (1, 1, 32, 32, 32))
    exact = loss()(logits.double(), label)
    logits.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss()(logits, label)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=0)
    assert torch.autograd.grad(found, logits)[0].dtype == torch.bfloat16


def test_large_logits_cost_what_they_miss_and_no_more():
    logits = torch.tensor([-200.0, 200.0, 200.0]).view(1, 1, 3, 1)
    loss = RegionDiceBinaryCrossEntropy({"tumor": [1]}, dice_weight=0)
    assert loss(logits, torch.tensor([0, 1, 1]).view(1, 1, 3, 1)).item() == 0
    assert loss(logits, torch.tensor([1, 1, 0]).view(1, 1, 3, 1)).item() == pytest.approx(400 / 3)


def test_channels_that_are_not_one_a_region_are_refused():
    with pytest.raises(ConfigError, match=r"logits have 3 channels for 2 regions \(liver, tumor\); set out_channels"):
        RegionDiceBinaryCrossEntropy(REGIONS)(*example(channels=3))


def test_a_single_channel_of_classes_is_refused():
    with pytest.raises(
        ValueError, match=r"logits have 1 class; .* a single region is for RegionDiceBinaryCrossEntropy"
    ):
        BinaryCrossEntropy()(*example(channels=1))


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="regions is empty; name one or more"):
        RegionDiceBinaryCrossEntropy({})
    with pytest.raises(ConfigError, match="regions::liver has the value 2, which merged has too"):
        RegionDiceBinaryCrossEntropy(REGIONS, merged={2: [0, 1]})
    with pytest.raises(ConfigError, match="class_weights has 2 entries for 3 classes"):
        BinaryCrossEntropy(class_weights=[1, 2])(*example(channels=3))
