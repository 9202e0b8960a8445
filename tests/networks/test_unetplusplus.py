import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medseg.errors import ConfigError
from medseg.networks.blocks import BatchNorm, InstanceNorm
from medseg.networks.unetplusplus import UNetPlusPlus

SIZE = (33, 47, 20)
NARROW = {"widths": (4, 6, 8, 10)}
MODE = {2: "bilinear", 3: "trilinear"}
POOL = {2: F.max_pool2d, 3: F.max_pool3d}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def image_of(spatial_dims, channels=1, batch=1):
    return torch.randn(batch, channels, *SIZE[:spatial_dims])


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [({}, 9_163_362), ({"deep_supervision": True}, 9_163_560), ({"encoder": "resnet34"}, 26_078_754)],
    ids=["published", "deep supervision", "resnet34"],
)
def test_published_forms_have_their_parameter_counts(settings, parameters):
    # the biases that a norm follows are left out: two a node, with 5, 4, 3, 2 and 1 nodes of each width
    left_out = 0 if "encoder" in settings else 2 * (5 * 32 + 4 * 64 + 3 * 128 + 2 * 256 + 512)
    with torch.device("meta"):
        assert count(UNetPlusPlus(2, 3, 2, **settings)) == parameters - left_out


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_nodes_are_wired_as_in_the_paper(spatial_dims):
    network = UNetPlusPlus(spatial_dims, 2, 3, deep_supervision=True, return_heads=True, **NARROW).eval()
    image = image_of(spatial_dims, channels=2)

    def node(level, column):
        """Equation 1 of the paper, computed anew at every mention."""
        if column == 0:
            inputs = POOL[spatial_dims](node(level - 1, 0), 2, ceil_mode=True) if level else image
        else:
            row = [node(level, earlier) for earlier in range(column)]
            size = row[0].shape[2:]
            below = F.interpolate(node(level + 1, column - 1), size, mode=MODE[spatial_dims], align_corners=False)
            inputs = torch.cat([*row, below], dim=1)
        return network.nodes[f"{level}_{column}"](inputs)

    with torch.inference_mode():
        expected = [network.heads[str(column)](node(0, column)) for column in (3, 2, 1)]
        logits = network(image)
    for ours, paper in zip(logits, expected, strict=True):
        torch.testing.assert_close(ours, paper)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_all_heads_lie_on_the_images_grid_the_deepest_first(spatial_dims):
    network = UNetPlusPlus(spatial_dims, 1, 3, deep_supervision=True, norm="instance", **NARROW)
    image = image_of(spatial_dims, batch=2)
    heads = network.train()(image)
    assert [tuple(head.shape) for head in heads] == [(2, 3, *SIZE[:spatial_dims])] * 3
    assert network.head_weights == (1, 1, 1)
    torch.testing.assert_close(network.eval()(image), heads[0])


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_pruned_network_gives_the_logits_of_its_head(spatial_dims, level):
    network = UNetPlusPlus(spatial_dims, 1, 3, deep_supervision=True, return_heads=True, **NARROW).eval()
    pruned = network.prune(level)
    # the triangle of levels 0 to `level`
    assert len(pruned.nodes) == (level + 1) * (level + 2) // 2
    image = image_of(spatial_dims)
    with torch.inference_mode():
        heads = network(image)
        torch.testing.assert_close(pruned(image), heads[3 - level])
        assert pruned.head_weights == (1,)
        assert network.head_weights == (1, 1, 1)
        pruned.heads[str(level)].weight.zero_()
        torch.testing.assert_close(network(image), heads)  # a copy: the whole network is left as it was
    assert isinstance(pruned.train()(image), torch.Tensor)


def test_a_pruned_network_is_smaller_and_faster():
    network = UNetPlusPlus(2, 1, 2, widths=(8, 16, 32, 64), deep_supervision=True).eval()
    pruned = network.prune(1)
    # level 0: 9 * (1*8 + 8*8) + 32; level 1: 9 * (8*16 + 16*16) + 64; X[0][1]: 9 * (24*8 + 8*8) + 32; head 18
    assert count(pruned) == 680 + 3520 + 2336 + 18
    image = torch.randn(1, 1, 128, 128)

    def seconds(model):
        with torch.inference_mode():
            model(image)
            start = time.perf_counter()
            for _ in range(3):
                model(image)
        return time.perf_counter() - start

    assert seconds(pruned) < seconds(network)


@pytest.mark.parametrize("settings", [{}, {"encoder": "resnet18", "widths": (4, 4, 6, 8, 8)}])
def test_a_level_without_a_head_cannot_be_pruned_to(settings):
    network = UNetPlusPlus(2, 1, 2, **{**NARROW, **settings})
    with pytest.raises(ConfigError, match=r"UNetPlusPlus: level 2 has no head, only \d; deep_supervision=True gives"):
        network.prune(2)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 1), (9, 4, 5), (17, 16, 8)])
@pytest.mark.parametrize("settings", [NARROW, {**NARROW, "norm": "instance", "deep_supervision": True}, {
    "encoder": "resnet18", "widths": (4, 4, 6, 8, 8), "decoder_widths": (4, 4, 6, 6, 8)}])  # fmt: skip
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_small_patches_train_down_to_one_voxel(settings, spatial_dims, size):
    network = UNetPlusPlus(spatial_dims, 1, 2, **settings).train()
    heads = network(torch.randn(1, 1, *size[:spatial_dims]))
    heads = heads if isinstance(heads, list) else [heads]
    assert all(head.shape == (1, 2, *size[:spatial_dims]) for head in heads)
    sum(head.square().sum() for head in heads).backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert gradients.isfinite().all()
    assert gradients.any()


