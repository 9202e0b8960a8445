"""Flags: what in a result a person should look at first. A flag says what was seen, never that the mask is wrong."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError
from medseg.geometry import Box, connected_pieces, voxel_volume_ml, voxels_of_pieces
from medseg.regions import LabelFacts


@dataclass(frozen=True)
class FlagRules:
    """Thresholds of a recipe, under its id `flags`; a rule that is not given raises no flag.

    Attributes:
        volume_ml: region -> smallest and largest plausible volume, in mL.
        pieces_above_ml: region -> volume in mL from which a second piece, before clean-up, is worth a look.
        at_border: regions that should end inside the scan.
        none_found: regions that every scan should have.
        removed_above_ml: region -> volume in mL that clean-up may take from it unmentioned.
        confidence_below: mean confidence of a region, 0 to 1, below which it is worth a look; of all, or by region.
        agreement_below: Dice between predictions mirrored and not, or of folds, below which it is worth a look; of
            all regions, or by region, for small ones agree less.
    """

    volume_ml: Mapping[str, Sequence[float]] = field(default_factory=dict)
    pieces_above_ml: Mapping[str, float] = field(default_factory=dict)
    at_border: Sequence[str] = ()
    none_found: Sequence[str] = ()
    removed_above_ml: Mapping[str, float] = field(default_factory=dict)
    confidence_below: float | Mapping[str, float] = 0.0
    agreement_below: float | Mapping[str, float] = 0.0

    @classmethod
    def read(cls, content: Any, regions: Mapping[str, Any]) -> "FlagRules":
        """Rules of a recipe's `flags`.

        Args:
            content: what the recipe says; None for no rules.
            regions: the recipe's regions.

        Raises:
            ConfigError: if a rule or a region is not known, or a threshold is none.
        """
        if content is None:
            return cls()
        known = [each.name for each in fields(cls)]
        if not isinstance(content, Mapping) or set(content) - set(known):
            raise ConfigError(f"flags: give rules of {', '.join(known)}, each with its thresholds")
        rules = cls(**content)
        try:
            rules._check(regions)
        except (TypeError, AttributeError, KeyError) as error:  # a number where a table is due, or the like
            raise ConfigError(
                f"flags: a rule has another form than it needs ({error}); write it as configs/unet_liver.json does"
            ) from error
        return rules

    def _check(self, regions: Mapping[str, Any]) -> None:
        named = {*self.volume_ml, *self.pieces_above_ml, *self.at_border, *self.none_found, *self.removed_above_ml}
        shares = {name: getattr(self, name) for name in ("confidence_below", "agreement_below")}
        by_region = {
            f"{name}::{key}" if key else name: share
            for name, rule in shares.items()
            for key, share in (rule if isinstance(rule, Mapping) else {"": rule}).items()
        }
        named.update(*(rule for rule in shares.values() if isinstance(rule, Mapping)))
        unknown = sorted(named - set(regions))
        if unknown:
            known = ", ".join(regions)
            raise ConfigError(
                f"flags: no region {', '.join(unknown)}; this recipe has {known}; set flags for these, or to {{}}"
            )
        for region, ends in self.volume_ml.items():
            if len(ends) != 2 or not 0 <= ends[0] < ends[1]:
                raise ConfigError(f"flags::volume_ml::{region}: is {list(ends)}; give the smallest and the largest mL")
        for name, share in by_region.items():
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ConfigError(f"flags::{name}: is {share}; give a share from 0 to 1, such as 0.7")


def flags_of(
    label: NDArray[np.integer] | LabelFacts,
    raw: NDArray[np.integer] | LabelFacts,
    affine: NDArray[np.float64],
    *,
    regions: Mapping[str, Sequence[int]],
    rules: FlagRules,
    confidence: Mapping[str, float] | None = None,
    agreement: Mapping[str, float] | None = None,
) -> list[str]:
    """What to look at in a case, one short sentence each.

    Args:
        label: the finished mask `(X, Y, Z)`, or its facts where they are known.
        raw: the mask before clean-up, or its facts.
        affine: `(4, 4)`, voxel index to mm.
        regions: name -> label values.
        rules: thresholds.
        confidence: mean confidence of each region, if it is known.
        agreement: Dice of each region between several predictions, if there were several.
    """
    voxel_ml, facts, before = voxel_volume_ml(affine), LabelFacts.of(label), LabelFacts.of(raw)
    flags = []
    for region, values in regions.items():
        volume = facts.voxels(values) * voxel_ml
        if volume == 0:
            if region in rules.none_found:
                flags.append(f"{region}: none found")
        else:
            flags += _volume_flags(region, volume, rules)
            if region in rules.at_border and touches_border(facts.box(values), facts.label.shape):
                flags.append(f"{region}: reaches the border of the scan, so its volume may be too small")
        flags += _cleanup_flags(region, values, before, voxel_ml, rules, volume=volume)
        flags += doubt_flags([region], rules, confidence=confidence or {}, agreement=agreement or {})
    return flags


def doubt_flags(
    regions: Iterable[str], rules: FlagRules, *, confidence: Mapping[str, float], agreement: Mapping[str, float]
) -> list[str]:
    """Regions that the network is not sure of, or several predictions see otherwise.

    Args:
        regions: names.
        rules: thresholds.
        confidence: mean confidence of each region, as far as it is known.
        agreement: Dice of each region between several predictions, if there were several.
    """
    flags = []
    for region in regions:
        if confidence.get(region, 1.0) < _below(rules.confidence_below, region):
            flags.append(f"{region}: low confidence ({confidence[region]:.2f})")
        if agreement.get(region, 1.0) < _below(rules.agreement_below, region):
            flags.append(f"{region}: predictions disagree (Dice {agreement[region]:.2f})")
    return flags


def _below(rule: float | Mapping[str, float], region: str) -> float:
    """The threshold of a region, of a rule for all or by region; 0 for none."""
    return rule.get(region, 0.0) if isinstance(rule, Mapping) else rule


def touches_border(box: Box | None, shape: Sequence[int]) -> bool:
    """Whether a box has the first or last slice along any axis of a grid; an axis of one voxel does not count."""
    if box is None:
        return False
    return any(length > 1 and (part.start == 0 or part.stop == length) for part, length in zip(box, shape, strict=True))


def _volume_flags(region: str, volume: float, rules: FlagRules) -> list[str]:
    if region not in rules.volume_ml:
        return []
    low, high = rules.volume_ml[region]
    if low <= volume <= high:
        return []
    return [f"{region}: {volume:.1f} mL, outside the expected {low:g} to {high:g} mL"]


def _cleanup_flags(
    region: str, values: Sequence[int], raw: LabelFacts, voxel_ml: float, rules: FlagRules, *, volume: float
) -> list[str]:
    flags = []
    box = raw.box(values)
    if region in rules.pieces_above_ml and box is not None:
        threshold = rules.pieces_above_ml[region]
        pieces, count = connected_pieces(raw.mask(values, box))
        large = int((voxels_of_pieces(pieces, count) * voxel_ml >= threshold).sum()) if count > 1 else 1
        if large > 1:
            flags.append(f"{region}: {large} separate pieces of {threshold:g} mL or more before clean-up")
    if region in rules.removed_above_ml:
        removed = raw.voxels(values) * voxel_ml - volume
        if removed > rules.removed_above_ml[region]:
            flags.append(f"{region}: clean-up removed {removed:.1f} mL")
    return flags
