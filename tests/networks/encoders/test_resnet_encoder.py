import pytest
import torch
from torch import nn

from medseg.errors import ConfigError
from medseg.networks.encoders import ResNet

WIDTHS = (4, 4, 6, 8, 8)
SIZE = (33, 47, 20)
# torchvision's figures, with the classifier of 1000 classes on 512 or 2048 channels
TORCHVISION = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}

both_dimensions = pytest.mark.parametrize("spatial_dims", [2, 3])


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def stages(encoder):
    return [encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]


def rates_3x3(encoder):
    """Dilation of the 3x3 convolutions of each block, stage by stage."""
    return [
        [
            {m.dilation[0] for m in block.modules() if isinstance(m, nn.Conv2d | nn.Conv3d) and m.kernel_size[0] == 3}
            for block in stage
        ]
        for stage in stages(encoder)
    ]


def levels_of(theirs, image):
    """The five levels of a ResNet with torchvision's names."""
    levels = [torch.relu(theirs.bn1(theirs.conv1(image)))]
    features = theirs.maxpool(levels[0])
    for stage in stages(theirs):
        features = stage(features)
        levels.append(features)
    return levels


@pytest.mark.parametrize(("depth", "published"), TORCHVISION.items())
def test_parameters_are_torchvision_s_without_the_classifier(depth, published):
    classifier = 1000 * (512 if depth < 50 else 2048) + 1000
    with torch.device("meta"):
        assert parameter_count(ResNet(2, 3, depth=depth)) == published - classifier


def test_parameters_in_3d_are_monai_s():
    with torch.device("meta"):
        assert parameter_count(ResNet(3, 1, depth=50)) == 46_155_072
        # MONAI's has nothing in its shortcuts: neither three 1x1 convolutions nor three norms
        shortcuts = 64 * 128 + 128 * 256 + 256 * 512 + 2 * (128 + 256 + 512)
        assert parameter_count(ResNet(3, 1, depth=18)) == 32_986_176 + shortcuts


DEEP = pytest.param(101, 8, marks=pytest.mark.slow)


@pytest.mark.parametrize(("depth", "output_stride"), [(18, 32), (34, 32), (50, 32), (50, 16), (50, 8), DEEP])
def test_levels_equal_torchvision(depth, output_stride, torchvision_models, same_weights, random_statistics):
    settings = {} if depth < 50 else {"replace_stride_with_dilation": [False, output_stride < 16, output_stride < 32]}
    theirs = random_statistics(getattr(torchvision_models, f"resnet{depth}")(**settings))
    del theirs.fc
    ours = ResNet(2, 3, depth=depth, output_stride=output_stride)
    assert list(ours.state_dict()) == [name for name in theirs.state_dict() if "num_batches" not in name]
    same_weights(ours, theirs)
    ours, theirs = ours.double().eval(), theirs.double().eval()
    image = torch.randn(1, 3, 65, 49, dtype=torch.float64)
    with torch.inference_mode():
        for level, expected in zip(ours(image), levels_of(theirs, image), strict=True):
            torch.testing.assert_close(level, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "output_stride"), [("resnet18", 16), ("resnet34", 8), ("resnet50", 8)])
