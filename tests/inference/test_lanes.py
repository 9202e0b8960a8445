"""Cases side by side in the network: how many, what they take, and that none meets another."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from medseg.data.phantom import phantom_case
from medseg.inference.agreement import Agreement
from medseg.inference.lanes import forward_mb, lanes
from medseg.inference.mirroring import FoldMean
from medseg.inference.predictor import Predictor
from medseg.inference.sliding_window import SliceBySlice, SlidingWindow
from medseg.inference.tuning import Runner, Tuning
from medseg.networks.unet import UNet
from medseg.preprocessing import ScanToGrid, Window
from medseg.reading import Scan

MB = 2**20


def predictor(network=None, *, inferer=None, **tuning) -> Predictor:
    return Predictor(
        network or nn.Conv3d(1, 2, 3, padding=1),
        scan_to_grid=ScanToGrid(spacing_mm=(4, 4, 4), intensity=Window(-150, 250)),
        inferer=inferer or SlidingWindow((32, 32, 32)),
        tuning=Tuning(**tuning),
    )


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Doubling(nn.Module):
    """Holds its input's double while it makes the next one."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv3d(1, 1, 1, bias=False) for _ in range(4))

    def forward(self, windows):
        for part in self.parts:
            windows = part(windows)
        return windows


def test_memory_of_a_forward_pass_counts_what_lives_at_a_time():
    one_map = 16**3 * 4 / MB
    assert forward_mb(Doubling().eval(), (1, 1, 16, 16, 16)) == pytest.approx(2 * one_map)  # a part's answer and input
    assert forward_mb(Doubling().eval(), (3, 1, 16, 16, 16)) == pytest.approx(6 * one_map)


def test_a_network_of_one_size_is_run_whole_and_one_that_fails_is_unknown():
    class Picky(Doubling):
        def forward(self, windows):
            if windows.shape[-1] != 16:
                raise RuntimeError("16 voxels or nothing")
            return super().forward(windows)

    assert forward_mb(Picky().eval(), (1, 1, 16, 16, 16)) == pytest.approx(2 * 16**3 * 4 / MB)
    assert forward_mb(Picky().eval(), (1, 1, 8, 8, 8)) is None


def test_no_hook_stays():
    network = Doubling().eval()
    forward_mb(network, (1, 1, 16, 16, 16))
    assert not any(module._forward_hooks for module in network.modules())


def test_two_lanes_where_memory_suffices_and_one_elsewhere(two_threads):
    found = predictor()
    count, taken = lanes(found, channels=1, most=2, budget_mb=1000)
    assert count == 2
    assert taken == pytest.approx(2 * 2.5 * 2 * 32**3 * 4 / MB)  # two channels of logits
    assert lanes(found, channels=1, most=2, budget_mb=2 * taken) == (2, taken)
    assert lanes(found, channels=1, most=2, budget_mb=1.9 * taken) == (1, 0.0)
    assert lanes(found, channels=1, most=1, budget_mb=1000) == (1, 0.0)
    assert lanes(found, channels=2, most=2, budget_mb=1000) == (1, 0.0)  # the network takes one
    assert lanes(predictor(compile=True), channels=1, most=2, budget_mb=1000) == (1, 0.0)
    slices = predictor(nn.Conv2d(1, 2, 3), inferer=SliceBySlice(SlidingWindow((32, 32))))
    assert lanes(slices, channels=1, most=2, budget_mb=1000) == (1, 0.0)
    assert lanes(object(), channels=1, most=2, budget_mb=1000) == (1, 0.0)
    torch.set_num_threads(1)
    assert lanes(found, channels=1, most=2, budget_mb=1000) == (1, 0.0)


def test_cases_answered_side_by_side_are_those_answered_alone():
    torch.manual_seed(0)
    network = UNet(3, 1, 3, widths=(4, 8)).eval()
    cases = [phantom_case(seed) for seed in range(4)]
    scans = [Scan(case.images[0], case.affines[0]) for case in cases]
    alone = [predictor(network).answer(predictor(network).prepare([scan])) for scan in scans]
    shared = predictor(network)  # batch size and layout are chosen while all of them arrive
    prepared = [shared.prepare([scan]) for scan in scans]
    together = [None] * len(scans)

    def answer(number):
        together[number] = shared.answer(prepared[number])

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(len(scans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        assert np.mean(one.label != other.label) < 1e-4  # the layouts' sums differ in their order


def test_threads_that_compare_folds_hear_of_their_own_alone():
    both = threading.Barrier(2, timeout=20)

    class Meets(nn.Module):
        def forward(self, windows):
            both.wait()  # each thread is within its forward pass at the same time
            return windows

    class Heard(Agreement):
        def __init__(self):
            self.answers = []

        def answer(self, logits):
            self.answers.append(float(logits.mean()))

        def compare(self):
            pass

    folds = FoldMean([Meets(), Meets()])
    heard = {1.0: Heard(), 2.0: Heard()}

    def run(value):
        with torch.inference_mode(), folds.compared(heard[value]):
            folds(torch.full((1, 1, 4, 4, 4), value))

    threads = [threading.Thread(target=run, args=(value,)) for value in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {value: each.answers for value, each in heard.items()} == {1.0: [1.0, 1.0], 2.0: [2.0, 2.0]}


def test_a_layout_is_timed_once_however_many_ask():
    timed = []

    class Counted(Runner):
        def _fastest(self, windows):
            timed.append(windows.shape)
            return "channels_last"

    runner = Counted(nn.Conv3d(1, 2, 3).eval())
    windows = torch.zeros(1, 1, 8, 8, 8)
    threads = [threading.Thread(target=runner.settled, args=(windows,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(timed) == 1
    assert runner.network.weight.is_contiguous(memory_format=torch.channels_last_3d)
