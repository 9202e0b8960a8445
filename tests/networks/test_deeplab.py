import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from medseg.errors import ConfigError
from medseg.networks.aspp import ASPP, AtrousClassifiers, separable_conv_norm_act
from medseg.networks.blocks import BatchNorm, InstanceNorm
from medseg.networks.deeplab_v1 import DeepLabV1
from medseg.networks.deeplab_v2 import DeepLabV2
from medseg.networks.deeplab_v3 import DeepLabV3, DeepLabV3Plus
from medseg.networks.encoders import ResNet

WIDTHS = (4, 4, 8, 8, 8)
RESNET = {"encoder": "resnet18", "widths": WIDTHS}
SIZE = (33, 47, 20)
CONV = {2: F.conv2d, 3: F.conv3d}
POOL = {2: F.max_pool2d, 3: F.max_pool3d}
MODE = {2: "bilinear", 3: "trilinear"}
TORCHVISION = {
    "output_stride": 8, "multi_grid": None, "dilation": "torchvision", "head_convs": 1, "auxiliary_head": True
}  # fmt: skip
NARROW = {
    "v1": (DeepLabV1, {"widths": WIDTHS, "head_width": 8}),
    "v2": (DeepLabV2, {**RESNET}),
    "v3": (DeepLabV3, {**RESNET, "multi_grid": (1, 2), "aspp_width": 8}),
    "v3 with all": (
        DeepLabV3, {**RESNET, **TORCHVISION, "return_heads": True, "aspp_width": 8, "graph_reasoning": True}
    ),
    "v3+": (DeepLabV3Plus, {**RESNET, "aspp_width": 8, "low_level_width": 4}),
    "v3+ with all": (
        DeepLabV3Plus,
        {**RESNET, "output_stride": 8, "aspp_width": 8, "low_level_width": 4, "separable": True,
         "graph_reasoning": True},
    ),
}  # fmt: skip
PUBLISHED = {
    "v1 LargeFOV": (DeepLabV1, {}, 20_505_429),
    "v2 ResNet-101": (DeepLabV2, {}, 44_048_532),
    "v3 ResNet-101": (DeepLabV3, {}, 58_040_661),
    "v3 ResNet-50, torchvision": (DeepLabV3, {**TORCHVISION, "encoder": "resnet50"}, 42_004_074),
    "v3 ResNet-101, torchvision": (DeepLabV3, {**TORCHVISION, "encoder": "resnet101"}, 60_996_202),
    "v3+ ResNet-101": (DeepLabV3Plus, {}, 59_344_309),
    "v3+ ResNet-101, multi-grid": (DeepLabV3Plus, {"multi_grid": (1, 2, 4)}, 59_344_309),
    "v3+ ResNet-50, VainF": (DeepLabV3Plus, {"encoder": "resnet50", "head_convs": 1}, 39_761_845),
}

both_dimensions = pytest.mark.parametrize("spatial_dims", [2, 3])
every_norm = pytest.mark.parametrize("norm", ["batch", "instance"])
every_network = pytest.mark.parametrize(("network", "settings"), NARROW.values(), ids=NARROW.keys())


def batch_norm(features, weights, name):
    keys = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(features, *[weights[f"{name}.{key}"] for key in keys])


