"""The one trusted reader: a file, several files or a 4D file to scans, a 2D image to one slice, whatever the format."""

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
from medseg.reading.nifti import read_nifti, read_nifti_grid
from medseg.reading.scan import Header, Scan, ScanSource

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".mha", ".mhd")
SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES
LABEL_TYPES = (np.uint8, np.int16, np.int32)

ZIP_SUFFIX = ".zip"

PathLike = str | Path
SourceLike = PathLike | ScanSource


def scan_stem(path: PathLike) -> str:
    """File name without its scan or image suffix: "liver_04.nii.gz" gives "liver_04"; other names stay as they are."""
    name = Path(path).name
    suffix = next((suffix for suffix in SUFFIXES + IMAGE_SUFFIXES if name.lower().endswith(suffix)), "")
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
    scan = _read(path)
    if scan.unit == "px" and scan.voxels.ndim == 4:
        scan = one_gray_channel(scan, Path(path).name)
    if scan.voxels.ndim != 3:
        raise DataError(
            f"{Path(path).name}: {scan.voxels.ndim}D, shape {scan.voxels.shape}, where one 3D scan is wanted; "
            "export one volume a file, or name its channels in the recipe"
        )
    return scan


def read_source(source: ScanSource) -> Scan:
    """The scan of a file or of a DICOM series.

    Raises:
        DataError: as `read_scan`; of a series see `medseg.reading.dicom`.
    """
    return _read_series(source) if source.is_dicom else read_scan(source.path)


def source_files(source: ScanSource) -> tuple[Path, ...]:
    """The files on disk that a source is made of; of a series in a zip the zip, of a header and its voxels both."""
    if not source.is_dicom:
        return (source.path, *_voxel_files(source.path))
    if source.path.is_file():
        return (source.path,)
    return tuple(source.path / file for file in source.files)  # an absolute path stays itself


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
    shape, affine = read_grid(source.path)
    return Header(shape, affine, "", int(np.prod(shape, dtype=object)) * 4)


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
    scan = _read(path)
    volumes = scan.voxels.shape[3] if scan.voxels.ndim == 4 else 1
    _check_count(volumes, channels, path.name)
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
    if _is_nifti(path):
        return read_nifti_grid(path)
    if is_image(path):
        return read_image_grid(path)
    from medseg.reading.itk import read_itk_grid  # see _read

    return read_itk_grid(path)


def _read(path: PathLike) -> Scan:
    """All volumes of a file, `(X, Y, Z)` or with more axes."""
    path = _existing(path)
    if _is_nifti(path):
        return read_nifti(path)
    if is_image(path):
        return read_image(path)
    from medseg.reading.itk import read_itk  # SimpleITK takes a third of a second to import; most scans are NIfTI

    return read_itk(path)


def _holds_dicom(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ZIP_SUFFIX


def _only_series(folder: Path) -> ScanSource:
    """The one DICOM series of a folder or zip."""
    from medseg.reading.dicom import find_series  # pydicom takes its time to import; most scans are NIfTI

    found = find_series(folder)
    if len(found) != 1:
        raise DataError(
            f"{folder.name}: {len(found)} DICOM series where one scan is wanted; list them with `medseg inspect`"
        )
    return found[0].source


def _read_series(source: ScanSource) -> Scan:
    from medseg.reading.dicom import read_series

    return read_series(source)


def _voxel_files(path: Path) -> tuple[Path, ...]:
    """Files beside a header that hold its voxels."""
    return ()


def _read_mask(path: Path, masks: MaskCode | None) -> Scan:
    if masks is None:
        raise DataError(f"{path.name}: what the values of a mask mean is not said; start from configs/unet_images.json")
    return Scan(masks(read_mask_pixels(path, colors=masks.by_color), path.name), np.eye(4), unit="px")


def _existing(path: PathLike) -> Path:
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES + IMAGE_SUFFIXES):
        raise DataError(
            f"{path.name}: not a scan file medseg reads ({', '.join(SUFFIXES + IMAGE_SUFFIXES)}); convert it first"
        )
    if not path.is_file():
        raise DataError(f"{path.name}: no such file; check the path")
    return path


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def _check_count(volumes: int, channels: Sequence[str], name: str) -> None:
    if volumes < len(channels):
        missing = ", ".join(repr(channel) for channel in channels[volumes:])
        raise DataError(f"{name}: {volumes} of {len(channels)} channels, {missing} missing; add its file or volume")
    if volumes > len(channels):
        raise DataError(f"{name}: {volumes} volumes for the channels {list(channels)}; name each one in the recipe")
