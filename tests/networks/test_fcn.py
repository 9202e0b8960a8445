import pytest
import torch
from torch.nn import functional as F

from medseg.errors import ConfigError
from medseg.networks.blocks import CONV, DROPOUT, BatchNorm, InstanceNorm
from medseg.networks.encoders import VGG, ResNet
from medseg.networks.fcn import FCN, linear_upsampling

WIDTHS = (4, 4, 6, 8, 8)
NARROW = {"widths": WIDTHS, "fc_width": 8, "fc_kernel_size": 3}
SIZE = (33, 47, 20)
FORMS = {
    "8s": NARROW,
    "16s": {**NARROW, "variant": "16s", "norm": "batch"},
    "32s": {**NARROW, "variant": "32s", "norm": "instance", "activation": "leaky_relu"},
    "wide kernel": {**NARROW, "fc_kernel_size": 7},
    "resnet": {"encoder": "resnet18", "widths": WIDTHS},
    "resnet at stride 16": {"encoder": "resnet18", "widths": WIDTHS, "output_stride": 16, "dilation": "every_block"},
}

both_dimensions = pytest.mark.parametrize("spatial_dims", [2, 3])
every_variant = pytest.mark.parametrize("variant", ["8s", "16s", "32s"])


@pytest.fixture(params=FORMS.values(), ids=FORMS.keys())
def settings(request):
    return request.param


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("padding", ["same", "pad100"])
@pytest.mark.parametrize(("variant", "published"), [("32s", 136_152_917), ("16s", 134_815_994), ("8s", 134_489_759)])
def test_parameters_on_vgg_are_those_published(variant, padding, published):
    with torch.device("meta"):
        assert parameter_count(FCN(2, 3, 21, variant=variant, padding=padding)) == published


def test_parameters_in_3d_are_those_counted():
    # VGG-16: 27 * (1*64 + 64*64 + 64*128 + 128*128 + 128*256 + 2*256*256 + 256*512 + 5*512*512) = 44,127,936 weights,
    # 4,224 biases; 27*512*256 + 256 = 3,539,200 and 256*256 + 256 = 65,792 in place of fully connected layers; scores
    # (256 + 512 + 256) * 3 + 9 = 3,081; upsamplings 9 * (64 + 64 + 4096) = 38,016
    with torch.device("meta"):
        network = FCN(3, 1, 3, fc_width=256, fc_kernel_size=3)
    assert parameter_count(network) == 44_127_936 + 4_224 + 3_539_200 + 65_792 + 3_081 + 38_016 == 47_778_249


@pytest.mark.parametrize(("depth", "published"), [(50, 35_322_218), (101, 54_314_346)])
def test_parameters_on_resnet_are_those_of_torchvision(depth, published):
    with torch.device("meta"):
        assert parameter_count(FCN(2, 3, 21, encoder=f"resnet{depth}", auxiliary_head=True)) == published


@pytest.mark.parametrize("size", [SIZE, (5, 9, 4), (1, 1, 1), (64, 32, 32)])
@both_dimensions
def test_logits_lie_on_the_grid_of_any_image(settings, spatial_dims, size):
    size = size[:spatial_dims]
    network = FCN(spatial_dims, 2, 3, **settings).eval()
    with torch.inference_mode():
        assert network(torch.randn(2, 2, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (26, 27), (33, 47), (58, 59)])
@every_variant
def test_the_original_padding_leaves_enough_for_any_image(variant, size):
    network = FCN(2, 1, 3, variant=variant, padding="pad100", widths=(2, 2, 2, 2, 2), fc_width=8).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 1, *size)).shape == (1, 3, *size)


