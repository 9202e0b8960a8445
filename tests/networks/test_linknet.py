import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medseg.errors import ConfigError
from medseg.networks.blocks import DROPOUT, BatchNorm, InstanceNorm
from medseg.networks.linknet import LinkNet

SIZE = (33, 47, 20)
NARROW = {"widths": (4, 4, 6, 8, 10)}
CONV = {2: F.conv2d, 3: F.conv3d}
UP_CONV = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
POOL = {2: F.max_pool2d, 3: F.max_pool3d}


def test_the_authors_release_has_its_parameter_count():
    with torch.device("meta"):
        network = LinkNet(2, 3, 21)
    # without the 32 + 32 biases of the last two convolutions that a norm follows
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_535_957 - 64


def decode(state, pyramid):
    """The authors' decoder, written down from the paper's figures 1 and 2, for sizes divisible by 32."""
    dims = pyramid[0].ndim - 2

    def finish(features, norm):
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.relu(F.batch_norm(features, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"]))

    def block(features, name, stride):
        features = finish(CONV[dims](features, state[f"{name}.narrow.0.weight"]), f"{name}.narrow.1")
        weight = state[f"{name}.climb.conv.weight"]
        features = UP_CONV[dims](features, weight, stride=stride, padding=1, output_padding=stride - 1)
        features = finish(features, f"{name}.climb.finish.0")
        return finish(CONV[dims](features, state[f"{name}.widen.0.weight"]), f"{name}.widen.1")

    stem, first, second, third, fourth = pyramid
    features = block(fourth, "decoder.3", 2) + third
    features = block(features, "decoder.2", 2) + second
    features = block(features, "decoder.1", 2) + first
    features = block(features, "decoder.0", 1) + POOL[dims](stem, 3, stride=2, padding=1)
    features = UP_CONV[dims](features, state["climb.conv.weight"], stride=2, padding=1, output_padding=1)
    features = finish(features, "climb.finish.0")
    features = finish(CONV[dims](features, state["conv.0.weight"], padding=1), "conv.1")
    return UP_CONV[dims](features, state["head.weight"], state["head.bias"], stride=2)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_logits_equal_the_papers_decoder_written_down(spatial_dims, encoder):
    network = LinkNet(spatial_dims, 2, 3, encoder=encoder, **NARROW).double().train()
    with torch.no_grad():
        for _ in range(2):  # moves the running statistics
            network(torch.randn(2, 2, *(64, 32, 32)[:spatial_dims], dtype=torch.float64))
    image = torch.randn(1, 2, *(64, 96, 32)[:spatial_dims], dtype=torch.float64)
    with torch.inference_mode():
        expected = decode(network.eval().state_dict(), network.encoder(image))
        torch.testing.assert_close(network(image), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 1), (9, 4, 5), (17, 16, 8), SIZE])
@pytest.mark.parametrize("settings", [{}, {"norm": "instance"}, {"encoder": "resnet50", "activation": "leaky_relu"}])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_any_size_trains_in_a_batch_of_one(settings, spatial_dims, size):
    network = LinkNet(spatial_dims, 1, 2, **NARROW, **settings).train()
    logits = network(torch.randn(1, 1, *size[:spatial_dims]))
    assert logits.shape == (1, 2, *size[:spatial_dims])
    logits.square().sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert gradients.isfinite().all()
    assert gradients.any()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_bypass_reaches_the_logits(spatial_dims):
    # norms of the batch carry even a faint level through the narrow blocks
    network = LinkNet(spatial_dims, 1, 2, **NARROW).double().train()
    image = torch.randn(1, 1, *SIZE[:spatial_dims], dtype=torch.float64)
    encode = network.encoder.forward
    with torch.inference_mode():
        logits = network(image)
        for level in range(5):

            def silenced(image, level=level):
                return [features * (index != level) for index, features in enumerate(encode(image))]

            network.encoder.forward = silenced
            assert not torch.allclose(network(image), logits)


class Pyramid(nn.Module):
    """An encoder that rounds grids down: what a doubled grid lacks is stretched."""

    widths = (4, 6, 8)

    def __init__(self, strides):
        super().__init__()
        self.strides = strides
        self.conv = nn.ModuleList([nn.Conv2d(1, 4, 2, 2), nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 8, 2, 2)])

    def forward(self, image):
        pyramid = []
        for conv in self.conv:
            image = conv(image)
            pyramid.append(image)
        return pyramid


def test_an_encoder_may_be_a_module_that_rounds_down():
    network = LinkNet(2, 1, 2, encoder=Pyramid((2, 4, 8))).eval()
    assert network(torch.randn(1, 1, 23, 31)).shape == (1, 2, 23, 31)


@pytest.mark.parametrize("strides", [(1, 2, 4), (2, 4, 16)])
def test_an_encoder_of_other_strides_is_refused(strides):
    with pytest.raises(ConfigError, match=r"LinkNet: the encoder's strides are .*; use 2, 4, then each the same or"):
        LinkNet(2, 1, 2, encoder=Pyramid(strides))


def test_only_two_and_three_dimensions_exist():
    with pytest.raises(ConfigError, match="spatial_dims is 4; use 2 or 3"):
        LinkNet(4, 1, 3)


@pytest.mark.parametrize(("norm", "kinds"), [("default", {BatchNorm}), ("instance", {InstanceNorm}), (None, set())])
def test_a_norm_is_everywhere_or_nowhere(norm, kinds):
    network = LinkNet(2, 1, 3, norm=norm, **NARROW)
    for part in (network.encoder, network.decoder, network.climb, network.conv):
        assert {type(module) for module in part.modules() if isinstance(module, BatchNorm | InstanceNorm)} == kinds


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_dropout_acts_in_the_decoder_only_while_training(spatial_dims):
    network = LinkNet(spatial_dims, 1, 2, norm="instance", dropout=0.5, **NARROW)
    dropouts = [module for module in network.modules() if isinstance(module, DROPOUT[spatial_dims])]
    assert [module.p for module in dropouts] == [0.5] * (4 * 3 + 2)
    image = torch.randn(1, 1, *SIZE[:spatial_dims])
    assert not torch.allclose(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))


def test_an_unknown_encoder_is_answered_with_those_it_takes():
    with pytest.raises(ConfigError, match=r"encoder is 'vgg16'; use 'resnet18' or .* or 'resnet152'$"):
        LinkNet(2, 1, 2, encoder="vgg16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (4, 4, 6, 8, 0)}, r"widths is \(4, 4, 6, 8, 0\); use whole numbers, 1 or more"),
        ({"dropout": 1.5}, "dropout is 1.5; use a probability"),
        ({"out_channels": 0}, "out_channels is 0; use whole numbers, 1 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LinkNet(**{"spatial_dims": 2, "in_channels": 1, "out_channels": 2, **NARROW, **settings})
