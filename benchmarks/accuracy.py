"""Dice against minutes of training, beside nnU-Net v2 and MONAI's zoo recipe, on the phantom and on real MR.

Every method gets the same cases (split by `find_cases` with seed 0, written once in nnU-Net's raw layout), the same
minutes of training and the same cores; planning, preprocessing, imports and the timing of a few steps beforehand lie
outside the budget. Each method's schedule is made as long as the budget by that timing; the minutes really used are in
the table. All masks are judged alike, on the scans' own grids: Dice by region, mean over the held-out cases that have
the region. `ratio` divides a method's mean Dice by ours.

All scans are stored in right-anterior-superior order first, without resampling: nnU-Net does not turn scans.
Mirroring at prediction is off for all; `--mirroring` turns it on for the peers, ours has none.

Every job (data, method, minutes, seed) is a process of its own and leaves a row in `OUT/rows`. A second start skips the
jobs that have one, and begins unfinished and failed ones anew.

nnU-Net needs an environment of its own, whose Python is `--nnunet_python`; without it, it is left out:

    python -m venv NN && NN/bin/pip install nnunetv2 "torch<2.14"
    python benchmarks/accuracy.py --nnunet_python NN/bin/python [--minutes 15] [--seeds 0 1] [--threads 2] [--out DIR]
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import torch

from medseg.data import Cases, find_cases, make_phantom
from medseg.geometry import voxel_volume_ml
from medseg.metrics import mean_over_cases, region_overlap
from medseg.reading import read_label

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "peers"
RECIPES = {
    "phantom": ["configs/unet_liver.json", "configs/quick.json"],
    "mr": ["configs/unet_hippocampus.json"],
}
METHODS = {
    "medseg": ["medseg_recipe.py"],
    "nnunet_2d": ["nnunet.py", "--configuration", "2d"],
    "nnunet_3d_fullres": ["nnunet.py", "--configuration", "3d_fullres"],
    "monai_zoo": ["monai_zoo.py"],
    "monai_zoo_adam": ["monai_zoo.py", "--optimizer", "adam"],
}
DEFAULT_METHODS = ("medseg", "nnunet_2d", "nnunet_3d_fullres", "monai_zoo")
SPLIT_SEED = 0


@dataclass(frozen=True)
class Job:
    """One training; `name` is that of its folder and its row."""

    data: str
    method: str
    minutes: float
    seed: int
    threads: int
    mirroring: bool

    @property
    def name(self) -> str:
        """Unique among the jobs of an `--out` folder."""
        mirroring = "-mirroring" if self.mirroring else ""
        return f"{self.data}-{self.method}-{self.minutes:g}min-{self.threads}threads{mirroring}-seed{self.seed}"


def main() -> None:
    """Do what is left to do, print the table, write `results.json`; exit code 1 if a job failed."""
    signal.signal(signal.SIGTERM, leave)
    settings = arguments()
    out: Path = settings.out.absolute()
    (out / "rows").mkdir(parents=True, exist_ok=True)
    data = [name for name in settings.data if is_there(name, settings)]
    methods = [name for name in settings.methods if settings.nnunet_python or not name.startswith("nnunet")]
    if left_out := sorted(set(settings.methods) - set(methods)):
        print(f"skipped {', '.join(left_out)}: no --nnunet_python (how to get one: --help)", flush=True)
    folders = {name: prepared(name, settings.mr_dir if name == "mr" else None, out) for name in data}
    if any(name.startswith("nnunet") for name in methods):
        for name in data:
            plan_nnunet(folders[name], settings, out)
    jobs = [
        Job(name, method, minutes, seed, settings.threads, settings.mirroring)
        for minutes in settings.minutes
        for seed in settings.seeds
        for name in data
        for method in methods
    ]
    rows = list(done(jobs, folders, settings, out))
    result = {"environment": environment(), "rows": rows}
    (out / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    sys.exit(1 if any("error" in row for row in rows) else 0)


def leave(*_: object) -> None:
    """End as Ctrl-C does, so that the job under way ends too."""
    raise SystemExit(143)


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"), help="data, rows, logs, results.json")
    parser.add_argument("--minutes", type=float, nargs="+", default=[15.0], help="of training; several for a curve")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="and cores, for every method")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(DEFAULT_METHODS))
    parser.add_argument("--data", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--mr_dir", type=Path, default=ROOT.parent / "shared" / "data" / "mr_hippocampus")
    parser.add_argument("--nnunet_python", type=Path, help="Python of an environment with nnunetv2")
    parser.add_argument("--mirroring", action="store_true", help="at prediction, where a peer has it")
    return parser.parse_args()


def is_there(name: str, settings: argparse.Namespace) -> bool:
    """Whether the data exist; the phantom is made."""
    if name == "mr" and not settings.mr_dir.is_dir():
        print(f"skipped mr: no folder {settings.mr_dir}; name one with images/ and labels/ by --mr_dir", flush=True)
        return False
    return True


def prepared(name: str, source: Path | None, out: Path) -> Path:
    """The data set in nnU-Net's raw layout, written once; the phantom if no source is given."""
    folder = out / "data" / f"Dataset{501 + list(RECIPES).index(name)}_{name}"
    if folder.is_dir():
        return folder
    recipe = merged(name)
    if source is None:
        source = out / "phantom"
        if not source.is_dir():
            make_phantom(source)
    cases = find_cases(
        source,
        channels=recipe["channels"],
        labels=recipe["labels"],
        folds=recipe["folds"],
        seed=SPLIT_SEED,
        held_out_fraction=recipe["held_out_fraction"],
    )
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_nnunet_raw(partial, cases, recipe)
    return partial.rename(folder)


