import logging
import sys

import pytest
import torch
from torch import nn

from medseg.errors import ConfigError, DataError
from medseg.networks.encoders import VGG, ResNet, inflate, load_weights

WIDTHS = (4, 4, 6, 8, 8)

every_axis = pytest.mark.parametrize("axis", [-1, -2, -3])


def narrow_resnet(spatial_dims, in_channels=3, **settings):
    return ResNet(spatial_dims, in_channels, depth=18, widths=WIDTHS, **settings)


def saved(state, path, *, wrapped=False):
    """A file as others publish them: counts of batches with it, or MedicalNet's wrapping around it."""
    state = {**state, **{f"{name[:-4]}num_batches_tracked": torch.tensor(7) for name in state if name.endswith("_var")}}
    state = {f"module.{name}": value for name, value in state.items()} if wrapped else state
    torch.save({"state_dict": state} if wrapped else state, path)
    return path


def equal_slices(image, axis, count):
    return image.unsqueeze(axis).repeat_interleave(count, dim=axis)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11", "vgg11_bn"])
def test_torchvision_s_files_load_completely(name, torchvision_models, tmp_path):
    with torch.device("meta"):  # a VGG's classifier is half a gigabyte
        theirs = getattr(torchvision_models, name)().state_dict()
    state = {key: torch.randn(value.shape) for key, value in theirs.items() if not key.startswith("classifier")}
    state = {key: torch.tensor(3) if "num_batches" in key else value for key, value in state.items()}
    state |= {"classifier.6.weight": torch.zeros(3, 3)} if name.startswith("vgg") else {}
    torch.save(state, tmp_path / "weights.pth")
    depth = int(name[6:]) if name.startswith("resnet") else int(name[3:5])
    encoder = (
        ResNet(2, 3, depth=depth)
        if name.startswith("resnet")
        else VGG(2, 3, depth=depth, norm="batch" if name.endswith("bn") else None)
    )
    assert load_weights(encoder, tmp_path / "weights.pth") == ((), (), (), ())
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, state[key]), key


def medicalnet_shapes(depth, shortcut, widths=WIDTHS):
    """Names and shapes of MedicalNet's 3D encoders, by hand from its table of layers (Chen 2019); norms have 5 tensors.

    Shortcuts of form A pad with zeros and have no weights.
    """
    bottleneck = depth == 50
    stem, *stages = widths
    convolutions, norms = {"conv1": (stem, 1, 7)}, {"bn1": stem}
    above = stem
    for stage, (width, blocks) in enumerate(zip(stages, (3, 4, 6, 3) if bottleneck else (2, 2, 2, 2), strict=True), 1):
        out = 4 * width if bottleneck else width
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            steps = [(width, above, 1), (width, width, 3), (out, width, 1)]
            for number, step in enumerate(steps if bottleneck else [(out, above, 3), (out, out, 3)], 1):
                convolutions[f"{name}.conv{number}"], norms[f"{name}.bn{number}"] = step, step[0]
            if block == 0 and (bottleneck or stage > 1) and shortcut == "B":
                convolutions[f"{name}.downsample.0"], norms[f"{name}.downsample.1"] = (out, above, 1), out
            above = out
    shapes = {f"{name}.weight": (out, by, size, size, size) for name, (out, by, size) in convolutions.items()}
    for name, width in norms.items():
        shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes


def medicalnet_file(path, depth, shortcut):
    state = {name: torch.rand(shape) for name, shape in medicalnet_shapes(depth, shortcut).items()}
    return state, saved({**state, "conv_seg.0.weight": torch.zeros(1)}, path, wrapped=True)


