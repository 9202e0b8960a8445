import pytest
import torch

from medseg.errors import DataError
from medseg.losses import BinaryCrossEntropy, CrossEntropy, Dice, DiceCrossEntropy, DiceFocal, Tversky

every_loss = pytest.mark.parametrize(
    "loss", [BinaryCrossEntropy, CrossEntropy, Dice, DiceCrossEntropy, DiceFocal, Tversky]
)


def label_with(value, dtype=torch.int64):
    label = torch.randint(0, 3, (2, 1, 7, 5)).to(dtype)
    label[1, 0, 3, 4] = value
    return label


@every_loss
@pytest.mark.parametrize("value", [255, 3, -1])
@pytest.mark.parametrize("heads", [False, True])
def test_a_value_that_is_no_class_is_refused(loss, value, heads):
    logits = torch.randn(2, 3, 7, 5)
    message = f"label has the value {value}, but the classes run from 0 to 2; set ignore_label or merged to say"
    with pytest.raises(DataError, match=message):
        loss()([logits, torch.randn(2, 3, 4, 3)] if heads else logits, label_with(value))


@every_loss
def test_values_that_are_ignored_or_merged_are_taken_and_others_are_not(loss):
    logits = torch.randn(2, 3, 7, 5)
    knowing = loss(ignore_label=255, merged={254: [0, 1]})
    label = label_with(255, torch.uint8)
    label[0, 0, 0, 0] = 254
    assert knowing(logits, label).isfinite()
    label[0, 0, 0, 1] = 253
    with pytest.raises(DataError, match="label has the value 253"):
        knowing(logits, label)
    # one that is ignored hides none that is not
    with pytest.raises(DataError, match="label has the value -1"):
        loss(ignore_label=-2)(logits, label_with(-1))
