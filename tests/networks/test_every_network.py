"""What holds for every network, in 2D and 3D, on narrow forms of each."""

import inspect
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medseg import networks
from medseg.data import phantom_case
from medseg.losses import DiceCrossEntropy
from medseg.networks.encoders import ResNet, inflate

WIDTHS = (4, 4, 6, 8, 8)
RESNET = {"encoder": "resnet18", "widths": WIDTHS}
NARROW = {
    "fcn8s": ("FCN", {"widths": WIDTHS, "fc_width": 8, "fc_kernel_size": 3, "norm": "batch"}),
    "fcn16s": ("FCN", {"variant": "16s", "widths": WIDTHS, "fc_width": 8, "fc_kernel_size": 3, "norm": "batch"}),
    "fcn32s": ("FCN", {"variant": "32s", "widths": WIDTHS, "fc_width": 8, "fc_kernel_size": 3, "norm": "batch"}),
    "fcn_resnet": ("FCN", {**RESNET, "auxiliary_head": True}),
    "unet": ("UNet", {"widths": WIDTHS, "deep_supervision": True}),
    "unet_2015": (
        "UNet",
        {
            "widths": (8, 8, 12),
            "padding": "valid",
            "downsampling": "max_pool",
            "upsampling": "transposed",
            "norm": None,
        },
    ),
    "unet_residual": ("UNet", {"widths": WIDTHS, "residual": True, "graph_reasoning": True}),
    "unet_resnet": ("UNet", {**RESNET, "decoder_widths": WIDTHS}),
    "segnet": ("SegNet", {"widths": WIDTHS}),
    "linknet": ("LinkNet", {**RESNET}),
    "unetplusplus": ("UNetPlusPlus", {"widths": WIDTHS, "deep_supervision": True}),
    "deeplabv1": ("DeepLabV1", {"widths": WIDTHS, "norm": "batch"}),
    "deeplabv2": ("DeepLabV2", {**RESNET}),
    "deeplabv3": ("DeepLabV3", {**RESNET, "auxiliary_head": True, "multi_grid": (1, 2), "output_stride": 8}),
    "deeplabv3plus": ("DeepLabV3Plus", {**RESNET, "separable": True, "output_stride": 16}),
    "pspnet": ("PSPNet", {**RESNET, "auxiliary_head": True, "graph_reasoning": True}),
}
SIZE = (33, 47, 20)

every_network = pytest.mark.parametrize("name", NARROW)
both_dimensions = pytest.mark.parametrize("spatial_dims", [2, 3])
LONG = {("unet_2015", 3), ("unetplusplus", 3), ("unet_residual", 3)}  # a second and more for one image of float64
in_both_dimensions = pytest.mark.parametrize(
    ("name", "spatial_dims"),
    [
        pytest.param(name, spatial_dims, marks=pytest.mark.slow if (name, spatial_dims) in LONG else ())
        for name in NARROW
        for spatial_dims in (2, 3)
    ],
)


def narrow(name, spatial_dims, in_channels=1, out_channels=3):
    class_name, settings = NARROW[name]
    return getattr(networks, class_name)(spatial_dims, in_channels, out_channels, **settings)


def test_no_network_is_left_out():
    classes = {name for name in networks.__all__ if inspect.isclass(getattr(networks, name))}
    assert {class_name for class_name, _ in NARROW.values()} == classes - {"PadToMultiple"}


@both_dimensions
@every_network
def test_a_forward_pass_leaves_nothing_in_the_network(name, spatial_dims, monkeypatch):
    """Two patients' windows may be in one network at the same time."""
    network = narrow(name, spatial_dims).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}

    def refuse(module, key, value):
        raise AssertionError(f"{type(module).__name__}.{key} is set in a forward pass")

    monkeypatch.setattr(nn.Module, "__setattr__", refuse)
    with torch.inference_mode():
        network(torch.randn(1, 1, *(16, 32, 16)[:spatial_dims]))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("size", [SIZE, (7, 5, 3), (16, 32, 16)])
@both_dimensions
@every_network
def test_logits_lie_on_the_grid_of_any_image(name, spatial_dims, size):
    network = narrow(name, spatial_dims).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 1, *size[:spatial_dims])).shape == (1, 3, *size[:spatial_dims])


@both_dimensions
@every_network
def test_one_small_patch_trains_every_parameter(name, spatial_dims):
    network = narrow(name, spatial_dims).train()
    image = torch.randn(1, 1, *(17, 19, 18)[:spatial_dims])
    label = torch.randint(0, 3, (1, 1, *image.shape[2:]))
    logits = network(image)
    heads = [logits] if isinstance(logits, torch.Tensor) else logits
    assert heads[0].shape[2:] == image.shape[2:]
    DiceCrossEntropy()(logits, label).backward()
    untouched = [key for key, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert untouched == []
    # a ReLU may be silent for one image, so a whole parameter of zeros is looked for over three images
    for _ in range(2):
        DiceCrossEntropy()(network(torch.randn_like(image)), label).backward()
    assert [key for key, p in network.named_parameters() if not p.grad.any()] == []


@in_both_dimensions
def test_the_batch_is_its_samples_one_by_one(name, spatial_dims):
    network = narrow(name, spatial_dims).double().eval()
    images = torch.randn(3, 1, *SIZE[:spatial_dims], dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), torch.cat([network(image[None]) for image in images]))


