"""What `medseg predict` does with one case after the network: clean-up, numbers, flags, page with its pictures.

    python benchmarks/after_network.py [--full] [--ways WAY ...] [--rounds 3] [--json FILE]

Without `--full` a CT of 256x256x100 voxels (1.6x1.6x4 mm) with 3, 14 and 105 classes; with it 512x512x200 and
512x512x800 (0.8x0.8x2 and 0.8x0.8x1 mm). Organs are balls, value 2 is some 40 lesions within value 1, and the raw label
has stray pieces. "everything" is timed as a whole, the first time in its process, imports included; "numbers" is
volumes, lesions, their diameters and mean HU alone, beside

- SimpleITK: shape statistics of all values, connected components of the lesions with Feret diameter and mean HU;
- NumPy and scipy: a mask a region, labels and means of the lesions; no diameters;
- TotalSegmentator (where it is installed, with 105 classes): its table of volumes and mean intensities, no lesions.

Volumes, counts and mean HU must be those of SimpleITK, diameters within a voxel's diagonal. The mask is not written
(`benchmarks/io.py` has that), no formats are, and memory is what is taken above scan and label.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import Figures, apart, finish, measured, medians

SIZES = {False: ((256, 256, 100),), True: ((512, 512, 200), (512, 512, 800))}
FIELD_MM = (409.6, 409.6)
LESIONS = 40


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 14, 105])
    parser.add_argument("--slices", type=int, help="only the size with so many")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), help="only these; two are always among them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures; the table is written beside it")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "FOLDER", "CLASSES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, folder, classes = arguments.one
        print(json.dumps(one(way, Path(folder), int(classes))))
        return
    rows: list[Figures] = []
    ways = [way for way in WAYS if way in {"medseg, numbers", "SimpleITK", *arguments.ways}]
    for shape in SIZES[arguments.full]:
        for classes in arguments.classes:
            if arguments.slices in (None, shape[2]):
                rows += compared(shape, classes, ways, arguments.rounds)
    finish(rows, f"{arguments.rounds} interleaved rounds, medians, each in a cold process", arguments.json)


def compared(shape: tuple[int, int, int], classes: int, ways: list[str], rounds: int) -> list[Figures]:
    """A row a way, after its numbers were compared with SimpleITK's."""
    found: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_case(Path(folder), shape, classes)
        for _ in range(rounds):
            for way in ways:
                if way == "TotalSegmentator" and classes != 105:
                    continue
                figures = apart(sys.executable, Path(__file__), "--one", way, folder, classes)
                if "missing" in figures:
                    print(f"{way}: left out, no module {figures['missing']}", file=sys.stderr)
                    continue
                found.setdefault(way, []).append(figures)
    check(found["medseg, numbers"][0]["answer"], found["SimpleITK"][0]["answer"])
    base = {"voxels": "x".join(map(str, shape)), "classes": classes}
    return [
        base | {"way": way} | {key: value for key, value in medians(each).items() if key != "answer"}
        for way, each in found.items()
    ]


