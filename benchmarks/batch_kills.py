"""Folder runs killed without warning (`kill -9`) and run again, against the same run left alone.

`medseg predict` is killed at random moments, and every other time while a mask is being written: the command itself,
the process that does its cases, or both. After each kill every file under a mask's name must be, byte for byte, the
mask of the run left alone, and every record must be whole; at the end the command, given once more, must have done
every case.

    python benchmarks/batch_kills.py [--kills 100] [--kills_per_run 5] [--cases 12] [--seed 0] [--out batch_kills.json]
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from medseg.bundle import task_metadata, write_bundle
from medseg.networks import UNet
from medseg.writing import write_nifti

ROOT = Path(__file__).parents[1]
NUMBERS = {
    "spacing_mm": [3.0, 3.0, 3.0],
    "patch_size": [32, 32, 32],
    "network_def": {"_target_": "medseg.networks.UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    | {"widths": [4, 8]},
}
LONGEST_S = 600


class Folder:
    """A small model with random weights, and scans for it.

    Args:
        folder: where.
        cases: how many scans.
    """

    def __init__(self, folder: Path, *, cases: int) -> None:
        self.folder, self.cases = folder, cases
        recipe = json.loads((ROOT / "configs" / "unet_liver.json").read_text(encoding="utf-8")) | NUMBERS
        torch.manual_seed(0)
        network = UNet(3, 1, 3, widths=[4, 8])
        about = task_metadata({}, recipe, name="random weights", synthetic=True)
        write_bundle(folder / "bundle", recipe=recipe, metadata=about, state_dict=network.state_dict())
        for number in range(cases):
            voxels = np.random.default_rng(number).integers(-200, 300, (96, 80, 48)).astype(np.int16)
            voxels[:12] = -1000  # air, as around a patient
            write_nifti(voxels, np.diag([-1.0, -1.0, 2.0, 1.0]), folder / "scans" / f"{number:03}.nii.gz")

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """Start `medseg predict` into OUT."""
        command = [sys.executable, "-m", "medseg.cli", "predict", self.folder / "scans", out, "--device", "cpu"]
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [*command, "--model", self.folder / "bundle"],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )

    def finish(self, out: Path) -> float:
        """Run to the end; seconds it took."""
        started = time.monotonic()
        code = self.start(out).wait(LONGEST_S)
        if code != 0:
            raise RuntimeError(f"exit code {code}:\n{(self.folder / 'log.txt').read_text()[-2000:]}")
        return time.monotonic() - started


def masks(out: Path) -> dict[str, bytes]:
    """Every file under a mask's final name."""
    return {path.name: path.read_bytes() for path in out.glob("[!.]*_seg.nii.gz")}


def kill(folder: Folder, out: Path, *, whom: str, at_writing: bool, after_s: float) -> dict[str, Any]:
    """Start the run, kill it, and say what is left.

    Args:
        folder: model and scans.
        out: of the run, which may have been killed before.
        whom: "command", "worker" or "both".
        at_writing: wait further, until a mask is being written.
        after_s: seconds from the start.
    """
    left_over = _half_written(out)  # of the kill before
    process = folder.start(out)
    moment = time.monotonic() + after_s
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.005)
    while at_writing and process.poll() is None and _half_written(out) <= left_over:
        time.sleep(0.0002)
    victims = [] if process.poll() is not None else _processes(process.pid, whom)
    came_too_late = not victims  # or too early for a worker
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            came_too_late = True
    was_writing = not _half_written(out) <= left_over
    process.wait(LONGEST_S)  # after the death of its worker the command starts another one and goes on
    psutil.wait_procs(victims, timeout=30)
    return {
        "whom": whom,
        "after_s": round(after_s, 2),
        "came_too_late": came_too_late,
        "was_writing": was_writing,
        "exit_code": process.returncode,
        "masks": len(masks(out)),
    }


def _processes(pid: int, whom: str) -> list[psutil.Process]:
    command = psutil.Process(pid)
    workers = [child for child in command.children(recursive=True) if "spawn_main" in " ".join(_words(child))]
    chosen: dict[str, list[psutil.Process]] = {"command": [command], "worker": workers, "both": [*workers, command]}
    return chosen[whom]


def _words(process: psutil.Process) -> list[str]:
    """The command line of a process; none of one that has just ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # zombies too
        return []


def _half_written(out: Path) -> set[str]:
    return {path.name for path in out.glob(".*_seg.nii.gz")}


def damage(out: Path, wanted: Mapping[str, bytes]) -> list[str]:
    """Files under a final name that are not what the run left alone has written."""
    wrong = [name for name, content in masks(out).items() if content != wanted[name]]
    for record in (out / ".medseg" / "cases").glob("[!.]*.json"):
        try:
            json.loads(record.read_text(encoding="utf-8"))
        except ValueError:
            wrong.append(record.name)
    return wrong


def measure(folder: Path, *, kills: int, kills_per_run: int, cases: int, seed: int) -> dict[str, Any]:
    """Kill and run again; every kill, every folder, and the verdict."""
    chance = random.Random(seed)
    runs = Folder(folder, cases=cases)
    whole_s = runs.finish(folder / "left_alone")
    wanted = masks(folder / "left_alone")
    print(f"left alone: {len(wanted)} masks in {whole_s:.1f} s", flush=True)
    all_kills: list[dict[str, Any]] = []
    all_runs: list[dict[str, Any]] = []
    while len(all_kills) < kills:
        out = folder / f"out_{len(all_runs)}"
        for _ in range(kills_per_run):
            result = kill(
                runs,
                out,
                whom=chance.choice(["command", "worker", "both"]),
                at_writing=len(all_kills) % 2 == 1,
                after_s=chance.uniform(0, whole_s),
            )
            result["damaged"] = damage(out, wanted)
            if not result["came_too_late"] or result["damaged"]:
                all_kills.append(result)
                print(_line(result), flush=True)
            if len(all_kills) == kills or result["exit_code"] == 0:  # nothing is left to kill
                break
        runs.finish(out)
        all_runs.append({"equal_masks": masks(out) == wanted, "statuses": _statuses(out)})
        print(_line(all_runs[-1]), flush=True)
    result = {"whole_s": round(whole_s, 1), "cases": cases, "kills": all_kills, "runs": all_runs}
    passed = not any(one["damaged"] for one in all_kills) and all(
        run["equal_masks"] and run["statuses"] == {"done": cases} for run in all_runs
    )
    return result | {"passed": passed}


def _statuses(out: Path) -> dict[str, int]:
    with (out / "report.csv").open(encoding="utf-8", newline="") as file:
        return dict(Counter(row["status"] for row in csv.DictReader(file)))


def _line(row: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {value}" for name, value in row.items())


def main() -> None:
    """Measure, print the table, write the JSON; exit code 1 if anything was lost or damaged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kills_per_run", type=int, default=5)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("batch_kills.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            Path(folder),
            kills=arguments.kills,
            kills_per_run=arguments.kills_per_run,
            cases=arguments.cases,
            seed=arguments.seed,
        )
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    hits = sum(one["was_writing"] for one in result["kills"])
    print(f"{len(result['kills'])} kills, {hits} while writing: {'passed' if result['passed'] else 'FAILED'}")
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
