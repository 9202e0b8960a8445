"""What this machine offers to medseg, and what is missing."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import psutil
import torch

from medseg import __version__
from medseg.inference.device import choose_device
from medseg.notices import NOT_A_DEVICE

__all__ = ["choose_device", "driver_gpus", "gpu_finding", "report"]

TRAIN = ("monai", "pytorch-ignite", "mlflow")


def report() -> list[tuple[str, str]]:
    """Findings as (what, finding), in the order to read them; nothing leaves the machine."""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    return [
        ("medseg", f"{__version__}, {NOT_A_DEVICE}"),
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("Python", platform.python_version()),
        ("CPU", f"{cores} cores, torch uses {torch.get_num_threads()} threads"),
        ("memory", f"{_gb(memory.total)}, {_gb(memory.available)} free"),
        ("disk", f"{_gb(disk.free)} free in this folder"),
        ("torch", f"{torch.__version__}, {_torch_build()}"),
        ("GPU", gpu_finding()),
        ("training", _training()),
    ]


def gpu_finding() -> str:
    """Which GPU torch uses; if the driver sees one that torch cannot use, why and what to do."""
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        return ", ".join(f"{gpu.name} ({_gb(gpu.total_memory)})" for gpu in found)
    seen = driver_gpus()
    if not seen:
        return "none; medseg runs on the CPU"
    if torch.version.cuda is None:
        return (
            f"{seen} is there, but torch cannot use it: this is torch's CPU build. "
            "Install its CUDA build, see https://pytorch.org/get-started/locally"
        )
    return (
        f"{seen} is there, but torch cannot use it: its CUDA {torch.version.cuda} needs a newer driver, "
        "or CUDA_VISIBLE_DEVICES hides the GPU. Update the driver, or install an older torch"
    )


def driver_gpus() -> str:
    """GPUs and driver as `nvidia-smi` names them; empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    gpus = [" with driver ".join(line.split(", ")) for line in done.stdout.splitlines() if line.strip()]
    return "; ".join(gpus) if done.returncode == 0 else ""


def _torch_build() -> str:
    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    return f"built for ROCm {torch.version.hip}" if torch.version.hip else "built for the CPU"


def _training() -> str:
    versions = {name: _version(name) for name in TRAIN}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        return f"not possible, {', '.join(missing)} missing: pip install 'medseg[train]'"
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gb(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
