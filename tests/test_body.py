from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.body import body_box, opened
from medseg.geometry import spacing_mm
from medseg.grid import turned
from medseg.inference import SlidingWindow
from medseg.postprocessing import logits_to_label
from medseg.preprocessing import ScanToGrid, Window
from medseg.reading import Scan, read_scan
from medseg.resampling import BLOCK

SPACING_MM = (2.0, 2.5, 4.0)
SHAPE = (180, 150, 40)
MOST_MM = 5.0 + 3.0 + 4.0 + 2.5  # margin, step, the rounding of both to voxels


def millimeters() -> list[np.ndarray]:
    return [axis * length for axis, length in zip(np.ogrid[tuple(map(slice, SHAPE))], SPACING_MM, strict=True)]


def patient(*, noise_hu: float = 30.0) -> tuple[np.ndarray, np.ndarray]:
    """A torso on a table in noisy air, with lungs and bowel gas, and where it is."""
    x, y, z = millimeters()
    torso = np.broadcast_to(((x - 180) / 120) ** 2 + ((y - 170) / 80) ** 2 < 1, SHAPE)
    ct = np.where(torso, 40.0, -1000.0)
    ct[np.broadcast_to(((x - 130) / 40) ** 2 + ((y - 165) / 50) ** 2 < 1, SHAPE) & (z > 80)] = -850  # lung
    ct[np.broadcast_to(((x - 220) / 30) ** 2 + ((y - 130) / 25) ** 2 < 1, SHAPE) & (z < 60)] = -1000  # gas
    bow = 252 + ((x - 180) / 60) ** 2  # the table: two shells of carbon fiber with foam between, touching the back
    shells = (np.abs(y - bow) < 2.5) | (np.abs(y - bow - 35) < 2.5)
    ct[np.broadcast_to(shells, SHAPE)] = 150
    ct[np.broadcast_to((y - bow > 2.5) & (y - bow < 32.5), SHAPE)] = -920
    ct[np.broadcast_to(((x - 60) / 4) ** 2 + ((y - 40) / 4) ** 2 < 1, SHAPE)] = 100  # a cable
    rng = np.random.default_rng(0)
    return (ct + rng.normal(0, noise_hu, SHAPE)).astype(np.int16), torso


def excess_mm(box: tuple[slice, ...], mask: np.ndarray) -> tuple[float, float]:
    """The least and the most, in mm, by which the box is larger than the mask at any side inside the field."""
    least, most = np.inf, -np.inf
    for axis, side in enumerate(box):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        for edge, end, size in ((occupied[0], side.start, 0), (occupied[-1] + 1, side.stop, mask.shape[axis])):
            gap = abs(edge - end) * SPACING_MM[axis] * (1 if (end <= edge) == (size == 0) else -1)
            least, most = min(least, gap), max(most, gap if end != size else -np.inf)
    return least, most


@pytest.mark.parametrize("padding_hu", [None, -3024, -2048])
def test_the_box_is_that_of_the_torso_not_of_table_cable_and_padding(padding_hu: int | None) -> None:
    ct, torso = patient()
    if padding_hu is not None:
        x, y, _ = millimeters()
        ct[np.broadcast_to((x - 180) ** 2 + (y - 187) ** 2 > 187**2, SHAPE)] = padding_hu
    least, most = excess_mm(body_box(ct, SPACING_MM), torso)
    assert least >= 0
    assert most <= MOST_MM


def test_arms_and_both_legs_are_body() -> None:
    x, y, _ = millimeters()
    ct, torso = patient()
    arm = np.broadcast_to(((x - 325) / 25) ** 2 + ((y - 190) / 25) ** 2 < 1, SHAPE)
    ct[arm] = 50
    least, most = excess_mm(body_box(ct, SPACING_MM), torso | arm)
    assert least >= 0
    assert most <= MOST_MM
    legs = np.broadcast_to(((np.abs(x - 180) - 90) / 60) ** 2 + ((y - 180) / 60) ** 2 < 1, SHAPE)
    least, _ = excess_mm(body_box(np.where(legs, 30, -1000).astype(np.int16), SPACING_MM), legs)
    assert least >= 0


def test_a_field_inside_the_lungs_is_kept_with_its_lungs() -> None:
    rng = np.random.default_rng(1)
    ct = rng.normal(-840, 40, SHAPE)
    x, y, _ = millimeters()
    ct[np.broadcast_to((np.abs(x - 120) < 30) & (np.abs(y - 100) < 40), SHAPE)] = 30  # the heart's edge
    whole = tuple(slice(0, size) for size in SHAPE)
    assert body_box(ct.astype(np.int16), SPACING_MM) == whole
    ct[np.broadcast_to(((x - 180) / 180) ** 2 + ((y - 187) / 187) ** 2 > 1, SHAPE)] = -2048  # a round field
    assert body_box(ct.astype(np.int16), SPACING_MM) == whole


