"""One case through the stages, with a predictor that only plays its part."""

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_bundle import make_bundle, write_scan

from medseg.errors import DataError
from medseg.inference.cases import Case
from medseg.inference.estimates import forecast, needs_of
from medseg.inference.extras import CaseExtras
from medseg.inference.faults import Failure
from medseg.inference.messages import Extras, Setup
from medseg.inference.predictor import Answer
from medseg.inference.stages import Job, Stages, without_names
from medseg.inference.worker import failure_in
from medseg.reading import ScanSource


class Actor:
    """Fails for want of memory as often as told; has two steps of less memory."""

    def __init__(self, failures=0, error=None):
        self.failures, self.error = failures, error or torch.OutOfMemoryError("CUDA out of memory")
        self.steps = ["windows one at a time", "blending on the CPU"]

    def prepare(self, scans):
        return SimpleNamespace(shape=scans[0].voxels.shape, notes=("body box 9x8x7 of 21x18x13",))

    def answer(self, prepared, *, probabilities=None):
        if self.failures:
            self.failures -= 1
            raise self.error
        return Answer(np.full(prepared.shape, 2, np.uint8))

    def finish(self, label, scans):
        return label, ("tumor: 0.4 mL removed by RemoveSmall",)

    def less_memory(self):
        return self.steps.pop(0) if self.steps else None


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    write_scan(tmp_path / "scans" / "a.nii.gz")
    return Setup(make_bundle(tmp_path / "bundle"), tmp_path / "out", root=tmp_path / "scans")


def through(setup, actor, **changes):
    stages = Stages(actor, setup, check_disk=changes.pop("check_disk", lambda folder, need_mb: None))
    job = Job(Case("a", (ScanSource(setup.root / "a.nii.gz"),), **changes))
    try:
        for step in (stages.read, stages.network, stages.write):
            step(job)
    except Exception as error:
        return stages.failure(job, error)
    return job.result


def test_a_result_tells_measures_notes_and_the_digest_of_the_scan(setup):
    result = through(setup, Actor())
    voxel_ml = 1.5 * 1.5 * 4 / 1000
    assert result.row["liver_ml"] == pytest.approx(21 * 18 * 13 * voxel_ml)
    assert result.row["notes"] == "body box 9x8x7 of 21x18x13; tumor: 0.4 mL removed by RemoveSmall"
    assert result.row["warnings"] == ""
    assert result.mask == setup.out / "a_seg.nii.gz"
    assert len(result.inputs_sha256[0]) == 64


def test_too_little_memory_goes_down_the_ladder_and_is_said(setup):
    result = through(setup, Actor(failures=2))
    assert result.row["warnings"] == (
        "memory did not suffice: windows one at a time; memory did not suffice: blending on the CPU"
    )
    failure = through(setup, Actor(failures=3))
    assert (failure.cause, failure.step) == ("memory", "network")


def test_other_faults_of_the_network_do_not_go_down_the_ladder(setup):
    actor = Actor(failures=1, error=RuntimeError("CUDA error: device-side assert triggered"))
    assert through(setup, actor).cause == "device"
    assert len(actor.steps) == 2


def test_no_network_runs_for_a_mask_that_has_no_room(setup):
    def full(folder, need_mb):
        assert need_mb == pytest.approx(21 * 18 * 13 / 2**20 + 1)
        raise OSError(28, "no room for another mask")

    failure = through(setup, Actor(), check_disk=full)
    assert (failure.cause, failure.step) == ("disk", "read")


def test_a_case_with_a_pseudonym_is_not_named_by_its_messages(setup):
    (setup.root / "a.nii.gz").write_bytes(b"x" * 400)
    assert through(setup, Actor()).message.startswith("a.nii.gz: ")
    message = through(setup, Actor(), keyed=True).message
    assert "a.nii.gz" not in message
    assert message.startswith("a: ")  # the case id


def test_a_header_that_cannot_be_read_for_any_reason_has_no_estimate(setup, monkeypatch):
    def cut_short(source):
        raise EOFError("ended before the end-of-stream marker was reached")

    monkeypatch.setattr("medseg.inference.stages.read_header", cut_short)
    stages = Stages(Actor(), setup, check_disk=lambda folder, need_mb: None)
    assert stages.need_mb(Case("a", (ScanSource(setup.root / "a.nii.gz"),))) == 0.0


