"""Runs first in every run id: checks the merged recipe, and fills in the phantom where no data set is given.

In a recipe: `"imports": ["$import workflows.recipe as recipe"], "initialize": ["$recipe.prepare()"]`.
"""

import inspect
import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import merge_kv

from medseg.data_half import data_half
from medseg.errors import ConfigError
from workflows import memory_plan
from workflows.checks import reached, recipe_problems
from workflows.failure import end_with_our_line

__all__ = ["data_half", "merged_recipe", "overrides", "prepare"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """How this run was started.

    Attributes:
        workflow: MONAI's running workflow.
        config_files: in the order given; empty if the workflow was made by hand, which keeps no record of them.
        overrides: ids and values from the command line; empty likewise.
        tracking: MONAI's `--tracking`.
    """

    workflow: ConfigWorkflow
    config_files: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    tracking: Any = None

    @property
    def files(self) -> list[Path]:
        """The recipe's files; where MONAI keeps no record of them, all that lie where the first one lay."""
        if self.config_files:
            return [Path(file) for file in self.config_files]
        return sorted(Path(self.workflow.config_root_path).glob("*.json"))


_prepared: dict[str, dict[str, Any]] = {}  # what tracking asks for, as of the last `prepare`


def prepare() -> None:
    """Check the recipe that is about to run, before any data is read, and make it complete.

    Without a `dataset_dir`, a run that needs one gets the phantom, made once in `without_dataset::phantom_dir`. The
    overlay `without_dataset::overlay` is then merged as a second config file would be; further config files and the
    command line win over it.

    Raises:
        ConfigError: if the recipe cannot run as it is, with every reason, a line each.
    """
    end_with_our_line()
    start = _find_start()
    parser = start.workflow.parser
    run_ids = (start.workflow.init_id, start.workflow.run_id, start.workflow.final_id)
    phantom_dir = _merge_overlay(start) if parser.get("dataset_dir") is None and _needs_data(parser, run_ids) else None
    wrong = recipe_problems(parser, files=start.files, asked=start.overrides, run_ids=run_ids)
    if wrong:
        raise ConfigError("\n".join(wrong))
    if parser.get("gpu_memory_gb") is not None:
        memory_plan.fit_recipe(parser)
    if phantom_dir is not None:
        _fill_in_phantom(parser, phantom_dir)
    _prepared["recipe"] = {id: content for id, content in parser.get().items() if id != ConfigParser.meta_key}
    _prepared["overrides"] = start.overrides


def merged_recipe() -> dict[str, Any]:
    """A copy of the recipe as it runs: files and command line merged, macros expanded, nothing evaluated.

    Raises:
        ConfigError: if no recipe has been prepared.
    """
    if not _prepared:
        raise ConfigError('no recipe is running; put "$recipe.prepare()" first in the recipe\'s "initialize"')
    return deepcopy(_prepared["recipe"])


def overrides() -> dict[str, Any]:
    """A copy of the ids and values that the command line has set; empty before `prepare`."""
    return deepcopy(_prepared.get("overrides", {}))


def _find_start() -> Start:
    """The running workflow, from the call stack: MONAI hands it to no one."""
    workflow: ConfigWorkflow | None = None
    for frame in _callers():
        caller = frame.f_locals.get("self")
        if workflow is None and isinstance(caller, ConfigWorkflow):
            workflow = caller
        place = (frame.f_globals.get("__name__"), frame.f_code.co_name)
        if workflow is not None and place == ("monai.bundle.scripts", "create_workflow"):
            return _start_of_command(workflow, frame.f_locals)
    if workflow is None:
        raise ConfigError("recipe.prepare() works only within `python -m monai.bundle run`; start the recipe with that")
    return Start(workflow)


def _callers() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _start_of_command(workflow: ConfigWorkflow, values: Mapping[str, Any]) -> Start:
    """Sort the arguments of MONAI's `create_workflow` into its own and the overrides."""
    files = values["config_file"]
    arguments = dict(values["_args"])
    own = inspect.signature(ConfigWorkflow).parameters
    return Start(
        workflow,
        config_files=[str(file) for file in ([files] if isinstance(files, str | Path) else files or ())],
        overrides={id: value for id, value in arguments.items() if id not in own},
        tracking=arguments.get("tracking"),
    )


def _needs_data(parser: ConfigParser, run_ids: tuple[str, ...]) -> bool:
    return "dataset_dir" in reached(parser.get(), run_ids)


def _merge_overlay(start: Start) -> str:
    """Merge the recipe's overlay for runs without a data set; the phantom's folder."""
    parser = start.workflow.parser
    settings = parser.get("without_dataset") or {}
    if "phantom_dir" not in settings:
        raise ConfigError("dataset_dir: is not set, and the recipe has no without_dataset; give --dataset_dir FOLDER")
    if start.tracking is not None:
        raise ConfigError("--tracking: medseg tracks every run itself; leave it out, or give --dataset_dir FOLDER")
    overlay = settings.get("overlay")
    if overlay is not None and not Path(overlay).is_file():
        raise ConfigError(f"without_dataset::overlay: there is no file {overlay}; start from the repository root")
    if overlay is not None and start.config_files:
        first, *further = start.config_files
        if Path(overlay).resolve() not in {Path(file).resolve() for file in further}:
            parser.read_config(f=[first, overlay, *further])
            parser.update(pairs=start.overrides)
    elif overlay is not None:
        for id, content in ConfigParser.load_config_file(overlay).items():
            merge_kv(parser, id, content)
    parser.parse(reset=True)
    return str(settings["phantom_dir"])


def _fill_in_phantom(parser: ConfigParser, phantom_dir: str) -> None:
    from medseg.data import make_phantom  # a run on real data does not need it

    overlay = parser.get("without_dataset").get("overlay")
    numbers = f" with the numbers of {overlay}" if overlay else ""
    logger.warning(
        "no dataset_dir given: using the synthetic phantom in %s%s; for your own data add --dataset_dir FOLDER",
        phantom_dir,
        numbers,
    )
    if not (Path(phantom_dir) / "dataset.json").is_file():
        make_phantom(Path(phantom_dir))
    parser["dataset_dir"] = phantom_dir
    parser.parse(reset=True)
