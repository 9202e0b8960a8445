"""What a case gets beside its mask and its row: flags, a page, lesion numbers as a mask, files of other formats."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from medseg.bundle import Bundle
from medseg.formats import Structures, write_formats, write_label_tables
from medseg.inference.cases import Case
from medseg.inference.messages import Extras, Row
from medseg.inference.out_files import left_over_of
from medseg.inference.predictor import Answer
from medseg.inference.tables import CONFIDENCE_ENDINGS, INSTANCES_ENDING, PROBABILITIES_ENDING, about_pages
from medseg.reading import Scan
from medseg.regions import LabelFacts, Lesions
from medseg.report.flags import FlagRules, doubt_flags, flags_of
from medseg.report.pages import draw_case, page_path, write_case_page
from medseg.writing import write_compressed, write_mask_png, write_nifti

logger = logging.getLogger(__name__)

PERCENT = "confidence in percent: probability of the voxel's label, 0 where background"


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

    def flags(
        self,
        label: LabelFacts,
        raw: LabelFacts,
        affine: NDArray[np.float64],
        *,
        confidence: Mapping[str, float],
        agreement: Mapping[str, float],
    ) -> list[str]:
        """What a person should look at in a case; see `medseg.report.flags`. Images in pixels have no volumes."""
        regions, rules = self.bundle.regions, self.rules
        if self.bundle.unit == "px":
            return doubt_flags(regions, rules, confidence=confidence, agreement=agreement)
        return flags_of(label, raw, affine, regions=regions, rules=rules, confidence=confidence, agreement=agreement)

    def probability_file(self, case: Case) -> Path | None:
        """Where the network's probabilities go while they come in; None if they are not asked for.

        What a process that died of the case has left there is removed: it is large, and the case is this one's now.
        """
        if not self.extras.probabilities:
            return None
        target = self.out / f"{case.case_id}{PROBABILITIES_ENDING}".removesuffix(".gz")
        for path in left_over_of(target):
            with suppress(OSError):
                path.unlink()
        return target.with_name(f".{uuid4().hex[:8]}-{target.name}")

    def write(
        self,
        case: Case,
        scan: Scan,
        label: LabelFacts,
        *,
        row: Row,
        lesions: Sequence[Row],
        found: Lesions | None,
        answer: Answer,
        probabilities: Path | None = None,
    ) -> list[str]:
        """Write page, instances, formats, confidence and probabilities of a case.

        Args:
            case: the case.
            scan: its first channel.
            label: the finished mask on the scan's grid.
            row: of the report; `flags`, `warnings` and `notes` as lists.
            lesions: rows of lesions.csv.
            found: the lesions; None for a model that seeks none.
            answer: the network's.
            probabilities: the file that it has written.

        Returns:
            Warnings: what could not be written, and why.
        """
        warnings: list[str] = []
        in_mm = self.bundle.unit == "mm"
        instances = self.out / f"{case.case_id}{INSTANCES_ENDING}"
        if self.extras.instances and found is not None and in_mm:
            write_nifti(found.whole(), scan.affine, instances)
        else:
            instances.unlink(missing_ok=True)  # of an earlier mask
        if in_mm:
            warnings = write_formats(
                label.label,
                scan.affine,
                self.out / case.case_id,
                formats=self.extras.formats,
                source=case.sources[0],
                structures=self.structures,
            )
        self._write_confidence(case, scan, answer)
        target = self.out / f"{case.case_id}{PROBABILITIES_ENDING}"
        if probabilities is None:
            target.unlink(missing_ok=True)  # of an earlier mask
        else:
            write_compressed(probabilities, target)
        if self.extras.pages:
            shown = row | {"case_id": case.case_id, "warnings": [*row["warnings"], *warnings]}
            try:
                drawn = draw_case(scan.voxels, label, scan.affine, self.about, lesions=found)
                write_case_page(page_path(self.out, case.case_id), self.about, shown, lesions, drawn)
            except (ValueError, TypeError, IndexError) as error:  # a picture must not cost a mask
                logger.warning("no page of a case", exc_info=True)
                warnings.append(f"no page: it could not be drawn ({type(error).__name__})")
        return warnings

    def _write_confidence(self, case: Case, scan: Scan, answer: Answer) -> None:
        """The map if it is asked for; else remove one of an earlier mask."""
        target = self.out / f"{case.case_id}{CONFIDENCE_ENDINGS[self.bundle.unit]}"
        if not self.extras.confidence or answer.confidence is None:
            target.unlink(missing_ok=True)
        elif self.bundle.unit == "px":
            write_mask_png(answer.confidence.percent(answer.label), target)
        else:
            write_nifti(answer.confidence.percent(answer.label), scan.affine, target, description=PERCENT)
