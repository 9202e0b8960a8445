"""nnU-Net v2 for `benchmarks/accuracy.py`; runs in an environment of its own, through nnU-Net's public classes alone.

    python -m venv NN && NN/bin/pip install nnunetv2 "torch<2.14"

Its planning, preprocessing, networks, loss, augmentation, optimizer and schedule are its defaults. Set from here are
the length of the schedule (its learning rate falls by epoch, so there are up to 50 of them), one validation iteration
an epoch instead of 50, no checkpoints and no pictures, so that all of the budget goes into learning. Background workers
are tried both ways, and the faster is taken.
"""

import argparse
import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

EPOCHS = 50
PREPARED = 6  # batches that nnU-Net keeps ready


def main() -> None:
    """Plan a data set, or train and predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="DatasetNNN_NAME in nnU-Net's raw layout")
    parser.add_argument("--preprocessed_dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--plan", action="store_true", help="plan and preprocess, nothing else")
    parser.add_argument("--configuration", default="3d_fullres", choices=("2d", "3d_fullres"))
    parser.add_argument("--job_dir", type=Path)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mirroring", action="store_true")
    settings = parser.parse_args()
    os.environ |= {  # nnU-Net reads these when it is imported
        "nnUNet_raw": str(settings.dataset_dir.parent),
        "nnUNet_preprocessed": str(settings.preprocessed_dir),
        "nnUNet_results": str(settings.job_dir or settings.preprocessed_dir),
        "nnUNet_def_n_proc": str(settings.threads),
        "nnUNet_wandb_enabled": "0",  # it would use the network
    }
    if settings.plan:
        plan(settings)
    else:
        train_and_predict(settings)


def plan(settings: argparse.Namespace) -> None:
    """Fingerprint, plans and preprocessed cases for both configurations, with the split of the raw folder."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    numbers = [int(settings.dataset_dir.name.removeprefix("Dataset")[:3])]
    extract_fingerprints(numbers, num_processes=settings.threads, check_dataset_integrity=True)
    plan_experiments(numbers)
    preprocess(numbers, configurations=("2d", "3d_fullres"), num_processes=[settings.threads])
    shutil.copy(settings.dataset_dir / "splits_final.json", settings.preprocessed_dir / settings.dataset_dir.name)


def train_and_predict(settings: argparse.Namespace) -> None:
    """Time a few iterations, train to the end of a schedule of that length, predict; `training.json` says how."""
    import numpy as np
    import torch

    torch.set_num_threads(settings.threads)
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)

    budget_s = 60 * settings.minutes
    times = {workers: iteration_seconds(settings, workers, budget_s / 20) for workers in (0, settings.threads)}
    workers = min(times, key=lambda number: times[number][0])
    iteration_s, validation_s = times[workers]
    iterations = max(1, int(budget_s / iteration_s))
    epochs = min(EPOCHS, iterations)
    per_epoch = max(1, int((budget_s / epochs - validation_s) / iteration_s))

    trainer = new_trainer(settings, workers)
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, per_epoch
    trainer.run_training()
    started = trainer.logger.get_value("epoch_start_timestamps", step=0)
    ended = trainer.logger.get_value("epoch_end_timestamps", step=-1)
    masks_dir = settings.job_dir / "masks"
    masks_dir.mkdir(parents=True)
    began = time.perf_counter()
    predict(trainer, settings, masks_dir)
    figures = {
        "train_s": ended - started,
        "predict_s": time.perf_counter() - began,
        "epochs": epochs,
        "iterations": epochs * per_epoch,
        "calibrated_iteration_s": {str(number): seconds for number, (seconds, _) in times.items()},
        "workers": workers,
        "patch_size": [int(length) for length in trainer.configuration_manager.patch_size],
        "batch_size": int(trainer.configuration_manager.batch_size),
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
    }
    (settings.job_dir / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def new_trainer(settings: argparse.Namespace, workers: int) -> Any:
    """nnU-Net's own trainer of fold 0 on the CPU, its network made."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    os.environ |= {"nnUNet_n_proc_DA": str(workers)}
    folder = settings.preprocessed_dir / settings.dataset_dir.name
    plans = json.loads((folder / "nnUNetPlans.json").read_text(encoding="utf-8")) | {"continue_training": False}
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    trainer = nnUNetTrainer(plans, settings.configuration, 0, description, torch.device("cpu"))
    trainer.num_val_iterations_per_epoch = 1
    trainer.disable_checkpointing = True
    trainer.logger.plot_progress_png = nothing
    trainer.plot_network_architecture = nothing
    trainer.initialize()
    return trainer


def nothing(*_: object) -> None:
    """Stand in for nnU-Net's pictures."""


def iteration_seconds(settings: argparse.Namespace, workers: int, longest_s: float) -> tuple[float, float]:
    """Seconds of a training and of a validation iteration, after one to warm up.

    Batches that workers have prepared in advance are thrown away first: they would hide what preparing costs. At least
    two iterations are timed, however long they take; then as many as fit into `longest_s`.
    """
    import torch

    trainer = new_trainer(settings, workers)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    for _ in range(PREPARED + workers if workers else 0):
        next(trainer.dataloader_train)
    started, done = time.perf_counter(), 0
    while done < 2 or time.perf_counter() - started < longest_s:
        trainer.train_step(next(trainer.dataloader_train))
        done += 1
    iteration_s = (time.perf_counter() - started) / done
    started = time.perf_counter()
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        trainer.validation_step(next(trainer.dataloader_val))
    validation_s = time.perf_counter() - started
    trainer.on_train_end()
    return iteration_s, validation_s


def predict(trainer: Any, settings: argparse.Namespace, masks_dir: Path) -> None:
    """Segment `imagesTs` with the weights as the training left them."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(
        use_mirroring=settings.mirroring, perform_everything_on_device=False, device=trainer.device, allow_tqdm=False
    )
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    scans = [[str(path)] for path in sorted((settings.dataset_dir / "imagesTs").glob("*.nii.gz"))]
    predictor.predict_from_files_sequential(scans, str(masks_dir))


if __name__ == "__main__":  # nnU-Net starts workers that import this file
    main()
