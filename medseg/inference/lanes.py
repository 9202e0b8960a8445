"""How many cases' networks run side by side: on a CPU two with half of the threads each do more than one with all."""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from medseg.inference.predictor import Predictor
from medseg.inference.sliding_window import SlidingWindow
from medseg.inference.tuning import most_windows

SPARE = 1.6  # what a forward pass takes, over the tensors that live at a time: kernels' working memory, holes between
MEMORY_SHARE = 0.5  # of what the cases may take, for all forward passes together


def lanes(predictor: object, *, channels: int, most: int, budget_mb: float) -> tuple[int, float]:
    """Cases in the network at a time, and the memory of their forward passes in MB.

    Threads of one forward pass wait for each other after every layer, and stand idle where a case has work for one
    alone. Two passes with half of the threads each have less of both. With an odd number of threads one would be left
    over, of three a third of the machine: there is one lane.

    Args:
        predictor: a `Predictor` of a sliding window on a CPU; for any other there is one lane.
        channels: of a case.
        most: lanes asked for, such as 1 where memory has not sufficed before.
        budget_mb: memory for the network and the cases. Where two passes would take more than half of it, or where
            their need is not known, there is one lane.
    """
    if not isinstance(predictor, Predictor) or not predictor.device.startswith("cpu") or predictor.tuning.compile:
        return 1, 0.0
    window = predictor.inferer
    if not isinstance(window, SlidingWindow) or most < 2 or torch.get_num_threads() % most:
        return 1, 0.0
    batch = predictor.tuning.batch_size or most_windows(prod(window.patch_size), start=window.batch_size)
    forward = partial(window.window_logits, network=predictor.network)
    needed = forward_mb(forward, (batch, channels, *window.patch_size))
    if needed is None or most * SPARE * needed > MEMORY_SHARE * budget_mb:
        return 1, 0.0
    return most, most * SPARE * needed


def forward_mb(forward: Callable[[Tensor], object], shape: tuple[int, ...]) -> float | None:
    """Largest memory of the tensors that live at a time in a forward pass, mirrored windows and folds included.

    It is told by a window of half the size along each axis, where the network takes such a one.

    Args:
        forward: windows -> anything, on the CPU.
        shape: `(N, C, *spatial)` of its windows, float32.

    Returns:
        MB; None for a network that cannot be run on zeros.
    """
    half = (*shape[:2], *(max(size // 2, 1) for size in shape[2:]))
    for trial in (half, shape):
        try:
            with torch.inference_mode(), _Living() as living:
                forward(torch.zeros(trial))
        except Exception:  # of one size, or of multiples of one: such a network says so by what error it likes
            continue
        return living.peak * prod(shape) / prod(trial) / 2**20
    return None


class _Living(TorchFunctionMode):
    """Follows the bytes of what torch's functions answer, as long as anything refers to it; of this thread alone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._references: Counter[int] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`; called by torch."""
        answer = func(*args, **(kwargs or {}))
        for tensor in answer if isinstance(answer, list | tuple) else [answer]:
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        return answer

    def _follow(self, tensor: Tensor) -> None:
        place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if self._references[place] == 0:
            self.now += size
            self.peak = max(self.peak, self.now)
        self._references[place] += 1
        weakref.finalize(tensor, self._end, place, size)

    def _end(self, place: int, size: int) -> None:
        self._references[place] -= 1
        if self._references[place] == 0:
            self.now -= size
