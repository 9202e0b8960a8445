"""Pages in a browser without a window: what the list shows, sorts and finds, and that a full case prints on a sheet."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from medseg.regions import Lesions
from medseg.report.measurements import measure
from medseg.report.pages import About, draw_case, write_case_page, write_index

BROWSER = next((path for path in map(shutil.which, ("chromium", "google-chrome", "chrome")) if path), None)
ABOUT = About("unet_liver 0.1.0", "float32", False, {"liver": [1, 2], "tumor": [2]}, "tumor")
PROBE = """<script>
const texts = row => [...row.cells].map(cell => cell.textContent);
const cells = () => [...document.querySelectorAll("#cases tbody tr")].map(texts);
const head = name => [...document.querySelectorAll("th button")].find(button => button.textContent === name);
const said = { first: cells() };
head("tumor, mL").click(); said.largest = cells();
head("tumor, mL").click(); said.smallest = cells();
show.value = "look"; show.dispatchEvent(new Event("change")); said.look = cells();
show.value = ""; find.value = "cut SHORT"; find.dispatchEvent(new Event("input")); said.found = cells();
document.body.dataset.said = JSON.stringify(said);
</script></body>"""


def seen(tmp_path, rows):
    """What the script shows at first, after clicks on a column, and with each filter."""
    page = tmp_path / "index.html"
    write_index(page, ABOUT, rows)
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    return json.loads(html.unescape(re.search(r'data-said="([^"]*)"', browsed(tmp_path, page, "--dump-dom"))[1]))


def browsed(tmp_path, page, *wanted):
    """What the browser says of a page."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", *wanted]
    done = subprocess.run([BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_the_list_shows_sorts_and_finds(tmp_path):
    def done(case_id, tumor_ml, **more):
        return {
            "case_id": case_id,
            "status": "done",
            "liver_ml": 1500.2,
            "tumor_ml": tumor_ml,
            "lesion_count": 1,
        } | more

    failed = {"case_id": "z", "status": "failed", "message": "z.nii.gz: cut short"}
    flagged = done("y", 0.0, flags="tumor: none found", lesion_count=0)
    said = seen(tmp_path, [done("a", 0.02), done("b", 12.34), flagged, failed])
    assert [row[0] for row in said["first"]] == ["z", "y", "a", "b"]  # failed and flagged ones first
    tumor = {row[0]: row[5] for row in said["first"]}
    assert tumor == {"z": "", "y": "none found", "a": "< 0.1", "b": "12.3"}  # neither empty nor small is 0.0
    assert said["first"][1][4] == "1500.2"
    assert [row[0] for row in said["largest"]] == ["b", "a", "y", "z"]  # what is not known comes last
    assert [row[0] for row in said["smallest"]] == ["y", "a", "b", "z"]
    assert sorted(row[0] for row in said["look"]) == ["y", "z"]
    assert [row[0] for row in said["found"]] == ["z"]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_a_case_with_all_that_a_page_can_say_prints_on_one_sheet(tmp_path):
    image = np.random.default_rng(0).integers(-100, 200, (60, 60, 90)).astype(np.int16)
    label, affine = np.zeros(image.shape, np.uint8), np.diag([4.0, 4.0, 4.0, 1.0])
    label[5:50, 5:50, 5:80] = 1
    for place in range(25):  # more than the table shows
        label[6 + place, 10, 8 + 2 * place] = 2
    found = Lesions.of(label, [2])
    row, lesions = measure(label, affine, regions=ABOUT.regions, lesion_region="tumor", found=found, hu=image)
    said = {"flags": ["liver: a flag of many words that is as long as flags are, and then longer"] * 6}
    said |= {"warnings": ["a warning"] * 3, "notes": ["a note"] * 2, "liver_confidence": 0.9, "liver_agreement": 0.8}
    page, sheets = tmp_path / "cases" / "a.html", tmp_path / "a.pdf"
    drawn = draw_case(image, label, affine, ABOUT, lesions=found)
    write_case_page(page, ABOUT, {"case_id": "a", "status": "done"} | row | said, lesions, drawn)
    browsed(tmp_path, page, "--no-pdf-header-footer", f"--print-to-pdf={sheets}")
    content = sheets.read_bytes()
    assert len(re.findall(rb"/Type\s*/Page\b", content)) == 1
    assert b"/MediaBox [0 0 594." in content or b"/MediaBox [0 0 595" in content  # A4, in points
