"""Metrics of one case beside MONAI's and those of the `surface-distance` package: seconds and peak memory.

The case is made here: a liver and 12 tumors on 512 x 512 x 200 voxels of 0.75 x 0.75 x 2 mm, and a prediction that is
off by a few voxels. Each way is measured in processes of its own, round by round in turn, on one thread: CPU seconds,
and the peak memory beyond what the process needs with the imports made and both maps loaded. Where two ways compute
the same, the figures are compared too, and a difference ends the program.

    python benchmarks/metrics.py [--rounds 3] [--out metrics.json]

The table goes to the terminal and, with `--out`, beside the JSON as Markdown. Needs `pip install medseg[test]`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.memory import peak_memory_mb

SHAPE, SPACING_MM, TOLERANCE_MM = (512, 512, 200), (0.75, 0.75, 2.0), 2.0
MAKE = "make_case"
REGIONS = {"liver": [1, 2], "tumor": [2]}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Figures = dict[str, float]


def medseg_voxel(pred: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Figures:
    """Dice, HD95 and surface Dice in MONAI's definition."""
    return medseg_figures(pred, reference, "voxel")


def medseg_subvoxel(pred: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Figures:
    """HD95 and surface Dice in surface-distance's definition (and the overlap, which comes along)."""
    return medseg_figures(pred, reference, "subvoxel")


def medseg_figures(pred: NDArray[np.uint8], reference: NDArray[np.uint8], definition: Any) -> Figures:
    """Dice, HD95 and surface Dice of both regions."""
    from medseg.metrics import case_metrics

    case = case_metrics(
        pred, reference, SPACING_MM, REGIONS, tolerances_mm=[TOLERANCE_MM], definitions=[definition]
    ).row()
    kind = "" if definition == "voxel" else "_subvoxel"
    names = {"hd95": f"hd95{kind}_mm", "nsd": f"nsd{kind}_2mm"} | ({"dice": "dice"} if definition == "voxel" else {})
    return {f"{region}_{short}": float(case[f"{region}_{name}"]) for region in REGIONS for short, name in names.items()}


def medseg_card(pred: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Figures:
    """All of a case: overlap, both kinds of surfaces, lesions."""
    from medseg.metrics import case_metrics

    case = case_metrics(pred, reference, SPACING_MM, REGIONS, lesion_region="tumor").row()
    return {name: value for name, value in case.items() if isinstance(value, float)}


def monai(pred: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Figures:
    """Dice, HD95 and surface Dice of MONAI, from one channel a region."""
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    def channels(label: NDArray[np.uint8]) -> torch.Tensor:
        maps = torch.from_numpy(label)
        return torch.stack([maps > 0, maps == 2])[None].float()

    both = {"y_pred": channels(pred), "y": channels(reference), "include_background": True}
    found = {
        "dice": compute_dice(**both),
        "hd95": compute_hausdorff_distance(**both, percentile=95, spacing=SPACING_MM),
        "nsd": compute_surface_dice(**both, class_thresholds=[TOLERANCE_MM] * 2, spacing=SPACING_MM),
    }
    return {f"{region}_{name}": float(found[name][0, i]) for i, region in enumerate(REGIONS) for name in found}


def surface_distance(pred: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Figures:
    """HD95 and surface Dice of DeepMind's package."""
    import surface_distance as package

    figures = {}
    for region, values in REGIONS.items():
        masks = np.isin(reference, values), np.isin(pred, values)
        distances = package.compute_surface_distances(*masks, SPACING_MM)
        figures[f"{region}_hd95"] = float(package.compute_robust_hausdorff(distances, 95))
        figures[f"{region}_nsd"] = float(package.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM))
    return figures


WAYS: dict[str, Callable[[NDArray[np.uint8], NDArray[np.uint8]], Figures]] = {
    "monai": monai,
    "medseg_voxel": medseg_voxel,
    "surface_distance": surface_distance,
    "medseg_subvoxel": medseg_subvoxel,
    "medseg_card": medseg_card,
}
PAIRS = (  # ours, the peer, if they compute the same, what is asked for: times faster and times less memory
    ("medseg_voxel", "monai", True, 15, 8),
    ("medseg_subvoxel", "surface_distance", True, 3, None),
    ("medseg_card", "monai", False, 4, None),
)


def main() -> None:
    """Measure every way, compare the figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # how this program calls itself
    parser.add_argument("--maps", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.measure:
        done = make_case(settings.maps) if settings.measure == MAKE else measured(settings.measure, settings.maps)
        print(json.dumps(done))
        return
    with tempfile.TemporaryDirectory() as folder:
        in_own_process(MAKE, Path(folder))  # a child's peak counts from its parent's at its start: this one stays small
        rounds = [{way: in_own_process(way, Path(folder)) for way in WAYS} for _ in range(settings.rounds)]
    comparisons = [compared(rounds, *pair) for pair in PAIRS]
    text = table(rounds, comparisons)
    print(text)
    if settings.out:
        found = {"rounds": rounds, "comparisons": comparisons}
        settings.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        settings.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")


def make_case(folder: Path) -> dict[str, Any]:
    """Write prediction and reference: 0 outside, 1 liver, 2 tumor."""
    draw = np.random.default_rng(0)
    reference, pred = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    reference[organ((210, 250, 100), (115, 95, 62))] = 1
    pred[organ((212, 249, 101), (116, 94, 61))] = 1
    for _ in range(12):
        center, radius = draw.uniform((140, 195, 65), (280, 305, 135)), draw.uniform(3, 16)
        reference[ball(center, radius)] = 2
        pred[ball(center + draw.uniform(-2, 2, 3), radius * draw.uniform(0.8, 1.2))] = 2
    np.save(folder / "pred.npy", pred)
    np.save(folder / "reference.npy", reference)
    return {}


def organ(center: tuple[float, ...], radii: tuple[float, ...]) -> NDArray[np.bool_]:
    """An ellipsoid with a wavy surface."""
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    inside = sum(((axis - at) / radius) ** 2 for axis, at, radius in zip((x, y, z), center, radii, strict=True))
    return np.asarray(inside + 0.08 * np.sin(x / 9) * np.cos(y / 11) * np.sin(z / 6) < 1)


def ball(center: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    """Round in mm: flatter in voxels along the third axis."""
    grid = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    flatness = (1.0, 1.0, SPACING_MM[2] / SPACING_MM[0])
    away = sum(((axis - at) * flat) ** 2 for axis, at, flat in zip(grid, center, flatness, strict=True))
    return np.asarray(away < max(radius, 2.0) ** 2)


def in_own_process(way: str, maps: Path) -> dict[str, Any]:
    """Seconds, memory and figures of one way."""
    command = [sys.executable, __file__, "--measure", way, "--maps", str(maps)]
    environment = os.environ | dict.fromkeys(THREADS, "1")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{way} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measured(way: str, folder: Path) -> dict[str, Any]:
    """The same, in this process."""
    tiny = np.zeros((9, 9, 9), dtype=np.uint8)
    tiny[2:5, 2:5, 2:5] = 2
    WAYS[way](tiny, np.roll(tiny, 1))  # imports and first-call costs are not what is compared
    pred, reference = (np.load(folder / f"{name}.npy") for name in ("pred", "reference"))
    idle_mb = peak_memory_mb()
    seconds, cpu = time.perf_counter(), time.process_time()
    figures = WAYS[way](pred, reference)
    seconds, cpu = time.perf_counter() - seconds, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak_memory_mb() - idle_mb, "figures": figures}


def compared(
    rounds: list[dict[str, Any]], ours: str, peer: str, same: bool, faster: float, smaller: float | None
) -> dict[str, Any]:
    """Ratios of one pair within each round; the program ends if figures that must be equal are not."""
    first = rounds[0]
    if same:
        for name, value in first[ours]["figures"].items():
            other = first[peer]["figures"][name]
            if abs(value - other) > 1e-4 * max(1.0, abs(other)):  # MONAI computes in float32
                sys.exit(f"{name}: {ours} has {value}, {peer} {other}")
    speed = [entry[peer]["cpu_seconds"] / entry[ours]["cpu_seconds"] for entry in rounds]
    memory = [entry[peer]["peak_mb"] / max(1, entry[ours]["peak_mb"]) for entry in rounds]
    return {
        "ours": ours,
        "peer": peer,
        "figures_equal": same,
        "times_faster": statistics.median(speed),
        "times_faster_range": [min(speed), max(speed)],
        "times_faster_asked": faster,
        "times_less_memory": statistics.median(memory),
        "times_less_memory_asked": smaller,
    }


def table(rounds: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = ["| way | CPU s | wall s | peak MB |", "|---|---|---|---|"]
    for way in WAYS:
        cpu, wall, peak = (
            statistics.median(entry[way][key] for entry in rounds) for key in ("cpu_seconds", "seconds", "peak_mb")
        )
        lines.append(f"| {way} | {cpu:.2f} | {wall:.2f} | {peak:.0f} |")
    lines += ["", "| ours | peer | times faster (range) | asked | times less memory | asked | figures |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for pair in comparisons:
        low, high = pair["times_faster_range"]
        lines.append(
            f"| {pair['ours']} | {pair['peer']} | {pair['times_faster']:.1f} ({low:.1f} to {high:.1f}) "
            f"| {pair['times_faster_asked']} | {pair['times_less_memory']:.1f} "
            f"| {pair['times_less_memory_asked'] or '-'} | {'equal' if pair['figures_equal'] else 'more of them'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
