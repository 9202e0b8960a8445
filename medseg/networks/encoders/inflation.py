"""2D weights for a 3D network: every kernel gets a third axis, along which it does what the 2D network did.

Reference: Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, arXiv:1705.07750 (I3D; "mean").
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import choose

Inflation = Literal["center", "mean"]

AXES = {-1: -1, -2: -2, -3: -3}  # counted from the end, so that they are the same for kernels and volumes


def inflate(
    state_dict_2d: Mapping[str, Tensor], network_3d: nn.Module, *, mode: Inflation = "center", axis: int = -1
) -> dict[str, Tensor]:
    """Weights with which a 3D network, on a volume of equal slices, gives on each the answer of the 2D network.

    "center" gives it exactly: a convolution starts with its own slice alone, by its center tap, and learns to look at
    others. "mean" spreads the weights over all taps; slices near the ends of the volume, beyond which there are zeros,
    then differ.

    Args:
        state_dict_2d: of the network made with `spatial_dims=2`.
        network_3d: the one made with `spatial_dims=3` and the same settings otherwise.
        mode: "center" or "mean".
        axis: the one along which the slices lie: -1, -2 or -3.

    Returns:
        State dict for `network_3d`, of the 2D weights' type and device.

    Raises:
        ConfigError: if the networks differ in more than the dimension, or a transposed convolution leaves gaps.
    """
    target = network_3d.state_dict()
    different = sorted(target.keys() ^ state_dict_2d.keys())
    if different:
        raise ConfigError(
            f"inflate: {len(different)} tensors are in one of the networks only, such as {different[0]!r};"
            " make both with the same settings"
        )
    inflated = {}
    for name, weight in state_dict_2d.items():
        shape = target[name].shape
        if weight.shape == shape:
            inflated[name] = weight
        elif is_inflatable(weight, shape, axis):
            inflated[name] = inflated_kernel(weight, network_3d, name, mode=mode, axis=axis)
        else:
            raise ConfigError(
                f"inflate: {name} is {tuple(weight.shape)} in 2D and {tuple(shape)} in 3D;"
                " make both networks with the same settings"
            )
    return inflated


def is_inflatable(weight: Tensor, shape: torch.Size, axis: int) -> bool:
    """Whether `shape` is that of the 2D kernel `weight` with one more axis."""
    axis = choose(AXES, "axis", axis)
    return len(shape) == 5 and weight.shape == shape[:axis] + shape[5 + axis + 1 :]


def inflated_kernel(weight: Tensor, network_3d: nn.Module, name: str, *, mode: Inflation, axis: int) -> Tensor:
    """A 2D kernel with one more axis, as the layer that has it under `name` in the 3D network needs it."""
    layer = network_3d.get_submodule(name.rpartition(".")[0])
    size = network_3d.get_parameter(name).shape[axis]
    stride, extra = 1, 0
    if isinstance(layer, nn.ConvTranspose3d):
        stride, extra = layer.stride[axis], layer.output_padding[axis]
        if size < stride or layer.dilation[axis] > 1:
            raise ConfigError(
                f"inflate: {name} leaves gaps along the new axis (kernel {size}, stride {stride}, dilation"
                f" {layer.dilation[axis]}); use a kernel of at least the stride, without dilation"
            )
    taps = choose(TAPS, "inflation mode", mode)(size, stride, extra)
    return weight.unsqueeze(axis) * taps.to(weight).view(-1, *[1] * (-1 - axis))


def center_taps(size: int, stride: int, extra: int) -> Tensor:
    """Ones for the middle taps, as many as the stride of a transposed convolution: one for each voxel it puts out.

    A transposed convolution puts tap `j` of input `i` to voxel `i * stride + j - padding`; so of any `stride` taps in a
    row each voxel gets one. The middle ones come from inputs that exist for every voxel, if the padding is such that
    the output is `stride` times the input, or is cropped to that in the middle.

    Args:
        size: taps of the kernel along the axis.
        stride: of a transposed convolution; 1 for others.
        extra: its output padding, voxels at the far end.
    """
    taps = torch.zeros(size, device="cpu")
    first = min((size + extra - stride) // 2, size - stride)
    taps[first : first + stride] = 1
    return taps


def mean_taps(size: int, stride: int, extra: int) -> Tensor:
    """One over the number of taps that meet in a voxel: all of a convolution's, every `stride`-th of a transposed."""
    phase = torch.arange(size, device="cpu") % stride
    return 1 / torch.bincount(phase, minlength=stride)[phase].double()


TAPS = {"center": center_taps, "mean": mean_taps}
