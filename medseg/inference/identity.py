"""Pseudonyms of cases, the secret they are made with, and `OUT/key.csv`, the way back; both for their owner alone."""

import csv
import hashlib
import hmac
import io
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.errors import ConfigError
from medseg.inference.out_files import FOLDER, OWNER_ONLY, create_once, write_private

if TYPE_CHECKING:
    from medseg.inference.cases import Case

KEY_FILE, KEY_TABLE = "key", "key.csv"
COLUMNS = ("case_id", "path", "series_uid")
DIGITS = 10


def pseudonym(key: bytes, identity: str, *, digits: int = DIGITS) -> str:
    """`case-` and hex digits of HMAC-SHA256: the same for the same identity, and nobody can tell it without the key.

    Args:
        key: the secret.
        identity: a series' UID, or a file's relative path.
        digits: how many; with 10, two of 3000 cases meet once in 250,000 folders.
    """
    return f"case-{keyed_digits(key, identity, digits)}"


def keyed_digits(key: bytes, identity: str, digits: int) -> str:
    """Hex digits of HMAC-SHA256."""
    return hmac.new(key, identity.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:digits]


def has_key(out: Path) -> bool:
    """Whether OUT has a secret already, so that `open_key` writes nothing.

    Raises:
        OSError: if OUT cannot be read.
    """
    return (out / FOLDER / KEY_FILE).exists()


def open_key(out: Path) -> bytes:
    """The secret of OUT's pseudonyms, made at the first run: the same series keeps its id in OUT.

    Raises:
        ConfigError: if it cannot be read, or is damaged.
    """
    file = out / FOLDER / KEY_FILE
    if not has_key(out):
        create_once(file, secrets.token_hex(32))
    try:
        with suppress(PermissionError):  # somebody else's, and readable all the same
            file.chmod(OWNER_ONLY)
        key = bytes.fromhex(file.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"OUT/{FOLDER}/{KEY_FILE}, the secret of the case ids, cannot be read ({type(error).__name__}): run it as "
            "the user who made OUT, or choose another OUT"
        ) from error
    if len(key) != 32:
        raise ConfigError(f"OUT/{FOLDER}/{KEY_FILE}, the secret of the case ids, is damaged; choose another OUT")
    return key


def write_key_table(out: Path, cases: Iterable["Case"]) -> None:
    """Write which file or series each pseudonym stands for to `OUT/key.csv`; rows of earlier runs stay.

    Nothing is written if no case has a pseudonym.

    Raises:
        OSError: if OUT cannot be written.
    """
    new = {
        (case.case_id, str(number)): (case.case_id, _plain(str(source.path.absolute())), source.series_uid)
        for case in cases
        if case.keyed
        for number, source in enumerate(case.sources)
    }
    if not new:
        return
    rows = _old_rows(out / KEY_TABLE) | new
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(rows[key] for key in sorted(rows))
    write_private(out / KEY_TABLE, text.getvalue())


def _old_rows(table: Path) -> dict[tuple[str, str], tuple[str, str, str]]:
    rows: dict[tuple[str, str], tuple[str, str, str]] = {}
    with suppress(FileNotFoundError), table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            case_id = row.get("case_id") or ""
            number = str(sum(known == case_id for known, _ in rows))
            rows[case_id, number] = (case_id, row.get("path") or "", row.get("series_uid") or "")
    return rows


def _plain(text: str) -> str:
    """A path that can be written as UTF-8."""
    return text.encode(errors="backslashreplace").decode()
