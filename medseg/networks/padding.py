"""Networks of other projects that take only sizes divisible by some number, made to take any."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import ConfigError
from medseg.networks.blocks import per_axis


class PadToMultiple(nn.Module):
    """Image of any size -> logits on its grid, from a network that takes only multiples of `multiple`.

    The image is continued beyond its far borders by its last voxels, and the logits are cropped.

    Args:
        network: image `(B, C, *spatial)` -> logits `(B, K, *spatial)`, every axis a multiple of `multiple`.
        multiple: one number, or one an axis.

    Raises:
        ConfigError: if `multiple` is below 1.
    """

    def __init__(self, network: nn.Module, multiple: int | Sequence[int]) -> None:
        super().__init__()
        self.multiple = (multiple,) if isinstance(multiple, int) else tuple(multiple)
        if min(self.multiple) < 1:
            raise ConfigError(f"PadToMultiple: multiple is {multiple}; use 1 or more")
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """`(B, C, *spatial)` -> `(B, K, *spatial)`."""
        size = image.shape[2:]
        multiples = per_axis(self.multiple[0] if len(self.multiple) == 1 else self.multiple, len(size))
        missing = [-length % multiple for length, multiple in zip(size, multiples, strict=True)]
        if not any(missing):
            return self.network(image)
        margins = [side for axis in reversed(missing) for side in (0, axis)]
        logits: Tensor = self.network(F.pad(image, margins, mode="replicate"))
        return logits[:, :, *(slice(length) for length in size)]
