"""Trainings killed without warning (`kill -9`) and resumed, against the same training left alone.

Each training is killed several times: at random moments, and every other time while a checkpoint is being written.
After each kill every checkpoint must load and at most one epoch may be lost; a kill that comes after the training has
ended does not count. At the end the figures of every epoch and the weights must be those of the training left alone,
and no run may be RUNNING, that of a training never resumed included.

    python benchmarks/kills.py [--kills 50] [--kills_per_training 5] [--epochs 40] [--seed 0] [--out kills.json]
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import STDOUT
from typing import Any

import torch
from mlflow import MlflowClient

from medseg.data import make_phantom
from medseg.launch import training_arguments

ROOT = Path(__file__).parents[1]
NUMBERS = {
    "spacing_mm": [4.0, 4.0, 6.0],
    "patch_size": [40, 40, 24],
    "network_def::widths": [8, 16, 32, 64],
    "network_def::blocks_per_level": 1,
    "val_interval": 5,
    "warmup_steps": 20,
    "num_workers": 0,
}
BY_THE_CLOCK = re.compile(r"per_second|^system/|share|seconds|memory")  # figures that no two trainings share
LONGEST_S = 1800
TOLERANCE = 1e-6


class Trainings:
    """Trainings of one recipe on one phantom, in a folder of their own."""

    def __init__(self, folder: Path, *, epochs: int) -> None:
        self.folder, self.epochs, self.runs = folder, epochs, folder / "runs"
        self.phantom = make_phantom(folder / "phantom", cases=8, shape=(64, 56, 32), seed=5)
        self.overlay = folder / "numbers.json"
        self.overlay.write_text(json.dumps(NUMBERS | {"max_epochs": epochs}), encoding="utf-8")
        self.log = folder / "log.txt"

    def start(self, run: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a training, or resume one; its words go into `log`."""
        settings = {"device": "cpu", "dataset_dir": str(self.phantom), "output_dir": str(self.runs)}
        files = [Path("configs/unet_liver.json"), self.overlay]
        arguments = training_arguments([] if run else files, list(settings.items()), resume=run)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}  # equal sums need equal threads
        with self.log.open("wb") as log:
            return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=STDOUT)

    def finish(self, run: Path | None = None) -> Path:
        """Train to the end; the run's folder."""
        if self.start(run).wait(LONGEST_S) != 0:
            raise RuntimeError(f"the training failed:\n{self.words()[-3000:]}")
        return run or self.newest_run()

    def newest_run(self) -> Path:
        """Folder of the run started last."""
        return max((path.parent for path in self.runs.glob("*/run.json")), key=lambda run: run.stat().st_ctime)

    def words(self) -> str:
        """What the training in progress has said."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_epoch(self) -> int:
        """Last epoch that the training in progress has reported."""
        return max((int(epoch) for epoch in re.findall(r"epoch (\d+) of \d+: loss", self.words())), default=0)

    def status(self, run: Path) -> str:
        """Status of a run in MLflow."""
        client = MlflowClient(f"sqlite:///{self.runs / 'mlflow.db'}")
        return str(client.get_run(_run_id(run)).info.status)

    def figures(self, run: Path) -> dict[tuple[str, int], float]:
        """Every figure of a run, by name and step."""
        client = MlflowClient(f"sqlite:///{self.runs / 'mlflow.db'}")
        names = [name for name in client.get_run(_run_id(run)).data.metrics if not BY_THE_CLOCK.search(name)]
        return {
            (name, point.step): point.value for name in names for point in client.get_metric_history(_run_id(run), name)
        }


def kill(trainings: Trainings, run: Path | None, *, at_writing: bool, after_s: float) -> tuple[Path, dict[str, Any]]:
    """Start or resume a training, kill it some time after it has begun; its run's folder, and what is left of it.

    Args:
        trainings: where.
        run: the run to resume.
        at_writing: wait further, until a checkpoint is being written.
        after_s: seconds from the first checkpoint, or from the word that one has been read.
    """
    left_over = _half_written(run)  # of the kill before
    process = trainings.start(run)
    started = time.monotonic()
    while not _has_begun(trainings, run):
        if process.poll() is not None or time.monotonic() - started > LONGEST_S:
            raise RuntimeError(f"the training did not begin:\n{trainings.words()[-3000:]}")
        time.sleep(0.05)
    folder = run or trainings.newest_run()
    moment = time.monotonic() + after_s
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.01)
    while at_writing and process.poll() is None and _half_written(folder) <= left_over:
        time.sleep(0.0005)
    process.kill()
    code = process.wait()
    if code > 0:
        raise RuntimeError(f"the training failed before it was killed:\n{trainings.words()[-3000:]}")
    return folder, {
        "aim": "a write" if at_writing else "any moment",
        "after_s": round(after_s, 2),
        "was_writing": not _half_written(folder) <= left_over,
        "came_too_late": code == 0,
        **_what_is_left(folder, trainings.last_epoch()),
    }


def _has_begun(trainings: Trainings, run: Path | None) -> bool:
    if run is not None:
        return "resuming run" in trainings.words()
    return any(trainings.runs.glob("*/checkpoints/epoch_000000.pt")) and "epoch 1 of" in trainings.words()


def _half_written(run: Path | None) -> set[str]:
    return {name for name in os.listdir(run / "checkpoints") if name.startswith(".")} if run else set()  # noqa: PTH208


def _what_is_left(run: Path, reported: int) -> dict[str, Any]:
    loaded = [_load(path) for path in _checkpoints(run)]
    epoch = max((state["epoch"] for state in loaded if state), default=-1)
    return {
        "reported_epoch": reported,
        "checkpoint_epoch": epoch,
        "lost_epochs": max(0, reported - epoch),
        "unreadable": loaded.count(None),
    }


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("epoch_*.pt"))


def _load(path: Path) -> dict[str, Any] | None:
    """Content of a checkpoint, None if anything is wrong with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                return None
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception:
        return None
    return state


