"""The one trusted reader: a file, several files or a 4D file to scans, a 2D image to one slice, whatever the format.

What is accepted, accepted with a warning and refused is one table, in docs/reading.md.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.reading.images import (
    IMAGE_SUFFIXES,
    check_mask_file,
    is_image,
    one_gray_channel,
    read_image,
    read_image_grid,
    read_mask_pixels,
)
from medseg.reading.masks import MaskCode
from medseg.reading.metaimage import stored_metaimage
from medseg.reading.nifti import HEADER_SUFFIXES, VOXEL_SUFFIXES, paired_files, stored_nifti
from medseg.reading.nrrd import stored_nrrd
from medseg.reading.scan import Header, Scan, ScanSource, damaged
from medseg.reading.stored import Stored, read_stored
from medseg.reading.stream import file_sha256

NIFTI_SUFFIXES = (".nii.gz", ".nii", *HEADER_SUFFIXES)
NRRD_SUFFIXES, METAIMAGE_SUFFIXES = (".nrrd", ".nhdr"), (".mha", ".mhd")
SUFFIXES = NIFTI_SUFFIXES + NRRD_SUFFIXES + METAIMAGE_SUFFIXES  # of a pair the header, so that a folder lists it once
KNOWN_SUFFIXES = SUFFIXES + VOXEL_SUFFIXES + IMAGE_SUFFIXES
LABEL_TYPES = (np.uint8, np.int16, np.int32)

ZIP_SUFFIX = ".zip"
DETACHED_SUFFIXES = (".nhdr", ".mhd")
PIXEL_BYTES = 4  # of an image once decoded, at most

PathLike = str | Path
SourceLike = PathLike | ScanSource


def scan_stem(path: PathLike) -> str:
    """File name without its scan or image suffix: "liver_04.nii.gz" gives "liver_04"; other names stay as they are."""
    name = Path(path).name
    suffix = next((suffix for suffix in KNOWN_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def read_scan(path: PathLike) -> Scan:
    """One 3D scan; of a gray image one slice; of a folder (or zip) its one DICOM series.

    Voxels stay int16 or uint8 where the file's rescale allows it, else they are float32. A 4D file of one volume counts
    as 3D.

    Raises:
        DataError: if the file is missing, of another format, damaged or cut short, not 3D, of colors or complex
            numbers, has NaN or infinite voxels, or a grid that is unknown, contradictory or singular.
    """
    if _holds_dicom(Path(path)):
        return _read_series(_only_series(Path(path)))
    path = _existing(path)
    if is_image(path):
        scan = _read_image(path)
        return one_gray_channel(scan, path.name) if scan.voxels.ndim == 4 else scan
    return read_stored(_one_volume(_stored(path)))


def read_source(source: ScanSource) -> Scan:
    """The scan of a file or of a DICOM series.

    Raises:
        DataError: as `read_scan`; of a series see `medseg.reading.dicom`.
    """
    return _read_series(source) if source.is_dicom else read_scan(source.path)


def source_files(source: ScanSource) -> tuple[Path, ...]:
    """The files on disk that a source is made of; of a series in a zip the zip, of a header and its voxels both."""
    if not source.is_dicom:
        return tuple(dict.fromkeys((*paired_files(source.path), *_voxel_files(source.path))))
    if source.path.is_file():
        return (source.path,)
    return source.files


def read_header(source: SourceLike) -> Header:
    """Grid, voxel type and memory of a scan from its header alone.

    Raises:
        DataError: if the header is missing, damaged, or holds no sound grid.
    """
    source = source if isinstance(source, ScanSource) else ScanSource(Path(source))
    if not source.is_dicom and _holds_dicom(source.path):
        source = _only_series(source.path)
    if source.is_dicom:
        from medseg.reading.dicom import read_series_header

        return read_series_header(source)
    path = _existing(source.path)
    if is_image(path):
        shape, affine = read_image_grid(path)
        return Header(shape, affine, "uint8", int(np.prod(shape, dtype=object)) * PIXEL_BYTES)
    return _stored(path).header


def read_channels(image: SourceLike | Sequence[SourceLike], channels: Sequence[str]) -> tuple[Scan, ...]:
    """One scan a channel, in the order of `channels`, each on its own grid.

    Args:
        image: one path or source a channel, or one of a file whose fourth axis counts the channels (of an image: red,
            green and blue).
        channels: the recipe's names.

    Raises:
        DataError: as `read_scan`, and if there are fewer or more volumes than channels.
    """
    files = [image] if isinstance(image, str | Path | ScanSource) else list(image)
    sources = [file if isinstance(file, ScanSource) else ScanSource(Path(file)) for file in files]
    path = sources[0].path
    if len(sources) > 1:
        _check_count(len(sources), channels, path.name)
        return tuple(read_source(source) for source in sources)
    if len(channels) == 1:
        return (read_source(sources[0]),)
    if sources[0].is_dicom or _holds_dicom(path):
        _check_count(1, channels, path.name)
    path = _existing(path)
    if is_image(path):
        scan = _read_image(path)
        volumes = scan.voxels.shape[3] if scan.voxels.ndim == 4 else 1
        _check_count(volumes, channels, path.name)
    else:
        stored = _stored(path)
        volumes = stored.shape[3] if len(stored.shape) == 4 else 1
        _check_count(volumes, channels, path.name)
        scan = read_stored(stored)
    split = [replace(scan, voxels=scan.voxels[..., channel], warnings=()) for channel in range(volumes)]
    return (replace(split[0], warnings=scan.warnings), *split[1:])


def read_label(path: PathLike, masks: MaskCode | None = None) -> Scan:
    """One 3D label map with integer voxels: uint8 where they fit, else int16 or int32; of a mask file one slice.

    Args:
        path: of a scan file, or of a mask in PNG or TIFF.
        masks: what the values of a mask mean; scan files hold label values.

    Raises:
        DataError: as `read_scan`, and if voxels are fractions, or a mask has a value without meaning.
    """
    if is_image(path):
        return _read_mask(_existing(path), masks)
    scan = read_scan(path)
    voxels = scan.voxels
    if voxels.dtype == np.uint8:
        return scan
    if voxels.dtype.kind == "f":
        fractions = np.count_nonzero(voxels != np.rint(voxels))
        if fractions:
            raise DataError(
                f"{Path(path).name}: {fractions} of {voxels.size} label voxels are fractions, not whole numbers; "
                "export the label without interpolation"
            )
    low, high = voxels.min(), voxels.max()
    fitting = next(kind for kind in LABEL_TYPES if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return replace(scan, voxels=voxels.astype(fitting))


def read_label_grid(path: PathLike) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine of a label map, from the header alone; of a mask without its colors.

    Raises:
        DataError: as `read_grid`, and if a mask is in a format that changes values.
    """
    if not is_image(path):
        return read_grid(path)
    check_mask_file(path)
    shape, affine = read_grid(path)
    return shape[:3], affine


