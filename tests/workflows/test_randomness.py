import random
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad, RandAffined, RandGaussianNoised, RandSpatialCropSamplesd

from medseg.data.cache import CachedCases
from workflows.randomness import EpochSampler, SeededSamples, SeedEpochs

CASES = 5


def pairs(*, seed: int, epoch: int) -> list[tuple[int, int]]:
    sampler = EpochSampler(range(CASES), seed=seed)
    sampler.epoch = epoch
    return list(sampler)


def patches(folder: Path, epochs: list[int], *, num_workers: int) -> dict[int, list[torch.Tensor]]:
    """What a loader gives in each of these epochs, from MONAI's own random transforms."""
    torch.manual_seed(random.randrange(10**6))  # whatever came before must not matter
    transform = Compose(
        [
            Lambdad("image", torch.load),
            RandSpatialCropSamplesd("image", (5, 4, 3), num_samples=2, random_size=False),
            RandAffined("image", prob=0.5, rotate_range=[0.3] * 3, padding_mode="border"),
            RandGaussianNoised("image", prob=0.5),
        ]
    )
    data = [{"image": str(folder / f"{case}.pt")} for case in range(CASES)]
    for case, sample in enumerate(data):
        torch.save(torch.rand(1, 7, 6, 5, generator=torch.Generator().manual_seed(case)), sample["image"])
    dataset = CachedCases(data, transform, cache="memory")
    sampler = EpochSampler(dataset, seed=3)
    loader = DataLoader(
        SeededSamples(dataset),
        sampler=sampler,
        batch_size=2,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    found = {}
    for epoch in epochs:
        sampler.epoch = epoch
        found[epoch] = [torch.as_tensor(batch["image"]) for batch in loader]
    return found


def test_an_epoch_deals_each_sample_once_in_an_order_of_its_own():
    orders = [[index for index, _ in pairs(seed=0, epoch=epoch)] for epoch in range(1, 30)]
    assert all(sorted(order) == list(range(CASES)) for order in orders)
    assert len({tuple(order) for order in orders}) > 20  # of 120 possible ones


def test_order_and_seeds_follow_from_seed_and_epoch():
    assert pairs(seed=1, epoch=2) == pairs(seed=1, epoch=2)
    assert pairs(seed=1, epoch=2) != pairs(seed=2, epoch=1)
    seeds = [seed for epoch in range(1, 30) for _, seed in pairs(seed=1, epoch=epoch)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) > 2**31


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_any_seed_will_do(seed):
    assert len(pairs(seed=seed, epoch=1)) == CASES


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_an_epoch_is_the_same_whatever_came_before_and_with_any_number_of_workers(num_workers, tmp_path):
    whole = patches(tmp_path, [1, 2, 3], num_workers=0)
    resumed = patches(tmp_path, [3], num_workers=num_workers)
    assert all(torch.equal(*both) for both in zip(whole[3], resumed[3], strict=True))
    together = patches(tmp_path, [1, 2, 3], num_workers=num_workers)
    assert all(torch.equal(*both) for epoch in whole for both in zip(whole[epoch], together[epoch], strict=True))
    assert not torch.equal(whole[1][0], whole[2][0])


def draws_of_epochs(*, first: int, last: int, seed: int) -> list[tuple[float, ...]]:
    sampler, drawn = EpochSampler(range(3), seed=seed), []

    def draw(engine, batch):
        drawn.append((engine.state.epoch, sampler.epoch, random.random(), np.random.rand(), float(torch.rand(()))))

    trainer = Engine(draw)
    SeedEpochs(sampler).attach(trainer)
    trainer.state.max_epochs, trainer.state.epoch, trainer.state.epoch_length = last, first - 1, 2
    trainer.run(range(2), max_epochs=last)
    return drawn


def test_each_epoch_begins_with_states_of_its_own():
    whole = draws_of_epochs(first=1, last=3, seed=0)
    assert draws_of_epochs(first=3, last=3, seed=0) == whole[4:]
    assert [(epoch, dealt) for epoch, dealt, *_ in whole] == [(1, 1), (1, 1), (2, 2), (2, 2), (3, 3), (3, 3)]
    assert len({draw for _, _, *draws in whole for draw in draws}) == 18
    assert draws_of_epochs(first=1, last=3, seed=1) != whole
