"""Offline pages of a folder of results: one list of all cases, and one page a case that prints on A4.

Pages hold everything they show (no file beside them, nothing from elsewhere), so they work from a file share.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from medseg.geometry import Box
from medseg.notices import SYNTHETIC, notice
from medseg.regions import LabelFacts, Lesions
from medseg.report.views import (
    ACROSS,
    UPRIGHT,
    Plane,
    Scene,
    around,
    as_data_uri,
    box_to_patient,
    css_colors,
    montage,
    own_window,
    picture,
    to_patient,
)
from medseg.writing import aside

Row = Mapping[str, Any]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
MOST_LESIONS = 15  # of a case's table, so that a page stays one sheet; lesions.csv has all
MOST_LETTERS = 300  # of a text in the list
BODY = "<main>\n"  # of a case's page
EDITED = (
    '<section class="box flag" aria-label="Edited"><strong>The mask was edited since this page was written.</strong> '
    "Numbers and pictures here, and the case's other files, are of the mask before; nothing is measured anew."
    "</section>\n"
)
LESION_TITLES = {
    "volume_ml": ("Volume, mL", 2),
    "longest_in_plane_diameter_mm": ("Longest in-plane, mm", 1),
    "longest_3d_diameter_mm": ("Longest 3D, mm", 1),
    "mean_hu": ("Mean HU", 0),
    "mean_probability": ("Mean probability", 2),
    "location": ("Where", 0),
    "area_px": ("Area, pixels", 0),
    "longest_diameter_px": ("Longest, pixels", 1),
}


@dataclass(frozen=True)
class About:
    """What all pages of a folder share.

    Attributes:
        model: name and version.
        precision: of the network, such as "float32".
        synthetic: whether the model has learned from synthetic data alone.
        regions: name -> label values.
        lesion_region: the region whose pieces are the lesions, if there is one.
        unit: "mm", or "px" for 2D images.
        window: intensities shown as black and white; each case's own range if None.
    """

    model: str
    precision: str
    synthetic: bool
    regions: Mapping[str, Sequence[int]]
    lesion_region: str | None = None
    unit: Literal["mm", "px"] = "mm"
    window: tuple[float, float] | None = None

    @property
    def notice(self) -> str:
        """The words that stand on every page."""
        return notice(synthetic=self.synthetic)


@dataclass(frozen=True)
class Drawn:
    """Pictures of a case, as text that a page holds.

    Attributes:
        views: one a plane: `uri`, `alt`, `caption`.
        montage: slices through the regions; empty if there are none.
    """

    views: tuple[Mapping[str, str], ...]
    montage: str = ""


def draw_case(
    image: NDArray[np.generic],
    label: NDArray[np.integer] | LabelFacts,
    affine: NDArray[np.float64],
    about: About,
    *,
    lesions: Lesions | None = None,
) -> Drawn:
    """Pictures through the largest lesion, else through the middle of the first region, else of the scan.

    Args:
        image: intensities `(X, Y, Z)`.
        label: the mask on the same grid, or its facts where they are known.
        affine: `(4, 4)`, voxel index to RAS mm.
        about: names and colors of regions.
        lesions: lesions on the same grid.

    Raises:
        ValueError: if the mask is of another shape.
    """
    facts = LabelFacts.of(label)
    if facts.label.shape != image.shape[:3]:
        raise ValueError(f"the image is {image.shape} voxels, the label {facts.label.shape}; give both on one grid")
    if about.unit == "px":
        affine = UPRIGHT
    shown = to_patient(image, affine)
    numbers = None
    if lesions is not None and lesions.sizes:
        numbers = to_patient(lesions.numbers, affine, box=lesions.box, shape=lesions.shape)
    window = about.window or own_window(image)
    scene = Scene(shown, window, to_patient(facts.label, affine), about.regions, numbers)
    if about.unit == "px":
        flat = picture(scene, "axial", 0, marks=False, size=640)
        return Drawn(({"uri": as_data_uri(flat), "alt": "The image with contours", "caption": ""},))
    center, through = _center(facts, affine, about, lesions)
    views = []
    for plane in PLANES:
        view = picture(scene, plane, center[ACROSS[plane]])
        views.append(
            {
                "uri": as_data_uri(view),
                "alt": f"{plane} slice through {through} with contours of {', '.join(about.regions)}",
                "caption": f"{plane}, through {through}",
            }
        )
    everything = facts.box([value for values in about.regions.values() for value in values])
    if everything is None:
        return Drawn(tuple(views))
    box = around(box_to_patient(everything, facts.label.shape, affine), shown.voxels.shape, shown.spacing_mm)
    return Drawn(tuple(views), as_data_uri(montage(scene, box)))


def write_case_page(path: Path, about: About, row: Row, lesions: Sequence[Row], drawn: Drawn) -> None:
    """Write a case's page, whole or not at all.

    Args:
        path: `OUT/cases/<case_id>.html`.
        about: what all pages share.
        row: the case's row of the report; `flags`, `warnings` and `notes` may be lists of sentences.
        lesions: its rows of lesions.csv, in the order of their numbers.
        drawn: its pictures.
    """
    columns = [name for name in LESION_TITLES if any(lesion.get(name) is not None for lesion in lesions)]
    shown = [
        {"number": lesion["lesion"], "cells": [_shown(lesion.get(name), LESION_TITLES[name][1]) for name in columns]}
        for lesion in lesions[:MOST_LESIONS]
    ]
    volumes = _volumes(about, row)
    page = page_template("case.html.j2").render(
        style=Markup(page_style()),
        case_id=row["case_id"],
        index_link="../" * (str(row["case_id"]).count("/") + 1) + "index.html",
        notice=about.notice,
        synthetic=about.synthetic,
        synthetic_notice=SYNTHETIC,
        model=about.model,
        precision=about.precision,
        unit=about.unit,
        flags=_sentences(row.get("flags")),
        warnings=_sentences(row.get("warnings")),
        notes=_sentences(row.get("notes")),
        volumes=volumes,
        doubts=[key for key in ("confidence", "agreement") if any(each[key] for each in volumes)],
        lesion_region=about.lesion_region,
        lesions=lesions,
        shown_lesions=shown,
        lesion_columns=[{"title": LESION_TITLES[name][0]} for name in columns],
        views=drawn.views,
        montage=drawn.montage,
        region_names=", ".join(about.regions),
    )
    with aside(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def write_index(path: Path, about: About, rows: Sequence[Row], *, running: bool = False) -> None:
    """Write the list of all cases: to search, filter and sort, failed and flagged ones first.

    Args:
        path: `OUT/index.html`.
        about: what all pages share.
        rows: of the report.
        running: whether more is to come.
    """
    size = "ml" if about.unit == "mm" else "px"
    numbers = [f"{region}_{size}" for region in about.regions]
    titles = [f"{region}, {'mL' if size == 'ml' else 'pixels'}" for region in about.regions]
    if about.lesion_region:
        numbers += ["lesion_count", f"longest_diameter_{about.unit}"]
        titles += ["lesions", f"longest, {about.unit}"]
    listed = [_index_row(row, numbers) for row in rows]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    flagged = sum(bool(row.get("flags")) for row in rows)
    said = [f"{number} {status}" for status, number in counts.items()] + [f"{flagged} to look at"]
    kinds = ["case", "text", "text", "text", *["number"] * len(numbers)]
    columns = [("case", False), ("status", False), ("please look", False), ("message", False)]
    columns += [(title, True) for title in titles]
    page = page_template("index.html.j2").render(
        style=Markup(page_style()),
        counts=", ".join(said),
        notice=about.notice,
        model=about.model,
        precision=about.precision,
        running=running,
        statuses=sorted(counts),
        columns=[{"title": title, "number": number} for title, number in columns],
        rows=_json(listed),
        column_kinds=_json(kinds),
        decimals=_json([0] * 4 + [0 if name == "lesion_count" or size == "px" else 1 for name in numbers]),
        sizes=_json([False] * 4 + [place < len(about.regions) for place in range(len(numbers))]),
    )
    with aside(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def mark_edited(path: Path) -> None:
    """Say on a case's page, if there is one, that it shows the mask as it was before a person edited it."""
    if not path.is_file():
        return
    page = path.read_text(encoding="utf-8")
    if EDITED not in page:
        with aside(path) as temporary:
            temporary.write_text(page.replace(BODY, BODY + EDITED, 1), encoding="utf-8")


