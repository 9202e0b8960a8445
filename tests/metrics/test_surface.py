import itertools

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own manual writes it so)
import torch
from label_pairs import PAIRS, REGIONS, masks
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy.spatial.distance import cdist

from medseg.metrics import average_distance, hausdorff, surface_dice, surface_distances
from medseg.metrics.subvoxel import element_sizes

TOLERANCES = (0.0, 1.0, 2.1, 4.0)


def full_pairs():
    """Spacing and masks of both, of every region that is in both."""
    for pair in PAIRS:
        for name, (pred, reference) in masks(pair).items():
            if pred.any() and reference.any():
                yield f"{pair.name}-{name}", pair.spacing, pred, reference


def surface_points(mask, axes):
    """World positions of voxels with an outside face neighbor, voxel by voxel."""
    found = []
    for index in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = index.copy()
            other[axis] += step
            outside = other[axis] < 0 or other[axis] >= mask.shape[axis]
            if outside or not mask[tuple(other)]:
                found.append(axes @ index)
                break
    return np.array(found)


def all_distances(pred, reference, axes):
    """The nearest of all, for each point of both surfaces."""
    table = cdist(surface_points(pred, axes), surface_points(reference, axes))
    return table.min(axis=1), table.min(axis=0)


def assert_equals_brute_force(pred, reference, axes, label):
    there, back = all_distances(pred, reference, axes)
    found = surface_distances(pred, reference, axes)
    np.testing.assert_allclose(np.sort(found.pred_to_reference), np.sort(there), atol=1e-9, err_msg=label)
    np.testing.assert_allclose(np.sort(found.reference_to_pred), np.sort(back), atol=1e-9, err_msg=label)
    assert hausdorff(found) == pytest.approx(max(there.max(), back.max())), label
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hausdorff(found, percentile=95) == pytest.approx(hd95), label
    together = np.concatenate([there, back])
    assert average_distance(found) == pytest.approx(together.mean()), label
    for tolerance in TOLERANCES:
        assert surface_dice(found, tolerance) == pytest.approx((together <= tolerance + 1e-9).mean()), label


def test_voxel_surfaces_equal_all_pairs_of_points():
    for label, spacing, pred, reference in full_pairs():
        assert_equals_brute_force(pred, reference, np.diag(spacing), label)


def test_oblique_and_sheared_grids_equal_all_pairs_of_points():
    random = np.random.default_rng(5)
    for label, spacing, pred, reference in itertools.islice(full_pairs(), 0, None, 5):
        axes = np.linalg.qr(random.normal(size=(pred.ndim, pred.ndim)))[0] @ np.diag(spacing)
        assert_equals_brute_force(pred, reference, axes, label)
        axes[:, 0] += 0.4 * axes[:, 1]
        assert_equals_brute_force(pred, reference, axes, label)


def test_voxel_surfaces_equal_monai():
    for label, spacing, pred, reference in full_pairs():
        found = surface_distances(pred, reference, spacing)
        both = {name: torch.tensor(mask)[None, None].float() for name, mask in (("y_pred", pred), ("y", reference))}
        theirs = {**both, "include_background": True, "spacing": spacing}
        assert hausdorff(found) == pytest.approx(float(compute_hausdorff_distance(**theirs)), rel=1e-5), label
        hd95 = float(compute_hausdorff_distance(**theirs, percentile=95))
        assert hausdorff(found, percentile=95) == pytest.approx(hd95, rel=1e-5), label
        assd = float(compute_average_surface_distance(**theirs, symmetric=True))
        assert average_distance(found) == pytest.approx(assd, rel=1e-5), label
        nsd = float(compute_surface_dice(**theirs, class_thresholds=[1.05]))
        assert surface_dice(found, 1.05) == pytest.approx(nsd, rel=1e-5), label


def itk_image(mask, spacing):
    image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8).T)  # padded: ITK draws no contour on the border
    image.SetSpacing(spacing)
    return image


def test_voxel_surfaces_equal_simpleitk_on_contours():
    for label, spacing, pred, reference in full_pairs():
        found = surface_distances(pred, reference, spacing)
        contours = [
            sitk.BinaryContour(itk_image(mask, spacing), fullyConnected=False, foregroundValue=1)
            for mask in (pred, reference)
        ]
        judge = sitk.HausdorffDistanceImageFilter()
        judge.Execute(*contours)
        assert hausdorff(found) == pytest.approx(judge.GetHausdorffDistance(), rel=1e-5), label
        summed = count = 0
        for one, other in (contours, contours[::-1]):
            away = sitk.Abs(sitk.SignedMaurerDistanceMap(other, squaredDistance=False, useImageSpacing=True))
            on_surface = sitk.GetArrayFromImage(away)[sitk.GetArrayFromImage(one) > 0]
            summed, count = summed + on_surface.sum(dtype=float), count + on_surface.size
        assert average_distance(found) == pytest.approx(summed / count, rel=1e-4, abs=1e-5), label


def test_simpleitk_on_whole_masks_does_not_see_how_deep_a_hole_lies():
    solid = np.ones((9, 9, 9), bool)
    holed = solid.copy()
    holed[4, 4, 4] = False
    judge = sitk.HausdorffDistanceImageFilter()
    judge.Execute(itk_image(holed, (1, 1, 1)), itk_image(solid, (1, 1, 1)))
    assert judge.GetHausdorffDistance() == 1  # from the hole to the mask around it
    # the hole's wall is voxel 3 of 0 ... 8 on each axis, three steps from the solid's surface
    assert hausdorff(surface_distances(holed, solid, (1, 1, 1))) == 3


