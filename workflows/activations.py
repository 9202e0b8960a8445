"""Activation checkpointing: memory for time, by computing a stage again when its gradient is wanted."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from medseg.errors import ConfigError


def checkpoint_activations(network: nn.Module) -> list[str]:
    """Let the stages of a network keep their inputs alone, and compute what is between again on the way back.

    Stages are the blocks in its `nn.ModuleList`s, and `nn.Sequential`s outside of those; what is not called as a whole,
    such as VGG's `features`, keeps all. Gradients, random numbers, running statistics and names of weights stay the
    same; a step takes about a third longer.

    Returns:
        Names of the stages.

    Raises:
        ConfigError: if there are none.

    Reference:
        Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174.
    """
    found = stages(network)
    if not found:
        raise ConfigError(
            f"checkpoint_activations: {type(network).__name__} has no stages in lists or sequences; set it to false"
        )
    for stage in found.values():
        again = partial(_contexts, [module for module in stage.modules() if hasattr(module, "running_mean")])
        # on the instance: names of weights stay as they are
        stage.forward = partial(checkpoint, stage.forward, use_reentrant=False, context_fn=again)
    return list(found)


def stages(network: nn.Module) -> dict[str, nn.Module]:
    """The stages by name."""
    return dict(_stages(network, ""))


def _stages(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Outermost blocks that hold several layers."""
    for name, child in module.named_children():
        inside = isinstance(module, nn.ModuleList) and any(True for _ in child.children())
        if inside or isinstance(child, nn.Sequential):
            if any(True for _ in child.parameters()):
                yield f"{prefix}{name}", child
        else:
            yield from _stages(child, f"{prefix}{name}.")


def _contexts(norms: list[nn.Module]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first and around the repeated computation of a stage."""
    return nullcontext(), _statistics_kept(norms)


@contextmanager
def _statistics_kept(norms: list[nn.Module]) -> Iterator[None]:
    """Batch norms that do not count the same batch twice."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
