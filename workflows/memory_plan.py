"""`gpu_memory_gb`: patch, batch and accumulation that a GPU has room for.

The memory of a step is counted, not measured, so that a recipe can be planned on any machine: the recipe's own network
runs once on tensors without content, and all that autograd keeps for the way back is summed up. To it come weights,
gradients and the optimizer's two values a weight, the loss's maps in float32, two passing copies of the largest map,
and what CUDA takes for itself. Mixed precision is counted as on a CPU, where more stays in float32.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from medseg.data_half import build, literal
from medseg.errors import ConfigError
from workflows import activations, distributed

GB = 2**30
BYTES_A_WEIGHT = 4 + 4 + 2 * 4 + 2  # float32 weight, gradient, AdamW's two means; and its copy in bfloat16
LOSS_COPIES = 6  # maps of one float32 a class that the loss keeps
CUDA_GB = 0.8  # context, libraries and their workspaces
SMALLEST, STEP = 32, 16  # voxels an axis

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What fits.

    Attributes:
        patch_size: voxels an axis.
        batch_size: cases a batch.
        accumulation_steps: batches an update.
        memory_gb: estimate.
    """

    patch_size: list[int]
    batch_size: int
    accumulation_steps: int
    memory_gb: float


def fit_recipe(parser: ConfigParser) -> None:
    """Set `patch_size`, `batch_size` and `accumulation_steps` of a recipe to what `gpu_memory_gb` has room for.

    Raises:
        ConfigError: if it is no number above 0, or too little for the smallest patch.
    """
    budget = parser.get("gpu_memory_gb")
    if isinstance(budget, bool) or not isinstance(budget, int | float) or budget <= 0:
        raise ConfigError(f"gpu_memory_gb: is {budget!r}; give a number of GB, or null to leave the recipe as it is")
    recipe = parser.get()
    processes = distributed.processes()
    cases = distributed.own_batch(int(parser.get_parsed_content("batch_size")))

    def memory_gb(patch_size: Sequence[int], batch_size: int) -> float:
        return step_memory_gb(
            lambda: build(recipe, "network_def"),  # type: ignore[arg-type, return-value]
            (batch_size * int(recipe["patches_per_case"]), int(literal(recipe, "in_channels")), *patch_size),
            precision=recipe["precision"],
            checkpoint_activations=bool(recipe["checkpoint_activations"]),
        )

    plan = fitting(
        memory_gb,
        float(budget),
        patch_size=literal(recipe, "patch_size"),
        batch_size=cases,
        accumulation_steps=int(recipe["accumulation_steps"]),
    )
    logger.info(
        "gpu_memory_gb %g: patches of %s, batches of %d cases, %d batches an update; estimated %.1f GB",
        budget,
        plan.patch_size,
        plan.batch_size * processes,
        plan.accumulation_steps,
        plan.memory_gb,
    )
    parser["patch_size"] = plan.patch_size
    parser["batch_size"] = plan.batch_size * processes
    parser["accumulation_steps"] = plan.accumulation_steps
    parser.parse(reset=True)


def fitting(
    memory_gb: Callable[[Sequence[int], int], float],
    budget_gb: float,
    *,
    patch_size: Sequence[int],
    batch_size: int,
    accumulation_steps: int = 1,
) -> Plan:
    """The largest patch, up to `patch_size`, with which one case fits; then the largest batch that fits.

    The cases of an update stay as many as asked for: what does not fit at once is accumulated.

    Args:
        memory_gb: patch size and cases a batch -> memory of a step.
        budget_gb: what there is.
        patch_size: what the recipe asks for, voxels an axis.
        batch_size: likewise.
        accumulation_steps: likewise.

    Raises:
        ConfigError: if not even the smallest patch fits.
    """
    needed = 0.0
    for size in smaller_patches(patch_size):
        needed = memory_gb(size, 1)
        if needed <= budget_gb:
            cases = batch_size * accumulation_steps
            for batch in (count for count in range(batch_size, 0, -1) if cases % count == 0):
                needed = memory_gb(size, batch)
                if needed <= budget_gb:
                    return Plan(size, batch, cases // batch, needed)
    raise ConfigError(
        f"gpu_memory_gb: {budget_gb:g} is too little, the smallest patch {size} needs {needed:.1f}; "
        "use a narrower network_def, fewer patches_per_case or checkpoint_activations"
    )


def smaller_patches(patch_size: Sequence[int]) -> Iterator[list[int]]:
    """The patch, then ever smaller ones: the longest axis shrinks, down to 32 voxels each.

    >>> list(smaller_patches([64, 40]))
    [[64, 40], [48, 40], [32, 40], [32, 32]]
    """
    size = list(patch_size)
    yield list(size)
    while max(size) > SMALLEST:
        longest = size.index(max(size))
        size[longest] = max(SMALLEST, (size[longest] - 1) // STEP * STEP)
        yield list(size)


def step_memory_gb(
    make_network: Callable[[], nn.Module],
    shape: Sequence[int],
    *,
    precision: str = "bfloat16",
    checkpoint_activations: bool = False,
) -> float:
    """Estimated memory of one training step on a GPU.

    Args:
        make_network: called while tensors have no content.
        shape: of a batch of images `(B, C, *spatial)`.
        precision: `"bfloat16"` or `"float32"`.
        checkpoint_activations: as the recipe's.
    """
    with FakeTensorMode():
        network = make_network().train()
        weights = sum(weight.numel() for weight in network.parameters()) * BYTES_A_WEIGHT
        image = torch.empty(*shape)
        kept, passing, loss = kept_bytes(network, image, precision=precision)
        if checkpoint_activations:  # then one stage at a time has all its maps
            passing = max(passing, largest_stage(network, image, precision=precision))
            activations.checkpoint_activations(network)
            kept, _, loss = kept_bytes(network, image, precision=precision)
    return (weights + kept + passing + loss) / GB + CUDA_GB


def kept_bytes(network: nn.Module, image: Tensor, *, precision: str) -> tuple[int, int, int]:
    """What autograd keeps of a forward pass beside the weights, two of its largest map, and the loss's maps."""
    logits, maps = _kept(network, (image,), precision)
    heads = [logits] if isinstance(logits, Tensor) else list(logits)
    loss = sum(prod(head.shape) * 4 * LOSS_COPIES for head in heads)
    return sum(maps), 2 * max(maps, default=0), loss


def largest_stage(network: nn.Module, image: Tensor, *, precision: str) -> int:
    """Most that autograd keeps of one of the stages that checkpointing computes again."""
    stages = activations.stages(network).values()
    inputs: list[tuple[nn.Module, tuple[Any, ...]]] = []
    hooks = [stage.register_forward_pre_hook(lambda *called: inputs.append(called)) for stage in stages]
    with _mixed(precision):
        network(image)
    for hook in hooks:
        hook.remove()
    return max((sum(_kept(stage, given, precision)[1]) for stage, given in inputs), default=0)


def _kept(module: nn.Module, given: tuple[Any, ...], precision: str) -> tuple[Any, list[int]]:
    """Output of a module, and the bytes of each thing that autograd keeps of it, but for its weights."""
    kept: dict[int, Tensor] = {}  # by storage; the tensors stay alive, so that no other gets their place

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, _same), _mixed(precision):
        output = module(*given)
    for weight in module.parameters():
        kept.pop(weight.untyped_storage()._cdata, None)
    return output, [tensor.untyped_storage().nbytes() for tensor in kept.values()]


def _mixed(precision: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()


def _same(tensor: Tensor) -> Tensor:
    return tensor
