"""Which regions of each case were annotated: what a data set says of it, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.data.layouts import Listing, Sample, read_json
from medseg.errors import DataError

LABELED_FILE = "labeled.json"


def with_labeled_regions(listing: Listing, folder: Path, regions: Mapping[str, Sequence[int]] | None = None) -> Listing:
    """The listing with `labeled` in each case of which not all regions were annotated.

    Args:
        listing: what a layout's reader found; its `annotated` is what the layout itself says.
        folder: the data set's folder, where a `labeled.json`, `{case_id: [regions]}`, may say it for any layout.
        regions: the recipe's, name -> label values; names are not checked without.

    Raises:
        DataError: if what is said is no such mapping, names an unknown case or region, or is said twice.
    """
    said, where = listing.annotated, listing.layout
    if (folder / LABELED_FILE).is_file():
        if said:
            raise DataError(f"{LABELED_FILE}: {where} says which regions were labeled as well; keep one of the two")
        said, where = read_json(folder / LABELED_FILE), LABELED_FILE
    if not isinstance(said, Mapping):
        raise DataError(f"{where}: labeled is no list of regions a case; write {{case_id: [regions]}}")
    known = {sample["case_id"] for sample in listing.labeled + listing.test if "label" in sample}
    for case_id, names in said.items():
        if case_id not in known:
            raise DataError(f"{where}: labeled has case {case_id!r}, of which there is no label; correct its name")
        _check_names(names, regions, f"{where}: labeled of case {case_id!r}")
    partial = {case_id: names for case_id, names in said.items() if regions is None or set(regions) - set(names)}
    return replace(
        listing,
        labeled=[_with_labeled(sample, partial, regions) for sample in listing.labeled],
        test=[_with_labeled(sample, partial, regions) for sample in listing.test],
    )


def _check_names(names: Any, regions: Mapping[str, Sequence[int]] | None, where: str) -> None:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where} is {names!r}; give a list of regions, or leave the case out if it has them all")
    unknown = [name for name in names if regions is not None and name not in regions]
    if unknown:
        raise DataError(f"{where} names {unknown[0]!r}, which is no region ({', '.join(regions or ())}); correct it")


def _with_labeled(
    sample: Sample, partial: Mapping[str, list[str]], regions: Mapping[str, Sequence[int]] | None
) -> Sample:
    names = partial.get(sample["case_id"])
    if names is None:
        return sample
    return {**sample, "labeled": [name for name in regions or names if name in names]}
