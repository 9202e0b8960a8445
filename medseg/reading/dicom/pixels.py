"""Stored pixels of one file: uncompressed ones as they lie, compressed ones by pydicom's decoders."""

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian

from medseg.errors import DataError
from medseg.reading.dicom.headers import NATIVE, FileHeader
from medseg.reading.dicom.stacking import slice_name


@cache
def can_decode(transfer_syntax: str) -> bool:
    """Whether pixels of this transfer syntax are read: uncompressed, or with a decoder at hand."""
    if transfer_syntax in NATIVE:
        return True
    try:
        decoder = get_decoder(UID(transfer_syntax))
    except NotImplementedError:  # video, private or unknown
        return False
    return bool(decoder.is_available)


def stored_pixels(content: bytes, header: FileHeader, frame: int) -> NDArray[np.signedinteger | np.unsignedinteger]:
    """Pixels of one frame `(rows, columns)` before the rescale, int8, int16, uint8 or uint16.

    Bits above BitsStored, where old scanners keep overlays, are cleared or filled with the sign.

    Args:
        content: the whole file.
        header: of that file.
        frame: index of the frame.

    Raises:
        DataError: if compressed pixels cannot be decoded, or are not as many as the header says.
    """
    pixels = _native(content, header, frame) if header.transfer_syntax in NATIVE else _decoded(content, header, frame)
    unused = header.allocated - header.stored
    return (pixels << unused) >> unused if unused else pixels


def _pixel_type(header: FileHeader) -> np.dtype[np.signedinteger | np.unsignedinteger]:
    order = ">" if header.transfer_syntax == ExplicitVRBigEndian else "<"
    return np.dtype(f"{order}{'i' if header.signed else 'u'}{header.allocated // 8}")


def _native(content: bytes, header: FileHeader, frame: int) -> NDArray[np.signedinteger | np.unsignedinteger]:
    rows, columns = header.slices[frame].shape
    kind = _pixel_type(header)
    start = header.pixel_offset + frame * rows * columns * kind.itemsize
    if len(content) < start + rows * columns * kind.itemsize:
        raise DataError(f"{slice_name(header.slices[frame])} is cut short; copy the series again")
    pixels = np.frombuffer(content, kind, count=rows * columns, offset=start).reshape(rows, columns)
    return pixels.astype(kind.newbyteorder("="), copy=False)


def _decoded(content: bytes, header: FileHeader, frame: int) -> NDArray[np.signedinteger | np.unsignedinteger]:
    plane = header.slices[frame]
    rows, columns = plane.shape
    options: Any = {
        "rows": rows,
        "columns": columns,
        "samples_per_pixel": 1,
        "bits_allocated": header.allocated,
        "bits_stored": header.stored,
        "pixel_representation": int(header.signed),
        "photometric_interpretation": header.photometric,
        "number_of_frames": len(header.slices),
        "pixel_keyword": "PixelData",
        "pixel_vr": "OB",
    }
    encoded = BytesIO(content)  # which does not copy
    encoded.seek(header.pixel_offset)
    try:
        pixels, _ = get_decoder(UID(header.transfer_syntax)).as_array(encoded, index=frame, raw=True, **options)
    except Exception as error:  # each decoder raises what it likes; the messages may be pages long
        raise DataError(
            f"{slice_name(plane)} is damaged: its {UID(header.transfer_syntax).name} pixels cannot be decoded; copy "
            "the series again"
        ) from error
    if pixels.shape != (rows, columns) or pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:
        raise DataError(f"{slice_name(plane)} has {pixels.shape} pixels where {(rows, columns)} are declared")
    wide = np.int16 if header.signed else np.uint16
    return pixels if pixels.dtype.itemsize * 8 == header.allocated else pixels.astype(wide)
