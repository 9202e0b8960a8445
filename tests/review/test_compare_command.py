import csv
import re
from html.parser import HTMLParser

import pytest
from evaluations import planted, write_evaluation
from typer.testing import CliRunner

from medseg import cli
from medseg.errors import ConfigError
from medseg.notices import SYNTHETIC
from medseg.review import Entry, compare, pairs_text, read_evaluation
from medseg.review.charts import cost, gains, intervals, pairs
from medseg.review.page import page


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two evaluations compared by the command, with its page."""
    folder = tmp_path_factory.mktemp("Jane Doe")
    first, second = planted(60, 0.02, seed=1)
    about = {"seconds_per_case": 2.0, "parameters": 1000}
    a = write_evaluation(folder / "a", first, about=about, patients={"case_000": "Jane Doe"})
    del second["case_030"]
    b = write_evaluation(folder / "b", second, about={**about, "seconds_per_case": 3.0}, failed=["case_001"])
    result = CliRunner().invoke(
        cli.app, ["compare", str(a), str(b), "--out", str(folder / "out"), "--names", "old,new"]
    )
    assert result.exit_code == 0, result.output
    return result, folder / "out"


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what would be loaded and what pictures say."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.said = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "img", "input"):
            self.open.append(tag)
        self.loads += [value for key, value in attrs if key in ("src", "href") and not value.startswith("#")]
        self.said += [value for key, value in attrs if tag == "svg" and key == "aria-label"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_terminal_says_what_was_found(compared):
    result, _ = compared
    line = next(line for line in result.output.splitlines() if "liver_dice" in line)
    assert "better" in line
    assert "59" in line
    assert "A: old" in result.output
    assert "A alone has 1 case: case_030" in result.output
    assert "ms a case: A 2,000, B 3,000" in result.output
    assert "B failed on 1 case (case_001)" in result.output


def test_the_page_is_whole_alone_and_described(compared):
    page = Page()
    text = (compared[1] / "index.html").read_text()
    page.feed(text)
    assert page.open == []
    assert page.loads == []
    assert not re.search(r"https?://|<script|url\(", text)
    assert len(page.said) == text.count("<svg") >= 5
    assert "B against A: better in liver_dice" in text
    assert 'lang="en"' in text


def test_nothing_names_a_person_or_a_folder(compared):
    for path in compared[1].iterdir():
        assert "Jane" not in path.read_text(), path.name
    assert "Jane" not in compared[0].stdout


def test_tables_hold_every_test_and_every_case(compared):
    with (compared[1] / "comparison.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"liver_dice", "liver_nsd_2mm", "liver_hd95_mm"}
    assert rows["liver_dice"]["verdict"] == "better"
    assert float(rows["liver_dice"]["p_holm"]) < 0.01
    with (compared[1] / "cases.csv").open() as file:
        cases = [row for row in csv.DictReader(file) if row["metric"] == "liver_dice"]
    assert len(cases) == 59
    assert [row["note"] for row in cases if row["case_id"] == "case_001"] == ["failed in B"]
    one = cases[5]
    assert float(one["gain"]) == pytest.approx(float(one["value_second"]) - float(one["value_first"]), abs=2e-4)


def test_pairs_without_a_figure_are_told(tmp_path):
    first, second = ({"a": {"m_dice": 0.5}, "b": {"m_dice": value}} for value in (None, 0.5))
    [result] = compare([Entry("x", "test", first), Entry("y", "test", second)]).results
    assert pairs_text(result) == "1 of 2"


def test_a_model_of_synthetic_data_is_said_to_be(tmp_path, compared):
    folder = write_evaluation(tmp_path / "a", {"a": 0.5, "b": 0.6}, about={"synthetic": True})
    told = page(compare([read_evaluation(folder)] * 2))
    assert SYNTHETIC in told
    assert SYNTHETIC not in (compared[1] / "index.html").read_text()


def test_names_must_be_as_many_as_entries(tmp_path):
    folder = write_evaluation(tmp_path / "a", {"a": 0.5})
    with pytest.raises(ConfigError, match="--names has 1 names for 2"):
        CliRunner().invoke(cli.app, ["compare", str(folder), str(folder), "--names", "x"], catch_exceptions=False)


def test_charts_stand_on_one_value_and_escape_names():
    drawn = [
        intervals("t", [("<m>", 0.0, None, None, False)]),
        pairs("t", [("<case>", 0.5, 0.5)], names=("A", "B")),
        gains("t", [("<case>", 0.0)]),
        cost("t", [("A", 5e6, 0.5)], names=("x", "y")),
    ]
    for svg in drawn:
        assert "nan" not in svg
        assert "<case>" not in svg
        assert "<m>" not in svg
    assert "million" in drawn[3]
