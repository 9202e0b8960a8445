"""`OUT/run.json`: what a run was, so that it can be repeated; without paths of this machine and names of patients."""

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from os.path import normpath
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from medseg import __version__, data_half
from medseg.bundle import Bundle
from medseg.inference.cases import Case
from medseg.inference.settings import RunSettings
from medseg.writing import aside

RUN_FILE = "run.json"
JUDGED_BY = ("labels", "regions", "lesion_region", "ignore_label", "intensity", "activation")
MASK_SETTINGS = ("mask_values", "mask_colors", "mask_threshold")  # of references that are images
PACKAGES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "pillow", "connected-components-3d", "monai")


def write_run(
    out: Path,
    settings: RunSettings,
    *,
    command: Sequence[str],
    cases: Sequence[Case],
    to_do: int,
    device: str,
    paths: Mapping[str, str] | None = None,
    bundle: Bundle | None = None,
) -> None:
    """Write that a run begins; `end_run` completes it.

    Args:
        out: folder of the masks.
        settings: of the run.
        command: as it was typed, `sys.argv[1:]`.
        cases: of the run; only their numbers are written.
        to_do: how many of them are not done already.
        device: where the network runs.
        paths: words of the command that name places here -> what is written instead, such as "SCANS".
        bundle: the model; what its label values mean is written, so that the masks can be judged without it.
    """
    skipped, refused = (sum(bool(getattr(case, why)) for case in cases) for why in ("skipped", "problem"))
    content = {
        "command": ["medseg", *shown(command, paths or {})],
        "settings": settings.as_json(),
        **({"judgment": judged_by(bundle)} if bundle else {}),
        "device": device,
        "cases": {"all": len(cases), "to_do": to_do, "skipped": skipped, "refused": refused},
        "versions": versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "started": _now(),
        "ended": None,
        "result": None,
    }
    _write(out, content)


def judged_by(bundle: Bundle) -> dict[str, Any]:
    """What `medseg evaluate` has to know of a model to judge its masks, by the names of a recipe."""
    known = {id: data_half.literal(bundle.recipe, id) for id in JUDGED_BY if id in bundle.recipe}
    masks = {id: bundle.recipe[id] for id in MASK_SETTINGS if bundle.recipe.get(id) is not None}
    return {**known, **masks, "unit": bundle.unit, "synthetic": bundle.synthetic}


def end_run(out: Path, counts: Mapping[str, int], *, stopped: str = "") -> None:
    """Write how a run ended.

    Args:
        out: folder of the masks.
        counts: cases by status.
        stopped: why it ended before its last case, if it did.
    """
    content = read_run(out)
    _write(out, content | {"ended": _now(), "result": {**counts, **({"stopped": stopped} if stopped else {})}})


def read_run(out: Path) -> dict[str, Any]:
    """The content of `OUT/run.json`; empty if it cannot be read."""
    with suppress(OSError, ValueError):
        content = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def shown(command: Sequence[str], paths: Mapping[str, str]) -> list[str]:
    """A command whose paths are replaced: by what `paths` says, or by PATH where one is absolute or goes upwards."""
    known = {normpath(path): name for path, name in paths.items() if path}  # typed as `scans/` or `./scans`
    words = []
    for word in command:
        option, is_set, value = word.partition("=") if word.startswith("--") else ("", "", word)
        shown_value = known.get(normpath(value), "PATH" if _tells_a_place(value) else value)
        words.append(f"{option}{is_set}{shown_value}" if value else word)
    return words


def versions() -> dict[str, str]:
    """Versions of medseg, Python and what decides voxels, as installed; nothing is imported."""
    found = {"medseg": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _tells_a_place(text: str) -> bool:
    return any(
        kind(text).is_absolute() or ".." in kind(text).parts or text.startswith("~")
        for kind in (PurePosixPath, PureWindowsPath)
    )


def _write(out: Path, content: Mapping[str, Any]) -> None:
    with aside(out / RUN_FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
