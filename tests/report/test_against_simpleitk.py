"""Volumes, lesion counts, centers and diameters against SimpleITK, on anisotropic and oblique phantoms."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.data.phantom import phantom_case
from medseg.report import measure

REGIONS = {"liver": [1, 2], "tumor": [2]}
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def turned(affine, degrees):
    """The affine of a patient who lies askew in the scanner."""
    first, second, third = np.radians(degrees)
    about_x = [[1, 0, 0], [0, np.cos(first), -np.sin(first)], [0, np.sin(first), np.cos(first)]]
    about_y = [[np.cos(second), 0, np.sin(second)], [0, 1, 0], [-np.sin(second), 0, np.cos(second)]]
    about_z = [[np.cos(third), -np.sin(third), 0], [np.sin(third), np.cos(third), 0], [0, 0, 1]]
    rotation = np.eye(4)
    rotation[:3, :3] = np.array(about_x) @ about_y @ about_z
    return rotation @ affine


def as_simpleitk(mask, affine):
    lps = RAS_TO_LPS @ affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(mask.T).astype(np.uint8))
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def shapes(mask, affine, *, pieces):
    """SimpleITK's statistics of a mask, or of each of its connected pieces."""
    image = as_simpleitk(mask, affine)
    if pieces:
        image = sitk.ConnectedComponent(image, True)
    found = sitk.LabelShapeStatisticsImageFilter()
    found.ComputeFeretDiameterOn()
    found.Execute(image)
    return found


@pytest.mark.parametrize("degrees", [(0, 0, 0), (14, -8, 21)], ids=["straight", "oblique"])
@pytest.mark.parametrize("seed", [1, 5, 9])
def test_a_phantoms_measurements_are_simpleitks(seed, degrees):
    case = phantom_case(seed, shape=(72, 64, 36), tumors=3)
    affine = turned(case.affines[0], degrees)
    row, lesions = measure(case.label, affine, regions=REGIONS, lesion_region="tumor")
    for region, values in REGIONS.items():
        theirs = shapes(np.isin(case.label, values), affine, pieces=False)
        assert row[f"{region}_ml"] == pytest.approx(theirs.GetPhysicalSize(1) / 1000, rel=1e-6)
    theirs = shapes(case.label == 2, affine, pieces=True)
    assert row["lesion_count"] == len(lesions) == theirs.GetNumberOfLabels() > 0
    # a voxel diagonal: SimpleITK measures between centers of voxels, we between their corners
    voxel_mm = max(np.linalg.norm(affine[:3, :3] @ (1, y, z)) for y in (1, -1) for z in (1, -1))
    for lesion in lesions:
        center = np.array([-lesion["x_mm"], -lesion["y_mm"], lesion["z_mm"]])
        same = min(theirs.GetLabels(), key=lambda number: np.linalg.norm(theirs.GetCentroid(number) - center))
        np.testing.assert_allclose(theirs.GetCentroid(same), center, atol=1e-3)
        assert lesion["volume_ml"] == pytest.approx(theirs.GetPhysicalSize(same) / 1000, rel=1e-6)
        apart = lesion["longest_3d_diameter_mm"] - theirs.GetFeretDiameter(same)
        assert -1e-6 <= apart <= 1.01 * voxel_mm
        assert lesion["longest_in_plane_diameter_mm"] <= lesion["longest_3d_diameter_mm"] + 1e-6
