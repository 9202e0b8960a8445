"""2D images and masks: what is stored is what is read, and what is ambiguous is refused."""

import numpy as np
import pytest
from PIL import Image

from medseg.errors import DataError
from medseg.reading import MaskCode, read_channels, read_grid, read_label, read_label_grid, read_scan, scan_stem

RGB = ["red", "green", "blue"]
ONE = MaskCode({"background": 0, "lesion": 1}, values={"lesion": 255})


@pytest.fixture
def colors():
    return np.random.default_rng(0).integers(0, 256, (7, 11, 3)).astype(np.uint8)  # 7 rows, 11 columns


def save(pixels, path, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.TIFF"])
def test_a_color_image_is_one_slice_a_channel_with_columns_along_x(tmp_path, colors, name):
    path = save(colors, tmp_path / name)
    scans = read_channels(path, RGB)
    assert [scan.voxels.shape for scan in scans] == [(11, 7, 1)] * 3
    for row, column, channel in [(0, 0, 0), (6, 3, 1), (2, 10, 2)]:
        assert scans[channel].voxels[column, row, 0] == colors[row, column, channel]
    assert all(scan.unit == "px" and np.array_equal(scan.affine, np.eye(4)) for scan in scans)
    assert read_grid(path)[0] == (11, 7, 1, 3)


def test_a_jpeg_is_what_its_decoder_gives(tmp_path, colors):
    path = save(colors, tmp_path / "a.jpg", quality=90)
    decoded = np.asarray(Image.open(path))
    red, _, blue = read_channels(path, RGB)
    np.testing.assert_array_equal(red.voxels[..., 0].T, decoded[..., 0])
    np.testing.assert_array_equal(blue.voxels[..., 0].T, decoded[..., 2])


@pytest.mark.parametrize(("suffix", "kind"), [("png", np.uint8), ("png", np.uint16), ("tif", np.uint16)])
def test_gray_values_stay_whole_with_16_bits_too(tmp_path, suffix, kind):
    gray = np.arange(77, dtype=kind).reshape(7, 11) * kind(3 if kind is np.uint8 else 800)
    path = save(gray, tmp_path / f"a.{suffix}")
    voxels = read_scan(path).voxels
    np.testing.assert_array_equal(voxels[..., 0].T, gray)
    assert read_grid(path)[0] == voxels.shape


def test_big_endian_and_float_tiff_are_read(tmp_path):
    gray = np.arange(77, dtype=np.uint16).reshape(7, 11) + 500
    header = b"MM\x00\x2a\x00\x00\x00\x08"
    tags = [(256, 3, 11), (257, 3, 7), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 0), (277, 3, 1), (278, 3, 7)]
    tags.append((279, 4, gray.nbytes))
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        tag.to_bytes(2, "big")
        + kind.to_bytes(2, "big")
        + (1).to_bytes(4, "big")
        + ((start if tag == 273 else value) << (16 if kind == 3 else 0)).to_bytes(4, "big")
        for tag, kind, value in tags
    )
    content = header + len(tags).to_bytes(2, "big") + entries + bytes(4) + gray.astype(">u2").tobytes()
    (tmp_path / "big.tif").write_bytes(content)
    np.testing.assert_array_equal(read_scan(tmp_path / "big.tif").voxels[..., 0].T, gray)
    halves = gray.astype(np.float32) / 2
    np.testing.assert_array_equal(read_scan(save(halves, tmp_path / "f.tif")).voxels[..., 0].T, halves)


def test_one_bit_is_black_and_white_as_viewers_show_it(tmp_path):
    bits = np.arange(77).reshape(7, 11) % 3 == 0
    path = save(bits, tmp_path / "a.png")
    np.testing.assert_array_equal(read_scan(path).voxels[..., 0].T, bits * 255)
    np.testing.assert_array_equal(read_label(path, ONE).voxels[..., 0].T, bits)


