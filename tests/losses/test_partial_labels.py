import math

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss, TverskyLoss
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from medseg.data.partial import merge_unlabeled, merged_values
from medseg.errors import ConfigError
from medseg.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Dice,
    DiceCrossEntropy,
    DiceFocal,
    RegionDiceBinaryCrossEntropy,
    Tversky,
)

LABELS = {"background": 0, "liver": 1, "tumor": 2}
REGIONS = {"liver": [1, 2], "tumor": [2]}
MERGED = {254: [0, 1], 253: [1, 2]}  # tumor-only cases: background or liver; liver-only cases: liver or tumor
SIZE = (7, 5, 6)

# background, liver and tumor in three voxels
BY_HAND = torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.2, 0.3], [0.2, 0.6, 0.6]]).log().view(1, 3, 3, 1)


def example(labeled, spatial_dims=3, batch=2):
    size = SIZE[:spatial_dims]
    logits = (2 * torch.randn(batch, 3, *size)).requires_grad_()
    label = torch.randint(0, 3, (batch, 1, *size), dtype=torch.uint8)
    known = merge_unlabeled(label.numpy(), LABELS, REGIONS, labeled, merged_values=MERGED)
    return logits, label, torch.from_numpy(known)


def two_classes(logits, labeled):
    """Logits and label values when the classes nobody told apart are one class: log of summed exponentials."""
    background, liver, tumor = logits.unbind(1)
    if labeled == ["tumor"]:
        return torch.stack([torch.logaddexp(background, liver), tumor], dim=1), [0, 0, 1]
    return torch.stack([background, torch.logaddexp(liver, tumor)], dim=1), [0, 1, 1]


def assert_same(ours, theirs, logits):
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)), atol=1e-6, rtol=1e-5
    )


def test_the_set_table_is_that_of_the_recipe():
    assert merged_values(LABELS, REGIONS) == MERGED


def test_three_voxels_computed_by_hand():
    label = torch.tensor([254, 254, 2]).view(1, 1, 3, 1)  # background or liver, the same, tumor
    entropy = -(math.log(0.8) + math.log(0.4) + math.log(0.6)) / 3
    dice = 2 * 0.6 / ((0.2 + 0.6 + 0.6) + 1)  # of the tumor; the liver is left out
    assert DiceCrossEntropy(merged=MERGED)(BY_HAND, label).item() == pytest.approx(1 - dice + entropy, abs=1e-5)
    both = 2 * (0.8 + 0.4) / ((0.8 + 0.4 + 0.4) + 2)  # of background or liver, as one class
    loss = DiceCrossEntropy(merged=MERGED, include_background=True, ce_weight=0)(BY_HAND, label)
    assert loss.item() == pytest.approx(1 - (dice + both) / 2, abs=1e-5)
    # a set weighs as the lightest of its classes: 2 (of 2 and 4), 2, 7
    weighted = -(2 * math.log(0.8) + 2 * math.log(0.4) + 7 * math.log(0.6)) / 11
    found = CrossEntropy(class_weights=[4, 2, 7], merged=MERGED)(BY_HAND, label)
    assert found.item() == pytest.approx(weighted, abs=1e-6)


def test_the_gradient_prefers_no_class_of_a_set():
    # -log(p0 + p1): dL/dz = p - p / (p0 + p1) within the set, p outside; 0.5 and 0.3 are pushed in that proportion
    logits = BY_HAND[:, :, :1].clone().requires_grad_()
    loss = CrossEntropy(merged=MERGED)(logits, torch.full((1, 1, 1, 1), 254))
    gradient = torch.autograd.grad(loss, logits)[0].flatten()
    torch.testing.assert_close(gradient, torch.tensor([0.5 - 0.5 / 0.8, 0.3 - 0.3 / 0.8, 0.2]))
    # with equal logits the liver is pushed exactly as the background is
    even = torch.zeros(1, 3, 1, 1, requires_grad=True)
    loss = DiceCrossEntropy(merged=MERGED)(even, torch.full((1, 1, 1, 1), 254))
    background, liver, tumor = torch.autograd.grad(loss, even)[0].flatten()
    assert background == liver < 0 < tumor


