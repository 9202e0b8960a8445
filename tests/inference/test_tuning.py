import shutil

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.inference.tuning import (
    Runner,
    Tuning,
    blend_device,
    limit_gpu_memory,
    middle,
    probed_batch_size,
    release,
    slab_mb,
)


class Clock:
    """Time that passes only where a test says so."""

    seconds = 0.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("medseg.inference.tuning._now", lambda device: made.seconds)
    return made


class Sleeper(nn.Module):
    """Takes the seconds that its layout is given, and more in its first two calls."""

    def __init__(self, contiguous: float, channels_last: float, clock: Clock | None = None) -> None:
        super().__init__()
        self.clock = clock or Clock()
        self.conv = nn.Conv3d(2, 3, 3, padding=1)
        self.seconds = {True: contiguous, False: channels_last}
        self.seen: list[bool] = []

    def forward(self, windows: Tensor) -> Tensor:
        plain = windows.is_contiguous()
        assert self.conv.weight.is_contiguous() == plain
        self.seen.append(plain)
        self.clock.seconds += self.seconds[plain] + (1 if self.seen.count(plain) == 1 else 0)
        return self.conv(windows)


@pytest.mark.parametrize(("seconds", "best"), [((0.03, 0.005), "channels_last"), ((0.005, 0.03), "contiguous")])
def test_the_layout_of_the_first_windows_that_is_faster_is_kept(
    seconds: tuple[float, float], best: str, clock: Clock
) -> None:
    network, windows = Sleeper(*seconds, clock), torch.randn(1, 2, 6, 7, 8)
    expected = network(windows)
    runner = Runner(network)
    network.seen.clear()
    for _ in range(3):
        torch.testing.assert_close(runner(windows), expected)
    assert network.seen[:4] == [True, False, True, False]  # once to warm up, and as the gain is clear once to time
    assert network.seen[4:] == [best == "contiguous"] * 3
    assert runner.layout == best


def test_a_small_gain_is_timed_again_and_does_not_change_the_layout(clock: Clock) -> None:
    network = Sleeper(0.0200, 0.0198, clock)
    runner = Runner(network)
    runner(torch.randn(1, 2, 4, 4, 4))
    assert network.seen == [True, False] * 3 + [True]
    assert runner.layout == "contiguous"


def test_layouts_are_timed_on_the_middle_of_large_windows(clock: Clock) -> None:
    sizes: list[tuple[int, ...]] = []

    class Watching(Sleeper):
        def forward(self, windows: Tensor) -> Tensor:
            sizes.append(tuple(windows.shape))
            return super().forward(windows)

    windows = torch.randn(2, 2, 64, 9, 70)
    assert torch.equal(middle(windows), windows[:, :, 16:48, :, 17:52])
    Runner(Watching(0.03, 0.005, clock))(windows)
    assert sizes == [(2, 2, 32, 9, 35)] * 4 + [(2, 2, 64, 9, 70)]


@pytest.mark.parametrize("error", [RuntimeError, ValueError, AssertionError])
def test_a_network_of_one_size_is_timed_on_whole_windows(error: type[Exception], clock: Clock) -> None:
    class OneSize(Sleeper):
        def forward(self, windows: Tensor) -> Tensor:
            if windows.shape[2:] != (64, 8, 8):
                raise error("not the size of the window")
            return super().forward(windows)

    runner = Runner(OneSize(0.03, 0.005, clock))
    assert runner(torch.randn(1, 2, 64, 8, 8)).shape[2:] == (64, 8, 8)
    assert runner.layout == "channels_last"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_layout_that_is_named_is_taken_at_once(layout: str) -> None:
    network = Sleeper(0, 0)
    Runner(network, layout=layout)(torch.randn(2, 2, 5, 5, 5))
    assert network.seen == [layout == "contiguous"]


def test_a_network_that_does_not_take_a_layout_keeps_the_other() -> None:
    class Viewing(Sleeper):
        def forward(self, windows: Tensor) -> Tensor:
            windows.view(-1)
            return super().forward(windows)

    network = Viewing(0, 0)
    runner, windows = Runner(network), torch.randn(1, 2, 4, 5, 6)
    assert [runner(windows).shape[1] for _ in range(3)] == [3] * 3
    assert runner.layout == "contiguous"


def test_an_error_of_the_network_is_no_matter_of_layout() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        Runner(nn.Conv3d(2, 3, 3))(torch.randn(1, 5, 4, 4, 4))

    class Full(Sleeper):
        def forward(self, windows: Tensor) -> Tensor:
            if not windows.is_contiguous():
                raise torch.OutOfMemoryError("no room")
            return super().forward(windows)

    runner, windows = Runner(Full(0, 0)), torch.randn(1, 2, 4, 4, 4)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):  # the predictor's ladder is for that
        runner(windows)


