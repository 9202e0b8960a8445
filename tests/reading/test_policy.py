"""The policy table of docs/reading.md: each row has files here, and each file is read or refused as its row says."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scan_files import (
    AFFINE,
    DIM,
    MAGIC,
    OBLIQUE,
    PIXDIM,
    QFORM_CODE,
    QUATERN_B,
    SFORM_CODE,
    SHAPE,
    SROW_X,
    UNITS,
    VOX_OFFSET,
    VOXELS,
    append,
    bomb,
    cut,
    flip,
    itk,
    orientations,
    patch,
    put,
    replace_text,
    save,
)

from medseg.errors import DataError
from medseg.reading import MaskCode, read_channels, read_label, read_scan
from medseg.reading.plausibility import check_hu
from medseg.transforms import ReadCased

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"
ONE_FILE = ("scan.nii", "scan.nii.gz")
ITK = [("scan.nrrd", False), ("scan.nrrd", True), ("scan.mha", False), ("scan.mha", True)]
TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")


def table():
    """Row -> (policy, phrases of which a message has one)."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and cells[1] in ("accept", "warning", "refuse"):
            assert cells[0] not in rows
            rows[cells[0]] = (cells[1], re.findall("`([^`]*)`", cells[2]))
    return rows


def spaced(path, *edges):
    return save(path, affine=np.diag([*edges, 1.0]))


def sheared(path, degrees):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 2.0 * np.sin(np.radians(degrees))
    affine[2, 2] = 2.0 * np.cos(np.radians(degrees))
    image = nib.Nifti1Image(VOXELS, None)
    image.set_sform(affine, 1)
    image.header["pixdim"][1:4] = (1, 1, 2)
    nib.save(image, path)
    return path


def two_forms(path, *, moved=0.0, flipped=False):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    other = AFFINE.copy()
    other[0, 3] += moved
    other[0] *= -1 if flipped else 1
    image.set_qform(other, code=1)
    image.set_sform(AFFINE, code=1)
    nib.save(image, path)
    return path


def analyze(path, orient=0, *, mat=False):
    save(path, affine=np.diag([0.8, 0.9, 2.0, 1.0]), kind=nib.AnalyzeImage)
    header = path.with_suffix(".hdr")
    flipped = bytearray(header.read_bytes())
    flipped[252] = orient
    header.write_bytes(flipped)
    if mat:
        path.with_suffix(".mat").write_bytes(b"")
    return path


def text(path, content=b"<html>404 not found</html>\n" * 30):
    path.write_bytes(content)
    return path


def folder(path):
    path.mkdir()
    return path


def declared(path, *lengths):
    return patch(save(path), (DIM + 2, f"{len(lengths)}h", *lengths))


def colors(path, kind):
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype=kind), AFFINE), path)
    return path


def filled(path, value, dtype=np.float32):
    voxels = VOXELS.astype(dtype)
    voxels[1, 2, 3] = value
    return save(path, voxels)


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
DIRECTIONS = b"space directions: (0.75"

