import json
from dataclasses import asdict

import numpy as np
import pytest
from evaluations import SIDE, box_metrics, case_ids, planted, write_evaluation

from medseg.errors import ConfigError, DataError
from medseg.metrics import case_metrics
from medseg.review import compare, read_entries, read_evaluation
from medseg.review.comparing import default_metrics, lower_is_better
from medseg.review.entry import Entry
from medseg.review.page import page, write_comparison


def entry(values, *, name="model", metric="liver_dice", **known):
    return Entry(name, "test", {case_id: {metric: value} for case_id, value in values.items()}, **known)


def results_of(comparison):
    return {result.metric: result for result in comparison.results}


def test_a_planted_gain_of_two_points_is_significant_at_60(tmp_path):
    first, second = planted(60, 0.02, seed=1)
    entries = [write_evaluation(tmp_path / name, dice) for name, dice in (("a", first), ("b", second))]
    comparison = compare([read_evaluation(folder) for folder in entries])
    found = results_of(comparison)["liver_dice"]
    assert (found.test.n, found.test.method, found.verdict) == (60, "exact", "better")
    assert found.p_holm < 0.05
    assert found.test.ci_low < 0.02 < found.test.ci_high
    assert found.test.difference == pytest.approx(
        np.mean(list(second.values())) - np.mean(list(first.values())), abs=1e-3
    )


def test_the_same_run_in_another_order_is_not_different(tmp_path):
    first, _ = planted(60, 0, seed=2)
    shuffled = {case_id: first[case_id] for case_id in np.random.default_rng(0).permutation(case_ids(60)).tolist()}
    folders = [write_evaluation(tmp_path / name, dice) for name, dice in (("a", first), ("b", shuffled))]
    comparison = compare([read_evaluation(folder) for folder in folders])
    assert {result.verdict for result in comparison.results} == {"no difference shown"}
    assert all(result.test.p == 1 and result.test.ties == 60 for result in comparison.results)


def test_figures_dealt_to_other_cases_are_not_different(tmp_path):
    first, _ = planted(60, 0, seed=3)
    dealt = dict(zip(first, np.random.default_rng(1).permutation(list(first.values())).tolist(), strict=True))
    folders = [write_evaluation(tmp_path / name, dice) for name, dice in (("a", first), ("b", dealt))]
    comparison = compare([read_evaluation(folder) for folder in folders])
    assert {result.verdict for result in comparison.results} == {"no difference shown"}


def test_of_200_noisy_copies_with_four_metrics_each_few_show_anything():
    wrong = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        rows = [
            {
                case_id: {f"m{k}_dice": value for k, value in enumerate(random.normal(0.8, 0.05, 4))}
                for case_id in case_ids(30)
            }
            for _ in range(2)
        ]
        comparison = compare([Entry(name, "test", of) for name, of in zip("ab", rows, strict=True)], seed=seed)
        wrong += any(result.verdict != "no difference shown" for result in comparison.results)
    assert 2 <= wrong <= 19  # 5 % of 200 are 10; four tests uncorrected would give 37


def test_smaller_distances_are_better():
    comparison = compare(
        [
            entry({case_id: 9.0 + k for k, case_id in enumerate(case_ids(12))}, metric="liver_hd95_mm"),
            entry({case_id: 6.0 + k for k, case_id in enumerate(case_ids(12))}, metric="liver_hd95_mm"),
        ],
        metrics=["liver_hd95_mm"],
    )
    [found] = comparison.results
    assert (found.gain, found.test.difference, found.verdict) == (3, -3, "better")
    assert lower_is_better("volume_error_ml")
    assert not lower_is_better("lesion_recall")


def test_names_of_regions_do_not_turn_a_metric_around():
    for region in ("precentral", "recess", "split_liver", "error", "lesion"):
        assert not lower_is_better(f"{region}_dice")
        assert lower_is_better(f"{region}_hd95_subvoxel_mm_all")
    assert lower_is_better("tumor_fp")
    assert lower_is_better("lesions_false_alarms")


def test_measuring_too_little_is_no_better_than_too_much():
    entries = [entry(dict.fromkeys("abcdefgh", error), metric="tumor_volume_error_ml") for error in (2.0, -30.0)]
    comparison = compare(entries, metrics=["tumor_volume_error_ml"])
    [found] = comparison.results
    assert (found.test.mean_a, found.test.mean_b, found.verdict) == (2, 30, "worse")
    assert "tumor_volume_error_ml: its size is compared, without its sign" in comparison.cautions


