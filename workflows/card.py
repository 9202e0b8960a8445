"""The evaluation card of run id `evaluation`: the folder that `medseg evaluate` writes, of masks that are in memory."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg import __version__, data_half
from medseg.bundle import Bundle
from medseg.data import Sample
from medseg.evaluation import Judgment, Record, judge_arrays, write_folder
from medseg.evaluation.comparing import patient_of, split_and_warnings
from medseg.evaluation.pictures import Loaded
from medseg.evaluation.provenance import about_run, read_rows, recipe_digest, run_folder_of, split_of
from medseg.evaluation.recording import log, write_eval_metrics
from medseg.evaluation.summing import with_groups
from medseg.reading import read_channels, read_label

if TYPE_CHECKING:
    from workflows.evaluation import PackedLabels
    from workflows.experiment import Experiment

logger = logging.getLogger(__name__)

FOLDER = "evaluation"  # in the run's folder


def write_card(
    experiment: "Experiment",
    predictions: Mapping[str, "PackedLabels"],
    samples: Sequence[Sample],
    bundle: Bundle,
    *,
    recipe: Mapping[str, Any],
    split: str,
) -> Path:
    """Judge predictions, write the card into the run's folder, record it and put its figures into the bundle.

    Args:
        experiment: the open run.
        predictions: case id -> predicted labels.
        samples: the cases, with their references.
        bundle: the model.
        recipe: merged recipe, with which the cases were read.
        split: what the cases are, "held_out" or "best_validation".

    Returns:
        The card's folder.
    """
    judgment = Judgment.of_recipe(recipe)
    of_case = {sample["case_id"]: sample for sample in samples}
    columns = {row.get("case_id", ""): row for row in read_rows(_table(recipe))}
    records: list[Record] = []
    for case_id in sorted(of_case):
        sample = of_case[case_id]
        reference = read_label(sample["label"], experiment.masks)
        pred = predictions[case_id].unpack()
        record = judge_arrays(case_id, pred, reference, judgment, labeled=sample.get("labeled"))
        own = columns.get(case_id, {})
        grouped = with_groups(record, extra=own, columns=["phase"] if "phase" in own else [])
        records.append(replace(grouped, patient=patient_of(case_id, own, recipe.get("patient_pattern") or "")))

    def load(case_id: str) -> Loaded:
        sample = of_case[case_id]
        image = read_channels(sample["image"], recipe["channels"])[0]
        return Loaded(image, predictions[case_id].unpack(), read_label(sample["label"], experiment.masks))

    run = run_folder_of(bundle)
    inferer = data_half.literal(recipe, "inferer")
    about = {
        "model": bundle.name,
        "version": bundle.version,
        "precision": inferer.get("precision", "float32"),
        "synthetic": bundle.synthetic,
        "source": "synthetic phantom" if experiment.synthetic else "",
        "recipe_sha256": recipe_digest(bundle),
        "medseg": __version__,
        "recipe": dict(bundle.recipe),
        "without_reference": [],
        **(about_run(run) if run else {}),
        "data_sha256": experiment.data.get("sha256"),
        **split_and_warnings(split_of(run) if run else {}, sorted(of_case), split),
    }
    out = experiment.folder / FOLDER
    content = write_folder(out, records, judgment, about, load=load)
    log(experiment.run, out, content)
    write_eval_metrics(bundle, content)
    logger.info("card:     %s", out / "index.html")
    return out


def _table(recipe: Mapping[str, Any]) -> Path:
    """The data set's cases.csv, where it has one."""
    place = Path(str(recipe.get("dataset_dir") or "."))
    return place if place.suffix.lower() == ".csv" else place / "cases.csv"
