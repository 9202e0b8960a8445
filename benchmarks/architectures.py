"""Every network of the catalog under one budget of training: Dice, parameters, seconds, milliseconds a case.

Each of `configs/networks.json` is trained on the phantom by the recipe `configs/unet_liver.json` with the numbers of
`configs/quick.json`; 2D ones slice by slice, with `configs/slices_2d.json`. All share optimizer, learning rate and
budget, so the table says what a network learns here and in this time, not what it can learn. The runs lie in one MLflow
experiment: `medseg ui --runs OUT/runs`.

A network is skipped, with the reason, if one step at the recipe's patches and batch takes more memory than
`--largest_mb`, or so long that the budget holds fewer than `--fewest_steps`.

Every training is a process of its own and leaves a row in `OUT/rows`; a second start skips those that have one.

    python benchmarks/architectures.py [NAME ...] [--minutes 5] [--threads 2] [--seed 0] [--out DIR]
"""

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from accuracy import PEERS, ROOT, environment, judged, leave, prepared, watched
from networks import dimensions, entries

from medseg.data_half import build
from medseg.memory import peak_memory_mb
from medseg.networks.channels_last import to_channels_last

OVERLAYS = {2: ["configs/quick.json", "configs/slices_2d.json"], 3: ["configs/quick.json"]}
PATCH_2D = [96, 96]  # the phantom's slices on the grid of quick.json are hardly larger
EXPERIMENT = "architectures"


