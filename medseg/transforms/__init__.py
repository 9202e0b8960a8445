"""MONAI dictionary twins of the pure steps, and the training pipelines."""

from medseg.transforms.augmentation import augmentation
from medseg.transforms.grid import LogitsToLabeld, PadToPatchd, ScanToGridd
from medseg.transforms.partial import LowestClassd, MergeUnlabeledd
from medseg.transforms.pipelines import training_patches, whole_cases
from medseg.transforms.reading import ReadCased
from medseg.transforms.slices import AxialSliced

__all__ = [
    "AxialSliced",
    "LogitsToLabeld",
    "LowestClassd",
    "MergeUnlabeledd",
    "PadToPatchd",
    "ReadCased",
    "ScanToGridd",
    "augmentation",
    "training_patches",
    "whole_cases",
]
