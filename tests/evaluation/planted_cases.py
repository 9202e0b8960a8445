"""A hundred small phantom cases, each mask right but for an error that was planted."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.report.measurements import write_csv
from medseg.writing import write_nifti

SHAPE = (44, 40, 20)
SPACING_MM = (3.0, 3.0, 5.0)
AFFINE = np.diag([*SPACING_MM, 1.0])
RECIPE = {
    "labels": {"background": 0, "liver": 1, "tumor": 2},
    "regions": {"liver": [1, 2], "tumor": [2]},
    "lesion_region": "tumor",
}
PLANTS = {
    "case_010": "missed lesion",
    "case_020": "shifted mask",
    "case_030": "merged lesions",
    "case_040": "empty case, nothing predicted",
    "case_041": "empty case, false alarm",
    "case_050": "extra organ",
    "case_060": "failed case",
    "case_070": "nothing predicted",
}

Label = NDArray[np.uint8]


def ball(center_mm: tuple[float, float, float], radius_mm: float) -> NDArray[np.bool_]:
    """Voxels whose center is in a ball."""
    index = np.indices(SHAPE).reshape(3, -1).T * SPACING_MM
    return (np.linalg.norm(index - center_mm, axis=1) <= radius_mm).reshape(SHAPE)


def reference(number: int) -> Label:
    """Liver with two lesions, 16 mm and 24 mm, a little elsewhere in each case."""
    label = np.zeros(SHAPE, dtype=np.uint8)
    move = 1.5 * (number % 4)
    label[ball((60 + move, 55, 50), 38)] = 1
    label[ball((48 + move, 50, 50), 8)] = 2
    label[ball((78 + move, 58, 50), 12)] = 2
    return label


def without_lesions(label: Label) -> Label:
    """Liver alone."""
    return np.minimum(label, 1)


def planted(case_id: str, label: Label) -> tuple[Label, Label | None]:
    """Reference and mask of a case with an error; None for no mask."""
    pred = label.copy()
    plant = PLANTS.get(case_id, "")
    if plant == "missed lesion":
        numbers = np.indices(SHAPE)[0] * SPACING_MM[0]
        pred[(pred == 2) & (numbers < 63)] = 1
    elif plant == "shifted mask":
        pred = np.zeros_like(label)
        pred[5:] = label[:-5]  # 15 mm to the patient's right
    elif plant == "merged lesions":
        bridge = np.zeros(SHAPE, dtype=bool)
        bridge[14:28, 16:20, 9:12] = True
        pred[bridge] = 2
    elif plant == "empty case, nothing predicted":
        return without_lesions(label), without_lesions(label)
    elif plant == "empty case, false alarm":
        return without_lesions(label), pred
    elif plant == "extra organ":
        pred[ball((120, 100, 20), 14)] = 1
    elif plant == "failed case":
        return label, None
    elif plant == "nothing predicted":
        pred[:] = 0
    return label, pred


def write_planted(folder: Path, *, cases: int = 100) -> tuple[Path, Path, Path]:
    """Write masks as medseg predict does, references and scans; their folders."""
    masks, references, scans = (folder / name for name in ("OUT", "labels", "scans"))
    rows = []
    for number in range(cases):
        case_id = f"case_{number:03d}"
        label, pred = planted(case_id, reference(number))
        rng = np.random.default_rng(number)
        write_nifti(label, AFFINE, references / f"{case_id}.nii.gz")
        scan = (label * 60 + rng.integers(-20, 20, SHAPE)).astype(np.int16)
        write_nifti(scan, AFFINE, scans / f"{case_id}.nii.gz")
        failed = pred is None
        if pred is not None:
            write_nifti(pred, AFFINE, masks / f"{case_id}_seg.nii.gz")
        rows.append(
            {
                "case_id": case_id,
                "status": "failed" if failed else "done",
                "message": f"{case_id}.nii.gz: damaged or cut short; copy it again" if failed else "",
                "seconds": None if failed else 2.0,
                "patient": f"patient {number // 2}",
                "phase": "portal" if number % 3 else "arterial",
            }
        )
    write_csv(masks / "report.csv", rows, list(rows[0]))
    settings = {"model": "planted", "version": "1.2", "precision": "bfloat16", "recipe_sha256": "ab" * 32}
    (masks / "run.json").write_text(json.dumps({"settings": settings, "judgment": RECIPE}))
    return masks, references, scans
