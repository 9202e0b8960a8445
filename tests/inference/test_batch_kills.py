"""Three of the kills of `benchmarks/batch_kills.py`, for every change."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_runs_leave_whole_masks_and_are_completed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from batch_kills import measure

    result = measure(tmp_path, kills=3, kills_per_run=3, cases=6, seed=1)
    assert len(result["kills"]) == 3
    assert result["passed"], result
