import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fire.parser import DefaultParseValue

from medseg import launch
from medseg.errors import ConfigError
from medseg.launch import parse_setting, quoted, training_arguments

SETTINGS = {
    "max_epochs=50": 50,
    "learning_rate=1e-3": 0.001,
    "amp=true": True,
    "amp=False": False,
    "dataset_dir=null": None,
    "dataset_dir=None": None,
    "patch_size=[64, 64, 32]": [64, 64, 32],
    "pair=(1, 2)": (1, 2),
    'channels=["ct", "it\'s"]': ["ct", "it's"],
    'labels={"liver": 1}': {"liver": 1},
    "dataset_dir=../shared/data/mr": "../shared/data/mr",
    "dataset_dir=/data/Ann Lee/scans": "/data/Ann Lee/scans",
    "dataset_dir=C:\\new\\scans": "C:\\new\\scans",
    "network_def=%configs/networks.json::linknet_3d": "%configs/networks.json::linknet_3d",
    "run_name=portal": "portal",
    "run_name=first, second": "first, second",
    "run_name=fold#2": "fold#2",
    'run_name="2026"': "2026",
    "run_name=it's": "it's",
    'run_name=a "b" c': 'a "b" c',
    "run_name=a=b": "a=b",
    "run_name=": "",
    "offset=-1.5": -1.5,
    "run_name=-dash": "-dash",
}


@pytest.fixture
def by_macro(tmp_path):
    """A recipe that takes `train` whole from another file."""
    recipe, overlay = tmp_path / "recipe.json", tmp_path / "overlay.json"
    recipe.write_text(json.dumps({"train": "%other.json::train", "optimizer": {"lr": 1}, "batch_dice": True}))
    overlay.write_text(json.dumps({"train": {"loss": {"a": 1}}}))
    return recipe, overlay


@pytest.mark.parametrize("key", ["train::loss::a", "train#loss", "+train::handlers"])
def test_setting_within_what_comes_from_another_file_is_refused(by_macro, key):
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: train comes whole from other\.json in this recipe; set"):
        launch.check_nested(by_macro[:1], [(key, 1)])


def test_setting_within_what_the_recipe_or_an_overlay_writes_out_passes(by_macro):
    launch.check_nested(by_macro[:1], [("optimizer::lr", 0.1), ("batch_dice", False)])
    launch.check_nested(by_macro, [("train::loss::a", 2)])


@pytest.mark.parametrize(("text", "value"), SETTINGS.items())
def test_setting_is_a_literal_or_text(text, value):
    assert parse_setting(text) == (text.partition("=")[0], value)


@pytest.mark.parametrize(("text", "value"), SETTINGS.items())
def test_setting_reaches_monai_as_it_was_meant(text, value):
    """Through a shell and python-fire, which reads MONAI's command line."""
    arguments = training_arguments([Path("configs/a.json")], [parse_setting(text)])
    line = " ".join(quoted(argument) for argument in arguments)
    received = shlex.split(line)[6:]  # what follows the recipe
    assert received[0].startswith(f"--{text.partition('=')[0]}")
    sent = received[1] if len(received) == 2 else received[0].partition("=")[2]
    assert DefaultParseValue(sent) == value


def test_nested_key_is_kept():
    assert parse_setting("train::optimizer::lr=0.1") == ("train::optimizer::lr", 0.1)


@pytest.mark.parametrize("text", ["=3", "--max_epochs=3", "3=4"])
def test_setting_without_a_key_is_refused(text):
    with pytest.raises(ConfigError, match="is no setting; write it KEY=VALUE"):
        parse_setting(text)


@pytest.mark.parametrize(
    "value", ["$print(1)", " $print(1)", "@labels", '["$print(1)"]', '{"a": ["@labels"]}', '{"$a": 1}', "('$a',)"]
)
def test_expressions_and_references_are_refused(value):
    with pytest.raises(ConfigError, match=r"run_name: a setting is a literal; put '\$' expressions"):
        parse_setting(f"run_name={value}")


def test_one_recipe_is_named_plainly():
    arguments = training_arguments([Path("configs/unet_liver.json")], [("max_epochs", 3)])
    expected = "-m monai.bundle run training --config_file configs/unet_liver.json --max_epochs 3"
    assert " ".join(map(quoted, arguments)) == expected


def test_recipe_and_overlays_are_one_list():
    arguments = training_arguments([Path("configs/unet_liver.json"), Path("configs/quick.json")], [])
    line = " ".join(map(quoted, arguments))
    assert line.endswith("""--config_file "['configs/unet_liver.json', 'configs/quick.json']\"""")
    assert ast.literal_eval(shlex.split(line)[-1]) == ["configs/unet_liver.json", "configs/quick.json"]


def test_exit_code_of_the_training_is_returned():
    assert launch.train(["-c", "raise SystemExit(7)"]) == 7


def test_training_reports_errors_in_one_line_and_sends_nothing(monkeypatch):
    for name in ("MEDSEG_ONE_LINE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    code = (
        "import os; raise SystemExit(os.environ['MEDSEG_ONE_LINE'] + os.environ['MLFLOW_DISABLE_TELEMETRY'] != '1true')"
    )
    assert launch.train(["-c", code]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal")
def test_ending_the_command_ends_the_training(tmp_path):
    child = f"import pathlib, time; pathlib.Path({str(tmp_path / 'started')!r}).touch(); time.sleep(60)"
    code = f"import sys; from medseg.launch import train; sys.exit(train(['-c', {child!r}]))"
    command = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    command.terminate()
    assert command.wait(timeout=30) == 128 + signal.SIGTERM


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent in another way")
def test_training_is_waited_for_after_ctrl_c(tmp_path):
    code = (
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'started')!r}).touch()\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    time.sleep(1); raise SystemExit(5)"
    )
    listen = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored in a shell's "&"
    starter = f"{listen}; from medseg.launch import train; sys.exit(train(['-c', {code!r}]))"
    command = subprocess.Popen([sys.executable, "-c", starter], start_new_session=True)
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does
    assert command.wait(timeout=30) == 5


def test_a_catalog_entry_that_is_not_there_is_named_with_its_neighbors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks.json").write_text('{"linknet_2d": {}, "linknet_3d": {}}')
    assert parse_setting("network_def=%networks.json::linknet_3d") == ("network_def", "%networks.json::linknet_3d")
    with pytest.raises(ConfigError, match=r"network_def: networks\.json has no 'linknet_4d'; did you mean linknet_"):
        parse_setting("network_def=%networks.json::linknet_4d")
    with pytest.raises(ConfigError, match=r"network_def: there is no file nets\.json; files are named from the repo"):
        parse_setting("network_def=%nets.json::linknet_3d")
