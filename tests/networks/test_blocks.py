import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medseg.errors import ConfigError
from medseg.networks.blocks import (
    CONV,
    BatchNorm,
    InstanceNorm,
    ResidualBlock,
    average_bins,
    check_counts,
    choose,
    conv_norm,
    conv_norm_act,
    crop_like,
    dropout_layer,
    fit_like,
    per_axis,
    resize_like,
)

SIZE = (7, 5, 4)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_instance_norm_is_per_sample_and_channel(spatial_dims):
    norm = InstanceNorm(3)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, -1.0])
    features = 5 + 2 * torch.randn(2, 3, *SIZE[:spatial_dims])
    out = norm(features).detach().numpy()
    for sample in range(2):
        for channel, (scale, shift) in enumerate([(1.0, 0.5), (2.0, 0.0), (3.0, -1.0)]):
            voxels = features[sample, channel].numpy().astype(np.float64)
            expected = (voxels - voxels.mean()) / np.sqrt(voxels.var() + 1e-5) * scale + shift
            np.testing.assert_allclose(out[sample, channel], expected, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_instance_norm_of_one_voxel_is_over_channels(spatial_dims, training):
    features = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]).view(2, 3, *(1,) * spatial_dims)
    out = InstanceNorm(3).train(training)(features)
    # [1, 2, 6]: mean 3, variance 14/3; [0, 0, 3]: mean 1, variance 2
    first = np.array([-2, -1, 3]) / np.sqrt(14 / 3 + 1e-5)
    second = np.array([-1, -1, 2]) / np.sqrt(2 + 1e-5)
    assert out.shape == features.shape
    np.testing.assert_allclose(out.detach().flatten(1).numpy(), [first, second], atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_batch_norm_is_torch_batch_norm(spatial_dims):
    ours, theirs = BatchNorm(3), {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial_dims](3)
    for _ in range(3):
        features = 4 + 3 * torch.randn(2, 3, *SIZE[:spatial_dims])
        torch.testing.assert_close(ours(features), theirs(features))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(features), theirs.eval()(features))


def test_batch_norm_of_one_value_uses_and_keeps_the_running_statistics():
    norm = BatchNorm(2)
    norm.running_mean, norm.running_var = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 1.0])
    out = norm.train()(torch.tensor([5.0, 1.0]).view(1, 2, 1, 1, 1))
    # (5 - 1) / 2 and (1 + 2) / 1
    torch.testing.assert_close(out.detach().flatten(), torch.tensor([2.0, 3.0]), atol=1e-4, rtol=0)
    assert norm.running_mean.tolist() == [1, -2]
    assert norm.running_var.tolist() == [4, 1]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_batch_norm_trains_compiled_at_one_size_after_another():
    torch._dynamo.reset()
    compiled, plain = torch.compile(BatchNorm(3), backend="eager", fullgraph=True), BatchNorm(3)
    for size in ((9, 5), (8, 6), (11, 4), (1, 1)):
        features = torch.randn(1, 3, *size)
        torch.testing.assert_close(compiled(features), plain(features))


