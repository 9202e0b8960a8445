"""NIfTI files written by nibabel, or byte by byte where nibabel would refuse to."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import DataError
from medseg.reading import read_grid, read_scan
from medseg.reading.scan import damaged

AFFINE = np.array([[-0.75, 0.0, 0.0, 33.25], [0.0, 0.0, 2.5, -10.5], [0.0, 1.5, 0.0, 7.0], [0, 0, 0, 1]])
SHAPE = (5, 7, 4)
VOXELS = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)

# byte offsets of NIfTI-1 header fields
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT, UNITS, QFORM_CODE, SFORM_CODE, QUATERN_B, SROW_X, MAGIC = (
    40, 70, 76, 108, 112, 116, 123, 252, 254, 256, 280, 344,
)  # fmt: skip


def save(path, voxels=VOXELS, affine=AFFINE, *, kind=nib.Nifti1Image, slope=None, intercept=0.0):
    image = kind(voxels, affine)
    image.header.set_xyzt_units("mm")
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
    nib.save(image, path)
    return path


def patch(path, *changes):
    """Overwrite header fields: `(offset, struct format, values...)`."""
    content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    for offset, layout, *values in changes:
        struct.pack_into("<" + layout, content, offset, *values)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else bytes(content))
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "SCAN.NII.GZ"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_scan_is_what_nibabel_wrote(tmp_path, name, kind, order):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    image = kind(VOXELS, AFFINE, header=header)
    path = tmp_path / name
    path.write_bytes(gzip.compress(image.to_bytes()) if name.lower().endswith("gz") else image.to_bytes())
    scan = read_scan(path)
    assert scan.voxels.dtype == np.int16
    assert scan.voxels.dtype.isnative
    assert np.array_equal(scan.voxels, VOXELS)
    assert np.array_equal(scan.affine, AFFINE)
    assert scan.warnings == ()
    assert scan.voxels.flags.writeable  # torch warns about tensors that share read-only memory
    shape, affine = read_grid(path)
    assert shape == SHAPE
    assert np.array_equal(affine, AFFINE)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (np.uint8, np.uint8),
        (np.int8, np.int16),
        (np.uint16, np.int16),
        (np.int32, np.int16),
        (np.int64, np.int16),
        (np.float32, np.float32),
        (np.float64, np.float32),
    ],
)
def test_voxel_type_is_small(tmp_path, stored, read):
    voxels = np.random.default_rng(1).integers(0, 120, SHAPE).astype(stored)
    nib.save(nib.Nifti1Image(voxels, AFFINE, dtype=stored), tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert scan.voxels.dtype == read
    assert np.array_equal(scan.voxels, voxels)


def test_numbers_beyond_int16_become_float32(tmp_path):
    scan = read_scan(save(tmp_path / "scan.nii", np.full(SHAPE, 40000, dtype=np.int32)))
    assert scan.voxels.dtype == np.float32
    assert (scan.voxels == 40000).all()


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "read"),
    [
        (np.int16, 1.0, -1024.0, np.int16),
        (np.uint16, 1.0, -1024.0, np.int16),
        (np.uint8, 2.0, -100.0, np.int16),
        (np.int16, 0.5, 10.0, np.float32),
        (np.int16, 300.0, 0.0, np.float32),
        (np.float32, 2.0, -3.0, np.float32),
    ],
)
def test_rescale_is_applied_and_kept_in_int16_where_it_is_whole(tmp_path, stored, slope, intercept, read):
    raw = np.random.default_rng(2).integers(0, 250, SHAPE).astype(stored)
    path = save(tmp_path / "scan.nii.gz", raw)
    patch(path, (SLOPE, "2f", slope, intercept))
    scan = read_scan(path)
    assert scan.voxels.dtype == read
    assert np.allclose(scan.voxels, raw.astype(np.float64) * slope + intercept)
    assert np.allclose(scan.voxels, nib.load(path).get_fdata())


def test_rescale_that_leaves_int16_does_not_wrap(tmp_path):
    path = patch(save(tmp_path / "scan.nii", np.full(SHAPE, 32000, dtype=np.int16)), (SLOPE, "2f", 1.0, 2000.0))
    assert (read_scan(path).voxels == 34000).all()


def test_trailing_axis_of_one_volume_is_dropped(tmp_path):
    path = save(tmp_path / "scan.nii", VOXELS[..., None])
    assert read_scan(path).voxels.shape == SHAPE
    assert read_grid(path)[0] == SHAPE


def test_header_extension_is_skipped(tmp_path):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"seen by a scanner"))
    nib.save(image, tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    assert np.array_equal(scan.voxels, VOXELS)
    assert scan.warnings == ()


def test_qform_holds_where_there_is_no_sform(tmp_path):
    image = nib.Nifti1Image(VOXELS, None)
    image.set_qform(AFFINE, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "scan.nii")
    assert np.allclose(read_scan(tmp_path / "scan.nii").affine, AFFINE, atol=1e-5)


def test_handedness_that_is_not_said_is_right_handed_as_the_standard_has_it(tmp_path):
    image = nib.Nifti1Image(VOXELS, None)
    image.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), code=1)
    nib.save(image, tmp_path / "scan.nii")
    patch(tmp_path / "scan.nii", (PIXDIM, "f", 0.0))
    assert np.allclose(read_scan(tmp_path / "scan.nii").affine, np.diag([2.0, 3.0, 4.0, 1.0]))


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.6, 0.97])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_file_cut_short_is_refused(tmp_path, name, fraction):
    path = save(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(DataError, match=r"^scan.nii(.gz)?: .*cut short.*; copy or export it again$"):
        read_scan(path)


@pytest.mark.parametrize("lost", [1, 4, 8])
def test_gzip_without_its_whole_trailer_is_refused(tmp_path, lost):
    path = save(tmp_path / "scan.nii.gz")
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(DataError, match=r"damaged or cut short \(.*end-of-stream"):
        read_scan(path)


def test_wrong_checksum_is_refused(tmp_path):
    path = save(tmp_path / "scan.nii.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"scan.nii.gz: damaged or cut short \(CRC check failed.*; copy or export it"):
        read_scan(path)


def test_flipped_bit_in_the_compressed_voxels_is_refused(tmp_path):
    path = tmp_path / "scan.nii.gz"
    content = bytearray(gzip.compress(nib.Nifti1Image(VOXELS, AFFINE).to_bytes(), compresslevel=0))
    content[-100] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"CRC check failed"):
        read_scan(path)


def test_text_under_a_scan_name_is_refused(tmp_path):
    for name in ("scan.nii", "scan.nii.gz"):
        (tmp_path / name).write_bytes(b"<html>not found</html>" * 40)
    with pytest.raises(DataError, match=r"scan.nii: not a NIfTI file, or cut short in its header; copy or export it"):
        read_scan(tmp_path / "scan.nii")
    with pytest.raises(DataError, match=r"scan.nii.gz: damaged or cut short \(Not a gzipped file"):
        read_scan(tmp_path / "scan.nii.gz")


def test_more_slices_declared_than_there_are_is_refused(tmp_path):
    path = patch(save(tmp_path / "scan.nii.gz"), (DIM + 6, "h", 40))
    with pytest.raises(DataError, match=r"cut short: 280 of 2800 voxel bytes"):
        read_scan(path)


def test_declared_terabytes_are_refused_before_memory_is_taken(tmp_path):
    path = patch(save(tmp_path / "scan.nii.gz"), (DIM + 2, "3h", 30000, 30000, 30000))
    with pytest.raises(DataError, match=r"cut short: \d+ bytes cannot hold the \(30000, 30000, 30000\) voxels"):
        read_scan(path)


def test_few_bytes_after_the_voxels_are_a_warning(tmp_path):
    path = save(tmp_path / "scan.nii")
    path.write_bytes(path.read_bytes() + b"\0" * 24)
    scan = read_scan(path)
    assert np.array_equal(scan.voxels, VOXELS)
    assert scan.warnings == ("24 bytes after the voxels were ignored",)


def test_many_bytes_after_the_voxels_are_refused(tmp_path):
    path = save(tmp_path / "scan.nii")
    path.write_bytes(path.read_bytes() + b"\0" * (2 << 20))
    with pytest.raises(DataError, match=r"more voxels than the header's \(5, 7, 4\); export the scan again"):
        read_scan(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinite_voxels_are_refused(tmp_path, bad, dtype):
    voxels = VOXELS.astype(dtype)
    voxels[1, 2, 3] = voxels[4, 6, 0] = bad
    with pytest.raises(DataError, match=r"scan.nii.gz: 2 of 140 voxels are NaN or infinite; repair or export the scan"):
        read_scan(save(tmp_path / "scan.nii.gz", voxels))


def test_numbers_beyond_float32_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"scan.nii: voxels up to 1e\+300 overflow; repair or export"):
        read_scan(save(tmp_path / "scan.nii", np.full(SHAPE, 1e300)))


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), r"colors \(RGB\)"),
        (np.complex64, "complex numbers"),
    ],
)
def test_colors_and_complex_numbers_are_refused(tmp_path, dtype, kind):
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype=dtype), AFFINE), tmp_path / "scan.nii.gz")
    with pytest.raises(DataError, match=f"scan.nii.gz: voxels are {kind}, not one real number each; export a plain"):
        read_scan(tmp_path / "scan.nii.gz")


REFUSED_HEADERS = {
    "no space": ([(SFORM_CODE, "h", 0), (QFORM_CODE, "h", 0)], "no orientation in the header .sform and qform codes"),
    "nan": ([(SROW_X, "f", np.nan)], "the affine has NaN or infinite entries; export the scan again"),
    "infinite origin": ([(SROW_X + 12, "f", np.inf)], "the affine has NaN or infinite entries"),
    "huge origin": ([(SROW_X + 12, "f", 1e30)], r"the affine has entries up to 1e\+30; export the scan again"),
    "zero row": ([(SROW_X, "4f", 0, 0, 0, 0)], "the affine is singular, so voxels have no volume"),
    "parallel axes": ([(SROW_X, "4f", 1, 1, 1, 0), (SROW_X + 16, "4f", 2, 2, 2, 0)], "the affine is singular"),
    "spacing": ([(PIXDIM + 12, "f", 5.0)], r"two voxel sizes in one header, .*0.75 x 1.5 x 5 .pixdim. and 0.75 x 1.5"),
    "unit": ([(UNITS, "B", 5)], "unknown unit of length 5 in the header; export the scan again in mm"),
    "offset 0": ([(VOX_OFFSET, "f", 0.0)], "voxels start at byte 0, inside the header; export the scan again"),
    "offset nan": ([(VOX_OFFSET, "f", np.nan)], "bad NIfTI header .*; export the scan again"),
    "offset infinite": ([(VOX_OFFSET, "f", np.inf)], "bad NIfTI header .*; export the scan again"),
    "no axis": ([(DIM, "h", 0)], r"the header declares a grid of .* voxels; export the scan again"),
    "negative axis": ([(DIM + 4, "h", -7)], r"the header declares a grid of \(5, -7, 4\) voxels"),
    "voxel type": ([(DATATYPE, "h", 999)], "unknown voxel type 999; export the scan again"),
    "two files": ([(MAGIC, "4s", b"ni1\0")], "header and voxels are in two files or it is no NIfTI; convert it to one"),
    "quaternion": (
        [(SFORM_CODE, "h", 0), (QFORM_CODE, "h", 1), (QUATERN_B, "3f", 3.0, 3.0, 3.0)],
        "bad NIfTI header .*; export the scan again",
    ),
    "intercept": ([(SLOPE, "2f", 2.0, np.inf)], "bad NIfTI header .*; export the scan again"),
}


@pytest.mark.parametrize("reader", [read_scan, read_grid])
@pytest.mark.parametrize("fault", REFUSED_HEADERS)
def test_unsound_header_is_refused(tmp_path, fault, reader):
    changes, message = REFUSED_HEADERS[fault]
    with pytest.raises(DataError, match=f"^scan.nii.gz: {message}"):
        reader(patch(save(tmp_path / "scan.nii.gz"), *changes))


@pytest.mark.parametrize(("unit", "name", "factor"), [(1, "meters", 1000.0), (3, "micrometers", 0.001)])
def test_other_units_are_converted_with_a_warning(tmp_path, unit, name, factor):
    stored = np.diag([1 / factor, 1 / factor, 1 / factor, 1]) @ AFFINE
    path = patch(save(tmp_path / "scan.nii", affine=stored), (UNITS, "B", unit))
    scan = read_scan(path)
    assert np.allclose(scan.affine, AFFINE)
    assert scan.warnings == (f"lengths are stored in {name}; converted to mm",)
    assert np.array_equal(read_grid(path)[1], scan.affine)


def test_units_of_time_do_not_matter_and_none_means_mm(tmp_path):
    for units in (0, 2 + 8):
        scan = read_scan(patch(save(tmp_path / "scan.nii"), (UNITS, "B", units)))
        assert np.array_equal(scan.affine, AFFINE)
        assert scan.warnings == ()


def test_sform_and_qform_that_disagree_on_place_are_a_warning(tmp_path):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] += 15
    image.set_qform(moved, code=1)
    image.set_sform(AFFINE, code=2)
    nib.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert np.array_equal(scan.affine, AFFINE)
    assert scan.warnings == ("sform and qform place the scan differently; the sform was used",)


def test_grid_of_a_cut_file_is_still_known(tmp_path):
    path = save(tmp_path / "scan.nii")
    path.write_bytes(path.read_bytes()[:400])
    assert read_grid(path)[0] == SHAPE


def test_grid_of_an_empty_gzip_file_is_refused(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(b"")[:9])
    with pytest.raises(DataError, match=r"scan.nii.gz: damaged or cut short"):
        read_grid(tmp_path / "scan.nii.gz")


def test_message_has_no_folder_name(tmp_path):
    path = tmp_path / "scan.nii"
    told = RuntimeError(f"ITK ERROR at\nReason: cannot open {path}.")
    assert str(damaged(path, told)) == (
        "scan.nii: damaged or cut short (cannot open scan.nii); copy or export it again"
    )
    told = PermissionError(13, "Permission denied", str(path))
    assert "(Permission denied)" in str(damaged(path, told))
    assert "(EOFError)" in str(damaged(path, EOFError()))
