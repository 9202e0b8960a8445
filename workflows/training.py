"""Training: the step, what is followed and kept, and the run around them."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from medseg.errors import ConfigError
from medseg.memory import keep_freed_memory
from medseg.networks.channels_last import to_channels_last
from workflows import activations, distributed
from workflows.experiment import Experiment
from workflows.schedules import follow, update_count

logger = logging.getLogger(__name__)


def best_device() -> torch.device:
    """The first GPU that torch can use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TrainingStep:
    """One step of a MONAI trainer, in mixed precision on any device.

    MONAI's own step knows mixed precision on CUDA only. bfloat16 has float32's range, so no loss scaling is needed.
    Its output has `loss`, the loss's parts as `loss_<name>`, and `updated`, whether the weights have changed.

    Args:
        precision: `"bfloat16"` or `"float32"`.
        max_gradient_norm: gradients are scaled down to this norm.
        channels_last: keep activations channel by channel in memory, faster for convolutions on most CPUs.
        accumulation_steps: batches whose mean gradient makes one update; what is left of an epoch makes one more.
        compile: let torch compile the network; faster on GPUs after some minutes, and exact in the leading digits.
    """

    def __init__(
        self,
        *,
        precision: str = "bfloat16",
        max_gradient_norm: float = 12.0,
        channels_last: bool = True,
        accumulation_steps: int = 1,
        compile: bool = False,
    ) -> None:
        if precision not in ("bfloat16", "float32"):
            raise ValueError(f'precision is "bfloat16" or "float32", got {precision!r}.')
        if accumulation_steps < 1:
            raise ConfigError(f"accumulation_steps: is {accumulation_steps}; give a number of batches, at least 1")
        self.precision, self.max_gradient_norm, self.channels_last = precision, max_gradient_norm, channels_last
        self.accumulation_steps, self.compile = accumulation_steps, compile
        self.called: nn.Module | None = None

    def __call__(self, engine: SupervisedTrainer, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Images `(B, C, *spatial)`, labels `(B, 1, *spatial)` -> what the step has found."""
        device: torch.device = engine.state.device
        image, label = batch["image"].to(device), batch["label"].to(device)
        if self.channels_last:
            image = to_channels_last(image)
        opens, updates, group = self._place(engine)
        engine.network.train()
        if opens:
            engine.optimizer.zero_grad()
        mixed = torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        with mixed:
            logits = self._network(engine)(image)
        loss, parts = loss_and_parts(engine.loss_function, logits, label)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss.item()} in epoch {engine.state.epoch}; lower `learning_rate`, or set "
                '`precision` to "float32".'
            )
        (loss / group if group > 1 else loss).backward()  # type: ignore[no-untyped-call]
        if updates:
            norm = nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_gradient_norm)
            if not torch.isfinite(norm):  # a step would spoil every weight
                raise FloatingPointError(
                    f"the gradient became {norm.item()} in epoch {engine.state.epoch}; lower `learning_rate`, or set "
                    '`precision` to "float32".'
                )
            engine.optimizer.step()
        found = {f"loss_{name}": part.detach() for name, part in parts.items()}
        engine.state.output = {"loss": loss.detach(), "updated": updates, **found}
        return engine.state.output

    def _network(self, engine: SupervisedTrainer) -> nn.Module:
        """The network as it is called here: compiled, and one of several processes; its weights keep their names."""
        if self.called is None:
            called = distributed.parallel(engine.network)
            self.called = torch.compile(called) if self.compile else called  # type: ignore[assignment]
        return self.called  # type: ignore[return-value]

    def _place(self, engine: SupervisedTrainer) -> tuple[bool, bool, int]:
        """Whether this batch is the first and the last one of an update, and how many that has."""
        if self.accumulation_steps == 1:
            return True, True, 1
        length = engine.state.epoch_length
        index = (engine.state.iteration - 1) % length
        begin = index - index % self.accumulation_steps
        end = min(begin + self.accumulation_steps, length)
        return index == begin, index == end - 1, end - begin


def loss_and_parts(
    loss_function: Callable[..., Tensor], logits: Tensor | Sequence[Tensor], label: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and what it is the sum of if it tells; computed once."""
    if not hasattr(loss_function, "parts"):
        return loss_function(logits, label), {}
    parts: dict[str, Tensor] = loss_function.parts(logits, label)
    return torch.stack(list(parts.values())).sum(), parts


def last_layout(spatial_dims: int) -> torch.memory_format:
    """Torch's channels-last layout in 2D or 3D."""
    return torch.channels_last_3d if spatial_dims == 3 else torch.channels_last


def prepared_network(
    network: nn.Module,
    device: torch.device | str,
    spatial_dims: int,
    *,
    channels_last: bool = True,
    checkpoint_activations: bool = False,
) -> nn.Module:
    """The network on its device, weights laid out as `TrainingStep` lays out images; on a CPU freed memory is kept.

    Args:
        network: any.
        device: where it trains.
        spatial_dims: 2 or 3.
        channels_last: as of the step.
        checkpoint_activations: keep the inputs of its stages alone, see `workflows.activations`.
    """
    if checkpoint_activations:
        activations.checkpoint_activations(network)
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    network = network.to(device)
    return network.to(memory_format=last_layout(spatial_dims)) if channels_last else network  # type: ignore[call-overload]


class FollowTraining:
    """Handler of the trainer: steps the schedule, logs and tracks each epoch's loss, learning rate and throughput.

    `data_wait_share` is the part of an epoch's time in which the step had no batch to work on.

    Args:
        experiment: the run to write into.
        scheduler: counts updates.
        accumulation_steps: batches an update.
    """

    def __init__(self, experiment: Experiment, scheduler: LambdaLR, *, accumulation_steps: int = 1) -> None:
        self.experiment, self.scheduler, self.accumulation_steps = experiment, scheduler, accumulation_steps
        self.losses: dict[str, list[Tensor]] = {}
        self.samples = 0
        self.epoch_started = self.wait_started = self.waited = 0.0

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start_wait)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._finish_wait)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._follow_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)

    def _start_epoch(self, engine: Engine) -> None:
        self.losses = {}
        self.samples = 0
        self.waited = 0.0
        before = update_count(engine.state.epoch - 1, engine.state.epoch_length, self.accumulation_steps)
        follow(self.scheduler, before)  # an epoch may have had other steps before the training was resumed
        self.epoch_started = time.monotonic()

    def _start_wait(self, engine: Engine) -> None:
        self.wait_started = time.monotonic()

    def _finish_wait(self, engine: Engine) -> None:
        self.waited += time.monotonic() - self.wait_started

    def _follow_step(self, engine: Engine) -> None:
        output = engine.state.output
        for name, value in output.items():
            if name.startswith("loss"):
                self.losses.setdefault("train_loss" if name == "loss" else name, []).append(value)
        self.samples += engine.state.batch["image"].shape[0]
        if output["updated"]:
            self.scheduler.step()

    def _finish_epoch(self, engine: Engine) -> None:
        distributed.same_tensors(engine.network.buffers())
        seconds = time.monotonic() - self.epoch_started
        found = {name: float(torch.stack(values).mean()) for name, values in self.losses.items()}
        found["data_wait_share"] = self.waited / seconds
        found = distributed.mean(found)
        rates = {
            "learning_rate": float(self.scheduler.get_last_lr()[0]),
            "samples_per_second": self.samples * distributed.processes() / seconds,
        }
        epoch = engine.state.epoch
        self.experiment.log_metrics(found | rates, step=epoch)
        loss = found["train_loss"]
        logger.info("epoch %d of %d: loss %.4f, %.1f s", epoch, engine.state.max_epochs, loss, seconds)


