import pytest
import torch
from torch.nn import functional as F

from medseg.errors import ConfigError
from medseg.networks.blocks import BatchNorm, InstanceNorm
from medseg.networks.encoders import VGG, ResNet
from medseg.networks.segnet import SegNet, unpool

WIDTHS = (4, 4, 6, 8, 8)
SIZE = (33, 47, 20)
MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
MAX_UNPOOL = {2: F.max_unpool2d, 3: F.max_unpool3d}
CONV = {2: F.conv2d, 3: F.conv3d}

both_dimensions = pytest.mark.parametrize("spatial_dims", [2, 3])


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


# The published counts have a bias in every convolution. Left out are those of the decoder before a norm, one a channel:
# 3 * 512, then 512 + 512 + 256, 256 + 256 + 128, 128 + 64 and 64 = 3712.
@pytest.mark.parametrize(("spatial_dims", "channels", "published"), [(2, (3, 21), 29_455_125), (3, (1, 3), 88_283_139)])
def test_parameters_are_those_published(spatial_dims, channels, published):
    with torch.device("meta"):
        network = SegNet(spatial_dims, *channels)
    assert parameter_count(network) + 3712 == published


@both_dimensions
def test_there_are_13_convolutions_down_and_13_up(spatial_dims):
    network = SegNet(spatial_dims, 1, 3, widths=WIDTHS)
    kernels = [name for name, parameter in network.named_parameters() if parameter.ndim == spatial_dims + 2]
    assert sum(name.startswith("encoder") for name in kernels) == 13
    assert len(kernels) == 26


@pytest.mark.parametrize("size", [SIZE, (5, 9, 4), (1, 1, 1), (64, 32, 32)])
@both_dimensions
def test_logits_lie_on_the_grid_of_any_image(spatial_dims, size):
    size = size[:spatial_dims]
    network = SegNet(spatial_dims, 2, 3, widths=WIDTHS).eval()
    with torch.inference_mode():
        assert network(torch.randn(2, 2, *size)).shape == (2, 3, *size)


def as_published(network, image):
    """SegNet from torch's functions alone: the kernels of `network` in their order, its norms by their statistics."""
    spatial_dims = image.ndim - 2
    state = list(network.state_dict().items())
    kernels = [
        (value, state[i + 1][1] if state[i + 1][0] == key.replace("weight", "bias") else None)
        for i, (key, value) in enumerate(state)
        if value.ndim == spatial_dims + 2
    ]
    prefixes = [key.removesuffix("running_mean") for key, _ in state if key.endswith("running_mean")]
    values = dict(state)
    norms = [
        [values[prefix + name] for name in ("running_mean", "running_var", "weight", "bias")] for prefix in prefixes
    ]

    def convolve(features, count):
        for _ in range(count):
            kernel, bias = kernels.pop(0)
            features = F.relu(F.batch_norm(CONV[spatial_dims](features, kernel, bias, padding=1), *norms.pop(0)))
        return features

    features, places = image, []
    for count in (2, 2, 3, 3, 3):
        features = convolve(features, count)
        size = features.shape[2:]
        features, indices = MAX_POOL[spatial_dims](features, 2, ceil_mode=True, return_indices=True)
        places.append((indices, size))
    # the decoder's parts are listed finest first, while they run deepest first: two, two, three, three, three again
    steps = [(kernels[start:stop], norms[start:stop]) for start, stop in ((0, 1), (1, 3), (3, 6), (6, 9), (9, 12))]
    last = kernels[12]
    for (indices, size), (step_kernels, step_norms) in zip(reversed(places), reversed(steps), strict=True):
        features = MAX_UNPOOL[spatial_dims](features, indices, 2, output_size=size)
        kernels[:], norms[:] = step_kernels, step_norms
        features = convolve(features, len(step_kernels))
    return CONV[spatial_dims](features, *last, padding=1)


@both_dimensions
def test_logits_equal_the_paper_built_from_torch_functions(spatial_dims):
    network = SegNet(spatial_dims, 2, 3, widths=WIDTHS).double().eval()
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    image = torch.randn(2, 2, *SIZE[:spatial_dims], dtype=torch.float64)
    with torch.inference_mode():
        logits, expected = network(image), as_published(network, image)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9)


@both_dimensions
def test_unpooling_equals_torch(spatial_dims):
    size = (7, 10, 5)[:spatial_dims]
    pooled, indices = MAX_POOL[spatial_dims](torch.randn(2, 3, *size), 2, ceil_mode=True, return_indices=True)
    features = torch.randn_like(pooled)
    expected = MAX_UNPOOL[spatial_dims](features, indices, 2, output_size=size)
    assert torch.equal(unpool(features, indices, size), expected)


def test_values_return_to_where_they_were_taken_from():
    image = torch.tensor([[[[1.0, 4.0, 2.0], [3.0, 0.0, 5.0]]]])
    pooled, indices = F.max_pool2d(image, 2, ceil_mode=True, return_indices=True)
    expected = torch.tensor([[[[0.0, 4.0, 0.0], [0.0, 0.0, 5.0]]]])
    assert torch.equal(unpool(pooled, indices, (2, 3)), expected)


