"""Networks of other projects that take only sizes divisible by some number, made to take any."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import ConfigError
from medseg.networks.blocks import check_counts, crop_like, per_axis


class PadToMultiple(nn.Module):
    """Image of any size -> logits on its grid, from a network that takes only multiples of `multiple`.

    The image is continued beyond its far borders by its last voxels, and the logits are cropped.

    Args:
        network: image `(B, C, *spatial)` -> logits `(B, K, *spatial)`, every axis a multiple of `multiple`.
        multiple: one number, or one an axis.

    Raises:
        ConfigError: if `multiple` is below 1, or the network gives several heads.
    """

    def __init__(self, network: nn.Module, multiple: int | Sequence[int]) -> None:
        super().__init__()
        check_counts(multiple=multiple)
        self.multiple = multiple if isinstance(multiple, int) else tuple(multiple)
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """`(B, C, *spatial)` -> `(B, K, *spatial)`."""
        size = image.shape[2:]
        multiples = per_axis("multiple", self.multiple, len(size))
        missing = [-length % multiple for length, multiple in zip(size, multiples, strict=True)]
        margins = [side for axis in reversed(missing) for side in (0, axis)]
        logits = self.network(F.pad(image, margins, mode="replicate") if any(missing) else image)
        if not isinstance(logits, Tensor) or logits.ndim != image.ndim:  # MONAI's DynUNet stacks them on a new axis
            raise ConfigError(
                f"PadToMultiple: {type(self.network).__name__} gives several heads, which it cannot crop; "
                "set deep_supervision=False there"
            )
        return crop_like(logits, image) if any(missing) else logits
