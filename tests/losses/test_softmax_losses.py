import math

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from torch.nn.functional import cross_entropy

from medseg.errors import ConfigError
from medseg.losses import CrossEntropy, Dice, DiceCrossEntropy, DiceFocal, Tversky

SIZE = (7, 5, 6)
# foreground probabilities 0.9, 0.5, 0.2; the first two voxels are foreground
BY_HAND = torch.tensor([[0.1, 0.5, 0.8], [0.9, 0.5, 0.2]]).log().view(1, 2, 3, 1)
BY_HAND_LABEL = torch.tensor([1, 1, 0]).view(1, 1, 3, 1)


def example(spatial_dims=3, classes=3, batch=2):
    size = SIZE[:spatial_dims]
    logits = (2 * torch.randn(batch, classes, *size)).requires_grad_()
    return logits, torch.randint(0, classes, (batch, 1, *size), dtype=torch.uint8)


def assert_same(ours, theirs, logits):
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)))


def test_three_voxels_computed_by_hand():
    # overlap 0.9 + 0.5, false positives 0.2, false negatives 0.1 + 0.5
    assert Dice()(BY_HAND, BY_HAND_LABEL).item() == pytest.approx(1 - 2.8 / 3.6, abs=1e-5)
    tversky = Tversky(alpha=0.3, beta=0.7)(BY_HAND, BY_HAND_LABEL)
    assert tversky.item() == pytest.approx(1 - 1.4 / (1.4 + 0.3 * 0.2 + 0.7 * 0.6), abs=1e-5)
    entropy = CrossEntropy(class_weights=[1, 3])(BY_HAND, BY_HAND_LABEL)
    assert entropy.item() == pytest.approx(-(3 * math.log(0.9) + 3 * math.log(0.5) + math.log(0.8)) / 7, abs=1e-6)
    # wrong by 0.1, 0.5 and 0.2, squared
    focal = -(0.01 * math.log(0.9) + 0.25 * math.log(0.5) + 0.04 * math.log(0.8)) / 3
    loss = DiceFocal(dice_weight=0.5, focal_weight=2)(BY_HAND, BY_HAND_LABEL)
    assert loss.item() == pytest.approx(0.5 * (1 - 2.8 / 3.6) + 2 * focal, abs=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_overlap_losses_are_those_of_monai(spatial_dims, include_background, batch_dice):
    logits, label = example(spatial_dims)
    ours = {"include_background": include_background, "batch_dice": batch_dice}
    theirs = {
        "softmax": True,
        "to_onehot_y": True,
        "include_background": include_background,
        "batch": batch_dice,
    }
    assert_same(Dice(**ours)(logits, label), DiceLoss(**theirs)(logits, label), logits)
    assert_same(
        Tversky(alpha=0.2, beta=0.9, **ours)(logits, label),
        TverskyLoss(alpha=0.2, beta=0.9, **theirs)(logits, label),
        logits,
    )


def test_tversky_with_equal_weights_is_dice():
    logits, label = example()
    assert_same(Tversky(alpha=0.5, beta=0.5)(logits, label), Dice()(logits, label), logits)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 3.0]])
def test_cross_entropy_is_that_of_torch(spatial_dims, weights):
    logits, label = example(spatial_dims)
    tensor = None if weights is None else torch.tensor(weights)
    theirs = cross_entropy(logits, label[:, 0].long(), weight=tensor)
    assert_same(CrossEntropy(class_weights=weights)(logits, label), theirs, logits)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_is_that_of_monai_times_the_classes(spatial_dims, gamma):
    logits, label = example(spatial_dims)
    ours = DiceFocal(gamma=gamma, dice_weight=0)(logits, label)
    theirs = FocalLoss(gamma=gamma, use_softmax=True, to_onehot_y=True)(logits, label)
    assert_same(ours, 3 * theirs, logits)
    # not MONAI's whose focal part stays a sigmoid
    both = 0.5 * DiceLoss(softmax=True, to_onehot_y=True)(logits, label) + 2 * 3 * theirs
    found = DiceFocal(gamma=gamma, dice_weight=0.5, focal_weight=2, include_background=True)(logits, label)
    assert_same(found, both, logits)


def test_focal_loss_without_gamma_is_weighted_cross_entropy():
    logits, label = example()
    settings = {"class_weights": [1, 2, 5], "batch_dice": True}
    assert_same(DiceFocal(gamma=0, **settings)(logits, label), DiceCrossEntropy(**settings)(logits, label), logits)


def test_a_sure_voxel_has_a_finite_gradient_of_focal_loss():
    logits = torch.tensor([0.0, 200.0]).view(1, 2, 1, 1).requires_grad_()
    loss = DiceFocal(gamma=0.5, dice_weight=0)(logits, torch.ones(1, 1, 1, 1, dtype=torch.uint8))
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


LOSSES = [Dice, Tversky, CrossEntropy, DiceCrossEntropy, DiceFocal]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_ignored_voxels_count_as_if_cut_off(loss, spatial_dims):
    logits, label = example(spatial_dims)
    label[:, :, :3] = 255
    found = loss(ignore_label=255)(logits, label)
    assert_same(found, loss()(logits[:, :, 3:], label[:, :, 3:]), logits)
    nothing = loss(ignore_label=255)(logits, torch.full_like(label, 255))
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


@pytest.mark.parametrize("loss", [Dice, Tversky, DiceCrossEntropy, DiceFocal])
def test_ignored_voxels_are_no_background(loss):
    logits, label = example()
    label[:, :, :3] = 255
    found = loss(ignore_label=255, include_background=True)(logits, label)
    assert_same(found, loss(include_background=True)(logits[:, :, 3:], label[:, :, 3:]), logits)


@pytest.mark.parametrize("settings", [{}, {"ignore_label": 255, "merged": {254: [0, 1], 253: [1, 2]}}])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_finite_differences(loss, settings):
    logits = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 255, 2, 254, 253, 2] if settings else [1, 2, 0, 0, 0, 1]])
    function = loss(**settings)
    assert torch.autograd.gradcheck(lambda given: function(given, label.view(2, 1, 3, 2)), logits)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_summed_in_float32(loss):
    logits, label = torch.randn(1, 3, 32, 32, 32).bfloat16(), torch.randint(0, 3, (1, 1, 32, 32, 32))
    merged = {254: [0, 1]}
    label[:, :, :4] = 254
    exact = loss(merged=merged)(logits.double(), label)
    logits.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(merged=merged)(logits, label)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=0)
    assert torch.autograd.grad(found, logits)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("loss", LOSSES)
def test_one_class_is_refused(loss):
    with pytest.raises(ValueError, match="logits have 1 class; softmax needs 2 or more, background included"):
        loss()(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3, dtype=torch.uint8))


@pytest.mark.parametrize("loss", [CrossEntropy, DiceFocal])
def test_wrong_number_of_class_weights_is_refused(loss):
    with pytest.raises(ConfigError, match="class_weights has 2 entries for 3 classes; give one a class"):
        loss(class_weights=[1, 2])(*example())


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match=r"alpha is -0\.1 and beta 0\.7; neither can be negative"):
        Tversky(alpha=-0.1)
    with pytest.raises(ConfigError, match="alpha is 0 and beta 0; neither can be negative, and one must be above 0"):
        Tversky(alpha=0, beta=0)
    with pytest.raises(ConfigError, match=r"gamma is -1; give 0 \(cross-entropy\) or more"):
        DiceFocal(gamma=-1)
