import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from medseg.errors import ConfigError, DataError
from workflows.failure import end_with_our_line, failure_line

ROOT = Path(__file__).parents[2]


def caught(function):
    with pytest.raises(Exception) as info:  # noqa: PT011 (any error will do)
        function()
    return info.value


def wrapped_by_monai():
    try:
        try:
            raise DataError("case 'a': label grid differs;\nre-export it")
        except DataError as error:
            raise RuntimeError("applying transform <object at 0x7f>") from error
    except RuntimeError as error:
        raise RuntimeError("Failed to evaluate") from error


def raised_while_handling():
    try:
        raise KeyError("x")
    except KeyError:
        raise ConfigError("no x in the recipe")  # noqa: B904 (the implicit chain is what is tested)


def named_twice():
    try:
        raise DataError("not a NIfTI file")
    except DataError as error:
        raise DataError("case 'a': not a NIfTI file") from error


def without_us():
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        raise RuntimeError("Failed to evaluate") from error


def hidden_cause():
    try:
        raise DataError("not of interest")
    except DataError:
        raise RuntimeError("of interest") from None


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (wrapped_by_monai, "medseg: DataError: case 'a': label grid differs;; re-export it"),
        (raised_while_handling, "medseg: ConfigError: no x in the recipe"),
        (named_twice, "medseg: DataError: case 'a': not a NIfTI file"),
        (without_us, "medseg: ZeroDivisionError: division by zero"),
        (hidden_cause, "medseg: RuntimeError: of interest"),
    ],
)
def test_the_line_names_the_cause(function, line):
    assert failure_line(caught(function)) == line


def test_a_circle_of_causes_ends():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert failure_line(first) == "medseg: ValueError: second"


class BadCases(Dataset):
    def __init__(self, function):
        self.function = function

    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.function()


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (named_twice, "medseg: DataError: case 'a': not a NIfTI file"),
        (wrapped_by_monai, "medseg: DataError: case 'a': label grid differs;"),  # text keeps the message's first line
    ],
)
def test_an_error_of_a_loading_process_is_found_in_its_text(function, line):
    loader = DataLoader(BadCases(function), num_workers=1)
    assert failure_line(caught(lambda: list(loader))) == line


def run_failing(statement, environment):
    code = f"from workflows.failure import end_with_our_line; end_with_our_line(); {statement}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


DATA_ERROR = "from medseg.errors import DataError; raise DataError('case a: cut short')"


def test_our_line_comes_last_after_the_traceback(monkeypatch):
    monkeypatch.delenv("MEDSEG_ONE_LINE", raising=False)
    done = run_failing(DATA_ERROR, None)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1] == "medseg: DataError: case a: cut short"


def test_our_line_stands_alone_when_asked_for(monkeypatch):
    monkeypatch.setenv("MEDSEG_ONE_LINE", "1")
    done = run_failing(DATA_ERROR, None)
    assert done.returncode == 1
    assert done.stderr == "medseg: DataError: case a: cut short\n"


def test_stopping_by_hand_is_no_fault(monkeypatch):
    monkeypatch.setenv("MEDSEG_ONE_LINE", "1")
    done = run_failing("raise KeyboardInterrupt", None)
    assert done.returncode != 0
    assert done.stderr == "medseg: stopped by Ctrl-C\n"


def test_a_failure_waits_for_the_pool_that_still_reads(monkeypatch, capsys):
    done = []
    pool = ThreadPool(1)
    pool.apply_async(lambda: (time.sleep(0.3), done.append(True)))
    time.sleep(0.05)  # the thread is at its case
    pool.close()  # as leaving MONAI's `with ThreadPool(...)` does, no further case follows
    monkeypatch.setenv("MEDSEG_ONE_LINE", "1")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    end_with_our_line()
    error = DataError("case 'a': broken")
    sys.excepthook(DataError, error, None)
    assert done
    assert capsys.readouterr().err == "medseg: DataError: case 'a': broken\n"
