"""One case: scans in, labels on the scan's own grid out."""

import medseg.quick_torch  # noqa: F401  # isort: skip (before torch)

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg.back_to_grid import LabelMaker, Labels, Tile, label_maker, tiles
from medseg.bundle import Bundle
from medseg.cleanup import CleanupRule, changes
from medseg.confidence import Confidence
from medseg.crf import ScanRule, clean_up
from medseg.errors import DataError
from medseg.inference.agreement import Agreement, lowest
from medseg.inference.mirroring import FoldMean, mirrored_logits
from medseg.inference.sliding_window import Precision, SliceBySlice, SlidingWindow
from medseg.inference.tuning import (
    Runner,
    Tuning,
    blend_device,
    limit_gpu_memory,
    probed_batch_size,
    release,
    slab_mb,
)
from medseg.memory import keep_freed_memory
from medseg.preprocessing import Grid, ImageToGrid, ScanToGrid
from medseg.reading import Scan

Inferer = Callable[[Tensor, nn.Module], Tensor]
MOST_STRIPS = 8
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


@dataclass(frozen=True)
class Answer:
    """What the network says of a case.

    Attributes:
        label: `(X, Y, Z)` on the scan's own grid, before clean-up.
        confidence: probabilities where the label is not background.
        agreement: Dice of each region between the folds, or the mirrored windows; the lower one where there are both.
    """

    label: Labels
    confidence: Confidence | None = None
    agreement: Mapping[str, float] = field(default_factory=dict)


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
        inferer: called as `inferer(image, network)`; a `SlidingWindow` or `SliceBySlice` hands on slabs of logits, so
            that those of the whole image are never in memory.
        cleanup: rules for the finished label map, in order.
        to_label: makes labels of logits; `label_maker` has them all.
        device: where the network runs.
        folds: read the weights of each fold of an ensemble, whose logits are averaged.
        labels: value of each name, for what `finish` says.
        regions: name -> label values, of which `answer` tells confidence and agreement.
        tuning: choices about speed and memory; by default a probe makes them.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        scan_to_grid: ScanToGrid | ImageToGrid,
        inferer: Inferer,
        cleanup: Sequence[CleanupRule | ScanRule] = (),
        to_label: Callable[[Tensor, Grid], Labels] = LabelMaker(),  # noqa: B008 # frozen
        device: str = "cpu",
        folds: Sequence[Weights] = (),
        labels: Mapping[str, int] = MappingProxyType({}),
        regions: Mapping[str, Sequence[int]] = MappingProxyType({}),
        tuning: Tuning | None = None,
    ) -> None:
        self.scan_to_grid, self.inferer, self.cleanup, self.device = scan_to_grid, inferer, tuple(cleanup), device
        self.to_label, self.folds, self.labels, self.regions = to_label, tuple(folds), labels, regions
        self.tuning = tuning or Tuning()
        if self.tuning.gpu_memory_gb is not None and device.startswith("cuda"):
            limit_gpu_memory(self.tuning.gpu_memory_gb, device)
        self.network = (fold_mean(network, folds) if folds else network).to(device).eval()
        self.runner = Runner(self.network, layout=self.tuning.layout, compile=self.tuning.compile)
        self._choosing = threading.Lock()  # cases may be answered side by side
        self._batch_size = self.tuning.batch_size
        self._blend_on_cpu = False
        self._strips = 1

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        device: str = "cpu",
        precision: Precision | None = None,
        mirroring: bool | Sequence[int] = False,
        tuning: Tuning | None = None,
    ) -> "Predictor":
        """The predictor that a bundle describes, with its weights.

        Args:
            bundle: the model.
            device: where the network runs.
            precision: of the network, in place of the bundle's.
            mirroring: average the logits over mirrored windows, along all axes or those named; False leaves it to the
                recipe, where it is off by default.
            tuning: choices about speed and memory; by default a probe makes them.

        Raises:
            ConfigError: if a part cannot be built, or the weights, of an ensemble those of any fold, do not fit.
        """
        keep_freed_memory()
        parts: dict[str, Any] = {name: bundle.build(name) for name in ("scan_to_grid", "inferer", "cleanup")}
        inferer = parts["inferer"]
        if isinstance(inferer, SlidingWindow | SliceBySlice):
            axes = range(len(inferer.window.patch_size)) if mirroring is True else mirroring or None
            parts["inferer"] = inferer.changed(precision=precision or bundle.precision, mirror_axes=axes)  # type: ignore[arg-type]
        networks = [bundle.network(fold) for fold in bundle.folds or (None,)]
        return cls(
            FoldMean(networks) if bundle.folds else networks[0],
            **parts,
            to_label=label_maker(bundle.activation, bundle.regions, temperature=bundle.temperature),
            device=device,
            labels=bundle.labels,
            regions=bundle.regions,
            tuning=tuning,
        )

    def __call__(self, scans: Sequence[Scan]) -> Labels:
        """Channels of one case -> labels `(X, Y, Z)` on the first channel's own grid."""
        return self.finish(self.segment(self.prepare(scans)), scans)[0]

    def prepare(self, scans: Sequence[Scan]) -> Prepared:
        """Channels of one case -> what the network sees; on the CPU, from any thread."""
        with torch.inference_mode():
            image, grid = self.scan_to_grid(scans)
        return Prepared(image, grid, (grid.note,) if grid.note else ())

    def segment(self, prepared: Prepared, *, probabilities: Path | None = None) -> Labels:
        """The network's labels `(X, Y, Z)` on the scan's own grid; see `answer`."""
        return self._answer(prepared, probabilities, None, None).label

    def answer(self, prepared: Prepared, *, probabilities: Path | None = None) -> Answer:
        """The network's labels, and how sure of them it is; the one stage that works on the device.

        Args:
            prepared: of `prepare`.
            probabilities: a `.nii` file to write, `(X, Y, Z, K)`; a channel a class, or a region with a sigmoid.

        Raises:
            DataError: if the network answers with something else than finite numbers.
            torch.OutOfMemoryError: if the device's memory does not suffice; see `less_memory`.
            MemoryError: if the machine's does not.
        """
        if not self.regions or not isinstance(self.to_label, LabelMaker):
            return self._answer(prepared, probabilities, None, None)
        maker = self.to_label
        confidence = Confidence(self.regions, prepared.grid, values=maker.values, temperature=maker.temperature)
        weights = self.inferer.window.weights if isinstance(self.inferer, SlidingWindow | SliceBySlice) else None
        between = None if weights is None else partial(Agreement, self.regions, maker.of_windows, weights)
        return self._answer(prepared, probabilities, confidence, between)

    @torch.inference_mode()
    def _answer(
        self,
        prepared: Prepared,
        probabilities: Path | None,
        confidence: Confidence | None,
        between: Callable[[], Agreement] | None,
    ) -> Answer:
        image, grid = prepared.image[None], prepared.grid
        if not isinstance(self.inferer, SlidingWindow | SliceBySlice) or not isinstance(self.to_label, LabelMaker):
            logits = self.inferer(image.to(self.device), self.network)
            [(_, whole)] = finite([(slice(0, image.shape[2]), logits)])
            return Answer(self.to_label(whole, grid))
        with self._choosing:
            if self._batch_size is None:
                self._batch_size = self._probed_batch_size(self.inferer.window, image)
        inferer = self.inferer.changed(batch_size=self._batch_size)
        needed_mb = 0.0
        if isinstance(inferer, SlidingWindow):
            needed_mb = slab_mb(grid.shape, inferer.patch_size, len(self.labels), inferer.slab_axis(grid.shape))
        image = image.to("cpu" if self._blend_on_cpu else blend_device(self.tuning, self.device, needed_mb))
        inferer, network, compared = self._compared(inferer, between)
        found = self._tiles(image, grid, inferer, network)
        label = self.to_label.from_tiles(found, grid, probabilities=probabilities, watch=confidence)
        return Answer(label, confidence, lowest([each.dice() for each in compared]))

    def _compared(
        self, inferer: SlidingWindow | SliceBySlice, between: Callable[[], Agreement] | None
    ) -> tuple[SlidingWindow | SliceBySlice, Callable[[Tensor], Tensor], list[Agreement]]:
        """Inferer and network that compare folds and mirrored windows, and what compares them; one for all folds."""
        compared: list[Agreement] = []
        network: Callable[[Tensor], Tensor] = self.runner
        if between is None:
            return inferer, network, compared
        folds = self.network
        if isinstance(folds, FoldMean) and len(folds.networks) > 1 and not self.tuning.compile:
            compared.append(between())
            network = partial(self._fold_logits, folds=folds, agreement=compared[-1])
        if axes := inferer.window.mirror_axes:
            compared.append(between())
            inferer = inferer.changed(mirror_axes=())
            network = partial(mirrored_logits, network=network, axes=axes, agreement=compared[-1])
        return inferer, network, compared

    def _fold_logits(self, windows: Tensor, *, folds: FoldMean, agreement: Agreement) -> Tensor:
        """Logits of windows, whose folds are compared; those that only time a layout are not."""
        self.runner.settled(windows)
        with folds.compared(agreement):
            return self.runner(windows)

    def finish(self, label: Labels, scans: Sequence[Scan]) -> tuple[Labels, tuple[str, ...]]:
        """The label after the clean-up rules, and what they did, such as "tumor: 2 pieces, 0.4 mL removed".

        Args:
            label: as of `segment`; stays as it is.
            scans: the case's channels, for rules that look at the scan.
        """
        cleaned = clean_up(label, scans[0].affine, self.cleanup, scans[0].voxels)
        if scans[0].unit == "mm":
            return cleaned, changes(label, cleaned, scans[0].affine, self.labels)
        changed = np.count_nonzero(cleaned != label)
        return cleaned, (f"clean-up changed {changed} pixels",) if changed else ()

    def less_memory(self) -> str | None:
        """From now on take less memory by one step: smaller batches, blending on the CPU, slabs in strips.

        Returns:
            What it is, in a short phrase; None if there is no step left.
        """
        release(self.device)
        with self._choosing:
            return self._less_memory()

    def _less_memory(self) -> str | None:
        if self._batch_size is None and isinstance(self.inferer, SlidingWindow | SliceBySlice):
            self._batch_size = self.inferer.window.batch_size
        if self._batch_size is not None and self._batch_size > 1:
            self._batch_size //= 2
            return f"windows in batches of {self._batch_size}"
        if not self._blend_on_cpu and not self.device.startswith("cpu"):
            self._blend_on_cpu = True
            return "windows blended on the CPU"
        if isinstance(self.inferer, SlidingWindow) and self._strips < MOST_STRIPS:
            self._strips *= 2
            return f"slabs in {self._strips} strips"
        return None

    def _tiles(
        self, image: Tensor, grid: Grid, inferer: SlidingWindow | SliceBySlice, network: Callable[[Tensor], Tensor]
    ) -> Iterator[Tile]:
        """Tiles of finished logits, strip by strip, slab by slab."""
        axis = inferer.slab_axis(grid.shape)
        across = None if self._strips == 1 or len(grid.shape) < 3 else 2 - axis
        for within in [None] if across is None else strips(grid.shape[across], self._strips):
            slabs = inferer.slabs(image, network, axis=axis, across=across, within=within, device=self.device)
            yield from tiles(finite(slabs), grid, axis=axis, across=across, within=within)

    def _probed_batch_size(self, window: SlidingWindow, image: Tensor) -> int:
        if self.tuning.compile:  # every size would be compiled
            return window.batch_size
        channels = image.shape[1] * (2 * getattr(self.inferer, "neighbors", 0) + 1)
        zeros = image.new_zeros((1, channels, *window.patch_size)).to(self.device)
        return probed_batch_size(partial(window.window_logits, network=self.network), zeros, start=window.batch_size)


def fold_mean(network: nn.Module, folds: Sequence[Weights]) -> FoldMean:
    """One network a fold, of copies of `network`."""
    networks = [deepcopy(network) for _ in folds]
    for own, read in zip(networks, folds, strict=True):
        own.load_state_dict(read())
    return FoldMean(networks)


def strips(size: int, count: int) -> list[slice]:
    """`size` voxels in at most `count` strips; each but the first begins with the last voxel of the one before."""
    step = max(1, -(-(size - 1) // count))
    return [slice(start, min(start + step, size - 1) + 1) for start in range(0, max(size - 1, 1), step)]


def finite(slabs: Iterable[tuple[slice, Tensor]]) -> Iterator[tuple[slice, Tensor]]:
    """Slabs of logits `(1, K, *slab)` as `(K, *slab)`, each after a look whether they are numbers.

    Raises:
        DataError: if they are not; NaN would otherwise become background.
    """
    for side, slab in slabs:
        if not slab.sum().isfinite():
            raise DataError(
                "the network's answer is not finite; run it with --precision float32, or look for NaN in its weights"
            )
        yield side, slab[0]