SCANS = {
    "NIfTI-1 and NIfTI-2, one file or a pair, plain or gzip, either byte order": [
        *(
            lambda at, name=name, kind=kind, order=order: save(at / name, kind=kind, order=order)
            for name, kinds in {
                "scan.nii": (nib.Nifti1Image, nib.Nifti2Image),
                "SCAN.NII.GZ": (nib.Nifti1Image, nib.Nifti2Image),
                "scan.img": (nib.Nifti1Pair, nib.Nifti2Pair),
                "scan.hdr": (nib.Nifti1Pair, nib.Nifti2Pair),
                "scan.img.gz": (nib.Nifti1Pair,),
            }.items()
            for kind in kinds
            for order in "<>"
        ),
    ],
    "NRRD and MetaImage, raw or compressed, voxels in the file or beside the header": [
        *(
            lambda at, name=name, packed=packed: itk(at / name, compressed=packed)
            for name, packed in [*ITK, ("scan.mhd", False), ("scan.mhd", True), ("scan.nhdr", False), ("s.nhdr", True)]
        ),
    ],
    "int8 to int64, uint8 to uint64, float32 and float64, rescaled or not": [
        *(lambda at, kind=kind: save(at / "scan.nii.gz", np.abs(VOXELS // 12).astype(kind)) for kind in TYPES),
        *(
            lambda at, slope=slope, shift=shift: save(at / "scan.nii", VOXELS, slope=slope, intercept=shift)
            for slope, shift in [(1, -1024), (0.5, 0), (2, 10), (-1, 0), (0.001, 3)]
        ),
        *(lambda at, kind=kind: itk(at / "scan.mha", np.abs(VOXELS // 12).astype(kind)) for kind in TYPES),
    ],
    "any of the 48 orientations, oblique": [
        *(
            lambda at, turned=turned: save(at / "scan.nii.gz", affine=OBLIQUE @ nib.affines.from_matvec(turned))
            for turned in orientations()
        ),
    ],
    "voxels of 0.2 to 10 mm": [
        *(lambda at, edge=edge: spaced(at / "scan.nii.gz", edge, edge, edge) for edge in (0.2, 0.3, 1, 8, 10)),
        lambda at: spaced(at / "scan.nii", 0.3, 0.3, 8),
    ],
    "a fourth axis of one volume": [
        lambda at: save(at / "scan.nii", VOXELS[..., None]),
        lambda at: save(at / "scan.nii.gz", VOXELS[..., None, None]),
    ],
    "lengths in meters, centimeters or micrometers, and the header says so": [
        lambda at: patch(spaced(at / "scan.nii", 0.001, 0.001, 0.002), (UNITS, "B", 1)),
        lambda at: patch(spaced(at / "scan.nii.gz", 800, 800, 2500), (UNITS, "B", 3)),
        lambda at: replace_text(
            itk(at / "scan.nrrd", spacing=(0.075, 0.15, 0.25)), b"kinds:", b'space units: "cm" "cm" "cm"\nkinds:'
        ),
        lambda at: replace_text(
            itk(at / "scan.mha", spacing=(0.075, 0.15, 0.25)), b"DimSize", b"DistanceUnits = cm\nDimSize"
        ),
    ],
    "NIfTI that names no unit of length: mm, by common use": [
        lambda at: patch(save(at / "scan.nii"), (UNITS, "B", 0)),
    ],
    "voxels below 0.2 mm or above 10 mm": [
        lambda at: spaced(at / "scan.nii", 0.1, 1, 1),
        lambda at: spaced(at / "scan.nii", 1, 1, 20),
        lambda at: itk(at / "scan.mha", spacing=(0.05, 0.05, 0.05)),
    ],
    "voxels below 0.02 mm or above 50 mm": [
        lambda at: spaced(at / "scan.nii", 0.0008, 0.0008, 0.002),
        lambda at: spaced(at / "scan.nii.gz", 800, 800, 2500),
        lambda at: patch(save(at / "scan.nii"), (UNITS, "B", 1)),
        lambda at: patch(save(at / "scan.nii"), (UNITS, "B", 3)),
        lambda at: itk(at / "scan.nrrd", spacing=(100.0, 100.0, 100.0)),
    ],
    "an unknown unit of length": [
        lambda at: patch(save(at / "scan.nii"), (UNITS, "B", 5)),
        lambda at: replace_text(itk(at / "scan.nrrd"), b"kinds:", b'space units: "ft" "ft" "ft"\nkinds:'),
        lambda at: replace_text(itk(at / "scan.nrrd"), b"kinds:", b'space units: "mm" "mm" "m"\nkinds:'),
        lambda at: replace_text(itk(at / "scan.mha"), b"DimSize", b"DistanceUnits = parsec\nDimSize"),
    ],
    "axes 0.1 to 35 degrees from right angles, in a file ([DICOM](#sheared-grids): up to 0.5)": [
        *(lambda at, angle=angle: sheared(at / "scan.nii.gz", angle) for angle in (0.2, 12, 30)),
    ],
    "axes further from right angles": [lambda at: sheared(at / "scan.nii.gz", 50)],
    "a single slice": [
        lambda at: save(at / "scan.nii", VOXELS[:, :, :1]),
        lambda at: save(at / "scan.nii", VOXELS[:1]),
        lambda at: itk(at / "scan.mha", VOXELS[:, :, :1]),
    ],
    "sform and qform at different places": [lambda at: two_forms(at / "scan.nii", moved=15)],
    "sform and qform of different orientation, such as left and right exchanged": [
        lambda at: two_forms(at / "scan.nii.gz", flipped=True),
    ],
    "voxel sizes in pixdim that the sform contradicts (1 %)": [
        lambda at: patch(save(at / "scan.nii"), (PIXDIM + 12, "f", 5.0)),
        lambda at: patch(save(at / "scan.nii"), (PIXDIM + 4, "3f", 1.0, 1.0, 1.0)),
    ],
    "no orientation (sform and qform codes 0; NRRD without a space)": [
        lambda at: patch(save(at / "scan.nii"), (SFORM_CODE, "h", 0), (QFORM_CODE, "h", 0)),
        lambda at: replace_text(itk(at / "scan.nrrd"), b"space: left", b"spice: left"),
        lambda at: replace_text(itk(at / "scan.mha"), b"TransformMatrix", b"TransfermMatrix"),
    ],
    "NaN or infinite numbers in the affine": [
        lambda at: patch(save(at / "scan.nii"), (SROW_X, "f", np.nan)),
        lambda at: patch(save(at / "scan.nii.gz"), (SROW_X + 12, "f", np.inf)),
        lambda at: patch(save(at / "scan.nii"), (QFORM_CODE, "2h", 1, 0), (QUATERN_B + 12, "f", -np.inf)),
    ],
    "a singular affine": [
        lambda at: patch(save(at / "scan.nii"), (SROW_X, "4f", 0, 0, 0, 0)),
        lambda at: patch(save(at / "scan.nii"), (SROW_X, "4f", 1, 1, 1, 0), (SROW_X + 16, "4f", 2, 2, 2, 0)),
        lambda at: replace_text(itk(at / "scan.mha"), b"TransformMatrix = 1", b"TransformMatrix = 0"),
    ],
    "Analyze 7.5 whose orientation field says unflipped": [
        *(lambda at, orient=orient: analyze(at / "scan.img", orient) for orient in range(3)),
        lambda at: analyze(at / "scan.img").with_suffix(".hdr"),
    ],
    "Analyze 7.5, flipped or with SPM's .mat file": [
        *(lambda at, orient=orient: analyze(at / "scan.img", orient) for orient in (3, 4, 5, 6, 255)),
        lambda at: analyze(at / "scan.img", mat=True),
    ],
    "up to 1 MB after the voxels": [
        lambda at: append(save(at / "scan.nii"), bytes(24)),
        lambda at: append(save(at / "scan.nii"), b"x" * 100_000),
        lambda at: append(itk(at / "scan.mha"), bytes(24)),
        lambda at: put(save(at / "scan.nii.gz"), nib.Nifti1Image(VOXELS, AFFINE).to_bytes() + bytes(7)),
    ],
    "more than 1 MB after the voxels": [
        lambda at: append(save(at / "scan.nii"), bytes(2 << 20)),
        lambda at: bomb(at / "scan.nii.gz", declared=SHAPE, inflated_mb=64),
    ],
    "bytes after the gzip stream that are no zeros": [
        lambda at: append(save(at / "scan.nii.gz"), b"trailing garbage"),
    ],
    "cut short anywhere, or fewer voxels than declared": [
        *(
            lambda at, name=name, part=part: cut(save(at / name), part)
            for name in ONE_FILE
            for part in (0.001, 0.01, 0.1, 0.3, 0.5, 0.6, 0.8, 0.9, 0.97, 0.999)
        ),
        *(
            lambda at, name=name, packed=packed, part=part: cut(itk(at / name, compressed=packed), part)
            for name, packed in ITK
            for part in (0.7, 0.9, 0.99)
        ),
        lambda at: declared(at / "scan.nii.gz", 5, 7, 40),
        lambda at: declared(at / "scan.nii", 5, 7, 5),
        lambda at: declared(at / "scan.nii.gz", 30000, 30000, 30000),
        lambda at: cut(save(at / "scan.img", kind=nib.Nifti1Pair), 0.5),
        lambda at: bomb(at / "scan.nii.gz", declared=(512, 512, 512), inflated_mb=1),
    ],
    "a bit changed in a compressed stream": [
        *(
            lambda at, byte=byte: flip(save(at / "scan.nii.gz"), byte, 2)
            for byte in (2, 20, 60, 100, 150, 200, 250, -1, -4, -6, -8, -20)
        ),
        *(
            lambda at, name=name, byte=byte: flip(itk(at / name, compressed=True), byte)
            for name in ("scan.nrrd", "scan.mha")
            for byte in (-2, -4, -50, -100)
            if (name, byte) != ("scan.nrrd", -2)  # the high bytes of its length
        ),
    ],
    "voxels that begin inside the header, or beyond any": [
        lambda at: patch(save(at / "scan.nii"), (VOX_OFFSET, "f", 0.0)),
        lambda at: patch(save(at / "scan.nii.gz"), (VOX_OFFSET, "f", 350.0)),
        lambda at: patch(save(at / "scan.nii.gz"), (VOX_OFFSET, "f", -352.0)),
        lambda at: bomb(at / "scan.nii.gz", declared=SHAPE, inflated_mb=300, offset=3e8),
    ],
    "negative or zero axis lengths": [
        lambda at: declared(at / "scan.nii", 5, -7, 4),
        lambda at: declared(at / "scan.nii.gz", 5, 0, 4),
        lambda at: patch(save(at / "scan.nii"), (DIM, "h", 0)),
        lambda at: replace_text(itk(at / "scan.nrrd"), b"sizes: 5 7 4", b"sizes: 5 7 -4"),
    ],
    "more voxels than memory allows": [
        lambda at: bomb(at / "scan.nii.gz", declared=(512, 512, 400), inflated_mb=200),
    ],
    "4D where one volume is wanted; another number of volumes than channels": [
        lambda at: save(at / "scan.nii.gz", np.stack([VOXELS] * 5, axis=-1)),
        lambda at: save(at / "scan.nii", np.stack([VOXELS] * 2, axis=-1)[:, :, :, None]),
        lambda at: (save(at / "scan.nii", np.stack([VOXELS] * 3, axis=-1)), ["one", "two"]),
    ],
    "2D": [
        lambda at: save(at / "scan.nii", VOXELS[:, :, 0]),
        lambda at: itk(at / "scan.mha", VOXELS[:, :, 0]),
    ],
    "colors or vectors": [
        lambda at: colors(at / "scan.nii.gz", RGB),
        lambda at: itk(at / "scan.nrrd", np.zeros((4, 5, 6, 3), np.uint8), is_vector=True),
    ],
    "complex numbers": [
        lambda at: colors(at / "scan.nii", np.complex64),
        lambda at: colors(at / "scan.nii.gz", np.complex128),
    ],
    "NaN or infinite voxels": [
        *(
            lambda at, bad=bad, kind=kind: filled(at / "scan.nii.gz", bad, kind)
            for bad in (np.nan, np.inf, -np.inf)
            for kind in (np.float32, np.float64)
        ),
        lambda at: itk(at / "scan.mha", np.full(SHAPE, np.nan, np.float32)),
    ],
    "whole numbers that float32 cannot keep (above 16,777,216), floats beyond float32": [
        lambda at: filled(at / "scan.nii", 2**24 + 1, np.int32),
        lambda at: filled(at / "scan.nii", -(2**40), np.int64),
        lambda at: filled(at / "scan.nii", 1e300, np.float64),
    ],
    "voxels beside a header that are missing": [
        lambda at: (save(at / "scan.img", kind=nib.Nifti1Pair).unlink(), at / "scan.hdr")[1],
        lambda at: ((itk(at / "scan.mhd"), (at / "scan.raw").unlink()), at / "scan.mhd")[1],
    ],
    "voxels written as text, or compressed otherwise": [
        lambda at: replace_text(itk(at / "scan.nrrd"), b"encoding: raw", b"encoding: text"),
        lambda at: replace_text(itk(at / "scan.nrrd"), b"encoding: raw", b"encoding: bzip2"),
        lambda at: replace_text(itk(at / "scan.mha"), b"BinaryData = True", b"BinaryData = False"),
    ],
    "another format, an empty file, a folder under a scan's name": [
        *(lambda at, name=name: text(at / name) for name in ("scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha")),
        *(lambda at, name=name: text(at / name, b"") for name in ("scan.nii", "scan.nii.gz", "scan.mha")),
        lambda at: text(at / "scan.npy"),
        lambda at: folder(at / "scan.nii.gz"),
        lambda at: patch(save(at / "scan.nii"), (MAGIC, "4s", b"n+3\0")),
        lambda at: patch(save(at / "scan.nii"), (0, "i", 347)),
    ],
}  # fmt: skip


def drawn(change):
    """A body in air, in HU, then what an exporter makes of it."""
    hu = np.full((40, 40, 12), -1000.0, dtype=np.float32)
    hu[8:32, 8:32] = 50
    hu[8:12, 8:32] = -100
    hu += np.random.default_rng(0).normal(0, 10, hu.shape).astype(np.float32)
    return lambda at: save(at / "scan.nii", np.asarray(change(hu)))


HU = {
    "air near -1000, soft tissue near 0; padding down to -4096": [
        drawn(lambda hu: hu.astype(np.int16)),
        drawn(lambda hu: np.where(hu < -1010, -3024, hu)),
    ],
    "no air (a crop, or no HU)": [drawn(lambda hu: hu[9:30, 10:30])],
    "neither air nor fat (another modality)": [drawn(lambda hu: np.abs(hu) / 2)],
    "hardly any soft tissue": [drawn(lambda hu: np.where(hu > -500, 2500, hu))],
    "values below -4096": [drawn(lambda hu: np.where(hu < -1010, -9999, hu))],
    "HU + 1024: the rescale intercept was lost": [drawn(lambda hu: hu + 1024)],
    "HU - 1024: it was applied twice": [drawn(lambda hu: hu - 1024)],
    "negative HU stored unsigned (values near 65,000)": [drawn(lambda hu: hu.astype(np.int16).view(np.uint16))],
    "8-bit gray values, values scaled to a small range": [
        drawn(lambda hu: np.clip(hu / 4 + 100, 0, 255).astype(np.uint8)),
        drawn(lambda hu: hu / 1000),
    ],
    "one value throughout": [drawn(lambda hu: np.zeros_like(hu))],
}
LABEL = (VOXELS > 0).astype(np.uint8)
LABELS = {
    "whole numbers in any type, also floats": [
        *(lambda at, kind=kind: save(at / "label.nii.gz", LABEL.astype(kind)) for kind in TYPES)
    ],
    "fractions": [lambda at: save(at / "label.nii", LABEL * np.float32(0.6))],
    "a value that the recipe does not know": [
        *(lambda at, value=value: filled(at / "label.nii", value, np.int16) for value in (7, -1, 300)),
    ],
    "another grid than the image's (0.001 mm)": [
        lambda at: save(at / "label.nii", LABEL, AFFINE + np.eye(4)[:, [3, 0, 1, 2]].T * 0.01 * np.eye(4)[:, [0]]),
        lambda at: save(at / "label.nii", LABEL[:4]),
        lambda at: save(at / "label.nii", LABEL, np.diag([-1.0, 1, 1, 1]) @ AFFINE),
    ],
}


def read_as_image(made):
    path, channels = made if isinstance(made, tuple) else (made, None)
    return (read_channels(path, channels)[0] if channels else read_scan(path)), path


def read_as_ct(path):
    return check_hu(read_scan(path), path.name), path


def read_as_label(path):
    image = save(path.parent / "image.nii")
    sample = {"image": str(image), "label": str(path), "case_id": "a"}
    return ReadCased(["ct"], {"background": 0, "liver": 1}, 255)(sample)["label"], path


ROWS = dict.fromkeys(SCANS, read_as_image) | dict.fromkeys(HU, read_as_ct) | dict.fromkeys(LABELS, read_as_label)
FILES = [(row, number) for rows in (SCANS, HU, LABELS) for row, makers in rows.items() for number in range(len(makers))]


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    monkeypatch.setenv("MEDSEG_MAX_SCAN_MB", "150")


def test_each_row_of_the_table_has_files_and_none_is_missing():
    assert list(table()) == list(ROWS)
    assert len(FILES) >= 150


@pytest.mark.parametrize(("row", "number"), FILES)
def test_file_is_read_or_refused_as_its_row_says(tmp_path, row, number):
    policy, phrases = table()[row]
    made = {**SCANS, **HU, **LABELS}[row][number](tmp_path)
    if policy == "refuse":
        with pytest.raises(DataError) as refused:
            ROWS[row](made)
        message = str(refused.value)
        name = (made[0] if isinstance(made, tuple) else made).name
        assert any(phrase in message for phrase in phrases), message
        assert message.startswith(name if row not in LABELS else "case 'a': "), message
        assert "\n" not in message
        assert str(tmp_path) not in message
        assert "; " in message, "what to do is missing"
        return
    scan, path = ROWS[row](made)
    assert np.isfinite(scan.affine).all()
    assert len(scan.sha256) == 64, path.name
    if policy == "accept":
        assert scan.warnings == ()
    else:
        assert [warning for warning in scan.warnings if any(phrase in warning for phrase in phrases)]


def test_mask_code_is_not_asked_for_scans(tmp_path):
    assert read_label(save(tmp_path / "label.nii", LABEL), MaskCode({"background": 0, "liver": 1})).voxels.max() == 1
