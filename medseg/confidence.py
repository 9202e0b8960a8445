"""How sure a network is of its labels: probabilities of regions, at the voxels that are not background alone.

They are taken of the interpolated logits while these go back to the scan's grid, tile by tile, in steps of half a
percent; no stack of probabilities is made, and where no other class comes near, nothing is interpolated.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.back_to_grid import Labels, Tile
from medseg.grid import Grid, turned
from medseg.regions import Lesions

LEVELS = 200  # of a probability in a byte: half percents
NEGLIGIBLE = 1e-3  # of the probability: classes that have less together are left out
LUMPED = 0.02  # classes that have less together are interpolated as one

Sets = Mapping[str, frozenset[int]]  # name -> label values
Shares = Mapping[str, Tensor]  # name -> probabilities


@dataclass(frozen=True)
class _Part:
    """Levels `(L, N)` of a tile's voxels other than background, in order; `(L, 1)` where all have the same."""

    where: tuple[slice, slice, slice]
    values: NDArray[np.uint8]


class Confidence:
    """Collects the probabilities of each voxel's label and regions, told by a `LabelMaker` as its `watch`.

    Of a softmax over classes a region's probability is the sum over its labels.

    Args:
        regions: name -> label values; larger regions before those inside them.
        grid: where the logits lie, and the scan's own grid.
        values: of regions with a sigmoid each, the label value that each paints; None for a softmax over classes.
        temperature: logits are divided by it.

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (the winner's probability as confidence, and
        the temperature).
    """

    def __init__(
        self,
        regions: Mapping[str, Sequence[int]],
        grid: Grid,
        *,
        values: Sequence[int] | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.regions: Sets = {name: frozenset(labels) for name, labels in regions.items()}
        self.grid, self.values, self.temperature = grid, values, temperature
        self.layers = layers(self.regions)  # the first, of the labels themselves, is not among them
        self._parts: list[_Part] = []

    def __call__(self, tile: Tile, label: Tensor | int) -> None:
        """Take the probabilities of a tile whose scan voxels have become `label`."""
        if isinstance(label, int):
            if label:
                levels = self._levels(tile, label, [label]).flatten(1)
                same = bool((levels == levels[:, :1]).all())
                self._parts.append(_Part(tile.where, (levels[:, :1].clone() if same else levels).numpy()))
            return
        box = _box(label != 0)
        if box is not None:
            inner = label[box]
            present = inner.flatten().bincount().nonzero()[:, 0].tolist()
            levels = self._levels(tile.within(box), inner, present)
            self._parts.append(_Part(tile.where, levels[:, inner != 0].numpy()))

    def means(self, raw: Labels, label: Labels | None = None) -> dict[str, float]:
        """Mean probability of each region over the voxels that the network gave it, and that `label` leaves it.

        Args:
            raw: the network's labels `(X, Y, Z)`.
            label: those after clean-up; without them the network's own.

        Returns:
            0 to 1 a region; one without such a voxel is left out.
        """
        size = 1 + max(int(each.max(initial=0)) for each in (raw, raw if label is None else label))
        sums, counts = np.zeros((1 + len(self.layers), size, size)), np.zeros((size, size))
        after = turned(raw if label is None else label, self.grid)
        for part, first in self._with_labels(raw):
            inside = first != 0
            pairs = first[inside].astype(np.intp) * size + after[part.where][inside]
            for total, values in zip((counts, *sums), (np.ones(1), *part.values), strict=True):
                weights = np.broadcast_to(values, pairs.shape)
                total += np.bincount(pairs, weights, minlength=size * size).reshape(size, size)
        means = {}
        for name, labels in self.regions.items():
            own = sorted(value for value in labels if 0 < value < size)
            count = counts[np.ix_(own, own)].sum()
            if count:
                means[name] = float(sums[self._layer_of(name)][np.ix_(own, own)].sum() / count / LEVELS)
        return means

    def levels(self, raw: Labels, region: str | None = None) -> NDArray[np.uint8]:
        """Probability of each voxel's own label, or of a region, in steps of `1 / LEVELS`, `(X, Y, Z)`.

        Args:
            raw: the network's labels `(X, Y, Z)`.
            region: 0 outside of it; without one 0 where the network saw background.
        """
        found = np.zeros(raw.shape, np.uint8, order="F")
        seen = turned(found, self.grid)
        layer, labels = (0, None) if region is None else (self._layer_of(region), sorted(self.regions[region]))
        for part, first in self._with_labels(raw):
            values = np.zeros(first.shape, np.uint8)
            values[first != 0] = part.values[layer]
            if labels is not None:
                values[~np.isin(first, labels)] = 0
            seen[part.where] = values
        return found

    def of_lesions(self, raw: Labels, region: str, found: Lesions) -> list[float | None]:
        """Mean probability of the lesions' region in each lesion; None where clean-up has made all of it.

        Args:
            raw: the network's labels.
            region: that the lesions are of.
            found: lesions after clean-up; voxels that it has added do not count.
        """
        levels = self.levels(raw, region)[found.box]
        inside = (found.numbers > 0) & (levels > 0)
        numbers = found.numbers[inside]
        size = len(found.sizes) + 1
        sums = np.bincount(numbers, levels[inside], minlength=size)[1:].tolist()
        counts = np.bincount(numbers, minlength=size)[1:].tolist()
        return [total / count / LEVELS if count else None for total, count in zip(sums, counts, strict=True)]

    def percent(self, raw: Labels) -> NDArray[np.uint8]:
        """Probability of each voxel's own label in percent; 0 where the network saw background."""
        levels = self.levels(raw)
        levels += 1
        levels //= 2
        return levels

    def _with_labels(self, raw: Labels) -> Iterator[tuple[_Part, Labels]]:
        seen = turned(raw, self.grid)
        return ((part, seen[part.where]) for part in self._parts)

    def _layer_of(self, region: str) -> int:
        return next((number for number, layer in enumerate(self.layers, start=1) if region in layer), 0)

    def _levels(self, tile: Tile, label: Tensor | int, present: Sequence[int]) -> Tensor:
        """Levels of the label, and in each further layer of a region around it, `(L, *voxels)` uint8."""
        around = {name for layer in self.layers for name, own in layer.items() if not own.isdisjoint(present)}
        if self.values is None:
            first, of_regions = self._by_softmax(tile, present, around)
        else:
            first, of_regions = self._by_sigmoids(tile, label, present, around, self.values)
        result = torch.empty(1 + len(self.layers), *first.shape, dtype=torch.uint8)
        for found, layer in zip(result, [{}, *self.layers], strict=True):
            found.copy_(_as_levels(first))
            for name in around & layer.keys():
                own = _as_levels(of_regions[name])
                if layer[name].issuperset(value for value in present if value):
                    found.copy_(own)
                elif isinstance(label, Tensor):
                    torch.where(_any_of(label, layer[name]), own, found, out=found)
        return result

    def _by_softmax(self, tile: Tile, present: Sequence[int], around: Iterable[str]) -> tuple[Tensor, Shares]:
        """Probability of the winner, one of the classes present, at each voxel, and of regions."""
        total = torch.zeros(())
        sums = dict.fromkeys(around, total)
        for index, share in self._shares(tile, present):
            total = total + share
            for name in around:
                if index in self.regions[name]:
                    sums[name] = sums[name] + share
        winner = total.reciprocal()
        return winner, {name: part * winner for name, part in sums.items()}

    def _shares(self, tile: Tile, present: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Classes, and exp((logit - the winner's) / temperature) at each voxel; -1 for several classes as one."""
        one = len(present) == 1
        best = tile.logits[present[0]] if one else tile.channel(present[0])
        for index in present[1:]:
            best = torch.maximum(best, tile.channel(index))
        low = float(best.min())
        if one:
            yield present[0], torch.ones([len(rows) for rows in tile.weights])
        else:
            for index in present:
                yield index, (tile.channel(index) - best).div_(self.temperature).exp_()

        def share(corners: Tensor) -> Tensor:
            found = tile.interpolated(corners - best) if one else tile.interpolated(corners) - best
            return found.div_(self.temperature).exp_()

        logits = tile.logits
        highest = (logits.flatten(1).amax(dim=1) - low).div_(self.temperature).exp_()
        highest[list(present)] = 0
        order = highest.argsort(descending=True)
        left = highest[order].flip(0).cumsum(0).flip(0)  # of this class and all with less
        exact, counted = int((left > LUMPED).sum()), int((left > NEGLIGIBLE).sum())
        for index in order[:exact].tolist():
            yield index, share(logits[index])
        if counted > exact:
            yield -1, share(_log_sum(logits, order[exact:counted].tolist(), self.temperature))

    def _by_sigmoids(
        self, tile: Tile, label: Tensor | int, present: Sequence[int], around: Iterable[str], values: Sequence[int]
    ) -> tuple[Tensor, Shares]:
        """Probability of the region that gave each voxel its label, and of regions."""
        found = torch.ones([len(rows) for rows in tile.weights])
        of_regions = {}
        for index, (value, name) in enumerate(zip(values, self.regions, strict=True)):
            if value not in present and name not in around:
                continue
            of_regions[name] = tile.channel(index).div(self.temperature).sigmoid_()
            if value in present:
                found = torch.where(torch.as_tensor(label == value), of_regions[name], found)
        return found, of_regions


def layers(regions: Sets) -> list[Sets]:
    """Regions of several labels in groups without overlap, each region in the first group it fits into."""
    found: list[dict[str, frozenset[int]]] = []
    for name, labels in regions.items():
        if len(labels) > 1:
            free = (layer for layer in found if all(labels.isdisjoint(own) for own in layer.values()))
            layer = next(free, None)
            if layer is None:
                found.append({name: labels})
            else:
                layer[name] = labels
    return list(found)


def _as_levels(probability: Tensor) -> Tensor:
    return (probability * LEVELS).add_(0.5).clamp_(max=LEVELS).byte()


def _box(mask: Tensor) -> tuple[slice, slice, slice] | None:
    """The smallest box around a mask; None if it is empty."""
    third, second = mask.any(dim=0), mask.any(dim=2)
    sides = []
    for line in (second.any(dim=1), second.any(dim=0), third.any(dim=0)):
        places = line.nonzero()[:, 0]
        if not len(places):
            return None
        sides.append(slice(int(places[0]), int(places[-1]) + 1))
    return sides[0], sides[1], sides[2]


def _any_of(label: Tensor, values: Iterable[int]) -> Tensor:
    inside = torch.zeros(label.shape, dtype=torch.bool)
    for value in values:
        inside |= label == value
    return inside


def _log_sum(logits: Tensor, indices: Sequence[int], temperature: float) -> Tensor:
    """As `logsumexp` over some channels, times the temperature: of logits divided by it."""
    highest = logits[indices[0]]
    for index in indices[1:]:
        highest = torch.maximum(highest, logits[index])
    total = torch.zeros_like(highest)
    for index in indices:
        total += (logits[index] - highest).div_(temperature).exp_()
    return total.log_().mul_(temperature).add_(highest)
