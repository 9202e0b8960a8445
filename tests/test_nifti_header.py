"""Headers against nibabel's, which knows NIfTI and shares no code with ours."""

import nibabel as nib
import numpy as np
import pytest

from medseg.nifti_header import VOXEL_TYPES, NiftiHeader, header_bytes, quaternion_of, rotation_of

SPACING = np.array([0.75, 1.5, 2.5])
HALF_TURNS = [np.diag(signs) for signs in ((1, -1, -1), (-1, 1, -1), (-1, -1, 1))]


def rotations(count=200):
    """Random ones, the half turns, whose real part is 0, and some hardly away from them."""
    random = np.random.default_rng(3)
    found = [np.eye(3), *HALF_TURNS]
    found += [nib.eulerangles.euler2mat(*random.uniform(-np.pi, np.pi, 3)) for _ in range(count)]
    found += [turn @ nib.eulerangles.euler2mat(*random.normal(0, 1e-4, 3)) for turn in HALF_TURNS]
    return found


def affine_of(rotation, *, mirrored=False):
    spacing = SPACING * ((1, 1, -1) if mirrored else (1, 1, 1))
    return nib.affines.from_matvec(rotation * spacing, [-120.5, 33.25, 7.0])


@pytest.mark.parametrize("mirrored", [False, True])
def test_written_header_is_what_nibabel_writes(mirrored):
    for rotation in rotations():
        affine = affine_of(rotation, mirrored=mirrored)
        image = nib.Nifti1Image(np.empty((5, 7, 4), np.uint8), None)
        image.header.set_slope_inter(1, 0)
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        image.header.set_xyzt_units("mm")
        image.header["vox_offset"] = 352
        block = header_bytes((5, 7, 4), np.dtype(np.uint8), affine)
        assert len(block) == 352
        assert block[348:] == bytes(4)
        ours = nib.Nifti1Header(block[:348])
        for name in ours:
            if not name.startswith("quatern"):  # of a half turn nibabel may store the other of two signs
                assert np.array_equal(ours[name], image.header[name]), name
        assert np.allclose(ours.get_qform(), image.get_qform(), rtol=0, atol=2e-3 * SPACING.max())  # float32 near 180
        assert np.allclose(ours.get_qform(), affine, rtol=0, atol=2e-3 * SPACING.max())


@pytest.mark.parametrize("rotation", rotations(20))
def test_quaternion_and_rotation_are_inverse(rotation):
    imaginary = quaternion_of(rotation)
    real = np.sqrt(max(0.0, 1 - imaginary @ imaginary))
    assert np.allclose(nib.quaternions.quat2mat([real, *imaginary]), rotation, rtol=0, atol=1e-6)
    assert np.allclose(rotation_of(real, imaginary), nib.quaternions.quat2mat([real, *imaginary]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_field_is_read_as_nibabel_reads_it(kind, order):
    for number, rotation in enumerate(rotations(50)):
        header = kind(endianness=order)
        header.set_data_dtype([np.int16, np.float32, np.uint8][number % 3])
        header.set_data_shape((5, 7, 4 + number))
        header.set_qform(affine_of(rotation, mirrored=bool(number % 2)), code=1)
        header.set_sform(affine_of(rotation), code=2)
        header.set_slope_inter(0.5, -3.0)
        header.set_xyzt_units("micron")
        header["vox_offset"] = 1024
        ours = NiftiHeader(header.binaryblock + bytes(7))
        assert ours.magic == header["magic"].item()[:3]
        assert ours.shape == header.get_data_shape()
        assert ours.voxel_type == header.get_data_dtype()
        assert ours.slope_and_intercept == header.get_slope_inter()
        assert np.array_equal(ours.sform, header.get_sform())
        assert np.allclose(ours.qform, header.get_qform(), rtol=0, atol=1e-9)
        for name in ("vox_offset", "xyzt_units", "sform_code", "qform_code", "datatype"):
            assert ours.number(name) == header[name]


def test_voxel_types_have_the_codes_of_nibabel():
    known = nib.Nifti1Header._data_type_codes
    for code, voxel_type in VOXEL_TYPES.items():
        assert voxel_type == known.dtype[code]
    whole = [code for code in known.value_set("code") if known.dtype[code].itemsize and known.dtype[code].kind in "iuf"]
    assert set(whole) - {1536} <= set(VOXEL_TYPES)  # numbers of 128 bits are refused


@pytest.mark.parametrize(
    "block", [b"", bytes(348), (348).to_bytes(4, "little") + bytes(343), b"\x00\x00\x02\x1c" * 100]
)
def test_what_is_no_header_is_refused(block):
    with pytest.raises(ValueError, match="no header of 348 or 540 bytes"):
        NiftiHeader(block)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("quatern_b", 1.1, "quaternion longer than 1"),
        ("pixdim", (2, 1, 1, 1, 1, 1, 1, 1), r"qfac \(pixdim\[0\]\) is 2, not 1 or -1"),
        ("pixdim", (1, 1, -1, 1, 1, 1, 1, 1), "negative voxel sizes"),
    ],
)
def test_a_quaternion_that_is_none_is_refused(field, value, message):
    header = nib.Nifti1Header()
    header[field] = value
    with pytest.raises(ValueError, match=message):
        _ = NiftiHeader(header.binaryblock).qform


def test_qfac_of_0_is_read_as_1():
    header = nib.Nifti1Header()
    header.set_qform(affine_of(HALF_TURNS[0]), code=1)
    expected = header.get_qform()
    header["pixdim"][0] = 0
    assert np.allclose(NiftiHeader(header.binaryblock).qform, expected)


def test_slope_of_0_leaves_values_alone_and_an_infinite_intercept_is_refused():
    header = nib.Nifti1Header()
    header["scl_slope"], header["scl_inter"] = 0, 5
    assert NiftiHeader(header.binaryblock).slope_and_intercept == (1.0, 0.0)
    header["scl_slope"], header["scl_inter"] = 2, np.inf
    with pytest.raises(ValueError, match="slope 2 with intercept inf"):
        _ = NiftiHeader(header.binaryblock).slope_and_intercept


@pytest.mark.parametrize(
    ("shape", "voxel_type", "message"),
    [
        ((3, 4, 5), np.bool_, "no voxels of type bool"),
        ((3, 4, 40000), np.uint8, r"no grid of \(3, 4, 40000\) voxels"),
        ((1,) * 8, np.uint8, "no grid of"),
    ],
)
def test_what_nifti_1_cannot_hold_is_refused(shape, voxel_type, message):
    with pytest.raises(ValueError, match=message):
        header_bytes(shape, np.dtype(voxel_type), np.eye(4))
