"""What medseg offers to a recipe, with its parameters, read from the code itself."""

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

KINDS = {
    "networks": ("medseg.networks",),
    "encoders": ("medseg.networks.encoders",),
    "losses": ("medseg.losses",),
    "metrics": ("medseg.metrics",),
    "inferers": ("medseg.inference",),
    "cleanup": ("medseg.cleanup", "medseg.crf"),
}


def offered() -> dict[str, dict[str, dict[str, Any]]]:
    """Kind -> full path of a class or function -> `about` and `parameters`.

    `about` is the first line of its docstring. A parameter has its `type` and, unless it is `required`, its `default`.
    """
    found = {
        kind: {f"{module}.{name}": part for module in modules for name, part in _public(module)}
        for kind, modules in KINDS.items()
    }
    found["cleanup"] = {path: part for path, part in found["cleanup"].items() if _is_rule(part)}
    found["encoders"] = {path: part for path, part in found["encoders"].items() if hasattr(part, "forward")}
    return {kind: {path: described(part) for path, part in parts.items()} for kind, parts in found.items()}


def described(part: Callable[..., Any]) -> dict[str, Any]:
    """First line of the docstring, and the parameters of one class or function.

    What a network is stands in its module's docstring; its own says what goes in and comes out.
    """
    text = inspect.getdoc(part) or ""
    if text.startswith("Image `"):
        text = inspect.getdoc(import_module(part.__module__)) or text
    about = next(iter(text.splitlines()), "")
    return {"about": about, "parameters": {p.name: _parameter(p) for p in inspect.signature(part).parameters.values()}}


def _public(module: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What a recipe may name of a module: its `__all__`, or the concrete classes that it defines."""
    found = import_module(module)
    listed = getattr(found, "__all__", None)
    for name in sorted(vars(found) if listed is None else listed):
        part = getattr(found, name)  # some packages import a part when it is asked for
        own_class = inspect.isclass(part) and part.__module__ == module and not name.startswith("_")
        is_public = listed is not None or own_class
        is_usable = inspect.isfunction(part) or (inspect.isclass(part) and not getattr(part, "_is_protocol", False))
        if is_public and is_usable:
            yield name, part


def _is_rule(part: Callable[..., Any]) -> bool:
    """Whether this is called with a label map, as `CleanupRule` says."""
    return inspect.isclass(part) and "label" in inspect.signature(part.__call__).parameters


def _parameter(parameter: inspect.Parameter) -> dict[str, Any]:
    kind = {} if parameter.annotation is parameter.empty else {"type": inspect.formatannotation(parameter.annotation)}
    required = parameter.default is parameter.empty
    return {**kind, "required": required} | ({} if required else {"default": parameter.default})
