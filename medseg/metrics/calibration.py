"""Are the probabilities right? Expected calibration error, Brier score, and the temperature that mends them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

N_BINS = 15
LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class CalibrationBins:
    """Sums from which calibration is computed; those of several cases add up.

    Attributes:
        count: voxels a bin of predicted probability, equally wide bins from 0 to 1.
        probability: sum of their predicted probabilities.
        positive: how many of them the event happened at.
        squared_error: sum over all voxels of (probability - happened)^2.
    """

    count: NDArray[np.int64]
    probability: NDArray[np.float64]
    positive: NDArray[np.int64]
    squared_error: float

    def __add__(self, other: "CalibrationBins") -> "CalibrationBins":
        return CalibrationBins(
            self.count + other.count,
            self.probability + other.probability,
            self.positive + other.positive,
            self.squared_error + other.squared_error,
        )

    @property
    def ece(self) -> float | None:
        """Expected calibration error: mean over voxels of |probability - share that happened| of the voxel's bin.

        Reference:
            Naeini et al., AAAI 2015; Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
        """
        n = int(self.count.sum())
        return float(np.abs(self.probability - self.positive).sum() / n) if n else None

    @property
    def brier(self) -> float | None:
        """Brier score: mean squared difference of probability and what happened.

        Reference:
            Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950.
        """
        n = int(self.count.sum())
        return self.squared_error / n if n else None

    def curve(self) -> list[dict[str, float | int]]:
        """Reliability curve: `probability`, `frequency` and `count` of each bin that has voxels."""
        return [
            {"probability": float(summed / count), "frequency": float(positive / count), "count": int(count)}
            for count, summed, positive in zip(self.count, self.probability, self.positive, strict=True)
            if count
        ]


def calibration_bins(probability: ArrayLike, happened: ArrayLike, *, n_bins: int = N_BINS) -> CalibrationBins:
    """Sort voxels by predicted probability.

    For a region: its probability, and whether the voxel is in it. For the top class, as Guo et al. have it: the
    largest probability, and whether that class is right.

    Args:
        probability: any shape, 0 to 1.
        happened: 0 or 1, same shape.
        n_bins: equally wide bins; one that ends at a value includes it.

    Raises:
        ValueError: if the shapes differ or a probability is not in 0 ... 1.
    """
    predicted, truth = np.asarray(probability).reshape(-1), np.asarray(happened).reshape(-1).astype(bool)
    if predicted.shape != truth.shape:
        raise ValueError(f"{predicted.size} probabilities and {truth.size} labels; give one of each a voxel")
    if predicted.size and not (predicted.min() >= 0 and predicted.max() <= 1):
        raise ValueError(f"probabilities are {predicted.min():g} to {predicted.max():g}; give them after the softmax")
    place = np.clip(np.ceil(predicted * predicted.dtype.type(n_bins)).astype(np.intp) - 1, 0, n_bins - 1)
    return CalibrationBins(
        np.bincount(place, minlength=n_bins),
        np.bincount(place, weights=predicted, minlength=n_bins).astype(np.float64),
        np.bincount(place[truth], minlength=n_bins),
        float(np.square(predicted.astype(np.float64) - truth).sum()),
    )


def fit_temperature(
    logits: NDArray[Any], labels: NDArray[np.integer], *, ignore_label: int | None = None, sigmoid: bool = False
) -> float:
    """The temperature T for which softmax(logits / T) has the least cross-entropy; above 1 if the model is too sure.

    It changes no label, only probabilities. Fit it on validation cases, never on those it is judged on.
    Log-probabilities serve as logits: softmax does not see the constant between the two.

    Args:
        logits: `(C, *spatial)`, or `(C, N)` voxels drawn from many cases.
        labels: true class of each, `(*spatial)`; with `sigmoid` 0 or 1 of each channel, `(C, *spatial)`.
        ignore_label: label whose voxels are left out.
        sigmoid: channels are independent regions, each with its own sigmoid.

    Returns:
        T, between 0.05 and 20.

    Raises:
        ValueError: if the shapes do not fit, a label is no channel, or no voxel is left.

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    scores = np.asarray(logits, dtype=np.float64).reshape(len(logits), -1)
    truth = np.asarray(labels).reshape((len(scores), -1) if sigmoid else (-1,))
    if scores.shape[-1] != truth.shape[-1]:
        raise ValueError(f"logits have {scores.shape[-1]} voxels and labels {truth.shape[-1]}; give one label a voxel")
    if sigmoid:  # a channel's sigmoid is the softmax of its logit and 0
        scores, truth = np.stack([np.zeros(scores.size), scores.reshape(-1)]), truth.reshape(-1)
    if ignore_label is not None:
        scores, truth = scores[:, truth != ignore_label], truth[truth != ignore_label]
    if truth.size == 0:
        raise ValueError("no labeled voxel to fit a temperature to; give validation cases with labels")
    if truth.min() < 0 or truth.max() >= len(scores):
        raise ValueError(f"labels are {truth.min()} to {truth.max()} and logits have {len(scores)} channels")
    centered = scores - scores.max(axis=0)
    true = np.take_along_axis(centered, truth[None].astype(np.intp), axis=0)[0]

    def cross_entropy(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        return float((np.log(np.exp(sharpness * centered).sum(axis=0)) - sharpness * true).mean())

    from scipy.optimize import minimize_scalar  # slow to import, and prediction only divides by what it gave

    best = minimize_scalar(
        cross_entropy, bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(best.x))


def log_probabilities(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """What `fit_temperature` takes as logits where only probabilities `(C, *spatial)` were kept."""
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), LEAST_PROBABILITY))
