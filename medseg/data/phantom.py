"""Synthetic contrast-enhanced abdomen CTs with liver and tumors, written in MSD (or nnU-Net raw) layout.

A case is a list of parts painted one over the other: a shape (signed distance in mm), its HU a phase, its label. Shapes
live in body coordinates that are stretched and warped by smooth noise, patient by patient; lesions live in plain mm, so
that their sizes hold. Frames: x to the patient's right, y to anterior, z to superior (RAS), mm.

The anatomy is drawn for segmentation to need context: neighbors of the liver have its HU, and cysts, vessels and bowel
look like tumors. It teaches nothing about patients.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations, product
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial.transform import Rotation

from medseg.errors import DataError
from medseg.writing import write_nifti

PHANTOM_NOTICE = "trained on synthetic data, not for patients"

Floats = NDArray[np.float32]
Millimeters = tuple[float, float, float]
Hu = tuple[float, float]  # portal-venous, arterial

LABELS = {"background": 0, "liver": 1, "tumor": 2}
PHASES = ("portal", "arterial")
FLAT = float("inf")  # a radius without end: a cylinder, a slab


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
        DataError: if `out_dir` has content, or the numbers make no data set.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise DataError(f"phantom folder {out_dir} already has content; name a new folder, or remove it first")
    if cases < 2:
        raise DataError(f"a phantom needs at least 2 cases (one to train, one to judge), got {cases}")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        _write_cases(partial, cases, shape, seed, phases, progress)
        if out_dir.exists():
            out_dir.rmdir()
        partial.chmod(0o755)
        partial.replace(out_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
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
        "description": f"Synthetic contrast-enhanced abdomen CT, liver and tumors. Models: {PHANTOM_NOTICE}.",
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
            330 x 280 x 230 mm whatever the shape, so that fewer voxels are larger ones.
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
    patient = _draw_patient(rng, liver_level)
    pose = _draw_pose(rng)
    grids = [_draw_grid(rng, shape)]
    if phases == 2:
        grids.append(_other_grid(rng, grids[0]))
    canvas = _paint_organs(patient, grids[0], 0)
    lesions = _place_lesions(rng, canvas, grids[0], patient, tumors)
    images: list[NDArray[np.int16]] = []
    affines = []
    label = np.zeros(shape, np.uint8)
    for phase, grid in enumerate(grids):
        if phase > 0:
            canvas = _paint_organs(patient, grid, phase)
        for lesion in lesions:
            _paint(canvas, lesion.parts, grid, phase)
        order, flips = _draw_storage(rng)
        image = _acquire(rng, canvas.hu, patient, grid)
        affines.append(pose @ grid.affine())
        if phase == 0:
            label, _ = _store(canvas.label, affines[0], order, flips)
        stored, affines[phase] = _store(image, affines[phase], order, flips)
        images.append(stored)
    found = []
    for lesion in lesions:
        center = pose[:3, :3] @ np.asarray(lesion.center) + pose[:3, 3]
        found.append(Lesion((float(center[0]), float(center[1]), float(center[2])), lesion.diameter, lesion.kind))
    return PhantomCase(images, affines, label, found)


@dataclass(frozen=True)
class _Grid:
    """A regular grid in the patient's own frame: `origin` is the first voxel's center."""

    shape: tuple[int, int, int]
    spacing: Millimeters
    origin: Millimeters

    def axes(self) -> list[Floats]:
        return [
            (start + step * np.arange(n)).astype(np.float32)
            for start, step, n in zip(self.origin, self.spacing, self.shape, strict=True)
        ]

    def affine(self) -> NDArray[np.float64]:
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = self.origin
        return affine


def _draw_grid(rng: np.random.Generator, shape: tuple[int, int, int]) -> _Grid:
    in_plane = rng.uniform(2.6, 3.2) * max(112 / shape[0], 96 / shape[1])
    spacing = (in_plane, in_plane, rng.uniform(4.0, 5.0) * 56 / shape[2])
    return _Grid(shape, spacing, _centered(shape, spacing, rng.uniform(-6, 6, 3)))


def _other_grid(rng: np.random.Generator, grid: _Grid) -> _Grid:
    """A grid over about the same field of view with other voxels, as another reconstruction would have."""
    factors = [rng.uniform(1.1, 1.3), 0.0, rng.uniform(0.75, 0.9)]
    factors[1] = factors[0]
    spacing = tuple(float(edge * factor) for edge, factor in zip(grid.spacing, factors, strict=True))
    shape = tuple(round(n / factor) for n, factor in zip(grid.shape, factors, strict=True))
    return _Grid(shape, spacing, _centered(shape, spacing, rng.uniform(-6, 6, 3)))  # type: ignore[arg-type]


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


def _acquire(rng: np.random.Generator, hu: Floats, patient: "_Patient", grid: _Grid) -> NDArray[np.int16]:
    """Scanner effects: partial volume, a slow drift of HU, correlated noise."""
    hu = gaussian_filter(hu, 0.45)
    noise = gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (0.8, 0.8, 0.5))
    noise *= np.float32(rng.uniform(10, 14)) / noise.std()
    drift = patient.drift.on(grid.axes()) * 4 + rng.uniform(-4, 4)
    return np.clip(np.rint(hu + noise + drift), -1024, 3071).astype(np.int16)


# Lesions


@dataclass(frozen=True)
class _PlacedLesion:
    center: Millimeters
    diameter: float
    kind: Literal["dark", "bright", "cyst"]
    parts: list["_Part"]


def _place_lesions(
    rng: np.random.Generator, canvas: "_Canvas", grid: _Grid, patient: "_Patient", tumors: int
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


def _lesion_parts(rng: np.random.Generator, center: Millimeters, radius: float, kind: str, liver: Hu) -> list["_Part"]:
    if kind == "cyst":
        water = float(rng.uniform(2, 14))
        return [_Part(_Ellipsoid(center, (radius, radius, radius)), (water, water), only_in=1, in_mm=True)]
    radii = radius * rng.uniform(0.72, 1.0, 3)
    radii[rng.integers(3)] = radius
    body = _Ellipsoid(center, (radii[0], radii[1], radii[2]), tuple(rng.uniform(0, 180, 3)))
    shape: _Shape = _Shrunk(body, rng.uniform(0.0, 0.16) * radius)
    portal, arterial = rng.uniform(28, 46), rng.uniform(20, 45)
    if kind == "dark":
        portal, arterial = max(-rng.uniform(28, 55), 28 - liver[0]), rng.uniform(-30, 25)  # brighter than a cyst
    inside = (liver[0] + portal, liver[1] + arterial)
    parts = [_Part(shape, inside, label=2, only_in=1, in_mm=True, texture=4)]
    if kind == "dark" and radius > 9 and rng.random() < 0.4:  # a rim that takes up contrast, or a dead core
        rim = rng.uniform(-5, 22)
        parts = [
            _Part(shape, (liver[0] + rim, liver[1] + rim + 20), label=2, only_in=1, in_mm=True),
            _Part(shape, inside, grow=-rng.uniform(2.5, 3.5), only_in=2, in_mm=True, texture=4),
        ]
    elif kind == "dark" and radius > 12 and rng.random() < 0.4:
        core = (inside[0] - 18, inside[1] - 18)
        parts.append(_Part(shape, core, grow=-0.45 * radius, only_in=2, in_mm=True))
    return parts


# Painting


class _Points(NamedTuple):
    """Coordinates in mm and smooth noise (25 mm and 9 mm wide, standard deviation 1), all of one shape."""

    x: Floats
    y: Floats
    z: Floats
    coarse: Floats
    fine: Floats

    def at(self, box: tuple[slice, ...]) -> "_Points":
        return _Points(*(values[box] for values in self))


class _Shape(Protocol):
    """Signed distance in mm to a surface, negative inside, about right near it; `box` encloses the inside."""

    def distance(self, at: _Points) -> Floats: ...

    def box(self) -> tuple[Millimeters, Millimeters]: ...


@dataclass(frozen=True)
class _Part:
    """A shape with its HU a phase; `label` None leaves the label, `only_in` paints inside that label only."""

    shape: _Shape
    hu: Hu
    label: int | None = None
    grow: float = 0.0
    texture: float = 0.0
    only_in: int | None = None
    in_mm: bool = False


@dataclass(frozen=True)
class _Canvas:
    hu: Floats
    label: NDArray[np.uint8]
    body: _Points  # warped body coordinates
    plain: _Points  # mm
    reach: list[tuple[Floats, Floats]]  # per axis: unwarped body and plain coordinates


@dataclass(frozen=True)
class _SmoothNoise:
    """Noise of unit variance that depends on mm and not on the grid: cubic B-splines on random knots."""

    knots: Floats
    width_mm: float

    @staticmethod
    def draw(rng: np.random.Generator, width_mm: float) -> "_SmoothNoise":
        count = int(440 / width_mm) + 4
        return _SmoothNoise(rng.standard_normal((count, count, count), dtype=np.float32), width_mm)

    def on(self, axes: Sequence[Floats]) -> Floats:
        values = self.knots
        for axis in axes:  # contracts the first knot axis, appends the voxel axis
            values = np.tensordot(values, self._weights(axis), axes=(0, 0))
        return values / np.float32(0.479**1.5)  # 0.479: mean over positions of the sum of squared weights

    def _weights(self, axis: Floats) -> Floats:
        count = self.knots.shape[0]
        away = np.abs(np.arange(count, dtype=np.float32)[:, None] - (axis / self.width_mm + (count - 1) / 2))
        near = 2 / 3 - away**2 + away**3 / 2
        far = np.clip(2 - away, 0, None) ** 3 / 6
        return np.where(away < 1, near, far).astype(np.float32)


def _paint_organs(patient: "_Patient", grid: _Grid, phase: int) -> _Canvas:
    axes = grid.axes()
    coarse, fine = patient.coarse.on(axes), patient.fine.on(axes)
    plain = [axis.reshape([-1 if i == k else 1 for k in range(3)]) for i, axis in enumerate(axes)]
    body_axes = [(axis - shift) / scale for axis, shift, scale in zip(axes, patient.shift, patient.scale, strict=True)]
    body = [
        axis.reshape([-1 if i == k else 1 for k in range(3)]) + patient.warp_mm * warp.on(axes)
        for i, (axis, warp) in enumerate(zip(body_axes, patient.warps, strict=True))
    ]
    full = [np.broadcast_to(axis, grid.shape) for axis in plain]
    canvas = _Canvas(
        np.full(grid.shape, -1000, np.float32),
        np.zeros(grid.shape, np.uint8),
        _Points(body[0], body[1], body[2], coarse, fine),
        _Points(full[0], full[1], full[2], coarse, fine),
        list(zip(body_axes, axes, strict=True)),
    )
    _paint(canvas, patient.parts, grid, phase)
    return canvas


def _paint(canvas: _Canvas, parts: Sequence[_Part], grid: _Grid, phase: int) -> None:
    """Paint `parts` in order, with borders softened over about a voxel."""
    soft = np.float32(sum(grid.spacing) / 3)
    for part in parts:
        box = _voxel_box(canvas, part)
        at = (canvas.plain if part.in_mm else canvas.body).at(box)
        if not at.x.size:
            continue
        distance = part.shape.distance(at) - np.float32(part.grow)
        cover = np.clip(0.5 - distance / soft, 0, 1)
        hu, label = canvas.hu[box], canvas.label[box]
        inside = distance < 0
        if part.only_in is not None:
            allowed = label == part.only_in
            inside &= allowed
            cover *= allowed
        hu += cover * (part.hu[phase] + part.texture * at.fine - hu)
        if part.label is not None:
            label[inside] = part.label


def _voxel_box(canvas: _Canvas, part: _Part) -> tuple[slice, ...]:
    low, high = part.shape.box()
    margin = 5 + max(part.grow, 0) + (0 if part.in_mm else 17)  # 17 mm: as far as the warp reaches
    box = []
    for (body, plain), first, last in zip(canvas.reach, low, high, strict=True):
        axis = plain if part.in_mm else body
        start, stop = np.searchsorted(axis, [first - margin, last + margin])
        box.append(slice(int(start), int(stop)))
    return tuple(box)


@dataclass(frozen=True)
class _Ellipsoid:
    center: Millimeters
    radii: Millimeters
    turn: tuple[float, ...] = (0.0, 0.0, 0.0)  # degrees about x, y, z

    def distance(self, at: _Points) -> Floats:
        offsets = [
            at.x - np.float32(self.center[0]),
            at.y - np.float32(self.center[1]),
            at.z - np.float32(self.center[2]),
        ]
        if any(self.turn):
            matrix = Rotation.from_euler("xyz", self.turn, degrees=True).as_matrix().T.astype(np.float32)
            offsets = [row[0] * offsets[0] + row[1] * offsets[1] + row[2] * offsets[2] for row in matrix]
        pairs = [(offset, r) for offset, r in zip(offsets, self.radii, strict=True) if r != FLAT]
        scaled = np.sqrt(sum((offset * np.float32(1 / r)) ** 2 for offset, r in pairs))
        slope = np.sqrt(sum((offset * np.float32(1 / r**2)) ** 2 for offset, r in pairs))
        return scaled * (scaled - 1) / np.maximum(slope, np.float32(1e-6))

    def box(self) -> tuple[Millimeters, Millimeters]:
        radii = [max(self.radii)] * 3 if any(self.turn) else self.radii
        return _around([self.center], radii)


@dataclass(frozen=True)
class _Tube:
    """A bent cylinder along `path` with a radius at each of its points."""

    path: Sequence[Millimeters]
    radii: Sequence[float]

    def distance(self, at: _Points) -> Floats:
        pieces = zip(pairwise(self.path), pairwise(self.radii), strict=True)
        return np.minimum.reduce([_segment_distance(at, *ends, *radii) for ends, radii in pieces])

    def box(self) -> tuple[Millimeters, Millimeters]:
        return _around(self.path, [max(self.radii)] * 3)


def _segment_distance(at: _Points, start: Millimeters, end: Millimeters, r_start: float, r_end: float) -> Floats:
    along = [np.float32(b - a) for a, b in zip(start, end, strict=True)]
    x, y, z = at.x - np.float32(start[0]), at.y - np.float32(start[1]), at.z - np.float32(start[2])
    length2 = np.float32(max(sum(float(d) ** 2 for d in along), 1e-6))
    t = np.clip((x * along[0] + y * along[1] + z * along[2]) / length2, 0, 1)
    off = (x - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (z - t * along[2]) ** 2
    return np.sqrt(off) - (np.float32(r_start) + t * np.float32(r_end - r_start))


def _around(points: Sequence[Millimeters], radii: Sequence[float]) -> tuple[Millimeters, Millimeters]:
    low, high = np.min(points, axis=0) - radii, np.max(points, axis=0) + radii
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


@dataclass(frozen=True)
class _Blend:
    """Union whose crease is filled over `width` mm."""

    shapes: Sequence[_Shape]
    width: float = 0.0

    def distance(self, at: _Points) -> Floats:
        total = self.shapes[0].distance(at)
        for shape in self.shapes[1:]:
            other = shape.distance(at)
            smooth = np.maximum(self.width - np.abs(total - other), 0) ** 2 / (4 * self.width) if self.width else 0
            total = np.minimum(total, other) - smooth
        return total

    def box(self) -> tuple[Millimeters, Millimeters]:
        boxes = np.array([shape.box() for shape in self.shapes])
        return tuple(boxes[:, 0].min(axis=0) - self.width / 2), tuple(boxes[:, 1].max(axis=0) + self.width / 2)


@dataclass(frozen=True)
class _Cut:
    """`shape` inside `within` and outside `without`, kept `gap` mm away from both."""

    shape: _Shape
    within: Sequence[_Shape] = ()
    without: Sequence[_Shape] = ()
    gap: float = 0.0

    def distance(self, at: _Points) -> Floats:
        limits = [other.distance(at) + self.gap for other in self.within]
        holes = [self.gap - other.distance(at) for other in self.without]
        return np.maximum.reduce([self.shape.distance(at), *limits, *holes])

    def box(self) -> tuple[Millimeters, Millimeters]:
        boxes = np.array([self.shape.box(), *(other.box() for other in self.within)])
        return tuple(boxes[:, 0].max(axis=0)), tuple(boxes[:, 1].min(axis=0))


@dataclass(frozen=True)
class _Rough:
    """A surface moved in and out by coarse noise of `amount` mm."""

    shape: _Shape
    amount: float

    def distance(self, at: _Points) -> Floats:
        return self.shape.distance(at) + np.float32(self.amount) * at.coarse

    def box(self) -> tuple[Millimeters, Millimeters]:
        low, high = np.array(self.shape.box())
        return tuple(low - 3.5 * self.amount), tuple(high + 3.5 * self.amount)


@dataclass(frozen=True)
class _Shrunk:
    """A surface moved inward only, by fine noise of about `amount` mm: the size stays an upper bound."""

    shape: _Shape
    amount: float

    def distance(self, at: _Points) -> Floats:
        inward: Floats = np.float32(self.amount) * np.abs(at.fine)
        return self.shape.distance(at) + inward

    def box(self) -> tuple[Millimeters, Millimeters]:
        return self.shape.box()


@dataclass(frozen=True)
class _Ribs:
    """Slanted bars every 27 mm in the wall whose outer side is `wall`."""

    wall: _Shape
    lowest: float

    def distance(self, at: _Points) -> Floats:
        height = at.z - 0.35 * at.y + 0.1 * np.abs(at.x)
        bar = np.abs(np.mod(height, 27) - 13.5) - 5.5
        ring = np.abs(self.wall.distance(at) + 7) - 4
        return np.maximum.reduce([bar, ring, self.lowest - height, at.y - 62])

    def box(self) -> tuple[Millimeters, Millimeters]:
        return self.wall.box()


# Anatomy


@dataclass(frozen=True)
class _Patient:
    parts: list[_Part]
    liver_hu: Hu
    scale: Millimeters
    shift: Millimeters
    warps: list[_SmoothNoise]
    warp_mm: float
    coarse: _SmoothNoise
    fine: _SmoothNoise
    drift: _SmoothNoise


class _Draw:
    """Random numbers of one patient, in the words of the anatomy."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def number(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def near(self, x: float, y: float, z: float, mm: float = 6) -> Millimeters:
        """A point up to `mm` away along each axis."""
        return x + self.number(-mm, mm), y + self.number(-mm, mm), z + self.number(-mm, mm)

    def radii(self, x: float, y: float, z: float, share: float = 0.1) -> Millimeters:
        """Radii up to `share` larger or smaller."""
        a, b, c = (radius * self.number(1 - share, 1 + share) for radius in (x, y, z))
        return a, b, c

    def count(self, low: int, high: int) -> int:
        """A whole number, `high` excluded."""
        return int(self.rng.integers(low, high))

    def pick(self, ranges: Sequence[Hu]) -> float:
        """A number of one of the ranges, each as likely as the others."""
        return self.number(*ranges[self.count(0, len(ranges))])

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)


