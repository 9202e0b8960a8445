"""What the subjects of `benchmarks/predict.py` share: their job, and stages timed inside the process."""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Stages:
    """Wall and CPU seconds of named stages; a name used again adds to it."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done within."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, name: str, wall_s: float, cpu_s: float) -> None:
        """Count seconds to a stage."""
        stage = self.seconds.setdefault(name, {"wall_s": 0.0, "cpu_s": 0.0})
        stage["wall_s"] += wall_s
        stage["cpu_s"] += cpu_s

    def watch(self, network: Any, name: str = "of which network") -> None:
        """Count every forward pass of a torch module, and how many windows they saw."""
        started: list[tuple[float, float]] = []

        def begin(module: Any, inputs: Any) -> None:
            started.append((time.perf_counter(), time.process_time()))

        def end(module: Any, inputs: Any, output: Any) -> None:
            wall, cpu = started.pop()
            self.add(name, time.perf_counter() - wall, time.process_time() - cpu)
            self.seconds[name]["windows"] = self.seconds[name].get("windows", 0) + len(inputs[0])

        network.register_forward_pre_hook(begin)
        network.register_forward_hook(end)


def parsed() -> tuple[dict[str, Any], Path, str]:
    """The job, the folder for mask and `stages.json`, and the precision."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    settings = parser.parse_args()
    return json.loads(settings.job.read_text(encoding="utf-8")), settings.out, settings.precision


def write(cases: list[Stages], out: Path) -> None:
    """Hand the stages of each case to the parent."""
    content = [stages.seconds for stages in cases]
    (out / "stages.json").write_text(json.dumps(content), encoding="utf-8")


def threads() -> int:
    """Of every subject alike."""
    return int(os.environ["OMP_NUM_THREADS"])