def main() -> None:
    """Do what is left to do, print the table, write `results.json`; exit code 1 if a network failed."""
    settings = arguments()
    if settings.probe:
        print(json.dumps(probed(settings.probe, settings.threads)))
        return
    signal.signal(signal.SIGTERM, leave)
    out: Path = settings.out.absolute()
    for folder in ("rows", "jobs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    dataset_dir = prepared("phantom", None, out)
    rows = list(done(settings.names or list(entries()), dataset_dir, settings, out))
    result = {"environment": environment(), "rows": rows}
    (out / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    sys.exit(1 if any("error" in row for row in rows) else 0)


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="entries of the catalog; all if none is given")
    parser.add_argument("--out", type=Path, default=Path("runs/architectures"), help="data, rows, runs, results.json")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, for each network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="and cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fewest_steps", type=int, default=50, help="that the budget must hold")
    parser.add_argument("--largest_mb", type=int, default=psutil.virtual_memory().total // 2**21)
    parser.add_argument("--probe", help=argparse.SUPPRESS)  # how this program calls itself, one process a network
    settings = parser.parse_args()
    unknown = sorted(set(settings.names) - set(entries()))
    if unknown:
        parser.error(f"configs/networks.json has no {', '.join(unknown)}; it has {', '.join(entries())}")
    return settings


def done(names: Sequence[str], dataset_dir: Path, settings: argparse.Namespace, out: Path) -> Iterator[dict[str, Any]]:
    """The row of each network: read where it is finished, else the network is trained now, one at a time."""
    for name in names:
        job = f"{name}-{settings.minutes:g}min-{settings.threads}threads-seed{settings.seed}"
        path = out / "rows" / f"{job}.json"
        if path.is_file():
            row = json.loads(path.read_text(encoding="utf-8"))
        else:
            job_dir = out / "jobs" / job
            shutil.rmtree(job_dir, ignore_errors=True)
            job_dir.mkdir()
            row = {"name": name, "minutes": settings.minutes, "seed": settings.seed, "threads": settings.threads}
            row |= trained(name, dataset_dir, job_dir, settings, out)
            if "dice" in row:
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
                partial.replace(path)
        print(line(row), flush=True)
        yield row


def trained(name: str, dataset_dir: Path, job_dir: Path, settings: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Figures of a network after its training, or why it was skipped, or what failed."""
    longest_s = 60 * settings.minutes / settings.fewest_steps
    command = [sys.executable, __file__, "--probe", name, "--threads", str(settings.threads)]
    code, peak_mb = watched(
        command,
        job_dir / "probe.txt",
        threads=settings.threads,
        longest_s=60 + 5 * longest_s,
        largest_mb=settings.largest_mb,
    )
    words = (job_dir / "probe.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    if peak_mb > settings.largest_mb:
        return {"skipped": f"one step takes more than {settings.largest_mb} MB"}
    if code < 0 and code != -signal.SIGKILL:  # which is what `watched` sends
        return {"error": f"one step ends by signal {-code}; see jobs/{job_dir.name}/probe.txt"}
    if code < 0:
        return {"skipped": f"three steps take more than {60 + 5 * longest_s:.0f} s"}
    if code:
        return {"error": (words or ["no word"])[-1]}
    probe = json.loads(words[-1])
    if probe["step_s"] > longest_s:
        return {
            "skipped": f"one step takes {probe['step_s']:.2f} s; {settings.minutes:g} minutes hold fewer than "
            f"{settings.fewest_steps}"
        }
    code, peak_mb = watched(
        recipe_command(name, dataset_dir, job_dir, settings, out), job_dir / "log.txt", threads=settings.threads
    )
    if code:
        return {"error": f"exit code {code}; see jobs/{job_dir.name}/log.txt"}
    figures = json.loads((job_dir / "training.json").read_text(encoding="utf-8"))
    recipe = json.loads((ROOT / "configs/unet_liver.json").read_text(encoding="utf-8"))
    scores = judged(dataset_dir, job_dir / "masks", recipe["regions"])
    return scores | probe | {"peak_rss_mb": peak_mb} | figures


def recipe_command(name: str, dataset_dir: Path, job_dir: Path, settings: argparse.Namespace, out: Path) -> list[str]:
    """Training and prediction of one network through the recipe."""
    spatial_dims = dimensions(entries()[name])
    files = ["configs/unet_liver.json", *OVERLAYS[spatial_dims]]
    command = [sys.executable, str(PEERS / "medseg_recipe.py"), "--recipe", *(str(ROOT / path) for path in files)]
    command += ["--dataset_dir", str(dataset_dir), "--job_dir", str(job_dir), "--runs_dir", str(out / "runs")]
    command += ["--minutes", str(settings.minutes), "--threads", str(settings.threads), "--seed", str(settings.seed)]
    command += ["--calibration_epochs", "2", "--overrides", "--network_def", f"%configs/networks.json::{name}"]
    command += ["--experiment_name", EXPERIMENT, "--run_name", name]
    return command + (["--patch_size", str(PATCH_2D)] if spatial_dims == 2 else [])


def probed(name: str, threads: int) -> dict[str, Any]:
    """Parameters, memory and seconds of a training step at the recipe's patches and batch; the fastest of three."""
    sys.path.insert(0, str(ROOT))
    from workflows.training import prepared_network  # MONAI's seconds, for this process alone

    torch.set_num_threads(threads)
    entry = entries()[name]
    spatial_dims = dimensions(entry)
    recipe: dict[str, Any] = {}
    for path in ("configs/unet_liver.json", *OVERLAYS[spatial_dims]):
        recipe |= json.loads((ROOT / path).read_text(encoding="utf-8"))
    recipe["network_def"] = entry
    network = build(recipe, "network_def")
    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"{name} is no network")
    network = prepared_network(
        network,
        "cpu",
        spatial_dims,
        channels_last=recipe["channels_last"],
        checkpoint_activations=recipe["checkpoint_activations"],
    ).train()
    optimizer = torch.optim.AdamW(network.parameters())
    patch_size = PATCH_2D if spatial_dims == 2 else recipe["patch_size"]
    images = torch.randn(recipe["batch_size"] * recipe["patches_per_case"], 1, *patch_size)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(to_channels_last(images) if recipe["channels_last"] else images)
        heads = logits if isinstance(logits, list | tuple) else [logits]
        torch.stack([head.float().square().mean() for head in heads]).sum().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": parameters, "step_s": min(seconds), "step_peak_mb": peak_memory_mb()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures as aligned text, best first within 2D and 3D; then what was skipped or failed."""
    catalog = entries()
    finished = [row for row in rows if "dice" in row]
    finished.sort(key=lambda row: (dimensions(catalog[row["name"]]), -row["mean_dice"]))
    head = (
        f"{'network':28}{'liver':>7}{'tumor':>7}{'mean':>7}{'parameters':>13}"
        f"{'epochs':>7}{'train s':>9}{'ms a case':>11}"
    )
    return "\n".join([head, *map(line, finished), *(line(row) for row in rows if "dice" not in row)])


def line(row: Mapping[str, Any]) -> str:
    """One row of the table."""
    if "dice" not in row:
        word = "skipped" if "skipped" in row else "FAILED"
        return f"{row['name']:28} {word}: {row.get('skipped') or row.get('error')}"
    return (
        f"{row['name']:28}{row['dice']['liver']:7.3f}{row['dice']['tumor']:7.3f}{row['mean_dice']:7.3f}"
        f"{row['parameters']:13,}{row['epochs']:7}{row['train_s']:9.0f}{1000 * row['case_s']:11.0f}"
    )


if __name__ == "__main__":
    main()
