"""Probabilities on the scan's own grid, written tile by tile; never whole in memory."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.grid import Grid, turned
from medseg.memory import reserve
from medseg.nifti_header import header_bytes

PROBABILITY_STEPS = 65535
PROBABILITIES = "probabilities, temperature "  # begins the header's description, before the number
MAPPED_BYTES = 2**26  # in memory before the file is mapped anew


class ProbabilityFile:
    """A NIfTI file of zeros `(X, Y, Z, C)` that is filled tile by tile.

    It is mapped anew after some tiles: what has been written then counts no longer as this process's memory. The
    mapping is no local variable anywhere: an error's traceback would keep it open, and Windows removes no mapped file.

    Raises:
        OSError: if the disk has no room for all of it.
    """

    def __init__(self, path: Path, channels: int, grid: Grid, temperature: float) -> None:
        self.path, self.grid, self.shape = path, grid, (*grid.scan_shape, channels)
        said = f"{PROBABILITIES}{temperature:g}"
        header = header_bytes(
            self.shape, np.dtype(np.uint16), grid.scan_affine, slope=1 / PROBABILITY_STEPS, description=said
        )
        self.offset, self.unseen = len(header), 0
        self.mapped: NDArray[np.uint16] | None = None
        path.write_bytes(header)
        reserve(path, len(header) + 2 * math.prod(self.shape))

    def write(self, where: tuple[slice, slice, slice], probabilities: NDArray[np.float32]) -> None:
        """Probabilities `(C, *tile)` at scan voxels, axes in working order."""
        if self.mapped is None:
            self.mapped = turned(self._map().transpose(3, 0, 1, 2), self.grid)
        self.mapped[(slice(None), *where)] = np.rint(probabilities * PROBABILITY_STEPS)
        self.unseen += probabilities.nbytes
        if self.unseen > MAPPED_BYTES:
            self.close()

    def close(self) -> None:
        """Let go of the file."""
        self.mapped, self.unseen = None, 0

    def fill_outside(self) -> None:
        """Background, the first channel, beyond what the grid's box decides about."""
        sides = zip(self.grid.turned_shape, self.grid.covered, strict=True)
        for axis, (size, covered) in enumerate(sides):
            for side in (slice(0, covered.start), slice(covered.stop, size)):
                if side.stop > side.start:
                    where = [slice(None)] * 3
                    where[axis] = side
                    self._fill(where)

    def _fill(self, where: Sequence[slice]) -> None:
        turned(self._map()[..., 0], self.grid)[tuple(where)] = PROBABILITY_STEPS

    def _map(self) -> NDArray[np.uint16]:
        return np.memmap(self.path, "<u2", "r+", self.offset, self.shape, order="F")
