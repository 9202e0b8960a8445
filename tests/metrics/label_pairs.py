"""200 pairs of small label maps, random and odd, that every metric is compared on."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

REGIONS = {"liver": [1, 2], "tumor": [2]}


@dataclass(frozen=True)
class LabelPair:
    """Two maps with values 0, 1, 2, and the spacing of their grid."""

    name: str
    pred: np.ndarray
    reference: np.ndarray
    spacing: tuple[float, ...]


def blobs(random, shape, share):
    """Values 0, 1, 2 in smooth patches; some touch the border."""
    field = ndimage.gaussian_filter(random.normal(size=shape), 1.2)
    label = (field > np.quantile(field, 1 - share)).astype(np.uint8)
    label[field > np.quantile(field, 1 - share / 4)] = 2
    return label


def noise(random, shape, share):
    return (random.random(shape) < share).astype(np.uint8) * random.integers(1, 3, shape, dtype=np.uint8)


def one_voxel(random, shape, share):
    label = np.zeros(shape, np.uint8)
    label[tuple(random.integers(0, size) for size in shape)] = 2
    return label


def box(random, shape, share):
    """Touches the border on one side of each axis or both."""
    label = np.zeros(shape, np.uint8)
    starts = [random.integers(0, size // 2) * random.integers(0, 2) for size in shape]
    stops = [size - random.integers(0, size // 2) * random.integers(0, 2) for size in shape]
    label[tuple(slice(*ends) for ends in zip(starts, stops, strict=True))] = random.integers(1, 3)
    return label


def nothing(random, shape, share):
    return np.zeros(shape, np.uint8)


def everything(random, shape, share):
    return np.full(shape, 2, np.uint8)


def corner(random, shape, share):
    """Far from what `far_corner` has."""
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(0, 2) for _ in shape)] = 2
    return label


def far_corner(random, shape, share):
    return np.flip(corner(random, shape, share)).copy()


KINDS = [
    (blobs, blobs),
    (blobs, "shifted"),
    (noise, noise),
    (blobs, noise),
    (box, blobs),
    (box, box),
    (one_voxel, blobs),
    (blobs, one_voxel),
    (one_voxel, one_voxel),
    (nothing, blobs),
    (blobs, nothing),
    (nothing, nothing),
    (everything, blobs),
    (everything, everything),
    (corner, far_corner),
    (blobs, "same"),
]
SHAPES = [(11, 9, 7), (13, 12), (8, 8, 8), (5, 23, 6), (17, 4), (40, 5, 3), (2, 9, 9), (30, 30)]
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (3.0, 0.8, 1.3)]


def label_pairs(count=200):
    """The pairs, the same at every call."""
    pairs = []
    for index in range(count):
        random = np.random.default_rng(index)
        make_pred, make_reference = KINDS[index % len(KINDS)]
        shape = SHAPES[index // len(KINDS) % len(SHAPES)]
        spacing = SPACINGS[index % len(SPACINGS)][: len(shape)]
        pred = make_pred(random, shape, random.uniform(0.05, 0.5))
        if make_reference == "same":
            reference = pred.copy()
        elif make_reference == "shifted":
            reference = np.roll(pred, 1, axis=index % pred.ndim)
        else:
            reference = make_reference(random, shape, random.uniform(0.05, 0.5))
        kind = getattr(make_reference, "__name__", make_reference)
        pairs.append(LabelPair(f"{index}-{make_pred.__name__}-{kind}-{len(shape)}d", pred, reference, spacing))
    return pairs


PAIRS = label_pairs()


def masks(pair):
    """Region -> predicted and reference mask, of those that are in one of the two."""
    both = {name: (np.isin(pair.pred, values), np.isin(pair.reference, values)) for name, values in REGIONS.items()}
    return {name: pair for name, pair in both.items() if pair[0].any() or pair[1].any()}
