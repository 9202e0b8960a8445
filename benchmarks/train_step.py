"""A training step: medseg's, by its recipe, beside a plain MONAI loop in float32; same network, same batches.

    python benchmarks/train_step.py [--full] [--rounds 3] [--steps 40] [--threads 1] [--json FILE]

The recipe's step is `workflows.training.TrainingStep` in bfloat16 with channels last; the plain loop is the usual five
lines with MONAI's `DiceCELoss`. Both start from the same weights and take the same patches of synthetic cases, a step
of the one after a step of the other, so that what else the machine does falls on both. A round is a process with
weights and patches of its own; `speedup` is the plain step's time over ours, the median over the steps of a round,
then over rounds; in CPU seconds and in wall seconds. `layout_left` is ours with `channels_last` off. `loss_gap` is the
largest difference of the two loss curves, each averaged over a quarter of the steps; `noise_gap` is the same between
two plain loops that differ in their first weights alone. The benchmark refuses a `loss_gap` above both that and 0.02.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import Figures, apart, finish, medians

SETTINGS = {False: (48, (16, 32, 64, 128)), True: (96, (32, 64, 128, 256, 320))}  # of a patch, and of the network
BATCH, CLASSES, LEARNING_RATE = 2, 3, 1e-3
CASES, SIDE = 4, 1.5  # cases, and their side over the patch's
QUARTERS = 4
TOLERANCE = 0.02  # of the loss


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the liver recipe's network, patches of 96")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures; the table is written beside it")
    parser.add_argument("--one", type=int, metavar="ROUND", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(one(arguments.one, arguments.full, arguments.steps, arguments.threads)))
        return
    rest = ["--steps", arguments.steps, "--threads", arguments.threads, *(["--full"] if arguments.full else [])]
    rounds = [apart(sys.executable, Path(__file__), *rest, "--one", number) for number in range(arguments.rounds)]
    for each in rounds:
        if each["loss_gap"] > max(each["noise_gap"], TOLERANCE):
            raise SystemExit(f"the loss differs by {each['loss_gap']:.3f}, beside a noise of {each['noise_gap']:.3f}")
    rows = [{"round": str(number), **each} for number, each in enumerate(rounds)]
    rows.append({"round": "median", **medians(rounds)})
    patch, widths = SETTINGS[arguments.full]
    note = (
        f"U-Net of widths {widths}, batch {BATCH} of {patch}^3, {arguments.steps} steps, {arguments.threads} thread(s)"
    )
    finish(rows, note, arguments.json)


def one(seed: int, full: bool, steps: int, threads: int) -> Figures:
    """A round: three networks trained side by side on the same batches."""
    import torch

    torch.set_num_threads(threads)
    patch, widths = SETTINGS[full]
    with tempfile.TemporaryDirectory() as folder:
        batches = [batch_of(items) for items in patches(Path(folder), patch, steps, seed)]
    loops = {
        "medseg": by_medseg(network(widths, seed)),
        "medseg, layout left": by_medseg(network(widths, seed), channels_last=False),
        "MONAI": by_monai(network(widths, seed)),
        "noise": by_monai(network(widths, seed + 1000)),
    }
    losses: dict[str, list[float]] = {name: [] for name in loops}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for batch in batches:
        for name, step in loops.items():
            wall, cpu = perf_counter(), process_time()
            losses[name].append(step(batch))
            times[name].append((perf_counter() - wall, process_time() - cpu))
    if abs(losses["medseg"][0] - losses["MONAI"][0]) > TOLERANCE:
        raise SystemExit("the first losses differ: these are not the same network, batch or loss")
    left = [plain[1] / ours[1] for ours, plain in zip(times["medseg, layout left"], times["MONAI"], strict=True)][2:]
    pairs = list(zip(times["medseg"], times["MONAI"], strict=True))[2:]  # the first steps allocate
    return {
        "ours_cpu_ms": median(ours[1] for ours, _ in pairs) * 1e3,
        "plain_cpu_ms": median(plain[1] for _, plain in pairs) * 1e3,
        "speedup_cpu": median(plain[1] / ours[1] for ours, plain in pairs),
        "speedup_cpu_layout_left": median(left),
        "speedup_wall": median(plain[0] / ours[0] for ours, plain in pairs),
        "first_loss": losses["MONAI"][0],
        "last_loss_ours": curve(losses["medseg"])[-1],
        "last_loss_plain": curve(losses["MONAI"])[-1],
        "loss_gap": gap(losses["medseg"], losses["MONAI"]),
        "noise_gap": gap(losses["noise"], losses["MONAI"]),
    }


def curve(losses: list[float]) -> list[float]:
    """Mean loss of each quarter of the steps."""
    return [float(np.mean(part)) for part in np.array_split(losses, QUARTERS)]


def gap(one: list[float], other: list[float]) -> float:
    """Largest difference of two curves."""
    return max(abs(a - b) for a, b in zip(curve(one), curve(other), strict=True))


def network(widths: tuple[int, ...], seed: int):
    """The recipe's U-Net, its weights from the seed."""
    import torch

    from medseg.networks import UNet

    torch.manual_seed(seed)
    return UNet(3, 1, CLASSES, widths=widths).train()


