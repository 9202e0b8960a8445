import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medseg.networks import UNet, channels_last
from medseg.networks.blocks import Conv3d, InstanceNorm, conv_norm_act, resize
from medseg.networks.channels_last import LAYOUTS, instance_norm, is_channels_last, is_taken, to_channels_last

SHAPES = [(1, 8, 9, 7, 5), (3, 5, 6, 1, 7), (2, 8, 33, 17), (1, 600, 3, 4, 2)]


def laid(shape, dtype=torch.float32, *, mean=2.0, seed=0):
    """Random numbers channels-last in memory."""
    random = np.random.default_rng(seed)
    return torch.tensor(random.normal(mean, 3, shape)).to(dtype).contiguous(memory_format=LAYOUTS[len(shape)])


def formula(features, weight, bias):
    """Instance norm in float64, written out."""
    axes = tuple(range(2, features.ndim))
    mean = features.mean(axes, keepdim=True)
    variance = ((features - mean) ** 2).mean(axes, keepdim=True)
    sides = (-1, *[1] * len(axes))
    return (features - mean) / (variance + 1e-5).sqrt() * weight.view(sides) + bias.view(sides)


def parameters(channels):
    random = np.random.default_rng(1)
    return tuple(torch.tensor(random.normal(1, 0.5, channels), dtype=torch.float32) for _ in range(2))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_is_the_formula_and_keeps_the_layout(shape, dtype, tolerance):
    features, (weight, bias) = laid(shape, dtype), parameters(shape[1])
    before = features.clone()
    out = instance_norm(features, weight, bias)
    expected = formula(features.double(), weight.double(), bias.double())
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=LAYOUTS[len(shape)])
    assert ((out.double() - expected).abs() <= tolerance * expected.abs().clamp_min(1)).all()
    assert torch.equal(features, before)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_sums_over_many_voxels_stay_exact(mean):
    features, (weight, bias) = laid((1, 4, 80, 80, 80), mean=mean), parameters(4)
    expected = formula(features.double(), weight.double(), bias.double())
    ours = (instance_norm(features, weight, bias) - expected).abs().max()
    theirs = (torch.nn.functional.batch_norm(features, None, None, weight, bias, True) - expected).abs().max()
    assert ours < 2e-5
    assert ours < theirs / 10  # torch's kernel for this layout


@pytest.mark.parametrize("shape", [*SHAPES, (1, 4, 80, 80, 80)])
@pytest.mark.parametrize("arrives_contiguous", [True, False])
def test_the_gradient_is_that_of_the_formula(shape, arrives_contiguous):
    gradient = laid(shape, mean=0.3, seed=2)
    found, expected = [], []
    for answers, function, dtype in ((found, instance_norm, torch.float32), (expected, formula, torch.float64)):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (laid(shape), *parameters(shape[1]))]
        arriving = gradient.to(dtype).contiguous() if arrives_contiguous else gradient.to(dtype)
        function(*inputs).backward(arriving)
        answers += [tensor.grad for tensor in inputs]
    assert found[0].is_contiguous(memory_format=LAYOUTS[len(shape)])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-5)


def test_it_is_written_in_place_only_without_a_gradient():
    block = conv_norm_act(3, 2, 4, activation="leaky_relu").to(memory_format=torch.channels_last_3d)
    assert block[1].in_place
    features = laid((1, 4, 3, 4, 5))
    with torch.no_grad():
        assert block[1](features).data_ptr() == features.data_ptr()
    features = laid((1, 4, 3, 4, 5))
    assert block[1](features).data_ptr() != features.data_ptr()
    assert torch.equal(features, laid((1, 4, 3, 4, 5)))
    with torch.no_grad():
        assert InstanceNorm(4)(features).data_ptr() != features.data_ptr()


