"""Files of prepared cases: their names, what is in them, and how to list and clear them."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.preprocessing import Grid
from medseg.writing import aside

FORMAT = 2  # of the files; part of their key
CODE = ("*.py", "reading/**/*.py", "transforms/**/*.py", "data/**/*.py")  # of medseg: all that may prepare cases


def preparation_key(steps: Sequence[Any]) -> str:
    """Name for what the steps do: any setting of any of them changes it, and so does another medseg."""
    text = json.dumps([FORMAT, code_digest(), [described(step) for step in steps]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_digest() -> str:
    """Hash of medseg's own code that prepares cases: a case that another medseg prepared may be another one."""
    package = Path(__file__).parents[1]
    files = {path for pattern in CODE for path in package.glob(pattern)}
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)]
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()


def described(thing: Any) -> Any:
    """A step with all its settings, as JSON data; random states are no settings."""
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, Mapping):
        return {str(key): described(value) for key, value in thing.items()}
    if isinstance(thing, set | frozenset):
        return sorted(str(described(value)) for value in thing)
    if isinstance(thing, list | tuple):
        return [described(value) for value in thing]
    if isinstance(thing, Tensor | np.ndarray):
        return thing.tolist()
    if isinstance(thing, np.random.RandomState):
        return "random"
    if hasattr(thing, "__qualname__"):  # a function or class
        return f"{thing.__module__}.{thing.__qualname__}"
    if isinstance(thing, partial):
        return [described(thing.func), described(thing.args), described(thing.keywords)]
    kind = type(thing)
    slots = [name for each in kind.__mro__ for name in _slots(each) if hasattr(thing, name)]
    settings = {name: getattr(thing, name) for name in slots} | getattr(thing, "__dict__", {})
    return {f"{kind.__module__}.{kind.__qualname__}": described(settings)}


def _slots(kind: type) -> Sequence[str]:
    names = vars(kind).get("__slots__", ())
    return [names] if isinstance(names, str) else [name for name in names if name != "__dict__"]


def packed(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A prepared sample as plain tensors and lists, which torch reads back without running code."""
    return {key: _packed(value) for key, value in sample.items()}


def _packed(value: Any) -> Any:
    if isinstance(value, Tensor) and hasattr(value, "affine"):  # MONAI's MetaTensor
        # a clone, unlike a contiguous copy, keeps the order in memory that the preparation chose
        return {"tensor": value.as_subclass(Tensor).clone(), "affine": torch.as_tensor(value.affine)}
    if isinstance(value, Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value  # a view would store it all
    if isinstance(value, Grid):
        arrays = {name: np.asarray(part).tolist() for name, part in vars(value).items()}
        return {"grid": arrays}
    if isinstance(value, np.ndarray):
        return {"array": torch.from_numpy(np.ascontiguousarray(value))}
    return [_packed(item) for item in value] if isinstance(value, list | tuple) else value


def unpacked(content: Mapping[str, Any]) -> dict[str, Any]:
    """What `packed` was given."""
    return {key: _unpacked(value) for key, value in content.items()}


def _unpacked(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "tensor" in value:
            from monai.data import MetaTensor  # listing and clearing a cache need no MONAI

            return MetaTensor(value["tensor"], affine=value["affine"])
        if "array" in value:
            return value["array"].numpy()
        stored = value["grid"].items()
        parts: dict[str, Any] = {name: tuple(part) if isinstance(part, list) else part for name, part in stored}
        return Grid(**parts | {name: np.array(parts[name]) for name in ("affine", "scan_affine")})
    return [_unpacked(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class CacheFolder:
    """One preparation on disk.

    Attributes:
        path: its folder.
        name: which cases were prepared.
        cases: how many files.
        size: bytes.
        used: when it was last used, seconds since 1970.
    """

    path: Path
    name: str
    cases: int
    size: int
    used: float


def describe_folder(folder: Path, name: str) -> None:
    """Note what a cache folder holds, and that it was used now."""
    with aside(folder / "about.json") as path:
        path.write_text(json.dumps({"name": name, "used": time.time()}) + "\n", encoding="utf-8")


def cache_folders(cache_dir: str | Path) -> list[CacheFolder]:
    """What a cache holds, last used first."""
    return sorted(_found(Path(cache_dir)), key=lambda folder: -folder.used)


def _found(cache_dir: Path) -> Iterable[CacheFolder]:
    for about in cache_dir.glob("*/about.json"):
        noted = json.loads(about.read_text(encoding="utf-8"))
        files = list(about.parent.glob("*.pt"))
        size = sum(file.stat().st_size for file in files)
        yield CacheFolder(about.parent, noted["name"], len(files), size, float(noted["used"]))


def clear_cache(cache_dir: str | Path) -> int:
    """Remove every preparation; the bytes freed. Other files in the folder stay."""
    folders = cache_folders(cache_dir)
    for folder in folders:
        shutil.rmtree(folder.path)
    return sum(folder.size for folder in folders)
