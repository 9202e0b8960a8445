"""Pictures of a case for people: slices in the three planes with contours, numbers, sides and a scale bar.

Only NumPy and Pillow: pictures are made while a folder is predicted, and matplotlib would take longer to load than the
pictures take to draw. Display is radiological: the patient's right is on the picture's left in axial and coronal
planes, anterior is on the left in sagittal ones, and anterior or superior is up.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medseg.geometry import Box, spacing_mm, world_axes
from medseg.regions import is_one_of

Plane = Literal["axial", "coronal", "sagittal"]
ACROSS: Mapping[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}  # world axis that a plane lies across
SIDES: Mapping[Plane, tuple[str, str, str, str]] = {  # left, right, top, bottom of the picture
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}
COLORS = ((255, 166, 0), (0, 213, 255), (186, 104, 255), (126, 211, 33))  # told apart by color-blind readers, on gray
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
SCALE_BARS_MM = (100, 50, 20, 10, 5)
LONGEST_SHARE = 0.35  # of the picture's width that the scale bar may take
MARGIN_MM = 15.0
JPEG_QUALITY = 88
UPRIGHT = np.diag([-1.0, -1.0, 1.0, 1.0])  # an image has no patient: its columns run to the right, its rows down


@dataclass(frozen=True)
class PatientArray:
    """Voxels turned so that their axes grow to the patient's right, anterior and superior, as nearly as they can.

    Attributes:
        voxels: `(R, A, S)`.
        spacing_mm: edge lengths along these axes.
        box: the part of a grid that the voxels fill, which is 0 elsewhere; all of it if None.
        shape: of the grid.
    """

    voxels: NDArray[np.generic]
    spacing_mm: tuple[float, float, float]
    box: Box | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scene:
    """What all pictures of a case show.

    Attributes:
        image: intensities in the patient's axes.
        window: intensities shown as black and white.
        label: label map on the same grid; there are no contours without.
        regions: name -> label values; each is drawn in its own color, in this order.
        numbers: lesion numbers on the same grid, written beside each lesion of a slice.
    """

    image: PatientArray
    window: tuple[float, float]
    label: PatientArray | None = None
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    numbers: PatientArray | None = None


def to_patient(
    voxels: NDArray[np.generic],
    affine: NDArray[np.float64],
    *,
    box: Box | None = None,
    shape: Sequence[int] | None = None,
) -> PatientArray:
    """Turn stored voxels `(X, Y, Z)` to the patient's axes; a view, nothing is copied.

    Args:
        voxels: as stored.
        affine: `(4, 4)`, voxel index to RAS mm.
        box: the part of the stored grid that they fill; all of it if None.
        shape: of the stored grid, with a box.
    """
    order, signs = _turn(affine)
    steps = tuple(slice(None, None, sign) for sign in signs)
    sizes = spacing_mm(affine)
    spacing = (sizes[order[0]], sizes[order[1]], sizes[order[2]])
    turned = voxels.transpose(order)[steps]
    if box is None or shape is None:
        return PatientArray(turned, spacing)
    return PatientArray(turned, spacing, box_to_patient(box, shape, affine), tuple(shape[axis] for axis in order))


def own_window(voxels: NDArray[np.generic]) -> tuple[float, float]:
    """Black and white of an image without a window of its own: the 1st and the 99.5th percentile of a sample of it."""
    sample = voxels[tuple(slice(None, None, max(1, length // 64)) for length in voxels.shape)]
    low, high = (float(value) for value in np.percentile(sample.astype(np.float32), (1, 99.5)))
    return low, high if high > low else low + 1


def box_to_patient(box: Box, shape: Sequence[int], affine: NDArray[np.float64]) -> Box:
    """A box of stored voxels in the patient's axes.

    Args:
        box: along the stored axes.
        shape: of the stored grid.
        affine: `(4, 4)`, voxel index to RAS mm.
    """
    sides = [(box[stored], shape[stored], sign) for stored, sign in zip(*_turn(affine), strict=True)]
    return tuple(side if sign > 0 else slice(n - side.stop, n - side.start) for side, n, sign in sides)


def _turn(affine: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """For each axis of the patient the stored axis, and 1, or -1 where that grows against it."""
    axes = world_axes(affine)
    order = [[axis for axis, _ in axes].index(world) for world in range(3)]
    return order, [axes[stored][1] for stored in order]


def plane_of(array: PatientArray, plane: Plane, index: int) -> tuple[NDArray[np.generic], float, float]:
    """One slice as it is shown, `(rows, columns)`, and the height and width of its pixels in mm.

    Args:
        array: voxels in the patient's axes.
        plane: which plane.
        index: along the axis that the plane lies across.
    """
    across = ACROSS[plane]
    columns, rows = (axis for axis in range(3) if axis != across)
    cut = tuple(index if axis == across else slice(None) for axis in range(3))  # a view; `np.take` copies the volume
    flat = array.voxels[cut] if array.box is None else _plane_around(array, across, index)
    shown = flat[::-1, ::-1].T  # from high to low: right, anterior, superior first
    return shown, array.spacing_mm[rows], array.spacing_mm[columns]


def _plane_around(array: PatientArray, across: int, index: int) -> NDArray[np.generic]:
    """One slice of a grid of which only a box is known, 0 elsewhere."""
    box = array.box or ()
    flat = np.zeros([n for axis, n in enumerate(array.shape) if axis != across], array.voxels.dtype)
    if box[across].start <= index < box[across].stop:
        inside = tuple(side for axis, side in enumerate(box) if axis != across)
        flat[inside] = array.voxels[
            tuple(index - side.start if axis == across else slice(None) for axis, side in enumerate(box))
        ]
    return flat


def picture(
    scene: Scene,
    plane: Plane,
    index: int,
    *,
    size: int = 420,
    box: Box | None = None,
    marks: bool = True,
) -> Image.Image:
    """One slice in gray with the contours of regions.

    Args:
        scene: what is shown.
        plane: which plane.
        index: along the axis that the plane lies across.
        size: pixels of the picture's longer side.
        box: part of the grid to show, in the patient's axes; all of it if absent.
        marks: write sides and scale bar.
    """
    cut = _in_plane(box, plane)
    gray, height_mm, width_mm = plane_of(scene.image, plane, index)
    gray = gray[cut]
    shape = _pixels(gray.shape, height_mm, width_mm, size)
    low, high = scene.window
    scaled = np.clip((gray.astype(np.float32) - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    shown = Image.fromarray(np.ascontiguousarray(scaled)).resize(shape[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(shown.convert("RGB")).copy()
    if scene.label is not None:
        label = _enlarged(plane_of(scene.label, plane, index)[0][cut], shape)
        seen = set(np.unique(label).tolist())
        for color, values in zip(_colors(len(scene.regions)), scene.regions.values(), strict=True):
            if seen.intersection(values):
                pixels[outline(is_one_of(label, values))] = color
    drawn = Image.fromarray(pixels)
    if scene.numbers is not None:
        _write_numbers(drawn, _enlarged(plane_of(scene.numbers, plane, index)[0][cut], shape))
    if marks:
        _write_marks(drawn, SIDES[plane], width_mm * gray.shape[1] / shape[1])
    return drawn


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask that touch the outside by an edge; the picture's border counts as outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def montage(scene: Scene, box: Box, *, across: int = 4, down: int = 3, size: int = 210) -> Image.Image:
    """Axial slices from top to bottom of a box as one picture.

    Args:
        scene: what is shown; without the numbers of lesions.
        box: part of the grid to show, in the patient's axes.
        across: slices side by side.
        down: rows of slices.
        size: pixels of a slice's longer side.
    """
    scene = replace(scene, numbers=None)
    places = np.linspace(box[2].stop - 1, box[2].start, across * down).round().astype(int).tolist()
    tiles = [
        picture(scene, "axial", place, size=size, box=box, marks=first)
        for place, first in zip(places, [True] + [False] * (len(places) - 1), strict=True)
    ]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (width * across, height * down))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % across * width, number // across * height))
    return sheet


def around(box: Box, shape: Sequence[int], spacing: Sequence[float]) -> Box:
    """A box, in the patient's axes, with a margin of 15 mm in the axial plane as far as the grid goes."""
    margins = [round(MARGIN_MM / spacing[0]), round(MARGIN_MM / spacing[1]), 0]
    return tuple(
        slice(max(side.start - margin, 0), min(side.stop + margin, length))
        for side, margin, length in zip(box, margins, shape, strict=True)
    )


