import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from medseg.errors import ConfigError
from medseg.losses import DiceCrossEntropy
from medseg.networks import UNet
from workflows import training
from workflows.training import KeepBest, StopEarly, TrainingStep, prepared_network


def engine_for(network: nn.Module, *, learning_rate: float = 0.01) -> SimpleNamespace:
    """What a step uses of MONAI's trainer."""
    return SimpleNamespace(
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=learning_rate),
        loss_function=DiceCrossEntropy(),
        state=SimpleNamespace(device=torch.device("cpu"), output=None, epoch=4, iteration=1, epoch_length=5),
    )


def half_bright() -> dict[str, torch.Tensor]:
    """Two patches whose upper half is bright and labeled."""
    label = torch.zeros(2, 1, 12, 10, 8, dtype=torch.uint8)
    label[:, :, :6] = 1
    return {"image": label + 0.1 * torch.randn(label.shape), "label": label}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_lower_the_loss(precision: str) -> None:
    engine = engine_for(UNet(3, 1, 2, widths=(4, 8)))
    step, batch = TrainingStep(precision=precision), half_bright()
    losses = [float(step(engine, batch)["loss"]) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_gradients_are_clipped_to_the_norm() -> None:
    engine = engine_for(UNet(2, 1, 2, widths=(4, 8)))
    batch = {name: tensor[..., 0] for name, tensor in half_bright().items()}
    TrainingStep(precision="float32", max_gradient_norm=1e-3)(engine, batch)
    norm = torch.linalg.vector_norm(
        torch.stack([parameter.grad.norm() for parameter in engine.network.parameters() if parameter.grad is not None])
    )
    assert float(norm) == pytest.approx(1e-3, rel=1e-2)


def test_a_loss_that_is_not_finite_stops_the_training_with_advice() -> None:
    engine = engine_for(UNet(3, 1, 2, widths=(4, 8)))
    batch = half_bright()
    batch["image"][0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 4; lower `learning_rate`"):
        TrainingStep()(engine, batch)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match='precision is "bfloat16" or "float32", got \'float16\''):
        TrainingStep(precision="float16")


def judge(keep: KeepBest, network: nn.Module, judged: list[tuple[float, float]]) -> None:
    """Let the validator find a score for each weight."""
    for epoch, (weight, score) in enumerate(judged, start=1):
        nn.init.constant_(network.weight, weight)
        state = SimpleNamespace(metrics={"mean_dice": score}, key_metric_name="mean_dice", epoch=epoch)
        keep._keep(SimpleNamespace(state=state))


def test_the_best_weights_are_kept_and_later_worse_ones_are_not_even_after_a_resume() -> None:
    network = nn.Linear(1, 1, bias=False)
    written: list[float] = []
    experiment = SimpleNamespace(
        write_bundle=lambda weights: written.append(float(weights["weight"])),
        log_metrics=lambda metrics, step: None,
    )
    keep = KeepBest(experiment, network)
    judge(keep, network, [(1.0, 0.5), (2.0, 0.8), (3.0, 0.3)])
    assert written == [1.0, 2.0]
    resumed = KeepBest(experiment, network)
    resumed.load_state_dict(keep.state_dict())
    judge(resumed, network, [(4.0, 0.7), (5.0, 0.9)])
    assert written == [1.0, 2.0, 5.0]


def flat(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor[..., 0] for name, tensor in batch.items()}


def test_accumulated_batches_make_the_update_of_one_large_batch() -> None:
    batches = [flat(half_bright()) for _ in range(3)]
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in ("image", "label")}
    networks = [UNet(2, 1, 2, widths=(4, 8)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    engines = [engine_for(network) for network in networks]
    for engine in engines:
        engine.loss_function = torch.nn.CrossEntropyLoss()
        engine.optimizer = torch.optim.SGD(engine.network.parameters(), lr=0.1)
    for batch in (*batches, whole):
        batch["label"] = batch["label"][:, 0].long()
    TrainingStep(precision="float32")(engines[0], whole)
    step = TrainingStep(precision="float32", accumulation_steps=3)
    updated = []
    for iteration, batch in enumerate(batches, start=1):
        engines[1].state.iteration = iteration
        updated.append(step(engines[1], batch)["updated"])
    assert updated == [False, False, True]
    for ours, theirs in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_left_of_an_epoch_is_an_update_of_its_own() -> None:
    engine = engine_for(UNet(2, 1, 2, widths=(4, 8)))  # epochs of five batches
    step, batch = TrainingStep(accumulation_steps=2), flat(half_bright())
    updated = []
    for iteration in range(1, 11):
        engine.state.iteration = iteration
        updated.append(step(engine, batch)["updated"])
    assert updated == [False, True, False, True, True] * 2


def test_a_step_tells_the_parts_of_the_loss() -> None:
    found = TrainingStep()(engine_for(UNet(2, 1, 2, widths=(4, 8))), flat(half_bright()))
    assert found["loss_dice"] + found["loss_cross_entropy"] == pytest.approx(float(found["loss"]))


def test_a_compiled_network_keeps_the_names_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="eager"))
    engine = engine_for(UNet(2, 1, 2, widths=(4, 8)))
    names, before = list(engine.network.state_dict()), engine.network.head.weight.detach().clone()
    step = TrainingStep(compile=True)
    step(engine, flat(half_bright()))
    assert list(engine.network.state_dict()) == names
    assert not torch.equal(engine.network.head.weight, before)
    assert step.called is not engine.network


