"""Run id `cross_validation`: every fold a training of its own, what they show together, and one bundle of all."""

import json
import logging
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg import launch
from medseg.bundle import Bundle, open_bundle, task_metadata
from medseg.data import Cases, Sample
from medseg.data.folds import Split
from medseg.errors import ConfigError, DataError
from medseg.inference import predict_folder, write_ensemble
from medseg.inference.batch import Options
from medseg.reading import MaskCode
from medseg.writing import aside
from workflows import distributed, recipe
from workflows.experiment import Experiment
from workflows.fold_processes import run_folds, visible_gpus
from workflows.fold_runs import SPLITS, find_fold, is_finished
from workflows.out_of_fold import FOLDER, Judge, Judged, predict_fold, write_tables
from workflows.resuming import RECIPE

logger = logging.getLogger(__name__)

TIMED_CASES = 3  # where no held-out case has a label, speed alone is compared, on this many cases


def prepare(experiment: Experiment, resume: Any = None) -> None:
    """Find out whether all folds can be trained and recorded, and if asked, resumed.

    Args:
        experiment: the run of the cross-validation; its data are those of all folds.
        resume: None, or the run folder of the cross-validation to continue.

    Raises:
        ConfigError: as `Experiment.reopen`, and if the folds do not validate each case once, or this is one of several
            processes.
        DataError: as `Experiment.reopen`.
    """
    if distributed.processes() > 1:
        raise ConfigError("cross_validation: starts its own processes; start it without torchrun, and set jobs")
    check_splits(experiment.cases.splits)
    experiment.cases = as_one(experiment.cases)
    experiment.run_name = f"{experiment.run_name}-cross_validation"
    experiment.reopen(resume)


def cross_validate(
    experiment: Experiment, *, folds: Any, jobs: int, device: Any, masks: MaskCode | None = None
) -> None:
    """Train folds, segment every case by the fold that has not seen it, and write the ensemble of the folds.

    A fold that is finished is not trained again, one that is not goes on from its checkpoint. A fold that fails does
    not stop the others.

    Args:
        experiment: the run of the cross-validation, prepared; opened and closed here.
        folds: which ones: "all", or their numbers.
        jobs: how many train at a time.
        device: where predictions run.
        masks: what the values of mask files mean, where labels are such.

    Raises:
        ConfigError: if there are no such folds or jobs.
        DataError: if folds or predictions failed; all else is done by then.
    """
    if type(jobs) is not int or jobs < 1:
        raise ConfigError(f"jobs: is {jobs!r}; give the number of folds that train at a time, 1 or more")
    chosen = chosen_folds(folds, len(experiment.cases.splits))
    with experiment.running():
        splits = _saved_splits(experiment)
        gpus = visible_gpus() if str(device) == "cuda" else []  # else the recipe names one, or none
        failures = _train(experiment, chosen, jobs, gpus)
        found = {fold: find_fold(experiment.folder, fold) for fold in range(len(splits))}
        finished = {fold: run for fold, run in found.items() if run and is_finished(run)}
        judge = Judge(ignore_label=recipe.merged_recipe().get("ignore_label"), masks=masks)
        judged = _judge_folds(experiment, finished, splits, judge, str(device))
        if finished and not failures:
            _write_ensemble(experiment, finished, judged, judge, str(device))
        for fold, each in judged.items():
            failures |= {f"case {case_id} of fold {fold}": "has no mask" for case_id in each.failed}
        if failures:
            shown = "; ".join(f"{what}: {reason}" for what, reason in failures.items())
            raise DataError(
                f"cross-validation {experiment.folder.name}: {len(failures)} failed ({shown}); the others are done, "
                "continue with --resume"
            )
        experiment.summarize()


def chosen_folds(folds: Any, count: int) -> list[int]:
    """Numbers of the folds to train: `"all"` or a list of some of `count`.

    >>> chosen_folds("all", 3), chosen_folds([2, 0], 3), chosen_folds(1, 3)
    ([0, 1, 2], [0, 2], [1])

    Raises:
        ConfigError: if it is anything else, or there is no such fold.
    """
    if folds == "all":
        return list(range(count))
    numbers = [folds] if type(folds) is int else folds
    if not isinstance(numbers, list | tuple) or not numbers or not all(type(number) is int for number in numbers):
        raise ConfigError(f'chosen_folds: is {folds!r}; give "all", or numbers such as [0, 2]')
    absent = [number for number in numbers if not 0 <= number < count]
    if absent:
        raise ConfigError(f"chosen_folds: there is no fold {absent[0]}; the data set has folds 0 to {count - 1}")
    return sorted(set(numbers))


