"""What masks are judged by: labels, regions, lesions and what mask files mean, as a recipe or a bundle says it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg import data_half
from medseg.errors import ConfigError
from medseg.reading import MaskCode, Unit

MASK_SETTINGS = {"mask_values": "values", "mask_colors": "colors", "mask_threshold": "threshold"}


@dataclass(frozen=True)
class Judgment:
    """What decides how a mask is judged.

    Attributes:
        labels: name -> label value.
        regions: name -> label values.
        lesion_region: region whose connected pieces are lesions, if there is one.
        ignore_label: reference value of voxels that are not judged.
        unit: of lengths; "px" for 2D images.
        window: intensities shown as black and white, of CT.
        sigmoid: whether the model gives a probability a region, not a class.
        mask_settings: what `MaskCode` takes to read reference masks of images.
    """

    labels: Mapping[str, int]
    regions: Mapping[str, Sequence[int]]
    lesion_region: str | None = None
    ignore_label: int | None = None
    unit: Unit = "mm"
    window: tuple[float, float] | None = None
    sigmoid: bool = False
    mask_settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any]) -> "Judgment":
        """What a recipe (or a bundle's, or `OUT/run.json` of a prediction) says.

        Raises:
            ConfigError: if it names no labels or regions.
        """
        half = {id: data_half.literal(recipe, id) for id in ("labels", "regions")}
        for id in ("lesion_region", "ignore_label", "intensity", "scan_to_grid", "activation"):
            if id in recipe:
                half[id] = data_half.literal(recipe, id)
        intensity = half.get("intensity") or {}
        window = (intensity["low_hu"], intensity["high_hu"]) if "low_hu" in intensity else None
        in_pixels = recipe.get("unit") == "px" or ("scan_to_grid" in half and data_half.in_pixels(half))
        return cls(
            labels=half["labels"],
            regions=half["regions"],
            lesion_region=half.get("lesion_region"),
            ignore_label=half.get("ignore_label"),
            unit="px" if in_pixels else "mm",
            window=window,
            sigmoid=half.get("activation") == "sigmoid",
            mask_settings={
                argument: recipe[setting] for setting, argument in MASK_SETTINGS.items() if recipe.get(setting)
            },
        )

    def code_of_references(self) -> MaskCode | None:
        """What reference masks of images mean; scans hold label values."""
        if self.unit == "mm":
            return None
        return MaskCode(self.labels, ignore_label=self.ignore_label, **self.mask_settings)

    def code_of_predictions(self) -> MaskCode | None:
        """What predicted masks of images mean: label values."""
        return None if self.unit == "mm" else MaskCode(self.labels)


def recipe_file(path: Path) -> dict[str, Any]:
    """A recipe's content; of the recipe nothing is run.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path.name}: no recipe can be read there ({type(error).__name__}); give a file such as "
            "configs/unet_liver.json"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: holds no recipe; give a file such as configs/unet_liver.json")
    return content
