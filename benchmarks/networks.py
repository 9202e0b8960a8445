"""Size and cost of every network of the catalog: parameters, GFLOPs, milliseconds and peak memory of one image.

Each is measured in a process of its own, so that the peak memory is its own too: what the process needs beyond the
imports, weights included. GFLOPs count a multiplication with its
addition as two, as PyTorch's counter does. Milliseconds are the median over repeated passes in evaluation mode; their
ratio to the plain U-Net of the same dimensions, measured in the same run, is what a shared machine can tell.

    python benchmarks/networks.py [NAME ...] [--size_2d 256 256] [--size_3d 64 64 64] [--out networks.json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from medseg.data_half import build
from medseg.memory import peak_memory_mb

CATALOG = Path(__file__).parents[1] / "configs" / "networks.json"
BASELINE = {2: "unet_2d", 3: "unet_3d"}


def main() -> None:
    """Measure, print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="entries of the catalog; all if none is given")
    parser.add_argument("--size_2d", type=int, nargs=2, default=[256, 256])
    parser.add_argument("--size_3d", type=int, nargs=3, default=[64, 64, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # how this program calls itself, one process a network
    settings = parser.parse_args()
    if settings.measure:
        print(json.dumps(measured(settings.measure, settings)))
        return
    catalog = entries()
    unknown = sorted(set(settings.names) - set(catalog))
    if unknown:
        parser.error(f"{CATALOG.name} has no {', '.join(unknown)}; it has {', '.join(catalog)}")
    chosen = settings.names or list(catalog)
    rows = [in_own_process(name) for name in dict.fromkeys([*chosen, *BASELINE.values()])]
    for row in rows:
        baseline = next(other for other in rows if other["name"] == BASELINE[row["spatial_dims"]])
        failed = row["error"] or baseline["error"]
        row["ratio"] = float("nan") if failed else row["milliseconds"] / baseline["milliseconds"]
    print(table(rows))
    if settings.out:
        settings.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def entries() -> dict[str, dict[str, Any]]:
    """Networks of the catalog by name."""
    catalog = json.loads(CATALOG.read_text(encoding="utf-8"))
    return {name: entry for name, entry in catalog.items() if not name.startswith("_")}


def in_own_process(name: str) -> dict[str, Any]:
    """Figures of one entry, or the last line of its failure."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure", name], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {"name": name, "spatial_dims": dimensions(entries()[name]), "error": last}
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Figures of one entry, measured in this process."""
    torch.set_num_threads(settings.threads)
    entry = entries()[name]
    spatial_dims = dimensions(entry)
    size = settings.size_2d if spatial_dims == 2 else settings.size_3d
    recipe = {"network_def": entry, "in_channels": 1, "out_channels": 3}
    idle_mb = peak_memory_mb()
    network = build(recipe, "network_def").eval()
    image = torch.randn(1, 1, *size)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            network(image)
        milliseconds = [timed(network, image) for _ in range(settings.repeats)]
    return {
        "name": name,
        "spatial_dims": spatial_dims,
        "size": size,
        "threads": settings.threads,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gflops": counter.get_total_flops() / 1e9,
        "milliseconds": statistics.median(milliseconds),
        "peak_memory_mb": peak_memory_mb() - idle_mb,
        "error": None,
    }


def dimensions(entry: dict[str, Any]) -> int:
    """2 or 3; inside `PadToMultiple` for a network that is padded."""
    return int(entry["spatial_dims"] if "spatial_dims" in entry else entry["network"]["spatial_dims"])


def timed(network: torch.nn.Module, image: torch.Tensor) -> float:
    """Milliseconds of one pass."""
    start = time.perf_counter()
    network(image)
    return 1000 * (time.perf_counter() - start)


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as aligned text."""
    lines = [f"{'network':28}{'parameters':>13}{'GFLOPs':>9}{'ms':>9}{'ratio':>7}{'memory MB':>11}"]
    for row in sorted(rows, key=lambda row: (row["spatial_dims"], row["name"])):
        if row["error"]:
            lines.append(f"{row['name']:28} failed: {row['error']}")
            continue
        lines.append(
            f"{row['name']:28}{row['parameters']:>13,}{row['gflops']:9.2f}{row['milliseconds']:9.1f}"
            f"{row['ratio']:7.2f}{row['peak_memory_mb']:>11}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
