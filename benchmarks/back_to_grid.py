"""Logits back to the scan's grid: medseg beside interpolate + argmax, MONAI and nnU-Net v2.

    python benchmarks/back_to_grid.py [--full] [--rounds 3] [--nnunet PYTHON] [--json FILE]

Without `--full` a scan of 256x256x100 voxels (0.8x0.8x2 mm, working grid 1.5 mm) with 3, 14 and 105 classes; with it
511x511x199. (Sizes are such that the grids' corners meet, so that torch's `interpolate` means the same grid.) Logits
are those of round organs, sharp inside and noisy, as a trained network's are. A way that needs more memory than there
is is left out and said. Labels must be those of interpolate + argmax; voxels that differ must be ties within 1e-4.
Where that way is left out, 100000 voxels, half of them beside other labels, are judged by SciPy in float64.
`medseg, confidence too` keeps the probability of each voxel's label and regions, as `medseg predict` does.
nnU-Net lays the two grids edge to edge, not corner voxel on corner voxel: of its labels it is only told how many
differ.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import Figures, apart, finish, measured, medians

SPACING_MM, WORKING_MM = (0.8, 0.8, 2.0), 1.5
SIZES = {False: (256, 256, 100), True: (511, 511, 199)}
OWN, OWN_SURE = "medseg", "medseg, confidence too"
BYTES_A_VOXEL = {OWN: 2, OWN_SURE: 3, "interpolate + argmax": 5, "MONAI": 20, "nnU-Net": 14, "nnU-Net torch": 9}


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the size of a clinical CT")
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 14, 105])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nnunet", help="a Python that has nnunetv2")
    parser.add_argument("--json", type=Path, help="file for the figures; the table is written beside it")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "LOGITS", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.one, SIZES[arguments.full])))
        return
    rows: list[Figures] = []
    for classes in arguments.classes:
        rows += compared(classes, arguments)
    finish(
        rows, f"scan {SIZES[arguments.full]}, {arguments.rounds} interleaved rounds, medians, 1 thread", arguments.json
    )


def compared(classes: int, arguments: argparse.Namespace) -> list[Figures]:
    """A row a way, with ratios to medseg's."""
    from medseg.memory import available_mb

    shape = SIZES[arguments.full]
    nnunet = Path(__file__).parent / "peers" / "back_to_grid_nnunet.py"
    ways = [way for way in BYTES_A_VOXEL if arguments.nnunet or not way.startswith("nnU-Net")]
    with tempfile.TemporaryDirectory() as folder:
        logits = Path(folder) / "logits.npy"
        np.save(logits, organs(classes, working_shape(shape)))
        found: dict[str, list[Figures]] = {}
        for _ in range(arguments.rounds):
            for way in ways:
                channels = 1 if way in (OWN, OWN_SURE) else classes
                needed_mb = (np.prod(shape) * channels * BYTES_A_VOXEL[way] + logits.stat().st_size) / 2**20
                if needed_mb > 0.8 * available_mb():
                    print(f"{classes} classes, {way}: left out, needs about {needed_mb:.0f} MB", file=sys.stderr)
                    continue
                out = Path(folder) / f"{way}.npy"
                if way.startswith("nnU-Net"):
                    settings = json.dumps({"shape": shape, "spacing_mm": SPACING_MM, "working_mm": WORKING_MM})
                    figures = apart(arguments.nnunet, nnunet, way, logits, out, settings)
                else:
                    full = ["--full"] if arguments.full else []
                    figures = apart(sys.executable, Path(__file__), *full, "--one", way, logits, out)
                found.setdefault(way, []).append(figures)
        labels = {way: np.load(Path(folder) / f"{way}.npy") for way in found}
        reference = labels.get("interpolate + argmax")
        rows = []
        own = medians(found[OWN])
        for way, rounds in found.items():
            row = {"classes": classes, "way": way, **medians(rounds)}
            for key, ratio in (("wall_s", "times_wall"), ("cpu_s", "times_cpu"), ("peak_mb", "times_peak")):
                row[ratio] = row[key] / max(own[key], 1e-3)
            if reference is not None:
                different = labels[way] != reference
                row["differ"] = int(different.sum())
                row["beyond_ties"] = beyond_ties(np.load(logits, mmap_mode="r"), different, shape)
            elif way in (OWN, OWN_SURE):
                row["beyond_ties"] = wrong_voxels(np.load(logits), labels[way])
            if way in (OWN, OWN_SURE) and row["beyond_ties"]:
                raise SystemExit(f"{way}: {row['beyond_ties']} voxels are not those of interpolate + argmax")
            if way == OWN_SURE and not np.array_equal(labels[way], labels[OWN]):
                raise SystemExit("labels are others where confidence is kept")
            rows.append(row)
    return rows


