"""Trainings as processes of their own, a number of them at a time."""

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO

import torch

from workflows.fold_runs import LAUNCHER

LOOK_S = 0.1
CLOSING_S = 120.0  # a process that was asked to end closes its run within this time


def run_folds(commands: Mapping[int, Sequence[str]], *, jobs: int, gpus: Sequence[str] = ()) -> dict[int, str | None]:
    """Run the training of each fold to its end, whatever becomes of the others.

    Their output comes out here, line by line, with the fold before each.

    Args:
        commands: arguments to `python`, by fold.
        jobs: how many run at a time; they share the processor's threads.
        gpus: what they share too, where there are several.

    Returns:
        The reason why a fold failed, in one line, or None; by fold.
    """
    waiting, running, ended = list(commands), dict[int, _Training](), dict[int, str | None]()
    slots = set(range(jobs))
    try:
        while waiting or running:
            while waiting and slots:
                fold, slot = waiting.pop(0), min(slots)
                slots.remove(slot)
                own = share(slot, jobs=jobs, threads=torch.get_num_threads(), gpus=gpus)
                running[fold] = _Training(fold, slot, commands[fold], own)
            for fold, training in list(running.items()):
                if training.process.poll() is not None:
                    ended[fold] = training.reason()
                    slots.add(running.pop(fold).slot)
            time.sleep(LOOK_S)
    except BaseException:
        _end(list(running.values()))
        raise
    return ended


def share(slot: int, *, jobs: int, threads: int, gpus: Sequence[str]) -> dict[str, str]:
    """Environment of one of `jobs` processes: its share of the processor's threads, and one of several GPUs.

    >>> share(3, jobs=4, threads=16, gpus=["0", "1"])
    {'OMP_NUM_THREADS': '4', 'CUDA_VISIBLE_DEVICES': '1'}
    """
    if jobs == 1:
        return {}
    environment = {"OMP_NUM_THREADS": str(max(1, threads // jobs))}
    return environment | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else {})


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


class _Training:
    """One process, its output passed on by a thread."""

    def __init__(self, fold: int, slot: int, arguments: Sequence[str], own: Mapping[str, str]) -> None:
        self.fold, self.slot = fold, slot
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env={"MEDSEG_ONE_LINE": "1", **os.environ, **own, LAUNCHER: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._last: deque[str] = deque(maxlen=1)
        self._passing = threading.Thread(target=self._pass_on, args=(self.process.stdout,), daemon=True)
        self._passing.start()

    def reason(self) -> str | None:
        """Why it failed, in one line; None if it did not. Waits for its output."""
        self._passing.join(timeout=CLOSING_S)
        if not self.process.returncode:
            return None
        return self._last[0] if self._last else f"exit code {self.process.returncode}"

    def _pass_on(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                if line.strip():
                    self._last.append(line.strip())
                sys.stdout.write(f"fold {self.fold}: {line.rstrip()}\n")
                sys.stdout.flush()


def _end(trainings: Sequence[_Training]) -> None:
    """Ask processes to end, and wait until they have closed their runs."""
    for training in trainings:
        training.process.terminate()
    until = time.monotonic() + CLOSING_S
    for training in trainings:
        try:
            training.process.wait(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            training.process.kill()
            training.process.wait()
