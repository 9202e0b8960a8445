"""What a set of cases says: means with confidence intervals, and figures of all cases taken together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95

Summary = dict[str, float | int | None]


def summary(
    rows: Sequence[Mapping[str, Any]],
    *,
    names: Sequence[str] | None = None,
    patients: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Summary]:
    """For each number of the cases' rows its mean, spread and confidence interval.

    Values that are None (or not finite) are left out and counted, so that a mean is never nan.

    Args:
        rows: one a case, as `CaseMetrics.row` gives them; text is passed over.
        names: columns; all that hold a number if not given.
        patients: who each case is of. Cases of one patient are drawn together in the bootstrap, since they are alike.
        resamples: of the bootstrap.
        seed: of the bootstrap: same rows, same interval.

    Returns:
        Name -> `n`, `mean`, `sd`, `median`, `min`, `max`, `ci_low`, `ci_high` (95 %, percentile bootstrap of the mean),
        `left_out` (rows with the column, without a number in it). With n = 0 all but the counts are None, with one
        case or patient the interval is.

    Raises:
        ValueError: if there are not as many patients as rows.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; by patient: the cluster bootstrap of Field and
        Welsh, 2007.
    """
    if patients is not None and len(patients) != len(rows):
        raise ValueError(f"{len(patients)} patients for {len(rows)} rows; give each row its patient")
    clusters = np.unique(np.asarray(patients if patients is not None else range(len(rows))), return_inverse=True)[1]
    columns = list(dict.fromkeys(name for row in rows for name in row)) if names is None else list(names)
    summaries: dict[str, Summary] = {}
    for name in columns:
        listed = [(row[name], cluster) for row, cluster in zip(rows, clusters, strict=True) if name in row]
        kept = [(float(value), cluster) for value, cluster in listed if _is_number(value)]
        if names is None and not kept and any(value is not None for value, _ in listed):
            continue  # text
        values = np.array([value for value, _ in kept])
        of_patient = np.array([cluster for _, cluster in kept], dtype=np.intp)
        summaries[name] = _summary(values, of_patient, resamples, seed) | {"left_out": len(listed) - len(kept)}
    return summaries


def bootstrap_means(
    values: NDArray[np.float64], clusters: NDArray[np.intp], *, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Means of `resamples` draws of whole clusters with replacement, as many clusters as there are.

    Args:
        values: one a case.
        clusters: which cluster each is of; any integers.
        resamples: how many means.
        seed: of the draws.
    """
    _, of_cluster = np.unique(clusters, return_inverse=True)
    sums, counts = np.bincount(of_cluster, weights=values), np.bincount(of_cluster)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    return np.asarray(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))


def _summary(values: NDArray[np.float64], clusters: NDArray[np.intp], resamples: int, seed: int) -> Summary:
    n = len(values)
    if n == 0:
        return {"n": 0, **dict.fromkeys(("mean", "sd", "median", "min", "max", "ci_low", "ci_high"))}
    low = high = None
    if len(np.unique(clusters)) > 1:
        means = bootstrap_means(values, clusters, resamples=resamples, seed=seed)
        low, high = np.percentile(means, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]).tolist()
    return {
        "n": n,
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if n > 1 else None,
        "median": float(np.median(values)),
        "min": float(values.min()),
        "max": float(values.max()),
        "ci_low": low,
        "ci_high": high,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(np.isfinite(value))
