"""What several readers agree on."""

from pathlib import Path

import numpy as np
import pytest
from planted_cases import AFFINE, RECIPE

from medseg.errors import DataError
from medseg.evaluation import Judgment, Options, evaluate
from medseg.evaluation.consensus import How, consensus
from medseg.reading import Scan
from medseg.writing import write_nifti


def scans(*maps: list[int], dtype: type = np.uint8) -> dict[str, Scan]:
    return {f"reader{n}": Scan(np.array(one, dtype=dtype).reshape(-1, 1, 1), np.eye(4)) for n, one in enumerate(maps)}


@pytest.mark.parametrize("how", ["majority", "staple"])
def test_what_a_reader_ignores_is_not_judged(how: How) -> None:
    readers = scans([1, 255, 2, 0, 1], [1, 1, 2, 0, 1], [1, 1, 2, 255, 1])
    assert consensus(readers, how, ignore_label=255).voxels.ravel().tolist() == [1, 255, 2, 255, 1]


def test_where_all_voxels_are_ignored_nothing_is_judged() -> None:
    assert consensus(scans([255], [1]), "staple", ignore_label=255).voxels.ravel().tolist() == [255]


@pytest.mark.parametrize("how", ["majority", "staple"])
def test_label_values_stay_what_they_are(how: How) -> None:
    high = [0, 255, 300, 300, -1]
    agreed = consensus(scans(high, high, high, dtype=np.int16), how).voxels
    assert agreed.ravel().tolist() == high


def test_where_readers_disagree_there_is_background() -> None:
    agreed = consensus(scans([3, 1], [3, 2], [3, 4]), "majority", ignore_label=255)
    assert agreed.voxels.ravel().tolist() == [3, 0]
    assert consensus(scans([3], [3]), "staple", ignore_label=-1).voxels.ravel().tolist() == [3]


def test_more_labels_than_can_be_told_apart_are_refused() -> None:
    many = list(range(256))
    with pytest.raises(DataError, match="256 label values"):
        consensus(scans(many, many, dtype=np.int16), "staple")


def test_a_case_without_consensus_is_missing_and_the_others_are_judged(tmp_path: Path) -> None:
    label, moved = np.ones((6, 5, 4), dtype=np.uint8), AFFINE.copy()
    moved[0, 3] = 9
    for name in ("a", "b"):
        for folder in ("pred", "first", "second"):
            write_nifti(
                label, moved if (name, folder) == ("b", "second") else AFFINE, tmp_path / folder / f"{name}.nii"
            )
    readers = {name: tmp_path / name for name in ("first", "second")}
    options = Options(consensus="staple")
    told = evaluate(tmp_path / "pred", readers, tmp_path / "card", judgment=Judgment.of_recipe(RECIPE), options=options)
    assert (told["about"]["n"], told["about"]["missing"], told["about"]["without_reference"]) == (1, 1, [])
    table = (tmp_path / "card" / "cases.csv").read_text(encoding="utf-8")
    assert "the references of first and second are on different grids" in table
    assert not told["about"]["warnings"]
    for folder in readers.values():
        (folder / "a.nii").unlink()
    with pytest.raises(DataError, match="case 'b': the references of first and second"):
        evaluate(tmp_path / "pred", readers, tmp_path / "other", judgment=Judgment.of_recipe(RECIPE), options=options)