@pytest.mark.parametrize(("network", "settings", "parameters"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_forms_have_the_published_parameters(network, settings, parameters):
    with torch.device("meta"):
        assert sum(weight.numel() for weight in network(2, 3, 21, **settings).parameters()) == parameters


CAFFE = {"depth": 101, "output_stride": 16, "multi_grid": (1, 2, 4), "dilation": "every_block", "stride_in_1x1": True}
COUNTED = {  # GFLOP (2 a multiplication) for one RGB image and 21 classes, counted in other implementations
    "v1": (DeepLabV1, {}, (129, 161), 21.320),
    "v2, kazuto1011": (DeepLabV2, {}, (129, 161), 31.892),
    "v3, kazuto1011": (DeepLabV3, {"caffe": True}, (129, 161), 12.625),
    "v3+, kazuto1011": (DeepLabV3Plus, {"caffe": True}, (129, 161), 16.163),
    "v3 ResNet-50, torchvision": (
        DeepLabV3, {**TORCHVISION, "encoder": "resnet50", "return_heads": True}, (161, 193), 44.362
    ),
    "v3 ResNet-101, torchvision": (
        DeepLabV3, {**TORCHVISION, "encoder": "resnet101", "return_heads": True}, (161, 193), 64.249
    ),
    "v3+ ResNet-50, VainF": (DeepLabV3Plus, {"encoder": "resnet50", "head_convs": 1}, (128, 160), 9.307),
}  # fmt: skip


@pytest.mark.parametrize(("network", "settings", "size", "gigaflops"), COUNTED.values(), ids=COUNTED.keys())
def test_published_forms_compute_as_much_as_other_implementations(network, settings, size, gigaflops):
    settings = dict(settings)
    with torch.device("meta"):
        if settings.pop("caffe", False):
            settings["encoder"] = ResNet(2, 3, **CAFFE)
        ours, image = network(2, 3, 21, **settings).eval(), torch.empty(1, 3, *size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ours(image)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gigaflops, abs=6e-4)


@both_dimensions
def test_v1_is_the_paper_s_vgg_written_layer_by_layer(spatial_dims):
    network = DeepLabV1(spatial_dims, 2, 3, widths=WIDTHS, head_width=8).double().eval()
    weights = list(network.parameters())
    pairs = iter(zip(weights[::2], weights[1::2], strict=True))
    image = torch.randn(1, 2, *(41, 67, 25)[:spatial_dims], dtype=torch.float64)
    features = image
    conv, pool = CONV[spatial_dims], POOL[spatial_dims]
    for convs, stride, rate in ((2, 2, 1), (2, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 2)):
        for _ in range(convs):
            features = conv(features, *next(pairs), padding=rate, dilation=rate).relu()
        features = pool(features, 3, stride, padding=1)
    features = conv(features, *next(pairs), padding=12, dilation=12).relu()
    features = conv(features, *next(pairs)).relu()
    logits = conv(features, *next(pairs))
    assert next(pairs, None) is None
    assert logits.shape[2:] == (6, 9, 4)[:spatial_dims]  # (n - 1) // 8 + 1
    expected = F.interpolate(logits, image.shape[2:], mode=MODE[spatial_dims], align_corners=False)
    torch.testing.assert_close(network(image), expected)


def caffe_bottleneck(features, weights, name, stride, rate):
    """Bottleneck with its stride in the first 1x1 convolution, as the networks of He et al. 2016 in Caffe."""
    out = F.conv2d(features, weights[f"{name}.conv1.weight"], stride=stride)
    out = batch_norm(out, weights, f"{name}.bn1").relu()
    out = F.conv2d(out, weights[f"{name}.conv2.weight"], padding=rate, dilation=rate)
    out = batch_norm(out, weights, f"{name}.bn2").relu()
    out = batch_norm(F.conv2d(out, weights[f"{name}.conv3.weight"]), weights, f"{name}.bn3")
    if f"{name}.downsample.0.weight" in weights:
        features = F.conv2d(features, weights[f"{name}.downsample.0.weight"], stride=stride)
        features = batch_norm(features, weights, f"{name}.downsample.1")
    return (out + features).relu()


def test_v2_is_the_paper_s_resnet_written_block_by_block(random_statistics):
    network = random_statistics(DeepLabV2(2, 3, 4, encoder="resnet50", widths=WIDTHS)).double().eval()
    weights = network.state_dict()
    image = torch.randn(2, 3, 65, 49, dtype=torch.float64)
    features = F.conv2d(image, weights["encoder.conv1.weight"], stride=2, padding=3)
    features = F.max_pool2d(batch_norm(features, weights, "encoder.bn1").relu(), 3, 2, padding=1)
    # output stride 8: the last two stages keep the grid and every block of them is dilated, by 2 and 4
    for stage, (blocks, first_stride, rate) in enumerate([(3, 1, 1), (4, 2, 1), (6, 1, 2), (3, 1, 4)], start=1):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            features = caffe_bottleneck(features, weights, f"encoder.layer{stage}.{block}", stride, rate)
    biases = [name for name in weights if name.startswith("head") and name.endswith("bias")]
    logits = sum(
        F.conv2d(features, weights[name.replace("bias", "weight")], weights[name], padding=rate, dilation=rate)
        for name, rate in zip(biases, (6, 12, 18, 24), strict=True)
    )
    assert logits.shape == (2, 4, 9, 7)
    expected = F.interpolate(logits, (65, 49), mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(image), expected)


@both_dimensions
def test_rates_are_as_wide_in_the_image_at_every_output_stride(spatial_dims):
    expected = {8: [12, 24, 36], 16: [6, 12, 18], 32: [3, 6, 9]}
    for network in (DeepLabV3, DeepLabV3Plus):
        for output_stride, rates in expected.items():
            settings = {**RESNET, "multi_grid": None, "output_stride": output_stride, "aspp_width": 8}
            with torch.device("meta"):
                branches = network(spatial_dims, 1, 2, **settings).aspp.atrous
            assert [branch[0].dilation for branch in branches] == [(rate,) * spatial_dims for rate in rates]


def test_v3_multiplies_the_last_stage_by_its_multi_grid():
    with torch.device("meta"):
        encoder = DeepLabV3(2, 3, 21).encoder
    # output stride 16: 2 * (1, 2, 4), section 4.2.1 of the paper
    assert [block.conv2.dilation[0] for block in encoder.layer4] == [2, 4, 8]
    assert {block.conv2.dilation[0] for block in encoder.layer3} == {1}


@pytest.mark.slow
def test_v3_equals_torchvision(torchvision_models, same_weights, random_statistics):
    theirs = torchvision_models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=4, aux_loss=True
    )
    theirs = random_statistics(theirs).double().eval()
    ours = DeepLabV3(2, 3, 4, encoder="resnet50", return_heads=True, **TORCHVISION).double().eval()
    same_weights(ours, theirs)
    image = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    with torch.inference_mode():
        main, auxiliary = ours(image)
        expected = theirs(image)
    torch.testing.assert_close(main, expected["out"], atol=1e-5, rtol=0)
    auxiliary = F.interpolate(auxiliary, (65, 97), mode="bilinear", align_corners=False)
    torch.testing.assert_close(auxiliary, expected["aux"], atol=1e-5, rtol=0)


def test_v3_equals_segmentation_models_pytorch(smp, same_weights, random_statistics):
    # before the last interpolation, in which they align corners
    theirs = smp.DeepLabV3("resnet34", encoder_weights=None, classes=4)
    theirs = random_statistics(theirs).double().eval()
    ours = DeepLabV3(2, 3, 4, encoder="resnet34", **{**TORCHVISION, "dilation": "every_block", "auxiliary_head": False})
    ours = ours.double().eval()
    same_weights(ours, theirs)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        expected = theirs.segmentation_head[0](theirs.decoder(theirs.encoder(image)))
        torch.testing.assert_close(ours.head(ours.aspp(ours.encoder(image)[-1])), expected, atol=1e-5, rtol=0)


def test_v3_plus_equals_segmentation_models_pytorch(smp, same_weights, random_statistics):
    # they have one of the decoder's two convolutions before the interpolation, and align corners
    theirs = smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=2)
    theirs = random_statistics(theirs).double().eval()
    theirs.decoder.up = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)
    theirs.segmentation_head[1] = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)
    ours = DeepLabV3Plus(2, 3, 2, encoder="resnet50", rates=(12, 24, 36), separable=True, head_convs=1)
    ours.aspp = nn.Sequential(ours.aspp, separable_conv_norm_act(2, 256, 256))
    ours = ours.double().eval()
    assert sum(weight.numel() for weight in ours.parameters()) == 26_677_842
    same_weights(ours, theirs)
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), theirs(image), atol=1e-5, rtol=0)


