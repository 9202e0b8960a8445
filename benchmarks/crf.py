"""How long the dense CRF takes: a 512x512 slice and a volume, 3 classes, 5 iterations, default settings.

    python benchmarks/crf.py [--repeats 3] [--json FILE]

Each case runs in its own process, so that its peak memory is its own; the first pass is not timed. CPU seconds beside
wall seconds tell whether others used the machine meanwhile (one thread: CPU below wall), and what threads cost. Where
others use it, threads that wait for each other spin: OMP_WAIT_POLICY=passive shows two threads without that.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("case", "threads", "wall_s", "cpu_s", "peak_mb", "changed_percent")


class Case(NamedTuple):
    """A label and its scan: discs in noise, a tenth of the voxels mislabeled."""

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]


CASES = {
    "slice 0.8 mm": Case((512, 512, 1), (0.8, 0.8, 5.0)),
    "slice 1.0 mm": Case((512, 512, 1), (1.0, 1.0, 5.0)),
    "volume 1.0 mm": Case((160, 160, 96), (1.0, 1.0, 1.0)),
    "thick slices": Case((256, 256, 24), (0.8, 0.8, 5.0)),
}


def main() -> None:
    """Print the figures as a table and as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "THREADS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, threads = arguments.one
        print(json.dumps(measure(name, int(threads), arguments.repeats)))
        return
    figures = []
    print("  ".join(f"{column:>15}" for column in COLUMNS))
    for name in CASES:
        for threads in (1, 2):
            figures.append(measured_apart(name, threads, arguments.repeats))
            print("  ".join(f"{figures[-1][column]:>15}" for column in COLUMNS), flush=True)
    print(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def measured_apart(name: str, threads: int, repeats: int) -> dict[str, object]:
    """The figures of one case, from a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(threads), "--repeats", str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(answer.stdout)


def measure(name: str, threads: int, repeats: int) -> dict[str, object]:
    """Best wall and CPU seconds of `repeats` passes of the rule, and what the process took at most."""
    import numpy as np
    import torch

    from medseg.crf import DenseCRF

    torch.set_num_threads(threads)
    case = CASES[name]
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in case.size), indexing="ij"))
    radius = np.sqrt((place**2).sum(0))
    organ, lesion = radius < 0.75, np.sqrt(((place - 0.2) ** 2)[:2].sum(0)) < 0.2
    truth = (organ.astype(np.uint8) + (organ & lesion)).astype(np.uint8)
    scan = np.select([truth == 0, truth == 1], [-60.0, 110.0], 50.0) + place[0] * 40 + rng.normal(size=case.size) * 20
    label = np.where(rng.random(case.size) < 0.1, rng.integers(0, 3, case.size), truth).astype(np.uint8)
    affine, rule = np.diag([*case.spacing_mm, 1.0]), DenseCRF()
    seconds = []
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        refined = rule(label, affine, scan.astype(np.float32))
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        "case": name,
        "size": case.size,
        "threads": threads,
        "wall_s": round(min(wall for wall, _ in seconds[1:]), 3),
        "cpu_s": round(min(cpu for _, cpu in seconds[1:]), 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "changed_percent": round(100 * float((refined != label).mean()), 2),
    }


if __name__ == "__main__":
    main()
