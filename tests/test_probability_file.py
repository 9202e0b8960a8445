import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.preprocessing import Grid, ScanToGrid
from medseg.probability_file import ProbabilityFile


@pytest.fixture
def grid() -> Grid:
    return ScanToGrid(spacing_mm=(1.0, 1.0, 1.0), intensity=torch.abs).grid((64, 64, 80), np.eye(4))


def test_a_disk_without_room_says_so_at_once(grid: Grid, small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):  # 1.25 MB; a hole would be filled until the process dies of it
        ProbabilityFile(small_disk / "case.nii", 2, grid, 1.0)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_reserves_nothing_will_do(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: int) -> None:
        raise OSError(number, "not here")

    monkeypatch.setattr(os, "posix_fallocate", refused, raising=False)
    file = ProbabilityFile(tmp_path / "case.nii", 2, grid, 1.0)
    assert file.path.stat().st_size == file.offset + 2 * 2 * 64 * 64 * 80