@pytest.mark.parametrize("layout", [True, False])
def test_the_layout_in_memory_is_a_setting(layout: bool) -> None:
    network = prepared_network(UNet(2, 3, 2, widths=(4, 8)), "cpu", 2, channels_last=layout)
    weight = network.encoder.stages[0][0][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == layout


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("meta", 0)])
def test_freed_memory_is_kept_where_the_network_trains_on_a_cpu(
    device: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(training, "keep_freed_memory", lambda: calls.append(True))
    prepared_network(UNet(2, 3, 2, widths=(4, 8)), device, 2)
    assert len(calls) == times


LONG = """
import random, sys
from types import SimpleNamespace
import numpy as np, psutil, torch
from medseg.losses import DiceCrossEntropy
from medseg.memory import keep_freed_memory
from medseg.networks import UNet
from workflows.training import TrainingStep, prepared_network

torch.set_num_threads(1)
network = prepared_network(UNet(3, 1, 2, widths=(8, 16)), "cpu", 3)
assert keep_freed_memory()
engine = SimpleNamespace(
    network=network, optimizer=torch.optim.AdamW(network.parameters()), loss_function=DiceCrossEntropy(),
    state=SimpleNamespace(device=torch.device("cpu"), output=None, epoch=1, iteration=1, epoch_length=5),
)
step, draw, read = TrainingStep(), random.Random(0), []
for number in range(90):
    if number % 3 == 0:
        side = draw.choice((16, 20, 24))
        label = torch.zeros(2, 1, side, side, side, dtype=torch.uint8)
        step(engine, {"image": torch.randn(label.shape), "label": label})
    read = [*read[-2:], np.ones(draw.randrange(10, 40) << 18, np.float32)]  # cases of 10 to 40 MB, three at a time
    if number in (44, 89):
        print(psutil.Process().memory_info().rss >> 20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_memory_that_is_kept_does_not_grow_with_the_training() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LONG],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=Path(training.__file__).parents[1],
        env={name: value for name, value in os.environ.items() if name != "MEDSEG_MALLOC"},
    )
    assert not done.returncode, done.stderr[-2000:]
    halfway, end = map(int, done.stdout.split())
    assert end < halfway + 64  # MB; a tenth of what was read since


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TrainingStep(accumulation_steps=0), "accumulation_steps: is 0; give a number of batches, at least 1"),
        (lambda: StopEarly(None, patience=-1), "patience: is -1; give a number of validations, or 0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, says) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def epochs_of(scores: list[float], *, patience: int, first: int = 1, keep: KeepBest | None = None) -> int:
    """The epoch in which a training ends whose validations give these scores."""
    experiment = SimpleNamespace(write_bundle=lambda weights: None, log_metrics=lambda metrics, step: None)
    keep = keep or KeepBest(experiment, nn.Linear(1, 1))
    trainer = Engine(lambda engine, batch: None)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        score = scores[engine.state.epoch - 1]
        state = SimpleNamespace(metrics={"mean_dice": score}, key_metric_name="mean_dice", epoch=engine.state.epoch)
        keep._keep(SimpleNamespace(state=state))

    StopEarly(keep, patience=patience).attach(trainer)
    trainer.state.epoch, trainer.state.epoch_length, trainer.state.max_epochs = first - 1, 1, len(scores)
    trainer.run([0], max_epochs=len(scores))
    return trainer.state.epoch


def test_a_training_ends_when_validations_no_longer_get_better() -> None:
    scores = [0.1, 0.5, 0.4, 0.6, 0.6, 0.5, 0.9, 0.9]
    assert epochs_of(scores, patience=2) == 6
    assert epochs_of(scores, patience=1) == 3
    assert epochs_of(scores, patience=0) == epochs_of(scores, patience=3) == 8


def test_patience_goes_on_after_a_resume() -> None:
    experiment = SimpleNamespace(write_bundle=lambda weights: None, log_metrics=lambda metrics, step: None)
    for since, ends in ((0, 5), (1, 4), (2, 3)):
        keep = KeepBest(experiment, nn.Linear(1, 1))
        keep.load_state_dict({"best": 0.9, "since": since})
        assert epochs_of([0, 0, 0, 0.1, 0.2, 0.3], patience=2, first=4, keep=keep) == ends
