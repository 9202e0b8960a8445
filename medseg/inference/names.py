"""Case ids from file names: safe on every system, and never the same for two cases."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePath

from medseg.reading import scan_stem

FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')  # of Windows; the last are bytes that are no text
FORMULA = "=+@"  # a spreadsheet would run a case id that begins so
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10))}
FILE_ENDINGS = (".nii.gz", ".png", ".csv", ".json", ".html")  # a folder of such a name could meet a file of OUT
MOST_BYTES = 200  # of 255 that a name may have: a mask's ending and a temporary prefix come to it

Ending = Callable[[int], str]


def file_id(relative: PurePath) -> str:
    """The id of a scan file: its relative path without suffix, each part made safe."""
    folders = [safe_name(part, folder=True) for part in relative.parts[:-1]]
    return "/".join([*folders, safe_name(scan_stem(relative.name))])


def safe_name(name: str, *, folder: bool = False) -> str:
    """A name that every system takes; one that had to be changed ends with `~` and a digest, so that none are mixed up.

    Args:
        name: of a file without its suffix, or of a folder.
        folder: whether it is a folder's, which nothing is added to later.
    """
    whole = unicodedata.normalize("NFC", name)
    safe = FORBIDDEN.sub("_", whole)
    if safe[:1] in FORMULA:
        safe = f"_{safe[1:]}"
    if folder and safe != safe.rstrip(" ."):
        safe = safe.rstrip(" .")
    first = (safe if folder else f"{safe}_seg").partition(".")[0]
    changed = (
        safe != whole
        or first.strip().upper() in RESERVED
        or len(safe.encode()) > MOST_BYTES
        or (folder and safe.lower().endswith(FILE_ENDINGS))
    )
    if not changed:
        return safe
    if first.strip().upper() in RESERVED:
        safe = f"_{safe}"
    cut = safe.encode()[: MOST_BYTES - 10].decode(errors="ignore")
    return f"{cut}~{digest(name, 6)}"


def distinct(ids: Sequence[str], endings: Sequence[Sequence[str]]) -> list[str]:
    """`ids`, where those that some system cannot tell apart get an ending of their own.

    Upper and lower case, and composed and decomposed letters, are one on some disks.

    Args:
        ids: one a case.
        endings: of each case what may be added to its id, to be tried in this order; the last one is its alone.
    """
    made = list(ids)
    for turn in range(max((len(own) for own in endings), default=0)):
        count = Counter(_folded(id) for id in made)
        made = [
            f"{id}{own[min(turn, len(own) - 1)]}" if count[_folded(current)] > 1 else current
            for id, current, own in zip(ids, made, endings, strict=True)
        ]
    return made


def digest(text: str, digits: int) -> str:
    """Hex digits of a text; of a file name that is no text its bytes count."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:digits]


def _folded(id: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", id).casefold())
