from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from medseg.errors import ConfigError
from medseg.networks.blocks import BatchNorm
from workflows.averaging import JudgeAverages, UpdateAverages, WeightAverages


def network(weight=0.0):
    """One weight, and a batch norm with statistics."""
    made = nn.Sequential(nn.Linear(1, 1, bias=False), BatchNorm(1))
    nn.init.constant_(made[0].weight, weight)
    return made


def follow(averages, weights):
    for weight in weights:
        nn.init.constant_(averages.network[0].weight, weight)
        averages.network[1].running_mean.fill_(10 * weight)
        averages.update()


def averaged(averages):
    return float(averages.averages["0.weight"]), float(averages.averages["1.running_mean"])


def test_the_average_and_its_statistics_are_those_computed_by_hand():
    averages = WeightAverages(network(), decay=0.2)
    follow(averages, [1.0, 2.0, 4.0])
    # decays min(0.2, 1/10), min(0.2, 2/11), min(0.2, 3/12), from the first weights on
    by_hand = 1.0
    for decay, weight in ((0.1, 1.0), (2 / 11, 2.0), (0.2, 4.0)):
        by_hand = decay * by_hand + (1 - decay) * weight
    assert averaged(averages) == pytest.approx((by_hand, 10 * by_hand))


def test_averages_go_on_after_a_resume():
    whole = WeightAverages(network(), decay=0.9)
    follow(whole, [1.0, 2.0, 3.0, 4.0])
    stopped = WeightAverages(network(), decay=0.9)
    follow(stopped, [1.0, 2.0])
    resumed = WeightAverages(network(), decay=0.9)
    resumed.load_state_dict(stopped.state_dict())
    follow(resumed, [3.0, 4.0])
    assert averaged(resumed) == averaged(whole)


@pytest.mark.parametrize("updates", [0, 3])
def test_a_validator_judges_and_keeps_the_averages_and_the_training_goes_on_with_its_own_weights(updates):
    averages = WeightAverages(network(7.0), decay=0.5)
    follow(averages, [1.0] * updates)
    nn.init.constant_(averages.network[0].weight, 7.0)
    seen = []

    def look(engine, *_):
        seen.append(averages.network[0].weight.item())

    validator = Engine(look)
    validator.add_event_handler(Events.COMPLETED, look)
    JudgeAverages(averages).attach(validator)
    validator.run([0])
    assert seen == ([1.0, 1.0] if updates else [7.0, 7.0])  # without averages, the network's own
    assert averages.network[0].weight.item() == 7.0


def test_averages_follow_updates_alone():
    averages = WeightAverages(network(), decay=0.5)
    trainer = Engine(lambda engine, batch: {"updated": batch})
    UpdateAverages(averages).attach(trainer)
    trainer.run([True, False, True])
    assert averages.updates == 2
    without = WeightAverages(network())
    trainer = Engine(lambda engine, batch: SimpleNamespace())
    UpdateAverages(without).attach(trainer)
    trainer.run([0])
    assert without.state_dict() == {"updates": 0, "averages": {}}


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigError, match=r"averaging_decay: is .*; give 0 for none, or a share below 1"):
        WeightAverages(network(), decay=decay)


def test_the_average_is_on_the_device_and_in_the_type_of_the_weights():
    averages = WeightAverages(network().double(), decay=0.5)
    follow(averages, [1.0])
    averages.load_state_dict({"updates": 1, "averages": averages.averages})
    assert averages.averages["0.weight"].dtype == torch.float64
