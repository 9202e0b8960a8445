import math

import pytest
import torch
from monai.losses import DiceLoss
from torch.nn.functional import cross_entropy, interpolate

from medseg.errors import ConfigError
from medseg.losses import DiceCrossEntropy, class_weights

SIZE = (7, 5, 6)


def example(spatial_dims=3, classes=3, batch=2):
    size = SIZE[:spatial_dims]
    logits = (2 * torch.randn(batch, classes, *size)).requires_grad_()
    return logits, torch.randint(0, classes, (batch, 1, *size), dtype=torch.uint8)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def test_three_voxels_computed_by_hand():
    # foreground probabilities 0.9, 0.5, 0.2; the first two voxels are foreground
    probabilities = torch.tensor([[0.1, 0.5, 0.8], [0.9, 0.5, 0.2]])
    logits, label = probabilities.log().view(1, 2, 3, 1), torch.tensor([1, 1, 0]).view(1, 1, 3, 1)
    dice = 2 * (0.9 + 0.5) / ((0.9 + 0.5 + 0.2) + 2)
    entropy = -(math.log(0.9) + math.log(0.5) + math.log(0.8)) / 3
    assert DiceCrossEntropy()(logits, label).item() == pytest.approx(1 - dice + entropy, abs=1e-5)
    # weights 1 and 3: (3 * 0.105 + 3 * 0.693 + 1 * 0.223) / 7
    weighted = -(3 * math.log(0.9) + 3 * math.log(0.5) + math.log(0.8)) / 7
    loss = DiceCrossEntropy(class_weights=[1, 3], dice_weight=0.5, ce_weight=2)(logits, label)
    assert loss.item() == pytest.approx(0.5 * (1 - dice) + 2 * weighted, abs=1e-5)
    # the background's Dice: 2 * 0.8 / ((0.1 + 0.5 + 0.8) + 1)
    both = DiceCrossEntropy(include_background=True, ce_weight=0)(logits, label)
    assert both.item() == pytest.approx(1 - (dice + 1.6 / 2.4) / 2, abs=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_dice_and_its_gradient_are_those_of_monai(spatial_dims, include_background, batch_dice):
    logits, label = example(spatial_dims)
    ours = DiceCrossEntropy(include_background=include_background, batch_dice=batch_dice, ce_weight=0)(logits, label)
    theirs = DiceLoss(softmax=True, to_onehot_y=True, include_background=include_background, batch=batch_dice)(
        logits, label
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
@pytest.mark.parametrize("ignore_label", [None, 2, 255])
def test_cross_entropy_and_its_gradient_are_those_of_torch(spatial_dims, weights, ignore_label):
    logits, label = example(spatial_dims)
    if ignore_label == 255:
        label[..., :3] = 255
    ours = DiceCrossEntropy(class_weights=weights, ignore_label=ignore_label, dice_weight=0)(logits, label)
    theirs = cross_entropy(
        logits,
        label[:, 0].long(),
        weight=None if weights is None else torch.tensor(weights),
        ignore_index=-100 if ignore_label is None else ignore_label,
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits))


@pytest.mark.parametrize("settings", [{}, {"batch_dice": True, "class_weights": [1, 2, 3]}])
def test_ignored_voxels_give_no_loss_and_no_gradient(settings):
    logits, label = example()
    label[:, :, :3] = 255
    loss_function = DiceCrossEntropy(ignore_label=255, **settings)
    loss = loss_function(logits, label)
    # as if those voxels had been cut off
    torch.testing.assert_close(loss, DiceCrossEntropy(**settings)(logits[:, :, 3:], label[:, :, 3:]))
    grad = gradient(loss, logits)
    assert not grad[:, :, :3].any()
    assert grad[:, :, 3:].any()


@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int16, torch.int64])
def test_a_patch_without_labels_gives_zero(label_dtype):
    logits, label = example()
    label = torch.full_like(label, 200, dtype=label_dtype)
    loss = DiceCrossEntropy(ignore_label=200, class_weights=[1, 2, 3])(logits, label)
    assert loss.item() == 0
    assert not gradient(loss, logits).any()


