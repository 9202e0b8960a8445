"""Networks: plain torch, 2D and 3D from one class, image in and logits out on the same grid, whatever its size."""

from medseg.networks.unet import UNet

__all__ = ["UNet"]