def merged(name: str) -> dict[str, Any]:
    """The top level of the recipe's files."""
    recipe: dict[str, Any] = {}
    for path in RECIPES[name]:
        recipe |= json.loads((ROOT / path).read_text(encoding="utf-8"))
    return recipe


def write_nnunet_raw(folder: Path, cases: Cases, recipe: Mapping[str, Any]) -> None:
    """Cases with their split; axes turned to right, anterior, superior, voxels as they are."""
    for part, samples in (("Tr", cases.training + cases.validation), ("Ts", cases.test)):
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True)
        for sample in samples:
            case_id = sample["case_id"]
            save_turned(str(sample["image"]), folder / f"images{part}" / f"{case_id}_0000.nii.gz")
            save_turned(sample["label"], folder / f"labels{part}" / f"{case_id}.nii.gz")
    ids = {
        "train": [sample["case_id"] for sample in cases.training],
        "val": [sample["case_id"] for sample in cases.validation],
    }
    (folder / "splits_final.json").write_text(json.dumps([ids]), encoding="utf-8")
    description = {
        "channel_names": {str(number): channel.upper() for number, channel in enumerate(recipe["channels"])},
        "labels": recipe["labels"],
        "numTraining": len(ids["train"] + ids["val"]),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def save_turned(source: str, path: Path) -> None:
    """The same voxels in the nearest order to right, anterior, superior."""
    nib.save(nib.as_closest_canonical(nib.load(source)), path)


def plan_nnunet(dataset_dir: Path, settings: argparse.Namespace, out: Path) -> None:
    """nnU-Net's planning and preprocessing of a data set, done once."""
    folder = out / "nnunet" / dataset_dir.name
    if folder.is_dir():
        return
    started = time.perf_counter()
    partial = out / "nnunet" / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / dataset_dir.name).mkdir(parents=True)
    command = [str(settings.nnunet_python), str(PEERS / "nnunet.py"), "--plan", "--threads", str(settings.threads)]
    command += ["--dataset_dir", str(dataset_dir), "--preprocessed_dir", str(partial)]
    code, _ = watched(command, out / "nnunet" / f"{dataset_dir.name}.log", threads=settings.threads)
    if code:
        raise SystemExit(f"nnU-Net could not plan {dataset_dir.name}; see {out / 'nnunet' / dataset_dir.name}.log")
    (partial / dataset_dir.name).rename(folder)
    print(f"nnU-Net planned and preprocessed {dataset_dir.name} in {time.perf_counter() - started:.0f} s", flush=True)


def done(
    jobs: Sequence[Job], folders: Mapping[str, Path], settings: argparse.Namespace, out: Path
) -> Iterator[dict[str, Any]]:
    """The row of each job: read where it is finished, else the job is done now, one at a time."""
    for job in jobs:
        path = out / "rows" / f"{job.name}.json"
        if path.is_file():
            row = json.loads(path.read_text(encoding="utf-8"))
            print(f"{job.name}: finished before", flush=True)
        else:
            row = asdict(job) | train_and_judge(job, folders[job.data], settings, out)
            if "error" not in row:
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
                partial.replace(path)
            print(f"{job.name}: {row['error'] if 'error' in row else round(row['mean_dice'], 3)}", flush=True)
        yield row


