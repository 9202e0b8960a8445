"""Training patches from prepared cases: medseg beside MONAI's CacheDataset and PersistentDataset, same crops.

    python benchmarks/sampler.py [--full] [--rounds 3] [--json FILE]

An item is four patches of one case, drawn by the same seeds, without augmentation; MONAI's are prepared by its own
chain, on the same grid. The patches of every way must equal CacheDataset's within what float16 rounds, the labels
exactly. Each way runs in its own process over 2 cases and over 8, so that `peak_mb` (preparation included, above the
imports) tells what a further case costs; rounds are interleaved, figures are medians. `item` and `batch` are CPU time
over that of medseg on disk, of an item and of an item with its collation (without a copy of the case, MONAI's patches
are views that are read there first). CacheDataset is measured as it comes, copying a case at each access, and with
`copy_cache=False`. Then a rotation with scaling of the four patches: MONAI's `RandAffined` patch by patch beside one
call for the batch, over the same item.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import Figures, apart, finish, measured, medians

SIZES = {False: ((96, 90, 80), 48), True: ((273, 273, 267), 64)}  # of a case on its grid, and of a patch
WAYS = ("medseg, disk", "medseg, memory", "CacheDataset", "CacheDataset, no copy", "PersistentDataset")
CASES = (2, 8)
ITEMS, PATCHES, RATIOS = 16, 4, (1, 1, 3)
WINDOW_HU = (-100, 200)
FLOAT16_ERROR = 2.0**-12 * 1.01  # of values in [0, 1]
AUGMENTED = ("RandAffined, each patch", "batch, one call")


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="cases and patches as of a CT at 1.5 mm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures; the table is written beside it")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "CASES", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape, patch = SIZES[arguments.full]
    if arguments.one:
        way, cases, name = arguments.one
        print(json.dumps(augmented(way, patch) if way in AUGMENTED else one(way, int(cases), Path(name), patch)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_cases(Path(name), shape)
        runs = [(way, count) for way in WAYS for count in CASES] + [(way, 0) for way in AUGMENTED]
        found: dict[tuple[str, int], list[Figures]] = {run: [] for run in runs}
        for number in range(arguments.rounds):
            for way, count in runs:
                if count == CASES[0] and number:
                    continue  # memory hardly differs from round to round
                rest = ["--full"] if arguments.full else []
                found[way, count].append(apart(sys.executable, Path(__file__), *rest, "--one", way, count, name))
        rows = compared(found, Path(name))
    note = f"cases {shape}, {PATCHES} patches of {patch}, {arguments.rounds} rounds, medians; one thread"
    finish(rows, note, arguments.json)


def write_cases(folder: Path, shape: tuple[int, ...]) -> None:
    """CTs of noise with a large and a small organ, each another one; already on the working grid."""
    from medseg.writing import write_nifti

    noise = np.random.default_rng(0).integers(-100, 200, shape).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(n // 4, n // 2) for n in shape)] = 1
    label[tuple(slice(n // 3, n // 3 + 6) for n in shape)] = 2
    for number in range(max(CASES)):
        write_nifti(np.roll(noise, number, 0), np.eye(4), folder / f"{number}.nii.gz")
        write_nifti(np.roll(label, number, 0), np.eye(4), folder / f"{number}_label.nii.gz")


def compared(found: dict[tuple[str, int], list[Figures]], folder: Path) -> list[Figures]:
    """A row a way; refuses patches that are not CacheDataset's."""
    few, many = CASES
    own = found[WAYS[0], many]
    expected = np.load(folder / "CacheDataset.npz")
    rows: list[Figures] = []
    for way in WAYS:
        patches = np.load(folder / f"{way}.npz")
        error = float(np.abs(patches["image"] - expected["image"]).max())
        if error > FLOAT16_ERROR or not np.array_equal(patches["label"], expected["label"]):
            raise SystemExit(f"{way}: patches differ from CacheDataset's by {error:.2g}")
        row = {"way": way} | medians(found[way, many])
        row |= {"item": over(found[way, many], own, "cpu_ms"), "batch": over(found[way, many], own, "batch_cpu_ms")}
        row["mb_a_further_case"] = (row["peak_mb"] - medians(found[way, few])["peak_mb"]) / (many - few)
        rows.append(row | {"largest_difference": error})
    rows += [{"way": way, **medians(found[way, 0]), "item": over(found[way, 0], own, "cpu_ms")} for way in AUGMENTED]
    return rows


def over(rounds: list[Figures], own: list[Figures], figure: str) -> float:
    """Median over rounds of a figure over that of medseg."""
    return median(theirs[figure] / ours[figure] for theirs, ours in zip(rounds, own, strict=True))


