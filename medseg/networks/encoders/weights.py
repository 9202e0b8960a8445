"""Weights of a file for an encoder: loaded as they are, inflated from 2D, or adapted to other image channels."""

import logging
import pickle
import struct
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError, DataError
from medseg.networks.encoders.inflation import Inflation, inflated_kernel, is_inflatable

CLASSIFIERS = ("fc.", "classifier.")  # of torchvision's networks; an encoder has none
WRAPPERS = ("state_dict", "model")  # under which files of a training keep the state dict
PREFIXES = ("backbone.", "encoder.")  # of the encoder's names in whole networks: torchvision's, and everybody's
# what torch.load raises on text, a page of a failed download, half a file
NO_WEIGHTS = (pickle.UnpicklingError, struct.error, EOFError, LookupError, RuntimeError, TypeError, ValueError)

logger = logging.getLogger(__name__)


class LoadedWeights(NamedTuple):
    """Names of the tensors that did not simply load."""

    missing: tuple[str, ...]  # the network's, not in the file; they keep their values
    unexpected: tuple[str, ...]  # the file's, not in the network; a classifier is not counted
    inflated: tuple[str, ...]  # from 2D to 3D
    adapted: tuple[str, ...]  # to another number of image channels


def load_weights(
    module: nn.Module, path: str | Path, *, prefix: str = "", inflation: Inflation = "center"
) -> LoadedWeights:
    """Load a file of weights, in torchvision's or MedicalNet's layout, into `module`; says what did not fit.

    2D kernels inflate for a 3D network, with the last axis as the new one. The first convolution adapts to other image
    channels: each gets the mean of the file's, times their number over the network's, so that equal channels give the
    sums that they gave (one channel: the sum over red, green and blue).

    MedicalNet's ResNet-50, 101 and 152 have every tensor of the encoder. Its ResNet-18 and 34 have shortcuts without
    weights (form A of the paper): the 15 tensors `layer2.0.downsample.*` to `layer4.0.downsample.*` are missing, said,
    and stay random, so these two need training before they see what they saw.

    Args:
        module: encoder, or a network.
        path: of a state dict, in a file of `torch.save` (opened as weights only, it cannot run code) or `.safetensors`;
            it may lie under "state_dict" or "model", and its names may begin with "module.".
        prefix: only the file's names that begin so, without it. If "" and no name fits as it is, "backbone." and
            "encoder." are tried, as in a file of a whole network.
        inflation: of 2D kernels, see `inflate`.

    Raises:
        ConfigError: if there is no such file, or it is `.safetensors` and that package is not installed.
        DataError: for a file without weights, without any that fit, or with some of another shape.
    """
    path = Path(path)
    target = module.state_dict()
    source, prefix = without_prefix(named_tensors(path), prefix, target)
    fitting, inflated, adapted = fitted(module, source, path.name, inflation)
    if not fitting:
        raise DataError(
            f"{path.name}: none of its {len(source)} tensors {listed(source)} is one of the network's {listed(target)};"
            " take another file, or call load_weights with the prefix of its names"
        )
    module.load_state_dict(fitting, strict=False)
    unused = [name for name in source if name not in target]
    loaded = LoadedWeights(
        missing=tuple(name for name in target if name not in source),
        unexpected=tuple(name for name in unused if not name.startswith(CLASSIFIERS)),
        inflated=tuple(inflated),
        adapted=tuple(adapted),
    )
    said = {**loaded._asdict(), "of a classifier, unused": [name for name in unused if name.startswith(CLASSIFIERS)]}
    parts = [f"{len(names)} {what} {listed(names)}" for what, names in said.items() if names]
    level = logging.WARNING if loaded.missing or loaded.unexpected else logging.INFO
    under = f" under {prefix!r}" if prefix else ""
    found = ", ".join(parts) or "all as they are"
    logger.log(level, "%s: loaded %d tensors%s; %s", path.name, len(fitting), under, found)
    return loaded


def without_prefix(
    tensors: Mapping[str, Tensor], prefix: str, target: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """The tensors under `prefix`, without it; if it is "" and no name fits `target`, under the first prefix that does.

    Returns:
        The tensors, and the prefix that they had.
    """
    for tried in (prefix,) if prefix else ("", *PREFIXES):
        source = {name.removeprefix(tried): value for name, value in tensors.items() if name.startswith(tried)}
        if source.keys() & target.keys():
            return source, tried
    return {name: value for name, value in tensors.items() if name.startswith(prefix)}, prefix


def fitted(
    module: nn.Module, source: Mapping[str, Tensor], file: str, inflation: Inflation
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """What of `source` belongs to `module`, in its shapes; the names of what was inflated, and of what was adapted.

    Raises:
        DataError: if a shape is another for another reason.
    """
    target = module.state_dict()
    stem = next((name for name, value in target.items() if value.ndim > 2), None)
    fitting: dict[str, Tensor] = {}
    inflated, adapted = [], []
    for name in (name for name in target if name in source):
        weight, shape = source[name], target[name].shape
        if name == stem and weight.ndim > 2 and weight.shape[1] != shape[1]:
            weight = adapted_stem(weight, shape[1])
            adapted.append(name)
        if is_inflatable(weight, shape, -1):
            weight = inflated_kernel(weight, module, name, mode=inflation, axis=-1)
            inflated.append(name)
        if weight.shape != shape:
            raise DataError(
                f"{file}: {name} is {tuple(source[name].shape)}, the network's is {tuple(shape)};"
                " make the network with the widths and depth of the file, or take another file"
            )
        fitting[name] = weight
    return fitting, inflated, adapted


def listed(names: Iterable[str]) -> str:
    """The first three names in brackets."""
    shown = list(islice(names, 4))
    return f"({', '.join([*shown[:3], *(['...'] if shown[3:] else [])])})"


def named_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without counts of batches and wrappers' "module.".

    Raises:
        ConfigError: if there is no such file, or it is `.safetensors` and that package is not installed.
        DataError: if the file is not a state dict.
    """
    if not path.is_file():
        raise ConfigError(f"weights: there is no file {path.name}; give the path of a downloaded one")
    content = opened(path)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path.name}: is not a state dict; save network.state_dict()")
    return {
        name.removeprefix("module."): value
        for name, value in content.items()
        if not name.endswith("num_batches_tracked")
    }


def opened(path: Path) -> object:
    """What the file holds, on the CPU; nothing in it can run.

    Raises:
        ConfigError: if it is `.safetensors` and that package is not installed.
        DataError: if it cannot be opened as weights only.
    """
    damaged = DataError(f"{path.name}: no file of weights, damaged, or more than weights; save its state dict anew")
    if path.suffix != ".safetensors":
        try:
            content: object = torch.load(path, map_location="cpu", weights_only=True)
        except NO_WEIGHTS as error:
            raise damaged from error
        return content
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ConfigError(f"weights: {path.name} needs a package; pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise damaged from error


def adapted_stem(weight: Tensor, in_channels: int) -> Tensor:
    """A kernel for `in_channels` image channels, of the same sum over them."""
    return (weight.sum(1, keepdim=True) / in_channels).repeat_interleave(in_channels, dim=1)


def start_as_he(network: nn.Module) -> None:
    """Random kernels that keep the variance of gradients through ReLUs, zero biases.

    Reference:
        He et al., "Delving Deep into Rectifiers", ICCV 2015, arXiv:1502.01852.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