def test_medicalnet_s_files_with_shortcut_b_load_completely(tmp_path):
    state, path = medicalnet_file(tmp_path / "resnet_50.pth", 50, "B")
    assert {"layer1.0.downsample.0.weight", "layer4.0.downsample.1.running_var"} < state.keys()
    encoder = ResNet(3, 1, depth=50, widths=WIDTHS)
    assert load_weights(encoder, path) == ((), ("conv_seg.0.weight",), (), ())
    assert encoder.state_dict().keys() == state.keys()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_medicalnet_s_files_with_shortcut_a_lack_the_shortcuts_and_it_is_said(tmp_path, caplog):
    state, path = medicalnet_file(tmp_path / "resnet_18.pth", 18, "A")
    encoder = narrow_resnet(3, 1)
    loaded = load_weights(encoder, path)
    parts = ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert set(loaded.missing) == {f"layer{stage}.0.downsample.{part}" for stage in (2, 3, 4) for part in parts}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "15 missing (layer2.0.downsample.0.weight, " in record.message
    for name, value in state.items():
        assert torch.equal(encoder.state_dict()[name], value), name


def test_safetensors_load_the_same(tmp_path):
    from safetensors.torch import save_file

    theirs = narrow_resnet(2)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = narrow_resnet(2, weights=tmp_path / "weights.safetensors")
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def test_an_encoder_is_taken_out_of_a_whole_network_s_file(tmp_path):
    theirs, ours = narrow_resnet(2), narrow_resnet(2)
    state = {f"encoder.{name}": value for name, value in theirs.state_dict().items()} | {"head.weight": torch.ones(2)}
    assert load_weights(ours, saved(state, tmp_path / "model.pt"), prefix="encoder.") == ((), (), (), ())
    assert torch.equal(ours.conv1.weight, theirs.conv1.weight)


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "module.backbone."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_the_prefix_of_a_whole_network_s_file_is_found_and_said(prefix, wrapper, tmp_path, caplog):
    theirs, ours = narrow_resnet(2), narrow_resnet(2)
    state = {f"{prefix}{name}": value for name, value in theirs.state_dict().items()}
    state |= {"classifier.4.weight": torch.ones(2), "aux_classifier.4.weight": torch.ones(2)}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "model.pt")
    with caplog.at_level(logging.INFO, logger="medseg"):
        assert load_weights(ours, tmp_path / "model.pt") == ((), (), (), ())
    assert f"under '{prefix.removeprefix('module.')}'" in caplog.text
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_torchvision_s_segmentation_files_load(torchvision_models, tmp_path):
    with torch.device("meta"):
        theirs = torchvision_models.segmentation.fcn_resnet50(weights=None, weights_backbone=None).state_dict()
    torch.save({name: torch.ones(value.shape) for name, value in theirs.items()}, tmp_path / "fcn.pth")
    assert load_weights(ResNet(2, 3, depth=50), tmp_path / "fcn.pth") == ((), (), (), ())


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_stem_adapts_to_other_image_channels(channels, spatial_dims, tmp_path, random_statistics):
    theirs, ours = random_statistics(narrow_resnet(2)), narrow_resnet(spatial_dims, channels)
    loaded = load_weights(ours, saved(theirs.state_dict(), tmp_path / "weights.pth"))
    assert loaded.adapted == ("conv1.weight",)
    assert loaded.missing == loaded.unexpected == ()
    # an image of equal channels gives what it gave with three
    ours, theirs = ours.double().eval(), theirs.double().eval()
    gray = torch.randn(1, 1, 33, 26, dtype=torch.float64)
    image = gray.expand(-1, channels, -1, -1)
    image = equal_slices(image, -1, 9) if spatial_dims == 3 else image
    with torch.inference_mode():
        for level, expected in zip(ours(image), theirs(gray.expand(-1, 3, -1, -1)), strict=True):
            expected = equal_slices(expected, -1, level.shape[-1]) if spatial_dims == 3 else expected
            # the file's weights are of single precision, and their sum is rounded to it
            torch.testing.assert_close(level, expected, rtol=1e-5, atol=1e-5)


