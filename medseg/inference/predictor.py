"""One case: scans in, labels on the scan's own grid out."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
Weights = Callable[[], Mapping[str, Tensor]]  # reads the weights of one fold of an ensemble


def ensemble_logits(image: Tensor, network: nn.Module, *, inferer: Inferer, folds: Sequence[Weights]) -> Tensor:
    """Mean over the folds of the logits that `inferer` gives, as nnU-Net averages them.

    Logits, not probabilities: an ensemble of one fold is then that fold, and the ways from logits to labels hold. The
    weights of one fold at a time are in memory, beside the sum.

    Args:
        image: `(1, C, *spatial)`.
        network: gets the weights of one fold after the other, and keeps the last ones.
        inferer: called as `inferer(image, network)`.
        folds: read the weights of each fold; none for the network as it is.

    Reference:
        Isensee et al., "nnU-Net", Nature Methods 2021 (version 2 of its code averages logits).
    """
    if not folds:
        return inferer(image, network)
    total = torch.zeros(())
    for number, read in enumerate(folds):
        network.load_state_dict(read())
        logits = inferer(image, network)
        total = total.add_(logits) if number else logits
    return total.div_(len(folds))


class Predictor:
    """Segments one case after the other with one network.

    Args:
        network: in evaluation mode; image `(1, C, *spatial)` -> logits of the same grid.
        scan_to_grid: brings the channels onto the working grid.
        inferer: called as `inferer(image, network)`.
        cleanup: rules for the finished label map, in order.
        to_label: makes labels of logits; `label_maker` has them all.
        device: where the network runs.
        folds: read the weights of each fold of an ensemble, whose logits are averaged.
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
        folds: Sequence[Weights] = (),
    ) -> None:
        self.network = network.to(device).eval()
        self.scan_to_grid, self.inferer, self.cleanup, self.device = scan_to_grid, inferer, tuple(cleanup), device
        self.to_label, self.folds = to_label, tuple(folds)

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, device: str = "cpu") -> "Predictor":
        """The predictor that a bundle describes, with its weights.

        Raises:
            ConfigError: if a part cannot be built, or the weights, of an ensemble those of any fold, do not fit.
        """
        parts: dict[str, Any] = {name: bundle.build(name) for name in ("scan_to_grid", "inferer", "cleanup")}
        to_label = label_maker(bundle.activation, bundle.regions)
        for fold in bundle.folds or (None,):  # each is checked now, not at the first case
            network = bundle.network(fold)
        folds = [partial(bundle.state_dict, fold) for fold in bundle.folds]
        return cls(network, **parts, to_label=to_label, device=device, folds=folds)

    @torch.inference_mode()
    def __call__(self, scans: Sequence[Scan]) -> NDArray[np.uint8]:
        """Channels of one case -> labels `(X, Y, Z)` on the first channel's own grid."""
        image, grid = self.scan_to_grid(scans)
        logits = ensemble_logits(image[None].to(self.device), self.network, inferer=self.inferer, folds=self.folds)
        label = self.to_label(logits[0], grid)
        return clean_up(label, grid.scan_affine, self.cleanup, scans[0].voxels)