@both_dimensions
@every_network
def test_logits_lie_on_the_grid_of_any_image(network, settings, spatial_dims):
    settings = {key: value for key, value in settings.items() if key != "return_heads"}
    network = network(spatial_dims, 1, 3, **settings).eval()
    for size in (SIZE, (1, 1, 1), (2, 3, 1), (16, 40, 8)):
        assert network(torch.randn(2, 1, *size[:spatial_dims])).shape == (2, 3, *size[:spatial_dims])


@both_dimensions
@every_norm
@every_network
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 1), (17, 9, 12)])
def test_one_image_trains_down_to_one_voxel(network, settings, spatial_dims, norm, size):
    network = network(spatial_dims, 2, 3, norm=norm, **settings).train()
    image = torch.randn(1, 2, *size[:spatial_dims])
    logits = network(image)
    heads = logits if isinstance(logits, list) else [logits]
    assert heads[0].shape[2:] == image.shape[2:]
    sum(head.square().sum() for head in heads).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())
    outputs = network.eval()(image)
    assert all(head.isfinite().all() for head in (outputs if isinstance(outputs, list) else [outputs]))


@both_dimensions
def test_the_auxiliary_head_reads_the_third_stage(spatial_dims):
    network = DeepLabV3(spatial_dims, 1, 3, multi_grid=(1, 2), auxiliary_head=True, aspp_width=8, **RESNET)
    image = torch.randn(2, 1, *SIZE[:spatial_dims])
    main, auxiliary = network.train()(image)
    assert main.shape == (2, 3, *SIZE[:spatial_dims])
    assert auxiliary.shape == (2, 3, *(3, 3, 2)[:spatial_dims])  # ceil(33 / 16), ceil(47 / 16), ceil(20 / 16)
    auxiliary.square().sum().backward()
    assert network.encoder.layer3[0].conv1.weight.grad.any()
    assert network.encoder.layer4[0].conv1.weight.grad is None
    assert network.eval()(image).shape == main.shape
    assert network.head_weights == (1, 0.5)


