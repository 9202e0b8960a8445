import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy

from medseg.errors import ConfigError
from medseg.networks import UNet

SIZE = (33, 47, 20)
VARIANTS = {
    "default": {"widths": (4, 6, 8)},
    "five levels": {"widths": (4, 6, 8, 10, 12), "blocks_per_level": 1},
    "residual": {"widths": (4, 6, 8), "residual": True, "activation": "leaky_relu"},
    "batch norm": {"widths": (4, 6, 8), "norm": "batch"},
    "transposed": {"widths": (4, 6, 8), "upsampling": "transposed", "kernel_sizes": [1, 3, 5]},
    "strides of 3": {"widths": (4, 6), "upsampling": "transposed", "strides": 3},
    "dropout": {"widths": (4, 6, 8), "dropout": 0.2},
}


def blob(size):
    """Image with a bright rounded block, and its label."""
    label = torch.zeros(1, *size, dtype=torch.long)
    label[(0, *(slice(side // 4, side // 2 + 1) for side in size))] = 1
    return (label.float() + 0.1 * torch.randn(1, *size))[None], label


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def settings(request):
    return request.param


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_logits_keep_the_image_grid(settings, spatial_dims):
    size = SIZE[:spatial_dims]
    assert UNet(spatial_dims, 1, 3, **settings)(torch.randn(2, 1, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 1), (5, 4, 9), (17, 16, 8)])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_small_patches_train_down_to_one_voxel(settings, spatial_dims, size):
    network = UNet(spatial_dims, 2, 2, **settings).train()
    network(torch.randn(1, 2, *size[:spatial_dims])).square().sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert gradients.isfinite().all()
    assert gradients.any()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_batch_equals_its_samples_one_by_one(settings, spatial_dims):
    network = UNet(spatial_dims, 1, 3, **settings).eval()
    image = torch.randn(3, 1, *SIZE[:spatial_dims])
    with torch.inference_mode():
        together, alone = network(image), torch.cat([network(sample[None]) for sample in image])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_training_lowers_the_loss(settings, spatial_dims):
    network = UNet(spatial_dims, 1, 2, **settings).train()
    image, label = blob((19, 15, 10)[:spatial_dims])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = cross_entropy(network(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_few_steps_learn_a_block_by_heart(spatial_dims):
    network = UNet(spatial_dims, 1, 2, widths=(8, 12, 16)).train()
    image, label = blob((19, 15, 10)[:spatial_dims])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(network(image), label).backward()
        optimizer.step()
    with torch.inference_mode():
        pred = network.eval()(image).argmax(1)
    both = ((pred == 1) & (label == 1)).sum()
    assert 2 * both / ((pred == 1).sum() + (label == 1).sum()) > 0.95


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_saved_weights_give_the_same_logits(settings, spatial_dims, tmp_path):
    network = UNet(spatial_dims, 1, 3, **settings)
    image = torch.randn(2, 1, *(12, 9, 8)[:spatial_dims])
    network.train()(image)  # moves the running statistics of batch norm
    torch.save(network.state_dict(), tmp_path / "model.pt")
    copy = UNet(spatial_dims, 1, 3, **settings)
    copy.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    with torch.inference_mode():
        assert torch.equal(copy.eval()(image), network.eval()(image))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_last_channel_in_memory_gives_the_same_logits(settings, spatial_dims):
    network = UNet(spatial_dims, 2, 3, **settings).eval()
    image = torch.randn(2, 2, *SIZE[:spatial_dims])
    memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}[spatial_dims]
    with torch.inference_mode():
        expected = network(image)
        logits = network.to(memory_format=memory_format)(image.contiguous(memory_format=memory_format))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("upsampling", ["interpolate", "transposed"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_deep_supervision_adds_heads_only_while_training(spatial_dims, upsampling):
    size = SIZE[:spatial_dims]
    network = UNet(
        spatial_dims, 1, 3, widths=(4, 6, 8, 10), upsampling=upsampling, strides=[[2, 2, 1][:spatial_dims], 2, 2],
        deep_supervision=True,
    )  # fmt: skip
    image = torch.randn(2, 1, *size)
    main, *extra = network.train()(image)
    # ceil(33 / 2), ceil(47 / 2), 20 and then halves of those, rounded up
    assert [tuple(head.shape) for head in extra] == [
        (2, 3, *(17, 24, 20)[:spatial_dims]),
        (2, 3, *(9, 12, 10)[:spatial_dims]),
    ]
    logits = network.eval()(image)
    assert logits.shape == (2, 3, *size)
    torch.testing.assert_close(logits, main)


@pytest.mark.parametrize("residual", [True, False])
def test_dropout_acts_only_while_training(residual):
    network = UNet(3, 1, 2, widths=(8, 8), residual=residual, dropout=0.5)
    image = torch.randn(1, 1, 9, 8, 7)
    assert not torch.allclose(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))


def test_each_level_divides_the_grid_by_its_stride_rounding_up():
    network = UNet(3, 1, 2, widths=(4, 6, 8), strides=[[2, 2, 1], [3, 2, 2]])
    pyramid = network.encoder(torch.randn(1, 1, *SIZE))
    assert [tuple(level.shape) for level in pyramid] == [(1, 4, 33, 47, 20), (1, 6, 17, 24, 20), (1, 8, 6, 12, 10)]


def test_parameters_are_those_counted_by_hand():
    # encoder: 27 * (1*2 + 2*2) + 4 + 4 = 170 and 27 * (2*4 + 4*4) + 8 + 8 = 664; 1x1 convolution 4*2 + 2 = 10;
    # decoder: 27 * (4*2 + 2*2) + 4 + 4 = 332; head 2*3 + 3 = 9
    assert sum(parameter.numel() for parameter in UNet(3, 1, 3, widths=(2, 4)).parameters()) == 1185
    # a transposed convolution instead: 8 * 4*2 + 2 = 66
    transposed = UNet(3, 1, 3, widths=(2, 4), upsampling="transposed")
    assert sum(parameter.numel() for parameter in transposed.parameters()) == 1185 - 10 + 66


def test_skips_reach_the_logits():
    network = UNet(3, 1, 2, widths=(4, 6, 8)).eval()
    for climb in network.decoder.climbs:
        climb.conv.weight.data.zero_()
    flat, image = torch.zeros(1, 1, 9, 8, 7), torch.randn(1, 1, 9, 8, 7)
    with torch.inference_mode():
        assert not torch.allclose(network(flat), network(image))


def test_networks_load_without_monai():
    code = "import sys, medseg.networks; sys.exit('monai' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strides": [2, 2]}, "strides has 2 entries; give 4, or one number for all"),
        ({"kernel_sizes": [3, 3]}, "kernel_sizes has 2 entries; give 5, or one number for all"),
        ({"strides": [[2, 2], 2, 2, 2]}, r"got \[2, 2\] for 3 axes"),
        ({"kernel_sizes": 4}, r"UNet: kernel_sizes are .*4.*; use odd ones"),
        ({"widths": (8,)}, r"UNet: got 1 widths and 2 blocks_per_level; use at least 2 and 1"),
        ({"blocks_per_level": 0}, r"UNet: got 5 widths and 0 blocks_per_level"),
        ({"norm": "group"}, "norm is 'group'; use 'instance' or 'batch'"),
        ({"activation": "gelu"}, "activation is 'gelu'; use 'relu' or 'leaky_relu'"),
        ({"upsampling": "nearest"}, "upsampling is 'nearest'; use 'interpolate' or 'transposed'"),
    ],
)
def test_contradicting_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        UNet(3, 1, 3, **settings)


def test_only_two_and_three_dimensions_exist():
    with pytest.raises(ConfigError, match="spatial_dims is 4; use 2 or 3"):
        UNet(4, 1, 3)
