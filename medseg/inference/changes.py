"""Whether the scans of a case are those that it was done with."""

from collections.abc import Iterable, Sequence
from typing import Any

from medseg.errors import DataError
from medseg.inference.fingerprints import fingerprint, sha256_of_source
from medseg.reading import ScanSource

TOUCHED = "copied or touched, and the same byte for byte"


def fingerprints(sources: Sequence[ScanSource]) -> list[dict[str, Any] | None]:
    """What is known of each source now, as JSON data; None for one that cannot be read."""
    found: list[dict[str, Any] | None] = []
    for source in sources:
        try:
            found.append(fingerprint(source).as_json())
        except (OSError, DataError):
            found.append(None)
    return found


def change_of(
    sources: Sequence[ScanSource], before: Sequence[dict[str, Any] | None], sha256: Sequence[str], *, verify: bool
) -> str:
    """How sources differ from what they were, as a reason to do their case again; empty if they do not.

    Sources that are away now have not changed: what was done with them still stands.

    Args:
        sources: of a case.
        before: their `fingerprints` when they were read.
        sha256: their digests as read; of the channels of one file each the same.
        verify: compare every byte, whatever the fingerprints say.

    Returns:
        The reason, or `TOUCHED` if only times differ.
    """
    if len(sources) != len(before):
        return "it has other channels"
    changes = set()
    for now, then in zip(fingerprints(sources), before, strict=True):
        if now is None and then is not None:
            return "its scan cannot be read" if verify else ""
        changes.add(_change(now, then))
    if "content" in changes or ((verify or "time" in changes) and not _same_bytes(sources, sha256)):
        return "its scan has changed"
    return TOUCHED if "time" in changes else ""


def _change(now: dict[str, Any] | None, then: dict[str, Any] | None) -> str:
    if now is None or then is None:
        return "none" if now is then else "content"
    if any(now[key] != then[key] for key in ("files", "size", "ends")):
        return "content"
    return "none" if now["times"] == then["times"] else "time"


def _same_bytes(sources: Sequence[ScanSource], sha256: Sequence[str]) -> bool:
    """Whether every byte is as it was read; a failed case may not have been read to its end."""
    if not sha256 or "" in sha256:
        return False
    try:
        return _distinct(sha256_of_source(source) for source in sources) == _distinct(sha256)
    except (OSError, DataError):
        return False


def _distinct(digests: Iterable[str]) -> list[str]:
    """Digests in order, each once: the channels of one 4D file have the same."""
    return list(dict.fromkeys(digests))
