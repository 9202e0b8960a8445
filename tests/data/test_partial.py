import numpy as np
import pytest

from medseg.data import Cases, PartialLabels, annotated_regions
from medseg.data.partial import merge_unlabeled, merged_values
from medseg.errors import ConfigError, DataError

LABELS = {"background": 0, "liver": 1, "tumor": 2}
REGIONS = {"liver": [1, 2], "tumor": [2]}
MERGED = {254: [0, 1], 253: [1, 2]}
ORGANS = {"background": 0, "liver": 1, "spleen": 2, "vessel": 3}
SEPARATE = {"liver": [1], "spleen": [2]}


def merged(label: list[int], labeled: list[str]) -> list[int]:
    return merge_unlabeled(np.array(label, np.uint8), LABELS, REGIONS, labeled, merged_values=MERGED).tolist()


def test_nested_regions_have_two_sets() -> None:
    assert merged_values(LABELS, REGIONS) == MERGED


def test_without_the_tumors_a_liver_voxel_may_be_either() -> None:
    assert merged([0, 1, 2, 0], ["liver"]) == [0, 253, 253, 0]


def test_without_the_liver_only_tumor_voxels_are_sure() -> None:
    assert merged([0, 1, 2, 0], ["tumor"]) == [254, 254, 2, 254]


def test_with_every_region_nothing_changes() -> None:
    assert merged([0, 1, 2, 0], ["tumor", "liver"]) == [0, 1, 2, 0]


def test_a_class_in_no_region_cannot_be_told_from_the_background() -> None:
    # the vessel (3) is in neither region; without the spleen (2) it may be that as well
    table = merged_values(ORGANS, SEPARATE)
    assert table == {254: [0, 1, 3], 253: [0, 2, 3], 252: [0, 3]}
    label = np.array([[0, 1], [2, 3]])
    only_liver = merge_unlabeled(label, ORGANS, SEPARATE, ["liver"], merged_values=table)
    assert only_liver[0, 1] == 1
    assert [table[int(value)] for value in only_liver[[0, 1, 1], [0, 0, 1]]] == [[0, 2, 3]] * 3


def test_the_table_does_not_depend_on_the_order_of_the_cases() -> None:
    labelings = [["liver"], ["spleen"], ["liver", "spleen"]]
    assert merged_values(ORGANS, SEPARATE, labelings) == merged_values(ORGANS, SEPARATE, labelings[::-1])
    assert merged_values(ORGANS, SEPARATE, labelings) == merged_values(ORGANS, SEPARATE)
    assert list(merged_values(ORGANS, SEPARATE, [["liver"]]).values()) == [[0, 2, 3]]


def test_the_ignored_value_is_neither_a_class_nor_used() -> None:
    labels = {**LABELS, "unclear": 254}
    table = merged_values(labels, REGIONS, ignore_label=254)
    assert table == {253: [0, 1], 252: [1, 2]}
    label = np.array([0, 254, 2], np.int16)
    result = merge_unlabeled(label, labels, REGIONS, ["tumor"], merged_values=table, ignore_label=254)
    assert result.tolist() == [253, 254, 2]
    assert result.dtype == np.uint8
    assert label.tolist() == [0, 254, 2]


def test_many_regions_need_the_combinations_that_occur() -> None:
    regions = {f"organ {value}": [value] for value in range(1, 31)}
    labels = {"background": 0, **{name: values[0] for name, values in regions.items()}}
    with pytest.raises(ConfigError, match=r"more than the 224 values that 8 bits leave .* give `labelings`"):
        merged_values(labels, regions)
    assert len(merged_values(labels, regions, [["organ 1"], ["organ 2", "organ 7"]])) == 2


@pytest.mark.parametrize(
    ("labeled", "message"),
    [
        (["spleen"], "labeled names 'spleen', which is no region; name one or more of liver, tumor"),
        ([], "labeled is empty; name one or more of liver, tumor"),
    ],
)
def test_a_region_the_recipe_does_not_have_is_refused(labeled: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        merged([0, 1], labeled)
    with pytest.raises(DataError, match=message):
        merged_values(LABELS, REGIONS, [labeled])


@pytest.mark.parametrize("value", [3, 254])
def test_a_value_that_is_no_class_is_refused(value: int) -> None:
    with pytest.raises(DataError, match=rf"the label holds the values \[{value}\], the recipe knows \[0, 1, 2\]"):
        merged([0, 1, value], ["liver"])


def test_a_combination_without_a_value_is_refused() -> None:
    with pytest.raises(DataError, match=r"labeled \['tumor'\] leaves the classes \[0, 1\] open"):
        merge_unlabeled(np.array([0, 2]), LABELS, REGIONS, ["tumor"], merged_values={253: [1, 2]})


def test_a_data_set_has_one_table_whatever_the_fold() -> None:
    first: Cases = Cases([{"labeled": ["tumor"]}, {}], [{"labeled": ["liver"]}], [], "MSD")
    second = Cases(first.validation, first.training, [], "MSD")
    assert PartialLabels(first, LABELS, REGIONS).merged == PartialLabels(second, LABELS, REGIONS).merged == MERGED


def test_only_what_occurs_has_a_value() -> None:
    partial_labels = PartialLabels(Cases([{"labeled": ["tumor"]}], [], [{}], "MSD"), LABELS, REGIONS)
    assert partial_labels.merged == {254: [0, 1]}
    assert partial_labels(np.array([0, 1, 2], np.int16), ["tumor"]).tolist() == [254, 254, 2]


def test_a_data_set_with_all_regions_has_no_merged_values() -> None:
    assert PartialLabels(Cases([{}], [{}], [], "MSD"), LABELS, REGIONS, ignore_label=255).merged == {}


def test_a_data_set_leaves_the_ignored_value_alone() -> None:
    cases = Cases([{"labeled": ["tumor"]}], [], [], "MSD")
    partial_labels = PartialLabels(cases, LABELS, REGIONS, ignore_label=254)
    assert partial_labels.merged == {253: [0, 1]}
    assert partial_labels(np.array([0, 254], np.uint8), ["tumor"]).tolist() == [253, 254]


def test_annotated_regions_are_one_kind_in_any_order() -> None:
    samples = [
        {"labeled": ["tumor", "liver"]},
        {"labeled": ["liver", "tumor"]},
        {"labeled": ["liver"]},
        {"case_id": "a"},
    ]
    assert annotated_regions(samples) == [("liver", "tumor"), ("liver", "tumor"), ("liver",), ()]
