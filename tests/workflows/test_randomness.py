import random
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad, RandAffined, RandGaussianNoised, RandSpatialCropSamplesd

from medseg.data.cache import CachedCases
from workflows.randomness import EpochSampler, SeededSamples, SeedEpochs, spread_evenly

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


def batches_of_kinds(kinds: str, batch_size: int, *, epoch: int = 1) -> list[str]:
    sampler = EpochSampler(kinds, seed=7, batch_size=batch_size, kinds=kinds)
    sampler.epoch = epoch
    dealt = [index for index, _ in sampler]
    assert sorted(dealt) == list(range(len(kinds)))
    return ["".join(kinds[index] for index in dealt[at : at + batch_size]) for at in range(0, len(dealt), batch_size)]


def test_every_batch_has_its_share_of_each_kind() -> None:
    for epoch in range(1, 20):
        assert all(set(batch) == {"t", "l"} for batch in batches_of_kinds(8 * "t" + 8 * "l", 2, epoch=epoch))
        assert all(batch.count("l") == 1 for batch in batches_of_kinds(9 * "t" + 3 * "l", 4, epoch=epoch))
        # shares that do not come out even: off by one and no more
        assert {batch.count("l") for batch in batches_of_kinds(7 * "t" + 5 * "l", 4, epoch=epoch)} <= {1, 2}


def test_kinds_leave_the_order_within_each_of_them_to_chance() -> None:
    order = np.random.default_rng(0).permutation(12).tolist()
    kinds = [index % 3 for index in range(12)]
    spread = spread_evenly(order, kinds, np.random.RandomState(0))
    for kind in range(3):
        assert [index for index in spread if index % 3 == kind] == [index for index in order if index % 3 == kind]
    firsts = {batches_of_kinds("ttll", 1, epoch=epoch)[0] for epoch in range(1, 20)}
    assert firsts == {"t", "l"}  # neither kind always comes first


def test_samples_of_one_kind_are_dealt_as_without() -> None:
    assert list(EpochSampler(range(9), seed=2, kinds=9 * "t")) == list(EpochSampler(range(9), seed=2))


def test_kinds_are_one_a_sample() -> None:
    with pytest.raises(ValueError, match="there are 2 kinds for 3 samples; give one a sample"):
        EpochSampler(range(3), seed=0, kinds="tl")


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


def masks_of_dropout(first, last, *, num_workers):
    """What dropout leaves of ones in each step of the last epoch."""
    dataset = [torch.ones(8)] * 4
    sampler, dropout, found = EpochSampler(dataset, seed=5), torch.nn.Dropout(), {}
    samples = DataLoader(dataset, batch_size=2, num_workers=num_workers, persistent_workers=num_workers > 0)

    def step(engine, batch):
        found.setdefault(engine.state.epoch, []).append(dropout(batch))

    trainer = Engine(step)
    SeedEpochs(sampler).attach(trainer)
    trainer.state.epoch, trainer.state.iteration, trainer.state.epoch_length = first - 1, 2 * (first - 1), 2
    trainer.run(samples, max_epochs=last)
    return torch.stack(found[last])


def test_dropout_is_the_same_after_a_resume_and_with_any_number_of_workers():
    whole = masks_of_dropout(1, 2, num_workers=0)
    assert not torch.equal(*whole)  # each step draws its own
    for first, num_workers in ((2, 0), (1, 2), (2, 2)):
        assert torch.equal(masks_of_dropout(first, 2, num_workers=num_workers), whole)
