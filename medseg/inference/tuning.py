"""How a network is run on the machine at hand: windows a batch, memory layout, where to blend. Never its precision."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.channels_last import LAYOUTS, to_channels_last

Layout = Literal["contiguous", "channels_last"]

ROUNDS = 2  # of timing both layouts, after one that warms up
ENOUGH = 1.3  # times as fast as the other: one round is enough
SMALLEST_TRIAL = 32  # voxels along an axis: below, half a window says little about a whole one
CLEARLY = 0.95  # of the time: less than that must be gained, or the choice would follow the noise
SMALL_WINDOW = 2**16  # voxels: on a CPU, larger ones gain nothing from batches
LARGEST_BATCH = 16
BLENDING_SHARE = 0.5  # of a GPU's memory; the rest is for the network


@dataclass(frozen=True)
class Tuning:
    """Choices about speed and memory. None of them is part of a result's settings.

    Attributes:
        batch_size: windows a forward pass; None lets a short probe choose.
        layout: of the network and its windows; "auto" times both before the first windows.
        compile: run the network through `torch.compile`, which takes up to a minute at the first window.
        blend_on: where windows are blended; "auto" blends on the network's device while its memory allows.
        gpu_memory_gb: what this process may take of a GPU; None for all that is free.
    """

    batch_size: int | None = None
    layout: Literal["auto"] | Layout = "auto"
    compile: bool = False
    blend_on: Literal["auto", "device", "cpu"] = "auto"
    gpu_memory_gb: float | None = None


class Runner:
    """A network that sees its windows in the memory layout that is fastest on this machine.

    The layouts are timed before the first windows: on a CPU on their middle, half as long along each axis, which costs
    less than one window and takes an eighth of its memory. Layouts differ by no more than the order of float32 sums
    does.

    Args:
        network: windows `(N, C, *spatial)` -> logits.
        layout: "auto", or the one to take.
        compile: through `torch.compile`; the layout is then contiguous unless one is named.
    """

    def __init__(self, network: nn.Module, *, layout: Literal["auto"] | Layout = "auto", compile: bool = False) -> None:
        self.network = network
        self.call: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False) if compile else network
        self.layout: Layout | None = None if layout == "auto" else layout
        if compile and self.layout is None:
            self.layout = "contiguous"
        self._current: Layout = "contiguous"
        self._choosing = threading.Lock()  # windows of several cases may arrive at once

    def __call__(self, windows: Tensor) -> Tensor:
        """Windows `(N, C, *spatial)` -> the network's logits."""
        return self._run(windows, self.settled(windows))

    def settled(self, windows: Tensor) -> Layout:
        """The layout that windows like these are run in; timed, if it has not been before."""
        with self._choosing:
            if self.layout is None:
                self.layout = self._fastest(windows)
            self._lay(self.layout, windows.ndim)
            return self.layout

    def _fastest(self, windows: Tensor) -> Layout:
        if windows.ndim not in LAYOUTS:
            return "contiguous"
        trial = windows if windows.device.type == "cuda" else middle(windows)
        try:
            self._run(trial, "contiguous")
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:  # a network of one size, or of multiples of one, says so by what error it likes
            if trial is windows:
                raise
            trial = windows
            self._run(trial, "contiguous")
        try:
            self._run(trial, "channels_last")
            plain, last = self._seconds(trial, "contiguous"), self._seconds(trial, "channels_last")
            if max(plain, last) < ENOUGH * min(plain, last):
                for _ in range(ROUNDS - 1):
                    plain = min(plain, self._seconds(trial, "contiguous"))
                    last = min(last, self._seconds(trial, "channels_last"))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return "contiguous"  # a network that cannot be run in the other layout, such as one with `view`
        return "channels_last" if last < CLEARLY * plain else "contiguous"

    def _seconds(self, windows: Tensor, layout: Layout) -> float:
        started = _now(windows.device)
        self._run(windows, layout)
        return _now(windows.device) - started

    def _run(self, windows: Tensor, layout: Layout) -> Tensor:
        if windows.ndim not in LAYOUTS:
            return self.call(windows)
        self._lay(layout, windows.ndim)
        return self.call(to_channels_last(windows) if layout == "channels_last" else windows.contiguous())

    def _lay(self, layout: Layout, dimensions: int) -> None:
        """Lay the network's weights as its windows will be."""
        if layout != self._current and dimensions in LAYOUTS:
            wanted = LAYOUTS[dimensions] if layout == "channels_last" else torch.contiguous_format
            self.network.to(memory_format=wanted)  # type: ignore[call-overload]
            self._current = layout


