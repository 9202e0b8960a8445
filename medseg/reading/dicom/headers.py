"""The header of one DICOM file: only the fields that place, scale, group and choose images, and no pixel is read.

Patient names and dates are not among the fields.
"""

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medseg.errors import DataError
from medseg.reading.dicom.fields import CHARACTER_SET, Fields

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
PREAMBLE_BYTES, HEAD_BYTES = 128, 4096
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)  # uncompressed pixels
MAGIC = b"DICM"
MOST_FRAMES = 20_000
UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010

IMAGE_TYPE, SOP_CLASS, SOP_INSTANCE = 0x00080008, 0x00080016, 0x00080018
MODALITY, DESCRIPTION, PATIENT_ID = 0x00080060, 0x0008103E, 0x00100020
CONTRAST, THICKNESS, KERNEL = 0x00180010, 0x00180050, 0x00181210
STUDY, SERIES, SERIES_NUMBER, INSTANCE_NUMBER = 0x0020000D, 0x0020000E, 0x00200011, 0x00200013
POSITION, ORIENTATION, REFERENCE = 0x00200032, 0x00200037, 0x00200052
SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS = 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011
PIXEL_SPACING, ALLOCATED, STORED, SIGNED = 0x00280030, 0x00280100, 0x00280101, 0x00280103
PADDING, INTERCEPT, SLOPE, RESCALE_TYPE = 0x00280120, 0x00281052, 0x00281053, 0x00281054
SHARED_GROUPS, FRAME_GROUPS = 0x52009229, 0x52009230
MEDIA_CLASS, TRANSFER_SYNTAX = 0x00020002, 0x00020010
# functional groups of multi-frame images, DICOM PS3.3 C.7.6.16
PLANE_POSITION, PLANE_ORIENTATION, PIXEL_MEASURES, PIXEL_TRANSFORM = 0x00209113, 0x00209116, 0x00289110, 0x00289145
CT_FRAME_TYPE, MR_FRAME_TYPE, FRAME_TYPE, CT_RECONSTRUCTION = 0x00189329, 0x00189226, 0x00089007, 0x00189314

