"""What a case gets beside its mask and its row: flags, a page, lesion numbers as a mask, files of other formats."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.bundle import Bundle
from medseg.formats import Format, Structures, write_formats
from medseg.geometry import connected_lesions
from medseg.inference.cases import Case
from medseg.inference.messages import Row
from medseg.reading import Scan
from medseg.report.flags import FlagRules, flags_of
from medseg.report.pages import About, draw_case, page_path, write_case_page
from medseg.writing import write_nifti

INSTANCES_ENDING = "_instances.nii.gz"


@dataclass(frozen=True)
class Extras:
    """What is asked for.

    Attributes:
        pages: a page a case, and a list of all cases.
        formats: files beside the NIfTI mask.
        instances: a mask whose values are the lesions' numbers.
    """

    pages: bool = False
    formats: tuple[Format, ...] = ()
    instances: bool = False

    @property
    def names(self) -> frozenset[str]:
        """Short names, to see later whether a case has all that is asked for."""
        return frozenset(
            [*self.formats, *(["pages"] if self.pages else []), *(["instances"] if self.instances else [])]
        )


def about_pages(bundle: Bundle, model: str, precision: str) -> About:
    """What all pages of a folder share.

    Args:
        bundle: the model.
        model: its name and version, as in the report.
        precision: of the network.
    """
    intensity = bundle.build("intensity") if bundle.modality == "CT" else None
    window = None if intensity is None else (float(intensity.low_hu), float(intensity.high_hu))
    return About(model, precision, bundle.synthetic, bundle.regions, bundle.lesion_region, bundle.unit, window)


class CaseExtras:
    """Makes the extras of one case after the other.

    Args:
        bundle: the model.
        out: folder of the masks.
        extras: what is asked for.
        model: name and version, as in the report.
        precision: of the network.

    Raises:
        ConfigError: if the model's rules for flags are wrong.
    """

    def __init__(self, bundle: Bundle, out: Path, extras: Extras, *, model: str, precision: str) -> None:
        self.bundle, self.out, self.extras = bundle, out, extras
        self.rules = FlagRules.read(bundle.flags, bundle.regions)
        self.about = about_pages(bundle, model, precision)
        self.structures = Structures(bundle.labels, bundle.regions, bundle.name, bundle.version)

    def flags(self, label: NDArray[Any], raw: NDArray[Any], affine: NDArray[np.float64]) -> list[str]:
        """What a person should look at in a case; see `medseg.report.flags`. Images in pixels have no flags."""
        if self.bundle.unit == "px":
            return []
        return flags_of(label, raw, affine, regions=self.bundle.regions, rules=self.rules)

    def write(
        self,
        case: Case,
        scan: Scan,
        label: NDArray[np.unsignedinteger],
        *,
        row: Row,
        lesions: Sequence[Row],
    ) -> list[str]:
        """Write page, instances and formats of a case.

        Args:
            case: the case.
            scan: its first channel.
            label: the finished mask on the scan's grid.
            row: of the report; `flags`, `warnings` and `notes` as lists.
            lesions: rows of lesions.csv.

        Returns:
            Warnings: what could not be written, and why.
        """
        warnings: list[str] = []
        region = self.bundle.lesion_region
        numbers = None if region is None else connected_lesions(np.isin(label, self.bundle.regions[region]))
        in_mm = self.bundle.unit == "mm"
        if self.extras.instances and numbers is not None and in_mm:
            write_nifti(_smallest(numbers), scan.affine, self.out / f"{case.case_id}{INSTANCES_ENDING}")
        if self.extras.formats and in_mm:
            warnings = write_formats(
                label,
                scan.affine,
                self.out / case.case_id,
                formats=self.extras.formats,
                source=case.sources[0],
                structures=self.structures,
            )
        if self.extras.pages:
            drawn = draw_case(scan.voxels, label, scan.affine, self.about, lesions=numbers)
            shown = row | {"case_id": case.case_id, "warnings": [*row["warnings"], *warnings]}
            write_case_page(page_path(self.out, case.case_id), self.about, shown, lesions, drawn)
        return warnings


def _smallest(numbers: NDArray[np.int32]) -> NDArray[np.generic]:
    """Lesion numbers in the smallest type that holds them."""
    return numbers.astype(np.uint8 if numbers.max(initial=0) < 256 else np.uint16)
