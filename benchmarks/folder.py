"""A folder with `medseg predict` beside the same cases one after the other in a warm process.

    python benchmarks/folder.py --model BUNDLE --scan CT.nii.gz [--cases 20] [--precision bfloat16] [--rounds 3]

The folder holds copies of one scan. "folder" is the command as it is: stages overlap, and where memory suffices two
cases are in the network at a time, each with half of the threads. "one after the other" is the command with
`MEDSEG_IN_PROCESS=1`. Wall and CPU seconds hold everything, imports included; "warm cases" adds up what the report
says of each of the latter's cases but the first, times their number: no start at all. All checks and pages are on.

The masks must agree in 99.999 % of their voxels: another number of threads sums in another order. Linux only.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import Figures, finish, medians

from medseg.reading import read_scan

AGREE = 0.99999
LAUNCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([status, time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""  # a process of its own: what it starts, the children's children too, is all that it counts


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures; the table is written beside it")
    settings = parser.parse_args()
    found: dict[str, list[Figures]] = {"folder": [], "one after the other": []}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "scans").mkdir()
        for number in range(settings.cases):
            shutil.copyfile(settings.scan, work / "scans" / f"case{number:03}.nii.gz")
        for _ in range(settings.rounds):
            for way, runs in found.items():
                runs.append(run(way, work, settings))
                print(f"{way}: {runs[-1]['wall_s']:.1f} s", file=sys.stderr, flush=True)
        compare_masks(work, settings.cases)
    rows = [{"way": way, "cases": settings.cases} | medians(runs) for way, runs in found.items()]
    warm = rows[1].pop("warm_s")
    rows[0].pop("warm_s")
    rows.append({"way": "warm cases", "cases": settings.cases, "wall_s": warm})
    for row in rows:
        row["wall_over_folder"] = row["wall_s"] / rows[0]["wall_s"]
    finish(rows, f"{settings.precision}, {settings.rounds} interleaved rounds, medians", settings.json)


def run(way: str, work: Path, settings: argparse.Namespace) -> Figures:
    """Figures of one run of the command over the folder."""
    out = work / way
    shutil.rmtree(out, ignore_errors=True)
    environment = os.environ | {"MEDSEG_IN_PROCESS": "0" if way == "folder" else "1"}
    command = [sys.executable, "-m", "medseg.cli", "predict", str(work / "scans"), str(out)]
    command += ["--model", str(settings.model), "--precision", settings.precision]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *command], env=environment, capture_output=True, text=True, check=True
    )
    status, wall, cpu, peak = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{way}: ended with {status}:\n{done.stderr[-2000:]}")
    with (out / "report.csv").open(encoding="utf-8-sig", newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    warm = sum(sorted(seconds)[:-1]) / (len(seconds) - 1) * len(seconds)  # the slowest is the first, which loads
    return {"wall_s": wall, "cpu_s": cpu, "largest_process_mb": peak, "warm_s": warm}


def compare_masks(work: Path, cases: int) -> None:
    """Stop if the two ways' masks differ in more than rounding."""
    for number in range(cases):
        name = f"case{number:03}_seg.nii.gz"
        one, other = (read_scan(work / way / name).voxels for way in ("folder", "one after the other"))
        if np.mean(one == other) < AGREE:
            raise SystemExit(f"{name}: only {np.mean(one == other):.6f} of the voxels agree")


if __name__ == "__main__":
    main()
