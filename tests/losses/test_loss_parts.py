import pytest
import torch

from medseg.losses import CrossEntropy, Dice, DiceCrossEntropy, DiceFocal, RegionDiceBinaryCrossEntropy


def heads(channels, label):
    """Logits on the label's grid and on a coarser one."""
    return [torch.randn(2, channels, *size) for size in (label.shape[2:], (3, 2, 2))]


@pytest.mark.parametrize("deep", [False, True])
def test_the_parts_are_the_two_losses_alone_and_sum_to_the_loss(deep):
    label = torch.randint(0, 3, (2, 1, 7, 5, 4), dtype=torch.uint8)
    logits = heads(3, label) if deep else heads(3, label)[0]
    loss = DiceCrossEntropy(class_weights=[1, 2, 3], batch_dice=True, dice_weight=0.5, ce_weight=2)
    parts = loss.parts(logits, label)
    torch.testing.assert_close(parts["dice"], 0.5 * Dice(batch_dice=True)(logits, label))
    torch.testing.assert_close(parts["cross_entropy"], 2 * CrossEntropy(class_weights=[1, 2, 3])(logits, label))
    assert list(parts) == ["dice", "cross_entropy"]
    torch.testing.assert_close(parts["dice"] + parts["cross_entropy"], loss(logits, label))


@pytest.mark.parametrize(
    ("loss", "channels", "names"),
    [
        (DiceFocal(), 3, ["dice", "focal"]),
        (RegionDiceBinaryCrossEntropy({"liver": [1, 2], "tumor": [2]}), 2, ["dice", "binary_cross_entropy"]),
    ],
)
def test_every_sum_tells_its_parts(loss, channels, names):
    label = torch.randint(0, 3, (2, 1, 7, 5, 4), dtype=torch.uint8)
    logits = heads(channels, label)
    parts = loss.parts(logits, label)
    assert list(parts) == names
    assert all(part > 0 for part in parts.values())
    torch.testing.assert_close(sum(parts.values()), loss(logits, label))