def as_data_uri(shown: Image.Image) -> str:
    """A picture as text that a page can hold."""
    stream = io.BytesIO()
    shown.save(stream, format="JPEG", quality=JPEG_QUALITY, subsampling=0)  # contours keep their colors
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def css_colors(names: Sequence[str]) -> dict[str, str]:
    """The color in which each region is drawn, as a page writes it."""
    return {name: "#{:02x}{:02x}{:02x}".format(*color) for name, color in zip(names, _colors(len(names)), strict=True)}


def _colors(count: int) -> list[tuple[int, int, int]]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _in_plane(box: Box | None, plane: Plane) -> tuple[slice, slice]:
    """The part of a shown slice that a box in the patient's axes covers; shown slices run from high to low."""
    if box is None:
        return slice(None), slice(None)
    columns, rows = (part for axis, part in enumerate(box) if axis != ACROSS[plane])
    return _from_the_end(rows), _from_the_end(columns)


def _from_the_end(part: slice) -> slice:
    return slice(-part.stop, -part.start if part.start else None)


def _pixels(shape: Sequence[int], height_mm: float, width_mm: float, size: int) -> tuple[int, int]:
    """Rows and columns of a picture in true proportion."""
    high, wide = shape[0] * height_mm, shape[1] * width_mm
    scale = size / max(high, wide)
    return max(1, round(high * scale)), max(1, round(wide * scale))


