"""Ensembles: one bundle that holds the weights of several folds, and what is left of it when it is reduced to one."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from medseg.bundle import FOLD_WEIGHTS, METADATA, WEIGHTS, Bundle, with_format, without_absolute_paths
from medseg.data_half import data_half
from medseg.errors import ConfigError
from medseg.model_files import RECIPE, read_member
from medseg.writing import aside


def write_ensemble(
    folder: str | Path, members: Mapping[int, Bundle], *, metadata: Mapping[str, Any], measured: Mapping[str, Any]
) -> Path:
    """Write the bundle of an ensemble, in place of one that is there already.

    Args:
        folder: where the bundle is to be.
        members: the bundle of each fold; the recipe is the first one's.
        metadata: as of `medseg.bundle.task_metadata`.
        measured: what is known about the ensemble and its folds, as `reduction` reads it.

    Returns:
        `folder`.

    Raises:
        ConfigError: if there is no member, one is an ensemble itself, or they do not preprocess or predict alike.
    """
    if not members:
        raise ConfigError("an ensemble needs the bundle of one fold or more; none is finished")
    folds = sorted(members)
    first = data_half(members[folds[0]].recipe)
    for fold in folds:
        half = data_half(members[fold].recipe)
        different = sorted(id for id in half.keys() | first.keys() if half.get(id) != first.get(id))
        if different:
            raise ConfigError(
                f"fold {fold} was trained with another {', '.join(different)} than fold {folds[0]}; an ensemble "
                "needs folds of one recipe"
            )
        if members[fold].folds:
            raise ConfigError(f"fold {fold} is an ensemble itself; give the bundle of one training")
    about = {**metadata, "ensemble": {"folds": folds, **measured}}
    files = {FOLD_WEIGHTS.format(fold): members[fold] for fold in folds}
    return _write(Path(folder), members[folds[0]].recipe, about, files, WEIGHTS)


def reduce_ensemble(bundle: Bundle, out: str | Path, *, fold: int | None = None) -> Path:
    """Write the bundle of one fold of an ensemble; it predicts what the fold's own bundle predicts.

    Args:
        bundle: the ensemble.
        out: folder of the new bundle, which must not be there yet.
        fold: which one; without it the one with the best Dice out of fold.

    Returns:
        `out`.

    Raises:
        ConfigError: if it is no ensemble, has no such fold, does not know its best one, or `out` exists.
    """
    fold = chosen_fold(bundle, fold)
    if Path(out).exists():
        raise ConfigError(f"{out} is there already; choose another OUT, or remove it")
    known = bundle.metadata["ensemble"]
    metadata = {key: value for key, value in bundle.metadata.items() if key != "ensemble"}
    metadata |= {
        "name": f"{bundle.name}-fold_{fold}",
        "eval_metrics": {
            f"held_out_{region}": value for region, value in known.get("dice", {}).get(f"fold_{fold}", {}).items()
        },
    }
    return _write(Path(out), bundle.recipe, metadata, {WEIGHTS: bundle}, FOLD_WEIGHTS.format(fold))


def chosen_fold(bundle: Bundle, fold: int | None = None) -> int:
    """The fold that `reduce_ensemble` takes.

    Raises:
        ConfigError: if the bundle is no ensemble, has no such fold, or does not know its best one.
    """
    if not bundle.folds:
        raise ConfigError(f"model '{bundle.name}' is no ensemble of folds; there is nothing to reduce")
    if fold is None:
        fold = bundle.metadata["ensemble"].get("best_fold")
    if fold not in bundle.folds:
        asked = "no fold is known to be the best" if fold is None else f"fold {fold} is not in it"
        raise ConfigError(
            f"model '{bundle.name}': {asked}; give --fold with one of {', '.join(map(str, bundle.folds))}"
        )
    return fold


def reduction(bundle: Bundle, fold: int) -> str:
    """What reducing an ensemble to a fold costs in Dice and gains in time, as its cross-validation has measured."""
    known = bundle.metadata["ensemble"]
    parts = [f"fold {fold} instead of {len(bundle.folds)} folds"]
    dice, seconds = known.get("dice", {}), known.get("seconds_per_case", {})
    own, all_folds = dice.get(f"fold_{fold}", {}), dice.get("ensemble", {})
    if own and all_folds:
        shown = (f"{name.replace('_dice', '')} {own[name]:.3f} (ensemble {all_folds[name]:.3f})" for name in all_folds)
        parts.append(f"Dice on {known['held_out_cases']} held-out cases: {', '.join(shown)}")
    else:
        parts.append(
            "Dice of the ensemble is not known: every labeled case has trained some fold (held_out_fraction sets cases "
            "aside)"
        )
        if out_of_fold := known.get("out_of_fold", {}).get(f"fold_{fold}"):
            shown = (f"{name.replace('_dice', '')} {value:.3f}" for name, value in out_of_fold.items())
            parts.append(f"Dice of the fold on its own validation cases: {', '.join(shown)}")
    if {f"fold_{fold}", "ensemble"} <= seconds.keys():
        parts.append(f"{seconds[f'fold_{fold}']:.2f} s a case (ensemble {seconds['ensemble']:.2f} s)")
    return "; ".join(parts)


def _write(
    target: Path, recipe: Mapping[str, Any], metadata: Mapping[str, Any], weights: Mapping[str, Bundle], source: str
) -> Path:
    """Write a bundle whose weights, by file name, are copies of the file `source` of other bundles, byte for byte."""
    made_in, old = (target.with_name(f".{uuid4().hex[:8]}-{target.name}") for _ in range(2))
    try:
        for name, content in ((RECIPE, without_absolute_paths(recipe)), (METADATA, with_format(metadata))):
            with aside(made_in / name) as path:
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name, bundle in weights.items():
            with aside(made_in / name) as path:
                path.write_bytes(read_member(bundle.root, source))
        if target.exists():
            target.replace(old)
        made_in.replace(target)
    finally:
        for left in (made_in, old):
            shutil.rmtree(left, ignore_errors=True)
    return target
