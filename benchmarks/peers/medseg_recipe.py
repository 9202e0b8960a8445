"""medseg for `benchmarks/accuracy.py`, as a user runs it: a bundle training, then `medseg predict`.

The recipe's own numbers hold; the command line sets the data set, the seed and `max_epochs`. Seconds count from the
start of the first epoch to the end of the last validation, which chooses the model.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[2]
EPOCH = re.compile(r"epoch (\d+) of \d+: loss \S+ ([\d.]+) s")
VALIDATION = re.compile(r"validation, \d+ cases: Dice")


def main() -> None:
    """Time a few epochs, train as many as the budget holds, predict; `training.json` says how."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="in nnU-Net's raw layout")
    parser.add_argument("--recipe", type=Path, nargs="+", required=True)
    parser.add_argument("--job_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True, help="as OMP_NUM_THREADS says it already")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs_dir", type=Path, help="in the job's folder if not given")
    parser.add_argument("--calibration_epochs", type=int, default=5)
    parser.add_argument("--overrides", nargs=argparse.REMAINDER, default=[], help="of the recipe; must come last")
    settings = parser.parse_args()

    epoch_s, validation_s = calibrated(settings)
    epochs = epochs_within(60 * settings.minutes, epoch_s, validation_s, merged(settings.recipe, "val_interval"))
    runs_dir = settings.runs_dir or settings.job_dir / "runs"
    before = set(runs_dir.glob("*/run.json"))
    stamps = train(settings, runs_dir, epochs=epochs, overrides=settings.overrides)
    made = set(runs_dir.glob("*/run.json")) - before
    if len(made) != 1:  # which of them is this one's cannot be told
        raise SystemExit(f"{runs_dir.name}: {len(made)} runs were begun meanwhile; give each benchmark its own folder")
    run = made.pop().parent
    began = time.perf_counter()
    case_s = predict(settings, run)
    figures = {
        "train_s": stamps[-1][1] - stamps[0][1],
        "predict_s": time.perf_counter() - began,
        "case_s": case_s,
        "epochs": epochs,
        "calibrated_epoch_s": epoch_s,
        "calibrated_validation_s": validation_s,
        "run": run.name,
    }
    (settings.job_dir / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def merged(files: Sequence[Path], key: str) -> int:
    """A number of the recipe; the last file that has it wins."""
    return int([recipe[key] for path in files if key in (recipe := json.loads(path.read_text(encoding="utf-8")))][-1])


def epochs_within(budget_s: float, epoch_s: float, validation_s: float, val_interval: int) -> int:
    """The most epochs that, with their validations, end within the budget; one at least."""
    epochs = max(1, int(budget_s / epoch_s))
    while epochs > 1 and epochs * epoch_s + -(-epochs // val_interval) * validation_s > budget_s:
        epochs -= 1
    return epochs


def calibrated(settings: argparse.Namespace) -> tuple[float, float]:
    """Seconds of an epoch, the first left out, and of a validation."""
    epochs = settings.calibration_epochs
    overrides = [*settings.overrides, "--val_interval", str(epochs)]
    stamps = train(settings, settings.job_dir / "calibration", epochs=epochs, overrides=overrides)
    times = [when for kind, when in stamps if kind == "epoch"]
    return (times[-1] - times[0]) / (len(times) - 1), stamps[-1][1] - times[-1]


def train(
    settings: argparse.Namespace, runs: Path, *, epochs: int, overrides: Sequence[str]
) -> list[tuple[str, float]]:
    """Train to the end; when the first epoch began, then when each epoch and each validation ended."""
    files = ",".join(f"'{path}'" for path in settings.recipe)
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", f"[{files}]"]
    command += ["--dataset_dir", str(settings.dataset_dir), "--held_out_fraction", "0.0", "--device", "cpu"]
    command += ["--output_dir", str(runs), "--seed", str(settings.seed), "--max_epochs", str(epochs), *overrides]
    stamps: list[tuple[str, float]] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if epoch := EPOCH.search(line):
                if not stamps:
                    stamps.append(("start", time.monotonic() - float(epoch[2])))
                stamps.append(("epoch", time.monotonic()))
            elif VALIDATION.search(line):
                stamps.append(("validation", time.monotonic()))
    if process.returncode:
        raise SystemExit(process.returncode)
    return stamps


def predict(settings: argparse.Namespace, run: Path) -> float:
    """Segment `imagesTs` with the run's bundle; masks are named as their cases. Mean seconds a case."""
    masks_dir = settings.job_dir / "masks"
    command = [sys.executable, "-m", "medseg.cli", "predict", str(settings.dataset_dir / "imagesTs"), str(masks_dir)]
    subprocess.run([*command, "--model", str(run), "--device", "cpu"], check=True)
    for path in masks_dir.glob("*_0000_seg.nii.gz"):
        path.rename(path.with_name(path.name.replace("_0000_seg.nii.gz", ".nii.gz")))
    with (masks_dir / "report.csv").open(newline="", encoding="utf-8-sig") as file:
        return mean(float(row["seconds"]) for row in csv.DictReader(file))


if __name__ == "__main__":
    main()
