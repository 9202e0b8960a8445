"""Parameters of the published configurations, exactly; built without memory on the meta device.

`left_out`: biases of convolutions that a norm follows, which the norm cancels; some of the published networks have
them, ours do not, and they are counted from the published network by hand in the comment beside.
"""

import pytest
import torch

from medseg import networks

UNET_2015 = {"padding": "valid", "downsampling": "max_pool", "upsampling": "transposed", "norm": None}
TORCHVISION = {"multi_grid": None, "head_convs": 1, "auxiliary_head": True, "dilation": "torchvision"}
UNET_2016 = {"norm": "batch", "widening": "last", "downsampling": "max_pool", "upsampling": "transposed"}
UNET_2016_BIASES = 2336  # encoder: 32 + 2 * 64 + 2 * 128 + 2 * 256 + 512; decoder: 2 * (256 + 128 + 64)
UNETPP_BIASES = 3648  # two convolutions a node: 2 * (5 * 32 + 4 * 64 + 3 * 128 + 2 * 256 + 512)

SEGNET_BIASES = 3712  # of the decoder: 4 * 512 + 512 + 256 * 3 + 128 * 2 + 64 * 2

LINKNET_BIASES = 64  # of the last two convolutions before the classifier: 32 + 32

# class, spatial_dims, in_channels, out_channels, settings, published count, left out
PUBLISHED = {
    "FCN-32s VGG-16": ("FCN", 2, 3, 21, {"variant": "32s"}, 136_152_917, 0),
    "FCN-16s VGG-16": ("FCN", 2, 3, 21, {"variant": "16s"}, 134_815_994, 0),
    "FCN-8s VGG-16": ("FCN", 2, 3, 21, {"variant": "8s"}, 134_489_759, 0),
    "FCN-32s VGG-16, pad 100": ("FCN", 2, 3, 21, {"variant": "32s", "padding": "pad100"}, 136_152_917, 0),
    "FCN-16s VGG-16, pad 100": ("FCN", 2, 3, 21, {"variant": "16s", "padding": "pad100"}, 134_815_994, 0),
    "FCN-8s VGG-16, pad 100": ("FCN", 2, 3, 21, {"variant": "8s", "padding": "pad100"}, 134_489_759, 0),
    "FCN ResNet-50": ("FCN", 2, 3, 21, {"encoder": "resnet50", "auxiliary_head": True}, 35_322_218, 0),
    "FCN ResNet-101": ("FCN", 2, 3, 21, {"encoder": "resnet101", "auxiliary_head": True}, 54_314_346, 0),
    "U-Net 2015": ("UNet", 2, 1, 2, {"widths": (64, 128, 256, 512, 1024), **UNET_2015}, 31_030_658, 0),
    "U-Net ResNet-18": ("UNet", 2, 3, 2, {"encoder": "resnet18"}, 14_328_354, 0),
    "U-Net ResNet-34": ("UNet", 2, 3, 2, {"encoder": "resnet34"}, 24_436_514, 0),
    "U-Net ResNet-50": ("UNet", 2, 3, 2, {"encoder": "resnet50"}, 32_521_250, 0),
    "3D U-Net 2016": (
        "UNet", 3, 3, 3, {"widths": (64, 128, 256, 512), **UNET_2016}, 19_075_523, UNET_2016_BIASES,
    ),
    "UNet++": ("UNetPlusPlus", 2, 3, 2, {}, 9_163_362, UNETPP_BIASES),
    "UNet++ deeply supervised": ("UNetPlusPlus", 2, 3, 2, {"deep_supervision": True}, 9_163_560, UNETPP_BIASES),
    "SegNet": ("SegNet", 2, 3, 21, {}, 29_455_125, SEGNET_BIASES),
    "LinkNet-18": ("LinkNet", 2, 3, 21, {}, 11_535_957, LINKNET_BIASES),
    "DeepLab v1 LargeFOV": ("DeepLabV1", 2, 3, 21, {}, 20_505_429, 0),
    "DeepLab v2 ResNet-101": ("DeepLabV2", 2, 3, 21, {}, 44_048_532, 0),
    "DeepLab v3 ResNet-101": ("DeepLabV3", 2, 3, 21, {"multi_grid": (1, 2, 4)}, 58_040_661, 0),
    "DeepLab v3+ ResNet-101": ("DeepLabV3Plus", 2, 3, 21, {"multi_grid": (1, 2, 4)}, 59_344_309, 0),
    "DeepLab v3 ResNet-50, torchvision": (
        "DeepLabV3", 2, 3, 21, {"encoder": "resnet50", **TORCHVISION},
        42_004_074, 0,
    ),
    "DeepLab v3 ResNet-101, torchvision": (
        "DeepLabV3", 2, 3, 21, {"encoder": "resnet101", **TORCHVISION},
        60_996_202, 0,
    ),
    "PSPNet-50": ("PSPNet", 2, 3, 21, {"auxiliary_head": True}, 49_081_578, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_network(name):
    class_name, spatial_dims, in_channels, out_channels, settings, published, left_out = PUBLISHED[name]
    with torch.device("meta"):
        network = getattr(networks, class_name)(spatial_dims, in_channels, out_channels, **settings)
    assert sum(parameter.numel() for parameter in network.parameters()) + left_out == published
