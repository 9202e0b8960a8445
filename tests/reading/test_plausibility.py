"""Hounsfield units (HU), and what exporters make of them, on a drawn body and on real scans."""

import re
import time

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.reading import Scan, read_scan
from medseg.reading.plausibility import check_hu

AIR, FAT, SOFT, BONE = -1000, -100, 50, 700


def body(padding=None, noise=10.0):
    """A round of soft tissue in fat in air, with a bone; HU in float32."""
    rng = np.random.default_rng(0)
    x, y, _ = np.ogrid[-1:1:64j, -1:1:60j, -1:1:20j]
    radius = np.sqrt(x**2 + y**2) + np.zeros((64, 60, 20))
    hu = np.select([radius < 0.1, radius < 0.6, radius < 0.75], [BONE, SOFT, FAT], AIR).astype(np.float32)
    hu += noise * rng.standard_normal(hu.shape, dtype=np.float32)
    hu = np.maximum(hu, -1024)
    return np.where(radius > 0.98, padding, hu) if padding is not None else hu


def checked(voxels):
    return check_hu(Scan(voxels, np.eye(4)), "ct.nii.gz").warnings


@pytest.mark.parametrize("padding", [None, -1024, -2000, -2048, -3024])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_hu_pass_whatever_stands_outside_the_field_of_view(padding, dtype):
    assert checked(body(padding).astype(dtype)) == ()


def test_earlier_warnings_stay():
    scan = Scan((np.abs(body()) / 2).astype(np.int16), np.eye(4), warnings=("seen before",))
    first, second = check_hu(scan, "ct.nii.gz").warnings
    assert first == "seen before"
    assert "no air or fat" in second


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda hu: hu + 1024, r"values look like HU \+ 1024 \(soft tissue near 1024\); its rescale intercept is lost"),
        (lambda hu: np.clip(hu + 1024, 0, 4095).astype(np.uint16), r"values look like HU \+ 1024"),
        (lambda hu: hu - 1024, r"values look like HU - 1024 .*; its rescale intercept was applied twice"),
        (lambda hu: hu.astype(np.int16).view(np.uint16).astype(np.float32), "values near 65000 are negative HU that"),
        (
            lambda hu: (np.clip(hu + 160, 0, 400) / 400 * 255).astype(np.uint8),
            "from 0 to 255 in 8 bits are a picture's",
        ),
        (lambda hu: np.clip(hu + 160, 0, 400) / 400, "values from 0 to 1 are scaled, not HU"),
        (lambda hu: (hu - hu.mean()) / hu.std(), "values from -.* to .* are scaled, not HU"),
        (lambda hu: np.zeros_like(hu), "every voxel is 0, so there is nothing to see"),
        (lambda hu: np.full_like(hu, -1024), "every voxel is -1024, so there is nothing to see"),
    ],
)
def test_what_cannot_be_hu_is_refused(made, message):
    with pytest.raises(DataError, match=rf"^ct.nii.gz: .*{message}.*; export the scan (in HU|again)$"):
        checked(made(body()))


@pytest.mark.parametrize("padding", [-2048, -3024])
def test_offset_is_seen_beside_padding(padding):
    with pytest.raises(DataError, match=r"HU \+ 1024"):
        checked(body(padding) + 1024)
    with pytest.raises(DataError, match=r"HU - 1024"):
        checked(body(padding) - 1024)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda hu: np.where(hu < -300, 30, hu),
            r"no air in the scan \(values from -\d+ to \d+\); it is cropped, or not",
        ),
        (lambda hu: np.abs(hu) / 2, r"values from \d+ to \d+ with no air or fat are hardly HU; check the modality"),
        (lambda hu: np.where(hu < -900, -32768, hu), "values down to -32768 are no HU; a padding that was not said?"),
        (lambda hu: np.where(hu > -500, 2500, hu), r"hardly any soft tissue \(-200 to 300 HU\) in the scan"),
    ],
)
def test_what_is_unusual_is_a_warning(made, message):
    (warning,) = checked(made(body()))
    assert re.match(message, warning)


def test_one_voxel_that_differs_is_no_constant_scan():
    voxels = np.full((200, 200, 50), -1000, dtype=np.int16)
    voxels[101, 103, 7] = 50  # not among the sampled ones
    with pytest.raises(DataError, match="are scaled, not HU"):
        checked(voxels)


def test_real_ct_pass_and_what_they_become_is_refused(shared_data):
    paths = sorted(shared_data.glob("ct_lesion_sts/*/CT_image.nii.gz"))
    paths.append(shared_data / "ct_liver_totalseg" / "example_ct.nii.gz")
    for path in paths:
        scan = read_scan(path)
        assert check_hu(scan, path.name).warnings == (), path.parent.name
        hu = scan.voxels.astype(np.float32)
        for changed in (hu + 1024, hu - 1024, np.clip(hu, 0, 1) * 1.0):
            with pytest.raises(DataError, match=r"; export the scan in HU$"):
                check_hu(Scan(changed, scan.affine), path.name)


def test_real_mr_is_warned_of_or_refused(shared_data):
    scans = {path.name: read_scan(path) for path in sorted(shared_data.glob("mr_hippocampus/images/*.nii.gz"))}
    for name, scan in scans.items():
        assert re.search("hardly HU; check the modality|export the scan in HU", verdict(scan, name)), name


def verdict(scan, name):
    try:
        return "".join(check_hu(scan, name).warnings)
    except DataError as error:
        return str(error)


def test_a_large_scan_takes_milliseconds():
    """Compared with one pass over the same voxels, so that the machine's speed does not matter."""
    voxels = np.asfortranarray(np.broadcast_to(body()[:, :, :1], (64, 60, 3000))).astype(np.int16)

    def seconds(call):
        start = time.process_time()
        call()
        return time.process_time() - start

    check = min(seconds(lambda: checked(voxels)) for _ in range(3))
    one_pass = min(seconds(lambda: np.quantile(voxels, [0.001, 0.999])) for _ in range(3))
    assert check < one_pass
