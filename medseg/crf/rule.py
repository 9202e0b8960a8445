"""A dense CRF as a clean-up rule: it moves the borders of a label to the edges of the scan."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medseg.crf.kernels import GaussianKernels
from medseg.crf.mean_field import mean_field, potts
from medseg.errors import ConfigError, DataError
from medseg.geometry import bounding_box, spacing_mm

TILE_VOXELS = 2**22  # 1 GB at a time with 3 classes and voxels of 1 mm, the halo counted
HALO_WIDTHS = 2  # kernel widths of context around a tile

Box = tuple[slice, ...]
Rule = Callable[..., NDArray[np.uint8]]  # `rule(label, affine)`, or a `ScanRule`


class ScanRule(Protocol):
    """A clean-up rule that looks at the scan: its class says `needs_scan = True`."""

    needs_scan: bool

    def __call__(
        self, label: NDArray[np.uint8], affine: NDArray[np.float64], scan_voxels: NDArray[np.generic]
    ) -> NDArray[np.uint8]:
        """Label map `(X, Y, Z)`, its affine and the first channel on the same grid -> label map; inputs stay."""


def needs_scan(rules: Iterable[Rule]) -> bool:
    """Whether one of the rules looks at the scan."""
    return any(getattr(rule, "needs_scan", False) for rule in rules)


def clean_up(
    label: NDArray[np.uint8],
    affine: NDArray[np.float64],
    rules: Iterable[Rule],
    scan_voxels: NDArray[np.generic] | None,
) -> NDArray[np.uint8]:
    """The label after all rules, in order.

    Args:
        label: label map `(X, Y, Z)` on the scan's own grid.
        affine: the scan's affine.
        rules: a recipe's `cleanup`.
        scan_voxels: the first channel `(X, Y, Z)`, as read; None where nobody has it.

    Raises:
        ConfigError: if a rule needs the scan and there is none.
    """
    for rule in rules:
        if not getattr(rule, "needs_scan", False):
            label = rule(label, affine)
        elif scan_voxels is None:
            raise ConfigError(
                f"cleanup: {type(rule).__name__} looks at the scan, but the prepared case does not have it; set "
                "`keep_scan` of ScanToGridd, or remove the rule"
            )
        else:
            label = rule(label, affine, scan_voxels)
    return label


class DenseCRF:
    """Fully connected CRF on a label and its scan; usable in a recipe's `cleanup`.

    The defaults suit soft tissue in CT. As a rule it works within the bounding box of the label, grown by two kernel
    widths, in tiles of 4 million voxels with as much context around each; what lies outside stays as it is. Only
    label values that the label has can come out.

    Args:
        position_mm: width in space of the appearance kernel.
        intensity: its width in intensity, in HU or the scan's unit.
        appearance_weight: how strongly near voxels of like intensity ask for one label.
        smoothness_mm: width of the smoothness kernel.
        smoothness_weight: how strongly near voxels ask for one label, whatever they look like.
        compatibility: penalties `(C, C)` of label value beside label value; 1 where they differ if None.
        iterations: rounds of message passing.
        label_confidence: probability that a voxel's label is right, above 0.5; the other values share the rest.
        intensity_range: intensities are clipped to it first; None for no clipping.
        method: `"auto"`, `"exact"` or `"grid"`, see `GaussianKernels`.

    Raises:
        ConfigError: if a setting makes no sense; names it.

    Reference:
        Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", 2011,
        arXiv:1210.5644; departs from it in the filter (a bilateral grid for the permutohedral lattice), the
        symmetric normalization of its later code, and in 3D.
    """

    needs_scan = True

    def __init__(
        self,
        *,
        position_mm: float = 5.0,
        intensity: float = 25.0,
        appearance_weight: float = 10.0,
        smoothness_mm: float = 2.0,
        smoothness_weight: float = 3.0,
        compatibility: Sequence[Sequence[float]] | None = None,
        iterations: int = 5,
        label_confidence: float = 0.9,
        intensity_range: Sequence[float] | None = (-150.0, 250.0),
        method: Literal["auto", "exact", "grid"] = "auto",
    ) -> None:
        self.kernels = GaussianKernels(
            position_mm, intensity, smoothness_mm, intensity_range=intensity_range, method=method
        )
        for name, weight in (("appearance_weight", appearance_weight), ("smoothness_weight", smoothness_weight)):
            if not weight >= 0:
                raise ConfigError(f"{name} is {weight}; give 0 or more")
        if iterations < 1:
            raise ConfigError(f"iterations is {iterations}; give 1 or more")
        if not 0.5 < label_confidence < 1:  # below 1 / number of values, the other values would be likelier
            raise ConfigError(f"label_confidence is {label_confidence}; give a probability above 0.5 and below 1")
        if compatibility is not None and {len(row) for row in compatibility} != {len(compatibility)}:
            raise ConfigError(f"compatibility is {compatibility}; give a square matrix, one row a label value")
        self.appearance_weight, self.smoothness_weight = appearance_weight, smoothness_weight
        self.compatibility = None if compatibility is None else torch.tensor(compatibility, dtype=torch.float64)
        self.iterations, self.label_confidence = iterations, label_confidence

    def __call__(
        self, label: NDArray[np.uint8], affine: ArrayLike, scan_voxels: NDArray[np.generic]
    ) -> NDArray[np.uint8]:
        """Label map `(X, Y, Z)`, its affine and the scan on the same grid -> refined label map; inputs stay.

        Raises:
            DataError: if the scan has another shape, or values that are no finite numbers where the rule looks.
            ConfigError: if `compatibility` has no row for a label value.
        """
        if label.shape != scan_voxels.shape:
            raise DataError(f"the label is {label.shape} voxels, the scan {scan_voxels.shape}; give both on one grid")
        refined = label.copy()
        box, values = bounding_box(label), np.unique(label)
        if box is None or len(values) < 2:
            return refined
        spacing = spacing_mm(affine)
        reach_mm = HALO_WIDTHS * max(self.kernels.position_mm, self.kernels.smoothness_mm)
        margin = [int(np.ceil(reach_mm / length)) for length in spacing]
        for tile in tiles(grown(box, margin, label.shape)):
            around = grown(tile, margin, label.shape)
            logits = label_logits(label[around], values, self.label_confidence)
            image = torch.from_numpy(scan_voxels[around].astype(np.float32, order="C"))
            if broken := image.numel() - int(image.isfinite().sum()):
                raise DataError(f"{broken} voxels of the scan are NaN or infinite; mend it, or remove the rule")
            winner = self.refine(logits, image[None], spacing, values=values.tolist()).argmax(dim=0).numpy()
            inner = tuple(slice(t.start - a.start, t.stop - a.start) for t, a in zip(tile, around, strict=True))
            refined[tile] = values[winner[inner]]
        return refined

    @torch.no_grad()
    def refine(
        self, logits: Tensor, image: Tensor, spacing_mm: Sequence[float], *, values: Sequence[int] | None = None
    ) -> Tensor:
        """Logits after the mean field; their softmax is its probabilities.

        Args:
            logits: `(C, *spatial)`, a network's or minus unary energies.
            image: `(K, *spatial)`, in the unit of `intensity`.
            spacing_mm: voxel edge lengths along the spatial axes.
            values: which label value each channel is, where `compatibility` has more; 0, 1, ... if None.

        Raises:
            ConfigError: if `compatibility` has no row for a value.
        """
        appearance, smoothness = self.kernels.messages(image, spacing_mm)
        both = [(appearance, self.appearance_weight), (smoothness, self.smoothness_weight)]
        weighted = [(messages, weight) for messages, weight in both if weight]
        rows = list(range(len(logits)) if values is None else values)
        return mean_field(logits, weighted, self._penalties(rows), iterations=self.iterations)

    def _penalties(self, values: Sequence[int]) -> Tensor:
        if self.compatibility is None:
            return potts(len(values))
        if max(values) >= len(self.compatibility):
            raise ConfigError(
                f"compatibility has {len(self.compatibility)} rows, but there is a label value {max(values)}; give a "
                "row and a column for each value from 0"
            )
        return self.compatibility[values][:, values]


def label_logits(label: NDArray[np.uint8], values: NDArray[np.uint8], confidence: float) -> Tensor:
    """Logits `(C, *spatial)` of a label that is right with probability `confidence`, else evenly another value."""
    odds = confidence * (len(values) - 1) / (1 - confidence)
    return torch.from_numpy(np.stack([label == value for value in values])).float() * float(np.log(odds))


def grown(box: Box, margin: Sequence[int], shape: Sequence[int]) -> Box:
    """The box with a margin on every side, as far as the grid goes."""
    return tuple(
        slice(max(0, side.start - extra), min(n, side.stop + extra))
        for side, extra, n in zip(box, margin, shape, strict=True)
    )


def tiles(box: Box) -> Iterator[Box]:
    """Parts of a box of at most `TILE_VOXELS` each: halved along the longest side until they are."""
    lengths = [side.stop - side.start for side in box]
    if np.prod(lengths) <= TILE_VOXELS:
        yield box
        return
    axis = int(np.argmax(lengths))
    middle = box[axis].start + lengths[axis] // 2
    for half in (slice(box[axis].start, middle), slice(middle, box[axis].stop)):
        yield from tiles((*box[:axis], half, *box[axis + 1 :]))
