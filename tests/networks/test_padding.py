import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medseg.errors import ConfigError
from medseg.networks.padding import PadToMultiple


class Picky(nn.Module):
    """Halves and doubles the grid; a stand-in for a network that takes even sizes only."""

    def __init__(self, spatial_dims, multiple=4):
        super().__init__()
        self.conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims](1, 3, 1)
        self.multiple = multiple

    def forward(self, image):
        if any(length % self.multiple for length in image.shape[2:]):
            raise ValueError("size")
        return self.conv(image)


@pytest.mark.parametrize("size", [(7, 5), (8, 4), (7, 5, 4), (1, 9, 6)])
def test_any_size_is_padded_and_cropped_again(size):
    inner = Picky(len(size))
    image = torch.randn(2, 1, *size)
    torch.testing.assert_close(PadToMultiple(inner, 4)(image), inner.conv(image))


def test_the_padding_repeats_the_last_voxel():
    seen = []

    class Spy(nn.Module):
        def forward(self, image):
            seen.append(image)
            return image

    image = torch.arange(6.0).view(1, 1, 2, 3)
    PadToMultiple(Spy(), [2, 4])(image)
    assert torch.equal(seen[0], F.pad(image, (0, 1, 0, 0), mode="replicate"))
    assert seen[0][0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5]]


def test_a_size_that_fits_is_left_alone():
    image = torch.randn(1, 1, 8, 4)
    assert PadToMultiple(nn.Identity(), 4)(image) is image


def test_a_multiple_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"multiple is 0; use whole numbers, 1 or more"):
        PadToMultiple(nn.Identity(), 0)


class TwoHeads(nn.Module):
    def __init__(self, join):
        super().__init__()
        self.join = join

    def forward(self, image):
        return self.join([image, image])


@pytest.mark.parametrize("size", [(8, 4), (7, 5)])
@pytest.mark.parametrize("join", [list, tuple, lambda heads: torch.stack(heads, 1)], ids=["list", "tuple", "stacked"])
def test_a_network_of_several_heads_is_refused(join, size):
    with pytest.raises(ConfigError, match=r"PadToMultiple: TwoHeads gives several heads.*set deep_supervision=False"):
        PadToMultiple(TwoHeads(join), 4)(torch.randn(1, 1, *size))


def test_one_multiple_an_axis_must_fit_the_image():
    with pytest.raises(ConfigError, match=r"multiple has \[2, 4\] for 3 axes"):
        PadToMultiple(nn.Identity(), [2, 4])(torch.zeros(1, 1, 3, 3, 3))
