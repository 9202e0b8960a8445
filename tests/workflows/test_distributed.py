"""Two processes over gloo, as `torchrun` starts them."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from torch import multiprocessing

from medseg.errors import ConfigError
from medseg.losses import DiceCrossEntropy, RegionDiceBinaryCrossEntropy
from medseg.networks.blocks import BatchNorm
from workflows import distributed
from workflows.averaging import UpdateAverages, WeightAverages
from workflows.checkpoints import newest_checkpoint
from workflows.randomness import EpochSampler

CHECKOUT = Path(__file__).parents[2]
SIZES = [(2, 5), (3, 7), (4, 8), (1, 2)]
TIME_LIMIT_S = 600
# on images rounded to float16 some gradients are sums of rounding alone, of which Adam takes the sign: weights then
# differ by up to 5e-5 after six updates
EXACT = {"precision": "float32", "image_precision": "float32"}
FAILING = """
import os

from ignite.engine import Events

from medseg.errors import DataError
from workflows import distributed


class Fails:
    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_STARTED(once=4), self.fail)

    def fail(self, engine):
        if os.environ.get("FAILING_RANK") == str(distributed.rank()):
            raise DataError("case 'a': its file is gone")
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def of_two(monkeypatch: pytest.MonkeyPatch, number: int, count: int = 2) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: number)
    monkeypatch.setattr(distributed, "processes", lambda: count)


