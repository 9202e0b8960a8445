"""Every real scan file at hand: read as nibabel or SimpleITK reads it, or refused for a named reason."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.errors import DataError
from medseg.geometry import orientation_code
from medseg.reading import read_channels, read_grid, read_label, read_scan

ODD_REFUSED = {
    "nifti/complex.nii.gz": "complex numbers",
    "nifti/ct_perfusion.nii.gz": "colors",
    "nifti/example4d.nii.gz": "4D, shape",
    "nifti/functional.nii": "4D, shape",
    "nifti/nifti1.hdr": "its voxel file nifti1.img is missing",
    "nrrd/test_simple4d_raw.nrrd": "no 'space origin'",
}
ODD_READ = {
    "nifti/anatomical.nii": "LAS",
    "nifti/anatomical_label.nii.gz": "LAS",
    "nifti/low_res.nii.gz": "RAS",
    "nifti/ras.hdr": "RAS",
    "nifti/ras.img": "RAS",
    "nifti/reoriented_anat_moved.nii": "RAS",
    "nifti/reoriented_anat_moved_label.nii.gz": "RAS",
    "nifti/shear.nii.gz": "RAS",
    "nifti/standard.nii.gz": "RAS",
}


@pytest.mark.parametrize(
    "pattern", ["ct_liver_totalseg/*.nii.gz", "ct_lesion_sts/*/*.nii.gz", "mr_hippocampus/*/*.nii.gz"]
)
def test_scans_and_labels_are_read_as_nibabel_reads_them(shared_data, pattern):
    paths = sorted(shared_data.glob(pattern))
    assert paths
    for path in paths:
        is_label = any(part in f"{path.parent.name}/{path.name}" for part in ("labels/", "mask", "_seg"))
        scan = (read_label if is_label else read_scan)(path)
        image = nib.load(path)
        assert np.array_equal(scan.voxels, np.asanyarray(image.dataobj)), path.name
        assert np.array_equal(scan.affine, image.affine), path.name
        assert scan.voxels.dtype in ((np.uint8,) if is_label else (np.uint8, np.int16, np.float32)), path.name
        assert read_grid(path)[0] == image.shape
        assert scan.warnings == (), path.name


@pytest.mark.parametrize("name", ODD_REFUSED)
def test_odd_file_is_refused(shared_data, name):
    with pytest.raises(DataError, match=f"{name.split('/')[1]}: .*{ODD_REFUSED[name]}"):
        read_scan(shared_data / "odd" / name)


@pytest.mark.parametrize("name", ODD_READ)
def test_odd_file_is_read(shared_data, name):
    scan = read_scan(shared_data / "odd" / name)
    image = nib.load(shared_data / "odd" / name)
    assert np.allclose(scan.voxels, image.get_fdata(), rtol=1e-6, atol=1e-3)  # float32 rescale
    assert np.array_equal(scan.affine, image.affine)
    assert orientation_code(scan.affine) == ODD_READ[name]
    assert bool(scan.warnings) == (name == "nifti/shear.nii.gz")


@pytest.mark.parametrize(("name", "channels"), [("example4d.nii.gz", 2), ("functional.nii", 20)])
def test_odd_4d_file_splits_into_channels(shared_data, name, channels):
    path = shared_data / "odd" / "nifti" / name
    scans = read_channels(path, [f"time {number}" for number in range(channels)])
    stored = nib.load(path).get_fdata()
    assert all(np.allclose(scan.voxels, stored[..., number], atol=1e-3) for number, scan in enumerate(scans))


@pytest.mark.parametrize(
    "name", ["odd/nifti/mha.mha", "odd/nrrd/BallBinary30x30x30.nrrd", "odd/nrrd/BallBinary30x30x30_gz.nrrd",
             "odd/nrrd/BallBinary30x30x30.nhdr",
             "dicom_small/dcmqi/liver_seg.nrrd"],
)  # fmt: skip
def test_itk_file_is_read_as_simpleitk_reads_it(shared_data, name):
    scan = read_scan(shared_data / name)
    image = sitk.ReadImage(str(shared_data / name))
    assert np.array_equal(scan.voxels, sitk.GetArrayFromImage(image).T)
    corner = [length - 1 for length in image.GetSize()]
    left, posterior, superior = image.TransformIndexToPhysicalPoint(corner)
    assert np.allclose(scan.affine @ (*corner, 1), (-left, -posterior, superior, 1))


def test_every_odd_file_has_a_verdict(shared_data):
    odd = shared_data / "odd"
    known = {*ODD_REFUSED, *ODD_READ, "nifti/mha.mha", "nrrd/BallBinary30x30x30.raw"}
    known |= {f"nrrd/BallBinary30x30x30{end}" for end in (".nrrd", "_gz.nrrd", ".nhdr")}
    present = {path.relative_to(odd).as_posix() for name in ("nifti", "nrrd") for path in (odd / name).iterdir()}
    assert {name for name in present if "LICENSE" not in name} == known


def test_a_file_of_a_dicom_series_is_no_scan_file(shared_data):
    for path in sorted((shared_data / "odd" / "dicom").glob("*.dcm")):
        with pytest.raises(DataError, match=f"^{path.name}: not a scan file medseg reads .*; convert it first"):
            read_scan(path)
