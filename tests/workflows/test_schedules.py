import math
import pickle

import pytest
import torch
from torch import nn

from workflows.schedules import (
    cosine_factor,
    follow,
    polynomial_factor,
    update_count,
    warmup_cosine,
    warmup_polynomial,
)


def optimizer():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)


def rates(scheduler, steps):
    """The rate of each update."""
    found = []
    for _ in range(steps):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_the_rate_rises_linearly_and_falls_along_a_cosine():
    factors = [cosine_factor(step, steps=100, warmup_steps=10) for step in (0, 4, 9, 10, 55, 100, 200)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0], abs=1e-6)  # 55 is half way from 10 to 100


def test_the_polynomial_is_that_of_the_papers():
    found = rates(warmup_polynomial(optimizer(), steps=8), 8)
    assert found == pytest.approx([2.0 * (1 - step / 8) ** 0.9 for step in range(8)])
    assert polynomial_factor(8, steps=8, warmup_steps=0, exponent=0.9) == 0
    assert polynomial_factor(1, steps=8, warmup_steps=4, exponent=0.9) == 0.5


@pytest.mark.parametrize("schedule", [warmup_cosine, warmup_polynomial])
def test_a_warmup_never_takes_more_than_half_of_a_short_training(schedule):
    assert max(rates(schedule(optimizer(), steps=4, warmup_steps=100), 4)) == 2.0


def test_updates_are_counted_with_what_is_left_of_each_epoch():
    assert [update_count(3, 5, steps) for steps in (1, 2, 5, 9)] == [15, 9, 3, 3]


@pytest.mark.parametrize("schedule", [warmup_cosine, warmup_polynomial])
def test_a_resumed_schedule_goes_on(schedule):
    whole = rates(schedule(optimizer(), steps=12, warmup_steps=3), 12)
    stopped = schedule(optimizer(), steps=12, warmup_steps=3)
    rates(stopped, 5)
    state = pickle.loads(pickle.dumps((stopped.state_dict(), stopped.optimizer.state_dict())))
    resumed = schedule(optimizer(), steps=12, warmup_steps=3)
    resumed.load_state_dict(state[0])
    resumed.optimizer.load_state_dict(state[1])
    follow(resumed, 5)
    assert rates(resumed, 7) == whole[5:]


def test_a_schedule_resumed_with_other_steps_an_epoch_keeps_its_course():
    """Three epochs of four updates, resumed after the first as epochs of two."""
    stopped = warmup_cosine(optimizer(), steps=12, warmup_steps=0)
    rates(stopped, 4)
    resumed = warmup_cosine(optimizer(), steps=6, warmup_steps=0)
    resumed.load_state_dict(stopped.state_dict())
    follow(resumed, 2)
    assert resumed.get_last_lr() == pytest.approx([1 + math.cos(math.pi / 3)])
    assert rates(resumed, 4) == pytest.approx([1 + math.cos(math.pi * done / 6) for done in range(2, 6)])