TAGS = [
    CHARACTER_SET, IMAGE_TYPE, SOP_CLASS, SOP_INSTANCE, MODALITY, DESCRIPTION, PATIENT_ID, CONTRAST, THICKNESS, KERNEL,
    STUDY, SERIES, SERIES_NUMBER, INSTANCE_NUMBER, POSITION, ORIENTATION, REFERENCE, SAMPLES, PHOTOMETRIC, FRAMES, ROWS,
    COLUMNS, PIXEL_SPACING, ALLOCATED, STORED, SIGNED, PADDING, INTERCEPT, SLOPE, RESCALE_TYPE, SHARED_GROUPS,
    FRAME_GROUPS,
]  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One image plane: a file of its own, or one frame of a multi-frame file; None and NaN where the header is silent.

    Attributes:
        file: of which this is a part.
        frame: index in the file.
        number: InstanceNumber, or the frame's number.
        position: of the center of the first pixel, LPS mm.
        orientation: direction of growing columns, then of growing rows, LPS.
        pixel_spacing: mm between rows, then between columns.
        thickness_mm: as reconstructed.
        slope: of the rescale.
        intercept: of the rescale.
        rescale_type: what the rescaled values are, such as "HU".
        kind: ImageType of the frame.
        shape: rows, columns.
        many: whether the file has several frames.
    """

    file: Path
    frame: int
    number: int | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    thickness_mm: float
    slope: float
    intercept: float
    rescale_type: str
    kind: tuple[str, ...]
    shape: tuple[int, int]
    many: bool


@dataclass(frozen=True)
class FileHeader:
    """What one file says of itself.

    `study`, `series`, `patient`, `description` and `contrast` are as in the file: they stay in memory, and of them only
    what a person's own table of series needs is ever written. `missing_bytes` counts pixel data that the file should
    have and has not (uncompressed data only); `pixel_offset` is where pixel data start.
    """

    file: Path
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    modality: str
    patient: str
    study: str
    series: str
    series_number: int | None
    reference: str
    image_type: tuple[str, ...]
    description: str
    kernel: str
    contrast: str
    samples: int
    photometric: str
    allocated: int
    stored: int
    signed: bool
    padding: int | None
    slices: tuple[Slice, ...]
    pixel_offset: int = 0
    missing_bytes: int = 0


def read_file_header(file: IO[bytes], name: Path, size: int) -> FileHeader | None:
    """The header of an open file; None if it is no DICOM file.

    Raises:
        DataError: if it starts like one and cannot be read; the message has no file name.
    """
    head = file.read(HEAD_BYTES)
    named = has_magic(head)
    if not named and not _starts_like_a_data_set(head):
        return None
    if named and DeflatedExplicitVRLittleEndian.encode() in head:  # pydicom would unpack it to whatever size
        raise DataError("is deflated as a whole; save it uncompressed")
    file.seek(0)
    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=TAGS, force=True)
        header = _header(dataset, name)
        if header.sop_class:
            offset, missing = _pixel_extent(file, size, header)
            return replace(header, pixel_offset=offset, missing_bytes=missing)
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:  # pydicom raises what its parts raise on damaged files
        if named:
            raise DataError("is cut short or damaged; copy it again") from error
        return None
    if named:
        raise DataError("is cut short or damaged; copy it again")
    return None


def quiet_pydicom() -> None:
    """Keep pydicom's complaints, which quote values, off the terminal and out of logs; what matters is judged here.

    To be called before files are read: a test runner, for one, resets the filters.
    """
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def has_magic(head: bytes) -> bool:
    """Whether a file begins as DICOM files do."""
    return head[PREAMBLE_BYTES:].startswith(MAGIC)


def _starts_like_a_data_set(head: bytes) -> bool:
    """Whether a first element of group 2 or 8 stands at once, as old exports without preamble have it."""
    return head[:1] in (b"\x02", b"\x08") and head[1:2] + head[3:4] == b"\0\0"


def _header(dataset: Dataset, name: Path) -> FileHeader:
    fields = Fields(dataset)
    signed = fields.short(SIGNED) == 1
    kernel = fields.texts(KERNEL)
    shared = fields.item(SHARED_GROUPS)
    frames = fields.items(FRAME_GROUPS)
    if not any(kernel):
        first = frames[0] if frames else shared
        kernel = _group(first, shared, CT_RECONSTRUCTION).texts(KERNEL)
    return FileHeader(
        file=name,
        sop_class=fields.text(SOP_CLASS) or Fields(dataset.file_meta).text(MEDIA_CLASS),  # a DICOMDIR has the latter
        sop_instance=fields.text(SOP_INSTANCE),
        transfer_syntax=_transfer_syntax(dataset),
        modality=fields.text(MODALITY),
        patient=fields.text(PATIENT_ID),
        study=fields.text(STUDY),
        series=fields.text(SERIES),
        series_number=fields.whole(SERIES_NUMBER),
        reference=fields.text(REFERENCE),
        image_type=fields.texts(IMAGE_TYPE),
        description=fields.free_text(DESCRIPTION),
        kernel=" ".join(part for part in kernel if part),
        contrast=fields.free_text(CONTRAST),
        samples=fields.short(SAMPLES) or 1,
        photometric=fields.text(PHOTOMETRIC),
        allocated=fields.short(ALLOCATED) or 0,
        stored=fields.short(STORED) or fields.short(ALLOCATED) or 0,
        signed=signed,
        padding=fields.short(PADDING, signed=signed),
        slices=_slices(fields, shared, frames, name),
    )


def _transfer_syntax(dataset: Dataset) -> str:
    named = Fields(dataset.file_meta).text(TRANSFER_SYNTAX)
    if named:
        return named
    implicit, little = dataset.original_encoding
    if implicit:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian) if little else str(ExplicitVRBigEndian)


def _slices(fields: Fields, shared: Fields, frames: list[Fields], name: Path) -> tuple[Slice, ...]:
    shape = (fields.short(ROWS) or 0, fields.short(COLUMNS) or 0)
    count = max(fields.whole(FRAMES) or 1, 1)
    if count > MOST_FRAMES:
        raise DataError(f"declares {count} frames; export it again")
    if not frames and not shared.dataset:
        one = _plane(fields, fields, fields, fields, file=name, frame=0, shape=shape, many=count > 1)
        if count == 1:
            return (one,)
        # frames that are not placed one by one: the positions of all but the first are unknown
        return tuple(replace(one, frame=frame, number=frame + 1, position=None) for frame in range(count))
    kind_tags = (CT_FRAME_TYPE, MR_FRAME_TYPE)
    found = []
    for index in range(count):
        own = frames[index] if index < len(frames) else Fields(Dataset())
        plane = _plane(
            _group(own, shared, PLANE_POSITION),
            _group(own, shared, PLANE_ORIENTATION),
            _group(own, shared, PIXEL_MEASURES),
            _group(own, shared, PIXEL_TRANSFORM),
            file=name,
            frame=index,
            shape=shape,
            many=True,
        )
        kinds = [_group(own, shared, tag).texts(FRAME_TYPE) for tag in kind_tags]
        kind = next((kind for kind in kinds if any(kind)), fields.texts(IMAGE_TYPE))
        found.append(replace(plane, kind=kind))
    return tuple(found)


def _plane(
    position: Fields,
    orientation: Fields,
    measures: Fields,
    transform: Fields,
    *,
    file: Path,
    frame: int,
    shape: tuple[int, int],
    many: bool,
) -> Slice:
    return Slice(
        file=file,
        frame=frame,
        number=frame + 1 if many else position.whole(INSTANCE_NUMBER),
        position=position.numbers(POSITION, 3),
        orientation=orientation.numbers(ORIENTATION, 6),
        pixel_spacing=measures.numbers(PIXEL_SPACING, 2),
        thickness_mm=measures.number(THICKNESS),
        slope=transform.number(SLOPE),
        intercept=transform.number(INTERCEPT),
        rescale_type=transform.text(RESCALE_TYPE),
        kind=position.texts(IMAGE_TYPE),
        shape=shape,
        many=many,
    )


def _group(own: Fields, shared: Fields, tag: int) -> Fields:
    """A frame's functional group: its own, else the one that all frames share."""
    return own.item(tag) if own.holds(tag) else shared.item(tag)


def _pixel_extent(file: IO[bytes], size: int, header: FileHeader) -> tuple[int, int]:
    """Where pixel data start, and how many bytes of them are missing; `file` stands before their element."""
    rows, columns = header.slices[0].shape
    wanted = (rows * columns * header.samples * header.allocated * len(header.slices) + 7) // 8
    start = file.tell()
    big = header.transfer_syntax == ExplicitVRBigEndian
    order = "big" if big else "little"
    element = file.read(12)
    tag = int.from_bytes(element[:2], order) << 16 | int.from_bytes(element[2:4], order)  # type: ignore[arg-type]
    if tag != PIXEL_DATA or len(element) < 8:
        return 0, wanted
    explicit = element[4:6] in (b"OW", b"OB", b"UN")
    head = 12 if explicit else 8
    length = int.from_bytes(element[head - 4 : head], order)  # type: ignore[arg-type]
    present = size - start - head
    if header.transfer_syntax not in NATIVE or length == UNDEFINED_LENGTH:
        return start + head, 0 if present > 0 else 1
    return start + head, max(0, wanted - min(length, present))
