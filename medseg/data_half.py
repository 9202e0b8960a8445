"""The data half of a recipe: what predicting needs, read without running the recipe.

It holds literals, `@id` references among themselves and `_target_`s from an allow-list, never a `$` expression, so a
bundle from elsewhere can be opened. The grammar is MONAI's: `::` separates the parts of an id.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from medseg.errors import ConfigError

DATA_HALF = (
    "labels",
    "regions",
    "lesion_region",
    "ignore_label",
    "channels",
    "spatial_dims",
    "in_channels",
    "out_channels",
    "activation",
    "spacing_mm",
    "body_only",
    "intensity",
    "patch_size",
    "neighbors",
    "network_def",
    "scan_to_grid",
    "inferer",
    "cleanup",
)
ALLOWED_TARGETS = (
    "medseg.networks",
    "medseg.preprocessing",
    "medseg.postprocessing",
    "medseg.cleanup",
    "medseg.inference",
    "medseg.crf",
    "monai.networks.nets",
)
NOTES = ("_desc_", "_disabled_")  # keys of a component that are no arguments, besides `_target_`
REFERENCE = re.compile(r"@\w+(?:::\w+)*")

Recipe = Mapping[str, Any]
Component = Callable[[dict[str, Any], str], Any]


def data_half(recipe: Recipe) -> dict[str, Any]:
    """The data half alone, every reference replaced by what it stands for, as JSON data.

    Args:
        recipe: merged recipe with its `%` macros expanded.

    Raises:
        ConfigError: if it cannot be read without running the recipe; names the id.
    """
    return {id: literal(recipe, id) for id in DATA_HALF if id in recipe}


def literal(recipe: Recipe, id: str) -> Any:
    """What `id` of the data half says, as JSON data; components keep their `_target_`.

    Raises:
        ConfigError: if the id is missing, or holds an expression, a macro, or a dangling or circular reference.
    """
    return _resolve(look_up(recipe, id, id), id, recipe, (id,), _keep)


def build(recipe: Recipe, id: str) -> object:
    """The object that `id` of the data half describes; classes come from `ALLOWED_TARGETS` only.

    Raises:
        ConfigError: as `literal`, and if a class is not allowed, not there, or refuses its arguments.
    """
    return _resolve(look_up(recipe, id, id), id, recipe, (id,), _instance)


def look_up(recipe: Recipe, id: str, where: str) -> Any:
    """The raw content of `id` (`"inferer::patch_size::0"`), which the recipe mentions at `where`."""
    content: Any = recipe
    for key in id.split("::"):
        try:
            content = content[int(key)] if isinstance(content, list) else content[key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            wanted = (
                "is missing from the recipe" if id == where else f"refers to '@{id}', which the recipe does not have"
            )
            raise ConfigError(f"{where}: {wanted}; add it, or correct the name") from error
    return content


def problems(recipe: Recipe) -> list[str]:
    """All that keeps the data half from being read, then what contradicts itself in it; empty if it is sound."""
    found, half = [], {}
    for id in DATA_HALF:
        try:
            if id in recipe:
                half[id] = literal(recipe, id)
        except ConfigError as error:
            found.append(str(error))
    return list(dict.fromkeys(found)) + contradictions(half)


def contradictions(half: Recipe) -> list[str]:
    """Numbers and names of a resolved data half that do not fit each other, a sentence each; absent ids are skipped."""
    labels, regions, channels = half.get("labels", {}), half.get("regions", {}), half.get("channels", [])
    if not isinstance(labels, Mapping) or not all(type(value) is int for value in labels.values()):
        return [f"labels: must map each name to an integer, got {labels!r}"]
    if not isinstance(regions, Mapping) or not all(isinstance(values, list) for values in regions.values()):
        return [f"regions: must map each name to a list of label values, got {regions!r}"]
    if not isinstance(channels, list):
        return [f"channels: must be a list of names, got {channels!r}"]
    found = [f"labels: {clash}; give each name its own value" for clash in _clashes(labels)]
    found += _wrong_channels(half, channels)
    found += _wrong_outputs(half, labels, regions)
    for region, values in regions.items():
        strange = [value for value in values if value not in labels.values()]
        if strange or not values:
            named = f"label value {strange[0]!r}, which labels does not have" if strange else "no label value"
            found.append(f"regions::{region}: names {named}; known are {dict(labels)}")
    if half.get("lesion_region") is not None and half["lesion_region"] not in regions:
        found.append(f"lesion_region: {half['lesion_region']!r} is not one of the regions ({', '.join(regions)})")
    ignored = half.get("ignore_label")
    judged = {value for values in regions.values() for value in values}
    if ignored is not None and (not isinstance(ignored, int) or not 0 < ignored < 256 or ignored in judged):
        found.append(f"ignore_label: is {ignored!r}; give a value from 1 to 255 that no region has")
    return found + _wrong_lengths(half) + _wrong_dimensions(half) + _lengths_in_mm(half) + _no_body(half)


def class_count(labels: Mapping[str, int], ignore_label: int | None = None) -> int:
    """Classes of the labels, background included: 1 + the highest value."""
    return 1 + max((value for value in labels.values() if value != ignore_label), default=-1)


def painted_values(regions: Mapping[str, Sequence[int]]) -> list[int]:
    """The one value that each region has and no later region: `{"liver": [1, 2], "tumor": [2]}` -> `[1, 2]`.

    Raises:
        ConfigError: if a region has no such value, or several.
    """
    found = []
    names = list(regions)
    for index, name in enumerate(names):
        own = set(regions[name]) - {value for later in names[index + 1 :] for value in regions[later]}
        if len(own) != 1:
            raise ConfigError(
                f"regions::{name} has {len(own)} label values that no later region has, {sorted(own)}; painting one "
                "region over the other needs exactly one, so name larger regions before those inside them"
            )
        found.append(own.pop())
    return found


def _wrong_outputs(half: Recipe, labels: Mapping[str, int], regions: Mapping[str, Sequence[int]]) -> list[str]:
    """Channels that the network gives against the classes or, of a sigmoid, the regions."""
    activation = half.get("activation", "softmax")
    if activation == "softmax":
        wanted = class_count(labels, half.get("ignore_label")) if labels else None
        reason = f"the labels run from 0 to {(wanted or 0) - 1}"
    elif activation == "sigmoid":
        wanted = len(regions) or None
        reason = f"activation is 'sigmoid', one channel a region ({', '.join(regions)})"
    else:
        return [f"activation: is {activation!r}; give 'softmax' (a class a voxel) or 'sigmoid' (a channel a region)"]
    found = []
    if wanted is not None and half.get("out_channels", wanted) != wanted:
        found.append(f"out_channels: is {half['out_channels']}, but {reason}; set it to {wanted}")
    if activation == "sigmoid":
        try:
            painted_values(regions)
        except ConfigError as error:
            found.append(str(error))
    return found


def _wrong_channels(half: Recipe, channels: Sequence[str]) -> list[str]:
    """Channels of the network against those of a case, each there once a slice where a slice sees its neighbors."""
    neighbors, found = half.get("neighbors", 0), []
    if type(neighbors) is not int or neighbors < 0:
        return [f"neighbors: is {neighbors!r}; give the number of slices on each side, 0 for none"]
    wanted = len(channels) * (2 * neighbors + 1)
    if channels and half.get("in_channels", wanted) != wanted:
        slices = f", each in {2 * neighbors + 1} slices, which needs {wanted}" if neighbors else ""
        found.append(
            f"in_channels: is {half['in_channels']}, but channels names {len(channels)} ({', '.join(channels)})"
            f"{slices}; make them agree"
        )
    inferer = half.get("inferer")
    seen = inferer.get("neighbors", 0) if isinstance(inferer, Mapping) else neighbors
    if seen != neighbors:
        found.append(
            f'inferer::neighbors: is {seen}, but neighbors is {neighbors}; write "@neighbors" there, which '
            "configs/slices_2d.json does"
        )
    return found


def in_pixels(half: Recipe) -> bool:
    """Whether a resolved data half is one of 2D images, which have no mm."""
    scan_to_grid = half.get("scan_to_grid")
    return isinstance(scan_to_grid, Mapping) and str(scan_to_grid.get("_target_", "")).endswith(".ImageToGrid")


def _lengths_in_mm(half: Recipe) -> list[str]:
    """Settings in mm or mL in a recipe of 2D images."""
    if not in_pixels(half):
        return []
    rules = [rule for rule in half.get("cleanup") or [] if isinstance(rule, Mapping)]
    named = [
        (f"cleanup::{index}::{key}", key)
        for index, rule in enumerate(rules)
        for key in rule
        if key.endswith(("_mm", "_ml"))
    ]
    if half.get("spacing_mm") is not None:
        named.append(("spacing_mm", "spacing_mm"))
    return [
        f"{where}: 2D images have no mm; " + ("use below_px" if key == "below_ml" else "remove it")
        for where, key in named
    ]


def _no_body(half: Recipe) -> list[str]:
    """A body box where it cannot be found."""
    steps, intensity = half.get("scan_to_grid"), half.get("intensity")
    wanted = [part.get("body_only", False) for part in (half, steps) if isinstance(part, Mapping)]
    strange = [value for value in wanted if not isinstance(value, bool)]
    if strange:
        return [f"body_only: is {strange[0]!r}; give true or false"]
    target = str(intensity.get("_target_", "")) if isinstance(intensity, Mapping) else ""
    if any(wanted) and not target.endswith("preprocessing.Window"):
        named = target.rpartition(".")[2] or "missing"
        return [f"body_only: is true, which needs HU, but intensity is {named}; set body_only to false, or use Window"]
    return []


def _clashes(labels: Mapping[str, int]) -> list[str]:
    first: dict[int, str] = {}
    for name, value in labels.items():
        first.setdefault(value, name)
    return [f"'{name}' and '{first[value]}' are both {value}" for name, value in labels.items() if first[value] != name]


def _wrong_lengths(half: Recipe) -> list[str]:
    spatial_dims = half.get("spatial_dims")
    # a 2D network goes slice by slice over scans that are resampled in 3D
    allowed = {"patch_size": {spatial_dims}, "spacing_mm": {spatial_dims, 3}}
    return [
        f"{id}: has {len(half[id])} lengths {half[id]}, but spatial_dims is {spatial_dims}; give one an axis"
        for id, lengths in allowed.items()
        if spatial_dims is not None and isinstance(half.get(id), list) and len(half[id]) not in lengths
    ]


def _wrong_dimensions(half: Recipe) -> list[str]:
    network_def, spatial_dims = half.get("network_def"), half.get("spatial_dims")
    while isinstance(network_def, Mapping) and "network" in network_def:  # as in PadToMultiple
        network_def = network_def["network"]
    own = network_def.get("spatial_dims", spatial_dims) if isinstance(network_def, Mapping) else spatial_dims
    if own == spatial_dims:
        return []
    return [
        f"network_def::spatial_dims: is {own}, but the recipe's spatial_dims is {spatial_dims}; take the network's "
        f"{spatial_dims}D form, or the recipe's {own}D one (configs/slices_2d.json makes 2D of 3D)"
    ]


def _resolve(content: Any, where: str, recipe: Recipe, trail: Sequence[str], component: Component) -> Any:
    """`content`, found at `where`, with references followed and components passed through `component`."""
    if isinstance(content, str):
        id = _reference(content, where)
        if id is None:
            return content
        if id in trail:
            raise ConfigError(f"{where}: '@{id}' leads back to itself; break the circle")
        return _resolve(look_up(recipe, id, where), id, recipe, (*trail, id), component)
    if isinstance(content, list):
        return [
            _resolve(value, f"{where}::{index}", recipe, trail, component)
            for index, value in enumerate(content)
            if not _is_disabled(value)
        ]
    if isinstance(content, Mapping):
        resolved = {
            key: _resolve(value, f"{where}::{key}", recipe, trail, component)
            for key, value in content.items()
            if not _is_disabled(value)
        }
        return component(resolved, where) if "_target_" in content else resolved
    return content


def _reference(text: str, where: str) -> str | None:
    """The id that `text` refers to, None for plain text."""
    if text.startswith("$"):
        raise ConfigError(f"{where}: holds the expression {text!r}; the data half takes only values and references")
    if text.startswith("%"):
        raise ConfigError(f"{where}: holds the macro {text!r}; a bundle's recipe has its macros expanded")
    text = text.replace("#", "::")  # MONAI's older separator
    return text[1:] if REFERENCE.fullmatch(text) else None


def _is_disabled(content: Any) -> bool:
    """Whether MONAI would leave this component out of its list or dictionary."""
    if not isinstance(content, Mapping) or "_target_" not in content:
        return False
    return str(content.get("_disabled_", False)).strip().lower() == "true"


def _keep(content: dict[str, Any], where: str) -> dict[str, Any]:
    """Leave a component as JSON data, if its class may be named here."""
    _check_allowed(content["_target_"], where)
    return content


def _instance(content: dict[str, Any], where: str) -> object:
    """Make the object that a component describes."""
    target = content["_target_"]
    found = _find_class(target, where)
    downloads = [key for key in content if key.startswith("pretrained")]  # some of MONAI's networks fetch weights
    if downloads:
        raise ConfigError(f"{where}::{downloads[0]}: weights come from the bundle alone; remove it")
    # the bundle's own weights are loaded next: the files that a training started from need not be there
    left_out = ("_target_", *NOTES, *(("weights",) if target.startswith("medseg.networks") else ()))
    arguments = {key: value for key, value in content.items() if key not in left_out}
    try:
        return found(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {target} does not take these settings: {error}") from error
    except ImportError as error:  # some of MONAI's networks need a further package
        missing = str(error).partition("\n")[0]
        raise ConfigError(f"{where}: {target} needs a package that is not installed ({missing})") from error


def _find_class(target: str, where: str) -> type:
    _check_allowed(target, where)
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "monai":
            raise ConfigError(f"{where}: {target} needs MONAI: pip install 'medseg[train]'") from error
        raise ConfigError(
            f"{where}: there is no {target}; check its spelling and medseg's version ({error})"
        ) from error
    # a module also shows what it imports (`medseg.networks.unet.torch`): only its own classes count
    if not isinstance(found, type) or not _is_allowed(found.__module__):
        raise ConfigError(f"{where}: {target} is not one of the classes of {', '.join(ALLOWED_TARGETS)}")
    return found


def _check_allowed(target: Any, where: str) -> None:
    if not isinstance(target, str) or not _is_allowed(target):
        raise ConfigError(
            f"{where}: '_target_' {target!r} is not allowed in the data half; "
            f"name a class of {', '.join(ALLOWED_TARGETS)} by its full path"
        )


def _is_allowed(path: str) -> bool:
    return any(path == allowed or path.startswith(f"{allowed}.") for allowed in ALLOWED_TARGETS)