def compare(trainings: Trainings, run: Path, reference: Path) -> dict[str, Any]:
    """How a resumed training differs from the one left alone."""
    ours, theirs = trainings.figures(run), trainings.figures(reference)
    weights, wanted = (torch.load(_checkpoints(each)[-1], weights_only=True)["network"] for each in (run, reference))
    return {
        "status": trainings.status(run),
        "figures": len(theirs),
        "figures_missing": len(theirs.keys() ^ ours.keys()),
        "largest_difference": max(abs(ours[key] - theirs[key]) for key in ours.keys() & theirs.keys()),
        "equal_weights": all(torch.equal(weights[name], wanted[name]) for name in wanted),
    }


def measure(folder: Path, *, kills: int, kills_per_training: int, epochs: int, seed: int) -> dict[str, Any]:
    """Kill and resume; every kill, every training, and the verdict."""
    chance = random.Random(seed)
    trainings = Trainings(folder, epochs=epochs)
    orphan, _ = kill(trainings, None, at_writing=False, after_s=0.1)  # never resumed
    started = time.monotonic()
    reference = trainings.finish()
    train_s = _training_seconds(trainings)
    whole_s = time.monotonic() - started
    print(f"left alone: {epochs} epochs in {train_s:.0f} s ({whole_s:.0f} s with the start)", flush=True)
    all_kills: list[dict[str, Any]] = []
    all_trainings: list[dict[str, Any]] = []
    late_kills = 0
    while len(all_kills) < kills:
        run, planned = None, min(kills_per_training, kills - len(all_kills))
        for number in range(planned):
            wait = chance.uniform(0, 1.6 * train_s / (planned + 1))
            run, result = kill(trainings, run, at_writing=number % 2 == 1, after_s=wait)
            print(_line(result), flush=True)
            if result["came_too_late"]:  # nothing was killed
                late_kills += 1
                break
            all_kills.append(result)
        all_trainings.append(compare(trainings, trainings.finish(run), reference))
        print(_line(all_trainings[-1]), flush=True)
    statuses = {name: trainings.status(run) for name, run in (("left alone", reference), ("never resumed", orphan))}
    result = {"train_s": round(train_s, 1), "kills": all_kills, "late_kills": late_kills, "trainings": all_trainings}
    result |= {"statuses": statuses}
    return result | {"passed": _passed(result)}


def _training_seconds(trainings: Trainings) -> float:
    """From the first to the last epoch, by the clock of the log."""
    clocks = re.findall(r"(\d+):(\d+):(\d+) epoch \d+ of", trainings.words())
    first, last = ([int(part) for part in clocks[index]] for index in (0, -1))
    return float((last[0] - first[0]) % 24 * 3600 + (last[1] - first[1]) * 60 + last[2] - first[2]) + 1


def _passed(result: Mapping[str, Any]) -> bool:
    return (
        all(kill["lost_epochs"] <= 1 and kill["unreadable"] == 0 for kill in result["kills"])
        and all(
            training["status"] == "FINISHED"
            and training["figures_missing"] == 0
            and training["largest_difference"] <= TOLERANCE
            and training["equal_weights"]
            for training in result["trainings"]
        )
        and result["statuses"] == {"left alone": "FINISHED", "never resumed": "KILLED"}
    )


def _run_id(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text(encoding="utf-8"))["run_id"])


def _line(row: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {value}" for name, value in row.items())


def main() -> None:
    """Measure, print the table, write the JSON; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills_per_training", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40, help="40: about a minute on one core")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("kills.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            Path(folder),
            kills=arguments.kills,
            kills_per_training=arguments.kills_per_training,
            epochs=arguments.epochs,
            seed=arguments.seed,
        )
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    hits = sum(kill["was_writing"] for kill in result["kills"])
    print(
        f"{len(result['kills'])} kills, {hits} while writing, {result['late_kills']} more came too late: "
        f"{'passed' if result['passed'] else 'FAILED'}"
    )
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