@pytest.mark.parametrize(
    "features",
    [
        torch.zeros(1, 1, 4, 4, 4),
        torch.zeros(1, 4, 4, 4, 4),
        laid((1, 4, 4, 4, 4), torch.float64),
        laid((2, 4, 6, 4, 4))[:, :, ::2],
    ],
)
def test_other_features_take_torchs_own_norm(features):
    assert not is_taken(features)
    norm = InstanceNorm(features.shape[1]).to(features.dtype)
    torch.testing.assert_close(
        norm(features), formula(features.double(), norm.weight.double(), norm.bias.double()).to(features.dtype)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
def test_torchs_own_norm_has_the_gradient_of_the_formula_in_whatever_layout_it_arrives(batch, dtype):
    arriving = laid((batch, 8, 5, 6, 7), dtype, mean=0.3, seed=2)
    norm = InstanceNorm(8).to(dtype)
    ours = laid((batch, 8, 5, 6, 7), dtype).contiguous().requires_grad_()
    assert not is_taken(ours)
    norm(ours).backward(arriving)
    exact = ours.detach().double().requires_grad_()
    formula(exact, norm.weight.double(), norm.bias.double()).backward(arriving.double())
    assert (ours.grad - exact.grad).norm() < {torch.bfloat16: 1e-2}.get(dtype, 1e-6) * exact.grad.norm()


@pytest.mark.parametrize(("shape", "size"), [((2, 4, 3, 5, 4), (6, 9, 8)), ((1, 4, 5, 3), (10, 6))])
def test_a_map_joined_with_a_skip_is_interpolated_channels_last_on_the_way_back_too(shape, size):
    gradients, layouts = [], []
    arriving = laid((shape[0], 7, *size), seed=2)
    for features in (laid(shape), laid(shape).contiguous()):
        finer = resize(features.requires_grad_(), size)
        finer.register_hook(lambda gradient: layouts.append(is_channels_last(gradient)))
        torch.cat([laid((shape[0], 3, *size)), finer], dim=1).backward(arriving)
        gradients.append(features.grad)
    assert layouts[0]  # torch hands over a part of the gradient of both, which lies in neither layout
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("batch", [1, 2])
def test_a_channels_last_network_has_the_gradients_of_a_contiguous_one(batch):
    torch.manual_seed(0)
    network = UNet(3, 2, 3, widths=(4, 8, 16), activation="leaky_relu", deep_supervision=True).train()
    image = torch.randn(batch, 2, 16, 15, 13)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        network.to(memory_format=layout).zero_grad()
        logits = network(image.contiguous(memory_format=layout))
        sum((level**2).mean() for level in logits).backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    for contiguous, last in zip(*gradients, strict=True):
        assert (contiguous - last).norm() <= 1e-4 * contiguous.norm()


@pytest.mark.parametrize("channels", [1, 2])
def test_features_stay_channels_last_through_a_whole_network(channels):
    network = UNet(3, channels, 3, widths=(4, 8, 16)).to(memory_format=torch.channels_last_3d).eval()
    layouts = []
    for module in network.modules():
        if isinstance(module, InstanceNorm):
            module.register_forward_hook(lambda _, inputs, output: layouts.append((inputs[0], output)))
    with torch.inference_mode():
        logits = network(to_channels_last(torch.randn(1, channels, 12, 12, 12)))
    assert is_channels_last(logits)
    assert layouts
    assert all(each.is_contiguous(memory_format=torch.channels_last_3d) for pair in layouts for each in pair)


@pytest.mark.parametrize("shape", [(1, 1, 4, 5, 6), (2, 1, 4, 5), (2, 3, 4, 5), (1, 3, 4, 5, 6)])
def test_images_are_laid_channels_last_whatever_their_channels(shape):
    image = torch.randn(shape)
    laid_out = to_channels_last(image)
    assert torch.equal(laid_out, image)
    assert laid_out.stride(1) == 1
    assert is_channels_last(laid_out)
    assert not is_channels_last(image)
    assert not is_channels_last(torch.randn(2, 5, 1, 1, 1))


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "settings"),
    [(1, 4, {}), (6, 3, {"kernel_size": 1}), (4, 8, {"stride": (2, 1, 2), "groups": 2}), (4, 4, {"dilation": 2})],
)
def test_a_channels_last_convolution_is_torchs(in_channels, out_channels, settings):
    settings = {"kernel_size": 3, "padding": 1, "bias": False} | settings
    conv = Conv3d(in_channels, out_channels, **settings)
    image = torch.randn(1, in_channels, 9, 8, 7)
    answers = []
    for function, given in ((conv, to_channels_last(image)), (conv.double(), image.double())):
        given = given.requires_grad_()
        out = function.to(given.dtype)(given)
        out.square().sum().backward()
        answers.append([out, given.grad, conv.weight.grad])
        conv.zero_grad()
    assert is_channels_last(answers[0][0])
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), atol=2e-5 * theirs.abs().max().item(), rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_norm_takes_channels_last_features():
    norm, features = InstanceNorm(4), laid((2, 4, 6, 5, 4))
    compiled = torch.compile(norm, fullgraph=True)(features)
    torch.testing.assert_close(compiled, formula(features.double(), norm.weight.double(), norm.bias.double()).float())


