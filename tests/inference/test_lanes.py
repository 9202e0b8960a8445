"""Cases side by side in the network: how many, what they take, and that none meets another."""

import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from small_bundle import make_bundle, write_scan
from torch import nn

from medseg.data.phantom import phantom_case
from medseg.inference import batch
from medseg.inference.agreement import Agreement
from medseg.inference.cases import cases_in
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


def at_once(function, arguments) -> None:
    """Call `function` with each argument, in threads of their own, and wait for all."""
    threads = [threading.Thread(target=function, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Chain(nn.Module):
    """Holds a map and makes the next one of it, beside the window that it was given."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv3d(1, 1, 1, bias=False) for _ in range(4))

    def forward(self, windows):
        for part in self.parts:
            windows = part(windows)
        return windows


def test_memory_of_a_forward_pass_counts_what_lives_at_a_time():
    one_map = 16**3 * 4 / MB
    assert forward_mb(Chain().eval(), (1, 1, 16, 16, 16)) == pytest.approx(3 * one_map)  # the window, a map, the next
    assert forward_mb(Chain().eval(), (3, 1, 16, 16, 16)) == pytest.approx(9 * one_map)


def test_logits_of_mirrored_windows_and_folds_are_counted():
    network = nn.Conv3d(1, 8, 1)
    window, shape, one_map = SlidingWindow((16, 16, 16), mirror_axes=(0,)), (1, 1, 16, 16, 16), 16**3 * 4 / MB
    # the window, and 8 channels each of the sum, of a mirrored window's logits, and of these mirrored back
    assert forward_mb(partial(window.window_logits, network=network), shape) == pytest.approx(25 * one_map)
    # the sum, a fold's logits, and the sum with these
    assert forward_mb(FoldMean([network] * 3), shape) == pytest.approx(25 * one_map)


def test_functions_count_as_modules_do():
    one_map = 16**3 * 4 / MB
    assert forward_mb(lambda windows: torch.cat([windows, windows]).unbind(), (1, 1, 16, 16, 16)) == 3 * one_map


def test_a_network_of_one_size_is_run_whole_and_one_that_fails_is_unknown():
    class Picky(Chain):
        def forward(self, windows):
            if windows.shape[-1] != 16:
                raise RuntimeError("16 voxels or nothing")
            return super().forward(windows)

    assert forward_mb(Picky().eval(), (1, 1, 16, 16, 16)) == pytest.approx(3 * 16**3 * 4 / MB)
    assert forward_mb(Picky().eval(), (1, 1, 8, 8, 8)) is None


def test_two_lanes_where_memory_suffices_and_one_elsewhere(two_threads):
    found = predictor(inferer=SlidingWindow((48, 48, 48)))
    count, taken = lanes(found, channels=1, most=2, budget_mb=1000)
    assert count == 2
    assert taken == pytest.approx(2 * 1.6 * 3 * 48**3 * 4 / MB)  # a window and two channels of logits
    assert lanes(found, channels=1, most=2, budget_mb=2 * taken) == (2, taken)
    assert lanes(found, channels=1, most=2, budget_mb=1.9 * taken) == (1, 0.0)
    assert lanes(found, channels=1, most=1, budget_mb=1000) == (1, 0.0)
    assert lanes(found, channels=2, most=2, budget_mb=1000) == (1, 0.0)  # the network takes one
    assert lanes(predictor(compile=True), channels=1, most=2, budget_mb=1000) == (1, 0.0)
    slices = predictor(nn.Conv2d(1, 2, 3), inferer=SliceBySlice(SlidingWindow((32, 32))))
    assert lanes(slices, channels=1, most=2, budget_mb=1000) == (1, 0.0)
    assert lanes(object(), channels=1, most=2, budget_mb=1000) == (1, 0.0)
    for odd in (1, 3):  # of three a third would be idle
        torch.set_num_threads(odd)
        assert lanes(found, channels=1, most=2, budget_mb=1000) == (1, 0.0)


def test_small_windows_are_counted_in_the_largest_batch_that_may_be_chosen(two_threads):
    one = 2 * 1.6 * 3 * 32**3 * 4 / MB
    assert lanes(predictor(), channels=1, most=2, budget_mb=1000) == (2, pytest.approx(16 * one))
    assert lanes(predictor(batch_size=3), channels=1, most=2, budget_mb=1000) == (2, pytest.approx(3 * one))
    assert lanes(predictor(), channels=1, most=2, budget_mb=20 * one) == (1, 0.0)


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

    at_once(answer, range(len(scans)))
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

    at_once(run, heard)
    assert {value: each.answers for value, each in heard.items()} == {1.0: [1.0, 1.0], 2.0: [2.0, 2.0]}


def test_a_layout_is_timed_once_however_many_ask():
    timed = []

    class Counted(Runner):
        def _fastest(self, windows):
            timed.append(windows.shape)
            time.sleep(0.1)  # the others are there by now
            return "channels_last"

    runner = Counted(nn.Conv3d(1, 2, 3).eval())
    windows = torch.zeros(1, 1, 8, 8, 8)
    at_once(runner.settled, [windows] * 8)
    assert len(timed) == 1
    assert runner.network.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_batch_size_is_probed_once_however_many_cases_arrive():
    probed = []

    class Counted(Predictor):
        def _probed_batch_size(self, window, image):
            probed.append(image.shape)
            time.sleep(0.1)
            return 2

    found = Counted(
        nn.Conv3d(1, 2, 3, padding=1),
        scan_to_grid=ScanToGrid(spacing_mm=(4, 4, 4), intensity=Window(-150, 250)),
        inferer=SlidingWindow((8, 8, 8)),
        tuning=Tuning(layout="contiguous"),
    )
    prepared = found.prepare([Scan(np.zeros((16, 16, 16), np.int16), np.diag([4.0, 4.0, 4.0, 1.0]))])
    at_once(found.answer, [prepared] * 4)
    assert len(probed) == 1


def test_a_folder_asks_for_two_lanes_until_a_worker_has_died(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "WorkerProcess", lambda setup: setup.lanes)
    bundle = make_bundle(tmp_path / "bundle")

    def asked(count):
        for number in range(count):
            write_scan(tmp_path / f"scans{count}" / f"{number}.nii.gz", seed=number)
        cases = cases_in(tmp_path / f"scans{count}", channels=["ct"])
        run = batch.FolderRun(cases, tmp_path / f"out{count}", bundle, options=batch.Options(isolate=True))
        return [run._make_worker(), run._make_worker()]

    assert asked(4) == [2, 1]
    assert asked(3) == [1, 1]