def test_a_volume_is_neither_better_nor_worse():
    entries = [entry({"a": 1.0}, metric="tumor_pred_ml"), entry({"a": 2.0}, metric="tumor_pred_ml")]
    with pytest.raises(ConfigError, match="'tumor_pred_ml' is a size"):
        compare(entries, metrics=["tumor_pred_ml"])


def test_the_dice_of_a_region_called_lesion_is_not_that_of_its_pieces(tmp_path):
    reference = np.zeros((20, 20), dtype=np.uint8)
    reference[2:10, 2:10] = 1
    reference[15, 15] = 1
    pred = reference.copy()
    pred[15, 15] = 0  # one of two pieces: their Dice is 1/2, that of the region nearly 1
    settings = {"lesion_region": "lesion", "unit": "px", "definitions": ("voxel",)}
    metrics = asdict(case_metrics(pred, reference, (1.0, 1.0), {"lesion": [1]}, **settings))
    folder = write_evaluation(tmp_path / "a", {"one": 1.0}, metrics=lambda _: metrics)
    read = read_evaluation(folder)
    assert read.rows["one"]["lesion_dice"] == pytest.approx(128 / 129)
    assert read.rows["one"]["lesions_dice"] == pytest.approx(1 / 2)
    tested = default_metrics([read, read])
    assert tested == ["lesion_dice", "lesion_nsd_2px", "lesion_hd95_px", "lesions_recall", "lesions_f1"]


def test_mean_and_ranks_that_disagree_are_said_to():
    small_gains = {case_id: 0.5 + 0.01 * (k + 1) for k, case_id in enumerate(case_ids(20))}
    small_gains["case_019"] = -9.5
    [found] = compare([entry(dict.fromkeys(case_ids(20), 0.5)), entry(small_gains)]).results
    assert found.test.difference < 0 < found.test.favors
    assert found.verdict == "differs, mean and ranks disagree"


def test_too_few_pairs_are_said_to_be_too_few():
    [found] = compare([entry(dict.fromkeys("abcde", 0.5)), entry(dict.fromkeys("abcde", 0.9))]).results
    assert (found.test.p, found.verdict) == (0.0625, "too few pairs")


def test_cases_without_a_partner_are_named_and_losses_and_gains_are_in_order():
    first = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6, "only_first": 0.1}
    second = {"a": 0.2, "b": 0.7, "c": 0.95, "d": 0.61, "only_second": 0.1}
    comparison = compare([entry(first), entry(second)])
    assert comparison.unpaired == {1: (("only_first",), ("only_second",))}
    losses, gains = comparison.flipped("liver_dice", 1)
    assert [change.case_id for change in losses] == ["a", "b"]
    assert [change.case_id for change in gains] == ["c", "d"]
    assert losses[0].gain == pytest.approx(-0.7)
    assert "only_first" in page(comparison)


def test_entries_without_a_case_in_common_are_refused():
    with pytest.raises(DataError, match="A and B have no case in common"):
        compare([entry({"a": 0.5}), entry({"b": 0.5})])


def test_one_entry_is_nothing_to_compare():
    with pytest.raises(ConfigError, match="1 to compare"):
        compare([entry({"a": 0.5})])


def test_an_unknown_metric_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"'dice'; they share liver_dice"):
        compare([entry({"a": 0.5}), entry({"a": 0.5})], metrics=["dice"])


def test_what_differs_is_named_and_words_for_readers_are_not(tmp_path):
    recipe = {"seed": 0, "network_def": {"widths": [8, 16]}, "_about_x_": "first"}
    other = {"seed": 0, "network_def": {"widths": [16, 32]}, "_about_x_": "second", "lr": 0.1}
    dice = dict.fromkeys(case_ids(3), 0.8)
    first = write_evaluation(tmp_path / "a", dice, about={"recipe": recipe, "git_commit": "aaa", "data_sha256": "1"})
    second = write_evaluation(tmp_path / "b", dice, about={"recipe": other, "git_commit": "bbb", "data_sha256": "2"})
    comparison = compare([read_evaluation(first), read_evaluation(second)])
    assert {(one.kind, one.key): one.values for one in comparison.differences} == {
        ("recipe", "network_def.widths"): ("[8, 16]", "[16, 32]"),
        ("recipe", "lr"): (None, "0.1"),
        ("data", "sha256"): ("1", "2"),
        ("code", "git commit"): ("aaa", "bbb"),
    }


