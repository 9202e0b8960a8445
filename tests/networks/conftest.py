"""Independent implementations to compare with; both packages are optional."""

import importlib
import importlib.util
from functools import cache

import pytest
import torch


@cache
def declare_operators():
    """The operators whose absence stops torchvision's import where its compiled part does not load (another torch).

    They are declared, not implemented: no network here calls them. The library has to live as long as they are used.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # "operator torchvision::nms does not exist"
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


@pytest.fixture(scope="session")
def torchvision_models():
    """`torchvision.models`, also where torchvision's compiled operators are missing."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: pip install --no-deps torchvision")
    declare_operators()
    return importlib.import_module("torchvision.models")


@pytest.fixture(scope="session")
def smp(torchvision_models):
    """`segmentation_models_pytorch`, which imports torchvision."""
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        pytest.skip("not installed: pip install --no-deps segmentation_models_pytorch timm")
    return importlib.import_module("segmentation_models_pytorch")


def tensors(network):
    """Parameters and statistics by name; of a module, or a state dict as it is."""
    state = network if isinstance(network, dict) else network.state_dict()
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="session")
def same_weights():
    """`same_weights(ours, theirs)` gives our network the weights and statistics of theirs, and returns ours.

    By name where all names agree, else in order (of modules made, or of the dictionary given): then shape by shape.
    Give theirs random statistics before; zeros and ones hide mistakes.
    """

    def copied(ours, theirs):
        source, target = tensors(theirs), tensors(ours)
        if set(source) == set(target):
            source = {name: source[name] for name in target}
        if len(source) != len(target):
            pytest.fail(f"theirs has {len(source)} tensors, ours {len(target)}")
        for (their_name, given), (name, value) in zip(source.items(), target.items(), strict=True):
            if given.shape != value.shape:
                pytest.fail(f"their {their_name} {tuple(given.shape)} would become our {name} {tuple(value.shape)}")
        ours.load_state_dict(dict(zip(target, source.values(), strict=True)))
        return ours

    return copied


@pytest.fixture(scope="session")
def random_statistics():
    """`random_statistics(module)` fills running means and variances, as after a training, and returns the module."""

    def filled(module):
        for name, statistic in module.named_buffers():
            if name.endswith("running_mean"):
                statistic.normal_()
            elif name.endswith("running_var"):
                statistic.uniform_(0.5, 2)
        return module

    return filled
