import pytest
import torch

from medseg.errors import ConfigError
from medseg.networks.glore import GraphReasoning

SIZE = (5, 7, 3)


def block(spatial_dims, channels=6, **settings):
    return GraphReasoning(spatial_dims, channels, **settings).double().eval()


def features(spatial_dims, batch=2, channels=6):
    return torch.randn(batch, channels, *SIZE[:spatial_dims], dtype=torch.float64)


def weights_of(module):
    return module.weight.flatten(1), module.bias


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_it_is_the_formula_written_out_voxel_by_voxel(spatial_dims):
    network = block(spatial_dims, states=3, nodes=2, norm=None)
    image = features(spatial_dims, batch=1)
    voxels = image.flatten(2)[0].T  # (voxels, channels)
    theta, theta_bias = weights_of(network.state)
    phi, phi_bias = weights_of(network.share)
    adjacency, adjacency_bias = network.between_nodes.weight, network.between_nodes.bias
    back, back_bias = weights_of(network.back[0])

    node_states = torch.zeros(2, 3, dtype=torch.float64)
    for voxel in voxels:
        share, state = phi @ voxel + phi_bias, theta @ voxel + theta_bias
        for node in range(2):
            node_states[node] += share[node] * state / len(voxels)
    answers = []
    for node in range(2):
        heard = sum(adjacency[node, other] * node_states[other] for other in range(2)) + adjacency_bias[node]
        answers.append(network.between_states.weight @ (node_states[node] + heard).clamp(min=0))
    expected = []
    for voxel in voxels:
        share = phi @ voxel + phi_bias
        expected.append(voxel + back @ sum(share[node] * answers[node] for node in range(2)) + back_bias)

    out = network(image)
    assert out.shape == image.shape
    torch.testing.assert_close(out.flatten(2)[0].T, torch.stack(expected))


@pytest.mark.parametrize("norm", ["instance", "batch", None])
@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_a_repeated_volume_gives_the_answer_of_its_slice(axis, norm):
    flat, volume = block(2, norm=norm), block(3, norm=norm)
    volume.load_state_dict(
        {key: value[..., None] if value.ndim == 4 else value for key, value in flat.state_dict().items()}
    )
    image = features(2)
    out = volume(image.unsqueeze(axis).repeat_interleave(4, axis))
    torch.testing.assert_close(out, flat(image).unsqueeze(axis).expand_as(out), atol=1e-12, rtol=0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_far_voxel_changes_every_other(spatial_dims):
    network, image = block(spatial_dims), features(spatial_dims, batch=1)
    other = image.clone()
    other.flatten(2)[:, :, -1] += 3
    changed = (network(other) - network(image)).flatten(2).abs().amax(1)
    assert (changed > 1e-9).all()


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("side", [1, 2])
def test_one_small_map_trains_every_weight(spatial_dims, norm, side):
    network = block(spatial_dims, norm=norm).train()
    for _ in range(3):  # a ReLU may be silent for one of them
        image = torch.randn(1, 6, *(side,) * spatial_dims, dtype=torch.float64)
        network(image).square().sum().backward()
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in network.parameters())


def test_the_paper_s_widths_are_the_defaults():
    network = GraphReasoning(2, 512)
    assert network.state.out_channels == 128
    assert network.share.out_channels == 64
    # state 512*128 + 128, share 512*64 + 64, nodes 64*64 + 64, states 128*128, back 128*512, norm 2*512
    expected = 65664 + 32832 + 4160 + 16384 + 65536 + 1024
    assert sum(weight.numel() for weight in network.parameters()) == expected


def test_half_precision_does_not_overflow_on_a_large_map():
    network = GraphReasoning(3, 4, norm=None).eval().half()
    for module in (network.state, network.share):
        torch.nn.init.constant_(module.weight, 1)
    image = torch.full((1, 4, 40, 40, 40), 2.0, dtype=torch.float16)  # a plain sum: 64000 voxels of 8 * 8, above 65504
    assert network(image).isfinite().all()


@pytest.mark.parametrize("settings", [{"states": 0}, {"nodes": 0}])
def test_an_empty_graph_is_refused(settings):
    with pytest.raises(ConfigError, match=r"GraphReasoning: got \d+ states and \d+ nodes; use at least 1 of each"):
        GraphReasoning(2, 8, **settings)


def test_four_dimensions_are_refused():
    with pytest.raises(ConfigError, match="spatial_dims is 4; use 2 or 3"):
        GraphReasoning(4, 8)
