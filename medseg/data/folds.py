"""Cases to training, validation and held-out cases, patient by patient."""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg.data.layouts import read_json
from medseg.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


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


def split_fold(
    case_ids: Sequence[str], patients: Mapping[str, str], *, fold: int, folds: int, seed: int
) -> tuple[set[str], set[str]]:
    """Training and validation case ids: patients shuffled by `seed`, every `folds`-th one validates.

    Raises:
        ConfigError: if there is no such fold, or fewer patients than folds.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise ConfigError(f"fold {fold} of {folds}: give 2 folds or more, and a fold from 0 to folds - 1")
    shuffled = _shuffled_patients(case_ids, patients, seed)
    if len(shuffled) < folds:
        raise ConfigError(f"{len(shuffled)} patients cannot fill {folds} folds; lower folds or held_out_fraction")
    validating = set(shuffled[fold::folds])
    validation = {case_id for case_id in case_ids if patients[case_id] in validating}
    return set(case_ids) - validation, validation


def read_given_fold(path: Path, case_ids: Sequence[str], *, fold: int) -> tuple[set[str], set[str]]:
    """Training and validation case ids of a split file, a list of `{"train": [...], "val": [...]}`.

    Raises:
        DataError: if the file is no such list, names unknown cases, or a case for both.
        ConfigError: if it has no such fold.
    """
    given = read_json(path)
    try:
        lists = [(set(entry["train"]), set(entry["val"])) for entry in given]
    except (TypeError, KeyError) as error:
        raise DataError(f"{path.name}: not a list of {{'train': [...], 'val': [...]}} ({error}); correct it") from error
    if not 0 <= fold < len(lists):
        raise ConfigError(f"fold {fold}: {path.name} has folds 0 to {len(lists) - 1}; choose one of them")
    training, validation = lists[fold]
    unknown = sorted((training | validation) - set(case_ids))
    if unknown:
        raise DataError(f"{path.name}: case {unknown[0]!r} is not among the labeled cases; correct the file")
    both = sorted(training & validation)
    if both:
        raise DataError(f"{path.name}: case {both[0]!r} is in train and in val of fold {fold}; keep it in one")
    left_out = len(case_ids) - len(training | validation)
    if left_out:
        logger.warning("%s leaves %d of %d labeled cases out of fold %d", path.name, left_out, len(case_ids), fold)
    return training, validation


def _shuffled_patients(case_ids: Sequence[str], patients: Mapping[str, str], seed: int) -> list[str]:
    distinct = sorted({patients[case_id] for case_id in case_ids})
    random.Random(seed).shuffle(distinct)
    return distinct
