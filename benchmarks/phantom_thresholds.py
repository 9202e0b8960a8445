"""How far simple rules get on the phantom: an HU window, smoothing, largest connected component.

Every number of a rule is tuned on the training cases, with their labels; the Dice stated is that of the test cases.
The limits hold for the simple rules: window, smoothing, largest piece. What more effort buys (opening, pieces of a
tuned volume) is stated beside them.

    python benchmarks/phantom_thresholds.py [--dataset_dir PHANTOM] [--seed 0] [--out rules.json]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from medseg.data.phantom import make_phantom
from medseg.geometry import spacing_mm, voxel_volume_ml
from medseg.reading import read_label, read_scan

REGIONS = {"liver": (1, 2), "tumor": (2,)}
LIMITS = {"liver": 0.5, "tumor": 0.1}
SMOOTHING_MM = (0.0, 1.5, 3.0, 4.5, 6.0, 9.0, 13.0)
FINE_HU = np.arange(-60, 281, 2)
SMALLEST_ML = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0)
LARGEST_ML = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0, float("inf"))
VOLUMES_ML = [(low, high) for low, high in product(SMALLEST_ML, LARGEST_ML) if low < high]
EVERYTHING = (0.0, float("inf"))
OPENED, BY_VOLUME = "window, smoothing, opening, largest piece", "window, smoothing, pieces of a volume"
BEYOND_SIMPLE = (OPENED, BY_VOLUME)


@dataclass(frozen=True)
class Rule:
    """Voxels of `low_hu` to `high_hu` after smoothing; then, of their connected pieces, some.

    `opening` erodes that many times before the pieces are told apart and grows the kept ones back. `largest` keeps the
    largest piece, else those with a volume in `pieces_ml` stay.
    """

    smoothing_mm: float
    low_hu: float
    high_hu: float
    opening: int = 0
    largest: bool = False
    pieces_ml: tuple[float, float] = EVERYTHING


@dataclass(frozen=True)
class Case:
    """Smoothed HU by smoothing in mm, and one mask a region."""

    hu: dict[float, NDArray[np.int16]]
    masks: dict[str, NDArray[np.bool_]]
    voxel_ml: float


def main() -> None:
    """Tune, test, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, help="a phantom in MSD layout; made anew if not given")
    parser.add_argument("--seed", type=int, default=0, help="seed of the phantom made anew")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        dataset_dir = arguments.dataset_dir or make_phantom(Path(folder) / "phantom", seed=arguments.seed)
        training, test = read_split(dataset_dir, "Tr"), read_split(dataset_dir, "Ts")
    rows: list[dict[str, Any]] = []
    for region, search in {"liver": liver_rules, "tumor": tumor_rules}.items():
        for name, rule in search(training).items():
            scores = (mean_dice(rule, training, region), mean_dice(rule, test, region))
            rows.append(
                {"region": region, "rule": name, "training_dice": scores[0], "test_dice": scores[1], **asdict(rule)}
            )
    print(table(rows))
    for region, limit in LIMITS.items():
        highest = max(row["test_dice"] for row in rows if row["region"] == region and row["rule"] not in BEYOND_SIMPLE)
        print(f"{region}: best simple rule {highest:.3f}, limit {limit}: {'below' if highest < limit else 'NOT BELOW'}")
    print(f"{len(training)} training and {len(test)} test cases, {time.perf_counter() - start:.0f} s")
    if arguments.out:
        for row in rows:
            row["pieces_ml"] = [limit if np.isfinite(limit) else None for limit in row["pieces_ml"]]  # JSON has no inf
        arguments.out.write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_split(dataset_dir: Path, split: str) -> list[Case]:
    """Cases of `imagesTr` or `imagesTs` with their labels, smoothed in every way."""
    cases = []
    for path in sorted((dataset_dir / f"images{split}").glob("*.nii.gz")):
        scan, label = read_scan(path), read_label(dataset_dir / f"labels{split}" / path.name)
        voxels = scan.voxels.astype(np.float32)
        spacing = np.array(spacing_mm(scan.affine))
        hu = {mm: np.rint(gaussian_filter(voxels, mm / spacing)).astype(np.int16) for mm in SMOOTHING_MM}
        masks = {region: np.isin(label.voxels, values) for region, values in REGIONS.items()}
        cases.append(Case(hu, masks, voxel_volume_ml(scan.affine)))
    return cases


