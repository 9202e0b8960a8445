"""Learning rate over the updates of a training.

The factors are functions of one number, bound by `partial`: what a scheduler saves is then the update alone, and a
training that goes on with other steps an epoch (see `follow`) keeps its course.
"""

import math
from functools import partial

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def update_count(max_epochs: int, batches: int, accumulation_steps: int = 1) -> int:
    """Updates of the weights in a training; what is left of an epoch makes one more.

    >>> update_count(10, 5, 2)
    30
    """
    return max_epochs * math.ceil(batches / accumulation_steps)


def warmup_cosine(optimizer: Optimizer, *, steps: int, warmup_steps: int) -> LambdaLR:
    """Learning rate that rises linearly for `warmup_steps`, then falls to zero along a cosine until `steps`.

    Reference:
        Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv:1608.03983 (without restarts).
    """
    return LambdaLR(optimizer, partial(cosine_factor, steps=steps, warmup_steps=min(warmup_steps, steps // 2)))


def warmup_polynomial(optimizer: Optimizer, *, steps: int, warmup_steps: int = 0, exponent: float = 0.9) -> LambdaLR:
    """Learning rate that rises linearly for `warmup_steps`, then falls to zero as `(1 - done)^exponent`.

    Reference:
        Chen et al., "DeepLab", TPAMI 2018, arXiv:1606.00915; Isensee et al., "nnU-Net", Nature Methods 2021,
        arXiv:1904.08128 (0.9, with SGD of Nesterov momentum 0.99 from 0.01).
    """
    warmup_steps = min(warmup_steps, steps // 2)
    return LambdaLR(optimizer, partial(polynomial_factor, steps=steps, warmup_steps=warmup_steps, exponent=exponent))


def cosine_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Factor in `[0, 1]` at an update, from 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return float(0.5 * (1 + torch.cos(torch.tensor(_done(step, steps, warmup_steps) * torch.pi))))


def polynomial_factor(step: int, *, steps: int, warmup_steps: int, exponent: float) -> float:
    """Factor in `[0, 1]` at an update, from 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return float((1 - _done(step, steps, warmup_steps)) ** exponent)


def follow(scheduler: LambdaLR, step: int) -> None:
    """Bring a scheduler to an update that it has not counted: a resumed training may have other steps an epoch."""
    if scheduler.last_epoch != step:
        scheduler.last_epoch = step
        rates = [base * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates


def _done(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the fall that lies behind."""
    return min((step - warmup_steps) / max(1, steps - warmup_steps), 1.0)
