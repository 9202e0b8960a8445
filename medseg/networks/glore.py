"""Graph reasoning (GloRe): voxels are summed into a few nodes, the nodes talk, and the answer is given back.

Reference: Chen et al., "Graph-Based Global Reasoning Networks", CVPR 2019, arXiv:1811.12814 (2D and video).
"""

from math import prod

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.networks.blocks import CONV, NormName, choose, conv_norm


class GraphReasoning(nn.Module):
    """Features plus what a small graph over the whole map says about them; same shape, so it fits any bottleneck.

    Every voxel holds a share in every node; a node's state is the mean over voxels of share times features. A graph
    convolution mixes the nodes (a learned adjacency) and then the states; the same shares bring it back to the voxels.

    The mean in place of the paper's sum is the authors' `normalize` option: the answer then depends neither on the size
    of the map nor on the number of equal slices. Their last norm starts at zero, ours at one: every weight learns from
    the first step.

    Args:
        spatial_dims: 2 or 3.
        channels: of the features, in and out.
        states: numbers that describe a node; by default a quarter of `channels`, as in the paper (128 for 512), but at
            least 8.
        nodes: by default an eighth of `channels`, as in the paper (64 for 512), but at least 4.
        norm: after the projection back.

    Raises:
        ConfigError: if `states` or `nodes` is below 1.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        *,
        states: int | None = None,
        nodes: int | None = None,
        norm: NormName = "batch",
    ) -> None:
        super().__init__()
        conv = choose(CONV, "spatial_dims", spatial_dims)
        states = max(8, channels // 4) if states is None else states
        nodes = max(4, channels // 8) if nodes is None else nodes
        if states < 1 or nodes < 1:
            raise ConfigError(f"GraphReasoning: got {states} states and {nodes} nodes; use at least 1 of each")
        self.state = conv(channels, states, kernel_size=1)
        self.share = conv(channels, nodes, kernel_size=1)
        self.between_nodes = nn.Linear(nodes, nodes)
        self.between_states = nn.Linear(states, states, bias=False)
        self.back = conv_norm(spatial_dims, states, channels, kernel_size=1, norm=norm)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, channels, *spatial)` -> the same shape."""
        size = features.shape[2:]
        states, shares = self.state(features).flatten(2), self.share(features).flatten(2)
        # divided before the sum: a large map must not overflow in half precision
        graph = states @ (shares / prod(size)).transpose(1, 2)  # (B, states, nodes)
        graph = torch.relu(graph + self.between_nodes(graph))
        graph = self.between_states(graph.transpose(1, 2)).transpose(1, 2)
        answer: Tensor = self.back((graph @ shares).unflatten(2, size))
        return features + answer