def test_one_channel_gets_the_sum_over_three(tmp_path):
    theirs, ours = narrow_resnet(2), narrow_resnet(2, 1)
    load_weights(ours, saved(theirs.state_dict(), tmp_path / "weights.pth"))
    red, green, blue = theirs.conv1.weight.unbind(1)
    torch.testing.assert_close(ours.conv1.weight[:, 0], red + green + blue)


@pytest.mark.parametrize("inflation", ["center", "mean"])
def test_2d_files_inflate_along_the_last_axis(inflation, tmp_path):
    theirs, ours = narrow_resnet(2), narrow_resnet(3)
    loaded = load_weights(ours, saved(theirs.state_dict(), tmp_path / "weights.pth"), inflation=inflation)
    assert set(loaded.inflated) == {name for name, value in theirs.state_dict().items() if value.ndim == 4}
    torch.testing.assert_close(ours.conv1.weight.sum(-1), theirs.conv1.weight)
    expected = theirs.conv1.weight / 7 if inflation == "mean" else torch.zeros_like(theirs.conv1.weight)
    torch.testing.assert_close(ours.conv1.weight[..., 0], expected)


def test_what_does_not_fit_is_said_once_without_folders(tmp_path, caplog):
    state = narrow_resnet(2).state_dict()
    del state["bn1.weight"]
    path = saved({**state, "extra.weight": torch.ones(1), "fc.weight": torch.ones(1)}, tmp_path / "weights.pth")
    encoder = narrow_resnet(2)
    with caplog.at_level(logging.INFO, logger="medseg"):
        assert load_weights(encoder, path) == (("bn1.weight",), ("extra.weight",), (), ())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "weights.pth: loaded" in record.message
    assert "1 missing (bn1.weight), 1 unexpected (extra.weight)" in record.message
    assert "1 of a classifier, unused (fc.weight)" in record.message
    assert str(tmp_path) not in record.message
    assert torch.equal(encoder.bn1.weight, torch.ones(4))


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_either_fault_is_a_warning(change, tmp_path, caplog):
    state = narrow_resnet(2).state_dict()
    if change == "missing":
        del state["bn1.weight"]
    else:
        state["extra.weight"] = torch.ones(1)
    load_weights(narrow_resnet(2), saved(state, tmp_path / "weights.pth"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_file_that_fits_is_no_warning(tmp_path, caplog):
    path = saved(narrow_resnet(2).state_dict(), tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, logger="medseg"):
        load_weights(narrow_resnet(2), path)
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_files_that_do_not_fit_are_refused(tmp_path):
    encoder = narrow_resnet(2)
    with pytest.raises(ConfigError, match=r"weights: there is no file none\.pth"):
        load_weights(encoder, tmp_path / "none.pth")
    other = saved({"blocks.0.weight": torch.ones(1), "b": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(
        DataError,
        match=r"other.pth: none of its 2 tensors \(blocks.0.weight, b\) is one of the .* with the prefix of its names",
    ):
        load_weights(encoder, other)
    wider = saved(ResNet(2, 3, depth=18, widths=(4, 4, 6, 8, 9)).state_dict(), tmp_path / "wider.pth")
    with pytest.raises(DataError, match=r"wider.pth: layer4.* make the network with the widths and depth of the file"):
        load_weights(encoder, wider)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match=r"list.pth: is not a state dict"):
        load_weights(encoder, tmp_path / "list.pth")
    torch.save({"state_dict": encoder}, tmp_path / "pickled.pth")
    with pytest.raises(DataError, match=r"pickled.pth: no file of weights, damaged, or more than weights"):
        load_weights(encoder, tmp_path / "pickled.pth")
    (tmp_path / "damaged.pth").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"damaged.pth: no file of weights, damaged, or more than weights"):
        load_weights(encoder, tmp_path / "damaged.pth")


@pytest.mark.parametrize("content", [b"hello", b"epoch,loss\n1,2\n", b"<html>404</html>", b"", b"\x8d1"])
def test_a_text_in_place_of_weights_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(DataError, match=r"weights.pth: no file of weights, damaged, or more than weights") as refusal:
        load_weights(narrow_resnet(2), tmp_path / "weights.pth")
    assert "\n" not in str(refusal.value)


def test_damaged_safetensors_are_refused(tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"damaged.safetensors: no file of weights, damaged, or more than weights"):
        load_weights(narrow_resnet(2), tmp_path / "damaged.safetensors")


def test_safetensors_without_their_package_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(ConfigError, match="needs a package; pip install safetensors"):
        load_weights(narrow_resnet(2), tmp_path / "weights.safetensors")


def test_a_refused_file_leaves_the_network_as_it_was(tmp_path):
    encoder = narrow_resnet(2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = {**narrow_resnet(2).state_dict(), "layer4.0.bn1.weight": torch.ones(3)}
    with pytest.raises(DataError):
        load_weights(encoder, saved(state, tmp_path / "weights.pth"))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@every_axis
@pytest.mark.parametrize(
    "form",
    [
        {"output_stride": 8, "multi_grid": (1, 2)},
        {"deep_stem": True, "norm": "instance"},
        {"output_stride": 16, "dilation": "every_block", "norm": None},
        {"depth": 50, "stride_in_1x1": True},
    ],
)
def test_an_inflated_resnet_gives_the_2d_answer_on_every_slice(axis, form, random_statistics):
    settings = {"depth": 18, "widths": WIDTHS, **form}
    flat = random_statistics(ResNet(2, 2, **settings)).double().eval()
    network = ResNet(3, 2, **settings).double().eval()
    network.load_state_dict(inflate(flat.state_dict(), network, axis=axis))
    image = torch.randn(1, 2, 33, 46, dtype=torch.float64)
    with torch.inference_mode():
        for level, expected in zip(network(equal_slices(image, axis, 11)), flat(image), strict=True):
            assert (level - expected.unsqueeze(axis)).abs().max() < 1e-9


@every_axis
def test_an_inflated_vgg_gives_the_2d_answer_on_every_slice(axis, random_statistics):
    settings = {"depth": 11, "widths": WIDTHS, "norm": "batch"}
    flat = random_statistics(VGG(2, 2, **settings)).double().eval()
    network = VGG(3, 2, **settings).double().eval()
    network.load_state_dict(inflate(flat.state_dict(), network, axis=axis))
    image = torch.randn(1, 2, 33, 46, dtype=torch.float64)
    with torch.inference_mode():
        for level, expected in zip(network(equal_slices(image, axis, 11)), flat(image), strict=True):
            assert (level - expected.unsqueeze(axis)).abs().max() < 1e-9


@every_axis
@pytest.mark.parametrize("mode", ["center", "mean"])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "output_padding"),
    [(2, 2, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0), (3, 1, 1, 0), (8, 4, 2, 0), (5, 2, 2, 1), (3, 3, 0, 0)],
)
def test_an_inflated_transposed_convolution_gives_the_2d_answer(
    axis, mode, kernel_size, stride, padding, output_padding
):
    settings = (3, 2, kernel_size, stride, padding, output_padding)
    flat, layer = nn.ConvTranspose2d(*settings).double(), nn.ConvTranspose3d(*settings).double()
    layer.load_state_dict(inflated_layer(flat, layer, mode, axis))
    image = torch.randn(1, 3, 7, 6, dtype=torch.float64)
    with torch.inference_mode():
        volume, expected = layer(equal_slices(image, axis, 15)), flat(image).unsqueeze(axis)
    margin = kernel_size if mode == "mean" else 0  # there, some taps come from beyond the ends
    inside = volume.narrow(axis, margin, volume.shape[axis] - 2 * margin)
    assert (inside - expected).abs().max() < 1e-9


def inflated_layer(flat, layer, mode, axis):
    """Through a network of one layer, since a state dict names layers."""
    state = inflate(
        {f"0.{name}": value for name, value in flat.state_dict().items()}, nn.Sequential(layer), mode=mode, axis=axis
    )
    return {name[2:]: value for name, value in state.items()}


@every_axis
@pytest.mark.parametrize(
    ("kernel_size", "padding", "dilation", "stride"),
    [(3, 1, 1, 1), (3, 2, 2, 1), (7, 3, 1, 2), (2, 0, 1, 2), (1, 0, 1, 1)],
)
def test_mean_gives_the_2d_answer_away_from_the_ends(axis, kernel_size, padding, dilation, stride):
    settings = {"padding": padding, "dilation": dilation, "stride": stride}
    flat = nn.Conv2d(3, 2, kernel_size, **settings).double()
    layer = nn.Conv3d(3, 2, kernel_size, **settings).double()
    layer.load_state_dict(inflated_layer(flat, layer, "mean", axis))
    image = torch.randn(1, 3, 15, 17, dtype=torch.float64)
    with torch.inference_mode():
        volume, expected = layer(equal_slices(image, axis, 24)), flat(image).unsqueeze(axis)
    inside = volume.narrow(axis, padding, volume.shape[axis] - 2 * padding)
    assert (inside - expected).abs().max() < 1e-9


def test_kernels_by_hand():
    kernel = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])[None, None]
    flat, layer = nn.Conv2d(1, 1, 3, bias=False), nn.Conv3d(1, 1, 3, bias=False)
    flat.weight.data = kernel
    center = inflated_layer(flat, layer, "center", -3)["weight"][0, 0]
    assert torch.equal(center, torch.stack([torch.zeros(3, 3), kernel[0, 0], torch.zeros(3, 3)]))
    mean = inflated_layer(flat, layer, "mean", -3)["weight"][0, 0]
    torch.testing.assert_close(mean, torch.stack([kernel[0, 0] / 3] * 3))
    # transposed, stride 2, output padding 1: even voxels are made by tap 1, odd ones by taps 0 and 2 of two inputs
    flat, layer = (conv(1, 1, 3, 2, 1, 1, bias=False) for conv in (nn.ConvTranspose2d, nn.ConvTranspose3d))
    flat.weight.data = kernel
    for mode, taps in (("center", (0, 1, 1)), ("mean", (0.5, 1, 0.5))):
        weight = inflated_layer(flat, layer, mode, -3)["weight"][0, 0]
        assert torch.equal(weight, torch.stack([kernel[0, 0] * tap for tap in taps]))


def test_networks_that_differ_do_not_inflate():
    flat = narrow_resnet(2).state_dict()
    # its 20 convolutions have a bias without a norm, which has four tensors
    with pytest.raises(ConfigError, match=r"inflate: 100 tensors are in one of the networks only, such as 'bn1.bias'"):
        inflate(flat, narrow_resnet(3, norm=None))
    with pytest.raises(ConfigError, match=r"inflate: conv1.weight is \(4, 3, 7, 7\) in 2D and \(4, 1, 7, 7, 7\) in 3D"):
        inflate(flat, narrow_resnet(3, 1))
    with pytest.raises(ConfigError, match="axis is 2; use -1 or -2 or -3"):
        inflate(flat, narrow_resnet(3), axis=2)
    with pytest.raises(ConfigError, match="inflation mode is 'first'; use 'center' or 'mean'"):
        inflate(flat, narrow_resnet(3), mode="first")
    flat, layer = nn.ConvTranspose2d(1, 1, 1, 2), nn.ConvTranspose3d(1, 1, 1, 2)
    with pytest.raises(
        ConfigError, match=r"0.weight leaves gaps along the new axis \(kernel 1, stride 2, dilation 1\)"
    ):
        inflated_layer(flat, layer, "center", -1)