def patches(folder: Path, patch: int, steps: int, seed: int):
    """What the sampler gives for each step: `BATCH` patches of one case, without augmentation."""
    from medseg.data.cache import CachedCases
    from medseg.preprocessing import ScanToGrid, Window
    from medseg.transforms import training_patches

    transform = training_patches(
        ScanToGrid(spacing_mm=(1, 1, 1), intensity=Window(-100, 200)),
        ["ct"],
        {"background": 0, "liver": 1, "tumor": 2},
        patch_size=[patch] * 3,
        patches_per_case=BATCH,
        class_ratios=[1] * CLASSES,
        augmentation=[],
        ignore_label=255,
        image_precision="float16",
    )
    cases = CachedCases(write_cases(folder, round(SIDE * patch), seed), transform, cache="disk", cache_dir=folder)
    transform.set_random_state(seed)
    for step in range(steps):
        yield cases[step % CASES]


def write_cases(folder: Path, side: int, seed: int) -> list[dict[str, str]]:
    """Noise with a bright ball that has a darker one inside."""
    from medseg.writing import write_nifti

    random = np.random.default_rng(seed)
    samples = []
    for number in range(CASES):
        center = random.uniform(0.4, 0.6, 3) * side
        distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.ogrid[:side, :side, :side], center, strict=True)))
        label = (distance < 0.3 * side).astype(np.uint8) + (distance < 0.1 * side)
        image = np.array([0, 80, 30])[label] + random.normal(0, 25, label.shape)
        paths = {"image": folder / f"{number}.nii.gz", "label": folder / f"{number}_label.nii.gz"}
        write_nifti(image.astype(np.int16), np.eye(4), paths["image"])
        write_nifti(label.astype(np.uint8), np.eye(4), paths["label"])
        samples.append({key: str(path) for key, path in paths.items()} | {"case_id": str(number)})
    return samples


def batch_of(items):
    """Patches of one item as a batch."""
    import torch

    return {key: torch.stack([item[key] for item in items]) for key in ("image", "label")}


def by_medseg(network, *, channels_last: bool = True) -> Callable[..., float]:
    """The recipe's step and loss, on what MONAI's trainer would hand it."""
    import torch

    from medseg.losses import DiceCrossEntropy

    sys.path.insert(0, str(Path(__file__).parents[1]))  # the workflows are no package that is installed
    from workflows.training import TrainingStep, prepared_network

    network = prepared_network(network, "cpu", 3, channels_last=channels_last)
    engine = SimpleNamespace(
        state=SimpleNamespace(device=torch.device("cpu"), epoch=1, output=None),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01),
        loss_function=DiceCrossEntropy(batch_dice=True),
    )
    step = TrainingStep(channels_last=channels_last)
    return lambda batch: float(step(engine, batch)["loss"])


def by_monai(network) -> Callable[..., float]:
    """The loop of MONAI's tutorials."""
    import torch
    from monai.losses import DiceCELoss

    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    loss_function = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def step(batch) -> float:
        optimizer.zero_grad()
        loss = loss_function(network(batch["image"]), batch["label"])
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
