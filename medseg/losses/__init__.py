"""Losses: softmax and sigmoid (regions), for one tensor of logits or deep supervision's list, with partial labels."""

from medseg.losses.heads import DeepSupervision
from medseg.losses.sigmoid import BinaryCrossEntropy, RegionDiceBinaryCrossEntropy
from medseg.losses.softmax import CrossEntropy, Dice, DiceCrossEntropy, DiceFocal, Tversky
from medseg.losses.weights import class_weights

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "DeepSupervision",
    "Dice",
    "DiceCrossEntropy",
    "DiceFocal",
    "RegionDiceBinaryCrossEntropy",
    "Tversky",
    "class_weights",
]
