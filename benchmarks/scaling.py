"""Memory of one case over its number of slices, and over a run of many cases.

    python benchmarks/scaling.py [--full] [--cases 200] [--json FILE]

A network of one 1x1 convolution, so that what is measured is all but the network: preparing, windows, and the way back
to the scan's grid. Each size runs in its own process; `peak_mb` is above the process with the model and the scan in
it, `scan_mb` the scan's own. Without `--full` 256x256x100 to x400, with it 512x512x200 to x800; 0.8x0.8x1 mm to a
working grid of 1.5 mm, windows of 96, 3 and 14 classes. `fit_mb` is what a straight line through the other sizes says:
linear in slices if it is near `peak_mb`. The last rows are resident memory after each quarter of a run of small cases.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import Figures, apart, finish, measured

SIZES = {False: (256, (100, 200, 400)), True: (512, (200, 400, 800))}
CLASSES = (3, 14)
SPACING_MM, WORKING_MM, PATCH = (0.8, 0.8, 1.0), 1.5, 96


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the issue's size")
    parser.add_argument("--cases", type=int, default=200, help="small cases one after the other")
    parser.add_argument("--json", type=Path, help="file for the figures; the table is written beside it")
    parser.add_argument("--one", nargs=3, type=int, metavar=("EDGE", "SLICES", "CLASSES"), help=argparse.SUPPRESS)
    parser.add_argument("--many", type=int, metavar="CASES", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.one)))
        return
    if arguments.many:
        print(json.dumps(many(arguments.many)))
        return
    edge, counts = SIZES[arguments.full]
    rows: list[Figures] = []
    for classes in CLASSES:
        found = [apart(sys.executable, Path(__file__), "--one", edge, count, classes) for count in counts]
        peaks = [each["peak_mb"] for each in found]
        for index, (count, figures) in enumerate(zip(counts, found, strict=True)):
            others = [each for other, each in enumerate(zip(counts, peaks, strict=True)) if other != index]
            (x0, y0), (x1, y1) = others
            fit = y0 + (y1 - y0) * (count - x0) / (x1 - x0)
            rows.append({"slices": count, "classes": classes, **figures, "fit_mb": fit})
    flat = apart(sys.executable, Path(__file__), "--many", arguments.cases)
    rows += [{"cases": int(count), "resident_mb": mb} for count, mb in flat["resident_mb"].items()]
    finish(rows, f"{edge} x {edge} x slices; {arguments.cases} cases of 64 x 64 x 32", arguments.json)


def predictor(classes: int, patch: int):
    """One 1x1 convolution and all that is around it."""
    import torch

    from medseg.inference import Predictor, SlidingWindow
    from medseg.memory import keep_freed_memory
    from medseg.preprocessing import ScanToGrid, Window

    torch.manual_seed(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    return Predictor(
        torch.nn.Conv3d(1, classes, 1),
        scan_to_grid=ScanToGrid(spacing_mm=[WORKING_MM] * 3, intensity=Window(-200, 300)),
        inferer=SlidingWindow([patch] * 3, overlap=0.25),
    )


def scan(shape: tuple[int, int, int], seed: int = 0):
    """A scan of smooth blobs, int16."""
    from scipy.ndimage import zoom

    from medseg.reading import Scan

    coarse = np.random.default_rng(seed).integers(-200, 300, [max(2, n // 16) for n in shape]).astype(np.int16)
    voxels = zoom(coarse, [n / c for n, c in zip(shape, coarse.shape, strict=True)], order=0)
    return Scan(voxels, np.diag([*SPACING_MM, 1.0]), (), "mm")


def one(edge: int, slices: int, classes: int) -> Figures:
    """Figures of one size in this process."""
    made, case = predictor(classes, PATCH), scan((edge, edge, slices))
    label, figures = measured(lambda: made([case]))
    if len(np.unique(label)) < 2:
        raise SystemExit("the label is empty; nothing was measured")
    return {"scan_mb": case.voxels.nbytes / 2**20, **figures}


def many(cases: int) -> Figures:
    """Resident memory over a run of small cases of different sizes."""
    import psutil

    made, resident = predictor(3, 32), {}
    for number in range(1, cases + 1):
        made([scan((64 + number % 7, 64, 32 + number % 5), number)])
        if number % max(1, cases // 4) == 0:
            resident[str(number)] = psutil.Process().memory_info().rss / 2**20
    return {"resident_mb": resident}


if __name__ == "__main__":
    main()
