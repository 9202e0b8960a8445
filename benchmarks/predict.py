"""One CT from file to mask: medseg beside MONAI's chain and nnU-Net v2's predictor, each in a process of its own.

All use the same network and weights, the same spacing, box, window size and overlap, and write a compressed mask on the
scan's own grid. A subject's process is cold: its imports count. Subjects run in turn, round by round; figures are
medians over the rounds. Wall and CPU seconds and the peak memory of a process, its children included, come from the
system, those of stages from inside of it. Labels are compared with MONAI's of float32. Beside the case stand imports
and `--help` of both, and the floor: inflating the file, and the network's arithmetic at the best that this machine
does, as matrix product and as convolution (where the product is the slower of the two, it is no floor).

    python benchmarks/predict.py --model BUNDLE [--scan CT.nii.gz] [--nnunet NN/bin/python] [--out FOLDER]

Without `--scan` a phantom is written as 512 x 512 x 200 voxels of 0.8 x 0.8 x 2 mm. `--model` is any bundle of a 3D
U-Net for CT; of its recipe network, labels and HU window are taken. Needs `pip install medseg[test]`; not for Windows.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from medseg import __version__
from medseg.bundle import Bundle, open_bundle, write_bundle
from medseg.data.phantom import phantom_case
from medseg.grid import Grid, turned, whole_grid
from medseg.preprocessing import ScanToGrid
from medseg.reading import Scan, read_label, read_scan
from medseg.resampling import resample_onto
from medseg.writing import write_nifti

PEERS = Path(__file__).parent / "peers"
SHAPE, VOXEL_MM = (512, 512, 200), (0.8, 0.8, 2.0)
SPACING_MM, PATCH, OVERLAP = (1.5, 1.5, 1.5), (96, 96, 96), 0.25
GEMM = 2048

# A small process that starts a subject: what a large one starts is said to have had the large one's peak memory.
LAUNCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
with open(sys.argv[1], "w") as log:
    process = subprocess.Popen(sys.argv[2:], stdout=log, stderr=log)
    _, status, usage = os.wait4(process.pid, 0)
print(json.dumps([status, time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""
CONVOLUTIONS = ((32, 96), (64, 48), (128, 24))  # channels in and out, and edge of the window, of 3x3x3 kernels
START_UP = {  # medseg's way to begin, and MONAI's
    "import": (["-c", "import medseg.inference.predictor"], ["-c", "import monai"]),
    "--help": (["-m", "medseg.cli", "--help"], ["-m", "monai.bundle", "--help"]),
}


@dataclass(frozen=True)
class Subject:
    """One way from file to mask."""

    name: str
    command: list[str]
    precision: str = "float32"


def main() -> None:
    """Run the rounds, compare the masks, write the figures; those of finished rounds are kept."""
    settings = parsed()
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        job = written_job(settings, work)
        runs: dict[str, list[dict[str, Any]]] = {}
        begun = start_up(settings.threads, settings.rounds)
        failed: dict[str, str] = {}
        labels: dict[str, Any] = {}
        for number in range(settings.rounds):
            for subject in subjects(settings, work):
                if subject.name in failed:
                    continue
                try:
                    run = measured(subject, work / f"{subject.name}-{number}", settings.threads)
                except RuntimeError as error:
                    failed[subject.name] = str(error)
                    print(f"{subject.name} failed: {error}", flush=True)
                    continue
                runs.setdefault(subject.name, []).append(run)
                print(
                    f"round {number + 1}: {subject.name}: {run['wall_s']:.1f} s, CPU {run['cpu_s']:.1f} s", flush=True
                )
            labels = labels or agreements(work, job, list(runs))
            result = {
                "machine": machine(settings.threads),
                "case": {key: job[key] for key in ("shape", "box", "field", "spacing_mm", "patch_size", "overlap")},
                "subjects": {name: summary(each) for name, each in runs.items()},
                "labels": labels,
                "start_up": begun,
                "floor": floor(job, runs),
                "failed": failed,
            }
            write_result(result, settings.out)
        if settings.margin:
            labels["medseg"]["largest_margin"] = largest_margin(work, settings.threads)
            write_result(result, settings.out)
    print(markdown(result))


def write_result(result: dict[str, Any], folder: Path | None) -> None:
    """The figures as JSON and as tables."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predict.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (folder / "predict.md").write_text(markdown(result), encoding="utf-8")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--nnunet", type=Path, help="a Python with nnunetv2 and torch")
    parser.add_argument("--subjects", nargs="+", help="only these, by name; medseg and monai are always among them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--margin", action="store_true", help="ask MONAI's logits whether differing voxels are ties")
    parser.add_argument("--out", type=Path, help="folder for predict.json and predict.md")
    return parser.parse_args()


