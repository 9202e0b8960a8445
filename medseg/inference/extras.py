"""What a case gets beside its mask and its row: flags, a page, lesion numbers as a mask, files of other formats."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.bundle import Bundle
from medseg.formats import Structures, write_formats, write_label_tables
from medseg.inference.cases import Case
from medseg.inference.messages import Extras, Row
from medseg.inference.tables import about_pages
from medseg.reading import Scan
from medseg.regions import LabelFacts, Lesions
from medseg.report.flags import FlagRules, flags_of
from medseg.report.pages import draw_case, page_path, write_case_page
from medseg.writing import write_nifti

logger = logging.getLogger(__name__)

INSTANCES_ENDING = "_instances.nii.gz"


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
        window = None
        if bundle.modality == "CT":
            intensity = bundle.build("intensity")
            window = (float(intensity.low_hu), float(intensity.high_hu))
        self.about = about_pages(bundle, model=model, precision=precision, window=window)
        self.structures = Structures(bundle.labels, bundle.regions, bundle.name, bundle.version)
        if bundle.unit == "mm":
            write_label_tables(out, self.structures)

    def flags(self, label: LabelFacts, raw: LabelFacts, affine: NDArray[np.float64]) -> list[str]:
        """What a person should look at in a case; see `medseg.report.flags`. Images in pixels have no flags."""
        if self.bundle.unit == "px":
            return []
        return flags_of(label, raw, affine, regions=self.bundle.regions, rules=self.rules)

    def write(
        self,
        case: Case,
        scan: Scan,
        label: LabelFacts,
        *,
        row: Row,
        lesions: Sequence[Row],
        found: Lesions | None,
    ) -> list[str]:
        """Write page, instances and formats of a case.

        Args:
            case: the case.
            scan: its first channel.
            label: the finished mask on the scan's grid.
            row: of the report; `flags`, `warnings` and `notes` as lists.
            lesions: rows of lesions.csv.
            found: the lesions; None for a model that seeks none.

        Returns:
            Warnings: what could not be written, and why.
        """
        warnings: list[str] = []
        in_mm = self.bundle.unit == "mm"
        if self.extras.instances and found is not None and in_mm:
            write_nifti(found.whole(), scan.affine, self.out / f"{case.case_id}{INSTANCES_ENDING}")
        if self.extras.formats and in_mm:
            warnings = write_formats(
                label.label,
                scan.affine,
                self.out / case.case_id,
                formats=self.extras.formats,
                source=case.sources[0],
                structures=self.structures,
            )
        if self.extras.pages:
            shown = row | {"case_id": case.case_id, "warnings": [*row["warnings"], *warnings]}
            try:
                drawn = draw_case(scan.voxels, label, scan.affine, self.about, lesions=found)
                write_case_page(page_path(self.out, case.case_id), self.about, shown, lesions, drawn)
            except (ValueError, TypeError, IndexError) as error:  # a picture must not cost a mask
                logger.warning("no page of a case", exc_info=True)
                warnings.append(f"no page: it could not be drawn ({type(error).__name__})")
        return warnings