def in_our_order(theirs, widths):
    """Their weights in the order of our nodes.

    Their `x_d_l` lies on our level `3 - l`, in column `l - d + 1`. It joins what comes from below and then the nodes of
    its row from the last to the first, where we join the row from the first to the last, and then below.
    """
    state = theirs.state_dict()
    ordered = {name: value for name, value in state.items() if name.startswith("encoder.")}
    for level, width in enumerate(widths):
        for column in range(1, 5 - level):
            layer = 3 - level
            for name, value in state.items():
                if name.startswith(f"decoder.blocks.x_{layer + 1 - column}_{layer}."):
                    if name.endswith("conv1.0.weight"):
                        below, *row = value.split([value.shape[1] - column * width, *[width] * column], dim=1)
                        value = torch.cat([*reversed(row), below], dim=1)
                    ordered[name] = value
    last = ("decoder.blocks.x_0_4.", "segmentation_head.")
    return {**ordered, **{name: value for name, value in state.items() if name.startswith(last)}}


def test_logits_equal_segmentation_models_pytorch(smp, same_weights, random_statistics):
    theirs = smp.UnetPlusPlus("resnet18", encoder_weights=None, in_channels=3, classes=2).double().eval()
    ours = UNetPlusPlus(2, 3, 2, encoder="resnet18", interpolation="nearest").double().eval()
    same_weights(ours, in_our_order(random_statistics(theirs), (64, 64, 128, 256)))
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        expected = theirs(image)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours(image), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_onnx_of_a_pruned_network_gives_equal_logits(spatial_dims, tmp_path):
    import onnxruntime

    network = UNetPlusPlus(spatial_dims, 1, 3, deep_supervision=True, **NARROW).eval().prune(2)
    image = image_of(spatial_dims)
    torch.onnx.export(network, (image,), tmp_path / "network.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), network(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (8,)}, "UNetPlusPlus: got 1 widths; use at least 2"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; use 'linear' or 'nearest'"),
        ({"widths": (8, 0)}, r"widths is \(8, 0\); use whole numbers, 1 or more"),
        ({"interpolation": ["x"]}, r"interpolation is \['x'\]; use 'linear' or 'nearest'"),
        ({"dropout": 1.5}, "dropout is 1.5; use a probability"),
        ({"encoder": "resnet18", "decoder_widths": (4, 4, 0, 4, 4)}, "decoder_widths is .*; use whole numbers"),
        ({"norm": "group"}, "norm is 'group'; use 'instance' or 'batch'"),
        ({"return_heads": True}, "return_heads has no extra heads to return; set deep_supervision=True too"),
        ({"weights": "resnet34.pth"}, "weights and decoder_widths need an encoder; set one, e.g. 'resnet34'"),
        ({"decoder_widths": (8, 8)}, "weights and decoder_widths need an encoder"),
        ({"encoder": "resnet18", "deep_supervision": True}, "deep_supervision is not for another encoder"),
        ({"encoder": "resnet18", "decoder_widths": (4, 4)}, "decoder_widths has 2 entries; this encoder needs 5"),
    ],
)
def test_contradicting_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        UNetPlusPlus(3, 1, 3, **settings)


def test_only_two_and_three_dimensions_exist():
    with pytest.raises(ConfigError, match="spatial_dims is 1; use 2 or 3"):
        UNetPlusPlus(1, 1, 3)


class Halving(nn.Module):
    """An encoder whose finest level lies on the image's grid."""

    widths, strides = (3, 5, 7), (1, 2, 4)

    def __init__(self):
        super().__init__()
        self.fine, self.middle, self.coarse = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 5, 2, 2), nn.Conv2d(5, 7, 2, 2)

    def forward(self, image):
        fine = self.fine(image)
        middle = self.middle(fine)
        return [fine, middle, self.coarse(middle)]


def test_an_encoder_on_the_images_grid_needs_no_further_node():
    network = UNetPlusPlus(2, 1, 2, encoder=Halving(), decoder_widths=(4, 6)).eval()
    assert network.finish is None
    # X[0][2] takes X[0][0], X[0][1] (3 each) and X[1][1] (the last of its level: 6), and gives 4
    assert network.nodes["0_2"][0][0].weight.shape[:2] == (4, 3 + 3 + 6)
    assert network(torch.randn(1, 1, 9, 10)).shape == (1, 2, 9, 10)


@pytest.mark.parametrize("settings", [NARROW, {"encoder": "resnet18", "widths": (4, 4, 6, 8, 8)}])
@pytest.mark.parametrize(("norm", "kinds"), [("default", {BatchNorm}), ("instance", {InstanceNorm}), (None, set())])
def test_a_norm_is_everywhere_or_nowhere(settings, norm, kinds):
    network = UNetPlusPlus(2, 1, 3, norm=norm, **settings)
    for part in [network.nodes, *filter(None, [network.encoder, network.finish])]:
        assert {type(module) for module in part.modules() if isinstance(module, BatchNorm | InstanceNorm)} == kinds
