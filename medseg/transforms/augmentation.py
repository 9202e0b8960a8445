"""Random changes of training patches, from MONAI's transforms, in nnU-Net's order."""

from collections.abc import Sequence
from math import pi, radians

from monai.transforms import (
    Rand2DElasticd,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    Transform,
)

KEYS = ("image", "label")
MODES = ("bilinear", "nearest")  # of image and label
ELASTIC_SIGMA = 6.0  # voxels; smoothness of the displacement


def augmentation(
    spatial_dims: int,
    *,
    flip_axes: Sequence[int] = (),
    rotation_degrees: float = 10.0,
    scaling: float = 0.1,
    spatial_probability: float = 0.3,
    elastic_voxels: float = 3.0,
    elastic_probability: float = 0.0,
    noise: float = 0.02,
    brightness: float = 0.1,
    contrast: float = 0.1,
    intensity_probability: float = 0.3,
    blur: float = 1.0,
    blur_probability: float = 0.0,
    lowest_resolution: float = 0.5,
    low_resolution_probability: float = 0.0,
    gamma: Sequence[float] = (0.7, 1.5),
    gamma_probability: float = 0.0,
) -> list[Transform]:
    """Random changes of patches; a probability of zero leaves the change out.

    Args:
        spatial_dims: 2 or 3.
        flip_axes: axes mirrored with probability one half; an abdomen has a left and a right, so none by default.
        rotation_degrees: largest angle about each axis.
        scaling: largest relative change of size.
        spatial_probability: how often rotation with scaling happens.
        elastic_voxels: size of the largest elastic displacements.
        elastic_probability: how often; in 3D it costs about as much as a training step on a CPU.
        noise: standard deviation of Gaussian noise, in units of the prepared image.
        brightness: largest shift, in units of the prepared image.
        contrast: largest relative change of contrast, and of the exponent of the gamma that comes with it.
        intensity_probability: how often each of noise, brightness and contrast happens.
        blur: largest standard deviation of Gaussian smoothing, in voxels.
        blur_probability: how often.
        lowest_resolution: down to which share of its grid a patch is reduced and enlarged again.
        low_resolution_probability: how often.
        gamma: range of a wider gamma, with mean and standard deviation kept.
        gamma_probability: how often; half as often once more on the inverted image.

    Reference:
        Isensee et al., "nnU-Net", Nature Methods 2021, arXiv:1904.08128, supplement (kinds and ranges).
    """
    optional: list[tuple[float, Transform]] = [
        (blur_probability, RandGaussianSmoothd("image", **_each_axis((0.5, blur)), prob=blur_probability)),
        (
            low_resolution_probability,
            RandSimulateLowResolutiond(
                "image",
                prob=low_resolution_probability,
                zoom_range=(lowest_resolution, 1.0),
                upsample_mode="bilinear" if spatial_dims == 2 else "trilinear",
            ),
        ),
        (gamma_probability, _gamma(gamma, gamma_probability, inverted=False)),
        (gamma_probability, _gamma(gamma, gamma_probability / 2, inverted=True)),
    ]
    return [
        *(RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in flip_axes),
        RandAffined(
            KEYS,
            prob=spatial_probability,
            rotate_range=[radians(rotation_degrees)] * (1 if spatial_dims == 2 else 3),
            scale_range=[scaling] * spatial_dims,
            mode=MODES,
            padding_mode="border",
        ),
        *([_elastic(spatial_dims, elastic_voxels, elastic_probability)] if elastic_probability else []),
        RandGaussianNoised("image", prob=intensity_probability, std=noise),
        RandShiftIntensityd("image", offsets=brightness, prob=intensity_probability),
        RandScaleIntensityd("image", factors=contrast, prob=intensity_probability),
        RandAdjustContrastd("image", prob=intensity_probability, gamma=(1 - contrast, 1 + contrast)),
        *(transform for probability, transform in optional if probability),
    ]


def _elastic(spatial_dims: int, voxels: float, probability: float) -> Transform:
    """Smooth random displacement of at most about `voxels`, image and label alike."""
    common = {"prob": probability, "mode": MODES, "padding_mode": "border"}
    if spatial_dims == 2:  # MONAI displaces the points of a coarse grid, in voxels
        return Rand2DElasticd(KEYS, spacing=[2 * ELASTIC_SIGMA] * 2, magnitude_range=(0.0, voxels), **common)
    # MONAI smooths uniform noise in [-1, 1] and scales it: two standard deviations of the result are to be `voxels`
    deviation = 3**-0.5 * (2 * pi**0.5 * ELASTIC_SIGMA) ** -1.5
    magnitude = voxels / (2 * deviation)
    return Rand3DElasticd(KEYS, sigma_range=(ELASTIC_SIGMA,) * 2, magnitude_range=(0.0, magnitude), **common)


def _gamma(gamma: Sequence[float], probability: float, *, inverted: bool) -> Transform:
    return RandAdjustContrastd("image", prob=probability, gamma=tuple(gamma), invert_image=inverted, retain_stats=True)


def _each_axis(sigma: tuple[float, float]) -> dict[str, tuple[float, float]]:
    return {f"sigma_{axis}": sigma for axis in "xyz"}