def train_and_judge(job: Job, dataset_dir: Path, settings: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Figures of a job, done from its beginning; or its error."""
    job_dir = out / "jobs" / job.name
    shutil.rmtree(job_dir, ignore_errors=True)
    job_dir.mkdir(parents=True)
    script, *further = METHODS[job.method]
    command = [sys.executable, str(PEERS / script), *further]
    if script == "nnunet.py":
        command[0] = str(settings.nnunet_python)
        command += ["--preprocessed_dir", str(out / "nnunet")]
    else:
        command += ["--recipe", *(str(ROOT / path) for path in RECIPES[job.data])]
    command += ["--dataset_dir", str(dataset_dir), "--job_dir", str(job_dir)]
    command += ["--minutes", str(job.minutes), "--seed", str(job.seed), "--threads", str(job.threads)]
    if job.mirroring and script != "medseg_recipe.py":
        command.append("--mirroring")
    started = time.perf_counter()
    code, peak_mb = watched(command, job_dir / "log.txt", threads=job.threads)
    if code:
        return {"error": f"exit code {code}; see jobs/{job.name}/log.txt"}
    figures = json.loads((job_dir / "training.json").read_text(encoding="utf-8"))
    try:
        scores = judged(dataset_dir, job_dir / "masks", merged(job.data)["regions"])
    except (ValueError, OSError) as error:
        return {"error": f"masks cannot be judged: {error}"}
    whole = {"peak_rss_mb": peak_mb, "whole_job_s": time.perf_counter() - started}
    return scores | {"train_s": figures.pop("train_s")} | whole | {"details": figures}


def watched(
    command: Sequence[str],
    log: Path,
    *,
    threads: int,
    longest_s: float = math.inf,
    largest_mb: float = math.inf,
) -> tuple[int, int]:
    """Exit code of a command, held to `threads` cores, and the largest memory in MB of it and all it started.

    What takes longer or more than allowed is killed.
    """
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    environment = os.environ | dict.fromkeys(variables, str(threads)) | {"PYTHONUNBUFFERED": "1"}
    peak = 0
    with log.open("wb") as words:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=words, stderr=subprocess.STDOUT)
        try:
            watch = psutil.Process(process.pid)
            if hasattr(watch, "cpu_affinity"):  # macOS has none; there the variables alone must do
                watch.cpu_affinity(watch.cpu_affinity()[:threads])
            started = time.monotonic()
            while process.poll() is None:
                peak = max(peak, resident_bytes(watch))
                if time.monotonic() - started > longest_s or peak > largest_mb * 2**20:
                    break
                time.sleep(0.5)
        finally:
            end(process)
    return process.returncode, round(peak / 2**20)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with its children, if they are still there."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
    process.wait()


def resident_bytes(process: psutil.Process) -> int:
    """Resident memory of a process and its children; pages they share count for each."""
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        return 0  # one ended just now; the next look is half a second away
    return total


def judged(dataset_dir: Path, masks_dir: Path, regions: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Dice of each region over the held-out cases that have it, and their mean."""
    rows = []
    for path in sorted((dataset_dir / "labelsTs").glob("*.nii.gz")):
        label, pred = read_label(path), read_label(masks_dir / path.name)
        voxel_ml = voxel_volume_ml(label.affine)
        rows.append(
            region_overlap(pred.voxels.astype(np.uint8), label.voxels.astype(np.uint8), regions, voxel_ml=voxel_ml)
        )
    dice = {region: mean_over_cases(rows, region, "dice") for region in regions}
    return {"dice": dice, "mean_dice": mean(dice.values()), "cases": len(rows)}


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "load_average": [round(load, 1) for load in psutil.getloadavg()],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds as aligned text, with the lowest and highest mean Dice; failed jobs below."""
    finished = [row for row in rows if "error" not in row]
    lines = [
        f"{'data':9}{'method':19}{'budget':>7}{'used':>7}{'MB':>7}{'seeds':>6}{'Dice':>7}  {'from-to':13}{'ratio':>6}"
    ]
    groups = dict.fromkeys((row["data"], row["minutes"], row["method"]) for row in finished)
    for data, minutes, method in groups:
        group = group_of(finished, data, minutes, method)
        ours = group_of(finished, data, minutes, "medseg")
        scores = [row["mean_dice"] for row in group]
        ratio = mean(scores) / mean(row["mean_dice"] for row in ours) if ours else math.nan
        regions = ", ".join(f"{region} {mean(row['dice'][region] for row in group):.3f}" for region in group[0]["dice"])
        used, memory = mean(row["train_s"] for row in group) / 60, max(row["peak_rss_mb"] for row in group)
        spread = f"{min(scores):.3f}-{max(scores):.3f}"
        lines.append(
            f"{data:9}{method:19}{minutes:7.1f}{used:7.1f}{memory:7}{len(group):6}{mean(scores):7.3f}  {spread:13}"
            f"{ratio:6.2f}  {regions}"
        )
    return "\n".join(
        lines + [f"FAILED {row['data']} {row['method']}: {row['error']}" for row in rows if "error" in row]
    )


def group_of(rows: Sequence[Mapping[str, Any]], data: str, minutes: float, method: str) -> list[Mapping[str, Any]]:
    """Rows of one cell of the table, one a seed."""
    return [row for row in rows if (row["data"], row["minutes"], row["method"]) == (data, minutes, method)]


if __name__ == "__main__":
    main()
