import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from small_bundle import RECIPE, make_bundle

import medseg
from medseg.bundle import open_bundle
from medseg.errors import ConfigError
from medseg.inference import write_ensemble
from medseg.inference.cases import Case
from medseg.inference.run_file import end_run, read_run, shown, write_run
from medseg.inference.settings import RunSettings

ONE = RunSettings("liver", "1.0", "a" * 64, "b" * 64, "float32")


def test_settings_come_from_the_bundle(tmp_path):
    bundle = make_bundle(tmp_path / "bundle", version="3.1")
    settings = RunSettings.of(bundle)
    assert (settings.model, settings.version, settings.precision) == ("test net", "3.1", "float32")
    weights = (tmp_path / "bundle" / "models" / "model.pt").read_bytes()
    assert settings.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert settings.medseg == ".".join(medseg.__version__.split(".")[:2])
    assert RunSettings.of(bundle, precision="bfloat16", mirroring=True).differences(settings) == [
        "precision bfloat16, now float32",
        "mirroring on, now off",
    ]


def test_the_same_model_elsewhere_or_zipped_is_the_same(tmp_path):
    import shutil

    one = make_bundle(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    archive = shutil.make_archive(str(tmp_path / "three"), "zip", tmp_path / "one")
    assert RunSettings.of(one) == RunSettings.of(open_bundle(tmp_path / "two")) == RunSettings.of(open_bundle(archive))


@pytest.mark.parametrize(
    ("id", "content", "counts"),
    [
        ("cleanup", [], True),
        ("intensity", {"_target_": "medseg.preprocessing.Window", "low_hu": -200, "high_hu": 200}, True),
        ("max_epochs", 7, False),  # of the training
        ("_about_", "another text", False),
    ],
)
def test_what_decides_masks_counts_and_the_rest_of_the_recipe_does_not(tmp_path, id, content, counts):
    before = RunSettings.of(make_bundle(tmp_path / "bundle"))
    file = tmp_path / "bundle" / "configs" / "recipe.json"
    file.write_text(json.dumps(RECIPE | {id: content}))
    after = RunSettings.of(open_bundle(tmp_path / "bundle"))
    assert (after.digest != before.digest) is counts
    assert bool(before.differences(after)) is counts


def test_every_setting_changes_the_digest():
    others = [
        dataclasses.replace(ONE, **{name: value})
        for name, value in {
            "model": "x", "version": "2", "weights_sha256": "c" * 64, "recipe_sha256": "c" * 64, "precision": "float16",
            "mirroring": True, "folds": (0,), "cleanup": False, "temperature": 2.0, "medseg": "9.9",
        }.items()
    ]  # fmt: skip
    assert len(others) == len(dataclasses.fields(RunSettings))
    assert len({settings.digest for settings in [ONE, *others]}) == len(others) + 1
    assert all(len(ONE.differences(other)) == 1 for other in others)


def test_settings_survive_json():
    settings = dataclasses.replace(ONE, folds=(0, 2), mirroring=True)
    again = RunSettings.from_json(json.loads(json.dumps(settings.as_json())))
    assert again == settings
    assert again.digest == settings.digest


def test_folds_of_an_ensemble_are_part_of_the_settings(tmp_path):
    members = {fold: make_bundle(tmp_path / str(fold), seed=fold) for fold in range(2)}
    write_ensemble(tmp_path / "all", members, metadata={"name": "both", "version": "1"}, measured={})
    ensemble = open_bundle(tmp_path / "all")
    both, first = RunSettings.of(ensemble), RunSettings.of(ensemble, folds=[0])
    assert (both.folds, first.folds) == ((0, 1), (0,))
    digests = [hashlib.sha256((tmp_path / str(fold) / "models/model.pt").read_bytes()).hexdigest() for fold in range(2)]
    assert first.weights_sha256 == digests[0]
    assert both.weights_sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert both.differences(first)[1:] == ["folds 0, 1, now 0"]
    with pytest.raises(ConfigError, match="fold 5: model 'both' has the folds 0, 1"):
        RunSettings.of(ensemble, folds=[5])


def test_settings_load_no_torch(tmp_path):
    make_bundle(tmp_path / "bundle")
    program = (
        "import sys; from medseg.bundle import open_bundle; from medseg.inference.settings import RunSettings; "
        "RunSettings.of(open_bundle(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "bundle")], check=True)


def test_a_bundle_tells_its_modality(tmp_path):
    assert make_bundle(tmp_path / "ct").modality == "CT"
    file = tmp_path / "ct" / "configs" / "recipe.json"
    file.write_text(json.dumps(RECIPE | {"intensity": {"_target_": "medseg.preprocessing.ZScore"}}))
    assert open_bundle(tmp_path / "ct").modality == ""
    kept = {id: content for id, content in RECIPE.items() if id not in ("intensity", "scan_to_grid")}
    file.write_text(json.dumps(kept))
    assert open_bundle(tmp_path / "ct").modality == ""


def run_of(out, command, paths=None):
    cases = [Case("CANARY/a", ()), Case("b", (), skipped="no"), Case("c", (), problem="broken"), Case("d", ())]
    write_run(out, ONE, command=command, cases=cases, to_do=2, device="cpu", paths=paths)
    return read_run(out)


def test_a_run_can_be_repeated_from_its_file(tmp_path):
    paths = {"scans/CANARY": "SCANS", "masks": "OUT", "runs/x": "MODEL", "": "nothing"}
    command = ["predict", "scans//CANARY/", "./masks", "--model=runs/x", "--precision", "float32"]
    run = run_of(tmp_path, command, paths)
    assert run["command"] == ["medseg", "predict", "SCANS", "OUT", "--model=MODEL", "--precision", "float32"]
    assert RunSettings.from_json(run["settings"]) == ONE
    assert run["cases"] == {"all": 4, "to_do": 2, "skipped": 1, "refused": 1}
    torch, numpy = (version(name).partition("+")[0] for name in ("torch", "numpy"))
    assert (run["versions"]["torch"].partition("+")[0], run["versions"]["numpy"]) == (torch, numpy)
    assert run["versions"]["medseg"] == medseg.__version__
    assert (run["device"], run["ended"], run["result"]) == ("cpu", None, None)
    assert "CANARY" not in (tmp_path / "run.json").read_text()
    end_run(tmp_path, {"done": 1, "failed": 1}, stopped="disk full")
    ended = read_run(tmp_path)
    assert ended["result"] == {"done": 1, "failed": 1, "stopped": "disk full"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", ended["ended"])
    assert ended["started"] == run["started"]


@pytest.mark.parametrize(
    "word",
    ["/data/CANARY", "C:\\CANARY\\ct", "../CANARY", "..\\CANARY", "~/CANARY", "\\\\server\\CANARY", "a/../../CANARY"],
)
def test_no_place_of_this_machine_is_written(word):
    assert shown(["predict", word, f"--model={word}", "--ids", "original"], {}) == [
        "predict", "PATH", "--model=PATH", "--ids", "original",
    ]  # fmt: skip


def test_a_run_file_that_cannot_be_read_says_nothing(tmp_path):
    assert read_run(tmp_path) == {}
    (tmp_path / "run.json").write_text("[")
    assert read_run(tmp_path) == {}
    (tmp_path / "run.json").write_text("[]")
    assert read_run(tmp_path) == {}
