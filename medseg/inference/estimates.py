"""What a case will take, told by headers alone: memory while it is in the pipeline, and room for its mask and maps."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from medseg.bundle import Bundle
from medseg.data_half import literal
from medseg.geometry import voxel_volume_ml
from medseg.inference.cases import Case
from medseg.inference.faults import one_line
from medseg.inference.messages import NO_EXTRAS, Extras
from medseg.reading import Header, read_header

READING = 2  # copies of the voxels at a time: as stored, and as they will be kept
LABEL_BYTES = 6  # a scan voxel: the label map, the numbers of its lesions, the mask that is read back
WORKING_COPIES = 3  # of each channel in float32: resampled, its intensities mapped, padded for the windows
PROBABILITY_BYTES = 4  # of a class at a voxel: two as they come in, and two more compressed
MARGIN_MB = 1  # on the disk, for the records of a case


class Needs(NamedTuple):
    """Estimates for one case.

    Attributes:
        voxels: of the scan.
        memory_mb: beside the network and what it needs for its windows.
        disk_mb: at most, as if neither mask nor maps could be compressed; probabilities also as they come in.
    """

    voxels: int
    memory_mb: float
    disk_mb: float


def needs_of(case: Case, bundle: Bundle, extras: Extras = NO_EXTRAS) -> Needs:
    """Estimates for a case; no voxel is read.

    Raises:
        DataError: if a header cannot be read.
    """
    return needs_of_scans([read_header(source) for source in case.sources], bundle, extras)


def needs_of_scans(headers: Sequence[Header], bundle: Bundle, extras: Extras = NO_EXTRAS) -> Needs:
    """Estimates from the headers of a case's channels (or of the one file that holds them all)."""
    first = headers[0]
    voxels = prod(first.shape[:3])
    working: float = voxels
    if bundle.unit == "mm":
        working *= voxel_volume_ml(first.affine) * 1000 / prod(literal(bundle.recipe, "spacing_mm"))
    outputs = literal(bundle.recipe, "out_channels")
    floats = working * (WORKING_COPIES * len(bundle.channels) + outputs)
    size = READING * sum(header.bytes for header in headers) + LABEL_BYTES * voxels + 4 * floats
    on_disk = voxels * (1 + extras.confidence + PROBABILITY_BYTES * outputs * extras.probabilities)
    return Needs(voxels, size / 2**20, on_disk / 2**20 + MARGIN_MB)


class Forecast(NamedTuple):
    """What a run will take.

    Attributes:
        cases: what each case will take, or why it will fail, by its id.
        memory_mb: of the largest case, beside the network.
        disk_mb: of all masks and maps, at most.
        seconds: of all cases; None if nothing is known about the model's speed here.
    """

    cases: dict[str, str]
    memory_mb: float
    disk_mb: float
    seconds: float | None


def forecast(
    cases: Iterable[Case], bundle: Bundle, rows: Iterable[Mapping[str, Any]] = (), *, extras: Extras = NO_EXTRAS
) -> Forecast:
    """What a run over `cases` will take, from headers and from what cases of OUT took before.

    Args:
        cases: that are to be done.
        bundle: the model.
        rows: of the report as far as it exists.
        extras: what each case gets beside its mask.
    """
    told, memory, disk, readable = {}, 0.0, 0.0, 0
    for case in cases:
        try:
            needs = needs_of(case, bundle, extras)
        except (ValueError, OSError) as error:
            told[case.case_id] = f"will fail: {one_line(error)}"
            continue
        told[case.case_id] = f"{needs.voxels / 1e6:.1f} million voxels, {needs.memory_mb:.0f} MB of memory"
        memory, disk, readable = max(memory, needs.memory_mb), disk + needs.disk_mb, readable + 1
    took = [float(row["seconds"]) for row in rows if row.get("status") == "done" and row.get("seconds")]
    known = sum(took) / len(took) if took else bundle.metadata.get("seconds_per_case")
    return Forecast(told, memory, disk, None if known is None else float(known) * readable)