def test_negative_ignore_label_is_ignored():
    logits, label = example()
    label = label.long()
    label[..., 0] = -1
    expected = DiceCrossEntropy()(logits[..., 1:], label[..., 1:])
    torch.testing.assert_close(DiceCrossEntropy(ignore_label=-1)(logits, label), expected)


def test_an_absent_class_costs_nearly_one_almost_without_gradient():
    logits, label = example(classes=2, batch=1)
    loss = DiceCrossEntropy(ce_weight=0)(logits, torch.zeros_like(label))
    assert loss.item() == pytest.approx(1, abs=1e-5)
    assert gradient(loss, logits).abs().max() < 1e-6
    # a sample that has the class lends it to the whole batch
    logits, label = example(classes=2, batch=2)
    label[1] = 0
    assert DiceCrossEntropy(ce_weight=0, batch_dice=True)(logits, label).item() < 0.9


def test_a_perfect_prediction_costs_nothing():
    _, label = example()
    logits = 40.0 * torch.cat([label == value for value in range(3)], dim=1) - 20
    assert DiceCrossEntropy()(logits, label).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_heads_weigh_half_of_the_finer_one_on_nearest_labels(spatial_dims):
    logits, label = example(spatial_dims)
    label[..., 0] = 255
    coarse = [torch.randn(2, 3, *(-(-size // step) for size in SIZE[:spatial_dims])) for step in (2, 4)]
    loss_function = DiceCrossEntropy(ignore_label=255, class_weights=[1, 2, 3])
    losses = [
        loss_function(head, interpolate(label.float(), head.shape[2:], mode="nearest").long())
        for head in (logits, *coarse)
    ]
    expected = (losses[0] + losses[1] / 2 + losses[2] / 4) / 1.75
    torch.testing.assert_close(loss_function([logits, *coarse], label), expected)
    torch.testing.assert_close(loss_function([logits], label), losses[0])


def test_half_precision_logits_are_summed_in_float32():
    logits, label = torch.randn(1, 3, 32, 32, 32), torch.randint(0, 3, (1, 1, 32, 32, 32))
    expected = DiceCrossEntropy()(logits.bfloat16().double().float(), label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = DiceCrossEntropy()(logits.bfloat16(), label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)


def test_the_loss_has_nothing_to_save():
    assert not DiceCrossEntropy(class_weights=[1, 2]).state_dict()


def test_class_weights_are_inverse_square_roots_with_mean_one():
    # 10, 5 and 2 voxels a side: 1/10, 1/5, 1/2 = 1 : 2 : 5, mean 8/3
    assert class_weights([100, 25, 4]) == pytest.approx([3 / 8, 6 / 8, 15 / 8])
    assert class_weights([10**12, 10**12]) == pytest.approx([1, 1])


def test_a_class_without_voxels_weighs_one():
    assert class_weights([100, 0, 4]) == pytest.approx([2 / 6, 1, 10 / 6])


@pytest.mark.parametrize("counts", [[], [0, 0], [5, -1]])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ConfigError, match="at least one class needs voxels, and none can be negative"):
        class_weights(counts)


def test_a_label_on_another_grid_is_refused():
    logits, label = example()
    with pytest.raises(
        ValueError, match=r"label is \[2, 1, 7, 5, 4\] for logits \[2, 3, 7, 5, 6\]; it must be \[2, 1, 7, 5, 6\]"
    ):
        DiceCrossEntropy()(logits, label[..., :4])


def test_a_label_without_its_channel_is_refused():
    logits, label = example()
    with pytest.raises(ValueError, match=r"label is \[2, 7, 5, 6\]"):
        DiceCrossEntropy()(logits, label[:, 0])


def test_a_label_of_fractions_is_refused():
    logits, label = example()
    with pytest.raises(ValueError, match=r"label is torch.float32; give integers"):
        DiceCrossEntropy()(logits, label.float())


def test_one_class_is_refused():
    logits, label = example(classes=1)
    with pytest.raises(ValueError, match="logits have 1 class; softmax needs 2 or more, background included"):
        DiceCrossEntropy()(logits, label)


def test_wrong_number_of_class_weights_is_refused():
    logits, label = example()
    with pytest.raises(ConfigError, match="class_weights has 2 entries for 3 classes; give one a class"):
        DiceCrossEntropy(class_weights=[1, 2])(logits, label)