def test_subvoxel_surfaces_equal_the_surface_distance_package():
    package = pytest.importorskip("surface_distance", reason="pip install surface-distance-based-measures")
    for label, spacing, pred, reference in full_pairs():
        found = surface_distances(pred, reference, spacing, definition="subvoxel")
        theirs = package.compute_surface_distances(reference, pred, spacing)
        np.testing.assert_allclose(np.sort(found.pred_to_reference), theirs["distances_pred_to_gt"], atol=1e-9)
        np.testing.assert_allclose(np.sort(found.reference_weights), np.sort(theirs["surfel_areas_gt"]), atol=1e-9)
        whole = package.compute_robust_hausdorff(theirs, 100)
        assert hausdorff(found) == pytest.approx(whole), label
        assert hausdorff(found, percentile=95) == pytest.approx(package.compute_robust_hausdorff(theirs, 95)), label
        for tolerance in (1.05, 2.15):
            nsd = package.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert surface_dice(found, tolerance) == pytest.approx(nsd), label
        averages = package.compute_average_surface_distance(theirs)
        areas = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
        assert average_distance(found) == pytest.approx(np.average(averages, weights=areas)), label


def test_areas_of_all_codes_equal_the_surface_distance_package():
    tables = pytest.importorskip("surface_distance.lookup_tables", reason="pip install surface-distance-based-measures")
    for spacing in ((1.0, 1.0, 1.0), (0.7, 1.3, 5.0), (2.0, 0.4)):
        kernel = tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL if len(spacing) == 3 else tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL
        made = (
            tables.create_table_neighbour_code_to_surface_area
            if len(spacing) == 3
            else tables.create_table_neighbour_code_to_contour_length
        )
        theirs, ours = made(list(spacing)), element_sizes(spacing)
        for code, size in enumerate(ours):
            inside = [weight for bit, weight in enumerate(kernel.reshape(-1)) if code >> bit & 1]
            assert size == pytest.approx(theirs[int(sum(inside))]), (spacing, code)


def test_subvoxel_area_of_one_voxel_is_that_of_the_octahedron_of_its_faces():
    mask = np.ones((1, 1, 1), bool)
    found = surface_distances(mask, mask, (2.0, 3.0, 4.0), definition="subvoxel")
    # 8 triangles between the centers of three faces: half of |(1, 1.5, 0) - ...| as a cross product, by hand
    a, b, c = np.diag([1.0, 1.5, 2.0])
    triangle = np.linalg.norm(np.cross(b - a, c - a)) / 2
    assert found.pred_weights.sum() == pytest.approx(8 * triangle)


def test_subvoxel_area_of_a_ball_nears_that_of_the_sphere():
    grid = np.stack(np.meshgrid(*[np.arange(-24, 25)] * 3, indexing="ij"))
    found = surface_distances(*[(grid**2).sum(axis=0) <= 20**2] * 2, (1, 1, 1), definition="subvoxel")
    # a marching cube of a yes-or-no mask has no slopes between its steps: up to a tenth too much
    assert 1.0 < found.pred_weights.sum() / (4 * np.pi * 20**2) < 1.12


@pytest.mark.parametrize("definition", ["voxel", "subvoxel"])
def test_a_missing_surface_has_no_distance_and_no_surface_dice(definition):
    nothing, something = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    something[1, 2, 3] = True
    for pred, reference in ((nothing, something), (something, nothing)):
        found = surface_distances(pred, reference, (1, 1, 1), definition=definition)
        assert found.empty
        assert (hausdorff(found), hausdorff(found, percentile=95), average_distance(found)) == (None, None, None)
        assert surface_dice(found, 1000) == 0
    neither = surface_distances(nothing, nothing, (1, 1, 1), definition=definition)
    assert neither.empty
    assert (hausdorff(neither), average_distance(neither), surface_dice(neither, 1)) == (None, None, None)


def test_a_distance_that_equals_the_tolerance_is_within_it():
    pred, reference = np.zeros((8, 3), bool), np.zeros((8, 3), bool)
    pred[1, 1], reference[4, 1] = True, True
    found = surface_distances(pred, reference, (0.7, 1.0))
    assert 3 * 0.7 < 2.1  # as floats are
    assert found.pred_to_reference[0] == pytest.approx(2.1)
    assert surface_dice(found, 2.1) == 1
    assert surface_dice(surface_distances(pred, reference, (0.1, 1.0)), 0.3) == 1  # 3 x 0.1 is above 0.3 in floats


def test_values_other_than_one_are_inside_too():
    label = np.zeros((6, 6), np.int16)
    label[1:3, 1:3], label[3:5, 1:3] = 7, -2
    assert hausdorff(surface_distances(label, label != 0, (1, 1))) == 0


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"pred is \(3, 4\) and reference \(4, 3\); bring both to one grid"):
        surface_distances(np.ones((3, 4)), np.ones((4, 3)), (1, 1))
    with pytest.raises(ValueError, match=r"axes_mm is \(3, 3\) for 2 dimensions; give one spacing or column an axis"):
        surface_distances(np.ones((3, 4)), np.ones((3, 4)), (1, 1, 1))


def test_the_pairs_have_all_that_they_should():
    assert len(PAIRS) == 200
    assert {pair.pred.ndim for pair in PAIRS} == {2, 3}
    assert any(len(set(pair.spacing)) == 3 for pair in PAIRS)
    for wanted in ("nothing-blobs", "blobs-nothing", "nothing-nothing", "one_voxel", "everything", "corner"):
        assert any(wanted in pair.name for pair in PAIRS), wanted
    assert len(list(full_pairs())) > len(PAIRS) * len(REGIONS) / 2