def middle(windows: Tensor) -> Tensor:
    """The middle of windows `(N, C, *spatial)`, half as long along the axes that are long enough."""
    for axis in range(2, windows.ndim):
        size = windows.shape[axis]
        if size >= 2 * SMALLEST_TRIAL:
            windows = windows.narrow(axis, size // 4, size // 2)
    return windows


def probed_batch_size(forward: Callable[[Tensor], object], window: Tensor, *, start: int = 1) -> int:
    """Windows a forward pass at which a window takes least time.

    On a GPU, where windows are too small to fill it, larger batches are tried until one gains less than a twentieth or
    does not fit; on a CPU only for small windows.

    Args:
        forward: windows `(N, C, *spatial)` -> anything.
        window: one, `(1, C, *spatial)`, on the network's device.
        start: the smallest batch to consider.
    """
    if window.device.type == "cpu" and most_windows(window[0, 0].numel(), start=start) == start:
        return start
    best, seconds = start, _seconds_a_window(forward, window, start)
    for batch in (2**power for power in range(1, LARGEST_BATCH.bit_length())):
        if batch <= start:
            continue
        try:
            found = _seconds_a_window(forward, window, batch)
        except (torch.OutOfMemoryError, MemoryError):
            release(window.device)
            break
        if found > CLEARLY * seconds:
            break
        best, seconds = batch, found
    return best


def most_windows(voxels: int, *, start: int = 1) -> int:
    """Windows of so many voxels a forward pass that `probed_batch_size` takes at most on a CPU."""
    return start if voxels > SMALL_WINDOW else max(start, LARGEST_BATCH)


def _seconds_a_window(forward: Callable[[Tensor], object], window: Tensor, batch: int) -> float:
    windows = window.expand(batch, *window.shape[1:]).clone()
    forward(windows)  # the first call of a size makes its plans
    started = _now(window.device)
    forward(windows)
    return (_now(window.device) - started) / batch


def slab_mb(shape: Sequence[int], patch_size: Sequence[int], channels: int, axis: int) -> float:
    """Memory of the sums of a sliding window over an image of `shape` along `axis`, in MB."""
    voxels = 1
    for own, (size, patch) in enumerate(zip(shape, patch_size, strict=True)):
        voxels *= patch if own == axis else max(size, patch)
    return 4 * (channels + 1) * voxels / 2**20  # and one for the weights


def blend_device(tuning: Tuning, device: str, needed_mb: float) -> str:
    """Where to blend windows: on the network's device, or on the CPU where the sums would crowd the network out.

    Args:
        tuning: what has been chosen.
        device: the network's.
        needed_mb: for the sums, as of `slab_mb`.
    """
    if tuning.blend_on == "cpu" or not device.startswith("cuda"):
        return "cpu" if tuning.blend_on == "cpu" else device
    if tuning.blend_on == "device":
        return device
    return device if needed_mb < BLENDING_SHARE * _gpu_mb(tuning, device) else "cpu"


def _gpu_mb(tuning: Tuning, device: str) -> float:
    if tuning.gpu_memory_gb is not None:
        return tuning.gpu_memory_gb * 1e9 / 2**20
    return torch.cuda.mem_get_info(device)[0] / 2**20


def limit_gpu_memory(gigabytes: float, device: str) -> None:
    """Let this process take no more than `gigabytes` (10^9 bytes) of a GPU; more raises `torch.OutOfMemoryError`.

    Raises:
        ConfigError: if that is no amount, or more than the GPU has.
    """
    whole = torch.cuda.get_device_properties(device).total_memory / 1e9
    if not 0 < gigabytes <= whole:
        raise ConfigError(f"--gpu-memory: is {gigabytes:g}; give GB above 0 and up to the {whole:.0f} of {device}")
    index = torch.device(device).index  # torch takes no "cuda" without a number here
    torch.cuda.set_per_process_memory_fraction(
        gigabytes / whole, torch.cuda.current_device() if index is None else index
    )


def release(device: torch.device | str) -> None:
    """Give back what torch keeps of a GPU's memory without using it."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
