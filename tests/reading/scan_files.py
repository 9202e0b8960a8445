"""Good, odd and broken scan files of our own making, for the tests of the reader."""

import gzip
import itertools
import struct
import zlib

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

SHAPE = (5, 7, 4)
VOXELS = np.random.default_rng(0).integers(-1000, 1500, SHAPE).astype(np.int16)
TURN = nib.eulerangles.euler2mat(0.3, -0.2, 0.5)  # oblique
OBLIQUE = nib.affines.from_matvec(TURN @ np.diag([0.75, 1.5, 2.5]), [33.25, -10.5, 7.0])
AFFINE = np.array([[-0.75, 0.0, 0.0, 33.25], [0.0, 0.0, 2.5, -10.5], [0.0, 1.5, 0.0, 7.0], [0, 0, 0, 1]])

# byte offsets of NIfTI-1 header fields
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, UNITS, QFORM_CODE, SFORM_CODE, QUATERN_B, SROW_X, MAGIC = (
    40, 70, 76, 108, 112, 123, 252, 254, 256, 280, 344,
)  # fmt: skip


def save(path, voxels=VOXELS, affine=AFFINE, *, kind=nib.Nifti1Image, order="<", slope=None, intercept=0.0):
    """NIfTI by nibabel, or its bytes under any name; of a pair both files."""
    header = kind.header_class(endianness=order)
    header.set_data_dtype(voxels.dtype)
    image = kind(voxels, affine, header=header)
    image.header.set_data_dtype(voxels.dtype.newbyteorder(order))
    if hasattr(header, "set_xyzt_units"):
        image.header.set_xyzt_units("mm")
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
    nib.save(image, path)
    if slope is not None:
        patch(path, (SLOPE, "2f", slope, intercept))
    return path


def itk(path, voxels=VOXELS, *, compressed=False, spacing=(0.75, 1.5, 2.5), is_vector=False):
    image = sitk.GetImageFromArray(voxels.T if not is_vector else voxels, isVector=is_vector)
    if image.GetDimension() == 3:
        image.SetSpacing(spacing)
        image.SetOrigin((10.0, 20.0, -30.0))
        image.SetDirection((1, 0, 0, 0, 0, -1, 0, 1, 0))
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


def content_of(path):
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def put(path, content):
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def patch(path, *changes):
    """Overwrite header fields: `(offset, struct format, values...)`."""
    content = bytearray(content_of(path))
    for offset, layout, *values in changes:
        struct.pack_into("<" + layout, content, offset, *values)
    return put(path, bytes(content))


def replace_text(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


def cut(path, fraction):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def flip(path, byte, bit=0):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    return path


def append(path, extra):
    path.write_bytes(path.read_bytes() + extra)
    return path


def bomb(path, *, declared, inflated_mb, offset=352):
    """A small gzip file: a header that declares `declared` voxels of int16, then zeros."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(declared)
    header.set_sform(AFFINE, 1)
    header["pixdim"][1:4] = (0.75, 1.5, 2.5)
    header["vox_offset"] = offset
    header["magic"] = b"n+1"
    packer = zlib.compressobj(1, wbits=31)
    zeros = bytes(1 << 20)
    with path.open("wb") as file:
        file.write(packer.compress(bytes(header.binaryblock) + bytes(4)))
        for _ in range(inflated_mb):
            file.write(packer.compress(zeros))
        file.write(packer.flush())
    return path


def orientations():
    """The 48 ways of storing a scan, as signed permutations of the axes `(3, 3)`."""
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turned = np.zeros((3, 3))
            turned[list(axes), range(3)] = signs
            yield turned
