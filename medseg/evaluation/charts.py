"""Charts as numbers: points, bars, lines and ticks in the pixels of an SVG, which the page's template draws."""

import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 40
NAMES_WIDTH = 56  # to the right of the frame, for the names of levels
TICKS = 5
LETTER_HEIGHT = 11

Chart = dict[str, Any]


def chart(
    title: str,
    x_title: str,
    y_title: str,
    *,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    points: Sequence[tuple[float, float, str]] = (),
    line: Sequence[tuple[float, float]] = (),
    levels: Sequence[tuple[float, str]] = (),
    diagonal: bool = False,
) -> Chart:
    """A chart of points, a line, horizontal levels with names, and perhaps the diagonal.

    Args:
        title: what it shows, in a sentence, for those who cannot see it too.
        x_title: of the axis, with its unit.
        y_title: of the axis, with its unit.
        x_range: shown.
        y_range: shown.
        points: x, y and a name.
        line: its corners.
        levels: y and its name.
        diagonal: draw y = x.
    """
    x_ticks, y_ticks = ticks(*x_range), ticks(*y_range)
    x_range = (min(x_range[0], x_ticks[0]), max(x_range[1], x_ticks[-1]))
    y_range = (min(y_range[0], y_ticks[0]), max(y_range[1], y_ticks[-1]))
    x0, x1, y0, y1 = LEFT, WIDTH - (NAMES_WIDTH if levels else RIGHT), HEIGHT - BOTTOM, TOP

    def across(value: float) -> float:
        return round(x0 + (value - x_range[0]) / (x_range[1] - x_range[0]) * (x1 - x0), 1)

    def up(value: float) -> float:
        return round(y0 + (value - y_range[0]) / (y_range[1] - y_range[0]) * (y1 - y0), 1)

    named: list[tuple[float, str]] = []
    for y, name in levels:  # names on top of each other say nothing
        apart = all(abs(up(y) - other) >= LETTER_HEIGHT for other, _ in named)
        named.append((up(y), name if apart else ""))
    lowest, highest = max(x_range[0], y_range[0]), min(x_range[1], y_range[1])
    return {
        "title": title,
        "x_title": x_title,
        "y_title": y_title,
        "width": WIDTH,
        "height": HEIGHT,
        "frame": {"x0": x0, "x1": x1, "y0": y0, "y1": y1},
        "x_ticks": [(across(value), f"{value:g}") for value in x_ticks],
        "y_ticks": [(up(value), f"{value:g}") for value in y_ticks],
        "points": [(across(x), up(y), name) for x, y, name in points],
        "line": " ".join(f"{across(x)},{up(y)}" for x, y in line),
        "levels": named,
        "diagonal": (across(lowest), up(lowest), across(highest), up(highest)) if diagonal else None,
        "bars": [],
    }


def bars(title: str, y_title: str, heights: Sequence[tuple[str, float | None, str]]) -> Chart:
    """A chart of shares from 0 to 1, a bar a name.

    Args:
        title: what it shows.
        y_title: of the axis.
        heights: name, height (None for no bar) and what is written above.
    """
    drawn = chart(title, "", y_title, x_range=(0, len(heights) or 1), y_range=(0, 1))
    frame = drawn["frame"]
    step = (frame["x1"] - frame["x0"]) / max(1, len(heights))
    drawn["x_ticks"] = [(round(frame["x0"] + step * (i + 0.5), 1), name) for i, (name, _, _) in enumerate(heights)]
    for number, (_, height, text) in enumerate(heights):
        top = frame["y0"] - (height or 0) * (frame["y0"] - frame["y1"])
        drawn["bars"].append(
            {
                "x": round(frame["x0"] + step * (number + 0.2), 1),
                "y": round(top, 1),
                "width": round(step * 0.6, 1),
                "height": round(frame["y0"] - top, 1),
                "text": text,
            }
        )
    return drawn


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about five.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(-3, 18)
    [-5, 0, 5, 10, 15, 20]
    """
    span = max(high - low, 1e-9)
    power = 10 ** math.floor(math.log10(span / TICKS))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * TICKS >= span * 0.99)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def bland_altman(name: str, unit: str, pairs: Sequence[tuple[str, float, float]], limits: dict[str, Any]) -> Chart:
    """Difference over mean of two measurements, with bias and limits of agreement.

    Args:
        name: what was measured.
        unit: of the measurements.
        pairs: case id, prediction, reference.
        limits: as of `medseg.metrics.agreement`.

    Reference:
        Bland and Altman, Lancet 1986.
    """
    points = [((pred + reference) / 2, pred - reference, case_id) for case_id, pred, reference in pairs]
    levels = [(limits[key], said) for key, said in LEVELS if limits.get(key) is not None]
    ys = [y for _, y, _ in points] + [y for y, _ in levels]
    return chart(
        f"{name}: difference of prediction and reference over their mean, {unit}",
        f"mean of both, {unit}",
        f"prediction - reference, {unit}",
        x_range=_around([x for x, _, _ in points]),
        y_range=_around([*ys, 0.0]),
        points=points,
        levels=levels,
    )


LEVELS = (("bias", "bias"), ("limit_high", "+1.96 SD"), ("limit_low", "-1.96 SD"))


def _around(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin
