"""Synthetic contrast-enhanced abdomen CTs with liver and tumors, written in MSD (or nnU-Net raw) layout.

The anatomy (`phantom_anatomy`) is painted (`phantom_painting`) from shapes (`phantom_shapes`) on the grid of each
phase; lesions are placed in the liver; noise is added; axes are stored in a random order. Segmenting it takes context:
neighbors of the liver have its HU, and cysts, vessels and bowel look like tumors. It teaches nothing about patients.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial.transform import Rotation

from medseg.data.phantom_anatomy import Patient, draw_patient, paint_organs
from medseg.data.phantom_painting import Canvas, Hu, Part, VoxelGrid, paint
from medseg.data.phantom_shapes import Ellipsoid, Floats, Millimeters, Shape, Shrunk
from medseg.errors import DataError
from medseg.notices import SYNTHETIC
from medseg.writing import write_nifti

LABELS = {"background": 0, "liver": 1, "tumor": 2}
PHASES = ("portal", "arterial")


class Lesion(NamedTuple):
    """One drawn lesion: `center_mm` in world RAS, `diameter_mm` its longest, `kind` "dark", "bright" or "cyst"."""

    center_mm: Millimeters
    diameter_mm: float
    kind: Literal["dark", "bright", "cyst"]


@dataclass(frozen=True)
class PhantomCase:
    """One synthetic patient.

    Attributes:
        images: one int16 HU volume `(X, Y, Z)` a phase, each on a grid of its own.
        affines: one `(4, 4)` a phase, voxel index -> RAS mm.
        label: uint8, 0 background, 1 liver, 2 tumor, on the first phase's grid.
        lesions: tumors ("dark", "bright") and cysts; cysts are liver in `label`.
    """

    images: list[NDArray[np.int16]]
    affines: list[NDArray[np.float64]]
    label: NDArray[np.uint8]
    lesions: list[Lesion]


def make_phantom(
    out_dir: str | Path,
    *,
    cases: int = 24,
    shape: tuple[int, int, int] = (112, 96, 56),
    seed: int = 0,
    phases: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a synthetic data set: three quarters to train on, one quarter (other seeds) to judge with.

    One phase is written in MSD layout, two phases in nnU-Net raw layout (`CASE_0000`, `CASE_0001`, each on its own
    grid). The folder appears complete or not at all.

    Args:
        out_dir: a folder that does not exist yet, or is empty.
        cases: how many in all, at least 2.
        shape: voxels along right-left, front-back and head-foot, before axes are stored in other orders.
        seed: same seed, same voxels.
        phases: 1 (portal-venous) or 2 (arterial too).
        progress: called as `progress(done, cases)` after each case.

    Returns:
        `out_dir` as a path.

    Raises:
        DataError: if `out_dir` has content or cannot be written, or the numbers make no data set.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise DataError(f"phantom folder {out_dir} already has content; name a new folder, or remove it first")
    if cases < 2:
        raise DataError(f"a phantom needs at least 2 cases (one to train, one to judge), got {cases}")
    partial = out_dir.absolute().with_name(f".{out_dir.absolute().name}-{uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        _write_cases(partial, cases, shape, seed, phases, progress)
        if out_dir.exists():
            out_dir.rmdir()  # empty: Windows renames onto no folder
        partial.replace(out_dir)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"phantom folder {out_dir} cannot be written ({reason}); choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out_dir


def _write_cases(
    folder: Path,
    cases: int,
    shape: tuple[int, int, int],
    seed: int,
    phases: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    held_out = max(1, cases // 4)
    names: dict[str, list[str]] = {"Tr": [], "Ts": []}
    done = 0
    for split, stream, count in [("Tr", 0, cases - held_out), ("Ts", 1, held_out)]:
        for kind in ("images", "labels"):
            (folder / f"{kind}{split}").mkdir()
        rng = np.random.default_rng((seed, stream))
        plan = zip(_tumor_counts(rng, count), _liver_levels(rng, count), strict=True)
        for index, (tumors, level) in enumerate(plan):
            name = f"phantom_{done:03d}"
            case = phantom_case((seed, stream, index), shape=shape, phases=phases, tumors=tumors, liver_level=level)
            for phase, (image, affine) in enumerate(zip(case.images, case.affines, strict=True)):
                suffix = f"_{phase:04d}" if phases > 1 else ""
                write_nifti(image, affine, folder / f"images{split}" / f"{name}{suffix}.nii.gz")
            write_nifti(case.label, case.affines[0], folder / f"labels{split}" / f"{name}.nii.gz")
            names[split].append(name)
            done += 1
            if progress:
                progress(done, cases)
    description = _msd_description(names) if phases == 1 else _nnunet_description(names)
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _tumor_counts(rng: np.random.Generator, cases: int) -> list[int]:
    """Tumors a case, 0 to 6, every fifth case without: even a set of six has one to raise false alarms in."""
    none = min(round(cases / 5), cases - 1)
    counts = [0] * none + [1 + (index * 5) % 6 for index in range(cases - none)]
    return [int(count) for count in rng.permutation(counts)]


def _liver_levels(rng: np.random.Generator, cases: int) -> list[float]:
    """Where in the range of liver HU each case lies, spread evenly: even six cases have fatty and healthy livers."""
    levels = (np.arange(cases) + rng.uniform(size=cases)) / cases
    return [float(level) for level in rng.permutation(levels)]


def _common_description() -> dict[str, Any]:
    return {
        "name": "medseg phantom",
        "description": f"Synthetic contrast-enhanced abdomen CT, liver and tumors. Models: {SYNTHETIC}.",
        "reference": "medseg.data.make_phantom",
        "licence": "Apache-2.0",
        "synthetic": True,
    }


def _msd_description(names: dict[str, list[str]]) -> dict[str, Any]:
    return _common_description() | {
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": len(names["Tr"]),
        "numTest": len(names["Ts"]),
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names["Tr"]
        ],
        "test": [f"./imagesTs/{name}.nii.gz" for name in names["Ts"]],
    }


def _nnunet_description(names: dict[str, list[str]]) -> dict[str, Any]:
    return _common_description() | {
        "channel_names": {str(index): phase for index, phase in enumerate(PHASES)},
        "labels": LABELS,
        "numTraining": len(names["Tr"]),
        "file_ending": ".nii.gz",
    }


# A case: grids, organs painted on them, lesions placed in the liver, noise


def phantom_case(
    seed: int | Sequence[int],
    *,
    shape: tuple[int, int, int] = (112, 96, 56),
    phases: int = 1,
    tumors: int | None = None,
    liver_level: float | None = None,
) -> PhantomCase:
    """One synthetic patient with one or two contrast phases.

    Args:
        seed: same seed, same voxels.
        shape: voxels along right-left, front-back and head-foot of the first phase; the field of view stays about
            325 x 280 x 250 mm whatever the shape, so that fewer voxels are larger ones.
        phases: 1 (portal-venous) or 2 (arterial too, on a grid of other spacing).
        tumors: how many (0 to 6); drawn if None.
        liver_level: 0 (fatty, dark liver) to 1 (the brightest one); drawn if None.

    Raises:
        DataError: if `phases` is neither 1 nor 2, or an edge of `shape` is under 16 voxels.
    """
    if phases not in (1, 2):
        raise DataError(f"a phantom has 1 phase (portal) or 2 (portal, arterial), got {phases}")
    if min(shape) < 16:
        raise DataError(f"a phantom needs at least 16 voxels along each axis to hold its organs, got {shape}")
    rng = np.random.default_rng(seed)
    if tumors is None:
        tumors = int(rng.integers(0, 7))
    if liver_level is None:
        liver_level = rng.random()
    patient = draw_patient(rng, liver_level)
    pose = _draw_pose(rng)
    grids = [_draw_grid(rng, shape)]
    if phases == 2:
        grids.append(_other_grid(rng, grids[0]))
    canvas = paint_organs(patient, grids[0], 0)
    lesions = _place_lesions(rng, canvas, grids[0], patient, tumors)
    images: list[NDArray[np.int16]] = []
    affines = []
    label = np.zeros(shape, np.uint8)
    for phase, grid in enumerate(grids):
        if phase > 0:
            canvas = paint_organs(patient, grid, phase)
        for lesion in lesions:
            paint(canvas, lesion.parts, grid, phase)
        order, flips = _draw_storage(rng)
        image = _acquire(rng, canvas.hu, patient, grid)
        affines.append(pose @ grid.affine())
        if phase == 0:
            label, _ = _store(canvas.label, affines[0], order, flips)
        stored, affines[phase] = _store(image, affines[phase], order, flips)
        images.append(stored)
    return PhantomCase(images, affines, label, [lesion.in_world(pose) for lesion in lesions])


def _draw_grid(rng: np.random.Generator, shape: tuple[int, int, int]) -> VoxelGrid:
    in_plane = rng.uniform(2.6, 3.2) * max(112 / shape[0], 96 / shape[1])
    spacing = (in_plane, in_plane, rng.uniform(4.0, 5.0) * 56 / shape[2])
    return VoxelGrid(shape, spacing, _centered(shape, spacing, rng.uniform(-6, 6, 3)))


def _other_grid(rng: np.random.Generator, grid: VoxelGrid) -> VoxelGrid:
    """A grid over about the same field of view with other voxels, as another reconstruction would have."""
    factors = [rng.uniform(1.1, 1.3), 0.0, rng.uniform(0.75, 0.9)]
    factors[1] = factors[0]
    spacing = tuple(float(edge * factor) for edge, factor in zip(grid.spacing, factors, strict=True))
    shape = tuple(round(n / factor) for n, factor in zip(grid.shape, factors, strict=True))
    return VoxelGrid(shape, spacing, _centered(shape, spacing, rng.uniform(-6, 6, 3)))  # type: ignore[arg-type]


def _centered(shape: Sequence[int], spacing: Sequence[float], shift: NDArray[np.float64]) -> Millimeters:
    x, y, z = (float(s - (n - 1) / 2 * edge) for n, edge, s in zip(shape, spacing, shift, strict=True))
    return x, y, z


def _draw_pose(rng: np.random.Generator) -> NDArray[np.float64]:
    """Patient frame -> world: any origin, and for one patient in three a tilt of a few degrees."""
    pose = np.eye(4)
    tilt = rng.uniform(-9, 9, 3)
    if rng.random() < 1 / 3:
        pose[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix()
    pose[:3, 3] = rng.uniform(-120, 120, 3)
    return pose


def _draw_storage(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    orders, flips = list(permutations(range(3))), list(product([False, True], repeat=3))
    return orders[rng.integers(len(orders))], flips[rng.integers(len(flips))]


def _store(
    voxels: NDArray[Any], affine: NDArray[np.float64], order: Sequence[int], flips: Sequence[bool]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The same volume in the same place, its axes turned around and put in another order."""
    affine = affine.copy()
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1
            voxels = np.flip(voxels, axis)
    return np.ascontiguousarray(voxels.transpose(order)), affine[:, [*order, 3]]


def _acquire(rng: np.random.Generator, hu: Floats, patient: Patient, grid: VoxelGrid) -> NDArray[np.int16]:
    """Scanner effects: partial volume, a slow drift of HU, correlated noise."""
    hu = gaussian_filter(hu, 0.45)
    noise = gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (0.8, 0.8, 0.5))
    noise *= np.float32(rng.uniform(7, 9)) / noise.std()
    drift = patient.drift.on(grid.axes()) * 4 + rng.uniform(-4, 4)
    return np.clip(np.rint(hu + noise + drift), -1024, 3071).astype(np.int16)


# Lesions


@dataclass(frozen=True)
class _PlacedLesion:
    center: Millimeters
    diameter: float
    kind: Literal["dark", "bright", "cyst"]
    parts: list[Part]

    def in_world(self, pose: NDArray[np.float64]) -> Lesion:
        x, y, z = (pose @ [*self.center, 1.0])[:3]
        return Lesion((float(x), float(y), float(z)), self.diameter, self.kind)


def _place_lesions(
    rng: np.random.Generator, canvas: Canvas, grid: VoxelGrid, patient: Patient, tumors: int
) -> list[_PlacedLesion]:
    """Tumors and cysts at free places of the liver, large ones first; one that fits nowhere is made smaller."""
    depth = distance_transform_edt(np.pad(canvas.label == 1, 1), sampling=grid.spacing)[1:-1, 1:-1, 1:-1]
    spots = np.argwhere(depth > 0)
    depths = depth[tuple(spots.T)]
    spots_mm = spots * np.asarray(grid.spacing) + np.asarray(grid.origin)
    free = np.full(len(spots), np.inf)  # mm to the surface of the nearest lesion
    placed = []
    for diameter, kind in _draw_lesions(rng, tumors):
        radius = diameter / 2
        allowed = np.flatnonzero((depths > 0.6 * radius) & (free > radius + 4))
        while not len(allowed) and radius > 2.5:
            radius = max(2.5, radius * 0.8)
            allowed = np.flatnonzero((depths > 0.6 * radius) & (free > radius + 4))
        if not len(allowed):
            continue
        center = spots_mm[rng.choice(allowed)]
        free = np.minimum(free, np.linalg.norm(spots_mm - center, axis=1) - radius)
        where = (float(center[0]), float(center[1]), float(center[2]))
        placed.append(_PlacedLesion(where, 2 * radius, kind, _lesion_parts(rng, where, radius, kind, patient.liver_hu)))
    return placed


