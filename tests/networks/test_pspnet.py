import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from medseg.errors import ConfigError
from medseg.networks.blocks import BatchNorm, InstanceNorm
from medseg.networks.encoders import ResNet
from medseg.networks.pspnet import PSPNet, PyramidPooling

NARROW = {"encoder": "resnet18", "widths": (4, 4, 6, 8, 8), "head_width": 8}
SIZE = (33, 47, 20)
CONV = {2: F.conv2d, 3: F.conv3d}
POOL = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
MODE = {2: "bilinear", 3: "trilinear"}

both_dimensions = pytest.mark.parametrize("spatial_dims", [2, 3])
every_norm = pytest.mark.parametrize("norm", ["batch", "instance"])


def count(network):
    return sum(weight.numel() for weight in network.parameters())


def test_the_published_form_has_the_published_parameters():
    with torch.device("meta"):
        assert count(PSPNet(2, 3, 21, auxiliary_head=True)) == 49_081_578  # semseg's release, PSPNet-50
        # without: 3x3 convolution 1024 -> 256, its norm, classifier
        assert count(PSPNet(2, 3, 21)) == 49_081_578 - (1024 * 256 * 9 + 2 * 256) - (256 * 21 + 21)


def test_the_published_form_computes_as_much_as_its_authors_release():
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        PSPNet(2, 3, 21).eval()(torch.empty(1, 3, 97, 113))
    # counted in semseg, whose pooling is not counted; ours is products with matrices: per channel of the 13 x 15 map,
    # 2 operations a product, 13 * 15 * n for the first axis and n * 15 * n for the second, n = 1, 2, 3, 6
    pooling = 2 * 2048 * sum(13 * 15 * bins + bins * 15 * bins for bins in (1, 2, 3, 6))
    assert (counter.get_total_flops() - pooling) / 1e9 == pytest.approx(17.531, abs=6e-4)


