"""Headers of NIfTI-1 (348 bytes), NIfTI-2 (540 bytes) and Analyze 7.5 (348 bytes), as far as a scan's voxels need them.

References:
    NIfTI-1.1 and NIfTI-2 data formats, nifti1.h (2007) and nifti2.h (2011), Data Format Working Group.
    Bar-Itzhack, "New method for extracting the quaternion from a rotation matrix", 2000 (why any rotation is held).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

NIFTI1_BYTES, NIFTI2_BYTES = 348, 540
EXTENSION_FLAG_BYTES = 4
ONE_FILE_MAGIC = (b"n+1", b"n+2")
PAIR_MAGIC = (b"ni1", b"ni2")
SCANNER_SPACE = 1  # code of sform and qform: scanner-based anatomical millimeters
MILLIMETERS = 2
SHEAR_TOLERANCE = 1e-4
MOST_AXES = 7
HALF_TURN = {NIFTI1_BYTES: 3.6e-7, NIFTI2_BYTES: 6.7e-16}  # three times what float32 and float64 resolve at 1

Fields = Mapping[str, tuple[str, int]]  # name: NumPy type, first byte

NIFTI1: Fields = {
    "sizeof_hdr": ("i4", 0), "dim": ("8i2", 40), "datatype": ("i2", 70), "bitpix": ("i2", 72),
    "pixdim": ("8f4", 76), "vox_offset": ("f4", 108), "scl_slope": ("f4", 112), "scl_inter": ("f4", 116),
    "xyzt_units": ("u1", 123), "descrip": ("S80", 148), "qform_code": ("i2", 252), "sform_code": ("i2", 254),
    "quatern": ("3f4", 256), "qoffset": ("3f4", 268), "srow": ("(3,4)f4", 280), "magic": ("S4", 344),
}  # fmt: skip
NIFTI2: Fields = {
    "sizeof_hdr": ("i4", 0), "magic": ("S4", 4), "datatype": ("i2", 12), "bitpix": ("i2", 14), "dim": ("8i8", 16),
    "pixdim": ("8f8", 104), "vox_offset": ("i8", 168), "scl_slope": ("f8", 176), "scl_inter": ("f8", 184),
    "qform_code": ("i4", 344), "sform_code": ("i4", 348), "quatern": ("3f8", 352), "qoffset": ("3f8", 376),
    "srow": ("(3,4)f8", 400), "xyzt_units": ("i4", 500),
}  # fmt: skip
LAYOUTS = {NIFTI1_BYTES: NIFTI1, NIFTI2_BYTES: NIFTI2}

RGB = [("R", "u1"), ("G", "u1"), ("B", "u1")]
VOXEL_TYPES: Mapping[int, np.dtype[np.generic]] = {
    2: np.dtype("u1"), 4: np.dtype("i2"), 8: np.dtype("i4"), 16: np.dtype("f4"), 32: np.dtype("c8"),
    64: np.dtype("f8"), 128: np.dtype(RGB), 256: np.dtype("i1"), 512: np.dtype("u2"), 768: np.dtype("u4"),
    1024: np.dtype("i8"), 1280: np.dtype("u8"), 1792: np.dtype("c16"), 2304: np.dtype([*RGB, ("A", "u1")]),
}  # fmt: skip
LAST_ANALYZE_TYPE = 128


class NiftiHeader:
    """A header as it is stored, in the byte order in which it says its own size.

    Args:
        block: what the file begins with; more than the header is passed over.

    Attributes:
        fields: one record of the layout, to read fields by name.
        size: bytes of the header, 348 or 540.

    Raises:
        ValueError: if it does not begin with the size of such a header, or is shorter than that.
    """

    def __init__(self, block: bytes) -> None:
        orders = [(size, order) for size in LAYOUTS for order in "<>" if block[:4] == _number(size, order)]
        if not orders or len(block) < orders[0][0]:
            raise ValueError("no header of 348 or 540 bytes")
        self.size, self.order = orders[0]
        self.fields = np.frombuffer(block[: self.size], record_type(self.size, self.order))[0]
        self.bytes = block[: self.size]

    def number(self, name: str) -> float:
        """A field of one number."""
        return float(self.fields[name])

    @property
    def magic(self) -> bytes:
        """`b"n+1"` and the like; of Analyze anything."""
        return bytes(self.fields["magic"])[:3]

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis; empty where the number of axes is no such number."""
        axes = int(self.fields["dim"][0])
        return tuple(int(length) for length in self.fields["dim"][1 : axes + 1]) if 0 < axes <= MOST_AXES else ()

    @property
    def voxel_type(self) -> np.dtype[np.generic] | None:
        """Of one voxel, in the header's byte order; None where the code is unknown."""
        found = VOXEL_TYPES.get(int(self.fields["datatype"]))
        return None if found is None else found.newbyteorder(self.order)  # type: ignore[arg-type]

    @property
    def spacing(self) -> NDArray[np.float64]:
        """`pixdim` of the three axes in space, in the header's unit."""
        return np.array(self.fields["pixdim"][1:4], dtype=np.float64)

    @property
    def slope_and_intercept(self) -> tuple[float, float]:
        """What stored values are multiplied by, and what is added; a slope of 0, NaN or infinity means as they are.

        Raises:
            ValueError: if there is a slope, and the intercept is no number.
        """
        slope, intercept = self.number("scl_slope"), self.number("scl_inter")
        if slope == 0 or not np.isfinite(slope):
            return 1.0, 0.0
        if not np.isfinite(intercept):
            raise ValueError(f"slope {slope:g} with intercept {intercept}")
        return slope, intercept

    @property
    def sform(self) -> NDArray[np.float64]:
        """Affine `(4, 4)` by the three rows, in the header's unit."""
        affine = np.eye(4)
        affine[:3] = self.fields["srow"]
        return affine

    @property
    def qform(self) -> NDArray[np.float64]:
        """Affine `(4, 4)` by quaternion, voxel sizes and offset, in the header's unit; `pixdim[0]` of 0 is read as 1.

        Raises:
            ValueError: if the quaternion is longer than 1, voxel sizes are negative, or `pixdim[0]` is no sign.
        """
        handedness = float(self.fields["pixdim"][0]) or 1.0
        if handedness not in (-1.0, 1.0):
            raise ValueError(f"qfac (pixdim[0]) is {handedness:g}, not 1 or -1")
        if (self.spacing < 0).any():
            raise ValueError("negative voxel sizes in pixdim")
        imaginary = np.array(self.fields["quatern"], dtype=np.float64)
        rest = 1.0 - float(imaginary @ imaginary)
        tolerance = HALF_TURN[self.size]  # below it the turn is by 180 degrees, and the rest is rounding
        if rest < -tolerance:
            raise ValueError(f"quaternion longer than 1: its square exceeds it by {-rest:.3g}")
        affine = np.eye(4)
        affine[:3, :3] = rotation_of(0.0 if abs(rest) < tolerance else float(np.sqrt(rest)), imaginary)
        affine[:3, :3] *= self.spacing * (1.0, 1.0, handedness)
        affine[:3, 3] = self.fields["qoffset"]
        return affine


