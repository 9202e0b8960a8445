"""What decides the masks of a folder: model and settings; and `run.json`, which says how to repeat a run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medseg import __version__
from medseg.bundle import Bundle
from medseg.data_half import data_half


@dataclass(frozen=True)
class RunSettings:
    """What a mask and its row depend on besides the scan; device, batch and memory choices are left out on purpose.

    Attributes:
        model: name of the model.
        version: its version.
        weights_sha256: of its weights; of several folds the digest of their digests.
        recipe_sha256: of the data half of its recipe.
        precision: floating-point type that the network runs in.
        mirroring: whether logits are averaged over mirrored windows.
        folds: folds of an ensemble that are used; empty for a single model.
        cleanup: whether the model's clean-up rules are applied.
        temperature: of the confidence.
        medseg: major and minor version of medseg.
    """

    model: str
    version: str
    weights_sha256: str
    recipe_sha256: str
    precision: str
    mirroring: bool = False
    folds: tuple[int, ...] = ()
    cleanup: bool = True
    temperature: float = 1.0
    medseg: str = ".".join(__version__.split(".")[:2])

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        *,
        precision: str | None = None,
        mirroring: bool = False,
        folds: Sequence[int] | None = None,
        cleanup: bool = True,
    ) -> "RunSettings":
        """The settings of a run with `bundle`; hashes its weights, loads no model and no torch.

        Args:
            bundle: the model.
            precision: instead of the bundle's own.
            mirroring: whether logits are averaged over mirrored windows.
            folds: of an ensemble, instead of all.
            cleanup: whether the clean-up rules are applied.
        """
        used = bundle.folds if folds is None else tuple(folds)
        half = json.dumps(data_half(bundle.recipe), sort_keys=True)
        return cls(
            model=bundle.name,
            version=bundle.version,
            weights_sha256=bundle.weights_sha256(used),
            recipe_sha256=hashlib.sha256(half.encode()).hexdigest(),
            precision=precision or bundle.precision,
            mirroring=mirroring,
            folds=used,
            cleanup=cleanup,
            temperature=bundle.temperature,
        )

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "RunSettings":
        """What `as_json` wrote."""
        return cls(**{**content, "folds": tuple(content["folds"])})

    def as_json(self) -> dict[str, Any]:
        """All settings as JSON data."""
        return asdict(self) | {"folds": list(self.folds)}

    @property
    def digest(self) -> str:
        """16 hex digits that change with any setting."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: "RunSettings") -> list[str]:
        """What `other` has otherwise, a phrase a setting, such as "precision float32, now bfloat16"."""
        mine, others = self.as_json(), other.as_json()
        return [
            f"{NAMES.get(key, key)} {_short(mine[key])}, now {_short(others[key])}"
            for key in mine
            if mine[key] != others[key]
        ]


NAMES = {
    "weights_sha256": "weights",
    "recipe_sha256": "recipe",
    "cleanup": "clean-up",
    "version": "model version",
    "medseg": "medseg version",
}


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return value[:12] if len(str(value)) == 64 else str(value)