def test_other_references_failures_and_seen_cases_are_cautioned_of(tmp_path):
    dice = dict.fromkeys(case_ids(8), 0.8)

    def larger(missed):
        metrics = box_metrics(missed)
        metrics["regions"]["liver"]["reference_ml"] *= 1.1
        return metrics

    first = write_evaluation(tmp_path / "a", dice, failed=["case_002"], about={"held_out": False})
    second = write_evaluation(tmp_path / "b", dice, metrics=larger)
    said = " | ".join(compare([read_evaluation(first), read_evaluation(second)]).cautions)
    assert "different references in 8 cases (case_000, case_001, case_002, case_003, case_004 and 3 more)" in said
    assert "A failed on 1 case (case_002)" in said
    assert "A was judged on cases that had a part in its training" in said


def test_scans_of_one_patient_are_tested_as_one(tmp_path):
    dice = dict.fromkeys(case_ids(12), 0.8)
    better = dict.fromkeys(case_ids(12), 0.9)
    patients = {case_id: f"person {number // 6}" for number, case_id in enumerate(case_ids(12))}
    folders = [write_evaluation(tmp_path / "a", dice, patients=patients), write_evaluation(tmp_path / "b", better)]
    comparison = compare([read_evaluation(folder) for folder in folders])
    assert results_of(comparison)["liver_dice"].test.patients == 2
    assert "person" not in page(comparison)


def test_lesions_are_counted_by_who_found_them():
    found = [{"a": {1: True, 2: False}, "b": {1: True}}, {"a": {1: True, 2: True}, "b": {1: False}}]
    rows = {"a": 0.5, "b": 0.5}
    [lesions] = compare([entry(rows, found=found[0]), entry(rows, found=found[1])]).lesions
    assert (lesions.both, lesions.first_only, lesions.second_only, lesions.neither) == (1, 1, 1, 0)


def test_dice_over_every_case_is_tested_only_where_a_reference_is_empty():
    full = {"liver_dice": 0.8, "liver_dice_all": 0.8}
    assert default_metrics([Entry("m", "test", {"a": full})]) == ["liver_dice"]
    empty = {"liver_dice": None, "liver_dice_all": 0.0}
    assert default_metrics([Entry("m", "test", {"a": full, "b": empty})]) == ["liver_dice", "liver_dice_all"]


def test_three_entries_are_corrected_for_together_and_read_against_the_first(tmp_path):
    first, second = planted(40, 0.03, seed=5)
    comparison = compare([entry(first), entry(second), entry(first)])
    assert [(result.other, result.verdict) for result in comparison.results] == [
        (1, "better"),
        (2, "no difference shown"),
    ]
    assert comparison.results[0].p_holm == pytest.approx(2 * comparison.results[0].test.p)


def test_costs_are_read_and_parameters_counted_from_the_recipe(tmp_path):
    recipe = json.loads(NETWORK)
    folder = write_evaluation(tmp_path / "a", {"a": 0.8}, about={"seconds_per_case": 1.5, "recipe": recipe})
    # from a network that is made
    from medseg.networks.unet import UNet

    made = sum(p.numel() for p in UNet(2, 1, 2, widths=(4, 8)).parameters())
    assert read_evaluation(folder).cost == {"ms_per_case": 1500.0, "parameters": made}


NETWORK = """{"network_def": {"_target_": "medseg.networks.unet.UNet", "spatial_dims": 2, "in_channels": 1,
"out_channels": 2, "widths": [4, 8]}}"""


@pytest.mark.parametrize("damage", ["{", '{"case_id": "a"}', '{"case_id": "a", "status": "judged", "metrics": 3}'])
def test_a_damaged_evaluation_is_refused_in_a_line(tmp_path, damage):
    folder = write_evaluation(tmp_path / "card", {"a": 0.5})
    (folder / "cases.jsonl").write_text(damage + "\n")
    with pytest.raises(DataError, match="card: no whole evaluation"):
        read_evaluation(folder)


def test_a_folder_that_is_neither_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty is no run"):
        read_entries([str(tmp_path / "empty")] * 2, runs_dir=tmp_path)


def test_the_planted_boxes_have_the_dice_they_should():
    assert box_metrics(0)["regions"]["liver"]["dice"] == 1
    assert box_metrics(SIDE**3)["regions"]["liver"]["dice"] == 0


def test_no_comparison_is_written_over_an_evaluation(tmp_path):
    folder = write_evaluation(tmp_path / "a", {"one": 0.5})
    (folder / "index.html").write_text("the card")
    comparison = compare([read_evaluation(folder), read_evaluation(folder)])
    with pytest.raises(ConfigError, match=r"^a: no folder for a comparison"):
        write_comparison(folder, comparison)
    assert (folder / "index.html").read_text() == "the card"
    write_comparison(tmp_path / "new", comparison)
    assert (tmp_path / "new" / "index.html").is_file()
