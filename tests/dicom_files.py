"""Synthetic DICOM files for tests, written with pydicom from voxels on a known grid (DICOM PS3.3 C.7.6.2.1.1)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

CANARY = "CANARY^PHI^ZEBRA"
CANARY_DATE = "19331224"


def grid(*, spacing=(0.8, 0.9, 2.5), origin=(-31.25, 12.5, 100.75), rotation=None):
    """An RAS affine."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) * spacing
    affine[:3, 3] = origin
    return affine


def some_voxels(shape=(7, 5, 4), *, seed=0):
    """HU around 0, up to 1000 voxels each another, so that a voxel is known by its value."""
    count = int(np.prod(shape))
    values = (np.arange(count) % 1000 - min(count, 1000) // 2) * 2
    return np.random.default_rng(seed).permutation(values).reshape(shape).astype(np.int16)


def image(pixels, position, row, column, spacing, **more):
    """One CT slice; `pixels` are HU `(rows, columns)`, `position`, `row` and `column` LPS."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = "CT"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = CANARY, "p1", CANARY_DATE
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.FrameOfReferenceUID = "1.2.3.9"
    dataset.StudyDate = CANARY_DATE
    dataset.SeriesDescription = "Abdomen"
    dataset.SeriesNumber, dataset.InstanceNumber = 2, 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ConvolutionKernel = "B30f"
    dataset.SliceThickness = "2.5"
    dataset.ImagePositionPatient = [decimal(number) for number in position]
    dataset.ImageOrientationPatient = [decimal(number) for number in (*row, *column)]
    dataset.PixelSpacing = [decimal(number) for number in spacing]
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
    set_pixels(dataset, pixels.astype(np.int32) + 1024)
    for name, value in more.items():
        setattr(dataset, name, value)
    return dataset


def set_pixels(dataset, stored, *, bits=12, signed=False):
    """Put stored values into 16 bits."""
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    dataset["PixelData"].VR = "OW"


def decimal(number):
    """As DICOM writes numbers: at most 16 characters."""
    return f"{float(number):.10f}"[:16]


def slices_of(voxels, affine, **more):
    """One dataset a slice of `voxels` `(X, Y, Z)` on an RAS `affine`."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    edges = np.linalg.norm(lps[:3, :3], axis=0)
    row, column = lps[:3, 0] / edges[0], lps[:3, 1] / edges[1]
    return [
        image(
            voxels[:, :, index].T,
            lps[:3, 3] + index * lps[:3, 2],
            row,
            column,
            (edges[1], edges[0]),
            InstanceNumber=index + 1,
            SliceThickness=decimal(edges[2]),
            **more,
        )
        for index in range(voxels.shape[2])
    ]


def save(dataset, path, *, syntax=ExplicitVRLittleEndian):
    """Write a dataset as a DICOM file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    dataset.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    voxels=None,
    affine=None,
    *,
    edit: Callable[[Dataset, int], None] | None = None,
    drop: tuple[int, ...] = (),
    seed: int | None = 0,
    name: str = "IM{:04d}.dcm",
    **more,
) -> list[Path]:
    """Write a series; files are numbered in an order that is not that of the slices.

    Args:
        folder: made if need be.
        voxels: HU `(X, Y, Z)`.
        affine: RAS.
        edit: changes a slice's dataset before it is written; gets its index.
        drop: indices of slices to leave out.
        seed: of the order of the files; None keeps the order of the slices.
        name: of a file, by its number.
        more: values of elements by keyword, for all slices.
    """
    datasets = slices_of(some_voxels() if voxels is None else voxels, grid() if affine is None else affine, **more)
    order = np.arange(len(datasets)) if seed is None else np.random.default_rng(seed).permutation(len(datasets))
    paths = []
    for number, index in enumerate(order):
        if index in drop:
            continue
        if edit is not None:
            edit(datasets[index], int(index))
        paths.append(save(datasets[index], folder / name.format(number)))
    return paths


def enhanced(voxels, affine, *, order=None, slopes=None):
    """An enhanced CT: one file, a functional group a frame; `slopes` a frame's own rescale slope, else it is shared."""
    single = slices_of(voxels, affine)
    order = list(range(len(single))) if order is None else order
    whole = Dataset()
    for keyword in (
        "SpecificCharacterSet", "Modality", "PatientName", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
        "FrameOfReferenceUID", "SeriesDescription", "SeriesNumber", "ImageType", "Rows", "Columns", "SamplesPerPixel",
        "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    ):  # fmt: skip
        setattr(whole, keyword, getattr(single[0], keyword))
    whole.SOPClassUID, whole.SOPInstanceUID = EnhancedCTImageStorage, generate_uid()
    whole.InstanceNumber, whole.NumberOfFrames = 1, len(single)
    shared, frames = Dataset(), []
    shared.PixelMeasuresSequence = Sequence([_part(single[0], "PixelSpacing", "SliceThickness")])
    shared.PlaneOrientationSequence = Sequence([_part(single[0], "ImageOrientationPatient")])
    reconstruction = Dataset()
    reconstruction.ConvolutionKernel = "Br40"
    shared.CTReconstructionSequence = Sequence([reconstruction])
    if slopes is None:
        shared.PixelValueTransformationSequence = Sequence(
            [_part(single[0], "RescaleSlope", "RescaleIntercept", "RescaleType")]
        )
    stored = []
    for index in order:
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([_part(single[index], "ImagePositionPatient")])
        values = voxels[:, :, index].T.astype(np.int32) + 1024
        if slopes is not None:
            own = _part(single[index], "RescaleIntercept", "RescaleType")
            own.RescaleSlope = slopes[index]
            frame.PixelValueTransformationSequence = Sequence([own])
            values = values // slopes[index]
        frames.append(frame)
        stored.append(values)
    whole.SharedFunctionalGroupsSequence = Sequence([shared])
    whole.PerFrameFunctionalGroupsSequence = Sequence(frames)
    set_pixels(whole, np.stack(stored))
    return whole


def report(**more):
    """A dose report: no pixels."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.67", generate_uid()
    dataset.Modality, dataset.PatientID, dataset.PatientName = "SR", "p1", CANARY
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.88"
    for name, value in more.items():
        setattr(dataset, name, value)
    return dataset


def capture(**more):
    """A secondary capture in color."""
    dataset = report(SOPClassUID=SecondaryCaptureImageStorage, Modality="OT", SeriesInstanceUID="1.2.3.7")
    dataset.Rows = dataset.Columns = 4
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = bytes(48)
    dataset["PixelData"].VR = "OB"
    for name, value in more.items():
        setattr(dataset, name, value)
    return dataset


def as_mr(dataset, _index=0):
    """Turn a CT slice into one of MR, without a rescale."""
    dataset.SOPClassUID, dataset.Modality = MRImageStorage, "MR"
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType", "ConvolutionKernel"):
        delattr(dataset, keyword)


def _part(dataset, *keywords):
    part = Dataset()
    for keyword in keywords:
        setattr(part, keyword, getattr(dataset, keyword))
    return part
