"""What the benchmarks count, and what they take for a figure."""

import json
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return import_module(name)


def test_a_kill_that_comes_too_late_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kills = benchmark("kills", monkeypatch)
    late = iter([False, False, True, False, False])  # the first is that of a training never resumed

    class Trainings:
        def __init__(self, folder: Path, *, epochs: int) -> None:
            self.folder = folder

        def finish(self, run: Path | None = None) -> Path:
            return run or self.folder

        def words(self) -> str:
            return "00:00:01 epoch 1 of 2"

        def status(self, run: Path) -> str:
            return "FINISHED"

    def kill(trainings: Trainings, *_: Any, **__: Any) -> tuple[Path, dict[str, Any]]:
        return trainings.folder, {"came_too_late": next(late), "lost_epochs": 0, "unreadable": 0}

    compared = {"status": "FINISHED", "figures_missing": 0, "largest_difference": 0.0, "equal_weights": True}
    for name, stand_in in {"Trainings": Trainings, "kill": kill, "compare": lambda *_: compared}.items():
        monkeypatch.setattr(kills, name, stand_in)
    result = kills.measure(tmp_path, kills=3, kills_per_training=3, epochs=2, seed=0)
    assert [kill["came_too_late"] for kill in result["kills"]] == [False] * 3
    assert result["late_kills"] == 1
    assert len(result["trainings"]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize(("code", "word"), [(-9, "skipped"), (-11, "error")])
def test_a_crash_is_not_called_slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, word: str) -> None:
    architectures = benchmark("architectures", monkeypatch)

    def watched(command: list[str], log: Path, **_: Any) -> tuple[int, int]:
        log.write_text("")
        return code, 10

    monkeypatch.setattr(architectures, "watched", watched)
    settings = Namespace(minutes=1, fewest_steps=50, threads=1, largest_mb=100)
    assert list(architectures.trained("unet_2d", tmp_path, tmp_path, settings, tmp_path)) == [word]


def test_a_data_set_is_of_as_many_cases_as_asked_and_no_figure_is_not_zero(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    partial_labels = benchmark("partial_labels", monkeypatch)
    asked, made = [], []

    def make_phantom(folder: Path, **_: Any) -> None:
        made.append(folder.name)
        (folder / "labelsTs").mkdir(parents=True)
        (folder / "dataset.json").touch()

    def trained(way: Any, dataset: Path, **settings: Any) -> dict[str, Any]:
        description = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
        asked.append((settings["cases"], description["training"][0]["image"]))
        return {"way": way.name, "liver_dice": 0.5, "tumor_dice": None, "seconds": 1.0}

    halves = {"liver": ["a"], "tumor": ["b"]}
    stand_ins = {"make_phantom": make_phantom, "trained": trained, "halved": lambda *_: halves}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(partial_labels, name, stand_in)
    said: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: said.extend(words))
    for cases in ("4", "6", "4"):
        monkeypatch.setattr(sys, "argv", ["", "--folder", str(tmp_path), "--cases", cases, "--seeds", "1"])
        partial_labels.main()
    assert made == ["phantom_4", "phantom_6"]
    assert [(cases, image.split("/")[1]) for cases, image in asked[::4]] == [
        (4, "phantom_4"),
        (6, "phantom_6"),
        (4, "phantom_4"),
    ]
    assert said[-1].split()[-3:] == ["0.500", "-", "1"]
