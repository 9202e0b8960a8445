from types import SimpleNamespace

import pytest
import torch
from torch import nn

from medseg.losses import DiceCrossEntropy
from medseg.networks import UNet
from workflows.training import KeepBest, TrainingStep, WarmupCosine, warmup_cosine


def engine_for(network: nn.Module, *, learning_rate: float = 0.01) -> SimpleNamespace:
    """What a step uses of MONAI's trainer."""
    return SimpleNamespace(
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=learning_rate),
        loss_function=DiceCrossEntropy(),
        state=SimpleNamespace(device=torch.device("cpu"), output=None, epoch=4),
    )


def half_bright() -> dict[str, torch.Tensor]:
    """Two patches whose upper half is bright and labeled."""
    label = torch.zeros(2, 1, 12, 10, 8, dtype=torch.uint8)
    label[:, :, :6] = 1
    return {"image": label + 0.1 * torch.randn(label.shape), "label": label}


def test_the_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    factor = WarmupCosine(steps=100, warmup_steps=10)
    assert [factor(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert factor(10) == pytest.approx(1.0)
    assert factor(55) == pytest.approx(0.5)  # half way between 10 and 100
    assert factor(100) == pytest.approx(0.0, abs=1e-6)
    assert factor(200) == pytest.approx(0.0, abs=1e-6)


def test_a_warmup_never_takes_more_than_half_of_a_short_training() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warmup_cosine(optimizer, steps=4, warmup_steps=100)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == 2.0


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
