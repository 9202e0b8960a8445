import pytest
import torch
from torch import nn

from medseg.errors import ConfigError
from medseg.networks.blocks import BatchNorm, InstanceNorm
from medseg.networks.encoders import VGG, ResNet, build_encoder

WIDTHS = (4, 4, 6, 8, 8)


def norms(encoder):
    return {type(module) for module in encoder.modules() if isinstance(module, BatchNorm | InstanceNorm)}


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_resnets_are_built_by_name(spatial_dims, depth):
    settings = {"output_stride": 8, "multi_grid": (1, 2, 4), "dilation": "every_block", "deep_stem": True}
    encoder = build_encoder(f"resnet{depth}", spatial_dims, 2, widths=WIDTHS, **settings)
    same = ResNet(spatial_dims, 2, depth=depth, widths=WIDTHS, **settings)
    assert str(encoder) == str(same)
    assert norms(encoder) == {BatchNorm}
    assert encoder.widths == same.widths


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vggs_are_built_by_name(spatial_dims, depth):
    plain = build_encoder(f"vgg{depth}", spatial_dims, 2, widths=WIDTHS, output_stride=8)
    assert str(plain) == str(VGG(spatial_dims, 2, depth=depth, widths=WIDTHS, output_stride=8))
    assert norms(plain) == set()
    assert norms(build_encoder(f"vgg{depth}_bn", spatial_dims, 2, widths=WIDTHS)) == {BatchNorm}


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "vgg11_bn"])
def test_a_norm_that_is_asked_for_replaces_the_encoder_s_own(name):
    encoder = build_encoder(name, 2, 1, widths=WIDTHS, norm="instance", activation="leaky_relu")
    assert norms(encoder) == {InstanceNorm}
    activations = {type(module) for module in encoder.modules() if isinstance(module, nn.ReLU | nn.LeakyReLU)}
    assert activations == {nn.LeakyReLU}


def test_published_widths_are_the_default():
    with torch.device("meta"):
        assert build_encoder("resnet50", 2, 3).widths == (64, 256, 512, 1024, 2048)
        assert build_encoder("vgg16", 2, 3).widths == (64, 128, 256, 512, 512, 512)


def test_weights_reach_the_encoder(tmp_path):
    for name in ("resnet18", "vgg11"):
        theirs = build_encoder(name, 2, 1, widths=WIDTHS)
        torch.save(theirs.state_dict(), tmp_path / "weights.pth")
        ours = build_encoder(name, 2, 1, widths=WIDTHS, weights=tmp_path / "weights.pth")
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())


def test_a_module_passes_through():
    encoder = ResNet(2, 1, depth=18, widths=WIDTHS)
    assert build_encoder(encoder, 2, 1, norm="batch") is encoder


def test_what_cannot_be_built_is_said():
    with pytest.raises(ConfigError, match=r"encoder is 'resnet20'; use 'resnet18' or .* or 'vgg19_bn'"):
        build_encoder("resnet20", 2, 1)
    with pytest.raises(ConfigError, match=r"encoder is 'resnet18'; use 'vgg11' or 'vgg13'$"):
        build_encoder("resnet18", 2, 1, names=("vgg11", "vgg13"))
    with pytest.raises(ConfigError, match="encoder is a Conv2d without widths and strides"):
        build_encoder(nn.Conv2d(1, 1, 1), 2, 1)


@pytest.mark.parametrize(
    ("name", "own"), [("resnet18", {BatchNorm}), ("resnet50", {BatchNorm}), ("vgg11", set()), ("vgg11_bn", {BatchNorm})]
)
def test_no_norm_means_none_and_default_the_published_one(name, own):
    assert norms(build_encoder(name, 2, 1, widths=WIDTHS, norm="default")) == own
    assert norms(build_encoder(name, 2, 1, widths=WIDTHS)) == own
    assert norms(build_encoder(name, 2, 1, widths=WIDTHS, norm=None)) == set()
    assert norms(build_encoder(name, 2, 1, widths=WIDTHS, norm="batch")) == {BatchNorm}


@pytest.mark.parametrize(
    "setting",
    [{"multi_grid": (1, 2, 4)}, {"dilation": "nonsense"}, {"dilation": "torchvision"}, {"deep_stem": True},
     {"stride_in_1x1": True}],
)  # fmt: skip
def test_a_vgg_refuses_what_shapes_a_resnet(setting):
    (name,) = setting
    with pytest.raises(ConfigError, match=rf"encoder is 'vgg11'; leave {name} out \(of a ResNet\)"):
        build_encoder("vgg11", 2, 1, widths=WIDTHS, **setting)


def test_a_resnet_refuses_what_shapes_a_vgg():
    with pytest.raises(ConfigError, match=r"encoder is 'resnet18'; leave pool_kernel_size out \(of a VGG\)"):
        build_encoder("resnet18", 2, 1, widths=WIDTHS, pool_kernel_size=3)


@pytest.mark.parametrize(
    "setting",
    [{"weights": "resnet18.pth"}, {"widths": WIDTHS}, {"multi_grid": (1, 2)}, {"dilation": "torchvision"},
     {"deep_stem": False}, {"stride_in_1x1": True}, {"pool_kernel_size": 2}],
)  # fmt: skip
def test_a_module_refuses_what_shapes_an_encoder(setting):
    (name,) = setting
    encoder = ResNet(2, 1, depth=18, widths=WIDTHS)
    with pytest.raises(ConfigError, match=f"encoder is a module; set {name} where it is made"):
        build_encoder(encoder, 2, 1, **setting)


def test_a_module_may_be_asked_for_its_own_stride_only():
    encoder = ResNet(2, 1, depth=18, widths=WIDTHS, output_stride=16)
    assert build_encoder(encoder, 2, 1, output_stride=16) is encoder
    with pytest.raises(ConfigError, match="output_stride is 32, but the encoder module's is 16; leave it out"):
        build_encoder(encoder, 2, 1, output_stride=32)