def liver_rules(training: Sequence[Case]) -> dict[str, Rule]:
    """The best window without and with smoothing, with the largest component, and with opening before it."""
    plain = best_window(training, "liver", SMOOTHING_MM[:1])
    smoothed = best_window(training, "liver", SMOOTHING_MM)
    windows = [(low, high) for low, high in product(range(40, 131, 10), range(70, 191, 10)) if high - low >= 20]
    rules = [Rule(mm, low, high, largest=True) for mm in SMOOTHING_MM for low, high in windows]
    component = refined(best(rules, training[::3], "liver"), training, "liver")
    wide = [(low, high) for low, high in product((40, 60, 80, 100), (90, 120, 150)) if high - low >= 20]
    grid = product(SMOOTHING_MM[1:4], wide, range(1, 6))
    opened = [Rule(mm, low, high, opening=steps, largest=True) for mm, (low, high), steps in grid]
    return {
        "window": plain,
        "window, smoothing": smoothed,
        "window, smoothing, largest piece": component,
        OPENED: refined(best(opened, training[::3], "liver"), training, "liver"),
    }


def tumor_rules(training: Sequence[Case]) -> dict[str, Rule]:
    """The best window without and with smoothing, with the largest component, and with pieces of a tuned volume."""
    plain = best_window(training, "tumor", SMOOTHING_MM[:1])
    smoothed = best_window(training, "tumor", SMOOTHING_MM)
    windows = [(low, high) for low, high in product(range(0, 161, 10), range(20, 201, 10)) if 10 <= high - low <= 60]
    rules = [Rule(mm, low, high) for mm in SMOOTHING_MM[1:] for low, high in windows]
    largest = best([replace(rule, largest=True) for rule in rules], training[::3], "tumor")
    pieces = max((with_best_pieces(rule, training[::2]) for rule in rules), key=second)[0]
    near = [
        Rule(pieces.smoothing_mm, pieces.low_hu + a, pieces.high_hu + b) for a, b in product((-5, 0, 5), (-5, 0, 5))
    ]
    pieces = max((with_best_pieces(rule, training) for rule in near), key=second)[0]
    return {
        "window": plain,
        "window, smoothing": smoothed,
        "window, smoothing, largest piece": refined(largest, training, "tumor"),
        BY_VOLUME: pieces,
    }


def second(pair: tuple[Rule, float]) -> float:
    """The score in `(rule, score)`."""
    return pair[1]


def best(rules: Iterable[Rule], cases: Sequence[Case], region: str) -> Rule:
    """The rule with the highest mean Dice."""
    return max(((rule, mean_dice(rule, cases, region)) for rule in rules), key=second)[0]


def refined(rule: Rule, cases: Sequence[Case], region: str) -> Rule:
    """The best rule with window ends moved by up to 10, then by 5 HU."""
    for step in (10, 5):
        moves = product((-step, 0, step), repeat=2)
        rule = best([replace(rule, low_hu=rule.low_hu + a, high_hu=rule.high_hu + b) for a, b in moves], cases, region)
    return rule