def as_published(network, image, crops):
    """The authors' network from torch's functions alone, with their literal `crops`; kernels in their order."""
    kernels = [value for value in network.state_dict().values() if value.ndim == 4]
    biases = [value for key, value in network.state_dict().items() if key.endswith("bias")]
    (vgg, fully_connected), upsamplings = (kernels[:13], kernels[13:15]), kernels[-len(crops) :]
    scores, maps, features, position = list(zip(kernels[15 : -len(crops)], biases[15:], strict=True)), [], image, 0
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            padding = 1 if position else 100
            features = F.relu(F.conv2d(features, vgg[position], biases[position], padding=padding))
            position += 1
        features = F.max_pool2d(features, 2, ceil_mode=True)
        maps.append(features)
    for kernel, bias in zip(fully_connected, biases[13:15], strict=True):
        features = F.relu(F.conv2d(features, kernel, bias))
    logits = F.conv2d(features, *scores[0])
    for upsampling, score, skip, crop in zip(upsamplings[:-1], scores[1:], maps[3:1:-1], crops[:-1], strict=False):
        logits = F.conv_transpose2d(logits, upsampling, stride=2)
        height, width = logits.shape[2:]
        logits = logits + F.conv2d(skip, *score)[:, :, crop : crop + height, crop : crop + width]
    logits = F.conv_transpose2d(logits, upsamplings[-1], stride=upsamplings[-1].shape[-1] // 2)
    return logits[:, :, crops[-1] : crops[-1] + image.shape[2], crops[-1] : crops[-1] + image.shape[3]]


@pytest.mark.parametrize(("variant", "crops"), [("32s", (19,)), ("16s", (5, 27)), ("8s", (5, 9, 31))])
def test_logits_equal_the_original_built_from_torch_functions(variant, crops):
    network = FCN(2, 2, 3, variant=variant, padding="pad100", widths=WIDTHS, fc_width=8).double().eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data.normal_(std=0.1)
    for upsampling in network.head.upsamplings:
        upsampling.weight.data.add_(0.1 * torch.randn_like(upsampling.weight))
    image = torch.randn(2, 2, 71, 90, dtype=torch.float64)
    with torch.inference_mode():
        logits, expected = network(image), as_published(network, image, crops)
    assert expected.std() > 1e-2
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9)


