"""What is wrong with a merged recipe, found before anything of it runs: names, classes, arguments, references."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils import BundlePropertyConfig

from medseg.data_half import DATA_HALF, class_count, literal, problems
from medseg.errors import ConfigError
from medseg.report.flags import FlagRules

# Names that mean something though no `@` leads to them: the data half, MONAI's properties, and what is read by name.
PROPERTY_IDS = {
    entry[BundlePropertyConfig.ID] for table in (TrainProperties, InferProperties) for entry in table.values()
}
READ_BY_NAME = {
    *("imports", "without_dataset", "experiment_name", "run_name", "output_dir", "seed", "gpu_memory_gb"),
    "flags",  # predicting reads it from the bundle
}
RUN_IDS = {"initialize", "run", "training", "evaluation", "inference", "cross_validation", "finalize"}
OWN_IDS = {*DATA_HALF, *PROPERTY_IDS, *READ_BY_NAME, *RUN_IDS}
SECTIONS = ("train", "validate", "test")  # their entries are settings as well, so a misspelled one must not pass
LOWEST = {  # of settings that are whole numbers
    "max_epochs": 1,
    "val_interval": 1,
    "checkpoint_interval": 1,
    "batch_size": 1,
    "batch_per_process": 1,
    "accumulation_steps": 1,
    "patches_per_case": 1,
    "jobs": 1,
    "folds": 1,
    "fold": 0,
    "patience": 0,
    "warmup_steps": 0,
    "num_workers": 0,
}
POSITIVE = ("learning_rate", "max_gradient_norm")
PRECISIONS = ("bfloat16", "float32")
RUN_OPTIONS = ("run_id", "init_id", "final_id", "config_file", "meta_file", "logging_file", "tracking", "args_file")


def recipe_problems(
    parser: ConfigParser,
    *,
    files: Collection[Path] = (),
    asked: Collection[str] = (),
    run_ids: Collection[str] = (),
) -> list[str]:
    """All that is wrong with a recipe, a sentence each; empty if it may run.

    Args:
        parser: holds the merged recipe, parsed (macros expanded) but not yet resolved.
        files: the recipe's files; a name that one of them (or a file that it takes parts of) refers to is used,
            though another overrides the reference.
        asked: ids that the command line sets.
        run_ids: ids that MONAI starts the run with.
    """
    recipe = {id: content for id, content in parser.get().items() if id != ConfigParser.meta_key}
    references = list(_references(recipe))
    contents = [ConfigParser.load_config_file(file) for file in files]
    contents += [ConfigParser.load_config_file(file) for file in _macro_files(contents)]
    written = [pair for content in contents for pair in _references(content)]
    return [
        *_unused_names(recipe, references + written, [id.replace("#", "::") for id in asked], run_ids),
        *_dangling(parser, recipe, references),
        *_wrong_targets(parser, recipe),
        *problems(recipe),
        *_wrong_class_lists(recipe),
        *_wrong_numbers(recipe),
        *_wrong_flags(recipe),
    ]


def _wrong_numbers(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Settings that no training can have; expressions and references are known only once the recipe runs."""
    given = {id: content for id, content in recipe.items() if not _is_expression(content)}
    for id, lowest in LOWEST.items():
        if id in given and (type(given[id]) is not int or given[id] < lowest):
            yield f"{id}: is {given[id]!r}; give a whole number, {lowest} or more"
    for id in POSITIVE:
        number = given.get(id, 1.0)
        if type(number) not in (int, float) or not number > 0:
            yield f"{id}: is {number!r}; give a number above 0"
    if given.get("precision", PRECISIONS[0]) not in PRECISIONS:
        yield f"precision: is {given['precision']!r}; give {' or '.join(map(repr, PRECISIONS))}"