def _draw_patient(rng: np.random.Generator, liver_level: float) -> _Patient:
    draw = _Draw(rng)
    levels, fatty_to_healthy_hu = (0.0, 0.4, 0.4, 1.0), (58, 78, 104, 140)  # two kinds: no one window holds both
    liver_hu = (float(np.interp(liver_level, levels, fatty_to_healthy_hu)), draw.number(55, 80))
    return _Patient(
        parts=_anatomy(draw, liver_hu),
        liver_hu=liver_hu,
        scale=(draw.number(0.94, 1.05), draw.number(0.92, 1.08), draw.number(0.94, 1.08)),
        shift=(draw.number(-5, 5), draw.number(-5, 5), draw.number(-12, 12)),
        warps=[_SmoothNoise.draw(rng, 60) for _ in range(3)],
        warp_mm=4.5,
        coarse=_SmoothNoise.draw(rng, 25),
        fine=_SmoothNoise.draw(rng, 9),
        drift=_SmoothNoise.draw(rng, 120),
    )


@dataclass(frozen=True)
class _Trunk:
    """The shapes that the others are fitted into."""

    skin: _Shape
    wall: _Shape
    cavity: _Shape
    abdomen: _Shape
    room: _Shape  # below the diaphragm, inside of the wall, beside the spine
    muscle_hu: Hu


def _anatomy(draw: _Draw, liver_hu: Hu) -> list[_Part]:
    trunk = _draw_trunk(draw, liver_hu)
    liver = _liver(draw, trunk)
    return [
        *_trunk_parts(draw, trunk),
        *_chest(draw, trunk),
        *_back(draw, trunk),
        *_bowel(draw, trunk),
        *_upper_organs(draw, trunk),
        _Part(liver, liver_hu, label=1, texture=draw.number(2, 5)),
        *_vessels(draw, liver, liver_hu),
        _Part(_Cut(_gallbladder(draw), within=[trunk.cavity]), (draw.number(4, 18),) * 2, label=0),
    ]


def _draw_trunk(draw: _Draw, liver_hu: Hu) -> _Trunk:
    fat, muscle = draw.number(6, 16), draw.number(18, 25)
    inner = fat + muscle
    skin = _Ellipsoid((0, 0, 0), (135, 100, FLAT))
    wall = _Ellipsoid((0, -0.15 * fat, 0), (135 - fat, 100 - fat, FLAT))
    cavity = _Ellipsoid((0, 0.15 * muscle, 0), (135 - inner, 100 - inner, FLAT))
    right = draw.number(62, 80)
    domes = [
        _Ellipsoid((60, -5, right - 95), (80, 90, 95)),
        _Ellipsoid((-55, -5, right - 105), (80, 90, draw.number(88, 98))),
        _Ellipsoid((0, 0, -500), (FLAT, FLAT, 480)),
    ]
    muscle_hu = 26 + 0.55 * liver_hu[0] + draw.number(-10, 12)  # both take up contrast: near, whatever the timing
    abdomen = _Blend(domes, 25)
    column = _Ellipsoid((0, -55, 0), (27, 24, FLAT))
    room = _Cut(cavity, within=[abdomen], without=[column])
    return _Trunk(skin, wall, cavity, abdomen, room, (muscle_hu, muscle_hu - 4))


def _trunk_parts(draw: _Draw, trunk: _Trunk) -> list[_Part]:
    fat = (draw.number(-112, -92),) * 2
    return [
        _Part(trunk.skin, (20, 20)),
        _Part(trunk.skin, fat, grow=-3, texture=6),
        _Part(trunk.wall, trunk.muscle_hu, texture=5),
        _Part(trunk.cavity, fat, texture=10),
        _Part(_Ribs(trunk.wall, draw.number(-75, -45)), (draw.number(240, 360),) * 2, texture=30),
    ]


def _back(draw: _Draw, trunk: _Trunk) -> list[_Part]:
    marrow = (draw.number(95, 190),) * 2
    sides: list[_Shape] = [_Ellipsoid((side * 42, -62, 0), (48, 27, FLAT)) for side in (-1, 1)]
    sides += [_Tube([(side * 26, -42, -10), (side * 42, -34, -150)], [12, 30]) for side in (-1, 1)]
    spine: list[_Part] = []
    offset = draw.number(0, 30)
    for level in range(-5, 6):
        z = offset + 30 * level
        slab = _Ellipsoid((0, 0, z), (FLAT, FLAT, 12.5))
        body = _Cut(_Ellipsoid((0, -48, z), (22, 18, FLAT)), within=[slab])
        spine += [_Part(body, (430, 430)), _Part(body, marrow, grow=-3, texture=20)]
        spine.append(_Part(_Ellipsoid((0, -86, z - 8), (4, 12, 9)), (380, 380)))
    return [
        *(_Part(_Cut(shape, within=[trunk.wall]), trunk.muscle_hu, texture=6) for shape in sides),
        _Part(_Ellipsoid((0, -48, 0), (21, 17, FLAT)), (85, 85)),
        *spine,
        _Part(_Ellipsoid((0, -72, 0), (9, 7, FLAT)), (25, 25)),
    ]


