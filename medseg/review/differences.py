"""What differs between runs beside their figures: recipe, overrides, data and code; and what to keep in mind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from medseg.review.entry import SIZES, Entry

KINDS = ("recipe", "overrides", "data", "code", "facts")
SAME_SIZE = 0.005  # references of the same case that differ by more are not the same
MOST_NAMED = 5
NOT_A_DIFFERENCE = ("status", "source")
COMMENTS = ("_about", "_desc")  # keys of a recipe that begin so hold words for its reader


@dataclass(frozen=True)
class Difference:
    """A setting or fact that is not the same in all entries: its kind, name, and text in each (None: not known)."""

    kind: str
    key: str
    values: tuple[str | None, ...]

    def shown(self, *, most: int) -> list[str]:
        """The values as they are read, each cut to so many letters."""
        missing = "not set" if self.kind in ("recipe", "overrides") else "not known"
        texts = [missing if value is None else value for value in self.values]
        return [text if len(text) <= most else f"{text[: most - 1]}…" for text in texts]


def differences(entries: Sequence[Entry]) -> Iterator[Difference]:
    """What differs, by kind and name. Where an entry says nothing of a kind at all, that kind is left out.

    Args:
        entries: two or more.
    """
    for kind in KINDS:
        of_entries: list[Mapping[str, str]] = [getattr(entry, kind) for entry in entries]
        if kind != "overrides" and not all(of_entries):
            continue
        for key in sorted({key for known in of_entries for key in known}):
            values = tuple(known.get(key) for known in of_entries)
            comment = kind in ("recipe", "overrides") and key.rpartition(".")[2].startswith(COMMENTS)
            if len(set(values)) > 1 and key not in NOT_A_DIFFERENCE and not comment:
                yield Difference(kind, key, values)


def cautions(entries: Sequence[Entry], letters: Sequence[str]) -> Iterator[str]:
    """What could make a comparison unfair or weak, in sentences.

    Args:
        entries: what is compared.
        letters: what each is called.
    """
    for letter, entry in zip(letters[1:], entries[1:], strict=True):
        other = other_references(entries[0], entry)
        if other:
            yield (
                f"{letters[0]} and {letter} were judged by different references in {plural(len(other), 'case')} "
                f"({named(other)}): their differences are not the model's alone"
            )
    splits = {entry.split for entry in entries}
    if len(splits) > 1:
        said = ", ".join(f"{letter} {entry.split}" for letter, entry in zip(letters, entries, strict=True))
        yield f"the cases are of different splits ({said}): one model may have seen what another had not"
    for kind, what in (("recipe", "recipes"), ("data", "training data"), ("code", "code")):
        silent = [letter for letter, entry in zip(letters, entries, strict=True) if not getattr(entry, kind)]
        if silent:
            yield f"nothing is known of the {what} of {', '.join(silent)}, so differences in it are not shown"
    for letter, entry in zip(letters, entries, strict=True):
        if entry.code.get("uncommitted changes") == "true":
            yield f"{letter} ran code with changes that no commit has: its commit does not repeat it"
        if entry.failed:
            cases = f"{plural(len(entry.failed), 'case')} ({named(entry.failed)})"
            yield f"{letter} failed on {cases}: counted as failures"
        if entry.unjudged:
            yield f"{letter} did not judge {plural(len(entry.unjudged), 'case')} ({named(entry.unjudged)})"
        if entry.facts.get("status") in ("failed", "killed", "stale", "running"):
            yield f"{letter} is of a run that is {entry.facts['status']}: its figures may not be its last"
        if entry.facts.get("held_out") == "false" or entry.split in ("validation", "best_validation"):
            yield f"{letter} was judged on cases that had a part in its training, and looks better than it is"
    if any(len(set(entry.patients.values())) < len(entry.patients) for entry in entries):
        yield "some patients have several scans: they are averaged for the tests and drawn together for the intervals"


def other_references(first: Entry, entry: Entry) -> list[str]:
    """Cases of both whose references differ in the size of a region."""
    return [
        case_id for case_id, row in first.rows.items() if case_id in entry.rows and _differ(row, entry.rows[case_id])
    ]


def named(case_ids: Sequence[str], *, most: int = MOST_NAMED) -> str:
    """The first few of them.

    >>> named(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(case_ids) - most} more" if len(case_ids) > most else ""
    return ", ".join(case_ids[:most]) + more


def plural(number: int, noun: str) -> str:
    """A number and a noun.

    >>> plural(1, "case"), plural(2, "case")
    ('1 case', '2 cases')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _differ(row: Mapping[str, float | None], other: Mapping[str, float | None]) -> bool:
    for key, size in row.items():
        if not key.endswith(tuple(f"_reference_{unit}" for unit in SIZES)):
            continue
        theirs = other.get(key)
        if size is not None and theirs is not None and abs(size - theirs) > SAME_SIZE * max(size, theirs):
            return True
    return False
