import errno

import pytest
import torch

from medseg.errors import ConfigError, DataError
from medseg.inference.faults import Failure, Streak, cause_of, failure_of, is_gone, one_line


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "step", "cause"),
    [
        (DataError("a.nii.gz: cut short"), "read", "input"),
        (KeyError("x"), "read", "input"),
        (MemoryError(), "read", "memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), "network", "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"), "network", "memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "network", "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "network", "device"),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), "network", "model"),
        (DataError("the channels do not overlap"), "network", "input"),
        (ConfigError("no such device"), "network", "model"),
        (OSError(errno.ENOSPC, "No space left on device"), "write", "disk"),
        (OSError(errno.ESTALE, "Stale file handle"), "read", "share"),
        (raised_from(DataError("a.nii.gz: damaged"), OSError(errno.EIO, "Input/output error")), "read", "share"),
        (raised_from(DataError("a_seg: cannot be written"), OSError(errno.EACCES, "denied")), "write", "disk"),
        (PermissionError(errno.EACCES, "Permission denied"), "read", "input"),
        (PermissionError(errno.EACCES, "Permission denied"), "write", "disk"),
        (TypeError("a defect is not the disk's fault: the case fails, and says why"), "write", "input"),
    ],
)
def test_each_error_is_somebodys_fault(error, step, cause):
    assert cause_of(error, step) == cause


def test_nothing_is_a_cases_fault_once_the_folder_of_scans_is_gone(tmp_path):
    missing = DataError("a.nii.gz: no such file; check the path")
    assert failure_of(missing, "read", root=tmp_path / "gone") == Failure("share", "the folder of the scans is gone")
    (tmp_path / "b.nii.gz").touch()
    assert failure_of(missing, "read", root=tmp_path).cause == "input"


def test_a_lost_mount_point_is_an_empty_folder(tmp_path):
    assert is_gone(tmp_path)
    (tmp_path / "scan").touch()
    assert not is_gone(tmp_path)
    assert not is_gone(tmp_path / "scan")
    assert is_gone(tmp_path / "other")


def test_messages_name_no_folder():
    assert one_line(OSError(errno.EIO, "Input/output error", "/mnt/Doe^John/a.nii")) == (
        "OSError: Input/output error (a.nii)"
    )
    assert one_line(ValueError("two\n lines")) == "ValueError: two lines"
    assert one_line(DataError("as\nit is")) == "as it is"
    assert one_line(MemoryError()) == "MemoryError"


def test_ten_failures_of_one_cause_in_a_row_are_enough():
    streak = Streak()
    assert [streak.failed(str(n), "disk") for n in range(10)] == [False] * 9 + [True]


def test_a_case_done_or_another_cause_ends_a_streak():
    streak = Streak(longest=3)
    assert not streak.failed("a", "memory")
    assert not streak.failed("b", "memory")
    streak.end()
    assert not streak.failed("c", "memory")
    assert not streak.failed("d", "device")
    assert not streak.failed("e", "device")
    assert streak.case_ids == ["d", "e"]
    assert streak.failed("f", "device")


def test_bad_scans_never_stop_a_run():
    streak = Streak(longest=2)
    assert not any(streak.failed(str(n), "input") for n in range(50))
    assert not streak.failed("x", "disk")
