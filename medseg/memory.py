"""What this process uses; the one module with calls that only some systems have."""

import ctypes
import errno
import os
import sys
from pathlib import Path

import psutil

from medseg.errors import ConfigError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h; blocks below these sizes stay with the process
M_ARENA_MAX = -8  # one heap for all threads: the heaps of further threads hold no large blocks

NO_RESERVING = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}  # of file systems that cannot do it

SCAN_LIMIT = "MEDSEG_MAX_SCAN_MB"  # environment variable
LEAST_SCAN_LIMIT_MB = 256  # a machine that has less left says so by itself


def peak_memory_mb() -> int:
    """Largest resident memory this process has had so far, in MB."""
    if sys.platform == "win32":
        return round(psutil.Process().memory_info().peak_wset / 2**20)
    if sys.platform == "linux" and (own := _peak_of_own_kb()):
        return round(own / 2**10)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS tells bytes, Linux kibibytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def _peak_of_own_kb() -> int:
    """What Linux keeps for this process alone: `getrusage` of a fresh one begins at the peak of its parent."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, UnicodeError, StopIteration):
        return 0


def keep_freed_memory() -> bool:
    """Let the allocator keep large blocks that are freed, for the next of their kind; on Linux, a setting of glibc.

    A network's forward pass takes and frees blocks of tens of MB. By default each comes fresh from the kernel, which
    fills it with zeros page by page: on a virtual machine that takes a third of the pass. Costs some memory that is
    held although nothing is in it. `MEDSEG_MALLOC=0` in the environment leaves the allocator as it is.

    Returns:
        Whether it has been set.
    """
    if not sys.platform.startswith("linux") or os.environ.get("MEDSEG_MALLOC") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has no such setting
        return False
    wanted = ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    return all(mallopt(setting, value) == 1 for setting, value in wanted)


def reserve(file: Path, size: int) -> None:
    """Make a file `size` bytes long, zeros from its end on, with room for all of them where system and disk can.

    A file with holes that is written through a mapping would else end the process (SIGBUS) once the disk is full.

    Raises:
        OSError: ENOSPC, if the disk has no room for it.
    """
    with file.open("rb+") as opened:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(opened.fileno(), 0, size)
            except OSError as error:
                if error.errno not in NO_RESERVING:
                    raise
        opened.truncate(size)


def available_mb() -> int:
    """Memory that this process can still take without swapping, in MB: the system's, or what its container leaves."""
    free = round(psutil.virtual_memory().available / 2**20)
    limits = [left for left in (_left_in_container(folder) for folder in _container_folders()) if left is not None]
    return min([free, *limits])


def scan_limit_mb() -> int:
    """MB that the voxels of one file may take: MEDSEG_MAX_SCAN_MB, else half of what is available (256 at least).

    Raises:
        ConfigError: if MEDSEG_MAX_SCAN_MB is no positive whole number.
    """
    given = os.environ.get(SCAN_LIMIT, "")
    if not given:
        return max(available_mb() // 2, LEAST_SCAN_LIMIT_MB)
    if not given.isdecimal() or int(given) == 0:
        raise ConfigError(f"{SCAN_LIMIT}: {given!r} is no number of MB; set a whole number such as 8000, or unset it")
    return int(given)


def _container_folders() -> tuple[Path, ...]:
    """Where Linux tells this process's memory limits: control groups v2 and v1, from its own group upwards."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeError):
        return ()
    folders: list[Path] = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        own = root / group.lstrip("/")
        folders += [folder for folder in (own, *own.parents) if folder == root or root in folder.parents]
    return tuple(folders)


def _left_in_container(folder: Path) -> int | None:
    """MB that the control group of `folder` may still take; None where it has no limit."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            reclaimable = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        files = reclaimable.get("total_inactive_file", reclaimable.get("inactive_file", "0"))  # v1 | v2
        return round((left + int(files)) / 2**20)
    return None
