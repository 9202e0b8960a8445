"""2D images (PNG, JPEG, TIFF) through Pillow: pixels as stored, nothing turned, cut to 8 bits or blended in silence.

An image has no spacing: its unit is the pixel, and nothing that follows may speak of mm. It is a scan of one slice,
`(X, Y, 1)` with columns along X from the left and rows along Y from the top.

EXIF orientation is refused, not applied: viewers turn such an image, many annotation tools and all mask files do not,
so which way a mask was drawn cannot be known (half turns and mirrorings do not even show in the size).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.reading.scan import Scan, compact_voxels, damaged

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
LOSSY_SUFFIXES = (".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG", "TIFF")
GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "F")
COLOR_MODES = ("P", "PA", "RGB", "RGBA")
ORIENTATION, PHOTOMETRIC = 0x0112, 0x0106  # EXIF and TIFF tags
TURNED = range(2, 9)  # orientations that viewers undo; 0 and others mean nothing


def is_image(path: str | Path) -> bool:
    """Whether the name is that of a 2D image file."""
    return Path(path).name.lower().endswith(IMAGE_SUFFIXES)


def read_image(path: Path) -> Scan:
    """The image as a scan of one slice, in pixels: `(X, Y, 1)`, or `(X, Y, 1, 3)` for red, green and blue.

    Gray values are those that a viewer shows (1, 2 and 4 bits are scaled to 0 ... 255); 16 bits stay. A palette image
    has the colors of its palette. An alpha channel without any transparency is left out.

    Raises:
        DataError: if the file is damaged, holds several pages, is turned by EXIF, transparent, of more than 8 bits a
            color, or in another color space than gray and RGB.
    """
    with _opened(path) as image:
        pixels = _pixels(image, path.name)
    return Scan(compact_voxels(_upright(pixels), path.name), np.eye(4), unit="px")


def read_image_grid(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape `(X, Y, 1)` or `(X, Y, 1, 3)` from the header alone, and the identity."""
    with _opened(path, header_only=True) as image:
        return (*image.size, 1) if image.mode in GRAY_MODES else (*image.size, 1, 3), np.eye(4)


def read_mask_pixels(path: Path, *, colors: bool) -> NDArray[np.generic]:
    """Pixels of a mask, `(X, Y, 1)` gray values or palette indices, or `(X, Y, 1, 3)` colors.

    Args:
        path: PNG or TIFF.
        colors: whether the colors of a palette count, not its indices.

    Raises:
        DataError: as `read_image`, and for JPEG, which changes the values at every edge.
    """
    check_mask_file(path)
    with _opened(path) as image:
        if image.mode == "P" and not colors:
            return _upright(np.asarray(image))
        return _upright(_pixels(image, path.name))


def check_mask_file(path: str | Path) -> None:
    """Refuse a format that does not keep values.

    Raises:
        DataError: if the mask is a JPEG.
    """
    if Path(path).name.lower().endswith(LOSSY_SUFFIXES):
        raise DataError(
            f"{Path(path).name}: a mask in JPEG, which changes values along every edge; export it as PNG or TIFF"
        )


def one_gray_channel(scan: Scan, name: str) -> Scan:
    """An image whose three colors are the same everywhere, as one channel.

    Raises:
        DataError: if they are not.
    """
    first = scan.voxels[..., :1]
    if (scan.voxels != first).any():
        raise DataError(
            f"{name}: a color image where one gray channel is wanted; set `channels` to "
            '["red", "green", "blue"] and `in_channels` to 3, or convert it to gray'
        )
    return replace(scan, voxels=first[..., 0])


@contextmanager
def _opened(path: Path, *, header_only: bool = False) -> Iterator[Any]:
    """The image with its header judged."""
    from PIL import Image  # most scans are no images

    try:
        if not header_only and path.suffix.lower() == ".png":
            with Image.open(path, formats=FORMATS) as checked:
                checked.verify()  # reading alone does not look at the checksums
        with Image.open(path, formats=FORMATS) as image:
            _check_header(image, path.name)
            if not header_only or image.format != "PNG" or "exif" in image.info:
                _check_orientation(image, path.name)  # which reads a PNG to its end, where EXIF may stand too
            yield image
    except Image.DecompressionBombError as error:
        raise DataError(f"{path.name}: too many pixels for one image; cut it into tiles first") from error
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, TypeError) as error:  # what Pillow's formats raise
        raise damaged(path, error) from error


def _check_header(image: Any, name: str) -> None:
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{name}: {image.n_frames} pictures in one file; export each as a file of its own")
    if image.mode not in GRAY_MODES + COLOR_MODES:
        raise DataError(f"{name}: pixels are {image.mode}, neither gray nor RGB; convert the image to one of them")
    bits = _raw_mode(image)
    if image.mode in ("LA", *COLOR_MODES) and ";16" in bits:
        raise DataError(
            f"{name}: 16 bits a color, of which 8 would be cut off; save it with 8 bits a color, or as gray"
        )
    inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0
    if inverted and image.mode not in ("1", "L"):
        raise DataError(f"{name}: white is stored as 0 (TIFF MinIsWhite); save it with black as 0")


def _check_orientation(image: Any, name: str) -> None:
    turned = image.getexif().get(ORIENTATION, 1)
    if turned in TURNED:
        raise DataError(
            f"{name}: EXIF orientation {turned} tells viewers to turn it, and whether a mask was drawn before or after "
            "cannot be known; save the image upright without that tag (such as `magick mogrify -auto-orient`)"
        )


def _raw_mode(image: Any) -> str:
    """How the file stores a pixel, such as "RGB;16B"; Pillow's mode does not tell."""
    if not image.tile:
        return ""
    arguments = image.tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments or "")


def _pixels(image: Any, name: str) -> NDArray[np.generic]:
    """`(Y, X)` gray or `(Y, X, 3)` colors."""
    see_through = image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if see_through else "RGB")
    elif image.mode == "1":
        image = image.convert("L")  # 0 and 255, as a viewer shows them
    elif see_through and image.mode in ("L", "RGB"):
        image = image.convert({"L": "LA", "RGB": "RGBA"}[image.mode])
    pixels = np.asarray(image)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if image.mode not in ("LA", "RGBA"):
        return pixels
    transparent = np.count_nonzero(pixels[..., -1] < 255)
    if transparent:
        raise DataError(
            f"{name}: {transparent} of {pixels[..., -1].size} pixels are transparent, so their colors depend on what "
            "lies behind; flatten the image onto a background first"
        )
    return pixels[..., 0] if image.mode == "LA" else pixels[..., :3]


def _upright(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Rows and columns `(Y, X, ...)` -> `(X, Y, 1, ...)`."""
    return np.swapaxes(pixels, 0, 1)[:, :, None]
