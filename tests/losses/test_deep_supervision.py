import pytest
import torch
from monai.losses import DiceLoss
from torch.nn.functional import interpolate, max_pool2d

from medseg.errors import ConfigError
from medseg.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    DeepSupervision,
    Dice,
    DiceCrossEntropy,
    DiceFocal,
    RegionDiceBinaryCrossEntropy,
    Tversky,
)
from medseg.losses.heads import downsampled

LOSSES = [
    BinaryCrossEntropy(ignore_label=255, class_weights=[1, 2, 3]),
    CrossEntropy(ignore_label=255, class_weights=[1, 2, 3]),
    Dice(ignore_label=255),
    DiceCrossEntropy(ignore_label=255, batch_dice=True),
    DiceFocal(ignore_label=255),
    Tversky(ignore_label=255),
    RegionDiceBinaryCrossEntropy({"all": [1, 2], "inner": [2], "outer": [1]}, ignore_label=255),
]
HEAD_WEIGHTS = [(None, (4 / 7, 2 / 7, 1 / 7)), ((1.0, 0.4, 0.1), (1 / 1.5, 0.4 / 1.5, 0.1 / 1.5))]


def heads_and_label(spatial_dims):
    size = (7, 5, 6)[:spatial_dims]
    heads = [torch.randn(2, 3, *(-(-edge // step) for edge in size), requires_grad=True) for step in (1, 2, 4)]
    label = torch.randint(0, 3, (2, 1, *size), dtype=torch.uint8)
    label[..., 0] = 255
    return heads, label


def nearest(label, head):
    return interpolate(label.float(), head.shape[2:], mode="nearest").to(torch.uint8)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("head_weights", "shares"), HEAD_WEIGHTS)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_every_loss_weighs_heads_on_nearest_labels(loss, head_weights, shares, spatial_dims):
    heads, label = heads_and_label(spatial_dims)
    expected = sum(share * loss(head, nearest(label, head)) for share, head in zip(shares, heads, strict=True))
    found = DeepSupervision(loss, head_weights=head_weights)(heads, label)
    torch.testing.assert_close(found, expected)
    assert all(gradient.any() for gradient in torch.autograd.grad(found, heads))
    if head_weights is None:
        torch.testing.assert_close(loss(heads, label), expected)


@pytest.mark.parametrize("kind", [BinaryCrossEntropy, CrossEntropy, Dice, DiceCrossEntropy, DiceFocal, Tversky])
def test_a_loss_takes_the_weights_of_its_heads_itself(kind):
    heads, label = heads_and_label(3)
    expected = DeepSupervision(kind(ignore_label=255), head_weights=(1.0, 0.4))(heads[:2], label)
    torch.testing.assert_close(kind(ignore_label=255, head_weights=(1.0, 0.4))(heads[:2], label), expected)


def test_regions_take_the_weights_of_their_heads():
    heads, label = heads_and_label(2)
    settings = {"regions": {"a": [1], "b": [2], "c": [1, 2]}, "ignore_label": 255}
    expected = DeepSupervision(RegionDiceBinaryCrossEntropy(**settings), head_weights=(1.0, 0.4))(heads[:2], label)
    torch.testing.assert_close(
        RegionDiceBinaryCrossEntropy(**settings, head_weights=(1, 0.4))(heads[:2], label), expected
    )


def test_a_single_tensor_is_the_main_head_whatever_the_weights():
    heads, label = heads_and_label(2)
    plain = DiceCrossEntropy(ignore_label=255)(heads[0], label)
    assert torch.equal(DiceCrossEntropy(ignore_label=255, head_weights=(1.0, 0.4))(heads[0], label), plain)
    assert torch.equal(DiceCrossEntropy(ignore_label=255)([heads[0]], label), plain)


def test_a_loss_of_monai_is_supervised_deeply_on_integer_labels():
    heads, label = heads_and_label(3)
    label[label == 255] = 0
    loss = DiceLoss(softmax=True, to_onehot_y=True)
    expected = (loss(heads[0], label) + 0.4 * loss(heads[1], nearest(label, heads[1]))) / 1.4
    torch.testing.assert_close(DeepSupervision(loss, head_weights=(1.0, 0.4))(heads[:2], label), expected)


def test_a_blob_of_the_stride_survives_downsampling():
    label = torch.zeros(1, 1, 17, 19, dtype=torch.int64)
    label[:, :, 6:10, 9:13] = 2
    coarse = downsampled(label, (5, 5))
    assert (coarse == 2).any()
    # nothing is made up: every coarse voxel's value lies in its own neighborhood
    assert (coarse <= max_pool2d(label.float(), 4, ceil_mode=True)).all()
    assert coarse.dtype == torch.int64


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.4, 0.2)])
def test_a_wrong_number_of_weights_is_refused(weights):
    heads, label = heads_and_label(2)
    with pytest.raises(ConfigError, match=f"head_weights has {len(weights)} entries for 2 heads; give one a head"):
        DiceCrossEntropy(ignore_label=255, head_weights=weights)(heads[:2], label)


@pytest.mark.parametrize("weights", [(1.0, -0.4), (0.0, 0.0)])
def test_weights_without_a_positive_sum_are_refused(weights):
    heads, label = heads_and_label(2)
    with pytest.raises(ConfigError, match="none can be negative, and one must be above 0"):
        DeepSupervision(CrossEntropy(ignore_label=255), head_weights=weights)(heads[:2], label)


@pytest.mark.parametrize("as_list", [True, False])
def test_labels_that_do_not_fit_the_main_head_are_refused(as_list):
    heads, label = heads_and_label(2)
    given = heads if as_list else heads[0]
    with pytest.raises(ValueError, match=r"label is \[2, 1, 7, 4\] for logits \[2, 3, 7, 5\]"):
        DeepSupervision(CrossEntropy())(given, label[..., 1:])
    with pytest.raises(ValueError, match=r"label is torch\.float32; give integers"):
        DeepSupervision(CrossEntropy())(given, label.float())