def _chest(draw: _Draw, trunk: _Trunk) -> list[_Part]:
    slab = _Ellipsoid((0, 0, 500), (FLAT, FLAT, 560))  # no lung below z = -60
    middle = _Ellipsoid((-5, -10, 0), (26, 60, FLAT))
    lungs = _Cut(_Cut(trunk.cavity, within=[slab]), without=[trunk.abdomen, middle], gap=2)
    heart = _Ellipsoid(draw.near(-20, 24, 99), draw.radii(56, 42, 48), (0, 15, 25))
    blood = draw.number(105, 140)
    nodules = []
    for _ in range(draw.count(4, 9)):  # as large as liver tumors, and of their HU
        spot = (draw.number(-95, 95), draw.number(-45, 45), draw.number(50, 130))
        nodule = _Cut(_Ellipsoid(spot, draw.radii(11, 11, 11, 0.35)), within=[lungs], gap=3)
        nodules.append(_Part(nodule, (draw.pick([(40, 95), (40, 95), (130, 180)]),) * 2, texture=4))
    collapsed = [
        _Cut(_Rough(_Ellipsoid(draw.near(side * 62, -52, 45), draw.radii(50, 34, 44, 0.3)), 4), within=[lungs])
        for side in (-1, 1)
        if draw.chance(0.6)
    ]
    return [
        _Part(lungs, (draw.number(-880, -800),) * 2, texture=25),
        *nodules,
        *(_Part(lung, (draw.number(70, 125),) * 2, texture=6) for lung in collapsed),
        _Part(_Cut(trunk.abdomen, within=[trunk.cavity]), trunk.muscle_hu, grow=3),
        _Part(_Cut(trunk.abdomen, within=[trunk.cavity]), (-98, -98), grow=-1, texture=8),
        _Part(heart, (blood - 18, 100), texture=4),
        _Part(heart, (blood, 190), grow=-10, texture=4),
    ]