@pytest.mark.parametrize("block", [conv_norm_act, ResidualBlock], ids=["plain", "residual"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_strides_round_up_axis_by_axis(block, spatial_dims):
    strides = (2, 3, 1)[:spatial_dims]
    out = block(spatial_dims, 2, 4, kernel_size=(3, 5, 1)[:spatial_dims], stride=strides)(
        torch.randn(1, 2, *SIZE[:spatial_dims])
    )
    assert out.shape == (1, 4, *(4, 2, 4)[:spatial_dims])


def test_residual_block_adds_its_input():
    block = ResidualBlock(3, 4, 4)
    assert isinstance(block.shortcut, nn.Identity)
    block.second[-1].weight.data.zero_()  # silences the convolutions
    features = torch.randn(1, 4, *SIZE)
    torch.testing.assert_close(block(features), features.relu())


def test_dropout_takes_whole_channels_only_while_training():
    block = conv_norm_act(3, 1, 64, dropout=0.5)
    features = torch.randn(1, 1, *SIZE)
    dropped = (block.train()(features)[0].flatten(1) == 0).all(1)  # a constant channel leaves the norm as its shift, 0
    assert 0 < dropped.sum() < 64
    assert not (block.eval()(features)[0].flatten(1) == 0).all(1).any()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_resizing_keeps_a_constant_and_the_slope_of_a_ramp(spatial_dims):
    ramp = torch.arange(6.0).view(1, 1, 6, *(1,) * (spatial_dims - 1)).expand(-1, -1, -1, *(3,) * (spatial_dims - 1))
    out = resize_like(ramp, torch.empty(1, 8, 12, *(5,) * (spatial_dims - 1)))
    assert out.shape == (1, 1, 12, *(5,) * (spatial_dims - 1))
    # fine voxel i lies at (i + 0.5) / 2 - 0.5 coarse voxels; outside the outer centers the value stays
    expected = ((torch.arange(12) + 0.5) / 2 - 0.5).clamp(0, 5)
    torch.testing.assert_close(
        out.flatten(3).mean(3).flatten() if spatial_dims == 3 else out.mean(3).flatten(), expected
    )


def test_crop_keeps_the_first_voxels():
    features = torch.arange(2.0 * 3 * 4).view(1, 1, 2, 3, 4)
    out = crop_like(features, torch.empty(1, 9, 1, 3, 2))
    assert out.shape == (1, 1, 1, 3, 2)
    assert out.flatten().tolist() == [0, 1, 4, 5, 8, 9]
    assert crop_like(features[:, :, 0], torch.empty(1, 1, 2, 2), 1).flatten().tolist() == [5, 6, 9, 10]


def test_what_is_too_small_to_crop_is_stretched():
    features = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
    assert fit_like(features, torch.empty(1, 1, 1, 3)).flatten().tolist() == [0, 1, 2]
    # eight voxels from four: each lies a quarter voxel to the side of the coarse one's center
    assert fit_like(features, torch.empty(1, 1, 1, 8)).flatten()[:3].tolist() == [0, 0.25, 0.75]


def test_one_number_stands_for_every_axis():
    assert per_axis("strides", 2, 3) == (2, 2, 2)
    assert per_axis("strides", [1, 2], 2) == (1, 2)


def test_a_list_of_wrong_length_is_refused():
    with pytest.raises(ConfigError, match=r"strides has \[1, 2\] for 3 axes; give one number, or one for each axis"):
        per_axis("strides", [1, 2], 3)
    with pytest.raises(ConfigError, match=r"kernel_size has \[1, 2\] for 3 axes"):
        conv_norm(3, 1, 2, kernel_size=(1, 2))


@pytest.mark.parametrize("value", [0, -1, [1, 0], [[2, 2], 0], [], 1.5, "2", [1, None]])
def test_counts_below_one_are_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"^widths is .*; use whole numbers, 1 or more$"):
        check_counts(rates=2, widths=value)


def test_counts_that_fit_are_let_pass():
    check_counts(widths=(4, 8), strides=[[2, 2, 1], 2], rates=None, count=np.int64(3))
    check_counts(0, convs=0)


@pytest.mark.parametrize("dropout", [1.5, -0.1, 1, "0.5", None])
def test_dropout_is_a_probability_below_one(dropout):
    with pytest.raises(ConfigError, match=rf"dropout is {dropout!r}; use a probability, from 0 to below 1"):
        dropout_layer(2, dropout)


def test_a_list_is_no_word_of_a_setting():
    with pytest.raises(ConfigError, match=r"upsampling is \['x'\]; use 'a' or 'b'"):
        choose({"a": 1, "b": 2}, "upsampling", ["x"])


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_bins_are_averaged_as_torch_does(spatial_dims, bins):
    features = torch.randn(2, 3, *SIZE[:spatial_dims], dtype=torch.float64)
    pool = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[spatial_dims]
    torch.testing.assert_close(average_bins(features, bins), pool(features, bins))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_dilated_convolution_keeps_the_grid(spatial_dims):
    size = SIZE[:spatial_dims]
    assert conv_norm_act(spatial_dims, 2, 4, dilation=3)(torch.randn(1, 2, *size)).shape == (1, 4, *size)


def test_a_convolution_has_a_bias_only_without_a_norm():
    assert conv_norm(2, 3, 4, norm=None)[0].bias is not None
    assert len(conv_norm(2, 3, 4, norm=None)) == 1
    assert conv_norm(2, 3, 4, norm="batch")[0].bias is None


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(2, 2, 2), (2, 5, 4), (1, 1, 1), (3, 3, 1), (4, 1, 3)])
def test_the_gradient_of_a_kernel_larger_than_its_map_is_right_in_bfloat16(size, stride):
    conv = CONV[3](16, 16, 3, stride, 1, bias=False)
    image = torch.randn(1, 16, *size)
    for _ in range(3):  # what torch returned there was not the same each time
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(image)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        weight = conv.weight.detach().double().requires_grad_()  # torch's own kernel computes float64
        F.conv3d(image.double(), weight, stride=stride, padding=1).square().sum().backward()
        assert (conv.weight.grad - weight.grad).norm() < 0.05 * weight.grad.norm()
