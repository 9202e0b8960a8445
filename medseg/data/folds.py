"""Cases to training, validation and held-out cases, patient by patient."""

import logging
import random
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from medseg.data.layouts import read_json
from medseg.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


class Split(TypedDict):
    """The case ids of one fold, as in a split file."""

    train: list[str]
    val: list[str]
    held_out: list[str]


def set_aside(case_ids: Sequence[str], patients: Mapping[str, str], *, fraction: float, seed: int) -> set[str]:
    """Case ids of the patients held out from training and model choice.

    Args:
        case_ids: the labeled cases.
        patients: the patient of each case.
        fraction: share of the patients, rounded, at least one patient unless it is 0.
        seed: of the shuffle.

    Raises:
        ConfigError: if `fraction` is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"held_out_fraction is {fraction}; give a share of the patients from 0 up to below 1")
    if fraction == 0:
        return set()
    shuffled = _shuffled_patients(case_ids, patients, seed)
    chosen = set(shuffled[: max(1, round(fraction * len(shuffled)))])
    return {case_id for case_id in case_ids if patients[case_id] in chosen}


def deal_folds(
    case_ids: Sequence[str], patients: Mapping[str, str], *, folds: int, seed: int, held_out: Collection[str] = ()
) -> list[Split]:
    """Folds of the cases that are not held out: patients shuffled by `seed`, every `folds`-th one validates.

    Raises:
        ConfigError: if there are fewer than 2 folds, or fewer patients than folds.
    """
    if folds < 2:
        raise ConfigError(f"fold 0 of {folds}: give 2 folds or more")
    remaining = [case_id for case_id in case_ids if case_id not in held_out]
    shuffled = _shuffled_patients(remaining, patients, seed)
    if len(shuffled) < folds:
        raise ConfigError(f"{len(shuffled)} patients cannot fill {folds} folds; lower folds or held_out_fraction")
    validating = [set(shuffled[fold::folds]) for fold in range(folds)]
    return [
        Split(
            train=[case_id for case_id in remaining if patients[case_id] not in chosen],
            val=[case_id for case_id in remaining if patients[case_id] in chosen],
            held_out=sorted(held_out),
        )
        for chosen in validating
    ]


def read_splits(path: Path, case_ids: Sequence[str], *, held_out: Collection[str] = ()) -> list[Split]:
    """Folds of a split file, a list of `{"train": [...], "val": [...]}`, each perhaps with `"held_out": [...]`.

    Args:
        path: the file.
        case_ids: the labeled cases.
        held_out: cases to hold out where the file does not say which.

    Raises:
        DataError: if the file is no such list, names unknown cases, a case for two sides, or holds out other cases in
            one fold than in another.
    """
    given = read_json(path)
    try:
        found = [(entry["train"], entry["val"], entry.get("held_out", held_out)) for entry in given]
        lists = [tuple(sorted(set(side)) for side in sides) for sides in found]
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path.name}: not a list of {{'train': [...], 'val': [...]}} ({error}); correct it") from error
    said = ["held_out" in entry for entry in given]
    splits = []
    for fold, (train, val, out) in enumerate(lists):
        if out != lists[0][2] or said[fold] != said[0]:
            raise DataError(f"{path.name}: fold {fold} holds out other cases than fold 0; hold out the same in each")
        if not said[fold]:
            train, val = ([case_id for case_id in side if case_id not in held_out] for side in (train, val))
        _check_sides(path, fold, {"train": train, "val": val, "held_out": out}, case_ids)
        splits.append(Split(train=train, val=val, held_out=out))
    return splits


def chosen_split(splits: Sequence[Split], fold: int, *, case_ids: Collection[str], name: str | None = None) -> Split:
    """One fold; a split file that leaves cases out of it is warned of.

    Args:
        splits: every fold.
        fold: which one validates.
        case_ids: the labeled cases.
        name: of the split file, if the folds are given by one.

    Raises:
        ConfigError: if there is no such fold.
    """
    if not 0 <= fold < len(splits):
        if name:
            raise ConfigError(f"fold {fold}: {name} has folds 0 to {len(splits) - 1}; choose one of them")
        raise ConfigError(f"fold {fold} of {len(splits)}: give 2 folds or more, and a fold from 0 to folds - 1")
    split = splits[fold]
    left_out = len(set(case_ids).difference(split["train"], split["val"], split["held_out"]))
    if left_out:
        logger.warning("%s leaves %d of %d labeled cases out of fold %d", name, left_out, len(case_ids), fold)
    return split


def _check_sides(path: Path, fold: int, sides: Mapping[str, Sequence[str]], case_ids: Sequence[str]) -> None:
    known, side_of = set(case_ids), dict[str, str]()
    for side, members in sides.items():
        for case_id in members:
            if case_id not in known:
                raise DataError(f"{path.name}: case {case_id!r} is not among the labeled cases; correct the file")
            if side_of.setdefault(case_id, side) != side:
                raise DataError(
                    f"{path.name}: case {case_id!r} is in {side_of[case_id]} and in {side} of fold {fold}; "
                    "keep it in one"
                )


def _shuffled_patients(case_ids: Sequence[str], patients: Mapping[str, str], seed: int) -> list[str]:
    distinct = sorted({patients[case_id] for case_id in case_ids})
    random.Random(seed).shuffle(distinct)
    return distinct