def test_a_decoder_joins_its_skips_the_same_with_and_without_gradients():
    torch.manual_seed(0)
    network = UNet(3, 2, 3, widths=(4, 8, 16)).to(memory_format=torch.channels_last_3d).eval()
    image = to_channels_last(torch.randn(2, 2, 13, 12, 11))
    pyramid = network.encoder(image)
    kept = list(pyramid)
    assert [level.shape[1] for level in network.decoder(pyramid, image)] == [4, 8]
    assert len(pyramid) == 3
    with torch.no_grad():
        logits = network(image)
        network.decoder(pyramid, image)
    assert pyramid == []  # each skip was freed once it was joined
    assert len(kept) == 3
    torch.testing.assert_close(logits, network(image).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 16, 1, 6), (2, 3, 4, 5, 3), (1, 4, 1, 2, 1), (1, 1, 3, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_doubled_grid_is_that_of_torchs_interpolation(shape, dtype):
    features = channels_last.to_channels_last(torch.randn(shape).to(dtype))
    size = [2 * voxels for voxels in shape[2:]]
    assert channels_last.doubles(features, size)
    mode = "bilinear" if len(shape) == 4 else "trilinear"
    expected = F.interpolate(features.double(), size, mode=mode, align_corners=False)
    room = torch.full((shape[0], shape[1] + 3, *size), 7.0, dtype=dtype)
    room = room.contiguous(memory_format=channels_last.LAYOUTS[len(shape)])
    place = room.narrow(1, 3, shape[1])
    assert channels_last.double(features, place) is place
    steps = 3 * torch.finfo(dtype).eps * features.abs().max().item()  # a rounding an axis
    torch.testing.assert_close(place.double(), expected, rtol=0, atol=steps)
    assert (room[:, :3] == 7).all()  # its neighbors are left alone


def test_only_exact_doubling_without_a_gradient_is_taken():
    features = channels_last.to_channels_last(torch.randn(1, 2, 4, 4, 4))
    assert channels_last.doubles(features, (8, 8, 8))
    assert not channels_last.doubles(features, (8, 8, 7))
    assert not channels_last.doubles(features.contiguous(), (8, 8, 8))
    assert not channels_last.doubles(features.double(), (8, 8, 8))
    asked = features.requires_grad_()
    assert not channels_last.doubles(asked, (8, 8, 8))
    with torch.no_grad():
        assert channels_last.doubles(asked, (8, 8, 8))


@pytest.mark.parametrize("upsampling", ["interpolate", "transposed"])
@pytest.mark.parametrize("size", [(16, 24, 32), (17, 24, 30)])
def test_a_unet_answers_alike_in_both_layouts(upsampling, size):
    torch.manual_seed(0)
    network = UNet(3, 1, 2, widths=(4, 8, 16), upsampling=upsampling).eval()
    image = torch.randn(2, 1, *size)
    with torch.inference_mode():
        expected = network(image)
        network.to(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(network(channels_last.to_channels_last(image)), expected, rtol=1e-4, atol=1e-5)