def test_a_gray_image_saved_in_color_serves_a_gray_recipe_and_a_colored_one_does_not(tmp_path, colors):
    gray = np.repeat(colors[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(read_scan(save(gray, tmp_path / "a.png")).voxels[..., 0].T, colors[..., 0])
    with pytest.raises(DataError, match=r'a color image where one gray channel is wanted; set `channels` to \["red"'):
        read_scan(save(colors, tmp_path / "b.png"))


def test_a_gray_image_lacks_the_channels_of_a_color_recipe(tmp_path, colors):
    with pytest.raises(DataError, match=r"1 of 3 channels, 'green', 'blue' missing"):
        read_channels(save(colors[..., 0], tmp_path / "a.png"), RGB)


def test_opaque_alpha_is_left_out_and_a_transparent_pixel_is_refused(tmp_path, colors):
    with_alpha = np.concatenate([colors, np.full((7, 11, 1), 255, np.uint8)], axis=-1)
    red, *_ = read_channels(save(with_alpha, tmp_path / "a.png"), RGB)
    np.testing.assert_array_equal(red.voxels[..., 0].T, colors[..., 0])
    with_alpha[3, 4, 3] = 254
    with pytest.raises(DataError, match=r"1 of 77 pixels are transparent.*flatten the image"):
        read_channels(save(with_alpha, tmp_path / "b.png"), RGB)
    gray_alpha = np.stack([colors[..., 0], with_alpha[..., 3]], axis=-1)
    with pytest.raises(DataError, match="1 of 77 pixels are transparent"):
        read_scan(save(gray_alpha, tmp_path / "c.png"))
    gray_alpha[..., 1] = 255
    np.testing.assert_array_equal(read_scan(save(gray_alpha, tmp_path / "d.png")).voxels[..., 0].T, colors[..., 0])


def test_a_transparent_color_of_a_png_without_alpha_is_refused(tmp_path, colors):
    Image.fromarray(colors).save(tmp_path / "a.png", transparency=tuple(int(value) for value in colors[0, 0]))
    with pytest.raises(DataError, match="pixels are transparent"):
        read_channels(tmp_path / "a.png", RGB)


def paletted(path):
    indices = np.arange(77, dtype=np.uint8).reshape(7, 11) % 3
    image = Image.new("P", (11, 7))
    image.putdata(indices.ravel().tolist())
    image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    image.save(path)
    return indices


def test_a_palette_image_has_the_colors_of_its_palette(tmp_path):
    indices = paletted(tmp_path / "a.png")
    red, green, _ = read_channels(tmp_path / "a.png", RGB)
    np.testing.assert_array_equal(red.voxels[..., 0].T, np.array([0, 200, 10])[indices])
    np.testing.assert_array_equal(green.voxels[..., 0].T, np.array([0, 10, 200])[indices])


def test_a_palette_mask_is_read_by_index_or_by_color(tmp_path):
    indices = paletted(tmp_path / "a.png")
    labels = {"background": 0, "liver": 1, "tumor": 2}
    by_index = read_label(tmp_path / "a.png", MaskCode(labels))
    np.testing.assert_array_equal(by_index.voxels[..., 0].T, indices)
    by_color = MaskCode(labels, colors={"liver": [10, 200, 10], "tumor": [200, 10, 10]})
    np.testing.assert_array_equal(
        read_label(tmp_path / "a.png", by_color).voxels[..., 0].T, np.array([0, 2, 1])[indices]
    )


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_an_image_that_exif_turns_is_refused(tmp_path, colors, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(colors, tmp_path / f"a.{suffix}", exif=exif)
    for read in (read_scan, read_grid):
        with pytest.raises(DataError, match=f"a.{suffix}: EXIF orientation {orientation} .*save the image upright"):
            read(path)


def test_an_upright_exif_orientation_passes(tmp_path, colors):
    exif = Image.Exif()
    exif[0x0112] = 1
    assert read_grid(save(colors, tmp_path / "a.jpg", exif=exif))[0] == (11, 7, 1, 3)


def test_what_pillow_would_cut_or_reinterpret_is_refused(tmp_path, colors):
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors.astype(np.uint16) * 257)
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", 11, 7, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows))
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"deep.png: 16 bits a color, of which 8 would be cut off"):
        read_channels(tmp_path / "deep.png", RGB)
    Image.fromarray(colors).convert("CMYK").save(tmp_path / "c.tif")
    with pytest.raises(DataError, match=r"c.tif: pixels are CMYK, neither gray nor RGB"):
        read_scan(tmp_path / "c.tif")
    pages = [Image.fromarray(colors)] * 2
    pages[0].save(tmp_path / "p.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"p.tif: 2 pictures in one file"):
        read_scan(tmp_path / "p.tif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_file_cut_short_or_of_another_kind_is_refused_without_its_folder(tmp_path, colors, suffix):
    path = save(colors, tmp_path / f"a.{suffix}")
    whole = path.read_bytes()
    for content in (b"", b"not an image", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a.{suffix}: damaged or cut short") as raised:
            read_channels(path, RGB)
        assert str(tmp_path) not in str(raised.value)


def test_a_flipped_bit_in_a_png_is_found(tmp_path, colors):
    path = save(colors, tmp_path / "a.png")
    whole = bytearray(path.read_bytes())
    at = whole.find(b"IDAT") + 4
    for byte in range(at, at + 200, 7):
        broken = whole.copy()
        broken[byte] ^= 1
        path.write_bytes(broken)
        with pytest.raises(DataError, match="damaged"):
            read_channels(path, RGB)


def test_a_mask_by_value(tmp_path):
    mask = np.where(np.arange(77).reshape(7, 11) % 2, 255, 0).astype(np.uint8)
    label = read_label(save(mask, tmp_path / "m.png"), ONE)
    assert label.voxels.dtype == np.uint8
    np.testing.assert_array_equal(label.voxels[..., 0].T, mask // 255)
    in_color = save(np.stack([mask] * 3, -1), tmp_path / "c.png")
    np.testing.assert_array_equal(read_label(in_color, ONE).voxels, label.voxels)
    assert read_label_grid(in_color)[0] == (11, 7, 1)


def test_a_mask_by_color_and_voxels_that_nobody_annotated(tmp_path):
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255], [128, 128, 128]], np.uint8)
    which = np.arange(77).reshape(7, 11) % 4
    code = MaskCode(
        {"background": 0, "liver": 1, "tumor": 2},
        colors={"liver": [255, 0, 0], "tumor": [0, 0, 255], "ignore": [128, 128, 128]},
        ignore_label=255,
    )
    label = read_label(save(palette[which], tmp_path / "m.png"), code)
    np.testing.assert_array_equal(label.voxels[..., 0].T, np.array([0, 1, 2, 255])[which])


def test_smooth_edges_are_refused_or_cut_at_a_threshold(tmp_path):
    mask = np.zeros((7, 11), np.uint8)
    mask[2:5, 3:8] = 255
    mask[2, 3:8] = [100, 127, 128, 200, 17]
    path = save(mask, tmp_path / "m.png")
    expected = (
        r"m.png: 5 of 77 mask pixels have values that no label has \(\[17, 100, 127, 128, 200\]\).*mask_threshold"
    )
    with pytest.raises(DataError, match=expected):
        read_label(path, ONE)
    cut = MaskCode({"background": 0, "lesion": 1}, values={"lesion": 255}, threshold=128)
    np.testing.assert_array_equal(read_label(path, cut).voxels[..., 0].T, mask >= 128)
    dark = MaskCode({"background": 0, "lesion": 1}, values={"lesion": 0, "background": 255}, threshold=128)
    np.testing.assert_array_equal(read_label(path, dark).voxels[..., 0].T, mask < 128)


def test_smooth_colored_edges_are_refused(tmp_path):
    mask = np.zeros((7, 11, 3), np.uint8)
    mask[2:5, 3:8] = (255, 0, 0)
    mask[2, 3] = (120, 0, 0)
    code = MaskCode({"background": 0, "lesion": 1}, colors={"lesion": [255, 0, 0]})
    message = r"1 of 77 mask pixels have colors that no label has \(\[\[120, 0, 0\]\]\).*without smoothing.*mask_colors"
    with pytest.raises(DataError, match=message):
        read_label(save(mask, tmp_path / "m.png"), code)
    with pytest.raises(DataError, match="the mask is colored; say in `mask_colors`"):
        read_label(tmp_path / "m.png", ONE)


def test_many_unknown_values_are_counted_not_listed(tmp_path):
    ramp = np.arange(77, dtype=np.uint8).reshape(7, 11)
    with pytest.raises(DataError, match=r"76 of 77 mask pixels .* and 71 more\)"):
        read_label(save(ramp, tmp_path / "m.png"), ONE)


def test_255_is_no_ignored_voxel_unless_the_recipe_says_so(tmp_path):
    mask = np.full((7, 11), 255, np.uint8)
    code = MaskCode({"background": 0, "lesion": 1}, ignore_label=255)
    with pytest.raises(DataError, match=r"77 of 77 mask pixels have values that no label has \(\[255\]\)"):
        read_label(save(mask, tmp_path / "m.png"), code)


def test_a_mask_with_a_number_an_object_is_cut_at_one(tmp_path):
    objects = np.arange(77, dtype=np.uint16).reshape(7, 11) * 300
    code = MaskCode({"background": 0, "nucleus": 1}, values={"nucleus": 1}, threshold=1)
    np.testing.assert_array_equal(read_label(save(objects, tmp_path / "m.tif"), code).voxels[..., 0].T, objects > 0)


def test_a_jpeg_mask_is_refused(tmp_path, colors):
    path = save(colors[..., 0], tmp_path / "m.jpg")
    for read in (read_label_grid, lambda path: read_label(path, ONE)):
        with pytest.raises(DataError, match=r"m.jpg: a mask in JPEG, which changes values along every edge; export it"):
            read(path)


def test_a_mask_without_meaning_is_refused(tmp_path, colors):
    with pytest.raises(DataError, match=r"a.png: what the values of a mask mean is not said; .*unet_images.json"):
        read_label(save(colors, tmp_path / "a.png"))


def test_the_name_of_an_image_without_suffix():
    assert [scan_stem(name) for name in ("a.b.png", "c.JPEG", "d.txt")] == ["a.b", "c", "d.txt"]