@both_dimensions
def test_v3_plus_may_have_an_auxiliary_head(spatial_dims):
    settings = {"aspp_width": 8, "low_level_width": 4, "auxiliary_head": True, **RESNET}
    network = DeepLabV3Plus(spatial_dims, 1, 3, **settings)
    image = torch.randn(2, 1, *SIZE[:spatial_dims])
    main, auxiliary = network.train()(image)
    assert main.shape == (2, 3, *SIZE[:spatial_dims])
    assert auxiliary.shape == (2, 3, *(3, 3, 2)[:spatial_dims])  # the third stage's grid, 16 voxels a side
    assert network.eval()(image).shape == main.shape
    assert network.head_weights == (1, 0.5)
    assert len(DeepLabV3Plus(spatial_dims, 1, 3, **settings, return_heads=True).eval()(image)) == 2


@pytest.mark.parametrize("name", ["v1", "v2", "v3", "v3+"])
def test_dropout_acts_only_while_training(name):
    network, settings = NARROW[name]
    network, image = network(2, 1, 2, dropout=0.5, **settings), torch.randn(2, 1, *SIZE[:2])
    assert not torch.allclose(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))


@both_dimensions
def test_aspp_adds_the_mean_of_the_image(spatial_dims):
    aspp = ASPP(spatial_dims, 4, 8, rates=(2, 3), norm=None).double().eval()
    features = torch.randn(2, 4, *SIZE[:spatial_dims], dtype=torch.float64)
    conv = CONV[spatial_dims]
    branches = [conv(features, aspp.point[0].weight, aspp.point[0].bias)]
    for branch, rate in zip(aspp.atrous, (2, 3), strict=True):
        branches.append(conv(features, branch[0].weight, branch[0].bias, padding=rate, dilation=rate))
    mean = features.flatten(2).mean(2).view(2, 4, *(1,) * spatial_dims)
    mean = conv(mean, aspp.image_pooling[0].weight, aspp.image_pooling[0].bias)
    branches.append(mean + torch.zeros_like(branches[0]))
    joined = conv(torch.cat(branches, 1).relu(), aspp.projection[0].weight, aspp.projection[0].bias).relu()
    torch.testing.assert_close(aspp(features), joined)


@both_dimensions
def test_a_separable_convolution_is_one_kernel_of_rank_one_a_channel(spatial_dims):
    block = separable_conv_norm_act(spatial_dims, 3, 5, dilation=2, norm=None).double()
    features = torch.randn(1, 3, *SIZE[:spatial_dims], dtype=torch.float64)
    # the full kernel of output o and input i: point[o, i] * depth[i]
    kernel = block[1].weight * block[0].weight.transpose(0, 1)
    expected = CONV[spatial_dims](features, kernel, block[1].bias, padding=2, dilation=2).relu()
    torch.testing.assert_close(block(features), expected)


@both_dimensions
def test_a_small_detail_reaches_v3_plus_past_its_deepest_map(spatial_dims):
    network = DeepLabV3Plus(spatial_dims, 1, 2, aspp_width=8, low_level_width=4, **RESNET).eval()
    for weight in network.aspp.parameters():
        weight.data.zero_()
    image = torch.randn(2, 1, *SIZE[:spatial_dims])
    first, second = network(image)
    assert (first - second).abs().max() > 1e-4
    for weight in network.projection.parameters():
        weight.data.zero_()
    first, second = network(image)
    assert torch.equal(first, second)