@pytest.mark.parametrize(("batch_size", "size"), [(2, 4), (2, 5), (4, 8), (4, 11), (6, 7), (2, 1)])
def test_the_processes_share_every_batch(monkeypatch: pytest.MonkeyPatch, batch_size: int, size: int) -> None:
    whole = list(EpochSampler(range(size), seed=3, batch_size=batch_size))
    shares = []
    for number in range(2):
        of_two(monkeypatch, number)
        sampler = EpochSampler(range(size), seed=3, batch_size=batch_size)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler) == -(-size // 2)
    own = batch_size // 2
    for start in range(0, size, batch_size):
        ours = [pair for share in shares for pair in share[start // 2 : start // 2 + own]]
        expected = whole[start : start + batch_size]
        assert ours == expected + whole[: len(expected) % 2]  # where a sample is left over, the first comes twice


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    of_two(monkeypatch, 0)
    assert distributed.own_batch(6) == 3
    with pytest.raises(ConfigError, match="batch_size: is 3, which 2 processes cannot share; make it a multiple"):
        distributed.own_batch(3)


def test_each_process_judges_its_share_and_none_is_without(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for number in range(2):
        of_two(monkeypatch, number)
        shares.append((distributed.share([1, 2, 3]), distributed.share([1])))
    assert shares == [([1, 3], [1]), ([2], [1])]


def test_without_torchrun_the_overlay_says_how_to_start(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    distributed.start()
    assert "one process only; for several start with: torchrun --nproc_per_node=GPUS -m monai.bundle" in caplog.text
    assert distributed.processes() == 1


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="torchrun: 4 processes for 2 GPUs; set --nproc_per_node=2"):
        distributed.start()


def test_one_process_needs_none_of_it() -> None:
    assert (distributed.rank(), distributed.processes(), distributed.is_first()) == (0, 1, True)
    network = torch.nn.Linear(1, 1)
    assert distributed.parallel(network) is network
    assert distributed.mean({"a": 2.0}) == {"a": 2.0}
    assert distributed.from_first(3) == 3


LOSSES = [
    DiceCrossEntropy(class_weights=[1, 2, 3], batch_dice=True, ignore_label=9, merged={8: [0, 1]}),
    DiceCrossEntropy(ignore_label=9, merged={8: [0, 1]}),
    RegionDiceBinaryCrossEntropy({"a": [1, 2], "b": [2]}, batch_dice=True, ignore_label=9),
]


def logits_and_labels(loss: Any) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    channels = 2 if isinstance(loss, RegionDiceBinaryCrossEntropy) else 3
    label = torch.randint(0, 3, (4, 1, 7, 5), generator=generator)
    label[:1, :, :3] = 9
    if channels == 3:
        label[3, :, 4:] = 8
    return torch.randn(4, channels, 7, 5, generator=generator), label


def loss_of_half(number: int, port: int, folder: str) -> None:
    """In a process of its own: loss and gradients of its half of the batch."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(number), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    found = []
    for loss in LOSSES:
        logits, label = logits_and_labels(loss)
        own = logits[2 * number : 2 * number + 2].requires_grad_()
        value = loss(own, label[2 * number : 2 * number + 2])
        (gradient,) = torch.autograd.grad(value, own)
        found.append((value.detach(), gradient))
    torch.save(found, f"{folder}/{number}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_loss_and_the_mean_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(loss_of_half, (free_port(), str(tmp_path)), nprocs=2)
    halves = [torch.load(tmp_path / f"{number}.pt") for number in range(2)]
    for loss, ours, others in zip(LOSSES, *halves, strict=True):
        logits, label = logits_and_labels(loss)
        value = loss(logits.requires_grad_(), label)
        (gradient,) = torch.autograd.grad(value, logits)
        torch.testing.assert_close((ours[0] + others[0]) / 2, value.detach())
        torch.testing.assert_close(torch.cat([ours[1], others[1]]) / 2, gradient)  # what DDP makes of them


def averages_of_one(number: int, port: int, folder: str) -> None:
    """In a process of its own: what an epoch leaves of a batch norm's averages, each with batches of its own."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(number), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    network = BatchNorm(1).train()
    averages, seen = WeightAverages(network, decay=0.5), []

    def step(engine: Engine, batch: float) -> dict[str, bool]:
        network(batch + torch.arange(4.0).view(4, 1, 1))
        return {"updated": True}

    trainer = Engine(step)
    UpdateAverages(averages).attach(trainer)
    # where the validation and the checkpoints look
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: seen.extend(value.clone() for value in averages.averages.values())
    )
    trainer.run([1.0 + 10 * number, 2.0 + 20 * number])
    torch.save((seen, network.running_mean), f"{folder}/{number}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_judge_and_keep_the_same_averages(tmp_path: Path) -> None:
    multiprocessing.spawn(averages_of_one, (free_port(), str(tmp_path)), nprocs=2)
    (ours, mean), (others, other_mean) = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    assert mean != other_mean
    assert len(ours) == 4  # two weights, two statistics
    assert all(torch.equal(*both) for both in zip(ours, others, strict=True))


def torchrun(phantom: Path, runs: Path, *overlays: Path, path: Path = CHECKOUT, **settings: Any) -> Any:
    files = ["configs/unet_liver.json", "configs/multi_gpu.json", *map(str, overlays)]
    values = {"dataset_dir": phantom, "output_dir": runs, "cache_dir": runs / "cache", **settings}
    options = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += ["-m", "monai.bundle", "run", "training", "--config_file", repr(files), *options]
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{CHECKOUT}", "MEDSEG_ONE_LINE": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # gloo, wherever the tests run
    return subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False, timeout=TIME_LIMIT_S
    )


def run_of(runs: Path) -> tuple[Path, Run]:
    (folder,) = (path.parent for path in runs.glob("*/run.json"))
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    return folder, client.get_run(json.loads((folder / "run.json").read_text())["run_id"])


def without_clock(metrics: dict[str, float]) -> dict[str, float]:
    clock = re.compile("per_second|share|system|percent|memory|disk|network")
    return {name: value for name, value in metrics.items() if not clock.search(name)}


@pytest.mark.slow
def test_two_processes_train_as_one_with_their_batch(
    phantom: Path,
    tiny_overlay: Path,
    bundle_run: Callable[..., Path],
    tmp_path: Path,
    new_store: Callable[[Path], Path],
) -> None:
    """Metrics to 1e-3 (a voxel may change sides), weights to 1e-5, after six updates in float32."""
    new_store(tmp_path / "two")
    together = torchrun(phantom, tmp_path / "two", tiny_overlay, **EXACT, max_epochs=3, num_workers=1)
    assert together.returncode == 0, together.stderr[-3000:]
    assert together.stdout.count("epoch 1 of 3") == 1  # the first process alone speaks
    assert "2 processes on the CPU" in together.stdout
    alone = bundle_run("training", dataset_dir=str(phantom), **EXACT, max_epochs=3, batch_size=2, device="cpu")
    folder, run = run_of(tmp_path / "two")
    assert run.info.status == "FINISHED"
    ours, theirs = without_clock(run.data.metrics), without_clock(run_of(alone.parent)[1].data.metrics)
    assert {"train_loss", "validation_liver_dice", "held_out_mean_dice"} <= ours.keys()
    assert ours == pytest.approx(theirs, abs=1e-3)
    state, expected = newest_checkpoint(folder)["network"], newest_checkpoint(alone)["network"]
    for name, weight in expected.items():
        torch.testing.assert_close(state[name], weight, atol=1e-5, rtol=1e-4, msg=name)
    for table in ("validation_cases.csv", "held_out_cases.csv"):
        tables = [next(path.rglob(table)).read_text() for path in (folder, alone)]
        assert [row.split(",")[0] for row in tables[0].split()] == [row.split(",")[0] for row in tables[1].split()]
    assert {path.name for path in (folder / "pictures").iterdir()} == {
        path.name for path in (alone / "pictures").iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_fails_ends_all_with_one_line_and_a_failed_run_that_one_process_can_continue(
    phantom: Path,
    tiny_overlay: Path,
    bundle_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    rank: str,
) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    overlay = tmp_path / "failing.json"
    overlay.write_text(json.dumps({"+train::handlers": [{"_target_": "failing.Fails"}]}))
    monkeypatch.setenv("FAILING_RANK", rank)
    settings = {**EXACT, "batch_size": 2, "max_epochs": 2}
    done = torchrun(phantom, tmp_path / "runs", overlay, tiny_overlay, path=tmp_path, **settings)
    assert done.returncode == 1
    assert done.stderr.count("medseg: DataError: case 'a': its file is gone") == 1
    folder, run = run_of(tmp_path / "runs")
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "medseg: DataError: case 'a': its file is gone"
    assert "its file is gone" in (folder / "error.txt").read_text()
    assert newest_checkpoint(folder)["epoch"] == 1
    if rank == "0":
        return

    monkeypatch.delenv("FAILING_RANK")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    places = {"output_dir": str(tmp_path / "runs"), "cache_dir": str(tmp_path / "cache"), "dataset_dir": str(phantom)}
    bundle_run("training", "configs/multi_gpu.json", str(overlay), resume=str(folder), **places, **settings)
    assert "the training ran in 2 processes and now in 1" in caplog.text
    assert run_of(tmp_path / "runs")[1].info.status == "FINISHED"
    whole = bundle_run("training", dataset_dir=str(phantom), output_dir=str(tmp_path / "whole"), **settings)
    expected = newest_checkpoint(whole)["network"]
    for name, weight in newest_checkpoint(folder)["network"].items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-4, msg=name)
