"""An evaluation recorded: in MLflow as tables and figures, in the bundle's metadata as `eval_metrics`."""

import json
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle import METADATA, Bundle, open_bundle
from medseg.errors import ConfigError
from medseg.evaluation.provenance import read_json
from medseg.metrics.case import lesion_name
from medseg.writing import aside

if TYPE_CHECKING:
    from medseg.tracking import Run

logger = logging.getLogger(__name__)

ARTIFACTS = "evaluation"  # folder in the run's artifacts
FILES = ("index.html", "cases.csv", "cases.jsonl", "summary.json", "lesions.csv", "readers.csv")
LESION_FIGURES = ("lesion_recall", "lesion_precision", "lesion_f1", "lesion_f1_all", "lesion_dice")
POOLED = ("dice_global", "recall_global", "precision_global", "f1_global")


def figures(content: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a card that a run and a bundle show, named by the split.

    Args:
        content: of `summary.json`.
    """
    about = content["about"]
    regions = content["settings"].get("regions", {})
    unit = content["settings"].get("unit", "mm")
    names = [f"{region}_{name}" for region in regions for name in ("dice", "dice_all", f"hd95_{unit}", f"nsd_2{unit}")]
    names += [lesion_name(name, regions) for name in LESION_FIGURES]
    found = {name: content["summary"][name]["mean"] for name in names if name in content["summary"]}
    found |= {name: value for name, value in content["pooled"].items() if name.endswith(POOLED)}
    found |= {"n": about["n"], "failed": about["failed"]}
    split = str(about.get("split") or "").split(" ")[0].rstrip(",") or "evaluation"
    return {
        f"{split}_{name}": round(float(value), 4)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }


def record(run: Path, out: Path, content: Mapping[str, Any]) -> None:
    """Record an evaluation in the run that trained the model; the run's status, end and error stay what they are.

    Args:
        run: the run's folder.
        out: the evaluation.
        content: of its `summary.json`.

    Raises:
        ConfigError: if it is no run folder, it is still running, or MLflow cannot be reached.
    """
    from medseg import tracking
    from medseg.tracking.journal import Journal

    status = Journal(run).status()
    if status not in ("FINISHED", "FAILED", "KILLED"):
        raise ConfigError(f"run {run.name} is {status}; record the evaluation when it has ended")
    with tracking.append_to(run) as opened:
        log(opened, out, content)
    write_eval_metrics(open_bundle(run), content)


def log(run: "Run", out: Path, content: Mapping[str, Any]) -> None:
    """Send tables, page and figures to an open run."""
    for name in FILES:
        if (out / name).is_file():
            run.log_file(out / name, ARTIFACTS)
    run.log_metrics(figures(content), step=0)
    run.flush()


def write_eval_metrics(bundle: Bundle, content: Mapping[str, Any]) -> bool:
    """Put the figures into the bundle's metadata, beside those that are there; False where it cannot be written.

    Args:
        bundle: a folder; a zip stays as it is.
        content: of `summary.json`.
    """
    return _change(bundle, {"eval_metrics": {**bundle.metadata.get("eval_metrics", {}), **figures(content)}})


def write_temperature(bundle: Bundle, temperature: float, n_cases: int) -> bool:
    """Put a temperature into the bundle's metadata; False where it cannot be written.

    Args:
        bundle: a folder; a zip stays as it is.
        temperature: probabilities are right, on the average, as softmax(logits / temperature).
        n_cases: that it was fitted to.
    """
    return _change(bundle, {"temperature": round(temperature, 4), "temperature_cases": n_cases})


def _change(bundle: Bundle, changes: Mapping[str, Any]) -> bool:
    path = bundle.root / METADATA
    if not bundle.root.is_dir():
        logger.warning("%s is a zip: its metadata stay as they are", bundle.root.name)
        return False
    metadata = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    with suppress(OSError), aside(path) as temporary:
        temporary.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        return True
    logger.warning("the metadata of %s cannot be written; the card has the figures", bundle.root.name)
    return False


def check_model(masks: Path, bundle: Bundle) -> None:
    """Whether masks are of this model, as far as their run.json tells.

    Raises:
        ConfigError: if they are of another one.
    """
    settings = read_json(masks / "run.json").get("settings", {})
    made_by = settings.get("weights_sha256")
    if made_by and made_by != bundle.weights_sha256(tuple(settings.get("folds", ()))):
        raise ConfigError(
            f"{masks.name}: its masks are of other weights ({settings.get('model')}) than those of {bundle.name}; give "
            "--run with the run that trained them"
        )
