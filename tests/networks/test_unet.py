import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

from medseg.errors import ConfigError
from medseg.networks import UNet
from medseg.networks.blocks import BatchNorm, InstanceNorm
from medseg.networks.overlap_tile import mirror, tile_margins

SIZE = (33, 47, 20)
VARIANTS = {
    "default": {"widths": (4, 6, 8)},
    "five levels": {"widths": (4, 6, 8, 10, 12), "blocks_per_level": 1},
    "residual": {"widths": (4, 6, 8), "residual": True, "activation": "leaky_relu"},
    "batch norm": {"widths": (4, 6, 8), "norm": "batch"},
    "transposed": {"widths": (4, 6, 8), "upsampling": "transposed", "kernel_sizes": [1, 3, 5]},
    "strides of 3": {"widths": (4, 6), "upsampling": "transposed", "strides": 3},
    "dropout": {"widths": (4, 6, 8), "dropout": 0.2},
    "2015": {
        "widths": (4, 6, 8),
        "norm": None,
        "padding": "valid",
        "downsampling": "max_pool",
        "upsampling": "transposed",
    },
    "2016": {
        "widths": (4, 8, 12),
        "norm": "batch",
        "widening": "last",
        "downsampling": "max_pool",
        "upsampling": "transposed",
    },
    "resnet": {"encoder": "resnet18", "widths": (4, 4, 6, 8, 8), "decoder_widths": (4, 4, 6, 6, 8)},
    "resnet, transposed": {
        "encoder": "resnet18",
        "widths": (4, 4, 6, 8, 8),
        "decoder_widths": (4, 4, 6, 6, 8),
        "upsampling": "transposed",
        "norm": "instance",
    },
    "vgg": {"encoder": "vgg11", "widths": (4, 4, 6, 8, 8), "decoder_widths": (4, 4, 6, 6, 8), "dropout": 0.1},
    "vgg, transposed": {
        "encoder": "vgg11_bn",
        "widths": (4, 4, 6, 8, 8),
        "decoder_widths": (4, 4, 6, 6, 8),
        "upsampling": "transposed",
    },
    "graph reasoning": {"widths": (4, 6, 8), "graph_reasoning": True},
}
UNET_2015 = {
    "widths": (64, 128, 256, 512, 1024),
    "norm": None,
    "padding": "valid",
    "downsampling": "max_pool",
    "upsampling": "transposed",
}
UNET_2016 = {
    "widths": (64, 128, 256, 512),
    "norm": "batch",
    "widening": "last",
    "downsampling": "max_pool",
    "upsampling": "transposed",
}


