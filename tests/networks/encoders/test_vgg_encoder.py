import pytest
import torch
from torch import nn

from medseg.errors import ConfigError
from medseg.networks.encoders import VGG

WIDTHS = (3, 4, 6, 8, 8)
# torchvision's figures; its classifier has 25088 * 4096 + 4096, 4096 * 4096 + 4096 and 4096 * 1000 + 1000
TORCHVISION = {
    (11, None): 132_863_336, (13, None): 133_047_848, (16, None): 138_357_544, (19, None): 143_667_240,
    (11, "batch"): 132_868_840, (13, "batch"): 133_053_736, (16, "batch"): 138_365_992, (19, "batch"): 143_678_248,
}  # fmt: skip
CLASSIFIER = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000

both_dimensions = pytest.mark.parametrize("spatial_dims", [2, 3])


@pytest.mark.parametrize(("form", "published"), TORCHVISION.items())
def test_parameters_are_torchvision_s_without_the_classifier(form, published):
    depth, norm = form
    with torch.device("meta"):
        encoder = VGG(2, 3, depth=depth, norm=norm)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == published - CLASSIFIER


@pytest.mark.parametrize(("name", "norm"), [("vgg11", None), ("vgg16", None), ("vgg16_bn", "batch")])
def test_levels_equal_torchvision(name, norm, torchvision_models, same_weights, random_statistics):
    with torch.device("meta"):  # of the classifier, which is large
        theirs = getattr(torchvision_models, name)()
    theirs = theirs.features.to_empty(device="cpu")
    for module in theirs.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    random_statistics(theirs)
    ours = VGG(2, 3, depth=int(name[3:5]), norm=norm, ceil_mode=False)
    same_weights(ours.features, theirs)
    ours, theirs = ours.double().eval(), theirs.double().eval()
    image = torch.randn(1, 3, 67, 45, dtype=torch.float64)
    expected, features = [], image
    for layer in theirs:
        if isinstance(layer, nn.MaxPool2d):
            expected.append(features)
        # its ReLUs work in place, ours too: neither changes what a level has been pooled from
        features = layer(features)
    with torch.inference_mode():
        levels = ours(image)
        pools, _ = ours.pooled(image)
    for level, wanted in zip(levels, [*expected, features], strict=True):
        torch.testing.assert_close(level, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pools[-1], features, atol=1e-5, rtol=1e-5)


@both_dimensions
@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("pool_kernel_size", [2, 3])
@pytest.mark.parametrize("size", [(33, 47, 20), (7, 6, 3), (64, 32, 32)])
def test_levels_have_the_widths_and_strides_they_say(spatial_dims, output_stride, pool_kernel_size, size):
    encoder = VGG(
        spatial_dims, 2, depth=11, widths=WIDTHS, output_stride=output_stride, pool_kernel_size=pool_kernel_size
    ).eval()
    assert encoder.widths == (*WIDTHS, 8)
    assert encoder.strides[-1] == output_stride
    image = torch.randn(2, 2, *size[:spatial_dims])
    with torch.inference_mode():
        levels, (pools, positions) = encoder(image), encoder.pooled(image)
    for level, width, stride in zip(levels, encoder.widths, encoder.strides, strict=True):
        assert level.shape == (2, width, *(-(-length // stride) for length in size[:spatial_dims]))
    assert [pool.shape[2:] for pool in pools] == [level.shape[2:] for level in levels[1:]]
    assert [position.shape for position in positions] == [pool.shape for pool in pools]


@both_dimensions
def test_positions_say_where_each_pooled_value_was(spatial_dims):
    encoder = VGG(spatial_dims, 1, depth=13, widths=WIDTHS, norm="batch").eval()
    image = torch.randn(2, 1, *(33, 21, 18)[:spatial_dims])
    with torch.inference_mode():
        levels, (pools, positions) = encoder(image), encoder.pooled(image)
    for level, pool, position in zip(levels[:-1], pools, positions, strict=True):
        assert torch.equal(level.flatten(2).gather(2, position.flatten(2)), pool.flatten(2))


@both_dimensions
def test_at_multiples_of_32_both_roundings_are_the_same(spatial_dims):
    up = VGG(spatial_dims, 1, depth=11, widths=WIDTHS).eval()
    down = VGG(spatial_dims, 1, depth=11, widths=WIDTHS, ceil_mode=False).eval()
    down.load_state_dict(up.state_dict())
    for image, same in (
        (torch.randn(1, 1, *(64, 32, 32)[:spatial_dims]), True),
        (torch.randn(1, 1, *(63, 35, 33)[:spatial_dims]), False),
    ):
        with torch.inference_mode():
            assert (up(image)[-1].shape == down(image)[-1].shape) is same
            if same:
                assert torch.equal(up(image)[-1], down(image)[-1])


@both_dimensions
def test_the_form_of_deeplab_v1_dilates_the_fifth_block(spatial_dims):
    encoder = VGG(spatial_dims, 1, depth=16, widths=WIDTHS, output_stride=8, pool_kernel_size=3)
    convs = [layer for layer in encoder.features if isinstance(layer, nn.Conv2d | nn.Conv3d)]
    assert [conv.dilation[0] for conv in convs] == [1] * 10 + [2] * 3
    pools = [layer for layer in encoder.features if isinstance(layer, nn.MaxPool2d | nn.MaxPool3d)]
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools] == [(3, 2, 1)] * 3 + [(3, 1, 1)] * 2
    assert encoder.convs_per_block == (2, 2, 3, 3, 3)


@both_dimensions
@pytest.mark.parametrize("norm", ["batch", "instance", None])
def test_one_small_patch_trains_every_parameter(spatial_dims, norm):
    encoder = VGG(spatial_dims, 1, depth=11, widths=WIDTHS, norm=norm).train()
    for _ in range(3):  # a ReLU may be silent for one image
        sum(level.square().sum() for level in encoder(torch.randn(1, 1, *(9, 7, 4)[:spatial_dims]))).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 12}, "depth is 12; use 11 or 13 or 16 or 19"),
        ({"output_stride": 4}, "output_stride is 4; use 32 or 16 or 8"),
        ({"pool_kernel_size": 4}, "pool_kernel_size is 4; use 2 or 3"),
        ({"widths": (4, 4, 6, 8, 0)}, r"widths is \(4, 4, 6, 8, 0\); use whole numbers, 1 or more"),
        ({"widths": (64,)}, "VGG: got 1 widths; give 5, one for each block"),
    ],
)
def test_unknown_settings_are_named(settings, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        VGG(2, 1, **settings)
