"""Pictures to look at: expert and prediction on one slice, and the curves of a training. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from medseg.geometry import spacing_mm, world_axes
from medseg.writing import aside

REFERENCE, PREDICTION = "#00d5ff", "#ffa600"  # told apart by color-blind readers too, on gray
WIDTH_INCHES, TITLE_INCHES, NOTICE_INCHES, DPI = 6.0, 0.4, 0.3, 120
MOST_PIXELS = 720  # of a 2D image along its longer edge: what the picture can show


def overlay_picture(
    image: NDArray[np.generic],
    label: NDArray[np.integer] | None,
    pred: NDArray[np.integer],
    affine: NDArray[np.float64],
    path: Path,
    *,
    title: str,
    window: tuple[float, float] | None = None,
    notice: str | None = None,
) -> None:
    """Write one axial slice as PNG: image in gray, outlines of expert and prediction.

    Radiological display: the patient's right is on the picture's left, anterior is up, edges in true proportion. The
    slice is the one with most of the label value that has fewest voxels (so a tumor, not its organ), of the label if it
    has any, else of the prediction.

    Args:
        image: intensities `(X, Y, Z)`.
        label: the expert's integer map `(X, Y, Z)`, or None.
        pred: the predicted integer map `(X, Y, Z)`.
        affine: `(4, 4)`, voxel index -> RAS mm.
        path: PNG file to write or replace.
        title: written above.
        window: intensities shown as black and white; the slice's 1st and 99th percentile if absent.
        notice: written below.
    """
    stored = [axis for axis, _ in world_axes(affine)]
    sizes = spacing_mm(affine)
    width_mm, height_mm = sizes[stored.index(0)], sizes[stored.index(1)]
    picture, outlined = _display(image, affine), _display(pred, affine)
    expert = None if label is None else _display(label, affine)
    number = slice_to_show(outlined if expert is None or not expert.any() else expert)
    rows, columns = picture.shape[:2]

    height_inches = WIDTH_INCHES * rows * height_mm / (columns * width_mm)
    whole_inches = height_inches + TITLE_INCHES + NOTICE_INCHES
    figure = Figure(figsize=(WIDTH_INCHES, whole_inches), dpi=DPI)
    axes = figure.add_axes((0, NOTICE_INCHES / whole_inches, 1, height_inches / whole_inches))
    low, high = window or np.percentile(picture[..., number], (1, 99))
    axes.imshow(
        picture[..., number], cmap="gray", vmin=low, vmax=high, aspect=height_mm / width_mm, interpolation="nearest"
    )
    outlines = [(outlined, PREDICTION, "prediction")]
    if expert is not None:
        outlines.insert(0, (expert, REFERENCE, "expert"))
    for voxels, color, _ in outlines:
        _outline(axes, voxels[..., number], color)
    for x, side in ((0.02, "R"), (0.98, "L")):
        axes.text(x, 0.5, side, transform=axes.transAxes, color="white", ha="center", va="center", weight="bold")
    axes.legend(
        [Line2D([], [], color=color) for _, color, _ in outlines], [name for *_, name in outlines], loc="lower right"
    )
    axes.set_axis_off()
    axes.set_title(title)
    if notice:
        figure.text(0.5, NOTICE_INCHES / whole_inches / 2, notice, ha="center", va="center", size="small")
    _save(figure, path)


def image_picture(
    pixels: NDArray[np.generic],
    label: NDArray[np.integer] | None,
    pred: NDArray[np.integer],
    path: Path,
    *,
    title: str,
    notice: str | None = None,
) -> None:
    """Write a 2D image as PNG, upright as it is stored, with outlines of expert and prediction; no sides, no mm.

    Args:
        pixels: `(X, Y, C)`; shown in color if there are three channels of 0 ... 255, else the first one in gray.
        label: the expert's integer map `(X, Y)`, or None.
        pred: the predicted integer map `(X, Y)`.
        path: PNG file to write or replace.
        title: written above.
        notice: written below.
    """
    step = max(1, max(pixels.shape[:2]) // MOST_PIXELS)
    shown = pixels[::step, ::step].swapaxes(0, 1)
    rows, columns = shown.shape[:2]
    height_inches = WIDTH_INCHES * rows / columns
    whole_inches = height_inches + TITLE_INCHES + NOTICE_INCHES
    figure = Figure(figsize=(WIDTH_INCHES, whole_inches), dpi=DPI)
    axes = figure.add_axes((0, NOTICE_INCHES / whole_inches, 1, height_inches / whole_inches))
    if shown.shape[2] == 3 and shown.min() >= 0 and shown.max() <= 255:
        axes.imshow(shown.astype(np.uint8), interpolation="nearest")
    else:
        low, high = np.percentile(shown[..., 0].astype(np.float64), (1, 99))
        axes.imshow(shown[..., 0], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    outlines = [(pred, PREDICTION, "prediction")]
    if label is not None:
        outlines.insert(0, (label, REFERENCE, "expert"))
    for values, color, _ in outlines:
        _outline(axes, values[::step, ::step].T, color)
    axes.legend(
        [Line2D([], [], color=color) for _, color, _ in outlines], [name for *_, name in outlines], loc="lower right"
    )
    axes.set_axis_off()
    axes.set_title(title)
    if notice:
        figure.text(0.5, NOTICE_INCHES / whole_inches / 2, notice, ha="center", va="center", size="small")
    _save(figure, path)


def curves_picture(history: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Write curves as PNG, one panel for the names that share what stands before the last "/".

    Args:
        history: name of a figure, such as `dice/validation_tumor_dice` -> its (epoch, value) pairs.
        path: PNG file to write or replace.
    """
    panels: dict[str, list[str]] = {}
    for name in history:
        panels.setdefault(name.rpartition("/")[0], []).append(name)
    figure = Figure(figsize=(WIDTH_INCHES, 2.6 * max(1, len(panels))), dpi=DPI, layout="constrained")
    for number, (panel, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        for name in names:
            steps, values = zip(*history[name], strict=True) if history[name] else ((), ())
            axes.plot(steps, values, marker=".", label=name.rpartition("/")[2])
        axes.set(title=panel.replace("_", " "), xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    _save(figure, path)


def slice_to_show(voxels: NDArray[np.integer]) -> int:
    """Index along the last axis with most of the label value that has fewest voxels; the middle one if all are 0."""
    values, counts = np.unique(voxels[voxels > 0], return_counts=True)
    if not len(values):
        return voxels.shape[-1] // 2
    return int(np.argmax((voxels == values[np.argmin(counts)]).sum(axis=(0, 1))))


def _display(voxels: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Voxels as rows from anterior to posterior, columns from right to left, slices from feet to head."""
    axes = world_axes(affine)
    order = [[axis for axis, _ in axes].index(world) for world in (1, 0, 2)]
    turned = voxels.transpose(order)
    against = [position for position, stored in enumerate(order) if (axes[stored][1] > 0) == (position < 2)]
    return np.flip(turned, tuple(against))


def _outline(axes: Axes, plane: NDArray[Any], color: str) -> None:
    """Outline of each label value in a slice, halfway between voxels that have it and voxels that do not."""
    for value in np.unique(plane[plane > 0]):
        mask = np.pad(plane == value, 1)  # closed where it touches the border
        rows, columns = (np.arange(-1, size - 1) for size in mask.shape)
        axes.contour(columns, rows, mask, levels=[0.5], colors=color, linewidths=1.2)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with aside(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
