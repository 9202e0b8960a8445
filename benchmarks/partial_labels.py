"""Partial labels: half of a phantom's cases with their tumors annotated only, the other half with their livers only.

Four trainings of the same recipe, judged on held-out cases that are annotated in full: both halves, each case stating
what was annotated; both halves with what is not annotated taken for background; and each half by itself. With equal
epochs every case is seen equally often, by one recipe; a half by itself then makes half as many updates. With equal
updates it has a batch of one case instead of two, so that both its updates and how often it sees each case are the
same. With equal steps it sees each of its cases twice as often, which favors it as long as trainings are short.
Trainings that are finished are skipped when this is started again.

    python benchmarks/partial_labels.py [--folder runs/partial_labels] [--epochs 60] [--equal epochs|updates|steps]
        [--seeds 2] [--out partial.json]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from medseg.data import make_phantom
from medseg.reading import read_label
from medseg.writing import write_nifti

ROOT = Path(__file__).parents[1]
LIVER, TUMOR = 1, 2
BATCH_SIZE = 2  # one case of each half: an update of one kind alone undoes some of what the other has taught
NUMBERS = {
    "spacing_mm": [6.0, 6.0, 8.0],
    "patch_size": [24, 24, 16],
    "network_def::widths": [12, 24, 48, 64],
    "network_def::blocks_per_level": 1,
    "learning_rate": 0.003,
    "warmup_steps": 50,
    "num_workers": 0,
    "cleanup": [],  # keeping the largest piece of the liver would take tumors from a network that knows no liver
}


@dataclass(frozen=True)
class Way:
    """One training: which halves it sees, and whether it is told what was annotated."""

    name: str
    halves: Sequence[str]
    told: bool


WAYS = (
    Way("partial labels", ("tumor", "liver"), told=True),
    Way("liver half alone", ("liver",), told=False),
    Way("tumor half alone", ("tumor",), told=False),
    Way("unlabeled = background", ("tumor", "liver"), told=False),
)


def halved(phantom: Path, folder: Path) -> dict[str, list[str]]:
    """Write labels of which each lacks one of the regions; the case ids of each half."""
    case_ids = sorted(path.name.removesuffix(".nii.gz") for path in (phantom / "labelsTr").iterdir())
    halves = {"tumor": case_ids[::2], "liver": case_ids[1::2]}
    folder.mkdir(exist_ok=True)
    for half, members in halves.items():
        for case_id in members:
            label = read_label(phantom / "labelsTr" / f"{case_id}.nii.gz")
            known = np.where(label.voxels == TUMOR, TUMOR, 0) if half == "tumor" else (label.voxels > 0) * LIVER
            write_nifti(known.astype(np.uint8), label.affine, folder / f"{case_id}.nii.gz")
    return halves


def write_dataset(folder: Path, phantom: Path, way: Way, halves: Mapping[str, Sequence[str]]) -> Path:
    """The data set of one way, in MSD layout beside the phantom; images and labels stay where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    members = sorted(case_id for half in way.halves for case_id in halves[half])
    held_out = sorted(path.name for path in (phantom / "labelsTs").iterdir())
    description: dict[str, Any] = {
        "synthetic": True,
        "labels": {"0": "background", "1": "liver", "2": "tumor"},
        "modality": {"0": "CT"},
        "training": [
            {"image": f"../{phantom.name}/imagesTr/{case_id}.nii.gz", "label": f"../halves/{case_id}.nii.gz"}
            for case_id in members
        ],
        "test": [
            {"image": f"../{phantom.name}/imagesTs/{name}", "label": f"../{phantom.name}/labelsTs/{name}"}
            for name in held_out
        ],
    }
    if way.told:
        description["labeled"] = {case_id: [half] for half in way.halves for case_id in halves[half]}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    validation = [next(case_id for case_id in halves[half]) for half in way.halves]  # the last epoch is taken anyway
    split = {"train": [case_id for case_id in members if case_id not in validation], "val": validation}
    (folder / "splits.json").write_text(json.dumps([split]), encoding="utf-8")
    return folder


def trained(way: Way, dataset: Path, *, cases: int, epochs: int, batch_size: int, seed: int) -> dict[str, Any]:
    """Train, or take what an earlier start has left; Dice of each region on the held-out cases, and seconds."""
    name = f"{dataset.name}_{epochs}epochs_batch{batch_size}_seed{seed}"
    numbers = NUMBERS | {"max_epochs": epochs, "val_interval": epochs, "batch_size": batch_size}
    result = dataset.parent / f"{name}.json"
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        if (found.get("cases"), found["numbers"]) == (cases, numbers):
            return found
    overlay = dataset.parent / f"{name}_overlay.json"
    overlay.write_text(json.dumps(numbers), encoding="utf-8")
    runs = dataset.parent / "runs" / f"{name}_{time.strftime('%H%M%S')}"
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--device", "cpu", "--seed", str(seed)]
    command += ["--config_file", f"['configs/unet_liver.json','{overlay}']"]
    command += ["--dataset_dir", str(dataset), "--output_dir", str(runs)]
    started = time.monotonic()
    log = dataset.parent / f"{name}.log"
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=file,
            stderr=file,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    if done.returncode:
        raise SystemExit(f"the training '{way.name}' failed; {log} says why")
    (bundle,) = runs.glob("*/bundle")
    scores = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))["eval_metrics"]
    found = {
        "way": way.name,
        "seed": seed,
        **{f"{region}_dice": scores.get(f"held_out_{region}_dice") for region in ("liver", "tumor")},
        "seconds": round(time.monotonic() - started, 1),
        "cases": cases,
        "numbers": numbers,
    }
    result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def mean_or_dash(values: Sequence[float | None]) -> str:
    """Mean of the seeds as the table has it; a dash if one of them has no figure."""
    known = [value for value in values if value is not None]
    return f"{mean(known):.3f}" if known and len(known) == len(values) else "-"


def main() -> None:
    """Train each way, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/partial_labels"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--equal", choices=("epochs", "updates", "steps"), default="epochs")
    parser.add_argument("--cases", type=int, default=24, help="a quarter of them is held out")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="where the figures go, as JSON")
    options = parser.parse_args()
    folder = options.folder.resolve()
    phantom = folder / f"phantom_{options.cases}"
    if not (phantom / "dataset.json").is_file():
        make_phantom(phantom, cases=options.cases, seed=11)
    halves = halved(phantom, folder / "halves")
    rows = []
    for seed in range(options.seeds):
        for way in WAYS:
            dataset = write_dataset(folder / way.name.replace(" = ", "_").replace(" ", "_"), phantom, way, halves)
            share = 2 // len(way.halves)  # a half has half the steps an epoch
            epochs = options.epochs * (share if options.equal == "steps" else 1)
            batch_size = BATCH_SIZE // (share if options.equal == "updates" else 1)
            rows.append(trained(way, dataset, cases=options.cases, epochs=epochs, batch_size=batch_size, seed=seed))
            print(f"{way.name}, seed {seed}: {rows[-1]['seconds']:.0f} s", flush=True)
    print(f"{'way':<24} {'liver Dice':>10} {'tumor Dice':>10} {'seconds':>8}")
    for way in WAYS:
        own = [row for row in rows if row["way"] == way.name]
        liver, tumor = (mean_or_dash([row[f"{region}_dice"] for row in own]) for region in ("liver", "tumor"))
        seconds = mean(row["seconds"] for row in own)
        print(f"{way.name:<24} {liver:>10} {tumor:>10} {seconds:>8.0f}")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
