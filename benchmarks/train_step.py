"""A training step: medseg's, by its recipe, beside a plain MONAI loop in float32; same network, same batches.

    python benchmarks/train_step.py [--size small] [--rounds 3] [--steps 40] [--threads 1] [--brief] [--json FILE]

The recipe's step is `workflows.training.TrainingStep` in bfloat16 with channels last; the plain loop is the usual five
lines with MONAI's `DiceCELoss`, on contiguous tensors: there the network's norm is torch's `instance_norm`, as MONAI's
`UNet` has it. Both start from the same weights and take the same patches of synthetic cases, a step of the one after a
step of the other, so that what else the machine does falls on both; each in a process of its own, for ours keeps the
memory that it frees. A round has weights and patches of its own; `speedup` is the plain step's time over ours, the
median over the steps of a round, then over rounds; in CPU seconds and in wall seconds. `peak` is the most that a
process held above what it had before its first step. `layout_left` is ours with `channels_last` off. `loss_gap` is the
largest difference of the two loss curves, each averaged over a quarter of the steps; `noise_gap` is the same between
two plain loops that differ in their first weights alone. The benchmark refuses a `loss_gap` above both that and 0.02.
`--brief` leaves out `layout_left` and `noise_gap`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import Figures, finish, medians

SETTINGS = {  # of a patch, and of the network
    "small": (48, (16, 32, 64, 128)),
    "middle": (64, (32, 64, 128, 256)),
    "full": (96, (32, 64, 128, 256, 320)),  # the liver recipe's
}
BATCH, CLASSES, LEARNING_RATE = 2, 3, 1e-3
CASES, SIDE = 4, 1.5  # cases, and their side over the patch's
QUARTERS = 4
TOLERANCE = 0.02  # of the loss
LOOPS, FURTHER = ("medseg", "MONAI"), ("medseg, layout left", "MONAI, other weights")


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SETTINGS, default="small", help="of patches and network")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of a round, 2 or more; the first is not timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--brief", action="store_true", help="the two loops alone")
    parser.add_argument("--json", type=Path, help="file for the figures; the table is written beside it")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps is {arguments.steps}; give 2 or more, for the first is not timed")
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the processes that are started
    patch, widths = SETTINGS[arguments.size]
    names = LOOPS if arguments.brief else LOOPS + FURTHER
    with ExitStack() as stack:
        loops = {name: stack.enter_context(loop_apart(name, widths, arguments.threads)) for name in names}
        rounds = [one(loops, patch, arguments.steps, seed) for seed in range(arguments.rounds)]
    for each in rounds:
        noise = each.get("noise_gap", 0.0)
        if each["loss_gap"] > max(noise, TOLERANCE):
            raise SystemExit(f"the loss differs by {each['loss_gap']:.3f}, beside a noise of {noise:.3f}")
    rows = [{"round": str(number), **each} for number, each in enumerate(rounds)]
    rows.append({"round": "median", **medians(rounds)})
    note = (
        f"U-Net of widths {widths}, batch {BATCH} of {patch}^3, {arguments.steps} steps, {arguments.threads} thread(s)"
    )
    finish(rows, note, arguments.json)


def one(loops: Mapping[str, Connection], patch: int, steps: int, seed: int) -> Figures:
    """A round: networks trained side by side on the same batches."""
    for connection in loops.values():
        connection.send(seed)
    found: dict[str, list[Figures]] = {name: [] for name in loops}
    with tempfile.TemporaryDirectory() as folder:
        for batch in islice(patches(Path(folder), patch, seed), steps):
            for name, connection in loops.items():
                connection.send(batch)
                found[name].append(connection.recv())
    ours, plain = (found[name] for name in LOOPS)
    if abs(ours[0]["loss"] - plain[0]["loss"]) > TOLERANCE:
        raise SystemExit("the first losses differ: these are not the same network, batch or loss")
    figures: Figures = {
        "ours_cpu_ms": 1e3 * median(step["cpu_s"] for step in ours[1:]),
        "plain_cpu_ms": 1e3 * median(step["cpu_s"] for step in plain[1:]),
        "speedup_cpu": speedup(plain, ours, "cpu_s"),
        "speedup_wall": speedup(plain, ours, "wall_s"),
        "ours_peak_mb": ours[-1]["peak_mb"],
        "plain_peak_mb": plain[-1]["peak_mb"],
        "first_loss": plain[0]["loss"],
        "last_loss_ours": curve(ours)[-1],
        "last_loss_plain": curve(plain)[-1],
        "loss_gap": gap(ours, plain),
    }
    if len(loops) > len(LOOPS):
        left, other = (found[name] for name in FURTHER)
        figures |= {"speedup_cpu_layout_left": speedup(plain, left, "cpu_s"), "noise_gap": gap(other, plain)}
    return figures


@contextmanager
def loop_apart(name: str, widths: tuple[int, ...], threads: int) -> Iterator[Connection]:
    """A loop in its own process; takes a seed to begin a round, then batches, and tells of each step."""
    spawning = get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=serve, args=(theirs, name, widths, threads), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def serve(connection: Connection, name: str, widths: tuple[int, ...], threads: int) -> None:
    """Train on one batch after the other, until no more come."""
    import psutil
    import torch

    from medseg.memory import peak_memory_mb

    torch.set_num_threads(threads)
    step: Callable[..., float] | None = None
    before = 0.0
    while True:
        try:
            sent = connection.recv()
        except EOFError:
            return
        if isinstance(sent, int):
            made = network(widths, sent + 1000 if name == "MONAI, other weights" else sent)
            step = by_medseg(made, channels_last=name == "medseg") if name.startswith("medseg") else by_monai(made)
            before = before or psutil.Process().memory_info().rss / 2**20
            continue
        batch = {key: torch.from_numpy(values) for key, values in sent.items()}
        wall, cpu = perf_counter(), process_time()
        loss = step(batch)
        took = {"wall_s": perf_counter() - wall, "cpu_s": process_time() - cpu}
        connection.send({"loss": loss, **took, "peak_mb": peak_memory_mb() - before})


def speedup(plain: list[Figures], ours: list[Figures], seconds: str) -> float:
    """How many times as fast the median step is."""
    return median(one[seconds] / other[seconds] for one, other in zip(plain[1:], ours[1:], strict=True))


def curve(steps: list[Figures]) -> list[float]:
    """Mean loss of each quarter of the steps."""
    parts = np.array_split([step["loss"] for step in steps], min(QUARTERS, len(steps)))
    return [float(np.mean(part)) for part in parts]


def gap(one: list[Figures], other: list[Figures]) -> float:
    """Largest difference of two curves."""
    return max(abs(a - b) for a, b in zip(curve(one), curve(other), strict=True))


def network(widths: tuple[int, ...], seed: int):
    """The recipe's U-Net, its weights from the seed."""
    import torch

    from medseg.networks import UNet

    torch.manual_seed(seed)
    return UNet(3, 1, CLASSES, widths=widths).train()


def patches(folder: Path, patch: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """What the sampler gives for each step: `BATCH` patches of one case, without augmentation; without end."""
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
    for number in cycle(range(CASES)):
        items = cases[number]
        yield {key: np.stack([np.asarray(item[key]) for item in items]) for key in ("image", "label")}


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