@both_dimensions
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_small_patch_alone_trains_every_parameter(spatial_dims, norm):
    network = SegNet(spatial_dims, 1, 3, widths=WIDTHS, norm=norm).train()
    for _ in range(3):  # a ReLU may be silent for one image
        network(torch.randn(1, 1, *(5, 9, 4)[:spatial_dims])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@both_dimensions
def test_a_batch_equals_its_samples_one_by_one(spatial_dims):
    network = SegNet(spatial_dims, 1, 3, widths=WIDTHS).double().eval()
    images = torch.randn(3, 1, *SIZE[:spatial_dims], dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), torch.cat([network(image[None]) for image in images]))


@both_dimensions
def test_shallower_encoders_are_mirrored_too(spatial_dims):
    network = SegNet(spatial_dims, 1, 3, encoder="vgg11", widths=WIDTHS, norm="instance")
    kernels = [name for name, parameter in network.named_parameters() if parameter.ndim == spatial_dims + 2]
    assert len(kernels) == 8 + 8
    assert network(torch.randn(1, 1, *SIZE[:spatial_dims])).shape == (1, 3, *SIZE[:spatial_dims])


@pytest.mark.parametrize(("norm", "layer"), [("instance", InstanceNorm), ("batch", BatchNorm)])
def test_the_norm_follows_every_convolution_but_the_last(norm, layer):
    network = SegNet(2, 1, 3, widths=WIDTHS, norm=norm)
    norms = [type(module) for module in network.modules() if isinstance(module, (InstanceNorm, BatchNorm))]
    assert norms == [layer] * 25


@pytest.mark.parametrize(("encoder", "own"), [("vgg11", 0), ("vgg11_bn", 8)])
def test_no_norm_means_none_and_default_the_published_one(encoder, own):
    def norms(**settings):
        network = SegNet(2, 1, 3, encoder=encoder, widths=WIDTHS, **settings)
        return sum(isinstance(module, (InstanceNorm, BatchNorm)) for module in network.modules())

    assert norms() == norms(norm="default") == own + 7
    assert norms(norm=None) == 0


@pytest.mark.parametrize("upsampling", ["interpolate", "transposed"])
@both_dimensions
def test_the_decoder_may_climb_without_positions(spatial_dims, upsampling):
    network = SegNet(spatial_dims, 1, 3, widths=WIDTHS, upsampling=upsampling).double().train()
    image = torch.randn(2, 1, *SIZE[:spatial_dims], dtype=torch.float64)
    logits = network(image)
    assert logits.shape == (2, 3, *SIZE[:spatial_dims])
    logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    # from the deepest pooled map, written with torch's functions
    features = network.eval().encoder.pooled(image)[0][-1]
    sizes = [SIZE[:spatial_dims]]
    for _ in range(4):
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    up_conv = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[spatial_dims]
    for level in (4, 3, 2, 1, 0):
        if upsampling == "transposed":
            conv = network.climbs[level].conv
            features = up_conv(features, conv.weight, conv.bias, stride=2)
            features = features[(..., *(slice(side) for side in sizes[level]))]
        else:
            mode = {2: "bilinear", 3: "trilinear"}[spatial_dims]
            features = F.interpolate(features, sizes[level], mode=mode, align_corners=False)
        features = network.steps[level](features)
    torch.testing.assert_close(network(image), network.head(features))


def test_an_unknown_upsampling_is_refused():
    with pytest.raises(ConfigError, match="upsampling is 'nearest'; use 'unpool' or 'interpolate' or 'transposed'"):
        SegNet(2, 1, 3, widths=WIDTHS, upsampling="nearest")


def test_dropout_acts_only_while_training():
    network = SegNet(2, 1, 3, widths=WIDTHS, norm="instance", dropout=0.5)
    image = torch.randn(1, 1, 17, 19)
    assert not torch.allclose(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))


def test_encoders_without_indices_are_refused():
    with pytest.raises(ConfigError, match=r"encoder is 'resnet18'; use 'vgg11' or .* or 'vgg19_bn'$"):
        SegNet(2, 1, 3, encoder="resnet18")
    with pytest.raises(ConfigError, match="SegNet: encoder is a ResNet; use a VGG, which pools with indices"):
        SegNet(2, 1, 3, encoder=ResNet(2, 1, depth=18, widths=WIDTHS))


@pytest.mark.parametrize("settings", [{"output_stride": 8}, {"pool_kernel_size": 3}])
def test_encoders_with_overlapping_poolings_are_refused(settings):
    encoder = VGG(2, 1, widths=WIDTHS, **settings)
    with pytest.raises(ConfigError, match="SegNet: the encoder's poolings overlap; use a VGG of output_stride 32"):
        SegNet(2, 1, 3, encoder=encoder)


@both_dimensions
def test_the_encoder_may_be_a_module(spatial_dims):
    encoder = VGG(spatial_dims, 1, depth=13, widths=WIDTHS)
    network = SegNet(spatial_dims, 1, 3, encoder=encoder)
    assert network.encoder is encoder
    assert network(torch.randn(1, 1, *SIZE[:spatial_dims])).shape == (1, 3, *SIZE[:spatial_dims])
