import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import medseg.bundle
import medseg.data
import medseg.inference
import medseg.tracking
from medseg import __version__, cli, doctor, launch
from medseg.errors import ConfigError, DataError


def medseg_command(*arguments):
    return [sys.executable, "-m", "medseg.cli", *map(str, arguments)]


def run(monkeypatch, *arguments):
    """Exit code of `medseg ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with a recipe, an overlay and `workflows/`, where trainings are only noted."""
    monkeypatch.chdir(tmp_path)
    for file in ("configs/unet_liver.json", "configs/quick.json", "workflows/__init__.py"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("{}", encoding="utf-8")
    noted = []
    monkeypatch.setattr(launch, "train", lambda arguments: noted.append(arguments) or 4)
    return noted


def test_version_says_that_it_is_no_medical_device():
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"medseg {__version__}, not a medical device\n")


def test_help_names_every_command():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert all(f"\n  {name} " in result.stdout for name in ("train", "predict", "phantom", "ui", "doctor"))


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['medseg', '--help']\n"
        "try:\n    from medseg.cli import main; main()\n"
        "finally:\n    print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = done.stdout.split()
    assert done.returncode == 0
    assert "typer" in loaded
    assert {"torch", "numpy", "rich", "monai", "mlflow", "matplotlib"}.isdisjoint(loaded)


def test_help_answers_at_once():
    def clock():
        now = os.times()  # of a core, where the system counts it: a busy machine's other work is not the command's
        return now.children_user + now.children_system if sys.platform != "win32" else time.perf_counter()

    def seconds():
        started = clock()
        subprocess.run(medseg_command("--help"), check=True, capture_output=True)
        return clock() - started

    assert min(seconds() for _ in range(5)) < 0.4


def test_training_is_the_bundle_run_that_is_printed(checkout, monkeypatch, capsys):
    code = run(
        monkeypatch, "train", "configs/unet_liver.json", "max_epochs=3", "configs/quick.json", "dataset_dir=/my data"
    )
    assert code == 4
    files = "['configs/unet_liver.json', 'configs/quick.json']"
    expected = ["-m", "monai.bundle", "run", "training", "--config_file", files]
    assert checkout == [[*expected, "--max_epochs", "3", "--dataset_dir", "'/my data'"]]
    assert capsys.readouterr().err == (
        f"""python -m monai.bundle run training --config_file "{files}" --max_epochs 3 --dataset_dir "'/my data'"\n"""
    )


@pytest.mark.parametrize("wrong", ["configs/absent.json", "configs"])
@pytest.mark.parametrize("first", [[], ["configs/unet_liver.json"]])
def test_recipe_or_overlay_that_is_no_file_is_named(checkout, monkeypatch, capsys, first, wrong):
    assert run(monkeypatch, "train", *first, wrong) == 2
    error = f"medseg: no recipe or overlay at {Path(wrong)}; a setting is written KEY=VALUE\n"
    assert (capsys.readouterr().err, checkout) == (error, [])


def test_a_run_is_resumed_with_its_own_recipe(checkout, monkeypatch):
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/recipe.json").touch()
    assert run(monkeypatch, "train", "--resume", "runs/a", "--dataset_dir", "/new", "num_workers=2") == 4
    expected = ["-m", "monai.bundle", "run", "training", "--config_file", "runs/a/recipe.json"]
    expected += ["--meta_file", "configs/metadata.json", "--logging_file", "configs/logging.conf"]
    assert checkout == [[*expected, "--num_workers", "2", "--dataset_dir", "/new", "--resume", "runs/a"]]


def test_a_run_is_resumed_with_a_recipe_that_is_given(checkout, monkeypatch):
    assert run(monkeypatch, "train", "configs/unet_liver.json", "--resume", "runs/a") == 4
    recipe = ["--config_file", "configs/unet_liver.json"]
    assert checkout == [["-m", "monai.bundle", "run", "training", *recipe, "--resume", "runs/a"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "what to train? Give a recipe, such as configs/unet_liver.json, or --resume runs/NAME"),
        (["max_epochs=3"], "what to train? Give a recipe, such as configs/unet_liver.json, or --resume runs/NAME"),
        (
            ["--resume", "absent"],
            "no run to resume in absent (recipe.json is missing): give a run's folder, as runs/NAME",
        ),
    ],
)
def test_nothing_to_train_is_one_line(checkout, monkeypatch, capsys, arguments, says):
    assert run(monkeypatch, "train", *arguments) == 2
    assert (capsys.readouterr().err, checkout) == (f"medseg: {says}\n", [])


