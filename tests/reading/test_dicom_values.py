"""What the voxels of a DICOM series are: HU after each slice's own rescale, whatever the pixels are stored as."""

import hashlib
import threading
import warnings

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_files import CANARY, enhanced, grid, save, set_pixels, some_voxels, write_series
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medseg.errors import DataError
from medseg.reading.dicom import find_series, read_series


def read_only(folder):
    (series,) = find_series(folder)
    return read_series(series.source)


def peer_hu(folder, series):
    """HU by pydicom's own functions, a slice after the other."""
    slices = []
    for path in series.source.files:
        dataset = pydicom.dcmread(path)
        slices.append(np.asarray(apply_modality_lut(pixel_array(dataset), dataset)).T)
    return np.stack(slices, axis=-1)


def test_each_slice_has_its_own_rescale(tmp_path):
    voxels = some_voxels((6, 5, 4))

    def edit(dataset, index):
        stored = voxels[:, :, index].T.astype(np.int32) + 2000 + 10 * index
        set_pixels(dataset, stored)
        dataset.RescaleIntercept = -2000 - 10 * index

    write_series(tmp_path, voxels, edit=edit)
    np.testing.assert_array_equal(read_only(tmp_path).voxels, voxels)


def test_a_slope_that_is_no_whole_number_gives_float32(tmp_path):
    write_series(tmp_path, RescaleSlope="0.5", RescaleIntercept="-1000.25")
    (series,) = find_series(tmp_path)
    scan = read_series(series.source)
    assert scan.voxels.dtype == np.float32
    np.testing.assert_allclose(scan.voxels, np.maximum(peer_hu(tmp_path, series), -1024), atol=1e-3)


def test_values_beyond_int16_give_float32_and_none_wraps(tmp_path):
    voxels = some_voxels().astype(np.int32)
    voxels[3, 2, 1] = 40000

    def edit(dataset, index):
        set_pixels(dataset, voxels[:, :, index].T + 1024, bits=16)

    write_series(tmp_path, some_voxels(), edit=edit)
    scan = read_only(tmp_path)
    assert scan.voxels.dtype == np.float32
    np.testing.assert_array_equal(scan.voxels, voxels)


@pytest.mark.parametrize(("padding", "signed"), [(-2000, True), (63536, False)])
def test_padding_outside_the_field_of_view_becomes_air(tmp_path, padding, signed):
    voxels = some_voxels()

    def edit(dataset, index):
        stored = voxels[:, :, index].T.astype(np.int32) + 1024
        stored[0, :] = padding
        set_pixels(dataset, stored, bits=16, signed=signed)
        dataset.add_new(0x00280120, "SS" if signed else "US", padding)

    write_series(tmp_path, voxels, edit=edit)
    scan = read_only(tmp_path)
    assert scan.voxels.dtype == np.int16
    assert (scan.voxels[:, 0, :] == -1024).all()
    np.testing.assert_array_equal(scan.voxels[:, 1:, :], voxels[:, 1:, :])


def test_a_padding_value_that_a_tissue_may_have_changes_nothing(tmp_path):
    def edit(dataset, index):
        dataset.add_new(0x00280120, "US", 1024)  # 0 HU, water

    voxels = some_voxels()
    assert (voxels == 0).any()
    write_series(tmp_path, voxels, edit=edit)
    np.testing.assert_array_equal(read_only(tmp_path).voxels, voxels)


def test_monochrome1_of_a_ct_keeps_its_hu_and_says_so(tmp_path):
    write_series(tmp_path, PhotometricInterpretation="MONOCHROME1")
    scan = read_only(tmp_path)
    np.testing.assert_array_equal(scan.voxels, some_voxels())
    assert scan.warnings == ("MONOCHROME1: HU are taken as the rescale gives them, not inverted",)


def test_bits_above_those_stored_are_no_part_of_the_value(tmp_path):
    """Old scanners keep overlays there: 12 bits of value, bit 15 an overlay."""
    voxels = some_voxels()

    def edit(dataset, index):
        stored = (voxels[:, :, index].T.astype(np.int32) + 1024).astype(np.uint16)
        stored[::2] |= 0x8000
        set_pixels(dataset, stored)

    write_series(tmp_path, voxels, edit=edit)
    np.testing.assert_array_equal(read_only(tmp_path).voxels, voxels)


def test_twelve_signed_bits_keep_their_sign_without_being_extended(tmp_path):
    voxels = some_voxels()

    def edit(dataset, index):
        set_pixels(dataset, voxels[:, :, index].T.astype(np.int32) & 0x0FFF)  # two's complement of 12 bits
        dataset.PixelRepresentation, dataset.RescaleIntercept = 1, 0

    write_series(tmp_path, voxels, edit=edit)
    np.testing.assert_array_equal(read_only(tmp_path).voxels, voxels)


