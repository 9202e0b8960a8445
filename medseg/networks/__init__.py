"""Networks: plain torch, 2D and 3D from one class, image in and logits out on the same grid, whatever its size."""

from medseg.networks.deeplab_v1 import DeepLabV1
from medseg.networks.deeplab_v2 import DeepLabV2
from medseg.networks.deeplab_v3 import DeepLabV3, DeepLabV3Plus
from medseg.networks.fcn import FCN
from medseg.networks.linknet import LinkNet
from medseg.networks.padding import PadToMultiple
from medseg.networks.pspnet import PSPNet
from medseg.networks.segnet import SegNet
from medseg.networks.unet import UNet
from medseg.networks.unetplusplus import UNetPlusPlus

__all__ = [
    "FCN",
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "LinkNet",
    "PSPNet",
    "PadToMultiple",
    "SegNet",
    "UNet",
    "UNetPlusPlus",
]
