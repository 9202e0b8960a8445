"""A training as a process of its own: settings from the command line, and the `monai.bundle` command they make."""

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError

BESIDE_A_RECIPE = ("--meta_file", "configs/metadata.json", "--logging_file", "configs/logging.conf")  # not in a run
PLAIN = re.compile(r"[\w./\\:%~+-]+")  # text without quotes, brackets, spaces and comments


def parse_setting(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` as key and value; JSON and Python literals are read as such, all else is text.

    >>> parse_setting("patch_size=[64, 64, 32]"), parse_setting("amp=true"), parse_setting("run_name=first try")
    (('patch_size', [64, 64, 32]), ('amp', True), ('run_name', 'first try'))

    Raises:
        ConfigError: if there is no key, or the value is no literal but an expression (`$`) or a reference (`@`).
    """
    key, _, value = text.partition("=")
    if not key or not (key[0].isalpha() or key[0] == "_"):
        raise ConfigError(f"{text!r} is no setting; write it KEY=VALUE, such as max_epochs=50")
    for read in (json.loads, ast.literal_eval):
        try:
            parsed = read(value)
            break
        except (ValueError, SyntaxError):
            parsed = value
    if _holds_code(parsed):
        raise ConfigError(f"{key}: a setting is a literal; put '$' expressions and '@' references into an overlay")
    if isinstance(parsed, str) and parsed.startswith("%"):
        _check_macro(key, parsed)
    return key, parsed


def _check_macro(key: str, text: str) -> None:
    """Refuse `%FILE::ID` that leads to nothing; MONAI would name neither the setting nor the file."""
    name, _, id = text[1:].partition("::")
    if not Path(name).is_file():
        raise ConfigError(f"{key}: there is no file {name}; files are named from the repository root")
    content = json.loads(Path(name).read_text(encoding="utf-8")) if name.endswith(".json") else None
    if isinstance(content, dict) and id.partition("::")[0] not in content:
        close = get_close_matches(id, content, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "names are case-sensitive"
        raise ConfigError(f"{key}: {name} has no {id!r}; {hint}")


def parse_folds(text: str) -> str | list[int]:
    """`all`, or numbers with commas between them, as the recipe's `chosen_folds`.

    >>> parse_folds("all"), parse_folds("0,2")
    ('all', [0, 2])

    Raises:
        ConfigError: if it is anything else.
    """
    if text == "all":
        return text
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise ConfigError(f"--folds: {text!r} is neither all nor numbers such as 0,2")
    return [int(number) for number in numbers]


def run_id_of(run: Path | None, *, folds: str | None) -> str:
    """The run id that trains: of one model, or of folds where they are asked for or `run` is of such."""
    return "cross_validation" if folds is not None or (run and (run / "splits.json").is_file()) else "training"


def training_arguments(
    files: Sequence[Path],
    settings: Sequence[tuple[str, Any]],
    *,
    resume: Path | None = None,
    run_id: str = "training",
) -> list[str]:
    """Arguments to `python` that train with the recipe and overlays in `files`.

    Args:
        files: recipe and overlays; none to resume a run with its own recipe.
        settings: as of `parse_setting`.
        resume: folder of the run to continue.
        run_id: of the recipe.

    Raises:
        ConfigError: if there is neither recipe nor run, or the run has no recipe of its own.
    """
    if resume is not None:
        settings = [*settings, ("resume", resume.as_posix())]
    arguments = ["-m", "monai.bundle", "run", run_id]
    if files:
        names = [file.as_posix() for file in files]
        arguments += ["--config_file", names[0] if len(names) == 1 else repr(names)]
    elif resume is None:
        raise ConfigError("what to train? Give a recipe, such as configs/unet_liver.json, or --resume runs/NAME")
    elif not (resume / "recipe.json").is_file():
        raise ConfigError(f"no run to resume in {resume} (recipe.json is missing): give a run's folder, as runs/NAME")
    else:
        return run_arguments(run_id, resume / "recipe.json", settings)
    return arguments + _setting_arguments(settings)


def check_nested(files: Sequence[Path], settings: Sequence[tuple[str, Any]]) -> None:
    """Refuse `a::b` where `a` comes whole from another file: MONAI merges before it looks there, and fails.

    Raises:
        ConfigError: names the setting and the part to replace instead.
    """
    recipe: dict[str, Any] = {}
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.suffix == ".json"]
    pairs = [pair for content in contents if isinstance(content, dict) for pair in content.items()]
    for key, value in [*pairs, *settings]:
        name, *deeper = key.removeprefix("+").replace("#", "::").split("::")
        macro = recipe.get(name)
        if deeper and isinstance(macro, str) and macro.startswith("%"):
            raise ConfigError(
                f"{key}: {name} comes whole from {macro[1:].partition('::')[0]} in this recipe; set one of its own "
                f"names instead (those at its top level, such as learning_rate), or all of {name} in an overlay"
            )
        if not deeper:
            recipe[name] = value


def run_arguments(run_id: str, recipe: Path, settings: Sequence[tuple[str, Any]]) -> list[str]:
    """Arguments to `python` for a run id of a recipe that lies in a run's folder."""
    command = ["-m", "monai.bundle", "run", run_id, "--config_file", recipe.as_posix(), *BESIDE_A_RECIPE]
    return command + _setting_arguments(settings)


def _setting_arguments(settings: Sequence[tuple[str, Any]]) -> list[str]:
    arguments: list[str] = []
    for key, value in settings:
        arguments += [f"--{key}={_literal(value)}"] if str(value).startswith("-") else [f"--{key}", _literal(value)]
    return arguments


def quoted(argument: str) -> str:
    """An argument as a shell takes it; double quotes where they do, for Windows knows no others."""
    if "'" in argument and not set('"$`\\!') & set(argument):
        return f'"{argument}"'
    return shlex.quote(argument)


def train(arguments: Sequence[str]) -> int:
    """Run `python` with the arguments of a training, to its end.

    Ctrl-C reaches the training too, which then closes its run; so it is waited for.

    Returns:
        Its exit code.
    """
    environment = {
        "MEDSEG_ONE_LINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore:parsing config_file",  # MONAI's at every start; the command already names the file
    }
    training = subprocess.Popen([sys.executable, *arguments], env=environment | dict(os.environ))
    before = signal.signal(signal.SIGTERM, partial(_pass_on, training))
    while training.returncode is None:
        with suppress(KeyboardInterrupt):
            training.wait()
    signal.signal(signal.SIGTERM, before)
    code = training.returncode
    return code if code >= 0 else 128 - code  # ended by a signal: as shells tell it


def _pass_on(training: subprocess.Popen[bytes], _signal: int, _frame: object) -> None:
    training.terminate()


def _holds_code(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith(("$", "@"))
    if isinstance(value, dict):
        return any(_holds_code(item) for item in (*value, *value.values()))
    return isinstance(value, list | tuple) and any(_holds_code(item) for item in value)


def _literal(value: Any) -> str:
    """The value as MONAI's command line reads it: Python's form, but bare where text is read as text."""
    if not isinstance(value, str) or not PLAIN.fullmatch(value):
        return repr(value)
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return repr(value)  # text that looks like a number