def one(way: str, cases: int, folder: Path, patch: int) -> Figures:
    """Figures of one way in this process; the patches of its first item go to a file."""
    import torch

    from medseg.data.cache import CachedCases  # imported before the memory is looked at

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    samples = [
        {"image": str(folder / f"{n}.nii.gz"), "label": str(folder / f"{n}_label.nii.gz"), "case_id": str(n)}
        for n in range(cases)
    ]
    transform = by_medseg(patch) if "medseg" in way else by_monai(patch)
    times: list[tuple[float, float, float]] = []

    def dataset():
        from monai.data import CacheDataset, PersistentDataset

        if "medseg" in way:
            cache = "memory" if "memory" in way else "disk"
            return CachedCases(samples, transform, cache=cache, cache_dir=folder / "medseg", num_workers=1)
        if way == "PersistentDataset":
            return PersistentDataset(samples, transform, folder / way, track_meta=True, weights_only=False)
        return CacheDataset(samples, transform, copy_cache="no copy" not in way, progress=False, num_workers=1)

    def epoch() -> None:
        items = dataset()
        for case in range(cases):
            items[case]  # PersistentDataset prepares at the first access
        for number in range(ITEMS):
            transform.set_random_state(number)
            wall, cpu = perf_counter(), process_time()
            taken = items[number % cases]
            item_wall, item_cpu = perf_counter() - wall, process_time() - cpu
            batch = {key: torch.stack([torch.as_tensor(each[key]) for each in taken]) for key in ("image", "label")}
            times.append((item_wall, item_cpu, process_time() - cpu))
            if number == 0 and not (folder / f"{way}.npz").exists():
                np.savez(folder / f"{way}.npz", **{key: value.numpy() for key, value in batch.items()})

    _, figures = measured(epoch)
    wall_ms, cpu_ms, batch_cpu_ms = (median(each) * 1e3 for each in zip(*times, strict=True))
    return {"wall_ms": wall_ms, "cpu_ms": cpu_ms, "batch_cpu_ms": batch_cpu_ms, "peak_mb": figures["peak_mb"]}


def by_medseg(patch: int):
    """The pipeline of a recipe, without augmentation."""
    from medseg.preprocessing import ScanToGrid, Window
    from medseg.transforms import training_patches

    return training_patches(
        ScanToGrid(spacing_mm=(1, 1, 1), intensity=Window(*WINDOW_HU)),  # the scan's own grid
        ["ct"],
        {"background": 0, "liver": 1, "tumor": 2},
        patch_size=[patch] * 3,
        patches_per_case=PATCHES,
        class_ratios=RATIOS,
        augmentation=[],
        ignore_label=255,
        image_precision="float16",
    )


def by_monai(patch: int):
    """MONAI's chain with the same crops, the places of the classes kept with each case, as its documents advise."""
    from monai.transforms import (
        ClassesToIndicesd,
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        Orientationd,
        RandCropByLabelClassesd,
        ScaleIntensityRanged,
        SelectItemsd,
    )

    keys = ("image", "label")
    crop = RandCropByLabelClassesd(
        keys,
        label_key="label",
        spatial_size=[patch] * 3,
        ratios=list(RATIOS),
        num_classes=len(RATIOS),
        num_samples=PATCHES,
        indices_key="label_cls_indices",
        warn=False,
    )
    return Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            Orientationd(keys, "RAS", labels=None),
            ScaleIntensityRanged("image", *WINDOW_HU, 0.0, 1.0, clip=True),
            ClassesToIndicesd("label", num_classes=len(RATIOS), max_samples_per_class=20_000),
            SelectItemsd((*keys, "label_cls_indices")),
            crop,
        ]
    )


def augmented(way: str, patch: int) -> Figures:
    """A rotation about each axis with scaling, of image and label of four patches."""
    import torch
    from monai.transforms import RandAffined

    torch.set_num_threads(1)
    image = torch.rand(PATCHES, 1, *[patch] * 3)
    label = (image > 0.5).to(torch.uint8)
    change = RandAffined(
        ("image", "label"),
        prob=1.0,
        rotate_range=[0.26] * 3,
        scale_range=[0.2] * 3,
        mode=("bilinear", "nearest"),
        padding_mode="border",
    )

    def each() -> None:
        for n in range(PATCHES):
            change({"image": image[n], "label": label[n]})

    def batch() -> None:
        matrices = torch.stack([torch.eye(3, 4) + 0.1 * torch.randn(3, 4) for _ in range(PATCHES)])
        grid = torch.nn.functional.affine_grid(matrices, list(image.shape), align_corners=False)
        settings = {"padding_mode": "border", "align_corners": False}
        torch.nn.functional.grid_sample(image, grid, mode="bilinear", **settings)
        torch.nn.functional.grid_sample(label.float(), grid, mode="nearest", **settings).to(torch.uint8)

    work: Callable[[], None] = each if way == AUGMENTED[0] else batch
    times = []
    for _ in range(6):
        wall, cpu = perf_counter(), process_time()
        work()
        times.append((perf_counter() - wall, process_time() - cpu))
    wall_ms, cpu_ms = (median(figure[kind] for figure in times[1:]) * 1e3 for kind in (0, 1))
    return {"wall_ms": wall_ms, "cpu_ms": cpu_ms}


if __name__ == "__main__":
    main()