@pytest.mark.parametrize("network", [DeepLabV3, DeepLabV3Plus])
def test_an_encoder_module_keeps_its_own_stride(network):
    encoder = ResNet(2, 1, depth=18, widths=WIDTHS, output_stride=32)
    ours = network(2, 1, 2, encoder=encoder, aspp_width=8).eval()
    assert ours(torch.randn(1, 1, 33, 47)).shape == (1, 2, 33, 47)
    with pytest.raises(ConfigError, match="output_stride is 16, but the encoder module's is 32; leave it out"):
        network(2, 1, 2, encoder=encoder, output_stride=16)


@pytest.mark.parametrize("network", [DeepLabV1, DeepLabV2])
def test_an_encoder_module_of_one_s_own_is_used(network):
    encoder = ResNet(2, 1, depth=18, widths=WIDTHS)
    ours = network(2, 1, 2, encoder=encoder).eval()
    assert ours.encoder is encoder
    assert ours(torch.randn(1, 1, 33, 47)).shape == (1, 2, 33, 47)


@both_dimensions
@pytest.mark.parametrize("encoder", ["vgg11", "vgg13_bn"])
def test_v3_and_v3_plus_take_a_vgg(encoder, spatial_dims):
    image = torch.randn(1, 1, *SIZE[:spatial_dims])
    for network in (DeepLabV3, DeepLabV3Plus):
        ours = network(spatial_dims, 1, 2, encoder=encoder, widths=WIDTHS, aspp_width=8).eval()
        assert ours(image).shape == (1, 2, *SIZE[:spatial_dims])
        for name, value in (("multi_grid", (1, 2, 4)), ("dilation", "torchvision")):
            with pytest.raises(ConfigError, match=f"encoder is '{encoder}'; leave {name} out"):
                network(spatial_dims, 1, 2, encoder=encoder, **{name: value})


class CoarseEncoder(nn.Module):
    widths, strides = (4, 4), (2, 8)

    def forward(self, image):
        return [image, image]


def test_v3_plus_needs_a_level_of_stride_4():
    with pytest.raises(ConfigError, match=r"the encoder has strides \[2, 8\]; its decoder needs a level of 4"):
        DeepLabV3Plus(2, 1, 2, encoder=CoarseEncoder())


@pytest.mark.parametrize(("network", "known"), [(DeepLabV1, "'vgg11' or"), (DeepLabV2, "'resnet18' or")])
def test_an_unknown_encoder_is_refused(network, known):
    with pytest.raises(ConfigError, match=f"encoder is 'alexnet'; use {known}"):
        network(2, 1, 2, encoder="alexnet")


@pytest.mark.parametrize(("network", "encoder"), [(DeepLabV1, "vgg11"), (DeepLabV2, "resnet18")])
@both_dimensions
def test_v1_and_v2_run_at_output_stride_16_with_rates_as_wide_in_the_image(network, encoder, spatial_dims):
    ours = network(spatial_dims, 1, 2, encoder=encoder, widths=WIDTHS, output_stride=16).eval()
    assert ours.encoder.strides[-1] == 16
    image = torch.randn(1, 1, *SIZE[:spatial_dims])
    assert ours.encoder(image)[-1].shape[2:] == (3, 3, 2)[:spatial_dims]  # 33, 47 and 20 over 16, rounded up
    assert ours(image).shape == (1, 2, *SIZE[:spatial_dims])
    layers = [ours.fc6[0]] if network is DeepLabV1 else ours.head.classifiers
    assert [layer.dilation[0] for layer in layers] == ([6] if network is DeepLabV1 else [3, 6, 9, 12])
    with pytest.raises(ConfigError, match="output_stride is 4; use 32 or 16 or 8"):
        network(spatial_dims, 1, 2, encoder=encoder, widths=WIDTHS, output_stride=4)


def test_v2_takes_torchvision_s_strides_with_a_file_of_weights(tmp_path):
    def first_strides(**settings):
        block = DeepLabV2(2, 3, 2, encoder="resnet50", widths=WIDTHS, **settings).encoder.layer2[0]
        return block.conv1.stride[0], block.conv2.stride[0]

    torch.save(ResNet(2, 3, depth=50, widths=WIDTHS).state_dict(), tmp_path / "resnet50.pth")
    weights = tmp_path / "resnet50.pth"
    assert first_strides() == (2, 1)  # the paper's
    assert first_strides(weights=weights) == (1, 2)  # torchvision's, whose names are the same
    assert first_strides(weights=weights, stride_in_1x1=True) == (2, 1)
    assert first_strides(stride_in_1x1=False) == (1, 2)


