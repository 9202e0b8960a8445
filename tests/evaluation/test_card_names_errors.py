"""The card of a hundred phantom cases names every error that was planted."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from planted_cases import PLANTS, write_planted
from typer.testing import CliRunner

from medseg.cli import app

NAMED = {  # what was planted -> the title under which the card must name it
    "missed lesion": "Missed lesions",
    "shifted mask": "Shifted masks",
    "merged lesions": "Merged lesions",
    "empty case, nothing predicted": "Empty references",
    "empty case, false alarm": "False alarms",
    "extra organ": "Extra organ pieces",
    "failed case": "Failed cases",
    "nothing predicted": "Nothing predicted",
}
FAR_FETCHED = re.compile(r"(?:src|href)\s*=\s*[\"'](?!data:|#)", re.IGNORECASE)


class Page(HTMLParser):
    """The kinds of errors of a page, each with the text below it, and what the first box says."""

    def __init__(self) -> None:
        super().__init__()
        self.below: dict[str, str] = {}
        self.facts: dict[str, str] = {}
        self.images = 0
        self._tag = self._summary = self._fact = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._tag = tag
        self.images += tag == "img"

    def handle_data(self, data: str) -> None:
        text = data.strip()
        if not text:
            return
        if self._tag == "summary":
            self._summary = text.partition(":")[0]
        elif self._tag in ("li", "strong") and self._summary:
            self.below[self._summary] = self.below.get(self._summary, "") + " " + text
        elif self._tag == "dt":
            self._fact = text
        elif self._tag == "dd":
            self.facts[self._fact] = text


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of the planted cases, made as a user makes it."""
    folder = tmp_path_factory.mktemp("planted")
    masks, references, scans = write_planted(folder)
    arguments = ["evaluate", str(masks), str(folder / "card"), "--ref", str(references), "--scans", str(scans)]
    told = CliRunner().invoke(app, [*arguments, "--split", "test", "--source", "planted phantom", "--jobs", "1"])
    assert told.exit_code == 3, told.output  # a case failed
    return folder / "card"


@pytest.fixture(scope="module")
def page(card: Path) -> Page:
    parsed = Page()
    parsed.feed((card / "index.html").read_text(encoding="utf-8"))
    return parsed


@pytest.mark.parametrize("case_id", list(PLANTS))
def test_the_card_names_each_planted_error(page: Page, case_id: str) -> None:
    assert case_id in page.below[NAMED[PLANTS[case_id]]]


def test_the_card_accuses_no_case_that_is_right(page: Page) -> None:
    named = set(re.findall(r"case_\d+", " ".join(page.below.values())))
    assert named == set(PLANTS)


def test_a_shift_is_told_with_its_length_and_direction(page: Page) -> None:
    assert "liver shifted by 15 mm, mostly to the right" in page.below["Shifted masks"]


def test_the_first_box_counts_what_it_must(page: Page) -> None:
    assert page.facts["Cases (n)"] == "100"
    assert page.facts["Patients"] == "50"
    assert page.facts["Source"] == "planted phantom"
    assert page.facts["Split"] == "test"
    assert page.facts["Held out"].startswith("yes, as the user says")
    assert page.facts["Empty cases (no tumor)"] == "2"
    assert page.facts["Failed cases"].startswith("1, counted as failures")
    assert page.facts["Precision"] == "bfloat16"
    assert page.facts["Seconds per case"] == "2.0"


def test_the_page_needs_nothing_from_elsewhere(card: Path, page: Page) -> None:
    text = (card / "index.html").read_text(encoding="utf-8")
    assert not FAR_FETCHED.search(text)
    assert "http" not in text
    assert page.images == 2 * 10  # axial and coronal of the ten worst


def test_a_failed_case_counts_as_a_failure_by_the_second_rule(card: Path) -> None:
    with (card / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    dice = [float(row["liver_dice_all"]) for row in rows]
    summary = json.loads((card / "summary.json").read_text())["summary"]
    assert len(dice) == 100
    assert dice[60] == 0
    assert summary["liver_dice_all"]["n"] == 100
    assert summary["liver_dice_all"]["mean"] == pytest.approx(sum(dice) / 100, abs=1e-4)
    diagonal = sum((size * step) ** 2 for size, step in zip((44, 40, 20), (3, 3, 5), strict=True)) ** 0.5
    assert float(rows[60]["tumor_hd95_mm_all"]) == pytest.approx(diagonal, abs=1e-3)


def test_lines_of_cases_are_whole_and_hold_the_metrics(card: Path) -> None:
    lines = [json.loads(line) for line in (card / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["case_id"] for line in lines] == [f"case_{number:03d}" for number in range(100)]
    assert {line["status"] for line in lines} == {"judged", "failed"}
    assert lines[60]["message"] == "case_060.nii.gz: damaged or cut short; copy it again"
    assert lines[10]["metrics"]["lesions"]["lesion_missed"] == 1
    patients = [line["patient"] for line in lines]
    assert not any("patient 5" in json.dumps(line) for line in lines)  # who it is stands nowhere
    assert len(set(patients)) == 50
    assert patients[10] == patients[11] != patients[12]


def test_the_worst_cases_come_first_and_subgroups_count_all(card: Path) -> None:
    summary = json.loads((card / "summary.json").read_text())
    assert [one["case_id"] for one in summary["worst"]][:2] == ["case_070", "case_020"]
    assert {name: one["n"] for name, one in summary["subgroups"]["phase"].items()} == {"arterial": 34, "portal": 66}
    assert summary["subgroups"]["largest lesion"]["no lesion"]["n"] == 2
