"""Fine-tuning: a training that starts from the weights of another, perhaps with another head or other channels."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from medseg.bundle import open_bundle
from medseg.data_half import data_half
from medseg.errors import ConfigError
from medseg.networks.encoders.weights import adapted_stem, listed
from workflows import recipe

SEEN_ALIKE = ("channels", "spacing_mm", "intensity", "pixel_scale")  # what an image looks like to the network

logger = logging.getLogger(__name__)


def start_from(network: nn.Module, model: Any, *, resume: Any = None, runs_dir: str = "runs") -> None:
    """Load the weights of a trained model that fit; says which do not. A resumed training has its own already.

    Args:
        network: gets the weights.
        model: run folder, bundle, zip or MLflow run id; None for the network's own random weights.
        resume: the recipe's.
        runs_dir: where a run id is looked for.

    Raises:
        ConfigError: if there is no such model, or nothing of it fits.
    """
    if model is None or resume is not None:
        return
    bundle = open_bundle(str(model), runs_dir=runs_dir)
    fitting, said = matching(bundle.state_dict(), network)
    if not fitting:
        raise ConfigError(
            f"pretrained_model: no weight of {bundle.name} fits this network; give a model of the same network_def"
        )
    network.load_state_dict(fitting, strict=False)
    trained, asked = data_half(bundle.recipe), data_half(recipe.merged_recipe())
    other = [id for id in SEEN_ALIKE if trained.get(id) != asked.get(id)]
    if other:
        said.append(f"it has seen images of another {', '.join(other)}")
    level = logging.WARNING if said else logging.INFO
    logger.log(
        level,
        "starting from %s: %d of %d weights; %s",
        bundle.name,
        len(fitting),
        len(network.state_dict()),
        "; ".join(said) or "all fit",
    )


def matching(source: Mapping[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of `source` that are the network's by name and shape, and what is to be said of the others.

    A first convolution for other image channels gets, for each, the mean over the source's, of the same sum.
    """
    target = network.state_dict()
    stem = next((name for name, value in target.items() if value.ndim > 2), None)
    fitting, said, reshaped = {}, [], []
    for name in (name for name in target if name in source):
        weight, shape = source[name], target[name].shape
        if name == stem and weight.ndim == len(shape) and weight.shape[1] != shape[1]:
            said.append(f"{name} adapted from {weight.shape[1]} to {shape[1]} channels")
            weight = adapted_stem(weight, shape[1])
        if weight.shape == shape:
            fitting[name] = weight
        else:
            reshaped.append(f"{name} {tuple(weight.shape)} for {tuple(shape)}")
    parts = {
        "of another shape and new": reshaped,
        "not in it and new": [name for name in target if name not in source],
        "of it unused": [name for name in source if name not in target],
    }
    return fitting, said + [f"{len(names)} {what} {listed(names)}" for what, names in parts.items() if names]