MODULE_REFUSES = [
    (DeepLabV1, {"widths": WIDTHS}, "widths"),
    (DeepLabV2, {"stride_in_1x1": False}, "stride_in_1x1"),
    (DeepLabV3, {"multi_grid": (1, 2)}, "multi_grid"),
    (DeepLabV3, {"dilation": "every_block"}, "dilation"),
    (DeepLabV3Plus, {"multi_grid": (1, 2)}, "multi_grid"),
    (DeepLabV3Plus, {"dilation": "torchvision"}, "dilation"),
]


@pytest.mark.parametrize(("network", "settings", "name"), MODULE_REFUSES)
def test_what_shapes_an_encoder_is_refused_beside_a_module(network, settings, name):
    encoder = ResNet(2, 1, depth=18, widths=WIDTHS)
    with pytest.raises(ConfigError, match=f"encoder is a module; set {name} where it is made"):
        network(2, 1, 2, encoder=encoder, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("v1", {"rate": 0}, "rate is 0; use whole numbers, 1 or more"),
        ("v1", {"head_width": 0}, "head_width is 0"),
        ("v2", {"rates": (6, 0)}, r"rates is \(6, 0\)"),
        ("v2", {"dropout": 1.5}, "dropout is 1.5; use a probability"),
        ("v3", {"head_convs": -1}, "head_convs is -1; use whole numbers, 0 or more"),
        ("v3", {"aspp_width": 0}, "aspp_width is 0"),
        ("v3", {"return_heads": True}, "return_heads has no extra heads to return; set auxiliary_head=True too"),
        ("v3+", {"head_convs": -1}, "head_convs is -1; use whole numbers, 0 or more"),
        ("v3+", {"low_level_width": 0}, "low_level_width is 0"),
        ("v3+", {"return_heads": True}, "return_heads has no extra heads to return; set auxiliary_head=True too"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, message):
    network, narrow = NARROW[name]
    with pytest.raises(ConfigError, match=message):
        network(2, 1, 2, **{**narrow, **settings})


@pytest.mark.parametrize("name", NARROW)
def test_no_norm_means_none_also_in_the_encoder(name):
    network, settings = NARROW[name]
    parts = network(2, 1, 2, norm=None, **settings).modules()
    assert not [part for part in parts if isinstance(part, BatchNorm | InstanceNorm)]


@pytest.mark.parametrize(("encoder", "own"), [("vgg11", set()), ("vgg11_bn", {BatchNorm}), ("resnet18", {BatchNorm})])
@pytest.mark.parametrize("network", [DeepLabV3, DeepLabV3Plus])
def test_the_default_norm_leaves_the_encoder_its_own(network, encoder, own):
    ours = network(2, 1, 2, encoder=encoder, widths=WIDTHS, aspp_width=8)
    for part, kinds in ((ours.encoder, own), (ours.aspp, {BatchNorm})):
        assert {type(module) for module in part.modules() if isinstance(module, BatchNorm | InstanceNorm)} == kinds


@pytest.mark.parametrize("rates", [(), (6, 0)])
@pytest.mark.parametrize("module", [ASPP, AtrousClassifiers])
def test_rates_must_be_positive(module, rates):
    with pytest.raises(ConfigError, match=r"rates is \(.*\); use whole numbers, 1 or more"):
        module(2, 4, 3, rates=rates)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@both_dimensions
@pytest.mark.parametrize("name", ["v3 with all", "v3+ with all"])
def test_onnx_of_a_form_with_all_gives_equal_logits(name, spatial_dims, tmp_path, random_statistics):
    import onnxruntime

    network, settings = NARROW[name]
    settings = {key: value for key, value in settings.items() if key != "return_heads"}
    network = random_statistics(network(spatial_dims, 1, 3, **settings)).eval()
    image = torch.randn(1, 1, *SIZE[:spatial_dims])
    torch.onnx.export(network, (image,), tmp_path / "deeplab.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "deeplab.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(logits, network(image).numpy(), atol=1e-4, rtol=1e-4)
