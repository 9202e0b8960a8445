"""Load of the machine while a run goes on, under the names that MLflow's own page of system metrics shows."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

import psutil

logger = logging.getLogger(__name__)

SAMPLE_S = 10.0
MEGABYTE = 1e6


class Watch:
    """A thread that calls `tell` with the machine's load every `SAMPLE_S`, until it is stopped.

    It never ends a training: what it cannot measure is left out, and it dies with the process.

    Args:
        tell: takes figures by name.
        name: of the thread.
    """

    def __init__(self, tell: Callable[[Mapping[str, float]], None], *, name: str) -> None:
        self._tell = tell
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"system of {name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=SAMPLE_S)

    def _watch(self) -> None:
        psutil.cpu_percent()  # counts from here
        while not self._ended.wait(SAMPLE_S):
            try:
                self._tell(system_load())
            except Exception as error:  # a thread's error would only be printed
                logger.warning("the system's load is not recorded any more (%s)", type(error).__name__)
                return


def system_load() -> dict[str, float]:
    """Load of CPU, memory and each GPU that torch uses in this process; percent and megabytes.

    The CPU's is the mean since the last call.
    """
    memory = psutil.virtual_memory()
    load = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
        "process_memory_megabytes": psutil.Process(os.getpid()).memory_info().rss / MEGABYTE,
    }
    return {f"system/{name}": round(value, 1) for name, value in (load | _gpu_load()).items()}


def _gpu_load() -> dict[str, float]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():  # asking would claim memory on a GPU that nobody uses
        return {}
    load: dict[str, float] = {}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        load[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / MEGABYTE
        load[f"gpu_{number}_memory_usage_percentage"] = 100 * (total - free) / total
        with suppress(ImportError, RuntimeError):  # NVIDIA's nvidia-ml-py is needed for it
            load[f"gpu_{number}_utilization_percentage"] = float(torch.cuda.utilization(number))
    return load