def _enlarged(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Nearest values on `shape` pixels."""
    rows = ((np.arange(shape[0]) + 0.5) * values.shape[0] / shape[0]).astype(int)
    columns = ((np.arange(shape[1]) + 0.5) * values.shape[1] / shape[1]).astype(int)
    return values[np.ix_(rows, columns)]


def _write_numbers(drawn: Image.Image, numbers: NDArray[Any]) -> None:
    """Each lesion's number to the upper right of its pixels."""
    for number in np.unique(numbers[numbers > 0]).tolist():
        rows, columns = np.nonzero(numbers == number)
        _write(drawn, str(number), (int(columns.max()) + 3, int(rows.min()) - 3), anchor="ls")


def _write_marks(drawn: Image.Image, sides: tuple[str, str, str, str], mm_per_pixel: float) -> None:
    width, height = drawn.size
    left, right, top, bottom = sides
    _write(drawn, left, (4, height // 2), anchor="lm")
    _write(drawn, right, (width - 4, height // 2), anchor="rm")
    _write(drawn, top, (width // 2, 3), anchor="ma")
    _write(drawn, bottom, (width // 2, height - 4), anchor="md")
    length_mm = next((mm for mm in SCALE_BARS_MM if mm / mm_per_pixel <= LONGEST_SHARE * width), None)
    if length_mm is not None:
        end = 8 + round(length_mm / mm_per_pixel)
        ImageDraw.Draw(drawn).line([(8, height - 8), (end, height - 8)], fill=WHITE, width=3)
        _write(drawn, f"{length_mm} mm", (8, height - 12), anchor="ls")


def _write(drawn: Image.Image, text: str, place: tuple[int, int], *, anchor: str) -> None:
    """White on a black edge, readable on any gray."""
    width, height = drawn.size
    x, y = min(max(place[0], 2), width - 2), min(max(place[1], 2), height - 2)
    ImageDraw.Draw(drawn).text((x, y), text, fill=WHITE, font=_font(), anchor=anchor, stroke_width=2, stroke_fill=BLACK)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=14)