def test_training_outside_the_checkout_is_refused(checkout, monkeypatch, capsys):
    Path("workflows/__init__.py").unlink()
    assert run(monkeypatch, "train", "configs/unet_liver.json") == 2
    assert capsys.readouterr().err == (
        "medseg: no workflows/ in this folder: run medseg train in the folder of the medseg checkout\n"
    )


def test_training_without_the_extra_is_refused(checkout, monkeypatch, capsys):
    monkeypatch.setattr(cli.training.importlib.util, "find_spec", lambda name: None if name == "mlflow" else object())
    assert run(monkeypatch, "train", "configs/unet_liver.json") == 2
    assert capsys.readouterr().err == "medseg: training needs MONAI and MLflow: pip install 'medseg[train]'\n"


@pytest.mark.parametrize("arguments", [["predict", "scans"], ["predict", "a", "b"], ["predikt"], ["--versoin"]])
def test_wrong_usage_is_exit_code_two(monkeypatch, arguments):
    assert run(monkeypatch, *arguments) == 2


def test_phantom_gets_its_settings(tmp_path, monkeypatch, capsys):
    noted = {}

    def make_phantom(out_dir, *, progress, **settings):
        noted.update(settings)
        progress(1, 8)
        return out_dir

    monkeypatch.setattr(medseg.data, "make_phantom", make_phantom)
    code = run(monkeypatch, "phantom", tmp_path, "--cases", 8, "--seed", 5, "--phases", 2, "--size", 50, 40, 30)
    assert code == 0
    assert noted == {"cases": 8, "seed": 5, "phases": 2, "shape": (50, 40, 30)}
    assert capsys.readouterr().out == (
        f"8 synthetic cases in {tmp_path}; a model of them is trained on synthetic data, not for patients\n"
    )


def test_ui_gets_its_settings(tmp_path, monkeypatch, capsys):
    noted = {}

    def serve_ui(runs_dir, *, on_ready, **settings):
        noted.update(settings, runs_dir=runs_dir)
        on_ready("MLflow is at http://127.0.0.1:7777")
        return 0

    monkeypatch.setattr(medseg.tracking, "serve_ui", serve_ui)
    monkeypatch.setattr(cli.runs.signal, "signal", lambda *_: None)
    assert run(monkeypatch, "ui", "--runs", tmp_path, "--port", 7777, "--no-browser") == 0
    assert noted == {"runs_dir": tmp_path, "port": 7777, "open_browser": False}
    assert capsys.readouterr().err == "MLflow is at http://127.0.0.1:7777\n"


def test_doctor_prints_every_finding(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "report", lambda: [("GPU", "none"), ("memory", "8 GiB")])
    assert run(monkeypatch, "doctor") == 0
    assert capsys.readouterr().out == "GPU:       none\nmemory:    8 GiB\n"


@pytest.mark.parametrize("error", [DataError("case 'a':\n no label"), ConfigError("case 'a': no\nlabel")])
def test_known_error_is_one_line(monkeypatch, capsys, error):
    monkeypatch.setattr(doctor, "report", lambda: raise_(error))
    assert run(monkeypatch, "doctor") == 2
    assert capsys.readouterr().err == "medseg: case 'a': no label\n"


def test_unexpected_error_is_one_line_and_exit_code_one(monkeypatch, capsys):
    monkeypatch.delenv("MEDSEG_DEBUG", raising=False)
    monkeypatch.setattr(doctor, "report", lambda: raise_(KeyError("x")))
    assert run(monkeypatch, "doctor") == 1
    assert capsys.readouterr().err == "medseg: unexpected KeyError: 'x' (MEDSEG_DEBUG=1 shows where)\n"


def test_unexpected_error_is_traced_on_demand(monkeypatch):
    monkeypatch.setenv("MEDSEG_DEBUG", "1")
    monkeypatch.setattr(doctor, "report", lambda: raise_(KeyError("x")))
    monkeypatch.setattr(sys, "argv", ["medseg", "doctor"])
    with pytest.raises(KeyError):
        cli.main()


def raise_(error):
    raise error


def test_phantom_is_made_by_the_command(tmp_path):
    command = medseg_command("phantom", tmp_path / "phantom", "--cases", 2, "--size", 24, 20, 16)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "phantom" / "dataset.json").is_file()


def test_doctor_answers_for_real():
    done = subprocess.run(medseg_command("doctor"), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"medseg:    {__version__}, not a medical device\nsystem: ")
