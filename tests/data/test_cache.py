import logging
from collections import namedtuple
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd
from typer.testing import CliRunner

from medseg.cli import app
from medseg.data import cache as cache_module
from medseg.data.cache import CachedCases, relative_size
from medseg.data.cache_files import cache_folders, clear_cache, described, packed, preparation_key, unpacked
from medseg.errors import ConfigError, DataError
from medseg.preprocessing import ScanToGrid, Window
from medseg.transforms import whole_cases

Disk = namedtuple("Disk", "total used free")
LABELS = {"background": 0, "liver": 1}


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for number, size in enumerate([(9, 8, 7), (18, 8, 7)]):
        affine = np.diag([-1.5, 2.0, 3.0, 1.0])
        image, label = tmp_path / f"c{number}.nii.gz", tmp_path / f"c{number}_label.nii.gz"
        nib.Nifti1Image(rng.integers(-100, 200, size).astype(np.int16), affine).to_filename(image)
        nib.Nifti1Image(rng.integers(0, 2, size).astype(np.uint8), affine).to_filename(label)
        found.append({"image": str(image), "label": str(label), "case_id": f"c{number}"})
    return found


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def preparation(low_hu=-100, spacing_mm=(2.0, 2.0, 3.0)):
    scan_to_grid = ScanToGrid(spacing_mm=spacing_mm, intensity=Window(low_hu, 200))
    return whole_cases(scan_to_grid, ["ct"], LABELS, ignore_label=255)


def with_flip(steps):
    return Compose([*steps.transforms, RandFlipd(("image",), prob=1.0, spatial_axis=0)])


@pytest.mark.parametrize("where", ["memory", "disk", "none", "auto"])
def test_a_cached_case_is_the_prepared_one(samples, tmp_path, where):
    plain = [preparation()(dict(sample)) for sample in samples]
    kept = CachedCases(samples, preparation(), cache=where, cache_dir=tmp_path / "cache")
    for _ in range(2):
        for case, expected in zip(kept, plain, strict=True):
            assert torch.equal(torch.as_tensor(case["image"]), torch.as_tensor(expected["image"]))
            assert torch.equal(torch.as_tensor(case["label"]), torch.as_tensor(expected["label"]))
            assert torch.equal(case["image"].affine, expected["image"].affine)
            assert case["grid"].shape == expected["grid"].shape
            np.testing.assert_array_equal(case["grid"].scan_affine, expected["grid"].scan_affine)
            assert case["case_id"] == expected["case_id"]


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_the_random_part_is_done_each_time_and_leaves_the_kept_case_alone(samples, tmp_path, where):
    kept = CachedCases(samples, with_flip(preparation()), cache=where, cache_dir=tmp_path / "cache")
    expected = preparation()(dict(samples[0]))["image"].flip(1)
    assert torch.equal(torch.as_tensor(kept[0]["image"]), torch.as_tensor(expected))
    assert torch.equal(torch.as_tensor(kept[0]["image"]), torch.as_tensor(expected))


def test_files_are_made_once_and_found_again(samples, tmp_path):
    CachedCases(samples, preparation(), cache="disk", cache_dir=tmp_path / "cache")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.pt")}
    assert len(files) == 2
    CachedCases(samples, preparation(), cache="disk", cache_dir=tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.pt")} == files


def test_another_preparation_or_another_file_is_another_cached_case(samples, tmp_path):
    first = CachedCases(samples, preparation(), cache="disk", cache_dir=tmp_path / "cache")
    other = CachedCases(samples, preparation(low_hu=-50), cache="disk", cache_dir=tmp_path / "cache")
    assert not torch.equal(torch.as_tensor(first[0]["image"]), torch.as_tensor(other[0]["image"]))
    image = nib.load(samples[0]["image"])
    nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(10), image.affine).to_filename(samples[0]["image"])
    changed = CachedCases(samples, preparation(), cache="disk", cache_dir=tmp_path / "cache")
    assert not torch.equal(torch.as_tensor(first[0]["image"]), torch.as_tensor(changed[0]["image"]))
    expected = preparation()(dict(samples[0]))["image"]
    assert torch.equal(torch.as_tensor(changed[0]["image"]), torch.as_tensor(expected))


def test_a_broken_file_is_prepared_again(samples, tmp_path, caplog):
    CachedCases(samples, preparation(), cache="disk", cache_dir=tmp_path / "cache")
    for path in (tmp_path / "cache").rglob("*.pt"):
        path.write_bytes(path.read_bytes()[:200])
    kept = CachedCases(samples, preparation(), cache="disk", cache_dir=tmp_path / "cache")
    assert "a cached case cannot be read" in caplog.text
    assert torch.equal(torch.as_tensor(kept[1]["image"]), torch.as_tensor(preparation()(dict(samples[1]))["image"]))


