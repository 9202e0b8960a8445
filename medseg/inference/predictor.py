"""One case: scans in, labels on the scan's own grid out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.bundle import Bundle
from medseg.crf import ScanRule, clean_up
from medseg.postprocessing import CleanupRule, label_maker, logits_to_label
from medseg.preprocessing import Grid, ImageToGrid, ScanToGrid
from medseg.reading import Scan

Inferer = Callable[[Tensor, nn.Module], Tensor]


class Predictor:
    """Segments one case after the other with one network.

    Args:
        network: in evaluation mode; image `(1, C, *spatial)` -> logits of the same grid.
        scan_to_grid: brings the channels onto the working grid.
        inferer: called as `inferer(image, network)`.
        cleanup: rules for the finished label map, in order.
        to_label: makes labels of logits; `label_maker` has them all.
        device: where the network runs.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        scan_to_grid: ScanToGrid | ImageToGrid,
        inferer: Inferer,
        cleanup: Sequence[CleanupRule | ScanRule] = (),
        to_label: Callable[[Tensor, Grid], NDArray[np.uint8]] = logits_to_label,
        device: str = "cpu",
    ) -> None:
        self.network = network.to(device).eval()
        self.scan_to_grid, self.inferer, self.cleanup, self.device = scan_to_grid, inferer, tuple(cleanup), device
        self.to_label = to_label

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "cpu") -> "Predictor":
        """The predictor that a bundle describes, with its weights."""
        parts: dict[str, Any] = {name: bundle.build(name) for name in ("scan_to_grid", "inferer", "cleanup")}
        to_label = label_maker(bundle.activation, bundle.regions)
        return cls(bundle.network(), **parts, to_label=to_label, device=device)

    @torch.inference_mode()
    def __call__(self, scans: Sequence[Scan]) -> NDArray[np.uint8]:
        """Channels of one case -> labels `(X, Y, Z)` on the first channel's own grid."""
        image, grid = self.scan_to_grid(scans)
        logits = self.inferer(image[None].to(self.device), self.network)
        label = self.to_label(logits[0], grid)
        return clean_up(label, grid.scan_affine, self.cleanup, scans[0].voxels)
