"""Surfaces: closed, outward, of the mask's volume and place, also for single voxels and grids of any handedness."""

import numpy as np
import pytest
import trimesh

from medseg.errors import DataError
from medseg.formats.mesh import enclosed_volume, surface, write_stl

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = np.array([[0.78, -0.1, 0.2, -120.0], [0.11, 0.79, 0.3, 44.0], [-0.05, -0.08, 2.4, 310.0], [0, 0, 0, 1]])


def ball(radius, size=31):
    center = size // 2
    return sum((axis - center) ** 2 for axis in np.ogrid[:size, :size, :size]) <= radius**2


def shell():
    return ball(12) & ~ball(6)


def scattered():
    mask = np.zeros((9, 8, 7), bool)
    mask[0, 0, 0] = mask[8, 7, 6] = True  # at the border
    mask[3:5, 3:5, 3] = True
    mask[5, 5, 4] = True  # touches by a corner
    return mask


MASKS = {"ball": ball(12), "pea": ball(1.5), "voxel": ball(0), "shell": shell(), "scattered": scattered()}
GRIDS = {"thick": np.diag([0.7, 0.7, 3.0, 1.0]), "mirrored": np.diag([-1.0, 1.0, 1.0, 1.0]), "oblique": OBLIQUE}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)
def test_a_surface_file_is_closed_and_has_the_volume_and_place_of_its_mask(tmp_path, mask, affine):
    write_stl(mask, affine, tmp_path / "a.stl")
    mesh = trimesh.load(tmp_path / "a.stl")
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    volume = mask.sum() * abs(np.linalg.det(affine[:3, :3]))
    assert mesh.volume == pytest.approx(volume, rel=0.02)  # positive: triangles face outward
    to_voxel = np.linalg.inv(RAS_TO_LPS @ affine)
    center = (to_voxel @ np.append(mesh.center_mass, 1))[:3]
    np.testing.assert_allclose(center, np.argwhere(mask).mean(axis=0), atol=0.5)  # voxels


def test_the_file_says_its_space(tmp_path):
    write_stl(ball(3), np.eye(4), tmp_path / "a.stl")
    assert (tmp_path / "a.stl").read_bytes()[:80].rstrip(b"\0") == b"medseg SPACE=LPS"


def test_a_ball_is_round():
    vertices, triangles = surface(ball(12), np.eye(4))
    radii = np.linalg.norm(vertices - 15, axis=1)
    assert abs(radii - 12).max() < 1.0
    assert enclosed_volume((vertices, triangles)) == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.03)


def test_an_empty_structure_has_no_surface(tmp_path):
    assert len(surface(np.zeros((3, 3, 3), bool), np.eye(4))[0]) == 0
    with pytest.raises(DataError, match="the structure is empty"):
        write_stl(np.zeros((3, 3, 3), bool), np.eye(4), tmp_path / "a.stl")