def page_path(out: Path, case_id: str) -> Path:
    """Where a case's page lies."""
    return out.joinpath("cases", *f"{case_id}.html".split("/"))


def _index_row(row: Row, numbers: Sequence[str]) -> list[Any]:
    message = row.get("message") or row.get("warnings") or ""
    has_page = row["status"] in ("done", "edited")
    link = f"cases/{quote(str(row['case_id']))}.html" if has_page else ""
    texts = [row["case_id"], row["status"], _cut(row.get("flags") or ""), _cut(message)]
    return [*texts, *(_number(row.get(name)) for name in numbers), link]


def _number(value: Any) -> float | str:
    if value is None or value == "" or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    return round(float(value), 3)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"


def _volumes(about: About, row: Row) -> list[dict[str, str]]:
    """The case's volumes with their colors: the regions, and each organ without its lesions."""
    size = "px" if about.unit == "px" else "ml"
    colors = css_colors(list(about.regions))
    shown = []
    for name in [key.removesuffix(f"_{size}") for key in row if key.endswith(f"_{size}")]:
        value = row[f"{name}_{size}"]
        words = "none found" if not value else "< 0.1" if 0 < value < 0.05 else _shown(value, 0 if size == "px" else 1)
        doubts = {key: _shown(row.get(f"{name}_{key}"), 2) for key in ("confidence", "agreement")}
        shown.append({"name": name.replace("_", " "), "color": colors.get(name, ""), "shown": words, **doubts})
    return shown


