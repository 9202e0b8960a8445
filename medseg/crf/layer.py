"""CRF-as-RNN: the mean field as the last layer of a network, trained with it."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.crf.kernels import GaussianKernels
from medseg.crf.mean_field import mean_field, potts
from medseg.errors import ConfigError, DataError


class CRFasRNN(nn.Module):
    """Logits `(B, classes, *spatial)` and their image `(B, K, *spatial)` -> refined logits.

    Trained are the weight of each kernel for each class, and the compatibility of each pair of classes, which starts
    as Potts. The widths of the kernels are fixed, as in the paper. Five rounds in training and ten in evaluation, as
    there. Departs from the paper in the filter (a bilateral grid for the permutohedral lattice), the starting weights
    (it searches them for its data) and in 3D.

    Args:
        spatial_dims: 2 or 3.
        classes: channels of the logits.
        spacing_mm: voxel edge lengths of the network's grid; 1 mm if None.
        position_mm: width in space of the appearance kernel.
        intensity: its width in the intensities that the network sees (a window scales them to 0 to 1).
        smoothness_mm: width of the smoothness kernel.
        iterations: rounds in training.
        evaluation_iterations: rounds in evaluation.
        intensity_range: intensities are clipped to it first; None for no clipping.
        method: `"auto"`, `"exact"` or `"grid"`, see `GaussianKernels`.

    Reference:
        Zheng et al., "Conditional Random Fields as Recurrent Neural Networks", ICCV 2015, arXiv:1502.03240.
    """

    def __init__(
        self,
        spatial_dims: int,
        classes: int,
        *,
        spacing_mm: Sequence[float] | None = None,
        position_mm: float = 10.0,
        intensity: float = 0.1,
        smoothness_mm: float = 3.0,
        iterations: int = 5,
        evaluation_iterations: int = 10,
        intensity_range: Sequence[float] | None = None,
        method: Literal["auto", "exact", "grid"] = "auto",
    ) -> None:
        super().__init__()
        self.spacing_mm = (1.0,) * spatial_dims if spacing_mm is None else tuple(spacing_mm)
        if spatial_dims not in (2, 3) or len(self.spacing_mm) != spatial_dims or not min(self.spacing_mm) > 0:
            raise ConfigError(
                f"spacing_mm is {list(self.spacing_mm)} for spatial_dims {spatial_dims}; give 2 or 3 positive lengths"
            )
        if classes < 2 or min(iterations, evaluation_iterations) < 1:
            raise ConfigError(
                f"{classes} classes with {iterations} and {evaluation_iterations} iterations; a CRF needs at least 2 "
                "classes and 1 iteration"
            )
        self.kernels = GaussianKernels(
            position_mm, intensity, smoothness_mm, intensity_range=intensity_range, method=method
        )
        self.iterations, self.evaluation_iterations = iterations, evaluation_iterations
        self.appearance_weight = nn.Parameter(torch.full((classes,), 5.0))
        self.smoothness_weight = nn.Parameter(torch.full((classes,), 3.0))
        self.compatibility = nn.Parameter(potts(classes))

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Refined logits; gradient reaches the logits and the layer's parameters, not the image.

        Raises:
            DataError: if logits and image do not fit the layer or each other.
            ConfigError: if `intensity` is so far from the image's unit that the grid would not fit.
        """
        self._check(logits, image)
        with torch.autocast(logits.device.type, enabled=False):  # sums of many small weights lose too much in half
            precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
            samples = zip(precise, image.detach().to(precise), strict=True)
            return torch.stack([self._refine(*sample) for sample in samples])

    def _check(self, logits: Tensor, image: Tensor) -> None:
        classes, dims = len(self.compatibility), len(self.spacing_mm)
        fits = logits.ndim == image.ndim == dims + 2 and logits.shape[1] == classes
        if not fits or len(logits) != len(image) or logits.shape[2:] != image.shape[2:]:
            raise DataError(
                f"logits are {tuple(logits.shape)} and the image {tuple(image.shape)}; give (B, {classes}, *spatial) "
                f"and (B, K, *spatial), in {dims}D and on one grid"
            )

    def _refine(self, logits: Tensor, image: Tensor) -> Tensor:
        appearance, smoothness = self.kernels.messages(image, self.spacing_mm)
        weighted = [(appearance, self.appearance_weight), (smoothness, self.smoothness_weight)]
        rounds = self.iterations if self.training else self.evaluation_iterations
        return mean_field(logits, weighted, self.compatibility, iterations=rounds)
