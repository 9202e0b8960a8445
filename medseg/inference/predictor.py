"""One case: scans in, labels on the scan's own grid out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.bundle import Bundle
from medseg.crf import ScanRule, clean_up
from medseg.geometry import voxel_volume_ml
from medseg.inference.sliding_window import Precision
from medseg.inference.tuning import Tuning
from medseg.postprocessing import CleanupRule, label_maker, logits_to_label
from medseg.preprocessing import Grid, ImageToGrid, ScanToGrid
from medseg.reading import Scan

Inferer = Callable[[Tensor, nn.Module], Tensor]
Weights = Callable[[], Mapping[str, Tensor]]  # reads the weights of one fold of an ensemble


@dataclass(frozen=True)
class Prepared:
    """A case as the network sees it.

    Attributes:
        image: `(C, R, A, S)` float32 on the CPU.
        grid: where it lies, and the scan's own grid.
        notes: for the report, such as the body's box.
    """

    image: Tensor
    grid: Grid
    notes: tuple[str, ...] = ()


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
        labels: value of each name, for what `finish` says.
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
        labels: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.network = network.to(device).eval()
        self.scan_to_grid, self.inferer, self.cleanup, self.device = scan_to_grid, inferer, tuple(cleanup), device
        self.to_label, self.folds, self.labels = to_label, tuple(folds), labels

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        device: str = "cpu",
        precision: Precision | None = None,
        mirroring: bool = False,
        tuning: Tuning | None = None,
    ) -> "Predictor":
        """The predictor that a bundle describes, with its weights.

        Args:
            bundle: the model.
            device: where the network runs.
            precision: of the network, in place of the bundle's.
            mirroring: average the logits over mirrored windows.
            tuning: choices about speed and memory; by default a probe makes them.

        Raises:
            ConfigError: if a part cannot be built, or the weights, of an ensemble those of any fold, do not fit.
        """
        parts: dict[str, Any] = {name: bundle.build(name) for name in ("scan_to_grid", "inferer", "cleanup")}
        to_label = label_maker(bundle.activation, bundle.regions)
        for fold in bundle.folds or (None,):  # each is checked now, not at the first case
            network = bundle.network(fold)
        folds = [partial(bundle.state_dict, fold) for fold in bundle.folds]
        return cls(network, **parts, to_label=to_label, device=device, folds=folds, labels=bundle.labels)

    def __call__(self, scans: Sequence[Scan]) -> NDArray[np.uint8]:
        """Channels of one case -> labels `(X, Y, Z)` on the first channel's own grid."""
        return self.finish(self.segment(self.prepare(scans)), scans)[0]

    def prepare(self, scans: Sequence[Scan]) -> Prepared:
        """Channels of one case -> what the network sees; on the CPU, from any thread."""
        with torch.inference_mode():
            image, grid = self.scan_to_grid(scans)
        note = getattr(grid, "note", "")
        return Prepared(image, grid, (note,) if note else ())

    @torch.inference_mode()
    def segment(self, prepared: Prepared) -> NDArray[np.uint8]:
        """The network's labels `(X, Y, Z)` on the scan's own grid; the one stage that works on the device.

        Raises:
            torch.OutOfMemoryError: if the device's memory does not suffice; see `less_memory`.
            MemoryError: if the machine's does not.
        """
        image = prepared.image[None].to(self.device)
        logits = ensemble_logits(image, self.network, inferer=self.inferer, folds=self.folds)
        return self.to_label(logits[0], prepared.grid)

    def finish(self, label: NDArray[np.uint8], scans: Sequence[Scan]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """The label after the clean-up rules, and what they changed, such as "tumor: 0.4 mL removed by RemoveSmall".

        Args:
            label: as of `segment`; stays as it is.
            scans: the case's channels, for rules that look at the scan.
        """
        affine, notes = scans[0].affine, []
        for rule in self.cleanup:
            before, label = label, clean_up(label, affine, [rule], scans[0].voxels)
            counts = getattr(rule, "counts", None)
            size, unit = (voxel_volume_ml(affine), "mL") if scans[0].unit == "mm" else (1, "pixels")
            notes.append(
                counts(before, label, affine) if counts else self._change(rule, before, label, size=size, unit=unit)
            )
        return label, tuple(note for note in notes if note)

    def less_memory(self) -> str | None:
        """Take one step to need less memory; says which, None if there is none left."""
        return None

    def _change(
        self, rule: object, before: NDArray[np.uint8], after: NDArray[np.uint8], *, size: float, unit: str
    ) -> str:
        """What a rule did to each label; `size` is a voxel's, in `unit`."""
        old, new = (np.bincount(label.ravel(order="K"), minlength=256) for label in (before, after))
        names = {value: name for name, value in self.labels.items()}
        parts = [
            f"{names.get(value, f'label {value}')}: {abs(voxels) * size:.3g} {unit} "
            f"{'added' if voxels > 0 else 'removed'}"
            for value, voxels in enumerate((new - old).tolist())
            if value and voxels
        ]
        return f"{', '.join(parts)} by {type(rule).__name__}" if parts else ""
