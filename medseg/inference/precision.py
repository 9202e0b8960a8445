"""Whether a model may run in fewer bits: its labels beside those in float32, kept with the bundle.

The precision belongs to the bundle and not to the machine: a timing must not change a patient's volumes from one
workstation to the next.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.bundle import METADATA, Bundle
from medseg.errors import ConfigError, DataError
from medseg.reading import Scan
from medseg.writing import aside

Segment = Callable[[Sequence[Scan]], NDArray[np.uint8]]  # a `Predictor`, for one
CheckedCase = tuple[Sequence[Scan], NDArray[np.generic] | None]  # channels, and the expert's label if there is one

LEAST_AGREEMENT = 0.999  # share of a case's voxels
MOST_DICE_DIFFERENCE = 0.001  # of any region, mean over the cases


def agreement(
    predictor: Segment, other: Segment, cases: Iterable[CheckedCase], *, regions: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """How far two predictors agree.

    Args:
        predictor: the one to go by, in float32.
        other: the one that is judged.
        cases: where an expert's label is there the regions are compared with it, else those of the two predictors with
            each other, which asks for more.
        regions: name -> label values.

    Returns:
        `cases`, their number; `labeled`, how many have a label; `agreement`, the lowest share of equal voxels of a
        case; `dice_difference`, region -> how far the mean Dice differs.

    Raises:
        DataError: if there is no case, or a label has another shape than its scan.
    """
    shares: list[float] = []
    labeled = 0
    dice: dict[str, list[tuple[float, float]]] = {region: [] for region in regions}
    for scans, label in cases:
        mine, its = predictor(scans), other(scans)
        shares.append(float(np.mean(mine == its)))
        labeled += label is not None
        if label is not None and label.shape != mine.shape:
            raise DataError(f"a label is {label.shape} voxels, its scan {mine.shape}; export both on one grid")
        for region, values in regions.items():
            first, second = np.isin(mine, values), np.isin(its, values)
            if label is None:
                dice[region].append((1.0, overlap(first, second)))
            else:
                truth = np.isin(label, values)
                dice[region].append((overlap(first, truth), overlap(second, truth)))
    if not shares:
        raise DataError("there is no case to compare the precisions on; give scans like those the model is for")
    differences = {region: abs(float(np.diff(np.mean(pairs, axis=0))[0])) for region, pairs in dice.items()}
    return {"cases": len(shares), "labeled": labeled, "agreement": min(shares), "dice_difference": differences}


def overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Dice of two regions; 1 if both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def passes(found: Mapping[str, Any]) -> bool:
    """Whether an `agreement` is close enough to run a model in the precision that was judged."""
    differences = found["dice_difference"].values()
    return found["agreement"] >= LEAST_AGREEMENT and max(differences, default=0.0) <= MOST_DICE_DIFFERENCE


def store(bundle: Bundle, precision: str, found: Mapping[str, Any]) -> bool:
    """Write the check into the bundle's metadata; if it has passed, the bundle's precision is this from now on.

    Args:
        bundle: in a folder.
        precision: what was judged beside float32.
        found: an `agreement`.

    Returns:
        Whether it has passed.

    Raises:
        ConfigError: if the bundle is a zip.
    """
    if not bundle.root.is_dir():
        raise ConfigError(f"model '{bundle.name}' is a zip, which is not changed; unpack it, and give the folder")
    passed = passes(found)
    checked = {"precision": precision, "passed": passed, **found}
    with aside(bundle.root / METADATA) as path:
        path.write_text(json.dumps(bundle.metadata | {"precision_check": checked}, indent=2) + "\n", encoding="utf-8")
    return passed


def summary(found: Mapping[str, Any]) -> str:
    """An `agreement` in a line."""
    differences = ", ".join(f"{region} {value:.4f}" for region, value in found["dice_difference"].items())
    against = f"{found['labeled']} labeled" if found["labeled"] else "against each other, none labeled"
    return (
        f"{found['agreement']:.4%} of voxels or more equal, Dice differs by {differences} "
        f"({found['cases']} cases, {against})"
    )
