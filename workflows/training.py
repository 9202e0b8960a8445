"""Training: the step, the schedule, what is kept, and the run around them."""

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from workflows.experiment import Experiment

logger = logging.getLogger(__name__)


def best_device() -> torch.device:
    """The first GPU that torch can use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TrainingStep:
    """One optimizer step of a MONAI trainer, in mixed precision on any device.

    MONAI's own step knows mixed precision on CUDA only. bfloat16 has float32's range, so no loss scaling is needed.

    Args:
        precision: `"bfloat16"` or `"float32"`.
        max_gradient_norm: gradients are scaled down to this norm.
        channels_last: keep activations channel by channel in memory, faster for convolutions on most CPUs.
    """

    def __init__(
        self, *, precision: str = "bfloat16", max_gradient_norm: float = 12.0, channels_last: bool = True
    ) -> None:
        if precision not in ("bfloat16", "float32"):
            raise ValueError(f'precision is "bfloat16" or "float32", got {precision!r}.')
        self.precision, self.max_gradient_norm, self.channels_last = precision, max_gradient_norm, channels_last

    def __call__(self, engine: SupervisedTrainer, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images `(B, C, *spatial)`, labels `(B, 1, *spatial)` -> `{"loss": ...}` after one optimizer step."""
        device: torch.device = engine.state.device
        image, label = batch["image"].to(device), batch["label"].to(device)
        if self.channels_last:
            layout = torch.channels_last_3d if image.ndim == 5 else torch.channels_last
            image = image.contiguous(memory_format=layout)
        engine.network.train()
        engine.optimizer.zero_grad()
        mixed = torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        with mixed:
            logits = engine.network(image)
        loss = engine.loss_function(logits, label)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss.item()} in epoch {engine.state.epoch}; lower `learning_rate`, or set "
                '`precision` to "float32".'
            )
        loss.backward()
        nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_gradient_norm)
        engine.optimizer.step()
        engine.state.output = {"loss": loss.detach()}
        return engine.state.output


def channels_last(network: nn.Module, device: torch.device, spatial_dims: int) -> nn.Module:
    """The network on its device, weights laid out as `TrainingStep` lays out images."""
    layout = torch.channels_last_3d if spatial_dims == 3 else torch.channels_last
    return network.to(device).to(memory_format=layout)  # type: ignore[call-overload]


def warmup_cosine(optimizer: Optimizer, *, steps: int, warmup_steps: int) -> LambdaLR:
    """Learning rate that rises linearly for `warmup_steps`, then falls to zero along a cosine until `steps`.

    Reference:
        Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv:1608.03983 (without restarts).
    """
    return LambdaLR(optimizer, WarmupCosine(steps, min(warmup_steps, steps // 2)))


class WarmupCosine:
    """Factor of the learning rate at a step; a class, so that it can be saved and sent to other processes."""

    def __init__(self, steps: int, warmup_steps: int) -> None:
        self.steps, self.warmup_steps = steps, warmup_steps

    def __call__(self, step: int) -> float:
        """Optimizer step, from 0 -> factor in `[0, 1]`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return float(0.5 * (1 + torch.cos(torch.tensor(min(done, 1.0) * torch.pi))))


class FollowTraining:
    """Handler of the trainer: steps the schedule, logs and tracks each epoch's loss, learning rate and throughput."""

    def __init__(self, experiment: Experiment, scheduler: LambdaLR) -> None:
        self.experiment, self.scheduler = experiment, scheduler
        self.losses: list[Tensor] = []
        self.patches = 0
        self.epoch_started = 0.0

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._follow_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)

    def _start_epoch(self, engine: Engine) -> None:
        self.losses.clear()
        self.patches = 0
        self.epoch_started = time.monotonic()

    def _follow_step(self, engine: Engine) -> None:
        self.losses.append(engine.state.output["loss"])
        self.patches += engine.state.batch["image"].shape[0]
        self.scheduler.step()

    def _finish_epoch(self, engine: Engine) -> None:
        seconds = time.monotonic() - self.epoch_started
        loss = float(torch.stack(self.losses).mean())
        epoch = engine.state.epoch
        self.experiment.log_metrics(
            {
                "train_loss": loss,
                "learning_rate": float(self.scheduler.get_last_lr()[0]),
                "patches_per_second": self.patches / seconds,
            },
            step=epoch,
        )
        logger.info("epoch %d of %d: loss %.4f, %.1f s", epoch, engine.state.max_epochs, loss, seconds)


class KeepBest:
    """Handler of the validator: writes the bundle whenever the key metric is the best so far.

    Args:
        experiment: the run to write into.
        network: whose weights are kept.
    """

    def __init__(self, experiment: Experiment, network: nn.Module) -> None:
        self.experiment, self.network = experiment, network
        self.best = float("-inf")

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's evaluator."""
        engine.add_event_handler(Events.COMPLETED, self._keep)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a checkpoint."""
        self.best = state["best"]

    def _keep(self, engine: SupervisedEvaluator) -> None:
        score = float(engine.state.metrics[engine.state.key_metric_name])
        if score > self.best:
            self.best = score
            self.experiment.write_bundle(self.network.state_dict())
            epoch = engine.state.epoch  # MONAI's ValidationHandler hands the trainer's epoch over
            self.experiment.log_metrics({f"best_{engine.state.key_metric_name}": score}, step=epoch)


def train(
    experiment: Experiment,
    trainer: SupervisedTrainer,
    validator: SupervisedEvaluator,
    test: SupervisedEvaluator,
    network: nn.Module,
) -> None:
    """Run a training to its end: train, judge the best model on the held-out cases, close the run truthfully.

    Args:
        experiment: the run, opened here and closed as FINISHED, FAILED or KILLED.
        trainer: MONAI's trainer, its validator attached.
        validator: judges the last epoch too, whatever the interval.
        test: judges the best weights at the end.
        network: the network of all three.
    """
    with experiment.running():
        trainer.run()
        if validator.state.epoch != trainer.state.epoch:
            validator.run(trainer.state.epoch)
        best = experiment.best_weights()
        network.load_state_dict(best)
        test.run()
        experiment.write_bundle(best)
        experiment.record_bundle()
        experiment.summarize()
