import copy

import pytest
import torch
from torch import nn

from medseg.errors import ConfigError
from medseg.losses import DiceCrossEntropy
from medseg.networks import DeepLabV3, LinkNet, UNet
from workflows.activations import checkpoint_activations

NETWORKS = {
    "instance norm": lambda: UNet(3, 1, 3, widths=(4, 8, 8), deep_supervision=True),
    "batch norm and dropout": lambda: UNet(2, 1, 3, widths=(4, 8, 8), norm="batch", dropout=0.3),
    "another encoder": lambda: LinkNet(2, 1, 3, encoder="resnet18"),
    "nested parts": lambda: DeepLabV3(2, 1, 3, encoder="resnet18"),
}


def step(network):
    """Gradients and running statistics after one step, and the bytes kept for the way back."""
    spatial_dims = 3 if any(isinstance(module, nn.Conv3d) for module in network.modules()) else 2
    size = (33, 20, 12)[:spatial_dims]
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 1, *size, generator=generator)
    label = torch.randint(0, 3, (2, 1, *size), generator=generator)
    torch.manual_seed(2)
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = DiceCrossEntropy()(network.train()(image), label)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return gradients, dict(network.named_buffers()), sum(kept.values())


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_gradients_statistics_and_names_stay_and_less_is_kept(make):
    network = make()
    other = copy.deepcopy(network)
    assert checkpoint_activations(other)
    assert list(other.state_dict()) == list(network.state_dict())
    gradients, buffers, kept = step(network)
    again, other_buffers, other_kept = step(other)
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, msg=name)
    for name, buffer in buffers.items():
        torch.testing.assert_close(other_buffers[name], buffer, msg=name)
    assert other_kept < 0.7 * kept


def test_a_network_without_stages_is_refused():
    with pytest.raises(ConfigError, match="checkpoint_activations: Conv2d has no stages in lists or sequences"):
        checkpoint_activations(nn.Conv2d(1, 2, 3))
