"""What the speed benchmarks share: time and peak memory of a call, medians over rounds, a table. Standard library only.

Each way is measured in its own process, so that its peak is its own; rounds are interleaved, so that what else the
machine does falls on all ways alike. CPU seconds beside wall seconds tell how much it did.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def measured(work: Callable[[], Any]) -> tuple[Any, Figures]:
    """What `work` answers, and its wall and CPU seconds and the memory it took at most above what was there, in MB."""
    before = _status_mb("VmRSS")
    _forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    answer = work()
    figures = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return answer, figures | {"peak_mb": _status_mb("VmHWM") - before}


def apart(python: str, script: Path, *arguments: object) -> Figures:
    """The JSON that a script prints last, run in its own process."""
    command = [python, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def medians(rounds: Sequence[Figures]) -> Figures:
    """Median of each number over rounds; other values are the first round's."""
    return {
        key: statistics.median(each[key] for each in rounds) if isinstance(value, int | float) else value
        for key, value in rounds[0].items()
    }


def markdown(rows: Sequence[Figures]) -> str:
    """Rows as a Markdown table; numbers to three digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = [[_shown(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *shown))


def finish(rows: Sequence[Figures], note: str, file: Path | None) -> None:
    """Print the table, and write it with the figures if a file is named."""
    about = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    print(f"{markdown(rows)}\n\n{note}")
    if file:
        file.write_text(json.dumps({"rows": list(rows), "note": note, **about}, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(f"{markdown(rows)}\n\n{note}\n", encoding="utf-8")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _status_mb(field: str) -> float:
    """Resident memory now (VmRSS), or at most (VmHWM), in MB; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), 0.0)


def _forget_peak() -> None:
    if sys.platform.startswith("linux"):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