class KeepBest:
    """Handler of the validator: writes the bundle whenever the key metric is the best so far.

    Args:
        experiment: the run to write into.
        network: whose weights are kept.

    Attributes:
        since: validations since the best one.
    """

    def __init__(self, experiment: Experiment, network: nn.Module) -> None:
        self.experiment, self.network = experiment, network
        self.best, self.since = float("-inf"), 0

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's evaluator."""
        engine.add_event_handler(Events.COMPLETED, self._keep)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"best": self.best, "since": self.since}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a checkpoint."""
        self.best, self.since = state["best"], int(state["since"])

    def _keep(self, engine: SupervisedEvaluator) -> None:
        score = float(engine.state.metrics[engine.state.key_metric_name])
        self.since += 1
        if score > self.best:
            self.best, self.since = score, 0
            self.experiment.write_bundle(self.network.state_dict())
            epoch = engine.state.epoch  # MONAI's ValidationHandler hands the trainer's epoch over
            self.experiment.log_metrics({f"best_{engine.state.key_metric_name}": score}, step=epoch)


class StopEarly:
    """Handler of the trainer, after the validation and the checkpoints: ends a training that no longer gets better.

    Args:
        best: of the validation.
        patience: validations without a better one after which the training ends; 0 for never.
    """

    def __init__(self, best: KeepBest, *, patience: int = 0) -> None:
        if patience < 0:
            raise ConfigError(f"patience: is {patience}; give a number of validations, or 0 to train to the end")
        self.best, self.patience = best, patience

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer."""
        if self.patience:
            engine.add_event_handler(Events.STARTED, self._look)  # a resumed training may have ended already
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._look)

    def _look(self, engine: Engine) -> None:
        if self.best.since >= self.patience:
            logger.info(
                "no better validation in %d; the training ends in epoch %d", self.best.since, engine.state.epoch
            )
            engine.terminate()


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