def record_type(size: int, order: str) -> np.dtype[np.void]:
    """The record of a header of `size` bytes, in byte order "<" or ">"."""
    names, (formats, offsets) = list(LAYOUTS[size]), zip(*LAYOUTS[size].values(), strict=True)
    layout = np.dtype({"names": names, "formats": list(formats), "offsets": list(offsets), "itemsize": size})
    return layout.newbyteorder(order)  # type: ignore[arg-type]


def header_bytes(
    shape: Sequence[int],
    voxel_type: np.dtype[np.generic],
    affine: NDArray[np.float64],
    *,
    slope: float = 1.0,
    description: str = "",
) -> bytes:
    """Header of one little-endian NIfTI-1 file, with the mark that no extension follows: 352 bytes.

    sform and qform say scanner space in mm; a sheared affine, which a quaternion cannot hold, is in the sform alone.

    Args:
        shape: voxels along each axis.
        voxel_type: of one voxel.
        affine: `(4, 4)`, voxel index to RAS mm; NIfTI keeps it in float32.
        slope: what a reader multiplies stored values by.
        description: what the values are, up to 79 letters of ASCII.

    Raises:
        ValueError: if NIfTI-1 has no such voxel type or shape.
    """
    codes = [code for code, known in VOXEL_TYPES.items() if known == voxel_type.newbyteorder("=")]
    if not codes:
        raise ValueError(f"it has no voxels of type {voxel_type}")
    if not 0 < len(shape) <= MOST_AXES or not 0 < min(shape) <= max(shape) <= np.iinfo(np.int16).max:
        raise ValueError(f"it has no grid of {tuple(shape)} voxels")
    header = np.zeros((), record_type(NIFTI1_BYTES, "<"))
    header["sizeof_hdr"], header["magic"] = NIFTI1_BYTES, ONE_FILE_MAGIC[0]
    header["dim"] = [len(shape), *shape, *[1] * (MOST_AXES - len(shape))]
    header["datatype"], header["bitpix"] = codes[0], 8 * voxel_type.itemsize
    header["vox_offset"], header["scl_slope"] = NIFTI1_BYTES + EXTENSION_FLAG_BYTES, slope
    header["descrip"] = description.encode("ascii")
    header["xyzt_units"], header["sform_code"] = MILLIMETERS, SCANNER_SPACE
    header["qform_code"] = 0 if _is_sheared(affine) else SCANNER_SPACE
    header["srow"], header["qoffset"] = affine[:3], affine[:3, 3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    handedness = 1.0 if np.linalg.det(directions) > 0 else -1.0
    header["pixdim"] = [handedness, *spacing, *[1.0] * 4]
    left, _, right = np.linalg.svd(directions * (1.0, 1.0, handedness))
    header["quatern"] = quaternion_of(left @ right)  # of the nearest rotation
    return header.tobytes() + bytes(EXTENSION_FLAG_BYTES)


def rotation_of(real: float, imaginary: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation `(3, 3)` of a quaternion that is one, or nearly."""
    length = real * real + float(imaginary @ imaginary)
    if length == 0:
        return np.eye(3)
    x, y, z = imaginary
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + 2.0 / length * (real * cross + cross @ cross))


def quaternion_of(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Imaginary part `(3,)` of the quaternion of a rotation `(3, 3)`; its real part is not negative.

    Each row of the symmetric product of the quaternion with itself is the quaternion times one of its parts; the row of
    the largest part is taken, so that no small number divides.
    """
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    product = np.empty((4, 4))  # times 4
    product[0, 0] = 1.0 + np.trace(rotation)
    product[0, 1:] = product[1:, 0] = skew
    product[1:, 1:] = rotation + rotation.T + (1.0 - np.trace(rotation)) * np.eye(3)
    row = product[np.argmax(np.diag(product))]
    quaternion = row / np.linalg.norm(row)
    return np.asarray(quaternion[1:] if quaternion[0] >= 0 else -quaternion[1:])


def _number(value: int, order: str) -> bytes:
    return np.array(value, f"{order}i4").tobytes()


def _is_sheared(affine: NDArray[np.float64]) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), atol=SHEAR_TOLERANCE)