def _draw_lesions(rng: np.random.Generator, tumors: int) -> Iterator[tuple[float, Literal["dark", "bright", "cyst"]]]:
    """Diameters in mm and kinds: a leading tumor of 25-48 mm, then ever smaller ones; up to three cysts."""
    ranges = [(26, 48), (16, 34), (12, 28), (6, 18), (5, 12), (5, 10)]
    for low, high in ranges[:tumors]:
        yield rng.uniform(low, high), "bright" if rng.random() < 0.2 else "dark"
    for _ in range(rng.integers(0, 4)):
        yield rng.uniform(6, 26), "cyst"


def _lesion_parts(rng: np.random.Generator, center: Millimeters, radius: float, kind: str, liver: Hu) -> list[Part]:
    if kind == "cyst":
        water = float(rng.uniform(2, 14))
        return [Part(Ellipsoid(center, (radius, radius, radius)), (water, water), only_in=1, in_mm=True)]
    radii = radius * rng.uniform(0.72, 1.0, 3)
    radii[rng.integers(3)] = radius
    body = Ellipsoid(center, (radii[0], radii[1], radii[2]), tuple(rng.uniform(0, 180, 3)))
    shape: Shape = Shrunk(body, rng.uniform(0.0, 0.16) * radius)
    portal, arterial = rng.uniform(28, 46), rng.uniform(20, 45)
    if kind == "dark":
        portal, arterial = max(-rng.uniform(40, 65), 25 - liver[0]), rng.uniform(-30, 25)  # brighter than a cyst
    inside = (liver[0] + portal, liver[1] + arterial)
    parts = [Part(shape, inside, label=2, only_in=1, in_mm=True, texture=4)]
    if kind == "dark" and radius > 9 and rng.random() < 0.25:  # a rim that takes up contrast, or a dead core
        rim = rng.uniform(8, 25)
        parts = [
            Part(shape, (liver[0] + rim, liver[1] + rim + 20), label=2, only_in=1, in_mm=True),
            Part(shape, inside, grow=-rng.uniform(2.5, 3.5), only_in=2, in_mm=True, texture=4),
        ]
    elif kind == "dark" and radius > 12 and rng.random() < 0.4:
        core = (inside[0] - 18, inside[1] - 18)
        parts.append(Part(shape, core, grow=-0.45 * radius, only_in=2, in_mm=True))
    return parts