def blob(size):
    """Image with a bright rounded block, and its label."""
    label = torch.zeros(1, *size, dtype=torch.long)
    label[(0, *(slice(side // 4, side // 2 + 1) for side in size))] = 1
    return (label.float() + 0.1 * torch.randn(1, *size))[None], label


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def settings(request):
    return request.param


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_logits_keep_the_image_grid(settings, spatial_dims):
    size = SIZE[:spatial_dims]
    assert UNet(spatial_dims, 1, 3, **settings)(torch.randn(2, 1, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 1), (9, 4, 5), (17, 16, 8)])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_small_patches_train_down_to_one_voxel(settings, spatial_dims, size):
    network = UNet(spatial_dims, 2, 2, **settings).train()
    network(torch.randn(1, 2, *size[:spatial_dims])).square().sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert gradients.isfinite().all()
    assert gradients.any()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_batch_equals_its_samples_one_by_one(settings, spatial_dims):
    network = UNet(spatial_dims, 1, 3, **settings).eval()
    image = torch.randn(3, 1, *SIZE[:spatial_dims])
    with torch.inference_mode():
        together, alone = network(image), torch.cat([network(sample[None]) for sample in image])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_training_lowers_the_loss(settings, spatial_dims):
    network = UNet(spatial_dims, 1, 2, **settings).train()
    image, label = blob((19, 15, 10)[:spatial_dims])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = cross_entropy(network(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_few_steps_learn_a_block_by_heart(spatial_dims):
    network = UNet(spatial_dims, 1, 2, widths=(8, 12, 16)).train()
    image, label = blob((19, 15, 10)[:spatial_dims])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(network(image), label).backward()
        optimizer.step()
    with torch.inference_mode():
        pred = network.eval()(image).argmax(1)
    both = ((pred == 1) & (label == 1)).sum()
    assert 2 * both / ((pred == 1).sum() + (label == 1).sum()) > 0.95


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_saved_weights_give_the_same_logits(settings, spatial_dims, tmp_path):
    network = UNet(spatial_dims, 1, 3, **settings)
    image = torch.randn(2, 1, *(12, 9, 8)[:spatial_dims])
    network.train()(image)  # moves the running statistics of batch norm
    torch.save(network.state_dict(), tmp_path / "model.pt")
    copy = UNet(spatial_dims, 1, 3, **settings)
    copy.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    with torch.inference_mode():
        assert torch.equal(copy.eval()(image), network.eval()(image))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_last_channel_in_memory_gives_the_same_logits(settings, spatial_dims):
    network = UNet(spatial_dims, 2, 3, **settings).eval()
    image = torch.randn(2, 2, *SIZE[:spatial_dims])
    memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}[spatial_dims]
    with torch.inference_mode():
        expected = network(image)
        logits = network.to(memory_format=memory_format)(image.contiguous(memory_format=memory_format))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("upsampling", ["interpolate", "transposed"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_deep_supervision_adds_heads_only_while_training(spatial_dims, upsampling):
    size = SIZE[:spatial_dims]
    network = UNet(
        spatial_dims, 1, 3, widths=(4, 6, 8, 10), upsampling=upsampling, strides=[[2, 2, 1][:spatial_dims], 2, 2],
        deep_supervision=True,
    )  # fmt: skip
    image = torch.randn(2, 1, *size)
    main, *extra = network.train()(image)
    # ceil(33 / 2), ceil(47 / 2), 20 and then halves of those, rounded up
    assert [tuple(head.shape) for head in extra] == [
        (2, 3, *(17, 24, 20)[:spatial_dims]),
        (2, 3, *(9, 12, 10)[:spatial_dims]),
    ]
    logits = network.eval()(image)
    assert logits.shape == (2, 3, *size)
    torch.testing.assert_close(logits, main)


@pytest.mark.parametrize("residual", [True, False])
def test_dropout_acts_only_while_training(residual):
    network = UNet(3, 1, 2, widths=(8, 8), residual=residual, dropout=0.5)
    image = torch.randn(1, 1, 9, 8, 7)
    assert not torch.allclose(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))


def test_each_level_divides_the_grid_by_its_stride_rounding_up():
    network = UNet(3, 1, 2, widths=(4, 6, 8), strides=[[2, 2, 1], [3, 2, 2]])
    pyramid = network.encoder(torch.randn(1, 1, *SIZE))
    assert [tuple(level.shape) for level in pyramid] == [(1, 4, 33, 47, 20), (1, 6, 17, 24, 20), (1, 8, 6, 12, 10)]


def test_parameters_are_those_counted_by_hand():
    # encoder: 27 * (1*2 + 2*2) + 4 + 4 = 170 and 27 * (2*4 + 4*4) + 8 + 8 = 664; 1x1 convolution 4*2 + 2 = 10;
    # decoder: 27 * (4*2 + 2*2) + 4 + 4 = 332; head 2*3 + 3 = 9
    assert sum(parameter.numel() for parameter in UNet(3, 1, 3, widths=(2, 4)).parameters()) == 1185
    # a transposed convolution instead: 8 * 4*2 + 2 = 66
    transposed = UNet(3, 1, 3, widths=(2, 4), upsampling="transposed")
    assert sum(parameter.numel() for parameter in transposed.parameters()) == 1185 - 10 + 66


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("settings", "channels", "parameters"),
    [
        ((2, UNET_2015), (1, 2), 31_030_658),
        # without the biases that a norm follows: the encoder's 1440 (32 + 2 * 64 + 2 * 128 + 2 * 256 + 512) and the
        # decoder's 896 (2 * (256 + 128 + 64))
        ((3, UNET_2016), (3, 3), 19_075_523 - 1440 - 896),
        ((2, {"encoder": "resnet18"}), (3, 2), 14_328_354),
        ((2, {"encoder": "resnet34"}), (3, 2), 24_436_514),
        ((2, {"encoder": "resnet50"}), (3, 2), 32_521_250),
    ],
    ids=["2015", "2016", "resnet18", "resnet34", "resnet50"],
)
def test_published_forms_have_their_parameter_counts(settings, channels, parameters):
    spatial_dims, form = settings
    with torch.device("meta"):
        assert count(UNet(spatial_dims, *channels, **form)) == parameters


def test_the_names_in_a_trained_bundle_stay():
    conv = ["0.weight", "1.weight", "1.bias"]  # and norm
    stage = [f"{block}.{name}" for block in (0, 1) for name in conv]
    assert list(UNet(3, 1, 3, widths=(2, 4), deep_supervision=True).state_dict()) == [
        *(f"encoder.stages.{level}.{name}" for level in (0, 1) for name in stage),
        "decoder.climbs.0.conv.weight",
        "decoder.climbs.0.conv.bias",
        *(f"decoder.stages.0.{name}" for name in stage),
        "head.weight",
        "head.bias",
    ]


def test_the_last_convolution_of_a_level_widens_in_the_form_of_2016():
    with torch.device("meta"):
        network = UNet(3, 3, 3, **UNET_2016)
    widths = [[tuple(block[0].weight.shape[:2]) for block in stage] for stage in network.encoder.stages]
    # figure 2 of the paper
    assert widths == [[(32, 3), (64, 32)], [(64, 64), (128, 64)], [(128, 128), (256, 128)], [(256, 256), (512, 256)]]
    widths = [[tuple(block[0].weight.shape[:2]) for block in stage] for stage in network.decoder.stages]
    assert widths == [[(64, 64 + 128), (64, 64)], [(128, 128 + 256), (128, 128)], [(256, 256 + 512), (256, 256)]]
    assert [tuple(climb.conv.weight.shape) for climb in network.decoder.climbs] == [
        (width, width, 2, 2, 2) for width in (128, 256, 512)
    ]


# The U-Net of 2015 written down from the paper's figure 1, for two convolutions a level
CONV = {2: F.conv2d, 3: F.conv3d}
UP_CONV = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
POOL = {2: F.max_pool2d, 3: F.max_pool3d}


def valid_unet(state, image, strides):
    """What the paper's network of unpadded convolutions gives for `image`, on its own, smaller grid."""
    dims = image.ndim - 2

    def stage(features, name):
        for block in (0, 1):
            weight, bias = state[f"{name}.{block}.0.weight"], state[f"{name}.{block}.0.bias"]
            features = F.relu(CONV[dims](features, weight, bias))
        return features

    features, skips = stage(image, "encoder.stages.0"), []
    for level, stride in enumerate(strides, start=1):
        skips.append(features)
        features = stage(POOL[dims](features, stride), f"encoder.stages.{level}")
    for level, stride in reversed(list(enumerate(strides))):
        weight, bias = state[f"decoder.climbs.{level}.conv.weight"], state[f"decoder.climbs.{level}.conv.bias"]
        features = UP_CONV[dims](features, weight, bias, stride=stride)
        skip = skips.pop()
        for axis in range(2, image.ndim):
            extra = skip.shape[axis] - features.shape[axis]
            skip = skip.narrow(axis, extra // 2, features.shape[axis])
        features = stage(torch.cat([skip, features], 1), f"decoder.stages.{level}")
    return CONV[dims](features, state["head.weight"], state["head.bias"])


@pytest.mark.parametrize(
    ("size", "strides", "kernel_sizes"),
    [
        ((33, 20), [2, 2], 3),
        ((4, 4), [2, 2], 3),
        ((5, 1), [2, 2], 3),
        ((1, 2), [2, 2], 3),
        ((17, 13), [[2, 1], [3, 2]], [[3, 1], 3, [1, 5]]),
        ((9, 6, 5), [2, 2], 3),
        ((7, 1, 3), [[2, 2, 1], 2], [[3, 3, 1], 3, 3]),
    ],
    ids=str,
)
def test_valid_padding_is_the_unpadded_network_on_the_mirrored_image(size, strides, kernel_sizes):
    dims = len(size)
    network = UNet(dims, 2, 3, **{**VARIANTS["2015"], "strides": strides, "kernel_sizes": kernel_sizes}).double()
    image = torch.randn(2, 2, *size, dtype=torch.float64)
    with torch.inference_mode():
        logits = network(image)
        assert logits.shape == (2, 3, *size)
        # more mirror than needed on the far side, as much as the deepest voxels take
        steps = [[step] * dims if isinstance(step, int) else step for step in strides]
        kernels = [kernel_sizes] * 3 if isinstance(kernel_sizes, int) else kernel_sizes
        kernels = [[kernel] * dims if isinstance(kernel, int) else kernel for kernel in kernels]
        widths = [(0, 0), (0, 0)]
        for axis, side in enumerate(size):
            before = margin_before([step[axis] for step in steps], [kernel[axis] for kernel in kernels])
            down = int(np.prod([step[axis] for step in steps]))
            # a size of which every pooling takes whole cells
            after = next(
                extra
                for extra in range(before, before + 2 * down)
                if pools_evenly(before + side + extra, [s[axis] for s in steps], [k[axis] for k in kernels])
            )
            widths.append((before, after))
        padded = torch.from_numpy(np.pad(image.numpy(), widths, mode="reflect"))
        expected = valid_unet(network.state_dict(), padded, [tuple(step) for step in steps])
    expected = expected[:, :, *(slice(side) for side in size)]
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-10)


def margin_before(strides, kernels):
    """Half of what the network eats: both convolutions of each level, down and up, in voxels of the image."""
    eaten, voxel = 0, 1
    for level, kernel in enumerate(kernels):
        visits = 1 if level == len(kernels) - 1 else 2
        eaten += visits * 2 * (kernel - 1) * voxel
        voxel *= strides[level] if level < len(strides) else 1
    return eaten // 2


def pools_evenly(side, strides, kernels):
    """Whether every pooling meets a multiple of its stride."""
    for stride, kernel in zip(strides, kernels, strict=False):
        side -= 2 * (kernel - 1)
        if side % stride:
            return False
        side //= stride
    return True


def test_the_center_of_a_valid_network_sees_no_mirror():
    network = UNet(2, 1, 2, **VARIANTS["2015"]).double()
    # 68 - 4 = 64, 32 - 4 = 28, 14 - 4 = 10; back 20 - 4 = 16, 32 - 4 = 28: the network eats 40 voxels
    image = torch.randn(1, 1, 68, 84, dtype=torch.float64)
    with torch.inference_mode():
        center = valid_unet(network.state_dict(), image, [2, 2])
        assert center.shape == (1, 2, 28, 44)
        torch.testing.assert_close(network(image)[:, :, 20:-20, 20:-20], center, atol=1e-10, rtol=1e-10)


def test_the_tile_of_2015_is_the_papers():
    # figure 1: 572 in, 388 out; figure 2: mirrored by 92 on each side
    assert tile_margins(388, [2, 2, 2, 2], [4, 4, 4, 4, 4]) == (92, 92)
    # one voxel more takes a whole deepest voxel, 16 of the image
    assert tile_margins(389, [2, 2, 2, 2], [4, 4, 4, 4, 4]) == (92, 92 + 15)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_mirroring_goes_on_where_the_image_is_short(size):
    image = torch.randn(1, 1, size, 2)
    expected = np.pad(image.numpy(), [(0, 0), (0, 0), (11, 6), (0, 0)], mode="reflect")
    assert torch.equal(mirror(image, 2, 11, 6), torch.from_numpy(expected))


def in_our_order(theirs):
    """Their weights, the finest decoder level first; where they join below and skip, we join skip and below."""
    state = theirs.state_dict()
    ordered = {name: value for name, value in state.items() if name.startswith("encoder.")}
    for block, skip in zip((4, 3, 2, 1, 0), (0, 64, 64, 128, 256), strict=True):
        for name, value in state.items():
            if name.startswith(f"decoder.blocks.{block}."):
                ordered[name] = value.roll(skip, dims=1) if name.endswith("conv1.0.weight") else value
    return {**ordered, **{name: value for name, value in state.items() if name.startswith("segmentation_head.")}}


@pytest.mark.parametrize("depth", [18, 34])
def test_logits_equal_segmentation_models_pytorch(smp, same_weights, random_statistics, depth):
    theirs = smp.Unet(f"resnet{depth}", encoder_weights=None, in_channels=3, classes=2).double().eval()
    ours = UNet(2, 3, 2, encoder=f"resnet{depth}", interpolation="nearest").double().eval()
    same_weights(ours, in_our_order(random_statistics(theirs)))
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        expected = theirs(image)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours(image), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_max_pooling_rounds_up(spatial_dims):
    network = UNet(spatial_dims, 1, 2, widths=(4, 6, 8), strides=[2, [3, 2, 1][:spatial_dims]], downsampling="max_pool")
    fine, middle, coarse = network.encoder(torch.randn(1, 1, *SIZE[:spatial_dims]))
    assert tuple(middle.shape[2:]) == (17, 24, 10)[:spatial_dims]
    assert tuple(coarse.shape[2:]) == (6, 12, 10)[:spatial_dims]
    # the last, single voxel of the first axis is a cell of its own
    pools = {2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
    last = fine[:, :, 32:, 44:46] if spatial_dims == 2 else fine[:, :, 32:, 44:46, 2:4]
    pooled = network.encoder.pools[1](fine)
    torch.testing.assert_close(
        pooled[(0, slice(None), 16, 22, 1)[: spatial_dims + 2]], pools[spatial_dims](1)(last).flatten()
    )


class Halving(nn.Module):
    """An encoder whose finest level lies on the image's grid."""

    widths, strides = (3, 5), (1, 2)

    def __init__(self, spatial_dims):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        self.fine, self.coarse = conv(1, 3, 3, padding=1), conv(3, 5, 3, stride=2, padding=1)

    def forward(self, image):
        fine = self.fine(image)
        return [fine, self.coarse(fine)]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_an_encoder_may_be_any_module_with_widths_and_strides(spatial_dims):
    network = UNet(spatial_dims, 1, 2, encoder=Halving(spatial_dims), decoder_widths=(4,)).eval()
    image = torch.randn(1, 1, *SIZE[:spatial_dims])
    assert network(image).shape == (1, 2, *image.shape[2:])
    # the only decoder level takes the skip's 3 channels and the 5 from below, and gives 4
    assert network.decoder.stages[0][0][0].weight.shape[:2] == (4, 3 + 5)


def test_decoder_widths_on_an_encoder_are_those_of_each_level():
    with torch.device("meta"):
        network = UNet(2, 3, 2, encoder="resnet34")
    widths = [[tuple(block[0].weight.shape[:2]) for block in stage] for stage in network.decoder.stages]
    # the skips of ResNet-34: none, 64, 64, 128, 256; from below 32, 64, 128, 256 and the 512 of the deepest level
    assert [stage[0] for stage in widths] == [
        (16, 32),
        (32, 64 + 64),
        (64, 64 + 128),
        (128, 128 + 256),
        (256, 256 + 512),
    ]
    assert [stage[1] for stage in widths] == [(width, width) for width in (16, 32, 64, 128, 256)]


@pytest.mark.parametrize(("settings", "levels"), [({"widths": (4, 6, 8, 10)}, 3), (VARIANTS["resnet"], 5)])
def test_heads_can_be_had_in_evaluation(settings, levels):
    network = UNet(2, 1, 3, deep_supervision=True, return_heads=True, **settings).eval()
    main, *extra = network(torch.randn(1, 1, 33, 47))
    assert len(extra) == levels - 1
    assert main.shape == (1, 3, 33, 47)
    assert extra[0].shape == (1, 3, 17, 24)
    network.return_heads = False
    torch.testing.assert_close(network(torch.zeros(1, 1, 9, 9)).shape, (1, 3, 9, 9))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_graph_reasoning_adds_to_the_deepest_level_only(spatial_dims):
    plain = UNet(spatial_dims, 1, 2, widths=(4, 6, 8)).eval()
    reasoning = UNet(spatial_dims, 1, 2, widths=(4, 6, 8), graph_reasoning=True).eval()
    keys = reasoning.load_state_dict(plain.state_dict(), strict=False)
    assert {key.split(".")[0] for key in keys.missing_keys} == {"reasoning"}
    image = torch.randn(1, 1, *SIZE[:spatial_dims])
    with torch.inference_mode():
        assert not torch.allclose(reasoning(image), plain(image))
        reasoning.reasoning.back[1].weight.zero_()  # its answer, then, is its norm's bias of 0
        torch.testing.assert_close(reasoning(image), plain(image))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_features_keep_their_size_without_norms(spatial_dims):
    with torch.inference_mode():
        pyramid = UNet(spatial_dims, 1, 2, widths=(16, 32, 64), norm=None).encoder(
            torch.randn(1, 1, *SIZE[:spatial_dims])
        )
    # each convolution of weights with variance 2 / inputs keeps the mean square; torch's own start divides it by 6
    assert all(0.2 < level.square().mean() < 5 for level in pyramid)


@pytest.mark.parametrize("name", ["default", "resnet", "vgg", "vgg, transposed"])
def test_no_norm_means_none_also_in_the_encoder(name):
    network = UNet(2, 1, 2, **{**VARIANTS[name], "norm": None, "graph_reasoning": True})
    assert not [module for module in network.modules() if isinstance(module, BatchNorm | InstanceNorm)]


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("default", {InstanceNorm}, {InstanceNorm}),
        ("resnet", {BatchNorm}, {BatchNorm}),
        ("vgg", set(), {BatchNorm}),
        ("vgg, transposed", {BatchNorm}, {BatchNorm}),
    ],
)
def test_the_default_norm_is_the_published_one(name, encoder, decoder):
    network = UNet(2, 1, 2, **{**VARIANTS[name], "norm": "default"})
    for part, kinds in ((network.encoder, encoder), (network.decoder, decoder)):
        assert {type(module) for module in part.modules() if isinstance(module, BatchNorm | InstanceNorm)} == kinds


def test_skips_reach_the_logits():
    network = UNet(3, 1, 2, widths=(4, 6, 8)).eval()
    for climb in network.decoder.climbs:
        climb.conv.weight.data.zero_()
    flat, image = torch.zeros(1, 1, 9, 8, 7), torch.randn(1, 1, 9, 8, 7)
    with torch.inference_mode():
        assert not torch.allclose(network(flat), network(image))


def test_networks_load_without_monai():
    code = "import sys, medseg.networks; sys.exit('monai' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strides": [2, 2]}, "strides has 2 entries; give 4, or one number for all"),
        ({"kernel_sizes": [3, 3]}, "kernel_sizes has 2 entries; give 5, or one number for all"),
        ({"strides": [[2, 2], 2, 2, 2]}, r"strides has \[2, 2\] for 3 axes"),
        ({"strides": 0}, "strides is 0; use whole numbers, 1 or more"),
        ({"strides": [[2, 2, 0], 2, 2, 2]}, "strides is .*; use whole numbers, 1 or more"),
        ({"kernel_sizes": -1}, "kernel_sizes is -1; use whole numbers, 1 or more"),
        ({"widths": (4, 0, 8)}, r"widths is \(4, 0, 8\); use whole numbers, 1 or more"),
        ({"dropout": 1.5}, "dropout is 1.5; use a probability, from 0 to below 1"),
        ({"upsampling": ["x"]}, r"upsampling is \['x'\]; use 'interpolate' or 'transposed'"),
        ({"encoder": "resnet18", "decoder_widths": (4, 4, 4, 4, 0)}, "decoder_widths is .*; use whole numbers"),
        ({"kernel_sizes": 4}, r"UNet: kernel_sizes are .*4.*; use odd ones"),
        ({"widths": (8,)}, r"UNet: got 1 widths and 2 blocks_per_level; use at least 2 and 1"),
        ({"blocks_per_level": 0}, r"blocks_per_level is 0; use whole numbers, 1 or more"),
        ({"norm": "group"}, "norm is 'group'; use 'instance' or 'batch'"),
        ({"activation": "gelu"}, "activation is 'gelu'; use 'relu' or 'leaky_relu'"),
        ({"upsampling": "nearest"}, "upsampling is 'nearest'; use 'interpolate' or 'transposed'"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; use 'linear' or 'nearest'"),
        ({"downsampling": "mean"}, "downsampling is 'mean'; use 'strided' or 'max_pool'"),
        ({"padding": "full"}, "padding is 'full'; use 'same' or 'valid'"),
        ({"widening": "middle"}, "widening is 'middle'; use 'first' or 'last'"),
        ({"widening": "last", "blocks_per_level": 1}, "and 1 blocks_per_level; use at least 2 and 2"),
        ({"upsampling": "transposed", "interpolation": "nearest"}, "interpolation does nothing with upsampling='trans"),
        ({"return_heads": True}, "return_heads has no extra heads to return; set deep_supervision=True too"),
        ({"padding": "valid"}, "padding='valid' goes with downsampling='max_pool' and upsampling='transposed'"),
        ({**VARIANTS["2015"], "residual": True}, "padding='valid' goes with .* without residual and deep_supervision"),
        ({**VARIANTS["2015"], "deep_supervision": True}, "padding='valid' goes with"),
        ({"weights": "resnet34.pth"}, "weights and decoder_widths need an encoder; set one, e.g. 'resnet34'"),
        ({"decoder_widths": (8, 8)}, "weights and decoder_widths need an encoder"),
        (
            {"encoder": "resnet18", "strides": 3},
            "strides, .* and widening shape the U-Net's own encoder; leave them out",
        ),
        ({"encoder": "resnet18", "padding": "valid"}, "shape the U-Net's own encoder"),
        ({"encoder": "resnet18", "decoder_widths": (4, 4)}, "decoder_widths has 2 entries; this encoder needs 5"),
    ],
)
def test_contradicting_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        UNet(3, 1, 3, **settings)


def test_only_two_and_three_dimensions_exist():
    with pytest.raises(ConfigError, match="spatial_dims is 4; use 2 or 3"):
        UNet(4, 1, 3)
