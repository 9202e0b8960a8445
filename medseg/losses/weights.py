"""Class weights from label counts."""

from collections.abc import Sequence

from medseg.errors import ConfigError


def class_weights(counts: Sequence[int]) -> list[float]:
    """Weights for cross-entropy from the voxels of each class: the inverse square root of the frequency, mean 1.

    The square root keeps a rare class from drowning the others. A class without voxels gets 1.

    Args:
        counts: voxels per class, background first.

    Raises:
        ConfigError: if no class has a voxel, or a count is negative.
    """
    if min(counts, default=0) < 0 or sum(counts) == 0:
        raise ConfigError(f"class counts are {list(counts)}; at least one class needs voxels, and none can be negative")
    raw = [count**-0.5 for count in counts if count]
    mean = sum(raw) / len(raw)
    return [count**-0.5 / mean if count else 1.0 for count in counts]