def test_a_sure_liver_where_nobody_looked_costs_nothing():
    logits = torch.tensor([-30.0, 30.0, -30.0]).view(1, 3, 1, 1).expand(1, 3, 4, 3).clone().requires_grad_()
    label = torch.full((1, 1, 4, 3), 254, dtype=torch.uint8)
    # the tumor's Dice has no gradient to speak of without a tumor
    loss = DiceCrossEntropy(merged=MERGED)(logits, label)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-6
    as_background = DiceCrossEntropy()(logits, torch.zeros_like(label))
    assert torch.autograd.grad(as_background, logits)[0].abs().max() > 0.01


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("labeled", [["tumor"], ["liver"]])
def test_a_partial_case_is_a_case_of_two_classes(labeled, spatial_dims):
    logits, label, known = example(labeled, spatial_dims)
    pair, values = two_classes(logits, labeled)
    target = torch.tensor(values)[label.long()]
    assert_same(CrossEntropy(merged=MERGED)(logits, known), cross_entropy(pair, target[:, 0]), logits)
    monai = {"softmax": True, "to_onehot_y": True, "include_background": False}
    for batch in (True, False):
        ours = Dice(merged=MERGED, batch_dice=batch)(logits, known)
        assert_same(ours, DiceLoss(**monai, batch=batch)(pair, target), logits)
    ours = Tversky(merged=MERGED)(logits, known)
    assert_same(ours, TverskyLoss(**monai, alpha=0.3, beta=0.7)(pair, target), logits)
    assert_same(DiceFocal(merged=MERGED)(logits, known), DiceFocal()(pair, target), logits)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_each_class_has_its_dice_from_the_samples_that_know_it(batch_dice):
    logits, label, known = example(["tumor"], batch=3)
    known[1:] = label[1:]  # the first sample has its tumors only
    classes = [
        DiceLoss(softmax=True, to_onehot_y=True, reduction="none", batch=batch_dice)(logits[knowing], label[knowing])
        for knowing in (slice(1, 3), slice(0, 3))
    ]
    liver, tumor = (losses.reshape(-1, 3)[:, value] for losses, value in zip(classes, (1, 2), strict=True))
    expected = torch.cat([liver, tumor]).mean()
    assert_same(Dice(merged=MERGED, batch_dice=batch_dice)(logits, known), expected, logits)


def test_a_batch_of_both_kinds_computed_voxel_by_voxel():
    """A case with its tumors only beside one with its liver only: each term by its definition, in float64."""
    logits, label, _ = example(["tumor"])
    label[0, 0, 0, 0, :2], label[1, 0, 0, 0, :3] = 2, torch.tensor([0, 1, 2])
    known = label.clone()
    known[0][label[0] < 2], known[1][label[1] > 0] = 254, 253
    weights = [1.0, 2.0, 5.0]
    sums = {"liver": [0.0, 0.0, 0.0], "tumor": [0.0, 0.0, 0.0]}  # overlap, predicted, reference
    cost = weight = 0.0
    for sample in range(2):
        for voxel in np.ndindex(SIZE):
            raw = np.exp(logits.detach().numpy()[(sample, slice(None), *voxel)].astype(np.float64))
            _, liver, tumor = raw / raw.sum()
            value = int(label[(sample, 0, *voxel)])
            if sample == 0:
                region, found, inside = "tumor", tumor, value == 2
                own = 5.0 if inside else 1.0  # background or liver weighs as the background
            else:
                region, found, inside = "liver", liver + tumor, value > 0
                own = 2.0 if inside else 1.0  # liver or tumor weighs as the liver
            cost -= own * math.log(found if inside else 1 - found)
            weight += own
            sums[region] = [sums[region][0] + found * inside, sums[region][1] + found, sums[region][2] + inside]
    dice = [2 * overlap / (predicted + reference) for overlap, predicted, reference in sums.values()]
    parts = DiceCrossEntropy(class_weights=weights, merged=MERGED, batch_dice=True).parts(logits, known)
    assert parts["dice"].item() == pytest.approx(1 - sum(dice) / 2, abs=1e-6)
    assert parts["cross_entropy"].item() == pytest.approx(cost / weight, abs=1e-6)


@pytest.mark.parametrize("loss", [Dice, Tversky])
def test_a_sample_without_liver_counts_for_the_liver_of_the_batch(loss):
    """Two patches of cases with their liver annotated only, one of them without any: a case of two classes."""
    logits, _, known = example(["liver"])
    known[1] = 0
    pair, _ = two_classes(logits, ["liver"])
    target = (known > 0).long()
    assert_same(loss(merged=MERGED, batch_dice=True)(logits, known), loss(batch_dice=True)(pair, target), logits)


def test_a_label_without_sets_costs_what_it_did():
    logits, label, _ = example(["liver"])
    for loss in (Dice, Tversky, CrossEntropy, DiceCrossEntropy, DiceFocal, BinaryCrossEntropy):
        assert_same(loss(merged=MERGED)(logits, label), loss()(logits, label), logits)
    regions = RegionDiceBinaryCrossEntropy(REGIONS, merged=MERGED)(logits[:, 1:], label)
    assert_same(regions, RegionDiceBinaryCrossEntropy(REGIONS)(logits[:, 1:], label), logits)