def check(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Stop if volumes, lesions or their HU are not SimpleITK's, or diameters are more than a voxel's diagonal apart."""
    np.testing.assert_allclose(ours["volumes_ml"], theirs["volumes_ml"], rtol=1e-6)
    np.testing.assert_allclose(sorted(ours["lesions_ml"]), sorted(theirs["lesions_ml"]), rtol=1e-6)
    np.testing.assert_allclose(sorted(ours["mean_hu"]), sorted(theirs["mean_hu"]), rtol=1e-6)
    apart_mm = np.subtract(sorted(ours["diameters_mm"]), sorted(theirs["diameters_mm"]))
    if not ((apart_mm > -1e-6) & (apart_mm <= theirs["diagonal_mm"] * 1.001)).all():
        raise SystemExit(f"diameters are {apart_mm.min():.3f} to {apart_mm.max():.3f} mm apart")


def affine_of(shape: tuple[int, ...]) -> np.ndarray:
    """As scanners store it: x to the left, y to the back."""
    mm = [length / n for length, n in zip(FIELD_MM, shape[:2], strict=True)]
    return np.diag([-mm[0], -mm[1], 800 / shape[2] if shape[2] > 200 else 400 / shape[2], 1.0])


def write_case(folder: Path, shape: tuple[int, int, int], classes: int) -> None:
    """`scan.npy` (int16) and `label.npy` (uint8), stored with x fastest."""
    rng = np.random.default_rng(0)
    label = np.zeros(shape, np.uint8, order="F")
    size = np.array(shape)

    def ball(center: np.ndarray, radius: np.ndarray, value: int) -> None:
        low, high = np.maximum(center - radius, 0).astype(int), np.minimum(center + radius + 1, size).astype(int)
        axes = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
        grid = np.meshgrid(*axes, indexing="ij", sparse=True)
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, center, radius, strict=True)) <= 1
        label[tuple(map(slice, low, high))][inside] = value

    for value in range(3, classes):
        ball(rng.uniform(0.15, 0.85, 3) * size, rng.uniform(0.02, 0.06) * size, value)
    liver = np.array([0.35, 0.5, 0.5]) * size
    ball(liver, 0.18 * size, 1)
    for _ in range(LESIONS):
        ball(liver + rng.uniform(-0.09, 0.09, 3) * size, rng.uniform(0.004, 0.015) * size, 2)
    for _ in range(5):  # strays, which clean-up removes
        ball(rng.uniform(0.1, 0.9, 3) * size, 0.01 * size, 1)
    scan = rng.integers(-60, 60, shape[:2], dtype=np.int16)[:, :, None] + 40 * (label.T > 0).T.astype(np.int16)
    np.save(folder / "label.npy", label)
    np.save(folder / "scan.npy", np.asfortranarray(scan, dtype=np.int16))


def one(way: str, folder: Path, classes: int) -> Figures:
    """Figures of one way in this process."""
    scan, label = np.load(folder / "scan.npy"), np.load(folder / "label.npy")
    try:
        answer, figures = measured(lambda: WAYS[way](scan, label, classes))
    except ModuleNotFoundError as error:
        return {"missing": error.name}
    return figures | {"answer": answer}


def regions_of(classes: int) -> dict[str, list[int]]:
    """As recipes have them: an organ with its lesions, the lesions, further organs."""
    return {"liver": [1, 2], "tumor": [2]} | {f"organ {value}": [value] for value in range(3, classes)}


def everything(scan: np.ndarray, label: np.ndarray, classes: int) -> None:
    """The stage "write" of a case but for the mask itself."""
    from medseg.cleanup import KeepLargest, changes
    from medseg.regions import LabelFacts, Lesions
    from medseg.report.flags import FlagRules, flags_of
    from medseg.report.measurements import measure
    from medseg.report.pages import About, draw_case, write_case_page

    regions, affine = regions_of(classes), affine_of(label.shape)
    names = {"background": 0, "liver": 1, "tumor": 2} | {f"organ {value}": value for value in range(3, classes)}
    rules = FlagRules.read(
        {
            "volume_ml": {"liver": [500, 3500]},
            "pieces_above_ml": {"liver": 20},
            "at_border": ["liver"],
            "none_found": ["liver", "tumor"],
            "removed_above_ml": {"tumor": 1},
        },
        regions,
    )
    cleaned = KeepLargest([1, 2])(label, affine)
    notes = list(changes(label, cleaned, affine, names))
    facts = LabelFacts.of(cleaned)
    found = Lesions.of(facts, regions["tumor"])
    row, lesions = measure(facts, affine, regions=regions, lesion_region="tumor", found=found, hu=scan)
    flags = flags_of(facts, LabelFacts.of(label), affine, regions=regions, rules=rules)
    about = About("benchmark 1", "float32", False, regions, "tumor", window=(-100.0, 200.0))
    told = {"case_id": "case", "flags": flags, "warnings": [], "notes": notes, **row}
    drawn = draw_case(scan, facts, affine, about, lesions=found)
    with tempfile.TemporaryDirectory() as folder:
        write_case_page(Path(folder) / "case.html", about, told, lesions, drawn)


def numbers(scan: np.ndarray, label: np.ndarray, classes: int) -> dict[str, Any]:
    """`medseg.report.measure`."""
    from medseg.report.measurements import measure

    regions = regions_of(classes)
    row, lesions = measure(label, affine_of(label.shape), regions=regions, lesion_region="tumor", hu=scan)
    return {
        "volumes_ml": [row[f"{name}_ml"] for name in regions],
        "lesions_ml": [lesion["volume_ml"] for lesion in lesions],
        "diameters_mm": [lesion["longest_3d_diameter_mm"] for lesion in lesions],
        "mean_hu": [lesion["mean_hu"] for lesion in lesions],
    }


def by_simpleitk(scan: np.ndarray, label: np.ndarray, classes: int) -> dict[str, Any]:
    """Volumes, and lesions with their longest diameter and mean HU."""
    import SimpleITK as sitk  # noqa: N813

    spacing = np.abs(np.diag(affine_of(label.shape))[:3])
    image, ct = sitk.GetImageFromArray(label.T), sitk.GetImageFromArray(scan.T)
    image.SetSpacing(spacing.tolist())
    ct.SetSpacing(spacing.tolist())
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(image)
    known = {value: shapes.GetPhysicalSize(value) / 1000 for value in shapes.GetLabels()}
    pieces = sitk.ConnectedComponent(image == 2, True)
    lesions = sitk.LabelIntensityStatisticsImageFilter()
    lesions.ComputeFeretDiameterOn()
    lesions.Execute(pieces, ct)
    return {
        "volumes_ml": [sum(known.get(v, 0.0) for v in values) for values in regions_of(classes).values()],
        "lesions_ml": [lesions.GetPhysicalSize(number) / 1000 for number in lesions.GetLabels()],
        "diameters_mm": [lesions.GetFeretDiameter(number) for number in lesions.GetLabels()],
        "mean_hu": [lesions.GetMean(number) for number in lesions.GetLabels()],
        "diagonal_mm": float(np.linalg.norm(spacing)),
    }


def by_scipy(scan: np.ndarray, label: np.ndarray, classes: int) -> dict[str, Any]:
    """The usual few lines: a mask a region, labels and means of the lesions."""
    from scipy import ndimage

    voxel_ml = abs(np.linalg.det(affine_of(label.shape))) / 1000
    volumes = [float(np.isin(label, values).sum() * voxel_ml) for values in regions_of(classes).values()]
    pieces, count = ndimage.label(label == 2, np.ones((3, 3, 3)))
    lesions = range(1, count + 1)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:] * voxel_ml
    return {
        "volumes_ml": volumes,
        "lesions_ml": sizes.tolist(),
        "mean_hu": ndimage.mean(scan, pieces, lesions).tolist(),
    }


def by_totalsegmentator(scan: np.ndarray, label: np.ndarray, classes: int) -> None:
    """Its statistics of a whole-body mask."""
    import nibabel as nib
    from totalsegmentator.statistics import get_basic_statistics

    ct = nib.Nifti1Image(scan, affine_of(label.shape))
    get_basic_statistics(label, ct, quiet=True, exclude_masks_at_border=False)


WAYS: dict[str, Callable[[np.ndarray, np.ndarray, int], Any]] = {
    "medseg, everything": everything,
    "medseg, numbers": numbers,
    "SimpleITK": by_simpleitk,
    "NumPy and scipy": by_scipy,
    "TotalSegmentator": by_totalsegmentator,
}

if __name__ == "__main__":
    main()
