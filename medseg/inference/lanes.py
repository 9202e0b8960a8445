"""How many cases' networks run side by side: on a CPU two with half of the threads each do more than one with all."""

import weakref
from collections import Counter
from math import prod

import torch
from torch import Tensor, nn

from medseg.inference.predictor import Predictor
from medseg.inference.sliding_window import SlidingWindow

SPARE = 2.5  # what a forward pass takes, over what its modules' answers do: joins, weights laid anew, working memory
MEMORY_SHARE = 0.5  # of what the cases may take, for all forward passes together


def lanes(predictor: object, *, channels: int, most: int, budget_mb: float) -> tuple[int, float]:
    """Cases in the network at a time, and the memory of their forward passes in MB.

    Threads of one forward pass wait for each other after every layer, and stand idle where a case has work for one
    alone. Two passes with half of the threads each have less of both.

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
    if not isinstance(window, SlidingWindow) or not 2 <= most <= torch.get_num_threads():
        return 1, 0.0
    needed = forward_mb(predictor.network, (window.batch_size, channels, *window.patch_size))
    if needed is None or most * SPARE * needed > MEMORY_SHARE * budget_mb:
        return 1, 0.0
    return most, most * SPARE * needed


def forward_mb(network: nn.Module, shape: tuple[int, ...]) -> float | None:
    """Largest memory of the answers of a network's modules in a forward pass.

    It is told by a window of half the size along each axis, where the network takes such a one.

    Args:
        network: in evaluation mode, on the CPU.
        shape: `(N, C, *spatial)` of its windows, float32.

    Returns:
        MB; None for a network that cannot be run on zeros.
    """
    half = (*shape[:2], *(max(size // 2, 1) for size in shape[2:]))
    for trial in (half, shape):
        living = _Living()
        hooks = [module.register_forward_hook(living) for module in network.modules()]
        try:
            with torch.inference_mode():
                network(torch.zeros(trial))
            return living.peak * prod(shape) / prod(trial) / 2**20
        except Exception:  # of one size, or of multiples of one: such a network says so by what error it likes
            continue
        finally:
            for hook in hooks:
                hook.remove()
    return None


class _Living:
    """Follows the bytes of what modules answer, as long as anything refers to it."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._references: Counter[int] = Counter()

    def __call__(self, _module: nn.Module, _inputs: object, answer: object) -> None:
        """To be called after each module's forward pass."""
        if not isinstance(answer, Tensor):
            return
        place, size = answer.untyped_storage().data_ptr(), answer.untyped_storage().nbytes()
        if self._references[place] == 0:
            self.now += size
            self.peak = max(self.peak, self.now)
        self._references[place] += 1
        weakref.finalize(answer, self._end, place, size)

    def _end(self, place: int, size: int) -> None:
        self._references[place] -= 1
        if self._references[place] == 0:
            self.now -= size
