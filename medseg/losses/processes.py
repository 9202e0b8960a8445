"""Sums over the batch of all processes, where a training runs in several.

A loss that divides sums over the batch (batch Dice, weighted means) is not the mean of the losses of its parts. With
these sums every process has the loss of the whole batch, and the mean of their gradients is its gradient.
"""

from typing import Any

import torch
from torch import Tensor, distributed


def over_batch(*sums: Tensor) -> tuple[Tensor, ...]:
    """Sums over this process's samples -> over those of all processes; one process has them already.

    Args:
        sums: of one shape; all become the type of the first.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return sums
    total: Tensor = _Sum.apply(torch.stack([part.to(sums[0].dtype) for part in sums]))  # type: ignore[no-untyped-call]
    return total.unbind()


class _Sum(torch.autograd.Function):
    """Sum over the processes; so is its gradient, since each process's loss depends on each part."""

    @staticmethod
    def forward(_context: Any, part: Tensor) -> Tensor:
        total = part.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total