def _bowel(draw: _Draw, trunk: _Trunk) -> list[_Part]:
    parts: list[_Part] = []
    for _ in range(52):
        start = draw.near(0, 22, -80, 1)
        start = (start[0] + draw.number(-75, 75), start[1] + draw.number(-35, 40), start[2] + draw.number(-55, 45))
        end = draw.near(*start, mm=32)
        loop = _Cut(_Tube([start, end], [draw.number(12, 18)] * 2), within=[trunk.cavity], gap=1)
        wall = draw.number(95, 140)
        content = draw.pick([(20, 90), (20, 90), (20, 90), (80, 135), (140, 185), (-800, -600)])
        parts += [_Part(loop, (wall, wall + 10)), _Part(loop, (content, content), grow=-4.5, texture=8)]
    for _ in range(14):  # nodes and collapsed loops: as dark or bright as tumors, and as large
        spot = (draw.number(-80, 80), draw.number(-40, 70), draw.number(-130, 10))
        node = _Cut(_Ellipsoid(spot, draw.radii(11, 11, 11, 0.4)), within=[trunk.room], gap=2)
        parts.append(_Part(node, (draw.pick([(35, 90), (35, 90), (130, 180)]),) * 2, texture=4))
    z = draw.number(-45, -25)
    colon = [
        (90, -12, -130),
        (86, 0, z - 15),
        (55, 52, z - 25),
        (0, 66, z - 20),
        (-60, 50, z),
        (-86, -10, z + 10),
        (-88, -20, -130),
    ]
    paths = [draw.near(*point) for point in colon]
    for ends in pairwise(paths):
        piece = _Cut(_Rough(_Tube(ends, [draw.number(17, 23)] * 2), 3), within=[trunk.cavity], gap=1)
        content = draw.number(10, 70) if draw.chance(0.65) else -800
        parts += [_Part(piece, (draw.number(60, 95),) * 2), _Part(piece, (content, content), grow=-3, texture=22)]
    return parts


