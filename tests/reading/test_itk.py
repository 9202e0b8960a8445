"""NRRD and MetaImage files written by SimpleITK, then damaged byte by byte."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.errors import DataError
from medseg.geometry import orientation_code
from medseg.reading import read_channels, read_grid, read_scan

SHAPE = (7, 5, 6)
VOXELS = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
FILES = [("scan.mha", False), ("scan.mha", True), ("scan.nrrd", False), ("scan.nrrd", True)]


def save(path, voxels=VOXELS, *, compressed=False, is_vector=False):
    image = sitk.GetImageFromArray(voxels.T if not is_vector else voxels, isVector=is_vector)
    if image.GetDimension() == 3:
        image.SetSpacing((0.75, 1.5, 2.5))
        image.SetOrigin((10.0, 20.0, -30.0))
        image.SetDirection((1, 0, 0, 0, 0, -1, 0, 1, 0))
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


def replace_text(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


@pytest.mark.parametrize(("name", "compressed"), [*FILES, ("scan.mhd", False), ("scan.mhd", True)])
def test_voxels_and_grid_are_those_of_simpleitk(tmp_path, name, compressed):
    path = save(tmp_path / name, compressed=compressed)
    scan = read_scan(path)
    image = sitk.ReadImage(str(path))
    assert scan.voxels.dtype == np.int16
    assert np.array_equal(scan.voxels, VOXELS)
    for index in [(0, 0, 0), (6, 4, 5)]:
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        assert np.allclose(scan.affine @ (*index, 1), (-left, -posterior, superior, 1))
    assert orientation_code(scan.affine) == "LSA"
    shape, affine = read_grid(path)
    assert shape == SHAPE
    assert np.array_equal(affine, scan.affine)
    assert scan.voxels.flags.writeable


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_voxel_type_is_small(tmp_path, dtype):
    voxels = np.abs(VOXELS).astype(dtype)
    scan = read_scan(save(tmp_path / "scan.nrrd", voxels))
    assert scan.voxels.dtype == {np.uint8: np.uint8, np.uint16: np.int16, np.float64: np.float32}[dtype]
    assert np.array_equal(scan.voxels, voxels)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.6, 0.99])
@pytest.mark.parametrize(("name", "compressed"), FILES)
def test_file_cut_short_is_refused(tmp_path, name, compressed, fraction):
    path = save(tmp_path / name, compressed=compressed)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(DataError, match=rf"^{name}: .*; (copy or )?export (it|the scan) again$"):
        read_scan(path)


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd"])
@pytest.mark.parametrize("lost", [1, 4])
def test_compressed_stream_without_its_end_is_refused(tmp_path, name, lost):
    path = save(tmp_path / name, compressed=True)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(
        DataError, match=rf"{name}: damaged or cut short \(Compressed file ended before.*; copy or export it again"
    ):
        read_scan(path)


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd"])
def test_wrong_checksum_is_refused(tmp_path, name):
    path = save(tmp_path / name, compressed=True)
    content = bytearray(path.read_bytes())
    content[-6 if name == "scan.nrrd" else -2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: damaged or cut short .*(CRC|checksum).*; copy or export it again"):
        read_scan(path)


@pytest.mark.parametrize(("compressed", "voxel_file"), [(False, "scan.raw"), (True, "scan.zraw")])
def test_detached_voxels_that_are_cut_or_missing_are_refused(tmp_path, compressed, voxel_file):
    path = save(tmp_path / "scan.mhd", compressed=compressed)
    content = (tmp_path / voxel_file).read_bytes()
    (tmp_path / voxel_file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"scan.mhd: .*cut short"):
        read_scan(path)
    (tmp_path / voxel_file).unlink()
    with pytest.raises(DataError, match=f"scan.mhd: its voxel file {voxel_file} is missing; put it beside the header"):
        read_grid(path)


def test_detached_voxels_are_looked_for_beside_the_header_alone(tmp_path):
    path = save(tmp_path / "scan.mhd")
    replace_text(path, b"= scan.raw", b"= /etc/hostname")
    with pytest.raises(DataError, match=r"scan.mhd: its voxel file hostname is missing"):
        read_scan(path)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("scan.nrrd", b"space: left", b"spice: left", "no 'space' in the header, so the grid is unknown; export"),
        ("scan.nrrd", b"space directions", b"space dimension_", "no 'space directions' in the header, so the grid"),
        ("scan.nrrd", b"space origin", b"space orogin", "no 'space origin' in the header, so the grid is unknown"),
        ("scan.mha", b"Offset", b"Onset", "no 'Offset' in the header, so the grid is unknown; export the scan again"),
        ("scan.nrrd", b"endian: little", b'space units: "ft" "m" "m"\nendian: little', "lengths are in ft m; export"),
        ("scan.nrrd", b"NRRD", b"NARD", "not an NRRD file; copy or export it again"),
        ("scan.mha", b"ElementSpacing", b"ElementSpocing", "no 'ElementSpacing' in the header, so the grid is unknown"),
        ("scan.mha", b"TransformMatrix", b"TransfermMatrix", "no 'TransformMatrix' in the header, so the grid is"),
        ("scan.mha", b"ElementDataFile", b"ElementDotaFile", "not a MetaImage file; copy or export it again"),
    ],
)
@pytest.mark.parametrize("reader", [read_scan, read_grid])
def test_header_without_a_known_grid_is_refused(tmp_path, name, old, new, message, reader):
    path = replace_text(save(tmp_path / name), old, new)
    with pytest.raises(DataError, match=f"^{name}: {message}"):
        reader(path)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("scan.mha", b"Offset = 10", b"Offset = inf", r"'Offset = inf 20 -30' in the header is no grid"),
        ("scan.mha", b"Offset = 10", b"Offset = ten", r"'Offset = ten 20 -30' in the header is no grid"),
        ("scan.mha", b"TransformMatrix = 1", b"TransformMatrix = nan", r"'TransformMatrix = nan .*' in the header is"),
        (
            "scan.mha",
            b"TransformMatrix = 1",
            b"TransformMatrix = 0",
            r"the affine is singular, so voxels have no volume",
        ),
        (
            "scan.mha",
            b"ElementSpacing = 0.75",
            b"ElementSpacing = -0.7",
            r"'ElementSpacing = -0.7 .*' in the header is",
        ),
        ("scan.mha", b"ElementSpacing = 0.75", b"ElementSpacing = 0", r"'ElementSpacing = 0 .*' in the header is no"),
        ("scan.nrrd", b"space origin: (10", b"space origin: (nan", r"'space origin = nan .*' in the header is no grid"),
        ("scan.nrrd", b"space directions: (0.75", b"space directions: (0", r"the affine is singular"),
    ],
)
def test_unsound_grid_is_refused(tmp_path, name, old, new, message):
    path = replace_text(save(tmp_path / name), old, new)
    with pytest.raises(DataError, match=f"^{name}: {message}.* again$"):
        read_scan(path)


def test_nan_is_refused(tmp_path):
    voxels = VOXELS.astype(np.float32)
    voxels[0, 1, 2] = np.nan
    with pytest.raises(DataError, match=r"scan.nrrd: 1 of 210 voxels are NaN or infinite"):
        read_scan(save(tmp_path / "scan.nrrd", voxels))


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd"])
def test_colors_are_refused(tmp_path, name):
    path = save(tmp_path / name, np.zeros((4, 5, 6, 3), dtype=np.uint8), is_vector=True)
    with pytest.raises(DataError, match=f"{name}: voxels are colors or vectors, not one real number each; export"):
        read_scan(path)


def test_flat_image_is_refused(tmp_path):
    path = save(tmp_path / "scan.mha", VOXELS[..., 0])
    with pytest.raises(DataError, match=r"scan.mha: 2D, shape \(7, 5\), where one 3D scan is wanted"):
        read_scan(path)


def test_windows_line_ends_are_read(tmp_path):
    path = save(tmp_path / "scan.nrrd", compressed=True)
    text, _, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(text.replace(b"\n", b"\r\n") + b"\r\n\r\n" + voxels)
    assert np.array_equal(read_scan(path).voxels, VOXELS)


@pytest.mark.parametrize(("name", "compressed"), FILES)
def test_oblique_scan_lies_where_simpleitk_sees_it(tmp_path, name, compressed):
    image = sitk.GetImageFromArray(VOXELS.T)
    turn = sitk.Euler3DTransform((0, 0, 0), 0.4, -0.7, 1.1)
    image.SetDirection(turn.GetMatrix())
    image.SetSpacing((0.75, 1.5, 2.5))
    image.SetOrigin((10.0, 20.0, -30.0))
    path = tmp_path / name
    sitk.WriteImage(image, str(path), useCompression=compressed)
    scan = read_scan(path)
    for index in [(0, 0, 0), (6, 4, 5), (0, 4, 0), (6, 0, 0), (0, 0, 5)]:
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        assert np.allclose(scan.affine @ (*index, 1), (-left, -posterior, superior, 1))


@pytest.mark.parametrize(
    ("name", "dtype", "old", "new"),
    [
        ("scan.nrrd", np.int16, b"endian: little", b"endian: big"),
        ("scan.mha", np.float32, b"BinaryDataByteOrderMSB = False", b"BinaryDataByteOrderMSB = True"),
    ],
)
def test_big_endian_voxels_are_read(tmp_path, name, dtype, old, new):
    path = replace_text(save(tmp_path / name, VOXELS.astype(dtype).byteswap()), old, new)
    assert np.array_equal(read_scan(path).voxels, VOXELS)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, VOXELS)


@pytest.mark.parametrize(("space", "signs"), [("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1))])
def test_nrrd_spaces_in_which_left_is_known(tmp_path, space, signs):
    path = save(tmp_path / "scan.nrrd")
    replace_text(path, b"space: left-posterior-superior", b"space: " + space.encode())
    assert np.allclose(read_scan(path).affine[:3, 3], np.multiply(signs, (10, 20, -30)))


def test_nrrd_space_without_sides_is_refused(tmp_path):
    path = replace_text(save(tmp_path / "scan.nrrd"), b"space: left-posterior-superior", b"space: scanner-xyz")
    with pytest.raises(DataError, match=r"scan.nrrd: the space 'scanner-xyz' does not say where left is; export"):
        read_scan(path)


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd"])
def test_channels_on_the_fourth_axis_are_split(tmp_path, name):
    stored = np.stack([VOXELS, VOXELS + 1], axis=-1)
    path = tmp_path / name
    if name == "scan.mha":
        sitk.WriteImage(sitk.GetImageFromArray(stored.T, isVector=False), str(path))
    else:
        header, _, _ = save(path).read_bytes().partition(b"\n\n")
        header = header.replace(b"dimension: 3", b"dimension: 4").replace(b"sizes: 7 5 6", b"sizes: 7 5 6 2")
        header = header.replace(b"kinds: domain domain domain", b"kinds: domain domain domain list")
        lines = [line + b" none" if line.startswith(b"space directions") else line for line in header.split(b"\n")]
        path.write_bytes(b"\n".join(lines) + b"\n\n" + stored.tobytes(order="F"))
    first, second = read_channels(path, ["one", "two"])
    assert np.array_equal(first.voxels, VOXELS)
    assert np.array_equal(second.voxels, VOXELS + 1)


@pytest.mark.parametrize(("skipped", "junk"), [("16", b"x" * 16), ("-1", b"x" * 1000)])
def test_voxels_behind_the_header_of_another_program_are_found(tmp_path, skipped, junk):
    path = save(tmp_path / "scan.mhd")
    (tmp_path / "scan.raw").write_bytes(junk + (tmp_path / "scan.raw").read_bytes())
    replace_text(path, b"ElementDataFile", f"HeaderSize = {skipped}\nElementDataFile".encode())
    assert np.array_equal(read_scan(path).voxels, VOXELS)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("scan.mha", b"MET_SHORT", b"MET_STRANGE", "unknown voxel type 'MET_STRANGE'; export the scan again"),
        ("scan.nrrd", b"type: short", b"type: block", "unknown voxel type 'block'; export the scan again"),
        ("scan.nrrd", b"endian: little\n", b"", "the byte order of its voxels is not said; export the scan again"),
        (
            "scan.nhdr",
            b"endian: little",
            b"endian: little\nline skip: 3",
            "where its voxels begin is told in a way not",
        ),
        ("scan.mhd", b"ElementDataFile", b"HeaderSize = far\nElementDataFile", "where its voxels begin is told in a"),
    ],
)
def test_voxels_that_cannot_be_found_or_understood_are_refused(tmp_path, name, old, new, message):
    with pytest.raises(DataError, match=f"^{name}: {message}"):
        read_scan(replace_text(save(tmp_path / name), old, new))