def working_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The working grid of a scan."""
    return tuple(round((n - 1) * mm / WORKING_MM) + 1 for n, mm in zip(shape, SPACING_MM, strict=True))


def organs(classes: int, shape: tuple[int, ...]) -> np.ndarray:
    """Logits `(C, *shape)` float32 of balls in a body, of which the second holds the third as an organ its lesion."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    logits = np.empty((classes, *shape), np.float32)
    logits[0] = 4
    for index in range(1, classes):
        center = (0.25, 0.1, 0.0) if index <= 2 else rng.uniform(-0.6, 0.6, 3)
        radius = 0.4 if index == 1 else 0.08 if index == 2 else rng.uniform(0.08, 0.2)
        distance = np.sqrt(sum((axis - middle) ** 2 for axis, middle in zip(axes, center, strict=True)))
        np.clip((radius - distance) * (40 if index != 2 else 80), -8, 8 if index != 2 else 16, out=logits[index])
    logits += rng.normal(scale=0.3, size=logits.shape[1:]).astype(np.float32)[None] * np.linspace(
        -1, 1, classes, dtype=np.float32
    ).reshape(-1, 1, 1, 1)
    return logits


def one(way: str, logits_file: str, out: str, shape: tuple[int, ...]) -> Figures:
    """Figures of one way in this process; its labels go to `out`."""
    import torch

    torch.set_num_threads(1)
    logits = torch.from_numpy(np.load(logits_file))
    work: dict[str, Callable[[torch.Tensor, tuple[int, ...]], Callable[[], np.ndarray]]] = {
        OWN: by_medseg,
        OWN_SURE: by_medseg_with_confidence,
        "interpolate + argmax": by_interpolate,
        "MONAI": by_monai,
    }
    label, figures = measured(work[way](logits, shape))
    np.save(out, np.asarray(label, np.uint8))
    return figures


def by_medseg(logits, shape):
    """As `medseg predict` does it."""
    import torch

    from medseg.back_to_grid import logits_to_label
    from medseg.preprocessing import ScanToGrid

    grid = ScanToGrid(spacing_mm=[WORKING_MM] * 3, intensity=torch.abs).grid(shape, np.diag([*SPACING_MM, 1.0]))
    return lambda: logits_to_label(logits, grid)


def by_medseg_with_confidence(logits, shape):
    """As `medseg predict` does it, with the probability of each label and of a region of two."""
    import torch

    from medseg.back_to_grid import LabelMaker
    from medseg.confidence import Confidence
    from medseg.preprocessing import ScanToGrid

    grid = ScanToGrid(spacing_mm=[WORKING_MM] * 3, intensity=torch.abs).grid(shape, np.diag([*SPACING_MM, 1.0]))
    regions = {"organ": [1, 2], **{f"class {value}": [value] for value in range(2, len(logits))}}
    slabs = [(slice(0, logits.shape[1]), logits)]
    return lambda: LabelMaker().from_slabs(slabs, grid, watch=Confidence(regions, grid))


def by_interpolate(logits, shape):
    """The whole stack by torch, and its argmax."""
    from torch.nn.functional import interpolate

    return lambda: interpolate(logits[None], shape, mode="trilinear", align_corners=True)[0].argmax(dim=0).numpy()


def by_monai(logits, shape):
    """`Spacing.inverse`, as `Invertd(nearest_interp=False)` does it, and `AsDiscrete(argmax=True)`."""
    import torch
    from monai.data import MetaTensor
    from monai.transforms import AsDiscrete, Spacing

    spacing, affine = Spacing([WORKING_MM] * 3, mode="bilinear", padding_mode="border"), np.diag([*SPACING_MM, 1.0])
    there = spacing(MetaTensor(torch.zeros(1, *shape), affine=affine))
    there = MetaTensor(logits, affine=there.affine, applied_operations=there.applied_operations)
    return lambda: AsDiscrete(argmax=True)(spacing.inverse(there))[0].numpy()


def wrong_voxels(logits: np.ndarray, label: np.ndarray, sample: int = 100_000) -> int:
    """How many of some voxels have another label than the largest logit in float64, ties within 1e-4 aside."""
    from scipy.ndimage import map_coordinates

    rng = np.random.default_rng(0)
    border = np.zeros(label.shape, bool)
    for axis in range(3):
        ahead = np.diff(label, axis=axis) != 0
        border[tuple(slice(1, None) if own == axis else slice(None) for own in range(3))] |= ahead
    beside = np.flatnonzero(border)
    chosen = [
        rng.integers(0, label.size, sample // 2),
        rng.choice(beside, min(len(beside), sample // 2), replace=False),
    ]
    voxels = np.stack(np.unravel_index(np.concatenate(chosen), label.shape))
    position = voxels * (np.array(SPACING_MM) / WORKING_MM)[:, None]
    values = np.stack([map_coordinates(channel, position, np.float64, order=1, mode="nearest") for channel in logits])
    own = np.take_along_axis(values, label[tuple(voxels)][None].astype(int), axis=0)[0]
    return int(np.count_nonzero(values.max(axis=0) - own > 1e-4))


def beyond_ties(logits: np.ndarray, different: np.ndarray, shape: tuple[int, ...]) -> int:
    """How many of the voxels that differ are no ties within 1e-4 in float64."""
    from scipy.ndimage import map_coordinates

    voxels = np.argwhere(different)[:100000]
    if not len(voxels):
        return 0
    position = voxels.T * (np.array(SPACING_MM) / WORKING_MM)[:, None]
    values = np.sort(
        [map_coordinates(channel, position, np.float64, order=1, mode="nearest") for channel in logits], axis=0
    )
    return int(np.count_nonzero(values[-1] - values[-2] > 1e-4) * different.sum() / len(voxels))


if __name__ == "__main__":
    main()