def check_splits(splits: Sequence[Split]) -> None:
    """Refuse folds that do not each divide the same cases, or validate a case twice.

    Raises:
        ConfigError: if they do not; names a case.
    """
    members = [set(split["train"]) | set(split["val"]) for split in splits]
    for fold, each in enumerate(members):
        if different := sorted(each ^ members[0]):
            raise ConfigError(
                f"fold {fold}: case {different[0]!r} is in this fold or in fold 0, not in both; a cross-validation "
                "needs folds of the same cases, so correct the split file"
            )
    validated: dict[str, int] = {}
    for fold, split in enumerate(splits):
        for case_id in split["val"]:
            if validated.setdefault(case_id, fold) != fold:
                raise ConfigError(
                    f"fold {fold}: case {case_id!r} validates fold {validated[case_id]} too; a cross-validation "
                    "judges each case once, so correct the split file"
                )
    if never := len(set().union(*members) - validated.keys()):
        logger.warning("%d cases validate no fold: they get no out-of-fold prediction", never)


def as_one(cases: Cases) -> Cases:
    """The cases of all folds: each validates once, none trains all of them."""
    return replace(cases, training=[], validation=sorted([*cases.training, *cases.validation], key=_case_id))


def spread(dice: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Mean and standard deviation (of a sample) over the folds of each region's Dice; NaN ones do not count.

    >>> spread({0: {"liver_dice": 0.8}, 1: {"liver_dice": 0.9}})["liver_dice_mean"]
    0.8500000000000001
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for each in dice.values() for name in each):
        values = [each[name] for each in dice.values() if math.isfinite(each.get(name, math.nan))]
        found[f"{name}_mean"] = statistics.fmean(values) if values else math.nan
        found[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else math.nan
    return found


def _saved_splits(experiment: Experiment) -> list[Split]:
    """The folds as they were when the cross-validation began, written then."""
    path = experiment.folder / SPLITS
    if not path.is_file():
        with aside(path) as temporary:
            temporary.write_text(json.dumps(experiment.cases.splits, indent=2) + "\n", encoding="utf-8")
        experiment.run.log_file(path)
    splits: list[Split] = json.loads(path.read_text(encoding="utf-8"))
    return splits


def _train(experiment: Experiment, chosen: Sequence[int], jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Train the folds that are not finished; the reason of each that failed."""
    commands = {}
    for fold in chosen:
        run = find_fold(experiment.folder, fold)
        if run and is_finished(run):
            logger.info("fold %d is finished: %s", fold, run.name)
            continue
        commands[fold] = _command(experiment, fold, run)
    ended = run_folds(commands, jobs=jobs, gpus=gpus)
    return {f"fold {fold}": reason for fold, reason in ended.items() if reason is not None}


def _command(experiment: Experiment, fold: int, run: Path | None) -> list[str]:
    """Arguments to `python` that train a fold, or continue its run."""
    parent = experiment.folder
    settings: list[tuple[str, Any]] = [
        ("fold", fold),
        ("splits", (parent / SPLITS).as_posix()),
        ("part_of", parent.as_posix()),
        ("output_dir", parent.parent.as_posix()),
        ("run_name", f"{recipe.merged_recipe()['run_name']}-fold_{fold}"),
    ]
    if run and any(run.glob("checkpoints/*.pt")):
        settings.append(("resume", run.as_posix()))
    return launch.run_arguments("training", parent / RECIPE, settings)


def _judge_folds(
    experiment: Experiment,
    finished: Mapping[int, Path],
    splits: Sequence[Split],
    judge: Judge,
    device: str,
) -> dict[int, Judged]:
    """Segment each case by the fold that has not seen it; tables and figures of all."""
    samples = {sample["case_id"]: sample for sample in experiment.cases.validation}
    judged = {}
    for fold, run in finished.items():
        own = [samples[case_id] for case_id in splits[fold]["val"]]
        judged[fold] = predict_fold(fold, run, own, parent=experiment.folder, judge=judge, device=device)
        experiment.log_metrics({f"out_of_fold_{name}": value for name, value in judged[fold].dice.items()}, step=fold)
    if judged:
        experiment.log_cases(write_tables(experiment.folder, judged), f"{FOLDER}_cases.csv")
        over_folds = spread({fold: each.dice for fold, each in judged.items()})
        experiment.log_metrics({"folds": len(judged), **over_folds}, step=0)
        names = [name.removesuffix("_mean") for name in over_folds if name.endswith("_mean")]
        shown = (
            f"{name.removesuffix('_dice')} {over_folds[f'{name}_mean']:.3f} ± {over_folds[f'{name}_std']:.3f}"
            for name in names
        )
        said = "%d folds, Dice of cases that a fold has not seen, mean ± standard deviation: %s"
        logger.info(said, len(judged), ", ".join(shown).replace(" ± nan", ""))
    return judged


def _write_ensemble(
    experiment: Experiment, finished: Mapping[int, Path], judged: Mapping[int, Judged], judge: Judge, device: str
) -> None:
    """Write the bundle of all folds, with what reducing it to one costs and gains, and record it."""
    members = {fold: open_bundle(run) for fold, run in finished.items()}
    known: dict[str, Any] = {
        "best_fold": max(judged, key=lambda fold: judged[fold].dice["mean_dice"]),  # by cases it has not trained on
        "out_of_fold": {f"fold_{fold}": _rounded(each.dice) for fold, each in judged.items()},
    }
    target = experiment.folder / "bundle"
    metadata = _metadata(experiment)
    bundle = open_bundle(write_ensemble(target, members, metadata=metadata, measured=known))
    models = {"ensemble": bundle} | {f"fold_{fold}": member for fold, member in members.items()}
    known |= _compare(experiment, models, judge, device)
    write_ensemble(target, members, metadata=_metadata(experiment), measured=known)
    experiment.record_bundle()


def _metadata(experiment: Experiment) -> dict[str, Any]:
    held_out = {name: value for name, value in experiment.results.items() if name.startswith("held_out_")}
    metadata = task_metadata(
        experiment.metadata,
        recipe.merged_recipe(),
        name=experiment.folder.name,
        synthetic=experiment.synthetic,
        eval_metrics=_rounded(held_out),
    )
    return metadata | experiment.training_range


def _compare(experiment: Experiment, models: Mapping[str, Bundle], judge: Judge, device: str) -> dict[str, Any]:
    """Dice and seconds of the ensemble and of each fold on cases that none has trained on.

    Without held-out cases that have a label, only the seconds: each labeled case has trained most of the folds, so the
    ensemble's Dice on it would be too good.
    """
    held_out = [sample for sample in experiment.cases.test if "label" in sample]
    samples: Sequence[Sample] = held_out or experiment.cases.validation[:TIMED_CASES]
    judged = {}
    with tempfile.TemporaryDirectory(dir=experiment.folder) as temporary:
        for name, bundle in models.items():
            kept = bool(held_out) and name == "ensemble"
            out = experiment.folder / "held_out" if kept else Path(temporary) / name
            out.mkdir(parents=True, exist_ok=True)
            again = Options(redo=True)  # an ensemble of fewer folds may have been here
            report = predict_folder(samples, out, bundle, device=device, options=again)
            judged[name] = judge(samples, out, report, bundle)
    seconds = {name: each.seconds for name, each in judged.items()}
    one_fold = statistics.fmean(value for name, value in seconds.items() if name != "ensemble")
    experiment.log_metrics(
        {"ensemble_seconds_per_case": seconds["ensemble"], "fold_seconds_per_case": one_fold}, step=0
    )
    known: dict[str, Any] = {"held_out_cases": len(held_out), "seconds_per_case": _rounded(seconds)}
    if not held_out:
        logger.info("no held-out cases with labels: the ensemble's Dice cannot be measured, every case has trained it")
        return known
    experiment.log_metrics({f"held_out_{name}": value for name, value in judged["ensemble"].dice.items()}, step=0)
    rows = [{"model": name} | row for name, each in judged.items() for row in each.rows]
    experiment.log_cases(rows, "held_out_cases.csv")
    return known | {"dice": {name: _rounded(each.dice) for name, each in judged.items()}}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items() if math.isfinite(value)}


def _case_id(sample: Sample) -> str:
    return sample["case_id"]
