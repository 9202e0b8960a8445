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
    layer_weights,
    pad_to,
    starts,
    summed_weights,
    window_layers,
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
    whole = [slice(0, 5), slice(0, 3)]
    layers = window_layers((5, 3), (3, 3), 0.5, whole, 0)  # steps of one voxel, starts 0, 1, 2
    assert [len(layer) for layer in layers] == [1, 1, 1]
    summed = summed_weights(layer_weights(layers[0], torch.ones(3, 3), whole, 0), [0, 1, 2], 0, 0, 5)
    assert summed.tolist() == [[1] * 3, [2] * 3, [3] * 3, [2] * 3, [1] * 3]
    part = summed_weights(layer_weights(layers[0], torch.ones(3, 3), whole, 0), [0, 1, 2], 0, 1, 3)
    assert part.tolist() == [[2] * 3, [3] * 3]


def test_padding_lies_on_both_sides_and_is_lowest_of_each_sample_and_channel():
    image = torch.arange(2.0 * 2 * 3 * 4).view(2, 2, 3, 4)
    padded, inside = pad_to(image, (6, 2))
    assert padded.shape == (2, 2, 6, 4)
    assert torch.equal(padded[(..., *inside)], image)
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


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
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
    torch.testing.assert_close(logits, layer(image).detach(), atol=1e-6 if dtype == torch.float32 else 0.02, rtol=0.01)


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


def put_together(slabs, axis):
    """What slabs hand on, and where they say it lies; copied, for the next slab reuses the memory."""
    sides, parts = zip(*[(side, slab.clone()) for side, slab in slabs], strict=True)
    return list(sides), torch.cat(parts, dim=axis + 2)


@pytest.mark.parametrize("size", [(33, 29, 20), (17, 40, 11), (16, 12, 10), (5, 30, 3)])
@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("axis", [0, 1, 2])
@torch.inference_mode()
def test_slabs_along_any_axis_are_the_logits_in_order(size, overlap, batch_size, axis):
    image, network = torch.randn(1, 2, *size), bordered(3)
    inferer = SlidingWindow(PATCH, overlap=overlap, batch_size=batch_size)
    sides, logits = put_together(inferer.slabs(image, network, axis=axis), axis)
    assert [side.start for side in sides] == [0, *(side.stop for side in sides[:-1])]
    assert sides[-1].stop == size[axis]
    torch.testing.assert_close(logits, inferer(image, network), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(33, 29, 20), (5, 30, 3)])
@pytest.mark.parametrize(("axis", "across"), [(0, 2), (2, 0)])
@torch.inference_mode()
def test_strips_have_the_logits_of_the_whole_from_the_windows_that_reach_them(size, axis, across):
    image, network, seen = torch.randn(1, 2, *size), bordered(3), []

    def counted(windows):
        seen.append(len(windows))
        return network(windows)

    inferer = SlidingWindow(PATCH, overlap=0.25)
    whole = inferer(image, counted)
    all_windows = len(seen)
    for within in (slice(0, 2), slice(1, size[across])):
        seen.clear()
        _, strip = put_together(inferer.slabs(image, counted, axis=axis, across=across, within=within), axis)
        torch.testing.assert_close(
            strip, whole.narrow(across + 2, within.start, within.stop - within.start), atol=1e-5, rtol=0
        )
        if min(size) > 10 and within.start == 0:
            assert len(seen) < all_windows


@torch.inference_mode()
def test_slabs_take_the_memory_of_one_patch_along_their_axis():
    image = torch.zeros(1, 1, 12, 60, 6)
    slabs = SlidingWindow((6, 8, 6)).slabs(image, lambda windows: windows.repeat(1, 5, 1, 1, 1), axis=1)
    sizes = {slab.untyped_storage().nbytes() for _, slab in slabs}
    assert sizes == {5 * 12 * 8 * 6 * 4}  # classes, the other axes whole, and float32


def test_slabs_run_along_the_axis_that_needs_less_memory():
    assert SlidingWindow((8, 8, 8)).slab_axis((20, 20, 20)) == 0
    assert SlidingWindow((8, 8, 8)).slab_axis((20, 20, 60)) == 2
    assert SlidingWindow((8, 8, 2)).slab_axis((20, 60, 20)) == 2  # a window is thin there
    assert SlidingWindow((8, 8, 8)).slab_axis((60, 20, 20)) == 0
    assert SliceBySlice(SlidingWindow((8, 8))).slab_axis((60, 20, 20)) == 2


@pytest.mark.parametrize("mirror_axes", [(0,), (1, 2), (2, 0, 1)])
@torch.inference_mode()
def test_mirroring_is_the_mean_over_mirrored_images(mirror_axes):
    image, network = torch.randn(1, 2, 32, 24, 20), bordered(3)  # windows at steps of half a patch mirror each other
    settings = {"patch_size": PATCH, "overlap": 0.5, "batch_size": 2}
    logits = SlidingWindow(**settings, mirror_axes=mirror_axes)(image, network)
    expected, count = torch.zeros_like(logits), 0
    for chosen in np.ndindex(*(2 if axis in mirror_axes else 1 for axis in range(3))):
        dims = [2 + axis for axis in range(3) if chosen[axis]]
        expected += sliding_window_inference(
            image.flip(dims), PATCH, 4, lambda window: network(window).clone(), 0.5, "gaussian"
        ).flip(dims)
        count += 1
    assert count == 2 ** len(mirror_axes)
    torch.testing.assert_close(logits, expected / count, atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
def test_windows_of_an_image_in_main_memory_can_be_seen_by_a_gpu():
    image, network = torch.randn(1, 2, 33, 29, 20), bordered(3)
    expected = SlidingWindow(PATCH)(image, network)
    _, logits = put_together(SlidingWindow(PATCH, batch_size=4).slabs(image, network.cuda(), device="cuda"), 0)
    assert logits.device.type == "cpu"
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)


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
        ({"precision": "float64"}, "precision is 'float64'; use 'float32', 'bfloat16' or 'float16'"),
        ({"mirror_axes": (0, 0)}, r"mirror_axes is \[0, 0\]; name each axis once, from 0 to 1"),
        ({"mirror_axes": (2,)}, r"mirror_axes is \[2\]; name each axis once, from 0 to 1"),
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
