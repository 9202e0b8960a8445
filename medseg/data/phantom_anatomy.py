"""Anatomy of the phantom: one random patient as a list of parts, painted from the skin inward.

Body frame: x to the patient's right, y to anterior, z to superior, in mm of a standard trunk of 270 x 200 mm; a patient
is that trunk shifted, stretched and warped by smooth noise.

Drawn for segmentation to need context: muscle, spleen, heart, stomach, bowel and collapsed lung have the liver's HU and
touch it; nodes, bowel loops, lung nodules and lesions of the spleen look like liver tumors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medseg.data.phantom_painting import Canvas, Hu, Part, SmoothNoise, VoxelGrid, paint
from medseg.data.phantom_shapes import (
    FLAT,
    Blend,
    Cut,
    Ellipsoid,
    Floats,
    Millimeters,
    Points,
    Rough,
    Shape,
    Tube,
)


@dataclass(frozen=True)
class Patient:
    """One patient: parts to paint in order, and how the trunk they are drawn in lies in the patient.

    Attributes:
        parts: organs, from the skin inward.
        liver_hu: CT value of the liver in each phase.
        scale: stretch of the trunk along x, y, z.
        shift: where the trunk's center lies, in mm.
        warps: noise that bends the trunk along x, y, z, times `warp_mm`.
        warp_mm: standard deviation of that bending.
        coarse: noise 25 mm wide, for surfaces.
        fine: noise 9 mm wide, for textures and lesions.
        drift: noise 120 mm wide, for the scanner.
    """

    parts: list[Part]
    liver_hu: Hu
    scale: Millimeters
    shift: Millimeters
    warps: list[SmoothNoise]
    warp_mm: float
    coarse: SmoothNoise
    fine: SmoothNoise
    drift: SmoothNoise


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


def paint_organs(patient: Patient, grid: VoxelGrid, phase: int) -> Canvas:
    """HU and label of the patient on a grid, without lesions and noise."""
    axes = grid.axes()
    coarse, fine = patient.coarse.on(axes), patient.fine.on(axes)
    plain = [axis.reshape([-1 if i == k else 1 for k in range(3)]) for i, axis in enumerate(axes)]
    body_axes = [(axis - shift) / scale for axis, shift, scale in zip(axes, patient.shift, patient.scale, strict=True)]
    body = [
        axis.reshape([-1 if i == k else 1 for k in range(3)]) + patient.warp_mm * warp.on(axes)
        for i, (axis, warp) in enumerate(zip(body_axes, patient.warps, strict=True))
    ]
    full = [np.broadcast_to(axis, grid.shape) for axis in plain]
    canvas = Canvas(
        np.full(grid.shape, -1000, np.float32),
        np.zeros(grid.shape, np.uint8),
        Points(body[0], body[1], body[2], coarse, fine),
        Points(full[0], full[1], full[2], coarse, fine),
        list(zip(body_axes, axes, strict=True)),
    )
    paint(canvas, patient.parts, grid, phase)
    return canvas


def draw_patient(rng: np.random.Generator, liver_level: float) -> Patient:
    """A random patient; `liver_level` 0 is a fatty, dark liver, 1 the brightest healthy one."""
    draw = _Draw(rng)
    levels, fatty_to_healthy_hu = (0.0, 0.4, 0.4, 1.0), (58, 78, 104, 140)  # two kinds: no one window holds both
    liver_hu = (float(np.interp(liver_level, levels, fatty_to_healthy_hu)), draw.number(55, 80))
    return Patient(
        parts=_anatomy(draw, liver_hu),
        liver_hu=liver_hu,
        scale=(draw.number(0.94, 1.05), draw.number(0.92, 1.08), draw.number(0.94, 1.08)),
        shift=(draw.number(-5, 5), draw.number(-5, 5), draw.number(-12, 12)),
        warps=[SmoothNoise.draw(rng, 60) for _ in range(3)],
        warp_mm=4.5,
        coarse=SmoothNoise.draw(rng, 25),
        fine=SmoothNoise.draw(rng, 9),
        drift=SmoothNoise.draw(rng, 120),
    )


@dataclass(frozen=True)
class _Trunk:
    """The shapes that the others are fitted into."""

    skin: Shape
    wall: Shape
    cavity: Shape
    abdomen: Shape
    room: Shape  # below the diaphragm, inside of the wall, beside the spine
    muscle_hu: Hu


def _anatomy(draw: _Draw, liver_hu: Hu) -> list[Part]:
    trunk = _draw_trunk(draw, liver_hu)
    liver = _liver(draw, trunk)
    return [
        *_trunk_parts(draw, trunk),
        *_chest(draw, trunk),
        *_back(draw, trunk),
        *_bowel(draw, trunk),
        *_upper_organs(draw, trunk),
        Part(liver, liver_hu, label=1, texture=draw.number(2, 5)),
        *_vessels(draw, liver, liver_hu),
        Part(Cut(_gallbladder(draw), within=[trunk.cavity]), (draw.number(4, 18),) * 2, label=0),
    ]


def _draw_trunk(draw: _Draw, liver_hu: Hu) -> _Trunk:
    fat, muscle = draw.number(6, 16), draw.number(18, 25)
    inner = fat + muscle
    skin = Ellipsoid((0, 0, 0), (135, 100, FLAT))
    wall = Ellipsoid((0, -0.15 * fat, 0), (135 - fat, 100 - fat, FLAT))
    cavity = Ellipsoid((0, 0.15 * muscle, 0), (135 - inner, 100 - inner, FLAT))
    right = draw.number(62, 80)
    domes = [
        Ellipsoid((60, -5, right - 95), (80, 90, 95)),
        Ellipsoid((-55, -5, right - 105), (80, 90, draw.number(88, 98))),
        Ellipsoid((0, 0, -500), (FLAT, FLAT, 480)),
    ]
    muscle_hu = 20 + 0.46 * liver_hu[0] + draw.number(-8, 8)  # both take up contrast: near, whatever the timing
    abdomen = Blend(domes, 25)
    column = Ellipsoid((0, -55, 0), (27, 24, FLAT))
    room = Cut(cavity, within=[abdomen], without=[column])
    return _Trunk(skin, wall, cavity, abdomen, room, (muscle_hu, muscle_hu - 4))


def _trunk_parts(draw: _Draw, trunk: _Trunk) -> list[Part]:
    fat = (draw.number(-112, -92),) * 2
    return [
        Part(trunk.skin, (20, 20)),
        Part(trunk.skin, fat, grow=-3, texture=6),
        Part(trunk.wall, trunk.muscle_hu, texture=5),
        Part(trunk.cavity, fat, texture=10),
        Part(_Ribs(trunk.wall, draw.number(-75, -45)), (draw.number(240, 360),) * 2, texture=30),
    ]


def _back(draw: _Draw, trunk: _Trunk) -> list[Part]:
    marrow = (draw.number(95, 190),) * 2
    sides: list[Shape] = [Ellipsoid((side * 42, -62, 0), (48, 27, FLAT)) for side in (-1, 1)]
    sides += [Tube([(side * 26, -42, -10), (side * 42, -34, -150)], [12, 30]) for side in (-1, 1)]
    spine: list[Part] = []
    offset = draw.number(0, 30)
    for level in range(-5, 6):
        z = offset + 30 * level
        slab = Ellipsoid((0, 0, z), (FLAT, FLAT, 12.5))
        body = Cut(Ellipsoid((0, -48, z), (22, 18, FLAT)), within=[slab])
        spine += [Part(body, (430, 430)), Part(body, marrow, grow=-3, texture=20)]
        spine.append(Part(Ellipsoid((0, -86, z - 8), (4, 12, 9)), (380, 380)))
    return [
        *(Part(Cut(shape, within=[trunk.wall]), trunk.muscle_hu, texture=6) for shape in sides),
        Part(Ellipsoid((0, -48, 0), (21, 17, FLAT)), (85, 85)),
        *spine,
        Part(Ellipsoid((0, -72, 0), (9, 7, FLAT)), (25, 25)),
    ]


def _chest(draw: _Draw, trunk: _Trunk) -> list[Part]:
    slab = Ellipsoid((0, 0, 500), (FLAT, FLAT, 560))  # no lung below z = -60
    middle = Ellipsoid((-5, -10, 0), (26, 60, FLAT))
    lungs = Cut(Cut(trunk.cavity, within=[slab]), without=[trunk.abdomen, middle], gap=2)
    heart = Ellipsoid(draw.near(-20, 24, 99), draw.radii(56, 42, 48), (0, 15, 25))
    blood = draw.number(105, 140)
    nodules = []
    for _ in range(draw.count(4, 9)):  # as large as liver tumors, and of their HU
        spot = (draw.number(-95, 95), draw.number(-45, 45), draw.number(50, 130))
        nodule = Cut(Ellipsoid(spot, draw.radii(11, 11, 11, 0.35)), within=[lungs], gap=3)
        nodules.append(Part(nodule, (draw.pick([(40, 95), (40, 95), (130, 180)]),) * 2, texture=4))
    collapsed = [
        Cut(Rough(Ellipsoid(draw.near(side * 62, -52, 45), draw.radii(50, 34, 44, 0.3)), 4), within=[lungs])
        for side in (-1, 1)
        if draw.chance(0.6)
    ]
    return [
        Part(lungs, (draw.number(-880, -800),) * 2, texture=25),
        *nodules,
        *(Part(lung, (draw.number(70, 125),) * 2, texture=6) for lung in collapsed),
        Part(Cut(trunk.abdomen, within=[trunk.cavity]), trunk.muscle_hu, grow=3),
        Part(Cut(trunk.abdomen, within=[trunk.cavity]), (-98, -98), grow=-1, texture=8),
        Part(heart, (blood - 18, 100), texture=4),
        Part(heart, (blood, 190), grow=-10, texture=4),
    ]


def _bowel(draw: _Draw, trunk: _Trunk) -> list[Part]:
    parts: list[Part] = []
    for _ in range(52):
        start = draw.near(0, 22, -80, 1)
        start = (start[0] + draw.number(-75, 75), start[1] + draw.number(-35, 40), start[2] + draw.number(-55, 45))
        end = draw.near(*start, mm=32)
        loop = Cut(Tube([start, end], [draw.number(12, 18)] * 2), within=[trunk.cavity], gap=1)
        wall = draw.number(95, 140)
        content = draw.pick([(20, 90), (20, 90), (20, 90), (80, 135), (140, 185), (-800, -600)])
        parts += [Part(loop, (wall, wall + 10)), Part(loop, (content, content), grow=-4.5, texture=8)]
    for _ in range(14):  # nodes and collapsed loops: as dark or bright as tumors, and as large
        spot = (draw.number(-80, 80), draw.number(-40, 70), draw.number(-130, 10))
        node = Cut(Ellipsoid(spot, draw.radii(11, 11, 11, 0.4)), within=[trunk.room], gap=2)
        parts.append(Part(node, (draw.pick([(35, 90), (35, 90), (130, 180)]),) * 2, texture=4))
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
        piece = Cut(Rough(Tube(ends, [draw.number(17, 23)] * 2), 3), within=[trunk.cavity], gap=1)
        content = draw.number(10, 70) if draw.chance(0.65) else -800
        parts += [Part(piece, (draw.number(60, 95),) * 2), Part(piece, (content, content), grow=-3, texture=22)]
    return parts


def _upper_organs(draw: _Draw, trunk: _Trunk) -> list[Part]:
    pancreas = [draw.near(*p, mm=4) for p in [(34, 8, -30), (20, 18, -12), (-15, 14, -2), (-45, -5, 8), (-68, -18, 14)]]
    gland = Cut(Rough(Tube(pancreas, [15, 11, 10, 10, 8]), 2), within=[trunk.room])
    gland_hu = draw.number(70, 110)
    return [
        *_spleen(draw, trunk),
        *_kidneys(draw, trunk),
        Part(gland, (gland_hu, gland_hu + 25), texture=7),
        *_stomach(draw, trunk),
    ]


def _spleen(draw: _Draw, trunk: _Trunk) -> list[Part]:
    center, radii = draw.near(-80, -34, 22), draw.radii(34, 48, 50, 0.2)
    spleen = Cut(Rough(Ellipsoid(center, radii, (0, 15, 25)), 2), within=[trunk.room], gap=1)
    parts = [Part(spleen, (draw.number(95, 132), draw.number(100, 150)), texture=4)]
    for _ in range(draw.count(0, 4)):  # lesions like those of the liver, in the wrong organ
        lesion = Cut(Ellipsoid(draw.near(*center, mm=28), draw.radii(11, 11, 11, 0.35)), within=[spleen], gap=4)
        parts.append(Part(lesion, (draw.number(40, 88),) * 2, texture=4))
    return parts


def _kidneys(draw: _Draw, trunk: _Trunk) -> list[Part]:
    parts: list[Part] = []
    cortex = draw.number(125, 175)
    medulla = cortex - draw.number(30, 75)
    for side in (-1, 1):
        x, y, z = draw.near(side * 56, -46, -32 - 6 * side)
        kidney = Cut(Ellipsoid((x, y, z), draw.radii(27, 24, 50), (8, -8 * side, 0)), within=[trunk.room])
        parts.append(Part(kidney, (cortex, cortex + 30), texture=6))
        for level in (-34, -17, 0, 17, 34):
            pyramid = Ellipsoid((x + draw.number(-4, 4), y + draw.number(-4, 4), z + level), draw.radii(11, 10, 8, 0.2))
            parts.append(Part(Cut(pyramid, within=[kidney], gap=5), (medulla, medulla + 20), texture=4))
        parts.append(Part(Ellipsoid((x - side * 16, y + 6, z), (11, 8, 18)), (-60, -60)))
        if draw.chance(0.4):
            cyst = (x + side * 12, y + draw.number(-12, 12), z + draw.number(-35, 35))
            parts.append(Part(Ellipsoid(cyst, (draw.number(6, 15),) * 3), (9, 9)))
    return parts


def _stomach(draw: _Draw, trunk: _Trunk) -> list[Part]:
    fundus = Ellipsoid(draw.near(-58, 8, 34), draw.radii(34, 38, 36, 0.15))
    course = [draw.near(*point) for point in [(-56, 25, 20), (-46, 46, -15), (-8, 52, -28), (24, 40, -22)]]
    stomach = Cut(Blend([fundus, Tube(course, [26, 25, 19, 13])], 12), within=[trunk.room], gap=1)
    gas = Cut(stomach, within=[Ellipsoid((0, 500 + draw.number(45, 62), 0), (FLAT, 500, FLAT))])
    wall, content = draw.number(65, 105), draw.number(130, 165) if draw.chance(0.25) else draw.number(20, 130)
    parts = [
        Part(stomach, (wall, wall + 10), texture=3),
        Part(stomach, (content, content), grow=-draw.number(4, 6), texture=draw.number(4, 10)),
    ]
    for spot in course[:2] * 2:  # food
        food = Cut(Ellipsoid(draw.near(*spot, mm=12), draw.radii(11, 11, 11, 0.3)), within=[stomach], gap=7)
        parts.append(Part(food, (draw.number(30, 95),) * 2, texture=8))
    return [*parts, Part(gas, (-900, -900), grow=-5)]


def _liver(draw: _Draw, trunk: _Trunk) -> Shape:
    right = Ellipsoid(draw.near(62, -4, 4, 7), draw.radii(70, 84, 80), (0, draw.number(-12, 12), draw.number(-15, 15)))
    left = Ellipsoid(
        draw.near(2, 38, 26, 7), draw.radii(70, 37, 36, 0.2), (0, draw.number(-15, 10), draw.number(-10, 15))
    )
    tip = Ellipsoid(draw.near(80, 2, -38, 6), draw.radii(26, 42, 46, 0.25))
    caudate = Ellipsoid(draw.near(20, 0, 22, 4), draw.radii(20, 16, 26))
    hollow = Ellipsoid(draw.near(8, 0, -58, 8), draw.radii(52, 60, 56))
    lobes = Rough(Blend([right, left, tip, caudate], 14), draw.number(2, 4))
    return Cut(Cut(lobes, without=[hollow]), within=[trunk.room], gap=0.5)


def _gallbladder(draw: _Draw) -> Shape:
    neck, end = draw.near(42, 22, -28, 5), draw.near(56, 44, -54, 6)
    return Tube([neck, end], [draw.number(6, 9), draw.number(11, 16)])


def _vessels(draw: _Draw, liver: Shape, liver_hu: Hu) -> list[Part]:
    aorta = Tube([(-8, -20, -200), (-10, -20, 20), (-16, -34, 150)], [9, 11, 12])
    cava = Tube([(20, -20, -200), (22, -14, 0), (20, -4, 50), (8, 8, 95)], [12, 13, 14, 14])
    bright = max(draw.number(125, 165), liver_hu[0] + 25)
    aorta_hu, cava_hu = (bright + draw.number(-5, 15), 290), (bright + draw.number(-25, 0), 70)
    veins_hu = (bright if draw.chance(0.7) else liver_hu[0] - draw.number(12, 25), liver_hu[1] - 10)
    portal_hu = (bright, liver_hu[1] + 15)
    hilum = draw.near(30, 10, 0, 5)
    portal = Tube([draw.near(4, 6, -34, 3), (14, 8, -18), hilum], [7, 7, 7.5])
    parts = [Part(aorta, aorta_hu, label=0), Part(cava, cava_hu, label=0), Part(portal, portal_hu)]
    for target in [(85, -10, 15), (70, 30, -5), (5, 42, 25)]:
        parts += _branches(draw, hilum, draw.near(*target, mm=12), draw.number(5, 6.5), 3, portal_hu)
    for target in [(100, -5, 30), (62, 30, 30), (-5, 40, 30)]:
        parts += _branches(draw, (20, -2, 52), draw.near(*target, mm=12), draw.number(4.5, 6), 2, veins_hu)
    return parts


def _branches(draw: _Draw, start: Millimeters, end: Millimeters, radius: float, levels: int, hu: Hu) -> list[Part]:
    """A vessel and, at its end, two thinner ones; outside of the liver (label 1) nothing is painted."""
    middle = tuple((a + b) / 2 + draw.number(-6, 6) for a, b in zip(start, end, strict=True))
    parts = [Part(Tube([start, middle, end], [radius, 0.85 * radius, 0.7 * radius]), hu, only_in=1)]  # type: ignore[list-item]
    if levels > 1:
        for _ in range(2):
            step = [0.55 * (b - a) + draw.number(-22, 22) for a, b in zip(start, end, strict=True)]
            tip = (end[0] + step[0], end[1] + step[1], end[2] + step[2])
            parts += _branches(draw, end, tip, 0.62 * radius, levels - 1, hu)
    return parts


@dataclass(frozen=True)
class _Ribs:
    """Slanted bars every 27 mm in the wall whose outer side is `wall`."""

    wall: Shape
    lowest: float

    def distance(self, at: Points) -> Floats:
        height = at.z - 0.35 * at.y + 0.1 * np.abs(at.x)
        bar = np.abs(np.mod(height, 27) - 13.5) - 5.5
        ring = np.abs(self.wall.distance(at) + 7) - 4
        return np.maximum.reduce([bar, ring, self.lowest - height, at.y - 62])

    def box(self) -> tuple[Millimeters, Millimeters]:
        return self.wall.box()