def _upper_organs(draw: _Draw, trunk: _Trunk) -> list[_Part]:
    pancreas = [draw.near(*p, mm=4) for p in [(34, 8, -30), (20, 18, -12), (-15, 14, -2), (-45, -5, 8), (-68, -18, 14)]]
    gland = _Cut(_Rough(_Tube(pancreas, [15, 11, 10, 10, 8]), 2), within=[trunk.room])
    gland_hu = draw.number(70, 110)
    return [
        *_spleen(draw, trunk),
        *_kidneys(draw, trunk),
        _Part(gland, (gland_hu, gland_hu + 25), texture=7),
        *_stomach(draw, trunk),
    ]


def _spleen(draw: _Draw, trunk: _Trunk) -> list[_Part]:
    center, radii = draw.near(-80, -34, 22), draw.radii(34, 48, 50, 0.2)
    spleen = _Cut(_Rough(_Ellipsoid(center, radii, (0, 15, 25)), 2), within=[trunk.room], gap=1)
    parts = [_Part(spleen, (draw.number(95, 132), draw.number(100, 150)), texture=4)]
    for _ in range(draw.count(0, 4)):  # lesions like those of the liver, in the wrong organ
        lesion = _Cut(_Ellipsoid(draw.near(*center, mm=28), draw.radii(11, 11, 11, 0.35)), within=[spleen], gap=4)
        parts.append(_Part(lesion, (draw.number(40, 88),) * 2, texture=4))
    return parts


def _kidneys(draw: _Draw, trunk: _Trunk) -> list[_Part]:
    parts: list[_Part] = []
    cortex = draw.number(125, 175)
    medulla = cortex - draw.number(30, 75)
    for side in (-1, 1):
        x, y, z = draw.near(side * 56, -46, -32 - 6 * side)
        kidney = _Cut(_Ellipsoid((x, y, z), draw.radii(27, 24, 50), (8, -8 * side, 0)), within=[trunk.room])
        parts.append(_Part(kidney, (cortex, cortex + 30), texture=6))
        for level in (-34, -17, 0, 17, 34):
            pyramid = _Ellipsoid(
                (x + draw.number(-4, 4), y + draw.number(-4, 4), z + level), draw.radii(11, 10, 8, 0.2)
            )
            parts.append(_Part(_Cut(pyramid, within=[kidney], gap=5), (medulla, medulla + 20), texture=4))
        parts.append(_Part(_Ellipsoid((x - side * 16, y + 6, z), (11, 8, 18)), (-60, -60)))
        if draw.chance(0.4):
            cyst = (x + side * 12, y + draw.number(-12, 12), z + draw.number(-35, 35))
            parts.append(_Part(_Ellipsoid(cyst, (draw.number(6, 15),) * 3), (9, 9)))
    return parts