@pytest.mark.parametrize(
    ("memory_gb", "disk_gb", "said"),
    [
        (100, 100, "GB in memory, 100.0 GB free"),
        (1e-7, 100, "GB on disk in cache/, 100.0 GB free"),
        (1e-7, 1e-7, "are prepared anew each time"),
    ],
)
def test_the_place_is_the_first_in_which_the_cases_fit(
    samples, tmp_path, monkeypatch, caplog, memory_gb, disk_gb, said
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cache_module, "available_mb", lambda: memory_gb * 1024)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: Disk(0, 0, disk_gb * 2**30))
    CachedCases(samples, preparation(), cache="auto", cache_dir=tmp_path / "cache")
    assert said in caplog.text
    assert str(tmp_path) not in caplog.text


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_what_does_not_fit_where_the_recipe_wants_it_is_refused(samples, tmp_path, monkeypatch, where):
    monkeypatch.setattr(cache_module, "available_mb", lambda: 1e-4)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: Disk(0, 0, 100))
    with pytest.raises(ConfigError, match=r"the 2 training cases do not fit: they need .* GB .*free; set `cache`"):
        CachedCases(samples, preparation(), cache=where, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("where", ["auto", "disk"])
def test_what_lies_on_disk_already_needs_no_further_room(samples, tmp_path, monkeypatch, caplog, where):
    caplog.set_level(logging.INFO)
    CachedCases(samples, preparation(), cache="disk", cache_dir=tmp_path / "cache")
    monkeypatch.setattr(cache_module, "available_mb", lambda: 1e-4)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: Disk(0, 0, 100))
    kept = CachedCases(samples, preparation(), cache=where, cache_dir=tmp_path / "cache")
    assert all(path.is_file() for path in kept.files)
    assert len(kept.files) == 2
    assert "of them there already" in caplog.text


def test_a_preparation_that_was_broken_off_is_listed_and_cleared(samples, tmp_path):
    (tmp_path / "c1_label.nii.gz").write_bytes(b"broken")
    with pytest.raises(RuntimeError, match="applying transform") as refused:
        CachedCases(samples, preparation(), cache="disk", cache_dir=tmp_path / "cache")
    assert isinstance(refused.value.__cause__, DataError)
    (found,) = cache_folders(tmp_path / "cache")
    assert found.cases == 1
    assert clear_cache(tmp_path / "cache") == found.size


def test_processes_begin_at_different_cases(monkeypatch):
    orders = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        orders.append(cache_module.own_order(5))
    assert orders == [[0, 1, 2, 3, 4], [2, 3, 4, 0, 1]]


def test_an_unknown_place_is_refused(samples):
    with pytest.raises(ConfigError, match="cache is 'ram'; use 'auto', 'memory', 'disk' or 'none'"):
        CachedCases(samples, preparation(), cache="ram")


def test_the_estimate_follows_the_volumes(samples):
    assert relative_size(samples) == pytest.approx(3.0)  # 9 and 18 slices of the same size


def test_the_key_holds_every_setting_and_no_random_state():
    keys = {
        preparation_key(steps.transforms)
        for steps in (preparation(), preparation(-50), preparation(spacing_mm=(1, 2, 3)))
    }
    assert len(keys) == 3
    assert preparation_key([partial(np.clip, a_min=0)]) != preparation_key([partial(np.clip, a_min=1)])
    assert preparation_key([Slotted(0)]) != preparation_key([Slotted(1)])
    first, second = with_flip(preparation()), with_flip(preparation())
    second.set_random_state(seed=5)
    assert preparation_key(first.transforms) == preparation_key(second.transforms)
    assert described({"a": {3, 1}, "b": np.arange(2), "c": Window}) == {
        "a": ["1", "3"],
        "b": [0, 1],
        "c": "medseg.preprocessing.Window",
    }


def test_cases_that_another_medseg_prepared_are_prepared_again(samples, tmp_path, monkeypatch):
    CachedCases(samples, preparation(), cache="disk", cache_dir=tmp_path / "cache")
    monkeypatch.setattr("medseg.data.cache_files.code_digest", lambda: "of another medseg")
    CachedCases(samples, preparation(), cache="disk", cache_dir=tmp_path / "cache")
    assert len(cache_folders(tmp_path / "cache")) == 2


def test_the_code_that_prepares_cases_is_all_there():
    from medseg.data import cache_files

    package = Path(cache_files.__file__).parents[1]
    found = {path for pattern in cache_files.CODE for path in package.glob(pattern)}
    assert {package / "preprocessing.py", package / "reading" / "nifti.py", package / "transforms" / "grid.py"} <= found


def test_a_packed_sample_comes_back():
    sample = {"indices": [torch.arange(3), np.arange(2)], "case_id": "a", "plain": torch.ones(2)}
    back = unpacked(packed(sample))
    assert back["case_id"] == "a"
    assert torch.equal(back["indices"][0], torch.arange(3))
    np.testing.assert_array_equal(back["indices"][1], [0, 1])
    assert torch.equal(back["plain"], torch.ones(2))


def test_a_cache_is_listed_and_cleared(samples, tmp_path):
    folder = tmp_path / "cache"
    (folder / "other").mkdir(parents=True)
    (folder / "other" / "mine.txt").write_text("stays")
    assert cache_folders(folder) == []
    CachedCases(samples, preparation(), cache="disk", cache_dir=folder, name="validation")
    (found,) = cache_folders(folder)
    assert (found.name, found.cases) == ("validation", 2)
    assert clear_cache(folder) == found.size > 0
    assert [path.name for path in folder.iterdir()] == ["other"]


def test_the_command_lists_and_clears(samples, tmp_path):
    run = CliRunner().invoke
    assert "nothing is cached" in run(app, ["cache", "--folder", str(tmp_path / "cache")]).output
    CachedCases(samples, preparation(), cache="disk", cache_dir=tmp_path / "cache")
    assert "2 training cases" in run(app, ["cache", "--folder", str(tmp_path / "cache")]).output
    assert "are free again" in run(app, ["cache", "--folder", str(tmp_path / "cache"), "--clear"]).output
    assert cache_folders(tmp_path / "cache") == []
