"""What one pass over a label map tells, against NumPy's own looking at the whole map."""

import numpy as np
import pytest
from scipy.ndimage import center_of_mass, find_objects
from scipy.ndimage import label as scipy_label

from medseg.regions import LabelFacts, Lesions, is_one_of

VALUES = ([1], [1, 2], [2, 3, 9], [4], [])
SHAPES = [(1, 18, 1), (18, 1, 1), (1, 1, 15), (1, 1, 1), (11, 9, 10), (5, 12, 3), (12, 1, 8)]


def maps(count):
    """Label maps of many shapes, types, memory orders and densities."""
    rng = np.random.default_rng(0)
    for index in range(count):
        shape = SHAPES[index % len(SHAPES)]
        label = rng.integers(0, 5, shape) * (rng.random(shape) < rng.uniform(0, 0.7))
        label = label.astype([np.uint8, np.uint16, np.int64, np.float32][index % 4])
        label = np.asfortranarray(label) if index % 2 else label
        yield label.transpose(2, 0, 1)[::-1] if index % 5 == 0 else label


def box_of(mask):
    """By the places of all voxels."""
    places = np.argwhere(mask)
    if len(places) == 0:
        return None
    return tuple(slice(low, high + 1) for low, high in zip(places.min(axis=0), places.max(axis=0), strict=True))


def test_counts_boxes_and_masks_are_those_of_the_whole_map():
    for label in maps(300):
        facts = LabelFacts.of(label)
        for values in VALUES:
            mask = np.isin(label, values)
            assert facts.voxels(values) == np.count_nonzero(mask)
            box = facts.box(values)
            assert box == box_of(mask)
            if box is not None:
                np.testing.assert_array_equal(facts.mask(values, box), mask[box])


def test_lesions_are_those_of_scipy_with_their_boxes_and_centers():
    for label in maps(300):
        lesions = Lesions.of(label, [2, 3])
        mask = np.isin(label, [2, 3])
        numbers = lesions.whole()
        np.testing.assert_array_equal(numbers > 0, mask)
        expected, count = scipy_label(mask, np.ones((3, 3, 3)))
        assert len(set(zip(numbers[mask], expected[mask], strict=True))) == count == len(lesions.sizes)
        assert list(lesions.sizes) == sorted(np.bincount(expected.ravel())[1:], reverse=True)
        centers = center_of_mass(mask, numbers, range(1, count + 1))
        np.testing.assert_allclose(lesions.centers, np.reshape(centers, (-1, 3)), rtol=1e-12)
        within = [tuple(side.start for side in lesions.box)] * count
        for first, box, whole in zip(within, lesions.boxes, find_objects(numbers), strict=True):
            shifted = [slice(start + side.start, start + side.stop) for start, side in zip(first, box, strict=True)]
            assert tuple(shifted) == whole


def test_facts_that_are_known_are_not_sought_again():
    facts = LabelFacts.of(np.ones((3, 4, 5), np.uint8))
    assert LabelFacts.of(facts) is facts


@pytest.mark.parametrize("highest", [1, 255, 65535])
def test_values_may_be_higher_than_there_are_voxels(highest):
    label = np.zeros((6, 5, 4), np.uint16)
    label[2, 3, 1] = highest
    facts = LabelFacts.of(label)
    assert facts.voxels([highest]) == 1
    assert facts.box([highest]) == (slice(2, 3), slice(3, 4), slice(1, 2))


@pytest.mark.parametrize(("count", "kind"), [(200, np.uint8), (300, np.uint16)])
def test_lesion_numbers_take_the_smallest_type(count, kind):
    label = np.zeros((2 * count, 3, 3), np.uint8)
    label[::2, 1, 1] = 1
    numbers = Lesions.of(label, [1]).whole()
    assert numbers.dtype == kind
    assert numbers.max() == count


@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("values", [[], [1], [0, 1], [1, 3, 4]])
def test_is_one_of_is_isin(kind, values):
    label = np.random.default_rng(0).integers(0, 2 if kind is bool else 6, (7, 8)).astype(kind)
    np.testing.assert_array_equal(is_one_of(label, values), np.isin(label, values))
