import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from medseg.errors import ConfigError, DataError
from workflows.checkpoints import Checkpoints, newest_checkpoint, read_checkpoint, write_checkpoint

ROOT = Path(__file__).parents[2]


def state(epoch: int) -> dict:
    return {"epoch": epoch, "best": float("-inf"), "network": {"weight": torch.full((50, 40), float(epoch))}}


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the checkpoints of epochs 1 to 3, of which the newest two are kept."""
    for epoch in (1, 2, 3):
        write_checkpoint(state(epoch), tmp_path / "a-run")
    return tmp_path / "a-run"


def flip_a_bit_of_the_weights(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((3,), 3.0).numpy().tobytes()) + 400] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_the_newest_two_are_kept_and_hold_what_was_written(run):
    assert names(run) == ["epoch_000002.pt", "epoch_000003.pt"]
    newest = newest_checkpoint(run)
    assert (newest["epoch"], newest["best"]) == (3, float("-inf"))
    assert torch.equal(newest["network"]["weight"], state(3)["network"]["weight"])


@pytest.mark.parametrize("spoil", [flip_a_bit_of_the_weights, cut_off, empty])
def test_a_broken_newest_one_is_said_and_the_one_before_used(run, spoil, caplog):
    spoil(run / "checkpoints" / "epoch_000003.pt")
    caplog.set_level("INFO")
    assert newest_checkpoint(run)["epoch"] == 2
    refusal, chosen = caplog.messages
    assert refusal.startswith("checkpoint epoch_000003.pt: is not whole (")
    assert refusal.endswith("; trying the one before")
    assert chosen == "resuming run a-run from checkpoint epoch_000002.pt"


def test_a_run_with_nothing_but_broken_ones_is_an_error(run):
    cut_off(run / "checkpoints" / "epoch_000002.pt")
    empty(run / "checkpoints" / "epoch_000003.pt")
    with pytest.raises(DataError, match=r"none of its checkpoints can be read \(epoch_000003.pt, epoch_000002.pt\)"):
        newest_checkpoint(run)


def test_a_run_without_any_is_an_error(tmp_path):
    with pytest.raises(DataError, match="has no checkpoint, it ended before its first epoch; start a new training"):
        newest_checkpoint(tmp_path)


def test_code_in_a_checkpoint_is_not_run(run):
    torch.save({"epoch": 3, "network": SimpleNamespace()}, run / "checkpoints" / "epoch_000003.pt")
    assert newest_checkpoint(run)["epoch"] == 2


def full_at_the_end(monkeypatch):
    def fsync(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


def full_while_writing(monkeypatch):
    def write_half(path, content):
        with path.open("wb") as file:
            file.write(bytes(content)[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)


@pytest.mark.parametrize("fill", [full_at_the_end, full_while_writing])
def test_a_full_disk_leaves_the_earlier_ones(run, monkeypatch, fill):
    with monkeypatch.context() as patch:
        fill(patch)
        with pytest.raises(
            DataError, match=r"checkpoint epoch_000004.pt of run a-run: cannot be written \(No space left on device\)"
        ):
            write_checkpoint(state(4), run)
    assert names(run) == ["epoch_000002.pt", "epoch_000003.pt"]
    assert newest_checkpoint(run)["epoch"] == 3


def test_what_reads_back_otherwise_than_written_is_no_checkpoint(run, monkeypatch):
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: write(path, bytes(content)[:-1000]))
    with pytest.raises(DataError, match="is not whole"):
        write_checkpoint(state(4), run)
    assert names(run) == ["epoch_000002.pt", "epoch_000003.pt"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are Unix's")
def test_a_disk_that_takes_no_more_leaves_the_earlier_ones(run):
    """The system itself refuses to write on, here after 100 kB."""
    program = (
        "import resource, sys, torch; from pathlib import Path; from workflows.checkpoints import write_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "write_checkpoint({'epoch': 4, 'network': torch.zeros(100_000)}, Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(run)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        "DataError: checkpoint epoch_000004.pt of run a-run: cannot be written (File too large)"
        in done.stderr.splitlines()[-1]
    )
    assert names(run) == ["epoch_000002.pt", "epoch_000003.pt"]
    assert newest_checkpoint(run)["epoch"] == 3


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_whole_ones(tmp_path):
    program = (
        "import sys, torch; from pathlib import Path; from workflows.checkpoints import write_checkpoint\n"
        "for epoch in range(int(sys.argv[2]), 10_000):\n"
        "    write_checkpoint({'epoch': epoch, 'network': torch.full((2_000_000,), epoch)}, Path(sys.argv[1]))"
    )
    epoch, half_written = 0, 0
    for kill in range(5):
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(epoch)], cwd=ROOT)
        while not (tmp_path / "checkpoints" / f"epoch_{epoch + 2:06d}.pt").exists():
            time.sleep(0.01)
        time.sleep(0.01 * kill)
        process.kill()
        process.wait()
        whole = [name for name in names(tmp_path) if name.startswith("epoch_")]
        half_written += len(names(tmp_path)) - len(whole)
        assert len(whole) >= 2
        for name in whole:
            content = read_checkpoint(tmp_path / "checkpoints" / name)
            assert bool((content["network"] == content["epoch"]).all())
        epoch = newest_checkpoint(tmp_path)["epoch"]
    assert half_written  # else no kill has struck a write
    write_checkpoint({"epoch": 20_000}, tmp_path)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


class Training:
    """A linear model that learns noise, with momentum and a schedule, in ignite's engine."""

    def __init__(self, run: Path, *, checkpoint: dict | None = None, interval: int = 1, epochs: int = 6) -> None:
        torch.manual_seed(0)
        self.epochs = epochs
        self.network = nn.Linear(4, 1)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, epochs)
        parts = {"network": self.network, "optimizer": self.optimizer, "scheduler": self.scheduler}
        experiment = SimpleNamespace(
            folder=run, run=SimpleNamespace(run_id="the-run"), take_checkpoint=lambda: checkpoint
        )
        self.engine = Engine(self._step)
        self.engine.state.device = torch.device("cpu")
        self.seen: list[tuple[int, int]] = []
        Checkpoints(experiment, parts, seed=7, interval=interval).attach(self.engine)

    def _step(self, engine: Engine, batch: torch.Tensor) -> None:
        self.seen.append((engine.state.epoch, engine.state.iteration))
        torch.manual_seed(engine.state.iteration)
        self.optimizer.zero_grad()
        self.network(torch.randn(8, 4)).square().mean().backward()
        self.optimizer.step()
        if engine.state.iteration % 3 == 0:
            self.scheduler.step()

    def go(self, *, epochs: int | None = None) -> None:
        self.engine.run(torch.zeros(3, 1), max_epochs=epochs or self.epochs)

    @property
    def weight(self) -> torch.Tensor:
        return self.network.weight.detach()