def test_eight_bits_are_read(tmp_path):
    stored = np.random.default_rng(0).integers(0, 256, (7, 5, 4))

    def edit(dataset, index):
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        content = stored[:, :, index].T.astype(np.uint8).tobytes()
        dataset.PixelData = content + b"\0" * (len(content) % 2)
        dataset["PixelData"].VR = "OB"

    write_series(tmp_path, edit=edit)
    np.testing.assert_array_equal(read_only(tmp_path).voxels, stored - 1024)


def test_an_odd_number_of_bytes_padded_to_even_is_whole(tmp_path):
    voxels = some_voxels((5, 3, 3))
    write_series(tmp_path, voxels)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes() + bytes(2))
    np.testing.assert_array_equal(read_only(tmp_path).voxels, voxels)


def recode(path, syntax):
    """Rewrite a file in another transfer syntax: by GDCM, or as pydicom writes it."""
    if syntax in (JPEGLosslessSV1, JPEGLSLossless):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        kinds = {JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
                 JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless}  # fmt: skip
        change.SetTransferSyntax(gdcm.TransferSyntax(kinds[syntax]))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return
    dataset = pydicom.dcmread(path)
    if UID(syntax).is_compressed:
        dataset.compress(syntax)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        path, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian
    )


SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_every_lossless_transfer_syntax_gives_the_same_voxels(tmp_path, syntax):
    voxels = some_voxels((65, 48, 3))
    for path in write_series(tmp_path, voxels):
        recode(path, syntax)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_only(tmp_path).voxels, voxels)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(reader.Execute()).T, voxels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_frames_of_an_enhanced_ct_may_be_compressed(tmp_path, syntax):
    voxels = some_voxels((65, 48, 3))
    path = save(enhanced(voxels, grid(), order=[2, 0, 1]), tmp_path / "ct.dcm")
    recode(path, syntax)
    np.testing.assert_array_equal(read_only(tmp_path).voxels, voxels)


@pytest.mark.parametrize("syntax", SYNTAXES[2:], ids=lambda syntax: syntax.name)
def test_compressed_pixels_cut_short_are_refused_by_slice(tmp_path, syntax):
    """A decoder that fills what is missing with zeros would be believed."""
    voxels = some_voxels((65, 48, 3))
    paths = write_series(tmp_path, voxels, seed=None)
    for path in paths:
        recode(path, syntax)
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[: len(content) - 1500])
    (series,) = find_series(tmp_path)
    with pytest.raises(DataError, match=r"IM0001\.dcm"):
        read_series(series.source)


@pytest.mark.parametrize(
    ("uid", "name"),
    [("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264"), ("1.2.840.113619.5.2", r"1\.2\.840\.113619\.5\.2"),
     ("1.2.840.10008.1.2.4.52", "JPEG Extended")],
)  # fmt: skip
def test_a_syntax_without_a_decoder_is_refused_by_its_name(tmp_path, uid, name):
    for path in write_series(tmp_path):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = uid
        dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path, implicit_vr=False, little_endian=True)
    (series,) = find_series(tmp_path)
    with pytest.raises(DataError, match=f"is compressed as {name}.*, which is not read; decompress it first"):
        read_series(series.source)


def test_a_deflated_file_is_refused_by_name(tmp_path):
    for path in write_series(tmp_path):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
        dataset.save_as(path)
    (series,) = find_series(tmp_path)
    assert "is deflated as a whole; save it uncompressed" in series.problems[0]


def test_the_digest_is_that_of_the_files_digests_in_order(tmp_path):
    write_series(tmp_path)
    (series,) = find_series(tmp_path)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in series.source.files]
    assert read_series(series.source).sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_files_without_preamble_are_read(tmp_path):
    """As exports of the 1990s are: the data set alone."""
    for path in write_series(tmp_path):
        dataset = pydicom.dcmread(path)
        dataset.preamble = None
        del dataset.file_meta
        pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read_only(tmp_path).voxels, some_voxels())


def test_odd_values_in_other_fields_are_neither_judged_nor_told_on_the_terminal(tmp_path, caplog, capfd):
    for path in write_series(tmp_path):
        content = path.read_bytes()
        content = content.replace(b"19331224", b"19ab1299")
        path.write_bytes(content.replace(b"ISO_IR 192", b"ISO_IR 999"))  # of which pydicom warns, and logs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_only(tmp_path).voxels.shape == (7, 5, 4)
    assert CANARY not in caplog.text + "".join(capfd.readouterr())
    assert not caplog.records


def test_series_are_read_in_several_threads_at_a_time(tmp_path):
    for number in range(4):
        write_series(tmp_path / str(number), some_voxels(seed=number), SeriesInstanceUID=f"1.2.{number}")
    found = find_series(tmp_path)
    scans = {}

    def read(index):
        scans[index] = read_series(found[index].source)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        np.testing.assert_array_equal(scans[index].voxels, some_voxels(seed=index))
