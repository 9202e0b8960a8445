import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SliceInferer, sliding_window_inference
from torch import nn

from medseg.errors import ConfigError
from medseg.inference.sliding_window import (
    SliceBySlice,
    SlidingWindow,
    pad_to,
    starts,
    summed_weights,
    window_slices,
    window_weights,
)

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
PATCH = (16, 12, 10)


def bordered(spatial_dims, in_channels=2):
    """A network whose logits depend on where its window ends."""
    return CONV[spatial_dims](in_channels, 3, 5, padding=2).eval()


@pytest.mark.parametrize("size", [(33, 29, 20), (16, 12, 10), (17, 40, 11)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.3, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@torch.inference_mode()
def test_logits_are_those_of_monai(size, overlap, blend, spatial_dims):
    size, patch, network = size[:spatial_dims], PATCH[:spatial_dims], bordered(spatial_dims)
    if overlap > 0.9 and spatial_dims == 3:
        size = tuple(min(side, limit + 4) for side, limit in zip(size, patch, strict=True))  # or thousands of windows
    image = torch.randn(2, 2, *size)
    logits = SlidingWindow(patch, overlap=overlap, blend=blend, batch_size=3)(image, network)
    # MONAI weighs its predictor's output in place
    expected = sliding_window_inference(image, patch, 4, lambda window: network(window).clone(), overlap, blend)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@torch.inference_mode()
def test_a_small_image_is_that_of_monai_padded_with_its_lowest_value(spatial_dims, blend):
    image, network = torch.randn(1, 1, *(11, 30, 5)[:spatial_dims]) - 3, bordered(spatial_dims, in_channels=1)
    logits = SlidingWindow(PATCH[:spatial_dims], blend=blend)(image, network)
    expected = sliding_window_inference(
        image, PATCH[:spatial_dims], 1, lambda window: network(window).clone(), 0.5, blend, cval=image.min().item()
    )
    assert logits.shape == (1, 3, *(11, 30, 5)[:spatial_dims])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(33, 29, 20), (5, 30, 3)])
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@torch.inference_mode()
def test_a_voxelwise_network_gives_one_full_pass(size, blend, batch_size, spatial_dims):
    image, network = torch.randn(2, 2, *size[:spatial_dims]), CONV[spatial_dims](2, 4, 1)
    logits = SlidingWindow(PATCH[:spatial_dims], blend=blend, batch_size=batch_size)(image, network)
    torch.testing.assert_close(logits, network(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("overlap", [0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("patch", [1, 2, 7, 10, 96])
def test_windows_start_where_those_of_monai_do(patch, overlap):
    for size in (patch, patch + 1, 2 * patch, 2 * patch + 3, 5 * patch - 1):
        step = patch if size == patch else max(int(patch * (1 - overlap)), 1)
        expected = [window[0].start for window in dense_patch_slices((size,), (patch,), (step,))]
        assert starts(size, patch, overlap) == expected


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("patch_size", [(16, 12, 10), (1, 5), (33, 2)])
def test_weights_are_those_of_monai(patch_size, blend):
    torch.testing.assert_close(window_weights(patch_size, blend), compute_importance_map(patch_size, blend))


def test_summed_weights_count_the_windows_over_each_voxel():
    windows = window_slices((5, 3), (3, 3), 0.5)  # steps of one voxel, starts 0, 1, 2
    total = summed_weights((5, 3), windows, torch.ones(3, 3))
    assert total[:, 0].tolist() == [1, 2, 3, 2, 1]


def test_padding_lies_on_both_sides_and_is_lowest_of_each_sample_and_channel():
    image = torch.arange(2.0 * 2 * 3 * 4).view(2, 2, 3, 4)
    padded, inside = pad_to(image, (6, 2))
    assert padded.shape == (2, 2, 6, 4)
    assert torch.equal(padded[inside], image)
    # three rows are missing: one before, two after; channel c of sample b starts at 12 * (2 b + c)
    assert padded[:, :, [0, 4, 5]].flatten(2).unique(dim=2).flatten().tolist() == [0, 12, 24, 36]


def test_a_large_image_is_not_copied():
    image = torch.randn(1, 1, 8, 9)
    assert pad_to(image, (8, 4))[0] is image


@torch.inference_mode()
def test_the_networks_output_is_left_alone():
    given = torch.randn(1, 3, *PATCH)
    kept = given.clone()
    SlidingWindow(PATCH)(torch.randn(1, 1, 33, 29, 20), lambda window: given)
    assert torch.equal(given, kept)


@torch.inference_mode()
def test_the_image_is_left_alone():
    image = torch.randn(1, 3, *PATCH)
    kept = image.clone()
    SlidingWindow(PATCH)(image, lambda window: window)
    assert torch.equal(image, kept)


def test_a_forward_pass_sees_batch_size_windows():
    sizes = []

    def network(windows):
        sizes.append(len(windows))
        return windows

    SlidingWindow((4, 4), overlap=0, batch_size=4)(torch.randn(2, 1, 12, 4), network)  # 2 images of 3 windows
    assert sizes == [4, 2]


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_that_of_the_network_and_logits_stay_float32(precision, dtype):
    seen = []

    def network(windows):
        logits = layer(windows)
        seen.append(logits.dtype)
        return logits

    layer, image = nn.Conv2d(1, 2, 1), torch.randn(1, 1, 9, 8)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):  # an evaluator's own setting must not win
        logits = SlidingWindow((6, 6), precision=precision)(image, network)
    assert set(seen) == {dtype}
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, layer(image).detach(), atol=0.02 if dtype == torch.bfloat16 else 1e-6, rtol=0.01)


def test_further_arguments_reach_the_network():
    image = torch.ones(1, 1, 6, 6)
    logits = SlidingWindow((4, 4))(image, lambda windows, factor, *, shift: windows * factor + shift, 2, shift=0.5)
    torch.testing.assert_close(logits, torch.full_like(image, 2.5))


def test_a_meta_tensor_gives_the_same_logits_as_a_plain_one():
    image, network = torch.randn(1, 2, 20, 13, 11), bordered(3)
    with torch.inference_mode():
        logits = SlidingWindow(PATCH)(MetaTensor(image, affine=np.diag([-1, 2, 3, 1])), network)
        assert type(logits) is torch.Tensor
        assert torch.equal(logits, SlidingWindow(PATCH)(image, network))


@pytest.mark.parametrize("batch", [1, 2])
@torch.inference_mode()
def test_slice_by_slice_is_the_2d_network_on_each_slice(batch):
    image, network = torch.randn(batch, 2, 21, 17, 5), bordered(2)
    inferer = SlidingWindow((16, 12), batch_size=4)
    logits = SliceBySlice(inferer)(image, network)
    assert logits.shape == (batch, 3, 21, 17, 5)
    for index in range(5):
        torch.testing.assert_close(logits[..., index], inferer(image[..., index], network))


@torch.inference_mode()
def test_slice_by_slice_is_that_of_monai():
    image, network = torch.randn(1, 2, 21, 17, 5), bordered(2)
    theirs = SliceInferer(spatial_dim=2, roi_size=(16, 12), overlap=0.5, mode="constant", sw_batch_size=2)
    logits = SliceBySlice(SlidingWindow((16, 12), blend="constant"))(image, network)
    expected = theirs(image, lambda windows: network(windows).clone())
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 1}, "overlap is 1; use a share from 0 to less than 1"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"patch_size": (8, 0)}, r"patch_size is \[8, 0\], batch_size 1; use 1 or more"),
        ({"batch_size": 0}, r"patch_size is \[8, 8\], batch_size 0; use 1 or more"),
        ({"blend": "mean"}, "blend is 'mean'; use 'gaussian' or 'constant'"),
        ({"precision": "float16"}, "precision is 'float16'; use 'float32' or 'bfloat16'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=f"SlidingWindow: {message}"):
        SlidingWindow(**{"patch_size": (8, 8), **settings})


@pytest.mark.parametrize("size", [(1, 1, 9, 9, 9), (1, 9, 9), (0, 1, 9, 9)])
def test_an_image_of_other_dimensions_is_refused(size):
    with pytest.raises(ValueError, match=r"image is \[.*\] for a patch of \[8, 8\]; expected \(B, C, \*spatial\)"):
        SlidingWindow((8, 8))(torch.zeros(size), nn.Identity())


def test_a_network_that_shrinks_its_window_is_refused():
    with pytest.raises(
        ValueError, match=r"answered \[1, 1, 1, 1\] to a window \[1, 1, 8, 8\]; the grids must be equal"
    ):
        SlidingWindow((8, 8))(torch.zeros(1, 1, 9, 9), nn.AdaptiveAvgPool2d(1))


def test_a_training_network_is_refused():
    with pytest.raises(ValueError, match=r"answered with a list, not logits; put it in eval\(\) mode"):
        SlidingWindow((8, 8))(torch.zeros(1, 1, 9, 9), lambda windows: [windows])


def test_slice_by_slice_refuses_a_slice():
    with pytest.raises(ValueError, match=r"image is \[1, 1, 9, 9\]; slice by slice needs a volume \(B, C, X, Y, Z\)"):
        SliceBySlice(SlidingWindow((8, 8)))(torch.zeros(1, 1, 9, 9), nn.Identity())