def test_folders_are_taken_out_of_messages(tmp_path):
    case = Case("case-1", (ScanSource(tmp_path / "Doe^John" / "x.nii"),), keyed=True)
    text = f"cannot open {tmp_path}/Doe^John/x.nii now"
    assert without_names(text, case) == "cannot open case-1 now"


def test_needs_are_told_by_the_header_alone(setup):
    case = Case("a", (ScanSource(setup.root / "a.nii.gz"),))
    needs = needs_of(case, setup.bundle)
    assert needs.voxels == 21 * 18 * 13
    voxels_mb = needs.voxels / 2**20
    assert needs.memory_mb > 2 * 2 * voxels_mb  # at least the int16 voxels, twice
    assert needs.memory_mb < 60 * voxels_mb


def test_a_forecast_names_what_will_fail_and_goes_by_what_was(setup):
    (setup.root / "b.nii.gz").write_bytes(b"broken")
    cases = [Case(name, (ScanSource(setup.root / f"{name}.nii.gz"),)) for name in "ab"]
    rows = [{"status": "done", "seconds": 3.0}, {"status": "done", "seconds": 5.0}, {"status": "failed"}]
    found = forecast(cases, setup.bundle, rows)
    assert found.seconds == 4.0
    assert found.cases["b"].startswith("will fail: b.nii.gz: ")
    assert forecast(cases, setup.bundle).seconds is None


def test_the_disk_that_is_forecast_is_what_a_run_asks_for(setup):
    cases = [Case("a", (ScanSource(setup.root / "a.nii.gz"),))]
    voxels, found = 21 * 18 * 13, {}
    for extras in (Extras(), Extras(confidence=True), Extras(confidence=True, probabilities=True)):
        asked = []
        asking = replace(setup, extras=extras)
        stages = Stages(Actor(), asking, check_disk=lambda _, need_mb, asked=asked: asked.append(need_mb))
        stages.read(Job(cases[0]))
        found[extras] = forecast(cases, setup.bundle, extras=extras).disk_mb
        assert asked == [found[extras]]
    mask, with_confidence, with_both = (mb * 2**20 for mb in found.values())
    assert with_confidence - mask == pytest.approx(voxels)
    assert with_both - with_confidence == pytest.approx(voxels * 3 * (2 + 2))  # classes, as written and compressed


def test_an_error_of_data_keeps_its_words(setup):
    class Far(Actor):
        def prepare(self, scans):
            raise DataError("'late' does not overlap the first channel; check the registration")

    failure = through(setup, Far())
    assert failure.message == "'late' does not overlap the first channel; check the registration"
    assert (failure.cause, failure.step) == ("input", "prepare")


def test_probabilities_that_cannot_be_removed_cost_neither_a_mask_nor_a_message(setup, monkeypatch):
    class Writer(Actor):
        def answer(self, prepared, *, probabilities=None):
            probabilities.write_bytes(b"probabilities")
            return super().answer(prepared, probabilities=probabilities)

    def stale(path, missing_ok=False):
        if path.name.startswith(".") and path.name.endswith("_probabilities.nii"):
            raise OSError(errno.ESTALE, "Stale file handle")
        unlink(path, missing_ok)

    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", stale)
    setup.out.mkdir()
    setup = replace(setup, extras=Extras(probabilities=True))
    assert through(setup, Writer()).mask.is_file()
    failure = through(setup, Writer(1, ValueError("the network's own fault")))
    assert failure.message == "ValueError: the network's own fault"


def test_every_failure_has_a_message():
    class Mute(Stages):
        def __init__(self):
            pass

        def failure(self, job, error):
            raise RuntimeError("no words")

    job = Job(Case("a", ()), step="network")
    assert failure_in(Mute(), job, ValueError("x")) == Failure("crash", "ValueError", "network")


def test_probabilities_of_a_process_that_died_are_removed_before_the_next_try(setup):
    kept = [".0123abcd-b-a_probabilities.nii", ".0123abcd-a_seg.nii.gz", "a_probabilities.nii.gz"]
    left = [".0123abcd-a_probabilities.nii", ".89efab01-.0123abcd-a_probabilities.nii"]
    setup.out.mkdir()
    for name in (*kept, *left):
        (setup.out / name).write_bytes(b"")
    extras = CaseExtras(setup.bundle, setup.out, Extras(probabilities=True), model="", precision="float32")
    assert extras.probability_file(Case("a", ())).name not in left
    assert sorted(path.name for path in setup.out.iterdir() if not path.name.startswith("labels")) == sorted(kept)
    assert extras.probability_file(Case("deep/a", ())).parent == setup.out / "deep"