def _wrong_flags(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Rules that no prediction could follow, which would be found when the model is trained."""
    regions = recipe.get("regions")
    if "flags" in recipe and isinstance(regions, Mapping):
        try:
            FlagRules.read(literal(recipe, "flags"), regions)
        except ConfigError as error:
            yield str(error)


def _is_expression(content: Any) -> bool:
    return isinstance(content, str) and content.startswith(("$", "@"))


def _wrong_class_lists(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Lists that need one entry a class, background included."""
    classes, labels = recipe.get("out_channels"), recipe.get("labels")
    if recipe.get("activation") == "sigmoid" and isinstance(labels, Mapping):  # its channels are regions
        classes = class_count(labels, recipe.get("ignore_label"))
    for id in ("class_ratios", "class_weights"):
        content = recipe.get(id)
        if isinstance(content, list) and isinstance(classes, int) and len(content) != classes:
            yield f"{id}: has {len(content)} entries {content}, but there are {classes} classes; give one a class"


def reached(recipe: Mapping[str, Any], ids: Collection[str]) -> set[str]:
    """The ids that running `ids` refers to, directly or on the way."""
    references = list(_references(recipe))
    found: set[str] = set()
    waiting = list(ids)
    while waiting:
        id = waiting.pop()
        found.add(id)
        waiting += [wanted for where, wanted in references if _is_within(where, id) and wanted not in found]
    return found


def _items(content: Any, id: str = "") -> Iterator[tuple[str, Any]]:
    """Every item of a recipe with its id, containers before what they contain."""
    yield id, content
    pairs = content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield from _items(value, f"{id}::{key}" if id else str(key))


def _references(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each `@` of a recipe: the id it stands at, and the id it wants."""
    for where, content in _items(recipe):
        if isinstance(content, str):
            for wanted in ReferenceResolver.match_refs_pattern(content):
                yield where, wanted


def _macro_files(contents: Collection[Mapping[str, Any]]) -> set[str]:
    """Files that recipes take parts of, `%FILE::ID`."""
    texts = [text for content in contents for _, text in _items(content) if isinstance(text, str)]
    return {text[1:].partition("::")[0] for text in texts if text.startswith("%") and ".json" in text}


def _is_within(id: str, container: str) -> bool:
    return id == container or id.startswith(f"{container}::")


def _hint(name: str, candidates: Collection[str]) -> str:
    close = get_close_matches(name, candidates, n=1, cutoff=0.7)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _unused_names(
    recipe: Mapping[str, Any], references: list[tuple[str, str]], asked: Collection[str], run_ids: Collection[str]
) -> Iterator[str]:
    """Settings that nothing reads: misspelled, or left over."""
    sections = [name for name in SECTIONS if isinstance(recipe.get(name), dict) and "_target_" not in recipe[name]]
    names = [*recipe, *(f"{section}::{name}" for section in sections for name in recipe[section])]

    def is_used(id: str) -> bool:
        if id.rpartition("::")[2].startswith("_") or id in run_ids or any(_is_within(own, id) for own in OWN_IDS):
            return True
        return any(
            (_is_within(wanted, id) or _is_within(id, wanted)) and not _is_within(where, id)
            for where, wanted in references
        )

    used = [id for id in names if is_used(id)]
    for id in names:
        if id not in used:
            shown, options = (f"--{id}", RUN_OPTIONS) if id in asked else (id, ())
            yield f"{shown}: nothing in the recipe uses this name{_hint(id, [*used, *options])}"


def _dangling(parser: ConfigParser, recipe: Mapping[str, Any], references: list[tuple[str, str]]) -> Iterator[str]:
    missing = [(where, wanted) for where, wanted in references if wanted not in parser]
    ids = [id for id, _ in _items(recipe)] if missing else []
    for where, wanted in missing:
        yield f"{where}: '@{wanted}' leads to nothing in the recipe{_hint(wanted, ids)}"


def _wrong_targets(parser: ConfigParser, recipe: Mapping[str, Any]) -> Iterator[str]:
    """Classes and functions that are not there, and arguments that they do not have."""
    for id, content in _items(recipe):
        if not ConfigComponent.is_instantiable(content) or ConfigComponent(content).is_disabled():
            continue
        target = content["_target_"]
        if not isinstance(target, str) or target.startswith(("$", "@")):
            continue  # known only once the recipe runs
        try:
            component = _locate(parser, target)
        except ErrorDuringImport as error:
            yield f"{id}: '{target}' cannot be imported: {error.value}"
            continue
        if not callable(component):
            yield f"{id}: there is no class or function '{target}'{_hint(target, _neighbors(parser, target))}"
            continue
        known = _parameters(component)
        for argument in content:
            if known is not None and argument not in known and argument not in ConfigComponent.non_arg_keys:
                yield f"{id}: {target} has no argument '{argument}'{_hint(argument, known)}"


def _locate(parser: ConfigParser, target: str) -> Any:
    """What MONAI will call for `target`: a full path, or the short name of something of its own."""
    module = parser.locator.get_component_module_name(target)
    first = module[0] if isinstance(module, list) else module
    return locate(f"{first}.{target}" if first else target)


def _neighbors(parser: ConfigParser, target: str) -> list[str]:
    """Names that `target` may have been meant to be."""
    module, _, _ = target.rpartition(".")
    if not module:
        return list(parser.locator._components_table or ())
    try:
        names = vars(import_module(module))
    except ImportError:
        return []
    return [f"{module}.{name}" for name, content in names.items() if callable(content) and not name.startswith("_")]


def _parameters(component: Any) -> list[str] | None:
    """Names of the arguments, None if it takes any or does not tell."""
    try:
        parameters = inspect.signature(component).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