def coordinate_network(spatial_dims, monkeypatch, **settings):
    """FCN of one channel that scores by the mean coordinate along the first axis under each voxel of its maps."""
    network = FCN(spatial_dims, 1, 1, widths=(1,) * 5, fc_width=1, **settings).double().eval()
    for parameter in network.head.scores.parameters():
        parameter.data.fill_(float(parameter.ndim > 1))
    for layer in network.head.fully_connected.modules():
        if hasattr(layer, "kernel_size"):
            layer.weight.data.zero_()
            layer.weight.data[(0, 0, *(side // 2 for side in layer.kernel_size))] = 1
            layer.bias.data.zero_()

    def average_coordinates(padded):
        margin = (padded.shape[2] - network.image_size) // 2
        ramp = (
            torch.arange(padded.shape[2], dtype=padded.dtype) - margin + 1000
        )  # positive, so that ReLU lets it through
        maps = [ramp.reshape(-1, *[1] * (spatial_dims - 1)).expand(padded.shape).contiguous()]
        pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[spatial_dims]
        for _ in range(5):
            maps.append(pool(maps[-1], 2, ceil_mode=True))
        return maps[1:], []

    monkeypatch.setattr(network.encoder, "pooled", average_coordinates)
    return network


@pytest.mark.parametrize(
    ("spatial_dims", "padding", "fc_kernel_size"),
    [(2, "same", 3), (2, "same", 7), (3, "same", 3), (2, "pad100", 7)],
)
@every_variant
def test_every_map_lies_centered_over_the_image(variant, spatial_dims, padding, fc_kernel_size, monkeypatch):
    network = coordinate_network(
        spatial_dims, monkeypatch, variant=variant, padding=padding, fc_kernel_size=fc_kernel_size
    )
    network.image_size = 160
    with torch.inference_mode():
        found = network(torch.zeros(1, 1, 160, *(96, 96)[: spatial_dims - 1], dtype=torch.float64))
    # linear interpolation gives coordinates back wherever all its neighbors exist, once for each of the added scores
    added = {"8s": 3, "16s": 2, "32s": 1}[variant]
    inner = found[(0, 0, slice(48, 112), *[48] * (spatial_dims - 1))] / added - 1000
    torch.testing.assert_close(inner, torch.arange(48, 112, dtype=torch.float64), atol=1e-9, rtol=0)


@both_dimensions
@every_variant
def test_a_block_keeps_its_place(variant, spatial_dims):
    network = FCN(spatial_dims, 1, 1, variant=variant, **{**NARROW, "widths": (1,) * 5, "fc_width": 1}).double().eval()
    for name, parameter in network.named_parameters():
        if "upsamplings" not in name:  # every convolution passes its input on
            parameter.data.zero_()
            if parameter.ndim > 1:
                parameter.data[(0, 0, *(side // 2 for side in parameter.shape[2:]))] = 1
    image = torch.zeros(1, 1, *(96, 160, 128)[:spatial_dims], dtype=torch.float64)
    image[(0, 0, slice(32, 64), slice(64, 96), slice(32, 64))[: spatial_dims + 2]] = 1
    with torch.inference_mode():
        logits = network(image)[0, 0]
    for axis, center in enumerate((47.5, 79.5, 47.5)[:spatial_dims]):
        profile = logits.sum([other for other in range(spatial_dims) if other != axis])
        found = (profile * torch.arange(len(profile))).sum() / profile.sum()
        assert found == pytest.approx(center, abs=1e-9)


@both_dimensions
def test_learned_upsampling_starts_as_linear_interpolation(spatial_dims):
    coarse = torch.randn(1, 3, *(5, 4, 6)[:spatial_dims])
    mode = {2: "bilinear", 3: "trilinear"}[spatial_dims]
    for factor in (2, 8):
        fine = linear_upsampling(spatial_dims, 3, factor, centered=True)(coarse)
        expected = F.interpolate(coarse, scale_factor=factor, mode=mode, align_corners=False)
        inner = (..., *[slice(factor, -factor)] * spatial_dims)  # beyond, torch repeats the border, FCN sees zeros
        assert fine.shape == expected.shape
        torch.testing.assert_close(fine[inner], expected[inner])


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.slow)])
def test_logits_on_resnet_equal_torchvision(depth, torchvision_models, same_weights, random_statistics):
    theirs = getattr(torchvision_models.segmentation, f"fcn_resnet{depth}")(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    ours = FCN(2, 3, 21, encoder=f"resnet{depth}", auxiliary_head=True, return_heads=True)
    same_weights(ours, random_statistics(theirs))
    ours, theirs = ours.double().eval(), theirs.double().eval()
    image = torch.randn(1, 3, 65, 81, dtype=torch.float64)
    with torch.inference_mode():
        (logits, auxiliary), expected = ours(image), theirs(image)
    torch.testing.assert_close(logits, expected["out"], atol=1e-5, rtol=1e-5)
    assert auxiliary.shape[2:] == (9, 11)
    auxiliary = F.interpolate(auxiliary, image.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(auxiliary, expected["aux"], atol=1e-5, rtol=1e-5)


@both_dimensions
def test_a_small_patch_alone_trains_every_parameter(settings, spatial_dims):
    network = FCN(spatial_dims, 1, 3, **settings).train()
    # a ReLU may be silent for one image, dropout takes half of eight channels
    for _ in range(4):
        network(torch.randn(1, 1, *(9, 5, 4)[:spatial_dims])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@both_dimensions
def test_a_batch_equals_its_samples_one_by_one(settings, spatial_dims):
    network = FCN(spatial_dims, 1, 3, **settings).double().eval()
    images = torch.randn(3, 1, *SIZE[:spatial_dims], dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), torch.cat([network(image[None]) for image in images]))


@both_dimensions
def test_the_auxiliary_head_comes_while_training_or_if_asked_for(spatial_dims):
    size = SIZE[:spatial_dims]
    asked = {"encoder": "resnet18", "widths": WIDTHS, "auxiliary_head": True}
    network = FCN(spatial_dims, 1, 3, **asked)
    image = torch.randn(2, 1, *size)
    main, auxiliary = network.train()(image)
    assert main.shape == (2, 3, *size)
    assert auxiliary.shape == (2, 3, *(5, 6, 3)[:spatial_dims])  # 33, 47 and 20 at stride 8, rounded up
    logits = network.eval()(image)
    assert logits.shape == (2, 3, *size)
    always = FCN(spatial_dims, 1, 3, **asked, return_heads=True).eval()
    always.load_state_dict(network.state_dict())
    torch.testing.assert_close(always(image)[0], logits)
    assert network.head_weights == (1.0, 0.4)


@both_dimensions
def test_an_encoder_may_be_a_module(spatial_dims):
    encoder = ResNet(spatial_dims, 2, depth=18, widths=WIDTHS, output_stride=16)
    network = FCN(spatial_dims, 2, 3, encoder=encoder).eval()
    image = torch.randn(1, 2, *SIZE[:spatial_dims])
    assert network.encoder is encoder
    assert network(image).shape == (1, 3, *SIZE[:spatial_dims])


def test_a_vgg_of_another_stride_is_refused():
    with pytest.raises(ConfigError, match="auxiliary_head, return_heads and output_stride need a ResNet encoder"):
        FCN(2, 1, 3, encoder=VGG(2, 1, widths=WIDTHS, output_stride=8), fc_width=8)


@pytest.mark.parametrize("form", [NARROW, FORMS["resnet"]], ids=["vgg", "resnet"])
def test_dropout_acts_only_while_training(form):
    network = FCN(2, 1, 3, **{**form, "norm": "instance"}, dropout=0.5)
    image = torch.randn(1, 1, *SIZE[:2])
    assert not torch.allclose(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))


@both_dimensions
def test_both_wide_layers_are_dropped_and_normalized(spatial_dims):
    layers = list(FCN(spatial_dims, 1, 3, **NARROW, norm="batch", dropout=0.25).head.modules())
    assert [layer.p for layer in layers if isinstance(layer, DROPOUT[spatial_dims])] == [0.25, 0.25]
    assert sum(isinstance(layer, BatchNorm) for layer in layers) == 2
    # the three classifiers have biases, as published; a norm has its own
    convs = [layer for layer in layers if isinstance(layer, CONV[spatial_dims])]
    assert [conv.bias is None for conv in convs] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("spatial_dims", "settings", "message"),
    [
        (3, {"padding": "pad100"}, "padding 'pad100' is the original 2D form; use 'same' in 3D"),
        (2, {"padding": "valid"}, "padding is 'valid'; use 'same' or 'pad100'"),
        (2, {"variant": "4s"}, "variant is '4s'; use '8s' or '16s' or '32s'"),
        (2, {"fc_kernel_size": 4}, "fc_kernel_size is 4; use an odd one, with 'pad100' 7"),
        (2, {"fc_kernel_size": 3, "padding": "pad100"}, "fc_kernel_size is 3; use an odd one, with 'pad100' 7"),
        (2, {"auxiliary_head": True}, "auxiliary_head, return_heads and output_stride need a ResNet encoder"),
        (2, {"output_stride": 8}, "auxiliary_head, return_heads and output_stride need a ResNet encoder"),
        (2, {"return_heads": True}, "auxiliary_head, return_heads and output_stride need a ResNet encoder"),
        (2, {"dilation": "nonsense"}, r"encoder is 'vgg16'; leave dilation out \(of a ResNet\)"),
        (2, {"fc_width": 0}, "fc_width is 0; use whole numbers, 1 or more"),
        (2, {"fc_kernel_size": -1}, "fc_kernel_size is -1; use whole numbers, 1 or more"),
        (2, {"dropout": 1.5}, "dropout is 1.5; use a probability"),
        (2, {"encoder": "resnet18", "variant": "32s"}, "variant, .* need a VGG encoder"),
        (2, {"encoder": "resnet18", "padding": "pad100"}, "padding, .* need a VGG encoder"),
        (2, {"encoder": "resnet18", "fc_width": 8}, "fc_width and fc_kernel_size need a VGG encoder"),
        (2, {"encoder": "resnet18", "fc_kernel_size": 3}, "fc_width and fc_kernel_size need a VGG encoder"),
        (2, {"encoder": "resnet18", "return_heads": True}, "return_heads has no extra heads to return; set auxiliary"),
        (4, {}, "spatial_dims is 4; use 2 or 3"),
    ],
)
def test_contradicting_settings_are_refused(spatial_dims, settings, message):
    narrow = {"widths": WIDTHS} | ({"fc_width": 8} if "encoder" not in settings else {})
    with pytest.raises(ConfigError, match=message):
        FCN(spatial_dims, 1, 3, **{**narrow, **settings})


@pytest.mark.parametrize(
    ("encoder", "norm", "in_encoder", "in_head"),
    [
        ("vgg11", "default", set(), set()),
        ("vgg11_bn", "default", {BatchNorm}, set()),
        ("resnet18", "default", {BatchNorm}, {BatchNorm}),
        ("vgg11_bn", None, set(), set()),
        ("resnet18", None, set(), set()),
        ("vgg11", "instance", {InstanceNorm}, {InstanceNorm}),
        ("resnet18", "instance", {InstanceNorm}, {InstanceNorm}),
    ],
)
def test_no_norm_means_none_and_default_the_published_one(encoder, norm, in_encoder, in_head):
    wide = {"fc_width": 8, "fc_kernel_size": 3} if "vgg" in encoder else {}
    network = FCN(2, 1, 3, encoder=encoder, widths=WIDTHS, norm=norm, **wide)
    for part, kinds in ((network.encoder, in_encoder), (network.head, in_head)):
        assert {type(module) for module in part.modules() if isinstance(module, BatchNorm | InstanceNorm)} == kinds
