"""What a run ran on: versions, device, git commit; no user, no host name, no git remote."""

import importlib.metadata
import platform
import subprocess

PACKAGES = ("medseg", "monai", "torch", "numpy", "scipy", "nibabel", "SimpleITK", "pytorch-ignite", "mlflow")


def versions() -> dict[str, str]:
    """Version of Python and of each package that shapes the result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """Name of the GPU torch would use, else "cpu"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def git_tags() -> dict[str, str]:
    """Commit of the checkout the run was started in, and whether it had changes; nothing outside a checkout."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    if commit is None:
        return {}
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(changes)).lower()}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
