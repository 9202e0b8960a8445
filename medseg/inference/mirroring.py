"""Means over several answers to one window: of the folds of an ensemble, and of mirrored windows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from medseg.inference.agreement import Agreement

_compares: ContextVar[Agreement | None] = ContextVar("compares", default=None)  # each thread has its own


def flips(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every subset of `axes`, the empty one first: the mirrorings of a window."""
    for count in range(len(axes) + 1):
        yield from combinations(sorted(axes), count)


def mirrored_logits(
    windows: Tensor, network: Callable[..., Tensor], axes: Sequence[int], *, agreement: Agreement | None = None
) -> Tensor:
    """Mean of the network's logits over all mirrorings of its windows, each mirrored back.

    Args:
        windows: `(N, C, *spatial)`.
        network: windows -> logits `(N, K, *spatial)`.
        axes: spatial axes to mirror, 0 the first; without any the network's answer as it is.
        agreement: is told the answer to each mirroring.

    Reference:
        Isensee et al., "nnU-Net", Nature Methods 2021 (test-time mirroring; its code averages logits).
    """
    total = network(windows)
    if not axes or not isinstance(total, Tensor):  # a list is of a network in training; the sliding window says so
        return total
    total = total.float()
    if agreement is not None:
        agreement.answer(total)
    for mirrored in [[2 + axis for axis in some] for some in flips(axes) if some]:
        logits = network(windows.flip(mirrored)).flip(mirrored)
        if agreement is not None:
            agreement.answer(logits)
        total = total + logits
    if agreement is not None:
        agreement.compare()
    return total / 2 ** len(axes)


class FoldMean(nn.Module):
    """Mean of the logits of several networks, float32.

    Logits, not probabilities: an ensemble of one fold is then that fold, and the ways from logits to labels hold.

    Args:
        networks: one a fold.

    Reference:
        Isensee et al., "nnU-Net", Nature Methods 2021 (version 2 of its code averages logits).
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    @contextmanager
    def compared(self, agreement: Agreement) -> Iterator[None]:
        """Tell `agreement` the answer of each fold, of the forward passes of this thread alone."""
        before = _compares.set(agreement)
        try:
            yield
        finally:
            _compares.reset(before)

    def forward(self, windows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Windows `(N, C, *spatial)` -> logits `(N, K, *spatial)`."""
        first, *others = self.networks
        total = first(windows, *args, **kwargs)
        if not isinstance(total, Tensor):
            return total  # of a network in training; the sliding window says so
        total = total.float()
        agreement = None if torch.compiler.is_compiling() else _compares.get()  # it cannot be traced
        if agreement is not None:
            agreement.answer(total)
        for network in others:
            logits = network(windows, *args, **kwargs)
            if agreement is not None:
                agreement.answer(logits)
            total = total + logits
        if agreement is not None:
            agreement.compare()
        return total / len(self.networks)
