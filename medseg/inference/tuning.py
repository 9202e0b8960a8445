"""How a network is run on the machine at hand: windows a batch, memory layout, where to blend. Never its precision."""

from dataclasses import dataclass
from typing import Literal

Layout = Literal["auto", "contiguous", "channels_last"]
BlendOn = Literal["auto", "device", "cpu"]


@dataclass(frozen=True)
class Tuning:
    """Choices about speed and memory. None of them is part of a result's settings.

    Attributes:
        batch_size: windows a forward pass; None lets a short probe choose.
        layout: of the network and its windows; "auto" lets the probe choose.
        compile: run the network through `torch.compile`, which takes up to a minute at the first window.
        blend_on: where windows are blended; "auto" blends on the network's device while its memory allows.
        gpu_memory_gb: what this process may take of a GPU; None for all that is free.
    """

    batch_size: int | None = None
    layout: Layout = "auto"
    compile: bool = False
    blend_on: BlendOn = "auto"
    gpu_memory_gb: float | None = None
