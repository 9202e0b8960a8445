"""Mean-field inference in a fully connected conditional random field, pure torch, 2D and 3D."""

from collections.abc import Sequence

import torch
from torch import Tensor

from medseg.crf.kernels import Messages


def mean_field(
    logits: Tensor, kernels: Sequence[tuple[Messages, Tensor | float]], compatibility: Tensor, *, iterations: int
) -> Tensor:
    """Logits after rounds of message passing; their softmax is the mean field `Q`.

    `Q` starts as the softmax of `logits`. Each round replaces it by the softmax of
    `logits_l - sum_l' compatibility(l, l') sum_m weight_m sum_{j != i} k_m(i, j) Q_j(l')`.

    Args:
        logits: minus the unary energies, `(C, *spatial)`.
        kernels: each with its weight, a number or one a class (`(C,)`).
        compatibility: `(C, C)`, the penalty of label l beside label l'; `potts` for 1 where they differ.
        iterations: rounds; 0 gives the logits back.

    Reference:
        Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", 2011,
        arXiv:1210.5644, algorithm 1 (all voxels updated at once).
    """
    refined = logits
    for _ in range(iterations):
        probabilities = torch.softmax(refined, dim=0)
        heard = torch.zeros_like(logits)
        for messages, weight in kernels:
            by_class = torch.as_tensor(weight, dtype=logits.dtype, device=logits.device).view(
                -1, *(1,) * (logits.ndim - 1)
            )
            heard = heard + by_class * messages(probabilities)
        refined = logits - torch.tensordot(compatibility.to(logits), heard, dims=1)
    return refined


def potts(classes: int) -> Tensor:
    """`(C, C)`: 1 where two labels differ, 0 on the diagonal."""
    return 1 - torch.eye(classes)