@both_dimensions
@every_network
def test_extra_heads_come_only_when_training_or_asked_for(name, spatial_dims):
    class_name, settings = NARROW[name]
    if not (settings.get("deep_supervision") or settings.get("auxiliary_head")):
        pytest.skip("has one head")
    size = SIZE[:spatial_dims]
    torch.manual_seed(1)
    network = narrow(name, spatial_dims)
    torch.manual_seed(1)
    asked = getattr(networks, class_name)(spatial_dims, 1, 3, return_heads=True, **settings).eval()
    image = torch.randn(2, 1, *size)
    assert len(network.train()(image)) > 1
    _, *extra = asked(image)
    assert extra
    assert all(head.shape[:2] == (2, 3) for head in extra)
    asked.load_state_dict(network.state_dict())
    torch.testing.assert_close(network.eval()(image), asked(image)[0])


@both_dimensions
@every_network
def test_saved_weights_give_the_same_logits(name, spatial_dims, tmp_path):
    network, copy = (narrow(name, spatial_dims).eval() for _ in range(2))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    copy.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    image = torch.randn(1, 1, *SIZE[:spatial_dims])
    with torch.inference_mode():
        assert torch.equal(copy(image), network(image))


# SegNet unpools to one of two equal voxels, where a repeated image has both: its slices differ by design
@pytest.mark.parametrize("axis", [-1, -2, -3])
@pytest.mark.parametrize("name", [name for name in NARROW if name != "segnet"])
def test_inflated_weights_give_the_answer_of_every_slice(name, axis):
    flat = narrow(name, 2).double().eval()
    for module in flat.modules():  # statistics as after a training, not the zeros and ones of the start
        if hasattr(module, "running_mean"):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    volume_network = narrow(name, 3).double().eval()
    volume_network.load_state_dict(inflate(flat.state_dict(), volume_network, axis=axis))
    image = torch.randn(1, 1, 33, 26, dtype=torch.float64)
    volume = image.unsqueeze(axis).repeat_interleave(11, dim=axis)
    with torch.inference_mode():
        expected, logits = flat(image).unsqueeze(axis), volume_network(volume)
    assert (logits - expected).abs().max() < 1e-9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@both_dimensions
@every_network
def test_an_exported_network_and_its_onnx_give_equal_logits(name, spatial_dims, tmp_path, random_statistics):
    import onnxruntime

    network = random_statistics(narrow(name, spatial_dims)).eval()
    image = torch.randn(2, 1, *SIZE[:spatial_dims])
    with torch.inference_mode():
        expected = network(image)
    exported = torch.export.export(network, (image,))
    torch.testing.assert_close(exported.module()(image), expected)
    path = tmp_path / "network.onnx"
    torch.onnx.export(exported, (image,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@both_dimensions
@every_network
def test_a_compiled_network_gives_equal_logits(name, spatial_dims):
    torch._dynamo.reset()
    network = narrow(name, spatial_dims).eval()
    image = torch.randn(1, 1, *SIZE[:spatial_dims])
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(network, backend="eager", fullgraph=True)(image), network(image))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(("name", "spatial_dims"), [("unet", 3), ("deeplabv3", 2)])
def test_inductor_gives_equal_logits(name, spatial_dims):
    torch._dynamo.reset()
    network = narrow(name, spatial_dims).eval()
    image = torch.randn(1, 1, *SIZE[:spatial_dims])
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(network)(image), network(image), atol=1e-4, rtol=1e-4)


def phantom_slices(spatial_dims):
    """A slice (in 3D two) of the phantom through its largest lesion, as `(1, 1, *spatial)` image and label."""
    case = phantom_case(0, shape=(96, 80, 40))
    where = int((case.label == 2).sum((0, 1)).argmax())
    image, label = torch.from_numpy(case.images[0]).float(), torch.from_numpy(case.label).long()
    chosen = where if spatial_dims == 2 else slice(where - 1, where + 1)
    return ((image.clamp(-100, 200) + 100) / 300)[None, None, ..., chosen], label[None, None, ..., chosen]


@pytest.mark.slow
@both_dimensions
@every_network
def test_a_phantom_slice_is_learned_by_heart(name, spatial_dims):
    torch.manual_seed(0)
    class_name, settings = NARROW[name]
    wider = {"widths": tuple((1 if name == "unet_2015" else 3) * width for width in settings["widths"])}
    network = getattr(networks, class_name)(spatial_dims, 1, 3, **{**settings, **wider}).train()
    image, label = phantom_slices(spatial_dims)
    loss = DiceCrossEntropy()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    best = 0.0
    for _ in range(300):
        optimizer.zero_grad()
        logits = network(image)
        loss(logits, label).backward()
        optimizer.step()
        main = logits if isinstance(logits, torch.Tensor) else logits[0]
        pred, liver = main.argmax(1, keepdim=True) == 1, label == 1
        best = max(best, float(2 * (pred & liver).sum() / (pred.sum() + liver.sum())))
        if best > 0.85:
            return
    pytest.fail(f"the best liver Dice is {best:.2f}")


@both_dimensions
def test_an_encoder_may_be_a_module_of_its_own(spatial_dims):
    encoder = ResNet(spatial_dims, 2, depth=18, widths=WIDTHS)
    for class_name in ("UNet", "LinkNet", "DeepLabV3", "PSPNet", "FCN"):
        network = getattr(networks, class_name)(spatial_dims, 2, 3, encoder=encoder).eval()
        image = torch.randn(1, 2, *(33, 47, 20)[:spatial_dims])
        assert network(image).shape == (1, 3, *image.shape[2:])
        assert F.softmax(network(image), 1).isfinite().all()