def test_nothing_denser_than_air_is_no_body() -> None:
    assert body_box(np.full((20, 21, 22), -1000, np.int16), SPACING_MM) is None
    air = Scan(np.full((20, 21, 22), -1000, np.int16), np.diag([2.0, 2, 2, 1]))
    image, grid = ScanToGrid(spacing_mm=(3, 3, 3), intensity=Window(-100, 200), body_only=True)([air])
    assert image.shape[1:] == grid.shape == (14, 14, 15)
    assert grid.note == "no body found, the whole field is kept"


def test_a_thin_body_alone_is_one() -> None:
    ct = np.full((40, 40, 9), -1000, np.int16)
    ct[18:21, 15:25, 3:6] = 60
    box = body_box(ct, (1.0, 1.0, 1.0))
    assert box is not None
    assert all(
        side.start <= low and side.stop > high for side, low, high in zip(box, (18, 15, 3), (20, 24, 5), strict=True)
    )


def test_opening_removes_what_is_thin_and_goes_on_beyond_the_field() -> None:
    mask = np.zeros((20, 14, 9), bool)
    mask[3:8, 3:9] = True
    mask[12:16, 2:12] = True  # 4 wide
    expected = np.zeros_like(mask)
    expected[3:8, 3:9] = True
    assert np.array_equal(opened(mask, 5), expected)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("antialias", [True, False])
def test_the_box_holds_what_the_whole_field_has_there(order: str, antialias: bool) -> None:
    ct, _ = patient()
    affine = np.array([[0, -2.5, 0, 90], [-2, 0.2, 0, 180], [0, 0, 4, -30], [0, 0, 0, 1.0]])
    scan = Scan(np.asarray(ct, order=order), affine)
    settings = {"spacing_mm": (3.1, 2.2, 3.0), "intensity": Window(-100, 200), "antialias": antialias}
    whole, whole_grid = ScanToGrid(**settings)([scan])
    image, grid = ScanToGrid(**settings, body_only=True)([scan])
    assert grid.note == f"body box {'x'.join(map(str, grid.shape))} of {'x'.join(map(str, whole_grid.shape))}"
    assert image.numel() < 0.7 * whole.numel()
    assert max(grid.shape) > BLOCK
    box = tuple(slice(first, first + size) for first, size in zip(grid.start, grid.shape, strict=True))
    assert np.abs((image - whole[(slice(None), *box)]).numpy()).max() < 1e-5
    corner = [*grid.start, 1]
    assert np.allclose(grid.affine @ [0, 0, 0, 1], whole_grid.affine @ corner)
    assert spacing_mm(grid.affine) == pytest.approx((3.1, 2.2, 3.0))
    label = (ct > 0).astype(np.uint8)
    to_grid = ScanToGrid(**settings)
    assert np.array_equal(to_grid.label(label, grid)[0], to_grid.label(label, whole_grid)[0][box])


def test_a_scan_voxel_is_covered_if_its_nearest_working_voxel_is_in_the_box() -> None:
    ct, _ = patient()
    _, grid = ScanToGrid(spacing_mm=(3.1, 2.2, 3.0), intensity=Window(-100, 200), body_only=True)(
        [Scan(ct, np.diag([-2, 2.5, 4, 1.0]))]
    )
    whole = ScanToGrid(spacing_mm=(3.1, 2.2, 3.0), intensity=Window(-100, 200)).grid(SHAPE, grid.scan_affine)
    for axis, side in enumerate(grid.covered):
        nearest = np.rint(np.arange(grid.turned_shape[axis]) / grid.scale[axis]).clip(max=whole.shape[axis] - 1)
        inside = (nearest >= grid.start[axis]) & (nearest < grid.start[axis] + grid.shape[axis])
        assert np.array_equal(np.flatnonzero(inside), np.arange(side.start, side.stop))


def soft_tissue(image: torch.Tensor) -> torch.Tensor:
    """Logits of two classes from each voxel alone: what a window shows does not depend on where it lies."""
    return torch.cat([0.25 - image, image - 0.25], dim=1)  # -25 HU, between fat and muscle


@pytest.mark.slow
@pytest.mark.parametrize("series", ["dicom_ct_hcc048/HCC048_portal_venous", "dicom_ct_crlm1004/image"])
def test_real_cts_take_half_the_windows_and_keep_their_masks_inside_the_body(series: str, shared_data: Path) -> None:
    scan = read_scan(shared_data / series)
    seen, labels, boxes = [], [], []
    for body_only in (True, False):
        to_grid = ScanToGrid(spacing_mm=(1.5, 1.5, 1.5), intensity=Window(-100, 200), body_only=body_only)
        image, grid = to_grid([scan])
        count = 0

        def network(windows: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += len(windows)
            return soft_tissue(windows)

        with torch.inference_mode():
            logits = SlidingWindow((96, 96, 96), overlap=0.5)(image[None], network)
        labels.append(turned(logits_to_label(logits[0], grid), grid))
        seen.append(count)
        boxes.append(grid.covered)
    assert 2 * seen[0] <= seen[1]
    inside, whole = (label[boxes[0]] for label in labels)
    assert 2 * (inside & whole).sum() / (inside.sum() + whole.sum()) >= 0.999