def test_dilating_every_block_equals_smp(name, output_stride, smp, same_weights, random_statistics):
    theirs = random_statistics(smp.encoders.get_encoder(name, weights=None, output_stride=output_stride))
    ours = ResNet(2, 3, depth=int(name[6:]), output_stride=output_stride, dilation="every_block")
    same_weights(ours, theirs)
    ours, theirs = ours.double().eval(), theirs.double().eval()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        for level, expected in zip(ours(image), theirs(image)[1:], strict=True):
            torch.testing.assert_close(level, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("depth", [18, 50])
def test_levels_in_3d_equal_monai(depth, same_weights, random_statistics):
    from monai.networks import nets

    theirs = getattr(nets, f"resnet{depth}")(
        spatial_dims=3, n_input_channels=1, conv1_t_stride=2, shortcut_type="B", bias_downsample=False, num_classes=2
    )
    del theirs.fc
    ours = ResNet(3, 1, depth=depth)
    same_weights(ours, random_statistics(theirs))
    ours, theirs = ours.double().eval(), theirs.double().eval()
    image = torch.randn(1, 1, 33, 17, 22, dtype=torch.float64)
    with torch.inference_mode():
        for level, expected in zip(ours(image), levels_of(theirs, image), strict=True):
            torch.testing.assert_close(level, expected, atol=1e-5, rtol=1e-5)


@both_dimensions
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("size", [SIZE, (7, 6, 3)])
def test_levels_have_the_widths_and_strides_they_say(spatial_dims, depth, output_stride, size):
    encoder = ResNet(spatial_dims, 2, depth=depth, widths=WIDTHS, output_stride=output_stride).eval()
    factor = 1 if depth == 18 else 4
    assert encoder.widths == (4, 4 * factor, 6 * factor, 8 * factor, 8 * factor)
    assert encoder.strides[-1] == output_stride
    with torch.inference_mode():
        levels = encoder(torch.randn(2, 2, *size[:spatial_dims]))
    for level, width, stride in zip(levels, encoder.widths, encoder.strides, strict=True):
        assert level.shape == (2, width, *(-(-length // stride) for length in size[:spatial_dims]))


@both_dimensions
def test_the_two_conventions_differ_in_the_first_block_of_a_dilated_stage(spatial_dims):
    settings = {"depth": 34, "widths": WIDTHS, "output_stride": 8}
    torchvision = rates_3x3(ResNet(spatial_dims, 1, **settings))
    assert torchvision[1:] == [[{1}] * 4, [{1}] + [{2}] * 5, [{2}] + [{4}] * 2]
    every_block = rates_3x3(ResNet(spatial_dims, 1, dilation="every_block", **settings))
    assert every_block[1:] == [[{1}] * 4, [{2}] * 6, [{4}] * 3]


@both_dimensions
def test_multi_grid_multiplies_the_rates_of_the_last_stage(spatial_dims):
    settings = {"widths": WIDTHS, "multi_grid": (1, 2, 4), "dilation": "every_block"}
    # arXiv:1706.05587, section 3.1: multi-grid (1, 2, 4) at output stride 16 gives rates 2 * (1, 2, 4)
    assert rates_3x3(ResNet(spatial_dims, 1, output_stride=16, **settings))[2:] == [[{1}] * 6, [{2}, {4}, {8}]]
    assert rates_3x3(ResNet(spatial_dims, 1, depth=18, output_stride=8, **settings))[2:] == [[{2}] * 2, [{4}, {8}]]


def test_a_deep_stem_has_three_small_convolutions():
    with torch.device("meta"):
        plain, deep = ResNet(2, 3), ResNet(2, 3, deep_stem=True)
    assert deep.widths == (128, 256, 512, 1024, 2048)
    assert [tuple(getattr(deep, f"conv{i}").weight.shape) for i in (1, 2, 3)] == [
        (64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3)
    ]  # fmt: skip
    # 3*64*49 weights give way to 9*(3*64 + 64*64 + 64*128), two norms are new, and the first block has 64 more inputs
    # in its 1x1 convolutions to 64 and to 256 channels
    expected = 9 * (3 * 64 + 64 * 64 + 64 * 128) - 3 * 64 * 49 + 2 * (64 + 128) + 64 * (64 + 256)
    assert parameter_count(deep) - parameter_count(plain) == expected
    narrow = ResNet(2, 1, depth=18, widths=WIDTHS, deep_stem=True).eval()
    assert [tuple(level.shape[1:]) for level in narrow(torch.randn(1, 1, 33, 47))][:2] == [(8, 17, 24), (4, 9, 12)]


def test_a_deep_stem_runs_its_three_convolutions_in_turn(random_statistics):
    encoder = random_statistics(ResNet(2, 2, depth=18, widths=WIDTHS, deep_stem=True)).eval()
    image = torch.randn(1, 2, 15, 18)
    features = image
    for position, stride in ((1, 2), (2, 1), (3, 1)):
        conv, norm = getattr(encoder, f"conv{position}"), getattr(encoder, f"bn{position}")
        features = torch.nn.functional.conv2d(features, conv.weight, stride=stride, padding=1)
        features = (features - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
        features = features.clamp(min=0)
    torch.testing.assert_close(encoder(image)[0], features)


def test_the_caffe_form_has_its_stride_in_the_first_convolution():
    first = ResNet(2, 1, widths=WIDTHS, stride_in_1x1=True).layer2[0]
    assert (first.conv1.stride, first.conv2.stride) == ((2, 2), (1, 1))
    first = ResNet(2, 1, widths=WIDTHS).layer2[0]
    assert (first.conv1.stride, first.conv2.stride) == ((1, 1), (2, 2))


@both_dimensions
@pytest.mark.parametrize("depth", [18, 50])
def test_a_gradient_flows_through_shortcuts_that_change_the_width(spatial_dims, depth):
    block = ResNet(spatial_dims, 1, depth=depth, widths=WIDTHS).layer2[0].eval()
    nn.init.zeros_((block.bn2 if depth == 18 else block.bn3).weight)  # silences the branch beside the shortcut
    features = torch.randn(1, 4 if depth == 18 else 16, *(8, 9, 6)[:spatial_dims], requires_grad=True)
    block(features).sum().backward()
    assert features.grad.any()
    assert block.downsample[0].weight.grad.any()


@both_dimensions
@pytest.mark.parametrize("norm", ["batch", "instance", None])
@pytest.mark.parametrize("depth", [18, 50])
def test_one_small_patch_trains_every_parameter(spatial_dims, norm, depth):
    encoder = ResNet(spatial_dims, 1, depth=depth, widths=WIDTHS, norm=norm, output_stride=16).train()
    for _ in range(3):  # a ReLU may be silent for one image
        sum(level.square().sum() for level in encoder(torch.randn(1, 1, *(9, 6, 4)[:spatial_dims]))).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert ("conv1.bias" in dict(encoder.named_parameters())) == (norm is None)


@pytest.mark.parametrize("planes", range(1, 10))
def test_a_few_planes_train_the_stem_by_the_right_gradient(planes):
    # torch 2.13 computes that of float32 wrongly at 5 to 7 planes on a CPU, or crashes; that of float64 it does not
    encoder = ResNet(3, 1, depth=18, widths=WIDTHS, norm="instance").train()
    image = torch.randn(1, 1, planes, 9, 8)
    stem = encoder(image)[0]
    assert stem.shape[2:] == ((planes + 1) // 2, 5, 4)
    stem.square().sum().backward()
    exact = ResNet(3, 1, depth=18, widths=WIDTHS, norm="instance").double()
    exact.load_state_dict(encoder.state_dict())
    expected = exact.relu(exact.bn1(exact.conv1(image.double())))
    torch.testing.assert_close(stem.double(), expected, atol=1e-4, rtol=1e-4)
    expected.square().sum().backward()
    torch.testing.assert_close(encoder.conv1.weight.grad.double(), exact.conv1.weight.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 20}, "depth is 20; use 18 or 34 or 50 or 101 or 152"),
        ({"output_stride": 4}, "output_stride is 4; use 32 or 16 or 8"),
        ({"dilation": "caffe"}, "dilation is 'caffe'; use 'torchvision' or 'every_block'"),
        ({"widths": (64, 128)}, "ResNet: got 2 widths; give 5, of the stem and the four stages"),
        ({"multi_grid": (1, 2)}, r"multi_grid is \[1, 2\]; give a factor for each of the 3 last blocks"),
        ({"norm": "group"}, "norm is 'group'"),
        ({"widths": (4, 4, 0, 8, 8)}, r"widths is \(4, 4, 0, 8, 8\); use whole numbers, 1 or more"),
        ({"multi_grid": (1, 2, 0)}, r"multi_grid is \(1, 2, 0\); use whole numbers, 1 or more"),
        ({"depth": [50]}, r"depth is \[50\]; use 18 or"),
    ],
)
def test_unknown_settings_are_named(settings, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        ResNet(2, 1, **settings)


def test_other_dimensions_are_refused():
    with pytest.raises(ConfigError, match="spatial_dims is 4; use 2 or 3"):
        ResNet(4, 1, depth=18, widths=WIDTHS)
