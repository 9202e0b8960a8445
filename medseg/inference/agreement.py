"""How alike the members of an ensemble answer: the folds of a model, or the same windows mirrored."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

AT_ONCE = 2**17  # voxels that are compared in one go


class Agreement:
    """Dice of each region between every two members' own answers to the same windows, before these are averaged.

    Labels of one batch of windows are in memory at a time. A voxel counts as it does where windows are blended, so what
    only the corner of a window saw hardly matters; on the working grid, before clean-up.

    Args:
        regions: name -> label values.
        labels_of: logits `(N, C, *patch_size)` -> labels `(N, *patch_size)`.
        weights: of a window's voxels, `(*patch_size)`.

    Reference:
        Roy et al., "Bayesian QuickNAT", NeuroImage 2019 (Dice between all pairs of samples, averaged); Zenk et al.,
        "Comparative benchmarking of failure detection methods", Medical Image Analysis 2025 (of all scores compared,
        pairwise Dice between the members of an ensemble found failed cases most reliably).
    """

    def __init__(
        self, regions: Mapping[str, Sequence[int]], labels_of: Callable[[Tensor], Tensor], weights: Tensor
    ) -> None:
        self.regions, self.labels_of, self.weights = regions, labels_of, weights
        self._answers: list[Tensor] = []
        self._common: dict[str, Tensor] = {}  # of each region (members, members), weighted voxels that both have

    def answer(self, logits: Tensor) -> None:
        """Take a member's logits of a batch of windows."""
        self._answers.append(self.labels_of(logits))

    def compare(self) -> None:
        """Compare what all members answered since the last time."""
        labels = torch.stack([answer.flatten() for answer in self._answers])
        self._answers.clear()
        somewhere = (labels > 0).any(dim=0).nonzero()[:, 0]
        weights = self.weights.to(labels.device).flatten()
        with torch.autocast(labels.device.type, enabled=False):  # the network's would sum in 16 bits
            for voxels in torch.split(somewhere, AT_ONCE):
                seen, shares = labels[:, voxels], weights[voxels % len(weights)]
                present = set(torch.unique(seen).tolist())
                for name, values in self.regions.items():
                    if present.intersection(values):
                        inside = torch.stack([seen == value for value in values if value in present]).any(dim=0).float()
                        common = ((inside * shares) @ inside.T).double().cpu()
                        self._common[name] = self._common.get(name, 0) + common

    def dice(self) -> dict[str, float]:
        """Mean Dice over all pairs of members; a region that no member has is left out."""
        found = {}
        for name, common in self._common.items():
            sizes = common.diagonal()
            pairs = [
                float(2 * common[one, other] / (sizes[one] + sizes[other]))
                for one, other in combinations(range(len(sizes)), 2)
                if sizes[one] + sizes[other] > 0
            ]
            if pairs:
                found[name] = sum(pairs) / len(pairs)
        return found


def lowest(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The lowest Dice of each region."""
    names = dict.fromkeys(name for each in several for name in each)
    return {name: min(each[name] for each in several if name in each) for name in names}
