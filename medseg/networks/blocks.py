"""Parts that networks share: the one table from `spatial_dims` to layers, norms safe on one voxel, blocks, resizing."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from operator import index
from typing import Literal, SupportsIndex, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import ConfigError
from medseg.networks import channels_last

NormName = Literal["instance", "batch"] | None
NormSetting = (
    NormName | Literal["default"]
)  # of a whole network: None is no norm anywhere, "default" the published form
ActivationName = Literal["relu", "leaky_relu"]
InterpolationName = Literal["linear", "nearest"]
PerLevel = int | Sequence[int | Sequence[int]]  # one number, or one a level; that again one number, or one an axis

ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

Key = TypeVar("Key")
Value = TypeVar("Value")


class Conv3d(nn.Conv3d):
    """torch's convolution, in float32 where its bfloat16 gradient would be wrong, and by oneDNN where torch would not.

    On a CPU, torch 2.13 (oneDNN) returns garbage for the weights' gradient where a map is smaller than the kernel
    (fewer planes than it reaches over, or an axis of one voxel), and may damage the memory of the process. Such maps
    are tiny, so float32 costs nothing there.

    For one sample of few channels or planes torch takes a kernel of its own, which copies channels-last features to the
    other layout and back: a 1x1 convolution to three classes is then eight times as slow as oneDNN's.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(B, in_channels, D, H, W)` -> `(B, out_channels, ...)`."""
        if torch.compiler.is_compiling():
            return super().forward(input)
        if self._is_at_risk(input):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float()).to(torch.bfloat16)
        if self._is_for_onednn(input):
            padding = [int(voxels) for voxels in self.padding]
            return torch.mkldnn_convolution(
                input, self.weight, self.bias, padding, self.stride, self.dilation, self.groups
            )
        return super().forward(input)

    def _is_for_onednn(self, input: Tensor) -> bool:
        plain = input.dtype == self.weight.dtype == torch.float32 and self.padding_mode == "zeros"
        if not plain or isinstance(self.padding, str) or torch.is_autocast_enabled("cpu"):
            return False
        return ONEDNN and bool(torch.backends.mkldnn.enabled) and channels_last.is_taken(input)

    def _is_at_risk(self, input: Tensor) -> bool:
        if not (self.training and torch.is_grad_enabled() and input.device.type == "cpu"):
            return False
        if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
            return False
        reach = [(size - 1) * rate + 1 for size, rate in zip(self.kernel_size, self.dilation, strict=True)]
        planes, *rows = input.shape[2:]
        short = [n == 1 or (rate > 1 and n < r) for n, r, rate in zip(rows, reach[1:], self.dilation[1:], strict=True)]
        return planes < reach[0] or (any(short) and (max(reach) > 1 or max(self.stride) > 1))


CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: Conv3d}
TRANSPOSED_CONV: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
MAX_POOL: dict[int, type[nn.MaxPool2d] | type[nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
DROPOUT: dict[int, type[nn.Dropout2d] | type[nn.Dropout3d]] = {2: nn.Dropout2d, 3: nn.Dropout3d}  # whole channels
LINEAR_MODE = {2: "bilinear", 3: "trilinear"}


class InstanceNorm(nn.Module):
    """Each channel of each sample to mean 0 and variance 1, then a learned scale and shift; 2D and 3D.

    A map of one voxel (the deep levels of a small patch) has no variance: torch raises there, and the formula would
    erase the features. Such a map is normalized over its channels instead. Features that lie channels-last in memory
    leave so (see `channels_last`).

    Args:
        channels: of the features.
        in_place: in channels-last memory without a gradient write over the features, as after a convolution whose
            output nothing else reads.

    Reference:
        Ulyanov et al., "Instance Normalization", 2016, arXiv:1607.08022; over channels: Ba et al., "Layer
        Normalization", 2016, arXiv:1607.06450.
    """

    def __init__(self, channels: int, *, in_place: bool = False) -> None:
        super().__init__()
        self.in_place = in_place
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """`(B, channels, *spatial)` -> the same shape."""
        if features.shape[2:].numel() > 1:
            if channels_last.is_taken(features):
                return channels_last.instance_norm(features, self.weight, self.bias, in_place=self.in_place)
            return _contiguous_gradient(F.instance_norm(features, weight=self.weight, bias=self.bias))
        return F.layer_norm(features.flatten(1), self.weight.shape, self.weight, self.bias).view_as(features)


def _contiguous_gradient(normalized: Tensor) -> Tensor:
    """`normalized`, whose gradient will arrive contiguous.

    On a CPU, torch 2.13 returns a wrong gradient of its instance norm (off by more than the gradient itself) where one
    sample's arrives channels-last, as from a convolution with such weights.
    """
    if normalized.requires_grad and not torch.compiler.is_compiling():
        normalized.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
    return normalized


class BatchNorm(nn.Module):
    """Each channel of the batch to mean 0 and variance 1, then a learned scale and shift; 2D and 3D.

    One value a channel (batch of 1 on a one-voxel map) has no variance: while training, torch raises there. Such a
    batch uses the running statistics, as in evaluation, and leaves them as they are.

    Reference:
        Ioffe and Szegedy, "Batch Normalization", ICML 2015, arXiv:1502.03167.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        """`(B, channels, *spatial)` -> the same shape."""
        training = self.training
        if training and features.numel() == features.shape[1]:  # a branch: compiled, a comparison of sizes is no bool
            training = False
        return F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum
        )


NORM: dict[str, type[InstanceNorm] | type[BatchNorm]] = {"instance": InstanceNorm, "batch": BatchNorm}
ACTIVATION: dict[str, type[nn.ReLU] | type[nn.LeakyReLU]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


def conv_norm(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    norm: NormName = "instance",
    dropout: float = 0.0,
) -> nn.Sequential:
    """Convolution that keeps the grid (or divides it by `stride`, rounding up), dropout of whole channels, norm.

    The convolution has a bias only where no norm follows (`norm=None`).
    """
    sizes = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    kernel, step, spread = (per_axis(name, value, spatial_dims) for name, value in sizes.items())
    padding = tuple(size // 2 * rate for size, rate in zip(kernel, spread, strict=True))
    conv = CONV[spatial_dims](
        in_channels,
        out_channels,
        kernel,  # type: ignore[arg-type]
        step,  # type: ignore[arg-type]
        padding,  # type: ignore[arg-type]
        spread,  # type: ignore[arg-type]
        groups,
        bias=norm is None,
    )
    drop = [dropout_layer(spatial_dims, dropout)] if dropout else []
    return nn.Sequential(conv, *drop, *norm_layers(norm, out_channels))


def conv_norm_act(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    norm: NormName = "instance",
    activation: ActivationName = "relu",
    dropout: float = 0.0,
) -> nn.Sequential:
    """`conv_norm`, then the activation."""
    block = conv_norm(
        spatial_dims,
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        stride=stride,
        dilation=dilation,
        groups=groups,
        norm=norm,
        dropout=dropout,
    )
    return block.append(activation_layer(activation))


def norm_or(own: NormName, norm: NormSetting) -> NormName:
    """The norm that a network's setting asks for; its `own` for "default"."""
    return own if norm == "default" else norm


def norm_layers(norm: NormName, channels: int) -> list[nn.Module]:
    """The norm of a convolution's output in a list; an empty list without one."""
    if norm is None:
        return []
    layer = choose(NORM, "norm", norm)(channels)
    if isinstance(layer, InstanceNorm):
        layer.in_place = True  # nothing else reads what the convolution gave
    return [layer]


def activation_layer(activation: ActivationName) -> nn.Module:
    """The activation, working in place."""
    return choose(ACTIVATION, "activation", activation)(inplace=True)


def dropout_layer(spatial_dims: int, dropout: float) -> nn.Module:
    """Dropout of whole channels.

    Raises:
        ConfigError: for what is not a probability below 1.
    """
    if not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise ConfigError(f"dropout is {dropout!r}; use a probability, from 0 to below 1")
    return DROPOUT[spatial_dims](float(dropout))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; the shortcut is a 1x1 convolution where width or grid changes.

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385 (basic block).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        norm: NormName = "instance",
        activation: ActivationName = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = conv_norm_act(
            spatial_dims,
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            norm=norm,
            activation=activation,
            dropout=dropout,
        )
        self.second = conv_norm(spatial_dims, out_channels, out_channels, kernel_size=kernel_size, norm=norm)
        keeps_shape = in_channels == out_channels and set(per_axis("stride", stride, spatial_dims)) == {1}
        self.shortcut: nn.Module = (
            nn.Identity()
            if keeps_shape
            else conv_norm(spatial_dims, in_channels, out_channels, kernel_size=1, stride=stride, norm=norm)
        )
        self.activation = activation_layer(activation)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, in_channels, *spatial)` -> `(B, out_channels, *spatial / stride)`, rounded up."""
        out: Tensor = self.activation(self.second(self.first(features)) + self.shortcut(features))
        return out


def resize(features: Tensor, size: Sequence[int], interpolation: InterpolationName = "linear") -> Tensor:
    """Interpolate `features` `(B, C, *spatial)` to the grid `size` (`align_corners=False`)."""
    if features.shape[2:] == torch.Size(size):
        return features
    if interpolation == "nearest":
        return F.interpolate(features, size, mode="nearest")
    if channels_last.doubles(features, size):
        layout = channels_last.LAYOUTS[features.ndim]
        return channels_last.double(
            features, torch.empty((*features.shape[:2], *size), dtype=features.dtype, memory_format=layout)
        )
    resized = F.interpolate(features, size, mode=LINEAR_MODE[len(size)], align_corners=False)
    if resized.requires_grad and channels_last.is_taken(features):
        # joined with a skip, its gradient is a part of theirs, which torch takes by its kernel for the other layout
        resized.register_hook(channels_last.to_channels_last)  # type: ignore[no-untyped-call]
    return resized


def resize_like(features: Tensor, reference: Tensor, interpolation: InterpolationName = "linear") -> Tensor:
    """Interpolate `features` to the grid of `reference`; odd sizes need no padding."""
    return resize(features, reference.shape[2:], interpolation)


def average_bins(features: Tensor, bins: int | Sequence[int]) -> Tensor:
    """Means over `bins` nearly equal parts of each axis, as torch's adaptive average pooling.

    One small matrix an axis instead of torch's kernel: the same in 2D and 3D, deterministic backward on a GPU, and
    exported to ONNX for any size.

    Args:
        features: `(B, C, *spatial)`.
        bins: parts of every axis, or one number an axis.

    Returns:
        `(B, C, *bins)`; bin `i` of `n` averages the voxels from `floor(i * size / n)` to `ceil((i + 1) * size / n)`.
    """
    spatial_dims = features.ndim - 2
    for axis, count in enumerate(per_axis("bins", bins, spatial_dims), start=2):
        size = features.shape[axis]
        position, part = (
            torch.arange(size, device=features.device),
            torch.arange(count, device=features.device)[:, None],
        )
        inside = (position >= part * size // count) & (position < ((part + 1) * size + count - 1) // count)
        weights = inside.to(features.dtype)
        weights = weights / weights.sum(1, keepdim=True)
        features = torch.movedim(torch.movedim(features, axis, -1) @ weights.T, -1, axis)
    return features


def crop_like(features: Tensor, reference: Tensor, offset: int = 0) -> Tensor:
    """The voxels of `features` from `offset` on along every axis, as many as `reference` has."""
    return features[:, :, *(slice(offset, offset + size) for size in reference.shape[2:])]


def fit_like(features: Tensor, reference: Tensor) -> Tensor:
    """Crop to the grid of `reference`; an encoder that rounds down leaves too little, which is stretched."""
    return resize_like(crop_like(features, reference), reference)


def per_axis(name: str, value: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """One number an axis, from one number or a list of them, for the setting `name`.

    Raises:
        ConfigError: if the list does not have `spatial_dims` entries.
    """
    sizes = (value,) * spatial_dims if isinstance(value, int) else tuple(value)
    if len(sizes) != spatial_dims:
        raise ConfigError(f"{name} has {list(sizes)} for {spatial_dims} axes; give one number, or one for each axis")
    return sizes


def per_level(name: str, value: PerLevel, levels: int, spatial_dims: int) -> list[tuple[int, ...]]:
    """One number a level and axis, from one number or a list with an entry a level.

    Raises:
        ConfigError: if there are not `levels` entries, or one does not have `spatial_dims`.
    """
    entries = [value] * levels if isinstance(value, int) else list(value)
    if len(entries) != levels:
        raise ConfigError(f"{name} has {len(entries)} entries; give {levels}, or one number for all")
    return [per_axis(name, entry, spatial_dims) for entry in entries]


def check_counts(least: int = 1, /, **settings: object) -> None:
    """Refuse a setting, or an entry of its list, that is not a whole number from `least` on; None is let pass.

    Raises:
        ConfigError: naming the setting.
    """
    for name, value in settings.items():
        if value is None:
            continue
        counts = list(entries(value)) or [None]  # an empty list is refused, too
        if not all(isinstance(count, SupportsIndex) and index(count) >= least for count in counts):
            raise ConfigError(f"{name} is {value!r}; use whole numbers, {least} or more")


def entries(value: object) -> Iterator[object]:
    """The numbers in a list of numbers and of such lists; or the one given."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        yield value
        return
    for entry in value:
        yield from entries(entry)


def choose(table: Mapping[Key, Value], name: str, key: Key) -> Value:
    """The entry of `table` that the setting `name` asks for.

    Raises:
        ConfigError: if there is none.
    """
    if key not in list(table):  # a list of a recipe's has no hash
        raise ConfigError(f"{name} is {key!r}; use {' or '.join(repr(known) for known in table)}")
    return table[key]
