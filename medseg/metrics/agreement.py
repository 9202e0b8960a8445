"""Do two methods measure the same? Bias, Bland-Altman limits, intraclass correlation of volumes or diameters."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def agreement(pred: Sequence[float], reference: Sequence[float]) -> dict[str, float | int | None]:
    """Agreement of measurements of the same things, in their unit.

    Args:
        pred: of the prediction (or one reader), one a case or lesion.
        reference: of the reference (or another reader), in the same order.

    Returns:
        `n`; `bias`, the mean of pred - reference; `sd` of the differences; `limit_low` and `limit_high`, the 95 %
        limits of agreement (bias -/+ 1.96 sd); `bias_ci_low`, `bias_ci_high` (95 %, Student's t);
        `mean_absolute_error`; `mean_relative_error`, the mean of (pred - reference) / reference where reference is not
        0; `icc`. What needs more measurements than there are is None.

    Raises:
        ValueError: if the lengths differ or a number is not finite.

    Reference:
        Bland and Altman, "Statistical methods for assessing agreement between two methods of clinical measurement",
        Lancet 1986.
    """
    first, second = np.asarray(pred, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"pred has {first.size} numbers and reference {second.size}; give one of each a case")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("pred or reference has a number that is not finite; leave that case out of both")
    n, difference = len(first), first - second
    bias = float(difference.mean()) if n else None
    sd = float(difference.std(ddof=1)) if n > 1 else None
    present = second != 0
    relative = difference[present] / second[present]
    low = high = ci_low = ci_high = None
    if bias is not None and sd is not None:
        from scipy.stats import t  # a third of a second to import, and most callers never ask for it

        half = float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
        low, high, ci_low, ci_high = bias - 1.96 * sd, bias + 1.96 * sd, bias - half, bias + half
    return {
        "n": n,
        "bias": bias,
        "sd": sd,
        "limit_low": low,
        "limit_high": high,
        "bias_ci_low": ci_low,
        "bias_ci_high": ci_high,
        "mean_absolute_error": float(np.abs(difference).mean()) if n else None,
        "mean_relative_error": float(relative.mean()) if present.any() else None,
        "icc": intraclass_correlation(first, second),
    }


def intraclass_correlation(first: ArrayLike, second: ArrayLike) -> float | None:
    """ICC(A,1): two-way random effects, absolute agreement, single measurement; None where nothing varies or n < 2.

    The form that counts a constant offset between the two as disagreement, which the consistency form does not. It is
    Shrout and Fleiss's ICC(2,1).

    Args:
        first: measurements by one method, one a case.
        second: by the other, in the same order.

    Reference:
        McGraw and Wong, "Forming inferences about some intraclass correlation coefficients", Psychological Methods
        1996; Shrout and Fleiss, "Intraclass correlations: uses in assessing rater reliability", 1979.
    """
    table = np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)], axis=1)
    n, raters = table.shape
    if n < 2:
        return None
    grand, of_case, of_rater = table.mean(), table.mean(axis=1), table.mean(axis=0)
    cases = raters * ((of_case - grand) ** 2).sum() / (n - 1)
    methods = n * ((of_rater - grand) ** 2).sum() / (raters - 1)
    residual = table - of_case[:, None] - of_rater + grand
    error = (residual**2).sum() / ((n - 1) * (raters - 1))
    whole = cases + (raters - 1) * error + raters * (methods - error) / n
    return float((cases - error) / whole) if whole > 0 else None
