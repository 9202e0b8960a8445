from pathlib import Path, PurePosixPath

import pytest

from medseg.tracking.wording import MAX_VALUE, flatten, without_folders


def test_nested_settings_become_dotted_names():
    recipe = {"train::optimizer": {"lr": 0.001, "betas": [0.9, 0.99]}, "seed": 0, "name": "a", "amp": True, "x": None}
    assert flatten(recipe) == {
        "train.optimizer.lr": "0.001",
        "train.optimizer.betas": "[0.9, 0.99]",
        "seed": "0",
        "name": "a",
        "amp": "true",
        "x": "null",
    }


def test_lists_of_parts_are_numbered():
    assert flatten({"handlers": [{"_target_": "A"}, "@b"]}) == {"handlers.0._target_": "A", "handlers.1": "@b"}


def test_comments_are_left_out():
    assert flatten({"_about_": "a card", "inferer": {"_desc_": "why", "overlap": 0.5}}) == {"inferer.overlap": "0.5"}


def test_names_hold_only_what_mlflow_takes():
    assert flatten({"a#b(c)": 1}) == {"a_b_c_": "1"}


def test_long_values_are_cut():
    assert len(flatten({"text": "a" * 5000})["text"]) == MAX_VALUE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data", ".../data"),
        ("/home/ann lee/scans", ".../scans"),
        ("C:\\Users\\ann\\scans", ".../scans"),
        ("\\\\server\\share\\scans", ".../scans"),
        ("cannot read /home/ann/scans/a.nii.gz: truncated", "cannot read .../a.nii.gz: truncated"),
        ("cannot read 'C:\\Users\\ann\\a.nii.gz'", "cannot read '.../a.nii.gz'"),
        ("$import_file('/home/ann/code.py')", "$import_file('.../code.py')"),
        ("$(@a)/2/3", "$(@a)/2/3"),
        ("$@batch_size//2", "$@batch_size//2"),
        ("../shared/data/mr", "../shared/data/mr"),
        ("%configs/networks.json::linknet_3d", "%configs/networks.json::linknet_3d"),
        ("grid (5, 7, 9) differs from (5, 7, 8) (labelsTr/a.nii.gz)",) * 2,
    ],
)
def test_folders_of_the_machine_are_cut_and_nothing_else(text, expected):
    assert without_folders(text) == expected


def test_home_is_cut_even_with_a_space_in_it(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "Ann Lee")
    assert "Ann" not in without_folders(f"no scans in {tmp_path / 'Ann Lee' / 'scans'}, check the path")


def test_folders_are_cut_at_any_depth():
    content = {"a": [{"b": ("/home/ann/x", 1)}], "c": PurePosixPath("/home/ann/y"), "d": 0.5}
    assert without_folders(content) == {"a": [{"b": [".../x", 1]}], "c": ".../y", "d": 0.5}
