"""One region of a pair of maps, cut to the box around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import bounding_box
from medseg.metrics.calibration import CalibrationBins, calibration_bins
from medseg.metrics.pairs import Pair

CALIBRATION_MARGIN_MM = 10.0


@dataclass(frozen=True)
class Part:
    """Where a region is in both maps.

    Attributes:
        pred: mask on the box around the region in either map; of one voxel if it is in none.
        reference: the same of the reference.
        box: that box, in the arrays in use.
        values: label values of the region.
        pair: of which this is a part.
    """

    pred: NDArray[np.bool_]
    reference: NDArray[np.bool_]
    box: tuple[slice, ...]
    values: Sequence[int]
    pair: Pair

    @classmethod
    def of(cls, pair: Pair, values: Sequence[int]) -> "Part":
        """The region with these label values."""
        pred, reference = pair.masks(values)
        inner = bounding_box(pred | reference) or tuple(slice(0, 1) for _ in pred.shape)
        box = tuple(
            slice(start + part.start, start + part.stop) for start, part in zip(pair.corner, inner, strict=True)
        )
        return cls(np.ascontiguousarray(pred[inner]), np.ascontiguousarray(reference[inner]), box, values, pair)

    @cached_property
    def counts(self) -> tuple[int, int, int, int]:
        """Voxels that are true positive, false positive, false negative and true negative."""
        table = self.pair.counts
        inside = np.zeros(len(table), dtype=bool)
        inside[[self.pair.values.index(value) for value in self.values]] = True
        tp, fp = table[inside][:, inside].sum(), table[~inside][:, inside].sum()
        fn, tn = table[inside][:, ~inside].sum(), table[~inside][:, ~inside].sum()
        return int(tp), int(fp), int(fn), int(tn)

    @property
    def affine(self) -> NDArray[np.float64]:
        """Of the box, its axes in the order they were given in."""
        layout = self.pair.layout
        corner = [part.start for part in self.box]
        affine = layout.affine.copy()
        affine[:-1, -1] += affine[:-1, :-1] @ (corner[::-1] if layout.reversed else corner)
        return affine

    def as_given(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Both masks, axes in the order they were given in."""
        return self.pair.layout.as_given(self.pred), self.pair.layout.as_given(self.reference)

    def probability(self, channels: Sequence[NDArray[Any]]) -> tuple[CalibrationBins, NDArray[Any]]:
        """How well the region's probability is calibrated in and around it, and that probability on the box.

        Around it means 10 mm (or pixels) beyond the box: over a whole scan the sure background would drown the rest.

        Args:
            channels: maps as given, of the whole grid, that add up to the region's probability.
        """
        layout = self.pair.layout
        rows = np.linalg.norm(np.linalg.inv(layout.steps_mm), axis=1)
        wider = tuple(
            slice(max(0, part.start - margin), min(size, part.stop + margin))
            for part, margin, size in zip(
                self.box,
                np.ceil(CALIBRATION_MARGIN_MM * rows).astype(int).tolist(),
                layout.shape[::-1] if layout.reversed else layout.shape,
                strict=True,
            )
        )
        predicted = sum(np.asarray(layout.into_use(channel)[wider], dtype=np.float32) for channel in channels)
        predicted = np.minimum(predicted, np.float32(1)) if len(channels) > 1 else np.asarray(predicted)  # rounding
        happened = np.zeros(predicted.shape, dtype=bool)
        inner = tuple(
            slice(part.start - wide.start, part.stop - wide.start) for part, wide in zip(self.box, wider, strict=True)
        )
        happened[inner] = self.reference
        judged = ~self._ignored(wider)
        if not (self.pred.any() or self.reference.any()):
            judged[...] = False  # there is no "around it"
        return calibration_bins(predicted[judged], happened[judged]), predicted[inner]

    def _ignored(self, box: tuple[slice, ...]) -> NDArray[np.bool_]:
        """Which voxels of a box, in the arrays in use, are not judged; none outside the pair's box is ignored."""
        ignored = np.zeros([part.stop - part.start for part in box], dtype=bool)
        source, target = [], []
        for part, corner, size in zip(box, self.pair.corner, self.pair.pred.shape, strict=True):
            start, stop = max(part.start, corner), min(part.stop, corner + size)
            source.append(slice(start - corner, stop - corner))
            target.append(slice(start - part.start, stop - part.start))
        ignored[tuple(target)] = self.pair.ignored()[tuple(source)]
        return ignored