def best_window(cases: Sequence[Case], region: str, smoothing_mm: Sequence[float]) -> Rule:
    """The best of all windows on a 2 HU grid, from cumulative histograms."""
    found = []
    for mm in smoothing_mm:
        dice = []
        for case in with_region(cases, region):
            hu, mask = case.hu[mm], case.masks[region]
            inside, whole = (np.searchsorted(np.sort(values), FINE_HU) for values in (hu[mask], hu.ravel()))
            hits, size = inside[None, :] - inside[:, None], whole[None, :] - whole[:, None]
            dice.append(np.where(size > 0, 2 * hits / np.maximum(size + mask.sum(), 1), 0))
        mean = np.mean(dice, axis=0)
        low, high = np.unravel_index(mean.argmax(), mean.shape)
        found.append((Rule(mm, float(FINE_HU[low]), float(FINE_HU[high])), float(mean.max())))
    return max(found, key=second)[0]


def with_best_pieces(rule: Rule, cases: Sequence[Case]) -> tuple[Rule, float]:
    """`rule` with the piece volumes that suit the tumors best, and its mean Dice."""
    dice = []
    for case in with_region(cases, "tumor"):
        pieces, mask = numbered_pieces(rule, case), case.masks["tumor"]
        size = np.bincount(pieces.ravel())[1:]
        hits = np.bincount(pieces[mask], minlength=len(size) + 1)[1:]
        kept = [(size * case.voxel_ml >= low) & (size * case.voxel_ml <= high) for low, high in VOLUMES_ML]
        dice.append([2 * hits[keep].sum() / (size[keep].sum() + mask.sum()) for keep in kept])
    mean = np.mean(dice, axis=0)
    return replace(rule, pieces_ml=VOLUMES_ML[int(mean.argmax())]), float(mean.max())


def mean_dice(rule: Rule, cases: Sequence[Case], region: str) -> float:
    """Mean over the cases that have the region."""
    scores = []
    for case in with_region(cases, region):
        pred, mask = applied(rule, case), case.masks[region]
        scores.append(2 * np.count_nonzero(pred & mask) / (np.count_nonzero(pred) + np.count_nonzero(mask)))
    return float(np.mean(scores))


def with_region(cases: Sequence[Case], region: str) -> list[Case]:
    """Cases whose label has the region."""
    return [case for case in cases if case.masks[region].any()]


def applied(rule: Rule, case: Case) -> NDArray[np.bool_]:
    """What the rule marks."""
    window = in_window(rule, case)
    if not rule.largest and rule.pieces_ml == EVERYTHING:
        return window
    pieces = numbered_pieces(rule, case)
    size = np.bincount(pieces.ravel())
    size[0] = 0
    low, high = (limit / case.voxel_ml for limit in rule.pieces_ml)
    keep = np.arange(len(size)) == size.argmax() if rule.largest else (size >= low) & (size <= high)
    keep[0] = False
    kept = keep[pieces]
    return binary_dilation(kept, iterations=rule.opening, mask=window) if rule.opening else kept


def in_window(rule: Rule, case: Case) -> NDArray[np.bool_]:
    """Voxels of the smoothed scan in the window, its upper end excluded."""
    hu = case.hu[rule.smoothing_mm]
    return (hu >= rule.low_hu) & (hu < rule.high_hu)


def numbered_pieces(rule: Rule, case: Case) -> NDArray[np.uint32]:
    """Pieces joined through faces, which keeps touching organs apart best."""
    window = in_window(rule, case)
    if rule.opening:
        window = binary_erosion(window, iterations=rule.opening)
    pieces: NDArray[np.uint32] = cc3d.connected_components(window, connectivity=6)
    return pieces


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures as aligned text."""
    lines = [f"{'region':7}{'rule':44}{'training':>9}{'test':>7}   settings"]
    for row in rows:
        settings = f"{row['low_hu']:.0f} to {row['high_hu']:.0f} HU, smoothed {row['smoothing_mm']} mm"
        if row["pieces_ml"] != EVERYTHING:
            settings += f", {row['pieces_ml']} mL"
        settings += f", opened {row['opening']}" if row["opening"] else ""
        lines.append(
            f"{row['region']:7}{row['rule']:44}{row['training_dice']:9.3f}{row['test_dice']:7.3f}   {settings}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
