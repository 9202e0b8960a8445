"""What follows the network, under the names that older bundles know: `medseg.back_to_grid` and `medseg.cleanup`."""

from medseg.back_to_grid import label_maker, logits_to_label, region_logits_to_label, winning_class
from medseg.cleanup import CleanupRule, KeepLargest, RemoveSmall, RemoveSmallArea

__all__ = [
    "CleanupRule",
    "KeepLargest",
    "RemoveSmall",
    "RemoveSmallArea",
    "label_maker",
    "logits_to_label",
    "region_logits_to_label",
    "winning_class",
]