def read_grid(path: PathLike) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine from the file's header alone; a trailing axis of one volume is dropped.

    Raises:
        DataError: if the header is missing, damaged, or holds no sound grid.
    """
    path = _existing(path)
    if is_image(path):
        return read_image_grid(path)
    stored = _stored(path)
    return stored.shape, stored.affine


def _stored(path: Path) -> Stored:
    """What the header of a scan file says."""
    if path.name.lower().endswith(NIFTI_SUFFIXES + VOXEL_SUFFIXES):
        return stored_nifti(path)
    return stored_nrrd(path) if path.name.lower().endswith(NRRD_SUFFIXES) else stored_metaimage(path)


def _one_volume(stored: Stored) -> Stored:
    """`stored` itself, refused if it is not 3D, before any voxel is read."""
    if len(stored.shape) != 3:
        raise DataError(
            f"{stored.path.name}: {len(stored.shape)}D, shape {stored.shape}, where one 3D scan is wanted; "
            "export one volume a file, or name its channels in the recipe"
        )
    return stored


def _read_image(path: Path) -> Scan:
    return replace(read_image(path), sha256=file_sha256(path))


def _holds_dicom(path: Path) -> bool:
    """Whether to look for DICOM there; a folder under the name of a scan file is a mistake."""
    lower = path.name.lower()
    return lower.endswith(ZIP_SUFFIX) or (path.is_dir() and not lower.endswith(KNOWN_SUFFIXES))


def _only_series(folder: Path) -> ScanSource:
    """The one DICOM series of a folder or zip."""
    from medseg.reading.dicom import only_series  # pydicom takes its time to import; most scans are NIfTI

    return only_series(folder)


def _read_series(source: ScanSource) -> Scan:
    from medseg.reading.dicom import read_series

    return read_series(source)


def _voxel_files(path: Path) -> tuple[Path, ...]:
    """Files beside a header of NRRD or MetaImage that hold its voxels."""
    if not path.name.lower().endswith(DETACHED_SUFFIXES):
        return ()
    try:
        return (_stored(path).voxel_file,)
    except DataError:  # which reading it will say
        return ()


def _read_mask(path: Path, masks: MaskCode | None) -> Scan:
    if masks is None:
        raise DataError(f"{path.name}: what the values of a mask mean is not said; start from configs/unet_images.json")
    label = masks(read_mask_pixels(path, colors=masks.by_color), path.name)
    return Scan(label, np.eye(4), unit="px", sha256=file_sha256(path))


def _existing(path: PathLike) -> Path:
    path = Path(path)
    if not path.name.lower().endswith(KNOWN_SUFFIXES):
        raise DataError(
            f"{path.name}: not a scan file medseg reads ({', '.join(SUFFIXES + IMAGE_SUFFIXES)}); convert it first"
        )
    try:
        if path.is_dir():
            raise DataError(f"{path.name}: a folder under the name of a scan file; give the file in it")
        if not path.is_file():
            raise DataError(f"{path.name}: no such file; check the path")
    except OSError as error:  # a share that is gone
        raise damaged(path, error) from error
    return path


def _check_count(volumes: int, channels: Sequence[str], name: str) -> None:
    if volumes < len(channels):
        missing = ", ".join(repr(channel) for channel in channels[volumes:])
        raise DataError(f"{name}: {volumes} of {len(channels)} channels, {missing} missing; add its file or volume")
    if volumes > len(channels):
        raise DataError(f"{name}: {volumes} volumes for the channels {list(channels)}; name each one in the recipe")
