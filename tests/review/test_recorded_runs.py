import csv
import io
import json
import shutil

import psutil
import pytest
from typer.testing import CliRunner

from medseg import cli
from medseg.errors import ConfigError
from medseg.review import compare, list_rows, read_entries
from medseg.review.listing import Condition, figures_of, sorted_rows
from medseg.tracking import life, list_runs, start_run

CASES = [f"phantom_{number:03}" for number in range(12)]


def recorded(runs_dir, name, *, lr, gain=0.0, end="FINISHED"):
    run = start_run(runs_dir=runs_dir, experiment="unet_liver", name=name)
    run.log_recipe({"optimizer": {"lr": lr}, "epochs": 3}, {"optimizer::lr": lr, "dataset_dir": "/home/jane/scans"})
    run.log_data({"sha256": "f" * 64, "cases": 12})
    rows = [
        {
            "case_id": case_id,
            "liver_dice": 0.7 + 0.01 * number + gain * (1 + number / 50),
            "liver_reference_ml": 0.0 if case_id == "phantom_011" else 900.0,
        }
        for number, case_id in enumerate(CASES)
    ]
    run.log_table(rows, "held_out_cases")
    run.log_table(rows[:4], "validation_cases")
    run.log_metrics({"held_out_liver_dice": 0.75 + gain, "train_loss": 0.5, "validation_liver_dice": 0.99}, step=3)
    run.flush()
    if end:
        run.finish(end)
    else:
        run._watch.stop()
    return run


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory, new_store):
    """Two runs that are done, one that failed and one whose process is gone."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        runs_dir = new_store(tmp_path_factory.mktemp("project") / "runs")
        recorded(runs_dir, "first", lr=0.1)
        recorded(runs_dir, "second", lr=0.01, gain=0.1)
        recorded(runs_dir, "third", lr=0.001, gain=-0.2, end="FAILED")
        gone = recorded(runs_dir, "gone", lr=1.0, end=None)
        signed = json.loads(life.sign(gone.folder).read_text())
        dead = next(pid for pid in range(2**22 - 1, 1, -1) if not psutil.pid_exists(pid))
        life.sign(gone.folder).write_text(json.dumps(signed | {"pid": dead}))
        return runs_dir


def names(rows):
    return [row["name"].rpartition("-")[2] for row in rows]


def ask(*arguments):
    return CliRunner().invoke(cli.app, ["runs", *map(str, arguments)], catch_exceptions=False)


def test_every_run_is_a_row_and_a_dead_one_is_stale(runs_dir):
    rows = list_rows(runs_dir)
    assert sorted(names(rows)) == ["first", "gone", "second", "third"]
    assert {name: row["status"] for name, row in zip(names(rows), rows, strict=True)} == {
        "first": "FINISHED",
        "second": "FINISHED",
        "third": "FAILED",
        "gone": "STALE",
    }


def test_a_run_whose_folder_is_elsewhere_is_not_called_stale_in_a_shared_store(tmp_path, new_store, monkeypatch):
    store = new_store(tmp_path / "store") / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    run = start_run(runs_dir=tmp_path / "mine", experiment="liver")
    (tmp_path / "yours").mkdir()
    assert [one.status for one in list_runs(tmp_path / "yours")] == ["RUNNING"]
    run.finish("FINISHED")


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        (["liver_dice>0.7"], ["first", "gone", "second"]),  # bare: of the held-out cases, not of the validation
        (["validation_liver_dice > 0.9", "held_out_liver_dice<=0.75"], ["first", "gone", "third"]),
        (["status=finished"], ["first", "second"]),
        (["status != FINISHED"], ["gone", "third"]),
        (["optimizer.lr<0.05"], ["second", "third"]),
        (["name~sec"], ["second"]),
        (["epochs=3.0", "optimizer.lr==1"], ["gone"]),
        (["started>=2020-01-01"], ["first", "gone", "second", "third"]),
        (["started<2020-01-01"], []),
    ],
)
def test_conditions_are_typed_and_all_must_hold(runs_dir, where, kept):
    assert sorted(names(list_rows(runs_dir, where=where))) == kept


def test_rows_are_sorted_as_numbers(runs_dir):
    assert names(list_rows(runs_dir, sort="optimizer.lr")) == ["third", "second", "first", "gone"]
    assert names(list_rows(runs_dir, sort="liver_dice", descending=True))[0] == "second"


def test_rows_without_a_value_come_last_either_way():
    rows = [{"lr": "10"}, {}, {"lr": "9"}]
    assert sorted_rows(rows, "lr") == [{"lr": "9"}, {"lr": "10"}, {}]
    assert sorted_rows(rows, "lr", descending=True) == [{"lr": "10"}, {"lr": "9"}, {}]


@pytest.mark.parametrize("text", ["liver_dice", "> 3", "a >"])
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(ConfigError, match="is no condition"):
        Condition.parse(text)


def test_text_is_not_larger_than_text():
    with pytest.raises(ConfigError, match="compares numbers, and 'high' is none"):
        Condition.parse("dice > high")


def test_an_unknown_name_is_refused_with_one_that_is_near(runs_dir):
    with pytest.raises(ConfigError, match=r"no run has 'liver_dcie'; did you mean liver_dice"):
        list_rows(runs_dir, where=["liver_dcie>0.5"])
    with pytest.raises(ConfigError, match="no run has 'qqqqqq'"):
        list_rows(runs_dir, sort="qqqqqq")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no folder of runs absent"):
        list_rows(tmp_path / "absent")


def test_the_terminal_lists_runs_and_names_stale_ones(runs_dir):
    result = ask("--runs", runs_dir, "--where", "liver_dice>0.7")
    assert result.stdout.count("FINISHED") == 2
    assert "third" not in result.stdout
    assert "0.850" in result.stdout
    assert "stale, nobody writes them" in result.stderr
    assert "gone" in result.stderr


def test_json_and_csv_hold_all_figures_and_no_folder(runs_dir):
    rows = json.loads(ask("--runs", runs_dir, "--json").stdout)
    [second] = [row for row in rows if row["name"].endswith("second")]
    assert (second["held_out_liver_dice"], second["optimizer.lr"]) == (0.85, "0.01")
    text = ask("--runs", runs_dir, "--csv", "--sort", "optimizer.lr").stdout
    table = list(csv.DictReader(io.StringIO(text)))
    assert [row["optimizer.lr"] for row in table] == ["0.001", "0.01", "0.1", "1.0"]
    assert "/home/jane" not in text


def test_runs_are_compared_by_id_by_name_and_by_folder(runs_dir):
    rows = {name: row for row in list_rows(runs_dir) for name in names([row])}
    first = next(runs_dir.glob("*-first"))
    for place in (rows["first"]["run_id"], rows["first"]["run_id"][:8], rows["first"]["name"], str(first)):
        comparison = compare(read_entries([place, rows["second"]["run_id"]], runs_dir=runs_dir))
        [found] = comparison.results
        assert (found.metric, found.test.n, found.left_out) == ("liver_dice", 11, 1)  # one reference is empty
        assert found.verdict == "better"
        assert comparison.entries[0].split == "held_out"
    differing = {(one.kind, one.key): one.values for one in comparison.differences}
    assert differing["recipe", "optimizer.lr"] == ("0.1", "0.01")
    assert ("recipe", "epochs") not in differing
    assert differing["overrides", "optimizer.lr"] == ("0.1", "0.01")
    assert not [key for key in differing if key[0] == "data"]


def test_another_split_may_be_asked_for(runs_dir):
    folders = [str(next(runs_dir.glob(f"*-{name}"))) for name in ("first", "second")]
    assert [len(entry.rows) for entry in read_entries(folders, runs_dir=runs_dir, split="validation")] == [4, 4]
    with pytest.raises(ConfigError, match=r"has no table of cases \(out_of_fold_cases.csv\)"):
        read_entries(folders, runs_dir=runs_dir, split="out_of_fold")


def test_a_run_that_failed_is_cautioned_of(runs_dir):
    folders = [str(next(runs_dir.glob(f"*-{name}"))) for name in ("first", "third")]
    said = compare(read_entries(folders, runs_dir=runs_dir)).cautions
    assert "B is of a run that is failed: its figures may not be its last" in said


def test_an_unknown_run_is_refused(runs_dir):
    with pytest.raises(ConfigError, match="no run 'nothing' in runs"):
        read_entries(["nothing", "nothing"], runs_dir=runs_dir)


def test_a_run_whose_folder_is_gone_is_read_from_mlflow(runs_dir, tmp_path):
    copy = tmp_path / "runs"
    shutil.copytree(runs_dir, copy)
    [row] = [row for row in list_rows(copy) if row["name"].endswith("second")]
    shutil.rmtree(copy / row["name"])
    entries = read_entries([row["run_id"], str(next(copy.glob("*-first")))], runs_dir=copy)
    assert entries[0].rows["phantom_003"]["liver_dice"] == pytest.approx(0.73 + 0.1 * (1 + 3 / 50))
    assert entries[0].recipe["optimizer.lr"] == "0.01"


def test_figures_of_the_most_telling_cases_are_shown():
    assert figures_of([{"validation_mean_dice": 0.5}]) == ["mean_dice"]
    assert figures_of([{"held_out_liver_dice": 0.5, "held_out_mean_dice": 0.5, "train_dice": 0.1}]) == ["liver_dice"]