def test_a_2d_network_has_layouts_too() -> None:
    network, windows = nn.Conv2d(2, 3, 3), torch.randn(2, 2, 8, 9)
    expected = network(windows)
    assert all(
        torch.allclose(Runner(network, layout=each)(windows), expected, atol=1e-6)
        for each in ("contiguous", "channels_last")
    )


@pytest.mark.parametrize(
    ("fixed", "each", "expected"),
    [(20, 0, 16), (0, 4, 1), (10, 30, 4)],  # a window of the last: 40, 35, 32.5 and then 31.25 s, only 4 % less
    ids=["all overhead", "no overhead", "some"],
)
def test_the_batch_is_as_large_as_it_pays(fixed: float, each: float, expected: int, clock: Clock) -> None:
    def forward(windows: Tensor) -> None:
        clock.seconds += fixed + each * len(windows)

    assert probed_batch_size(forward, torch.zeros(1, 1, 8, 8)) == expected


def test_a_batch_that_does_not_fit_is_not_taken(clock: Clock) -> None:
    def forward(windows: Tensor) -> None:
        if len(windows) > 4:
            raise torch.OutOfMemoryError("no room")
        clock.seconds += 1

    assert probed_batch_size(forward, torch.zeros(1, 1, 8, 8)) == 4
    assert probed_batch_size(forward, torch.zeros(1, 1, 8, 8), start=4) == 4


def test_large_windows_are_not_tried_in_batches_on_a_cpu() -> None:
    def forward(windows: Tensor) -> None:
        raise AssertionError("no window should be spent on it")

    assert probed_batch_size(forward, torch.zeros(1, 1, 96, 96, 96), start=2) == 2


def test_memory_of_a_slab_is_that_of_its_sums_and_weights() -> None:
    assert slab_mb((273, 273, 400), (96, 96, 96), 14, 2) == 15 * 273 * 273 * 96 * 4 / 2**20
    assert slab_mb((10, 273, 400), (96, 96, 96), 3, 0) == 4 * 96 * 273 * 400 * 4 / 2**20


@pytest.mark.parametrize(
    ("tuning", "device", "needed_mb", "expected"),
    [
        (Tuning(), "cpu", 1e6, "cpu"),
        (Tuning(blend_on="cpu"), "cuda:1", 1, "cpu"),
        (Tuning(blend_on="device"), "cuda:1", 1e6, "cuda:1"),
        (Tuning(), "cuda:1", 400, "cuda:1"),  # 1000 MB are free
        (Tuning(), "cuda:1", 600, "cpu"),
        (Tuning(gpu_memory_gb=2), "cuda:1", 900, "cuda:1"),
        (Tuning(gpu_memory_gb=0.5), "cuda:1", 400, "cpu"),
    ],
)
def test_windows_are_blended_where_the_sums_find_room(
    tuning: Tuning, device: str, needed_mb: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 * 2**20, 8000 * 2**20))
    assert blend_device(tuning, device, needed_mb) == expected


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_network_answers_the_same() -> None:
    network, windows = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU()).eval(), torch.randn(1, 1, 8, 9, 7)
    with torch.inference_mode():
        runner = Runner(network, compile=True)
        assert runner.layout == "contiguous"
        torch.testing.assert_close(runner(windows), network(windows))


def test_tuning_leaves_the_choices_to_a_probe() -> None:
    assert (Tuning().batch_size, Tuning().layout, Tuning().compile) == (None, "auto", False)
    release("cpu")


class FakeGpu:
    total_memory = 8_000_000_000


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, object]]:
    """What has been asked of two GPUs of 8 GB, of which the second is in use."""
    asked: list[tuple[float, object]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: FakeGpu())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: asked.append(limit))
    return asked


@pytest.mark.parametrize(("device", "number"), [("cuda", 1), ("cuda:0", 0)])
def test_a_limit_is_a_share_of_the_gpu_by_its_number(
    limits: list[tuple[float, object]], device: str, number: int
) -> None:
    limit_gpu_memory(2, device)
    assert limits == [(0.25, number)]  # torch refuses "cuda" there


@pytest.mark.parametrize("gigabytes", [0, -1, 8.5])
def test_a_limit_beyond_the_gpu_is_refused(limits: list[tuple[float, object]], gigabytes: float) -> None:
    with pytest.raises(ConfigError, match=r"--gpu-memory: is .*; give GB above 0 and up to the 8 of cuda"):
        limit_gpu_memory(gigabytes, "cuda")
    assert limits == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_limit_of_gpu_memory_is_kept() -> None:
    limit_gpu_memory(1.0, "cuda:0")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2 * 10**9, dtype=torch.uint8, device="cuda:0")