def test_a_resumed_training_ends_as_one_left_alone(tmp_path):
    whole, first = Training(tmp_path / "whole"), Training(tmp_path / "cut")
    whole.go()
    first.go(epochs=3)
    second = Training(tmp_path / "cut", checkpoint=newest_checkpoint(tmp_path / "cut"))
    second.go()
    assert not torch.equal(first.weight, whole.weight)
    assert torch.equal(second.weight, whole.weight)
    assert first.seen + second.seen == whole.seen
    assert second.scheduler.state_dict() == whole.scheduler.state_dict()


def test_a_checkpoint_knows_run_seed_and_device(tmp_path):
    Training(tmp_path).go(epochs=2)
    newest = newest_checkpoint(tmp_path)
    assert {key: newest[key] for key in ("epoch", "iteration", "seed", "run_id", "device")} == {
        "epoch": 2,
        "iteration": 6,
        "seed": 7,
        "run_id": "the-run",
        "device": "cpu",
    }


def test_a_training_that_was_at_its_end_does_not_start_anew(tmp_path):
    whole = Training(tmp_path)
    whole.go()
    again = Training(tmp_path, checkpoint=newest_checkpoint(tmp_path))
    again.go()
    assert again.seen == []
    assert torch.equal(again.weight, whole.weight)


def test_there_is_one_before_the_first_epoch(tmp_path):
    training = Training(tmp_path)
    training.engine._process_function = lambda engine, batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        training.go()
    assert names(tmp_path) == ["epoch_000000.pt"]


def test_a_longer_interval_writes_fewer_and_the_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("workflows.checkpoints.write_checkpoint", lambda state, run: written.append(state["epoch"]))
    Training(tmp_path, interval=4).go()
    assert written == [0, 4, 6]


def test_another_device_is_said(tmp_path, caplog):
    Training(tmp_path).go(epochs=2)
    Training(tmp_path, checkpoint=newest_checkpoint(tmp_path) | {"device": "cuda:0"}).go()
    assert "the device was cuda:0 and is now cpu: the weights will differ in the last digits" in caplog.messages


def test_a_checkpoint_without_a_part_is_refused(tmp_path):
    Training(tmp_path).go(epochs=2)
    checkpoint = newest_checkpoint(tmp_path)
    del checkpoint["scheduler"]
    with pytest.raises(DataError, match="the checkpoint lacks scheduler; resume it with the medseg that wrote it"):
        Training(tmp_path, checkpoint=checkpoint).go()


def test_an_interval_below_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="checkpoint_interval: is 0; give a number of epochs, at least 1"):
        Training(tmp_path, interval=0)