def test_where_nothing_is_judged_dice_is_zero():
    logits, _, known = example(["tumor"])
    loss = Dice(merged={254: [0, 1], 253: [0, 2]})(logits, torch.where(known == 2, 253, 254))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_sets_and_ignored_voxels_go_together():
    logits, _, known = example(["tumor"])
    known[:, :, :3] = 255
    settings = {"merged": MERGED, "batch_dice": True}
    expected = DiceCrossEntropy(**settings)(logits[:, :, 3:], known[:, :, 3:])
    assert_same(DiceCrossEntropy(ignore_label=255, **settings)(logits, known), expected, logits)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize(("labeled", "own", "also"), [(["tumor"], 1, 0), (["liver"], 0, 1)])
def test_regions_learn_from_the_cases_that_have_them(labeled, own, also, batch_dice):
    logits, label, known = example(labeled)
    logits = logits[:, 1:].detach().requires_grad_()
    inside = torch.cat([label > 0, label == 2], dim=1).float()
    entropy = binary_cross_entropy_with_logits(logits, inside, reduction="none")
    # a tumor voxel is liver too, and what is not liver is no tumor: that much is known of the other region
    known_too = entropy[:, also][(label == 2)[:, 0] if labeled == ["tumor"] else (label == 0)[:, 0]]
    mean = torch.cat([entropy[:, own].flatten(), known_too]).mean()
    dice = DiceLoss(sigmoid=True, batch=batch_dice)(logits[:, own : own + 1], inside[:, own : own + 1])
    ours = RegionDiceBinaryCrossEntropy(REGIONS, merged=MERGED, batch_dice=batch_dice)(logits, known)
    assert_same(ours, dice + mean, logits)


def test_one_against_the_rest_asks_only_what_a_set_answers():
    logits = torch.tensor([0.3, -0.7, 1.2]).view(1, 3, 1, 1).requires_grad_()
    loss = BinaryCrossEntropy(merged=MERGED)(logits, torch.full((1, 1, 1, 1), 254))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(1.2)))  # no tumor
    assert torch.autograd.grad(loss, logits)[0].flatten().tolist()[:2] == [0, 0]


def test_json_keys_are_strings():
    logits, _, known = example(["tumor"])
    found = DiceCrossEntropy(merged={"254": [1, 0], "253": [1, 2]})(logits, known)
    assert torch.equal(found, DiceCrossEntropy(merged=MERGED)(logits, known))


@pytest.mark.parametrize(
    ("merged", "message"),
    [
        ({254: [1]}, r"merged::254 is \[1\]; a merged value stands for two or more classes"),
        ({255: [0, 1]}, "merged::255 is the ignore_label too"),
        ({2: [0, 1]}, "merged::2 is the value of a class already; values from 3 on are free"),
        ({254: [1, 3]}, r"merged::254 is \[1, 3\]; the classes run from 0 to 2"),
        ({254: [0, 1, 2]}, "merged::254 is every class, which teaches nothing; mark such voxels by ignore_label"),
    ],
)
@pytest.mark.parametrize("loss", [CrossEntropy, BinaryCrossEntropy])
def test_impossible_sets_are_refused(loss, merged, message):
    logits, _, known = example(["tumor"])
    with pytest.raises(ConfigError, match=message):
        loss(merged=merged, ignore_label=255)(logits, known)


def learned(loss, labels, image):
    """Prediction for `image` of a small network trained voxel by voxel."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, 1), nn.Tanh(), nn.Conv2d(16, 3, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        loss(network(image), labels).backward()
        optimizer.step()
    return network(image).argmax(1, keepdim=True)


def test_half_the_cases_with_tumors_only_and_half_with_livers_only_teach_both():
    truth = torch.randint(0, 3, (4, 1, 9, 11), dtype=torch.uint8)
    image = truth.float() - 1 + 0.1 * torch.randn(truth.shape)
    halves = [
        merge_unlabeled(half.numpy(), LABELS, REGIONS, labeled, merged_values=MERGED)
        for half, labeled in ((truth[:2], ["tumor"]), (truth[2:], ["liver"]))
    ]
    merged = torch.from_numpy(np.concatenate(halves))
    as_background = torch.cat([torch.where(truth[:2] == 2, 2, 0), torch.where(truth[2:] > 0, 1, 0)])
    assert (learned(DiceCrossEntropy(merged=MERGED), merged, image) == truth).float().mean() > 0.99
    assert (learned(DiceCrossEntropy(), as_background, image) == truth).float().mean() < 0.9
