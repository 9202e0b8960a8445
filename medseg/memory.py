"""What this process uses; the one module with calls that only some systems have."""

import sys

import psutil


def peak_memory_mb() -> int:
    """Largest resident memory this process has had so far, in MB."""
    if sys.platform == "win32":
        return round(psutil.Process().memory_info().peak_wset / 2**20)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS tells bytes, Linux kibibytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)
