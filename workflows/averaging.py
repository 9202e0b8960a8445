"""Averages of the weights over the updates of a training: steadier than the last weights, and judged in their place."""

from collections.abc import Mapping

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from medseg.errors import ConfigError
from workflows import distributed


class WeightAverages:
    """Exponential moving average of a network's state.

    Floating-point buffers are averaged as the weights are, so that the running statistics of batch norms belong to the
    averaged weights; others are copied. Early on the average forgets faster, by `(1 + updates) / (10 + updates)`.

    Args:
        network: whose weights change.
        decay: share of the average that an update leaves, such as 0.999; 0 keeps no average.

    Raises:
        ConfigError: if `decay` is not in `[0, 1)`.

    Reference:
        Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; Tarvainen and Valpola,
        "Mean teachers", NeurIPS 2017, arXiv:1703.01780 (the moving form).
    """

    def __init__(self, network: nn.Module, *, decay: float = 0.0) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"averaging_decay: is {decay}; give 0 for none, or a share below 1 such as 0.999")
        self.network, self.decay = network, decay
        self.updates = 0
        self.averages: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a checkpoint."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        averages: Mapping[str, Tensor] = state["averages"]  # type: ignore[assignment]
        own = self.network.state_dict()
        self.averages = {name: average.to(own[name].device) for name, average in averages.items()}

    def update(self) -> None:
        """Take in the weights as they are now."""
        state = self.network.state_dict()
        if not self.averages:
            self.averages = {name: value.detach().clone() for name, value in state.items()}
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for name, value in state.items():
                average = self.averages[name]
                if average.is_floating_point():
                    average.lerp_(value.detach(), 1 - decay)
                else:
                    average.copy_(value)
        self.updates += 1

    def exchange(self) -> None:
        """Let network and averages change places; twice is once back."""
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                if name in self.averages:
                    other = self.averages[name].clone()
                    self.averages[name].copy_(value)
                    value.copy_(other)


class UpdateAverages:
    """Handler of the trainer, before the validation: the averages take in every update of the weights.

    Of several processes each takes in its own running statistics; after an epoch all have the first one's averages.

    Args:
        averages: of the network that is trained; nothing happens if they have no decay.
    """

    def __init__(self, averages: WeightAverages) -> None:
        self.averages = averages

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's trainer."""
        if self.averages.decay:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._follow)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._unite)

    def _follow(self, engine: Engine) -> None:
        if engine.state.output["updated"]:
            self.averages.update()

    def _unite(self, engine: Engine) -> None:
        distributed.same_tensors(self.averages.averages.values())


class JudgeAverages:
    """Handler of the validator, after the one that keeps the best: the averages are judged and kept.

    Args:
        averages: of the network that the validator judges; without any, the network's own weights are judged.
    """

    def __init__(self, averages: WeightAverages) -> None:
        self.averages = averages

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's evaluator."""
        for event in (Events.STARTED, Events.COMPLETED):
            engine.add_event_handler(event, self._exchange)

    def _exchange(self, engine: Engine) -> None:
        self.averages.exchange()
