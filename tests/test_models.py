import json
import os
import shutil
from pathlib import Path

import pytest
from small_bundle import make_bundle

from medseg import __version__
from medseg.bundle import open_bundle
from medseg.errors import ConfigError
from medseg.models import chosen_model, found_models


@pytest.fixture
def models(tmp_path):
    """Two folders of models: a bundle, a run and a zip; things that are none beside them."""
    make_bundle(tmp_path / "here" / "liver", version="2.0")
    make_bundle(tmp_path / "here" / "runs" / "bundle")
    shutil.make_archive(str(tmp_path / "there" / "zipped"), "zip", tmp_path / "here" / "liver")
    (tmp_path / "there" / "other.zip").write_bytes(b"no zip")
    shutil.make_archive(str(tmp_path / "there" / "scans"), "zip", Path(__file__).parent / "fixtures")
    (tmp_path / "there" / "notes").mkdir()
    return os.pathsep.join([str(tmp_path / "here"), str(tmp_path / "there"), str(tmp_path / "nowhere")])


def test_bundles_runs_and_zips_are_found(tmp_path, models):
    found = found_models(models)
    assert [str(model.path.relative_to(tmp_path)) for model in found] == ["here/liver", "here/runs", "there/zipped.zip"]
    assert found[0].about == "test net 2.0: liver, tumor from ct"
    for model in found:
        assert open_bundle(model.path).name == "test net"


def test_a_folder_that_is_a_bundle_itself_is_found(tmp_path):
    make_bundle(tmp_path / "liver")
    assert [model.path for model in found_models(str(tmp_path / "liver"))] == [tmp_path / "liver"]


def test_without_a_model_those_that_are_here_are_listed(tmp_path, models, monkeypatch):
    monkeypatch.setenv("MEDSEG_MODELS", models)
    with pytest.raises(ConfigError, match=r"which model\? MEDSEG_MODELS leads to --model .*liver \(test net 2\.0"):
        chosen_model("")
    assert chosen_model("mine") == "mine"


def test_without_any_model_it_is_said_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDSEG_MODELS", raising=False)
    with pytest.raises(ConfigError, match=r"MEDSEG_MODELS is not set; give --model .* `medseg train`"):
        chosen_model("")
    monkeypatch.setenv("MEDSEG_MODELS", str(tmp_path))
    with pytest.raises(ConfigError, match=f"MEDSEG_MODELS={tmp_path} leads to none; give --model"):
        chosen_model("")


def say_format(bundle, **entries):
    file = bundle / "configs" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_a_bundle_of_a_newer_format_is_refused_with_the_version_that_it_needs(tmp_path):
    make_bundle(tmp_path / "liver")
    say_format(tmp_path / "liver", format_version=2, needs_medseg="1.4")
    (tmp_path / "liver" / "configs" / "recipe.json").write_text("in a form of the future")
    said = f"has bundle format 2, and medseg {__version__} reads formats up to 1; install medseg 1.4 or later"
    with pytest.raises(ConfigError, match=said):
        open_bundle(tmp_path / "liver")
    (model,) = found_models(str(tmp_path))
    assert "bundle format 2" in model.problem
    assert not model.about


def test_a_bundle_says_its_format_and_one_that_does_not_is_of_the_first(tmp_path):
    make_bundle(tmp_path / "liver")
    file = tmp_path / "liver" / "configs" / "metadata.json"
    written = json.loads(file.read_text())
    assert written["format_version"] == 1
    assert written["needs_medseg"] == "0.1.0"
    file.write_text(json.dumps({key: value for key, value in written.items() if key != "format_version"}))
    assert open_bundle(tmp_path / "liver").name == "test net"