@both_dimensions
@pytest.mark.parametrize("size", [(9, 7, 5), (3, 13, 6), (1, 2, 1)])
def test_pyramid_pooling_is_the_paper_s_written_with_torch_s_pooling(spatial_dims, size, random_statistics):
    pyramid = random_statistics(PyramidPooling(spatial_dims, 8, width=3)).double().eval()
    weights = pyramid.state_dict()
    features = torch.randn(2, 8, *size[:spatial_dims], dtype=torch.float64)
    expected = [features]
    for branch, bins in enumerate((1, 2, 3, 6)):
        norm = [weights[f"branches.{branch}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        pooled = CONV[spatial_dims](POOL[spatial_dims](features, bins), weights[f"branches.{branch}.0.weight"])
        pooled = F.batch_norm(pooled, *norm).relu()
        expected.append(F.interpolate(pooled, size[:spatial_dims], mode=MODE[spatial_dims], align_corners=False))
    torch.testing.assert_close(pyramid(features), torch.cat(expected, 1))


def test_every_block_of_the_last_two_stages_is_dilated():
    with torch.device("meta"):
        encoder = PSPNet(2, 3, 21).encoder
    for stage, blocks, rate in ((encoder.layer2, 4, 1), (encoder.layer3, 6, 2), (encoder.layer4, 3, 4)):
        assert [block.conv2.dilation for block in stage] == [(rate, rate)] * blocks
    assert encoder.strides[-2:] == (8, 8)


def test_the_whole_network_is_torchvision_s_dilated_resnet_and_the_paper_s_head(
    torchvision_models, same_weights, random_statistics
):
    theirs = torchvision_models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    del theirs.fc
    for stage, rate in ((theirs.layer3, 2), (theirs.layer4, 4)):
        for block in stage:  # torchvision leaves the first block of a stage the rate before
            block.conv2.dilation = block.conv2.padding = (rate, rate)
    theirs = random_statistics(theirs).double().eval()
    ours = PSPNet(2, 3, 4, deep_stem=False, head_width=8, bin_width=3, auxiliary_head=True, return_heads=True)
    ours = random_statistics(ours).double().eval()
    same_weights(ours.encoder, theirs)
    weights = ours.state_dict()

    def layer(features, name, padding=0):
        features = F.conv2d(features, weights[f"{name}.0.weight"], padding=padding)
        norm = [weights[f"{name}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(features, *norm).relu()

    def head(features, name):
        features = layer(features, f"{name}.0", padding=1)
        return F.conv2d(features, weights[f"{name}.2.weight"], weights[f"{name}.2.bias"])

    image = torch.randn(2, 3, 65, 49, dtype=torch.float64)
    with torch.inference_mode():
        features = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        middle = theirs.layer3(theirs.layer2(theirs.layer1(features)))
        deep = theirs.layer4(middle)
        assert deep.shape == (2, 2048, 9, 7)
        means = [
            layer(F.adaptive_avg_pool2d(deep, bins), f"pyramid.branches.{i}") for i, bins in enumerate((1, 2, 3, 6))
        ]
        means = [F.interpolate(mean, deep.shape[2:], mode="bilinear", align_corners=False) for mean in means]
        expected = F.interpolate(
            head(torch.cat([deep, *means], 1), "head"), image.shape[2:], mode="bilinear", align_corners=False
        )
        main, auxiliary = ours(image)
        assert expected.std() > 1e-2
        torch.testing.assert_close(main, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(auxiliary, head(middle, "auxiliary_head"), atol=1e-5, rtol=1e-5)


@both_dimensions
def test_the_auxiliary_head_reads_the_third_stage(spatial_dims):
    network = PSPNet(spatial_dims, 1, 3, auxiliary_head=True, dropout=0, **NARROW)
    image = torch.randn(2, 1, *SIZE[:spatial_dims])
    main, auxiliary = network.train()(image)
    assert main.shape == (2, 3, *SIZE[:spatial_dims])
    assert auxiliary.shape == (2, 3, *(5, 6, 3)[:spatial_dims])  # ceil(33 / 8), ceil(47 / 8), ceil(20 / 8)
    auxiliary.square().sum().backward()
    assert network.encoder.layer3[0].conv1.weight.grad.any()
    assert network.encoder.layer4[0].conv1.weight.grad is None
    assert network.eval()(image).shape == main.shape
    assert network.head_weights == (1, 0.4)


@both_dimensions
def test_heads_are_returned_in_evaluation_when_asked_for(spatial_dims):
    network = PSPNet(spatial_dims, 1, 3, auxiliary_head=True, return_heads=True, **NARROW).eval()
    assert len(network(torch.randn(1, 1, *SIZE[:spatial_dims]))) == 2


@every_norm
@both_dimensions
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 1), (17, 9, 12)])
def test_one_image_trains_down_to_one_voxel(spatial_dims, norm, size):
    settings = {"auxiliary_head": True, "graph_reasoning": True, "deep_stem": False}
    network = PSPNet(spatial_dims, 2, 3, norm=norm, **settings, **NARROW).train()
    image = torch.randn(1, 2, *size[:spatial_dims])
    main, auxiliary = network(image)
    assert main.shape[2:] == image.shape[2:]
    (main.square().sum() + auxiliary.square().sum()).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    assert network.eval()(image).isfinite().all()


@both_dimensions
def test_the_whole_image_is_seen_from_every_voxel(spatial_dims):
    # the mean over the one bin reaches from the last voxel to the first, convolutions of this depth do not
    network = PyramidPooling(spatial_dims, 8, bins=(1,), norm=None).double().eval()
    features = torch.rand(1, 8, *SIZE[:spatial_dims], dtype=torch.float64)
    other = features.clone()
    other.flatten(2)[:, :, -1] += 100
    first = (network(other) - network(features)).flatten(2)[0, 8:, 0]
    assert (first.abs() > 1e-6).any()


@both_dimensions
def test_graph_reasoning_works_on_the_deepest_map(spatial_dims):
    torch.manual_seed(0)
    network = PSPNet(spatial_dims, 1, 2, graph_reasoning=True, **NARROW).eval()
    assert network.reasoning.state.in_channels == network.encoder.widths[-1] == 8
    image = torch.randn(1, 1, *SIZE[:spatial_dims])
    expected = network(image)
    network.reasoning.back[0].weight.data.mul_(5)
    assert not torch.allclose(network(image), expected)


def test_dropout_acts_only_while_training():
    network, image = PSPNet(2, 1, 2, dropout=0.5, **NARROW), torch.randn(2, 1, *SIZE[:2])
    assert not torch.allclose(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))


@pytest.mark.parametrize("bins", [(), (0, 2)])
def test_bins_must_be_positive(bins):
    with pytest.raises(ConfigError, match=r"bins is \(.*\); use whole numbers, 1 or more"):
        PyramidPooling(2, 8, bins=bins)


def test_an_encoder_module_keeps_its_own_stride():
    encoder = ResNet(2, 1, depth=18, widths=(4, 4, 6, 8, 8), output_stride=16)
    assert PSPNet(2, 1, 2, encoder=encoder).eval()(torch.randn(1, 1, 33, 47)).shape == (1, 2, 33, 47)
    with pytest.raises(ConfigError, match="output_stride is 8, but the encoder module's is 16; leave it out"):
        PSPNet(2, 1, 2, encoder=encoder, output_stride=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"return_heads": True}, "return_heads has no extra heads to return; set auxiliary_head=True too"),
        ({"bins": (0, 2)}, r"bins is \(0, 2\); use whole numbers, 1 or more"),
        ({"bin_width": 0}, "bin_width is 0; use whole numbers, 1 or more"),
        ({"head_width": 0}, "head_width is 0; use whole numbers, 1 or more"),
        ({"dropout": -0.5}, "dropout is -0.5; use a probability"),
        ({"encoder": "vgg11", "deep_stem": True}, r"encoder is 'vgg11'; leave deep_stem out \(of a ResNet\)"),
    ],
)
def test_settings_that_do_nothing_or_are_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PSPNet(2, 1, 2, **{**NARROW, **settings})


@pytest.mark.parametrize("settings", [{"deep_stem": True}, {"dilation": "every_block"}, {"multi_grid": (1, 2)}])
def test_what_shapes_an_encoder_is_refused_beside_a_module(settings):
    encoder = ResNet(2, 1, depth=18, widths=(4, 4, 6, 8, 8), output_stride=8)
    with pytest.raises(ConfigError, match=f"encoder is a module; set {next(iter(settings))} where it is made"):
        PSPNet(2, 1, 2, encoder=encoder, **settings)


def test_a_vgg_needs_no_further_setting():
    encoder = {"encoder": "vgg11", "widths": (4, 4, 6, 8, 8)}
    assert PSPNet(2, 1, 2, head_width=8, **encoder).eval()(torch.randn(1, 1, 33, 47)).shape == (1, 2, 33, 47)


@pytest.mark.parametrize(
    ("norm", "kinds"), [("default", {BatchNorm}), ("batch", {BatchNorm}), ("instance", {InstanceNorm}), (None, set())]
)
def test_a_norm_is_everywhere_or_nowhere(norm, kinds):
    network = PSPNet(2, 1, 2, norm=norm, auxiliary_head=True, graph_reasoning=True, **NARROW)
    for part in (network.encoder, network.pyramid, network.head, network.auxiliary_head, network.reasoning):
        assert {type(module) for module in part.modules() if isinstance(module, BatchNorm | InstanceNorm)} == kinds
