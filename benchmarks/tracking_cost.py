"""How much of an epoch recording takes: time in tracking calls beside an epoch of ten seconds.

    python benchmarks/tracking_cost.py [--epochs 20] [--uri http://127.0.0.1:5000]

Each epoch records what a training does: losses, learning rate and speed, Dice and IoU of two regions, a table with one
row a case, and a flush. Start, pictures and the model at the end are timed apart, for they come once a run.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

EPOCH_S = 10.0
CASES = 40
MODEL_MB = 100


def main() -> None:
    """Print the figures as a table and as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--uri", help="MLflow server; a SQLite store in a temporary folder if absent")
    arguments = parser.parse_args()
    if arguments.uri:
        os.environ["MLFLOW_TRACKING_URI"] = arguments.uri
    else:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.epochs)
    for name, value in figures.items():
        print(f"{name:<28} {value:.4g}")
    print(json.dumps(figures))


def measure(folder: Path, epochs: int) -> dict[str, float]:
    """Seconds of each part, and the share of an epoch."""
    from medseg import tracking

    tracking.start_run(runs_dir=folder, experiment="first").finish("FINISHED")  # makes the store, imports MLflow
    started = time.perf_counter()
    run = tracking.start_run(runs_dir=folder, experiment="cost")
    run.log_environment()
    run.log_recipe({f"key_{number}": number for number in range(150)}, {"seed": 0})
    run.log_data({"sha256": "0" * 64, "cases": CASES}, split={"training": [f"case_{n}" for n in range(CASES)]})
    start_s = time.perf_counter() - started

    seconds = []
    for epoch in range(epochs):
        started = time.perf_counter()
        record_epoch(run, epoch)
        seconds.append(time.perf_counter() - started)

    weights = run.folder / "weights.pt"
    weights.write_bytes(os.urandom(MODEL_MB * 2**20))
    started = time.perf_counter()
    run.log_file(weights, "bundle/models")
    run.finish("FINISHED")
    return {
        "epochs": epochs,
        "epoch_s": EPOCH_S,
        "start_s": start_s,
        "end_with_100_mb_model_s": time.perf_counter() - started,
        "tracking_s_an_epoch": sum(seconds) / epochs,
        "slowest_s": max(seconds),
        "share_percent": 100 * sum(seconds) / epochs / EPOCH_S,
    }


def record_epoch(run, epoch: int) -> None:  # type: ignore[no-untyped-def]
    """What a training records in an epoch with a validation."""
    names = ("train_loss", "loss_dice", "loss_cross_entropy", "learning_rate", "samples_per_second", "data_wait_share")
    run.log_metrics(dict.fromkeys(names, epoch + 0.5), step=epoch)
    regions = [f"validation_{region}_{metric}" for region in ("liver", "tumor") for metric in ("dice", "iou")]
    run.log_metrics(dict.fromkeys([*regions, "validation_mean_dice"], 1 / (epoch + 1)), step=epoch)
    run.log_table([{"case_id": f"case_{n}", "liver_dice": n / CASES, "epoch": epoch} for n in range(CASES)], "cases")
    run.flush()


if __name__ == "__main__":
    main()
