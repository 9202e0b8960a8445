"""Settings and messages as MLflow takes them: flat, and without folders of this machine."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

COMMENT_KEYS = ("_about_", "_desc_")
MAX_VALUE = 500  # characters of a parameter or tag; the whole recipe is an artifact

# a path of two or more folders inside a longer text; divisions such as "(@a)/2/3" and "x/y/z" are none
FOLDERS = re.compile(r"(?<![\w.)\]])(?:[A-Za-z]:)?[\\/](?:[^\s'\"\\/:,;()]+[\\/])+")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner -> text`, comments left out.

    >>> flatten({"train": {"lr": 0.1, "_desc_": "why"}, "size": [3, 4]})
    {'train.lr': '0.1', 'size': '[3, 4]'}
    """
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = re.sub(r"[^\w.\- ]", "_", f"{prefix}{key}".replace("::", "."))
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif key not in COMMENT_KEYS:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[name] = text[:MAX_VALUE]
    return flat


def names_of_files(traceback: str) -> str:
    """A traceback whose files are without their folders, which may hold spaces and names.

    >>> names_of_files('File "/home/ann lee/train.py", line 3, in main')
    'File "train.py", line 3, in main'
    """
    return re.sub(r'File "[^"\n]*[\\/]([^"\n]*)"', r'File "\1"', traceback)


def without_folders(value: Any) -> Any:
    """The same value, nested or not, with folders of this machine cut from its texts.

    >>> without_folders({"dataset_dir": "/home/ann/scans", "error": "cannot read /home/ann/scans/a.nii.gz"})
    {'dataset_dir': '.../scans', 'error': 'cannot read .../a.nii.gz'}
    """
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return value
    for absolute in (PurePosixPath(value), PureWindowsPath(value)):
        if absolute.is_absolute() and "\n" not in value:
            return f".../{absolute.name}"
    for known in (str(Path.cwd()), str(Path.home())):  # first, for these may hold spaces
        value = value.replace(known, "/...") if len(known) > 1 else value
    return FOLDERS.sub(".../", value)