def _stomach(draw: _Draw, trunk: _Trunk) -> list[_Part]:
    fundus = _Ellipsoid(draw.near(-58, 8, 34), draw.radii(34, 38, 36, 0.15))
    course = [draw.near(*point) for point in [(-56, 25, 20), (-46, 46, -15), (-8, 52, -28), (24, 40, -22)]]
    stomach = _Cut(_Blend([fundus, _Tube(course, [26, 25, 19, 13])], 12), within=[trunk.room], gap=1)
    gas = _Cut(stomach, within=[_Ellipsoid((0, 500 + draw.number(45, 62), 0), (FLAT, 500, FLAT))])
    wall, content = draw.number(65, 105), draw.number(130, 165) if draw.chance(0.25) else draw.number(20, 130)
    parts = [
        _Part(stomach, (wall, wall + 10), texture=3),
        _Part(stomach, (content, content), grow=-draw.number(4, 6), texture=draw.number(4, 10)),
    ]
    for spot in course[:2] * 2:  # food
        food = _Cut(_Ellipsoid(draw.near(*spot, mm=12), draw.radii(11, 11, 11, 0.3)), within=[stomach], gap=7)
        parts.append(_Part(food, (draw.number(30, 95),) * 2, texture=8))
    return [*parts, _Part(gas, (-900, -900), grow=-5)]


def _liver(draw: _Draw, trunk: _Trunk) -> _Shape:
    right = _Ellipsoid(draw.near(62, -4, 4, 7), draw.radii(70, 84, 80), (0, draw.number(-12, 12), draw.number(-15, 15)))
    left = _Ellipsoid(
        draw.near(2, 38, 26, 7), draw.radii(70, 37, 36, 0.2), (0, draw.number(-15, 10), draw.number(-10, 15))
    )
    tip = _Ellipsoid(draw.near(80, 2, -38, 6), draw.radii(26, 42, 46, 0.25))
    caudate = _Ellipsoid(draw.near(20, 0, 22, 4), draw.radii(20, 16, 26))
    hollow = _Ellipsoid(draw.near(8, 0, -58, 8), draw.radii(52, 60, 56))
    lobes = _Rough(_Blend([right, left, tip, caudate], 14), draw.number(2, 4))
    return _Cut(_Cut(lobes, without=[hollow]), within=[trunk.room], gap=0.5)


def _gallbladder(draw: _Draw) -> _Shape:
    neck, end = draw.near(42, 22, -28, 5), draw.near(56, 44, -54, 6)
    return _Tube([neck, end], [draw.number(6, 9), draw.number(11, 16)])


def _vessels(draw: _Draw, liver: _Shape, liver_hu: Hu) -> list[_Part]:
    aorta = _Tube([(-8, -20, -200), (-10, -20, 20), (-16, -34, 150)], [9, 11, 12])
    cava = _Tube([(20, -20, -200), (22, -14, 0), (20, -4, 50), (8, 8, 95)], [12, 13, 14, 14])
    bright = max(draw.number(125, 165), liver_hu[0] + 25)
    aorta_hu, cava_hu = (bright + draw.number(-5, 15), 290), (bright + draw.number(-25, 0), 70)
    veins_hu = (bright if draw.chance(0.7) else liver_hu[0] - draw.number(12, 25), liver_hu[1] - 10)
    portal_hu = (bright, liver_hu[1] + 15)
    hilum = draw.near(30, 10, 0, 5)
    portal = _Tube([draw.near(4, 6, -34, 3), (14, 8, -18), hilum], [7, 7, 7.5])
    parts = [_Part(aorta, aorta_hu, label=0), _Part(cava, cava_hu, label=0), _Part(portal, portal_hu)]
    for target in [(85, -10, 15), (70, 30, -5), (5, 42, 25)]:
        parts += _branches(draw, hilum, draw.near(*target, mm=12), draw.number(5, 6.5), 3, portal_hu)
    for target in [(100, -5, 30), (62, 30, 30), (-5, 40, 30)]:
        parts += _branches(draw, (20, -2, 52), draw.near(*target, mm=12), draw.number(4.5, 6), 2, veins_hu)
    return parts


def _branches(draw: _Draw, start: Millimeters, end: Millimeters, radius: float, levels: int, hu: Hu) -> list[_Part]:
    """A vessel and, at its end, two thinner ones; outside of the liver (label 1) nothing is painted."""
    middle = tuple((a + b) / 2 + draw.number(-6, 6) for a, b in zip(start, end, strict=True))
    parts = [_Part(_Tube([start, middle, end], [radius, 0.85 * radius, 0.7 * radius]), hu, only_in=1)]  # type: ignore[list-item]
    if levels > 1:
        for _ in range(2):
            step = [0.55 * (b - a) + draw.number(-22, 22) for a, b in zip(start, end, strict=True)]
            tip = (end[0] + step[0], end[1] + step[1], end[2] + step[2])
            parts += _branches(draw, end, tip, 0.62 * radius, levels - 1, hu)
    return parts
