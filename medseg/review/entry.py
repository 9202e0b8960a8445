"""The one form that runs and evaluations are brought to, to be compared."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medseg import data_half
from medseg.errors import ConfigError

Row = dict[str, float | None]
SIZES = ("ml", "px", "mm2")
VERSIONS = ("medseg", "python", "monai", "torch", "numpy", "scipy", "nibabel", "SimpleITK", "pytorch-ignite", "device")


@dataclass(frozen=True)
class Entry:
    """One of the things that are compared.

    Attributes:
        name: of its model or run; never a path.
        split: which cases it was judged on, as its table is called.
        rows: case id -> metric -> value, None where it is not defined.
        failed: cases that were to be judged and gave no mask; they count, with the values of an empty mask.
        unjudged: cases that could not be judged at all.
        patients: case id -> whose it is, where known.
        found: case id -> reference lesion -> whether it was found.
        recipe: flat settings.
        overrides: flat settings that were changed at the launch.
        data: what is known of the data it learned from.
        code: commit, changes, versions.
        facts: model, version, precision, split and the like.
        cost: milliseconds, memory and parameters, where known.
    """

    name: str
    split: str
    rows: Mapping[str, Row]
    failed: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    patients: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, Mapping[int, bool]] = field(default_factory=dict)
    recipe: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def synthetic(self) -> bool:
        """Whether it is known to have learned from synthetic data alone."""
        return "true" in (self.facts.get("synthetic"), self.data.get("synthetic"))


def parameters_of(recipe: Mapping[str, Any]) -> float | None:
    """How many numbers the network of a recipe learns, without making them; None if it cannot be told."""
    import torch

    try:
        with torch.device("meta"):
            network = data_half.build(recipe, "network_def")
    except (ConfigError, RuntimeError, NotImplementedError):
        return None
    return float(sum(p.numel() for p in network.parameters())) if isinstance(network, torch.nn.Module) else None


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if value is None or value == "" or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def texts(content: Mapping[str, Any]) -> dict[str, str]:
    """What is known, as text."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in content.items()
        if value not in (None, "")
    }