def _center(
    facts: LabelFacts, affine: NDArray[np.float64], about: About, lesions: Lesions | None
) -> tuple[list[int], str]:
    """Voxel that the pictures cut through, in the patient's axes, and what it is the middle of."""
    shape = facts.label.shape
    if lesions is not None and lesions.sizes:
        within = lesions.boxes[0]
        sides = zip(lesions.box, within, strict=True)
        around_it = tuple(slice(side.start + part.start, side.start + part.stop) for side, part in sides)
        return _middle(lesions.numbers[within] == 1, around_it, shape, affine), "lesion 1"
    for name, values in about.regions.items():
        box = facts.box(values)
        if box is not None:
            return _middle(facts.mask(values, box), box, shape, affine), name
    return [length // 2 for length in to_patient(facts.label, affine).voxels.shape], "the middle of the scan"


def _middle(mask: NDArray[np.bool_], box: Box, shape: Sequence[int], affine: NDArray[np.float64]) -> list[int]:
    """The voxel of a mask, known in its box, that is nearest to the middle of all: inside, also of a curved one."""
    turned = to_patient(mask, affine).voxels
    start = np.array([side.start for side in box_to_patient(box, shape, affine)])
    counts = [turned.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    middle = np.array(
        [each @ (np.arange(len(each)) + first) / each.sum() for each, first in zip(counts, start, strict=True)]
    )
    reach = 2
    while True:  # all voxels nearer than `reach` are looked at, so the nearest of them is the nearest of all
        low = np.maximum(np.floor(middle).astype(int) - start - reach, 0)
        stop = np.floor(middle).astype(int) - start + reach + 2
        places = np.argwhere(turned[tuple(map(slice, low, stop))]) + low + start
        away = np.abs(places - middle).sum(axis=1)
        if len(places) and away.min() <= reach:
            nearest: list[int] = places[away.argmin()].tolist()
            return nearest
        reach *= 2


def _shown(value: Any, decimals: int) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.{decimals}f}"


def _sentences(said: Any) -> list[str]:
    """Sentences of a row: given one by one, or joined as a table has them."""
    if isinstance(said, str):
        return [part for part in said.split("; ") if part]
    return list(said or ())


def _json(content: Any) -> Markup:
    """JSON that may stand inside a script element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


@cache
def page_style() -> str:
    """What every page looks like, as CSS."""
    return files("medseg.report").joinpath("templates", "style.css").read_text(encoding="utf-8")


@cache
def page_template(name: str) -> jinja2.Template:
    """A page's template; what is put into it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medseg.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(name)