def written_job(settings: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The case, the bundle and what the subjects must know, on disk."""
    bundle = open_bundle(settings.model)
    scans = work / "scans"
    scans.mkdir()
    path = scans / "case.nii.gz"
    scan = read_scan(settings.scan) if settings.scan else upsampled_phantom()
    write_nifti(scan.voxels, scan.affine, path)
    scan = read_scan(path)  # NIfTI keeps the affine in float32, which may move the box by a voxel
    window = bundle.build("intensity")
    to_grid = ScanToGrid(spacing_mm=SPACING_MM, intensity=window, antialias=False, body_only=True)
    _, grid = to_grid([scan])
    inside = cropped(scan, grid)
    write_nifti(inside.voxels, inside.affine, work / "cropped.nii.gz")
    recipe = benchmark_recipe(bundle)
    write_bundle(work / "bundle", recipe=recipe, metadata=bundle.metadata, state_dict=bundle.state_dict())
    network = {
        key: value for key, value in open_bundle(work / "bundle")._literal("network_def").items() if key[0] != "_"
    }
    job: dict[str, Any] = {
        "scan": str(path),
        "cropped_scan": str(work / "cropped.nii.gz"),
        "bundle": str(work / "bundle"),
        "weights": str(work / "bundle" / "models" / "model.pt"),
        "network": network,
        "spacing_mm": list(SPACING_MM),
        "window_hu": [window.low_hu, window.high_hu],
        "patch_size": list(PATCH),
        "overlap": OVERLAP,
        "start": list(grid.start),
        "stop": [first + size for first, size in zip(grid.start, grid.shape, strict=True)],
        "flips": [2 + axis for axis, flip in enumerate(grid.flips) if flip],
        "shape": list(scan.voxels.shape),
        "box": list(grid.shape),
        "field": list(whole_grid(grid.scan_shape, grid.scan_affine, SPACING_MM).shape),
        "covered": [[side.start, side.stop] for side in grid.covered],
        "cases": 2,
    }
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    (work / "check.json").write_text(json.dumps(job | {"logits": True}), encoding="utf-8")
    return job


def upsampled_phantom() -> Scan:
    """A phantom on voxels of a clinical CT, stored as scanners do: x to the left, y to the back."""
    case = phantom_case(0)
    center = case.affines[0] @ [*(np.array(case.images[0].shape) / 2), 1]
    affine = np.diag([-VOXEL_MM[0], -VOXEL_MM[1], VOXEL_MM[2], 1.0])
    affine[:3, 3] = center[:3] - affine[:3, :3] @ (np.array(SHAPE) / 2)
    fine = Grid(SHAPE, affine, SHAPE, affine, (0, 1, 2), (False, False, False), (1.0, 1.0, 1.0))
    ct = resample_onto(Scan(case.images[0], case.affines[0]), fine).numpy()
    return Scan(np.asarray(np.rint(ct), np.int16, order="F"), affine)


def cropped(scan: Scan, grid: Grid) -> Scan:
    """The scan voxels that the box decides about."""
    box = [slice(0, 0)] * 3
    for axis, flip, side, size in zip(grid.axes, grid.flips, grid.covered, grid.turned_shape, strict=True):
        box[axis] = slice(size - side.stop, size - side.start) if flip else side
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    return Scan(scan.voxels[tuple(box)], affine)


def benchmark_recipe(bundle: Bundle) -> dict[str, Any]:
    """The bundle's recipe with the spacing and windows of this benchmark, without clean-up."""
    return bundle.recipe | {
        "spacing_mm": list(SPACING_MM),
        "patch_size": list(PATCH),
        "body_only": True,
        "scan_to_grid": {
            "_target_": "medseg.preprocessing.ScanToGrid",
            "spacing_mm": "@spacing_mm",
            "intensity": "@intensity",
            "antialias": False,
            "body_only": "@body_only",
        },
        "inferer": {
            "_target_": "medseg.inference.SlidingWindow",
            "patch_size": "@patch_size",
            "overlap": OVERLAP,
            "blend": "gaussian",
        },
        "cleanup": [],
    }


def subjects(settings: argparse.Namespace, work: Path) -> list[Subject]:
    """What runs in each round, in turn."""

    def peer(name: str, python: Path | str = sys.executable) -> list[str]:
        return [str(python), str(PEERS / f"predict_{name}.py"), str(work / "job.json")]

    command = [sys.executable, "-m", "medseg.cli", "predict", "--model", str(work / "bundle"), str(work / "scans")]
    found = [
        Subject("medseg", peer("medseg")),
        Subject("monai", peer("monai")),
        Subject("medseg bfloat16", peer("medseg"), "bfloat16"),
        Subject("monai bfloat16", peer("monai"), "bfloat16"),
        Subject("medseg predict", command),
    ]
    if settings.nnunet:
        found.append(Subject("nnunet", peer("nnunet", settings.nnunet)))
    wanted = {"medseg", "monai", *(settings.subjects or [subject.name for subject in found])}
    return [subject for subject in found if subject.name in wanted]


def timed(command: list[str], environment: dict[str, str], log: Path) -> dict[str, Any]:
    """Wall and CPU seconds and peak memory of a process with its children.

    Raises:
        RuntimeError: with the end of its output, if it fails.
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, str(log), *command], env=environment, capture_output=True, check=True
    )
    status, wall_s, cpu_s, peak = json.loads(done.stdout)
    if status:
        raise RuntimeError(log.read_text(encoding="utf-8")[-2000:])
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak / unit}


def start_up(threads: int, rounds: int) -> dict[str, Any]:
    """Import of the prediction route beside MONAI's, and `--help`, from process to process, in turn."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = str(PEERS.parents[1])
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, commands in START_UP.items():
            runs = [
                [timed([sys.executable, *command], environment, Path(folder) / "log.txt") for command in commands]
                for _ in range(rounds + 1)
            ]
            ours, theirs = (  # the first round warms the disk's cache
                {key: statistics.median(run[side][key] for run in runs[1:]) for key in ("wall_s", "cpu_s")}
                for side in (0, 1)
            )
            ratio = {key: statistics.median(run[1][key] / run[0][key] for run in runs[1:]) for key in ours}
            found[name] = {"medseg": ours, "monai": theirs, "ratio": ratio}
    return found


def measured(subject: Subject, out: Path, threads: int) -> dict[str, Any]:
    """Run a subject to its end; what it took."""
    out.mkdir()
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = os.environ | limits | {"PYTHONPATH": str(PEERS.parents[1]), "PYTHONWARNINGS": "ignore"}
    arguments = [str(out)] if subject.name == "medseg predict" else [str(out), "--precision", subject.precision]
    found: dict[str, Any] = timed([*subject.command, *arguments], environment, out / "log.txt")
    stages = out / "stages.json"
    if stages.exists():
        cases = json.loads(stages.read_text(encoding="utf-8"))
        found["stages"] = cases[0]
        if len(cases) > 1:  # the second case is no part of a cold process
            found["warm"] = cases[1]
            own = [stage for name, stage in cases[1].items() if not name.startswith("of which")]
            for key in ("wall_s", "cpu_s"):
                found[f"warm_{key}"] = sum(stage[key] for stage in own)
                found[key] -= found[f"warm_{key}"]
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, of stages too."""
    middle: dict[str, Any] = {"rounds": len(runs)}
    for key in ("wall_s", "cpu_s", "peak_mb", "warm_wall_s", "warm_cpu_s"):
        if key in runs[0]:
            middle[key] = round(statistics.median(run[key] for run in runs), 3)
    middle["all_wall_s"] = [round(run["wall_s"], 3) for run in runs]
    for key in ("stages", "warm"):
        if key in runs[0]:
            middle[key] = {
                name: {unit: round(statistics.median(run[key][name][unit] for run in runs), 3) for unit in stage}
                for name, stage in runs[0][key].items()
            }
    return middle


def mask_of(work: Path, name: str) -> np.ndarray[Any, Any]:
    """The mask of a subject's first round."""
    (path,) = [path for path in (work / f"{name}-0").rglob("*.nii.gz") if not path.name.startswith(".")]
    return read_label(path).voxels


def agreements(work: Path, job: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Each mask against MONAI's of float32: share of equal voxels and Dice."""
    reference = mask_of(work, "monai")
    box = tuple(slice(*side) for side in job["covered"])
    grid = whole_grid(reference.shape, read_scan(Path(job["scan"])).affine, SPACING_MM)
    found: dict[str, Any] = {}
    for name in names:
        mask, against = mask_of(work, name), reference
        if name == "nnunet":  # has seen the cropped scan
            against = cropped_label(reference, grid, box)
        differ = mask != against
        found[name] = {
            "equal": 1 - np.count_nonzero(differ) / differ.size,
            "different_voxels": int(np.count_nonzero(differ)),
            "dice": [dice(mask == value, against == value) for value in range(1, job["network"]["out_channels"])],
        }
    return found


def cropped_label(label: np.ndarray[Any, Any], grid: Grid, box: tuple[slice, ...]) -> np.ndarray[Any, Any]:
    """The part of a mask in a box that is given in working order, as stored."""
    inside = turned(label, grid)[box]
    flips = tuple(slice(None, None, -1 if flip else None) for flip in grid.flips)
    return inside[flips].transpose(np.argsort(grid.axes))


def largest_margin(work: Path, threads: int) -> float:
    """How far apart MONAI's two largest logits are at most where labels differ; from a run that is not timed."""
    differ = mask_of(work, "medseg") != mask_of(work, "monai")
    if not differ.any():
        return 0.0
    checking = Subject("check", [sys.executable, str(PEERS / "predict_monai.py"), str(work / "check.json")])
    measured(checking, work / "check", threads)
    ranked = np.sort(np.load(work / "check" / "logits.npy", mmap_mode="r")[:, differ], axis=0)
    return float((ranked[-1] - ranked[-2]).max())


def dice(mask: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    """Of two masks; 1 if both are empty."""
    both = np.count_nonzero(mask) + np.count_nonzero(reference)
    return 2 * np.count_nonzero(mask & reference) / both if both else 1.0


def floor(job: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What no route can go below: inflating the file, and the network's arithmetic at this machine's best.

    Best is the faster of a matrix product and a convolution, told apart as well.
    """
    from isal import isal_zlib

    content = Path(job["scan"]).read_bytes()
    inflate_s = best_of(lambda: isal_zlib.decompress(content, 31))
    network = open_bundle(job["bundle"]).network()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, job["network"]["in_channels"], *PATCH))
    windows = runs["medseg"][0]["stages"]["of which network"]["windows"]
    peaks: dict[str, dict[str, float]] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        matrix = torch.ones(GEMM, GEMM, dtype=dtype)
        product = 2 * GEMM**3 / best_of(lambda matrix=matrix: matrix @ matrix)
        peaks[name] = {"gemm": product, "convolution": best_convolution(dtype)}
    flop = counter.get_total_flops() * windows
    return {
        "inflate_s": inflate_s,
        "windows": windows,
        "gflop": flop / 1e9,
        "gflop_per_s": {name: {kind: peak / 1e9 for kind, peak in kinds.items()} for name, kinds in peaks.items()},
        "seconds": {name: inflate_s + flop / max(kinds.values()) for name, kinds in peaks.items()},
        "seconds_by": {
            name: {kind: inflate_s + flop / peak for kind, peak in kinds.items()} for name, kinds in peaks.items()
        },
    }


@torch.inference_mode()
def best_convolution(dtype: torch.dtype) -> float:
    """Floating-point operations a second of the fastest of a few convolutions, in either memory layout."""
    best = 0.0
    for channels, edge in CONVOLUTIONS:
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            layer = torch.nn.Conv3d(channels, channels, 3, padding=1, bias=False, dtype=dtype).to(memory_format=layout)
            window = torch.ones(1, channels, edge, edge, edge, dtype=dtype).to(memory_format=layout)
            seconds = best_of(lambda layer=layer, window=window: layer(window))
            best = max(best, 2 * 27 * channels**2 * edge**3 / seconds)
    return best


def best_of(call: Any, rounds: int = 7) -> float:
    """Least wall seconds of a call."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def machine(threads: int) -> dict[str, Any]:
    """What the figures were taken on."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    load = os.getloadavg()[0]
    versions = {"medseg": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"cpu": names[:1], "cores": os.cpu_count(), "threads": threads, "load_at_the_end": load, **versions}


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    reference = result["subjects"]["monai"]
    lines = [
        "| | wall s | CPU s | peak MB | against MONAI: wall, CPU, memory | labels equal | Dice |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in result["subjects"].items():
        ratio = ", ".join(f"{reference[key] / found[key]:.1f}x" for key in ("wall_s", "cpu_s", "peak_mb"))
        labels = result["labels"][name]
        scores = ", ".join(f"{score:.4f}" for score in labels["dice"])
        lines.append(
            f"| {name} | {found['wall_s']:.1f} | {found['cpu_s']:.1f} | {found['peak_mb']:.0f} | {ratio} | "
            f"{100 * labels['equal']:.4f} % | {scores} |"
        )
    lines += ["", "| start | medseg CPU s | MONAI CPU s | ratio: wall, CPU |", "|---|---|---|---|"]
    for name, found in result["start_up"].items():
        ratio = ", ".join(f"{found['ratio'][key]:.1f}x" for key in ("wall_s", "cpu_s"))
        lines.append(f"| {name} | {found['medseg']['cpu_s']:.2f} | {found['monai']['cpu_s']:.2f} | {ratio} |")
    lines += ["", "| floor | GFLOP/s by GEMM, convolution | s by GEMM, convolution |", "|---|---|---|"]
    for name, peaks in result["floor"]["gflop_per_s"].items():
        seconds = result["floor"]["seconds_by"][name]
        shown = [
            f"{each['gemm']:.{digits}f}, {each['convolution']:.{digits}f}"
            for each, digits in ((peaks, 0), (seconds, 1))
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    lines += ["", "| | stage | wall s | CPU s |", "|---|---|---|---|"]
    for name, found in result["subjects"].items():
        for kind in ("stages", "warm"):
            for stage, seconds in found.get(kind, {}).items():
                shown = name if kind == "stages" else f"{name}, second case"
                lines.append(f"| {shown} | {stage} | {seconds['wall_s']:.2f} | {seconds['cpu_s']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
