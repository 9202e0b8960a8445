import csv
import os
import stat
import threading

import pytest

from medseg.errors import ConfigError
from medseg.inference.cases import Case, cases_in
from medseg.inference.identity import open_key, pseudonym, write_key_table
from medseg.reading import ScanSource


def rows_of(out):
    with (out / "key.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def keyed(case_id, path, series_uid=""):
    return Case(case_id, (ScanSource(path, series_uid=series_uid),), keyed=True)


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path):
    key = open_key(tmp_path / "out")
    assert len(key) == 32
    assert open_key(tmp_path / "out") == key
    assert open_key(tmp_path / "other") != key
    assert stat.S_IMODE((tmp_path / "out" / ".medseg" / "key").stat().st_mode) == 0o600


def test_processes_that_begin_together_share_the_key(tmp_path):
    keys, together = [], threading.Barrier(8)

    def begin():
        together.wait()
        keys.append(open_key(tmp_path))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_key_that_others_could_read_is_closed(tmp_path):
    key = open_key(tmp_path)
    file = tmp_path / ".medseg" / "key"
    file.chmod(0o644)
    assert open_key(tmp_path) == key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_damaged_key_is_refused_and_never_replaced(tmp_path):
    open_key(tmp_path)
    file = tmp_path / ".medseg" / "key"
    for damaged in ("", "no hex", "00ff"):
        file.write_text(damaged)
        with pytest.raises(ConfigError, match=r"the secret of the case ids, (is damaged|cannot be read).*another OUT"):
            open_key(tmp_path)
        assert file.read_text() == damaged


def test_pseudonyms_differ_by_key_and_identity():
    made = {pseudonym(key, identity) for key in (b"1" * 32, b"2" * 32) for identity in ("1.2.3", "1.2.4")}
    assert len(made) == 4
    assert all(len(name) == len("case-0123456789") for name in made)


def test_the_table_leads_back_and_is_its_owners_alone(tmp_path):
    mask = os.umask(0)
    try:
        write_key_table(
            tmp_path, [keyed("case-01", tmp_path / "CANARY" / "ct", "1.2.3"), keyed("case-02", tmp_path / "b")]
        )
    finally:
        os.umask(mask)
    assert rows_of(tmp_path) == [
        {"case_id": "case-01", "path": str(tmp_path / "CANARY" / "ct"), "series_uid": "1.2.3"},
        {"case_id": "case-02", "path": str(tmp_path / "b"), "series_uid": ""},
    ]
    assert stat.S_IMODE((tmp_path / "key.csv").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key.csv"]


def test_rows_of_earlier_months_stay_in_the_table(tmp_path):
    write_key_table(tmp_path, [keyed("case-01", tmp_path / "january"), keyed("case-02", tmp_path / "b")])
    two = Case("case-03", (ScanSource(tmp_path / "t1"), ScanSource(tmp_path / "t2")), keyed=True)
    write_key_table(tmp_path, [two, keyed("case-02", tmp_path / "moved")])
    write_key_table(tmp_path, [two])
    assert [(row["case_id"], row["path"].removeprefix(f"{tmp_path}{os.sep}")) for row in rows_of(tmp_path)] == [
        ("case-01", "january"),
        ("case-02", "moved"),
        ("case-03", "t1"),
        ("case-03", "t2"),
    ]


def test_cases_that_go_by_their_own_names_need_no_table(tmp_path):
    write_key_table(tmp_path, [Case("a", (ScanSource(tmp_path / "a.nii.gz"),))])
    assert not (tmp_path / "key.csv").exists()


def test_a_path_that_is_no_text_is_written_all_the_same(tmp_path):
    write_key_table(tmp_path, [keyed("case-01", tmp_path / os.fsdecode(b"a\xff"))])
    assert rows_of(tmp_path)[0]["path"].endswith("a\\udcff")


def test_a_name_stands_in_the_table_and_nowhere_else(tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    (scans / "CANARY").mkdir(parents=True)
    (scans / "CANARY" / "CANARY.nii.gz").write_bytes(b"x")
    cases = cases_in(scans, channels=["ct"], ids="pseudonym", key=open_key(out))
    write_key_table(out, cases)
    holders = [path.name for path in out.rglob("*") if "CANARY" in path.name or b"CANARY" in read(path)]
    assert holders == ["key.csv"]


def read(path):
    return path.read_bytes() if path.is_file() else b""
