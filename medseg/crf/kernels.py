"""The two kernels of a dense CRF in physical units, and the messages that they send."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from medseg.crf.sums import GridSums, PairSums
from medseg.errors import ConfigError

EXACT_VOXELS = 2**12  # up to here, all pairs are as fast as the grid


@dataclass(frozen=True)
class GaussianKernels:
    """Widths of the kernels, and how their sums are computed.

    Appearance: `exp(-|p_i - p_j|^2 / 2 position_mm^2 - |I_i - I_j|^2 / 2 intensity^2)`. Smoothness:
    `exp(-|p_i - p_j|^2 / 2 smoothness_mm^2)`. A voxel sends no message to itself.

    Normalization `"symmetric"` makes of `k_ij` `k_ij / sqrt(n_i n_j)` with `n_i = sum_j k_ij`, the voxel itself
    counted, as the authors' released code does: weights then mean the same whatever the voxel size. None leaves the
    sums of the paper's equations.

    Attributes:
        position_mm: width in space of the appearance kernel.
        intensity: width in intensity, in HU or the image's unit.
        smoothness_mm: width of the smoothness kernel.
        intensity_range: intensities are clipped to it first; None for no clipping.
        normalization: `"symmetric"` or None.
        method: `"exact"` (all pairs), `"grid"` (bilateral grid), or `"auto"`: exact up to 4096 voxels.
        resolution: cells of the grid a kernel width.

    Raises:
        ConfigError: if a width is not positive, or another setting makes no sense.
    """

    position_mm: float
    intensity: float
    smoothness_mm: float
    intensity_range: Sequence[float] | None = None
    normalization: Literal["symmetric"] | None = "symmetric"
    method: Literal["auto", "exact", "grid"] = "auto"
    resolution: float = 2.0

    def __post_init__(self) -> None:
        for name in ("position_mm", "intensity", "smoothness_mm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; a kernel needs a positive width")
        if self.intensity_range is not None and (
            len(self.intensity_range) != 2 or not self.intensity_range[0] < self.intensity_range[1]
        ):
            raise ConfigError(f"intensity_range is {self.intensity_range}; give a lower and a higher intensity")
        if self.normalization not in ("symmetric", None):
            raise ConfigError(f"normalization is {self.normalization!r}; use 'symmetric' or None")
        if self.method not in ("auto", "exact", "grid"):
            raise ConfigError(f"method is {self.method!r}; use 'auto', 'exact' or 'grid'")
        if not self.resolution >= 1:
            raise ConfigError(f"resolution is {self.resolution}; a kernel width needs at least 1 cell")

    def messages(self, image: Tensor, spacing_mm: Sequence[float]) -> tuple["Messages", "Messages"]:
        """The appearance and the smoothness kernel on an image.

        Args:
            image: `(K, *spatial)`; K channels are compared together.
            spacing_mm: voxel edge lengths along the spatial axes.

        Raises:
            ConfigError: if there is not one positive length an axis.
        """
        size = image.shape[1:]
        if len(spacing_mm) != len(size) or not min(spacing_mm) > 0:
            raise ConfigError(f"spacing_mm is {list(spacing_mm)} for {len(size)} axes; give one positive length each")
        if self.intensity_range is not None:
            image = image.clamp(*self.intensity_range)
        if self.method == "exact" or (self.method == "auto" and size.numel() <= EXACT_VOXELS):
            axes = [torch.arange(n, dtype=torch.float64) * length for n, length in zip(size, spacing_mm, strict=True)]
            place = torch.stack(torch.meshgrid(*axes, indexing="ij")).to(image)
            sums: tuple[PairSums | GridSums, ...] = (
                PairSums(torch.cat([place / self.position_mm, image / self.intensity])),
                PairSums(place / self.smoothness_mm),
            )
        else:
            wide, narrow = ([mm / length for length in spacing_mm] for mm in (self.position_mm, self.smoothness_mm))
            sums = (
                GridSums(wide, image / self.intensity, resolution=self.resolution),
                GridSums(narrow, image[:0], resolution=self.resolution),
            )
        return Messages(sums[0], self.normalization), Messages(sums[1], self.normalization)


class Messages:
    """What each voxel hears from all others through one kernel.

    Args:
        sums: the kernel's sums, the voxel itself counted.
        normalization: `"symmetric"` or None.
    """

    def __init__(self, sums: PairSums | GridSums, normalization: Literal["symmetric"] | None) -> None:
        self.sums = sums
        self.scale = torch.ones_like(sums.own)
        if normalization == "symmetric":
            self.scale = sums(self.scale[None])[0].rsqrt()

    def __call__(self, values: Tensor) -> Tensor:
        """`(C, *spatial)` -> the same shape; gradient reaches the values, not the image."""
        return _SelfAdjoint.apply(values, self)  # type: ignore[no-untyped-call]

    def gather(self, values: Tensor) -> Tensor:
        """The messages, without a gradient of their own."""
        scaled = values * self.scale
        return (self.sums(scaled) - self.sums.own * scaled) * self.scale


class _SelfAdjoint(torch.autograd.Function):
    """The kernel is symmetric, so its gradient is the kernel itself: nothing of the grid is kept for it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, messages: Messages) -> Tensor:
        ctx.messages = messages
        return messages.gather(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return _SelfAdjoint.apply(gradient, ctx.messages), None  # type: ignore[no-untyped-call]
