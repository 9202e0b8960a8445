"""Charts of a comparison as SVG that a page holds: intervals, pairs, gains case by case, figures against cost.

What is better or worse is told by place and form too, not by color alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, LEFT, RIGHT = 420, 64, 14
ROW, TOP, BOTTOM = 26, 14, 40
BETTER, WORSE, INK, GRID = "#0b5cad", "#a3480b", "#1a1a1a", "#d5d5d5"
TICKS = 4


@dataclass(frozen=True)
class Axis:
    """Values `low` to `high` on pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values within, about four."""
        step = _round_step((self.high - self.low) / TICKS)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


def intervals(title: str, rows: Sequence[tuple[str, float, float | None, float | None, bool]]) -> Markup:
    """Mean gains with their intervals, one a line, and the line of no difference.

    Args:
        title: what it shows.
        rows: name, gain, lower and upper end of its interval, and whether it is significant (drawn filled).
    """
    left = 20 + 7.4 * max(len(row[0]) for row in rows)
    ends = [0.0, *(value for _, *values, _ in rows for value in values if value is not None)]
    x = _axis(ends, left, WIDTH - RIGHT)
    height = TOP + ROW * len(rows) + BOTTOM
    parts = [_x_ticks(x, TOP, height - BOTTOM), _line(x(0), TOP, x(0), height - BOTTOM, INK, 1.5)]
    for number, (name, gain, low, high, significant) in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        color = BETTER if gain >= 0 else WORSE
        if low is not None and high is not None:
            parts.append(_line(x(low), y, x(high), y, color, 2))
        fill = color if significant else "#fff"
        parts.append(_tag("circle", cx=x(gain), cy=y, r=5, fill=fill, stroke=color, stroke_width=2))
        parts.append(_text(left - 8, y + 4, name, anchor="end"))
    parts.append(_text(x.start, height - 8, "← worse"))
    parts.append(_text(x.end, height - 8, "better →", anchor="end"))
    return _svg(title, height, parts)


def pairs(title: str, points: Sequence[tuple[str, float, float]], *, names: tuple[str, str]) -> Markup:
    """Each case's first and second value, and the diagonal on which nothing changed.

    Args:
        title: what it shows.
        points: case id, first and second value.
        names: of the two axes.
    """
    values = [value for _, *both in points for value in both]
    x, height = _axis(values, LEFT, WIDTH - RIGHT), 360
    y = Axis(x.low, x.high, height - BOTTOM, TOP)
    parts = [_x_ticks(x, TOP, height - BOTTOM), _y_ticks(y, LEFT, WIDTH - RIGHT)]
    parts.append(_line(x(x.low), y(x.low), x(x.high), y(x.high), INK, 1))
    parts += [_dot(x(first), y(second), f"{case_id}: {first:.3f}, {second:.3f}") for case_id, first, second in points]
    parts += [_text((x.start + x.end) / 2, height - 6, names[0], anchor="middle"), _upright(y, names[1])]
    return _svg(title, height, parts)


def gains(title: str, changes: Sequence[tuple[str, float]]) -> Markup:
    """Gain of each case from the worst loss to the best gain, as bars below and above zero.

    Args:
        title: what it shows.
        changes: case id and gain.
    """
    ordered = sorted(changes, key=_second)
    height = 240
    y = _axis([0.0, *(gain for _, gain in ordered)], height - BOTTOM, TOP)
    step = (WIDTH - RIGHT - LEFT) / len(ordered)
    parts = [_y_ticks(y, LEFT, WIDTH - RIGHT)]
    for number, (case_id, gain) in enumerate(ordered):
        top, bottom = sorted((y(gain), y(0)))
        shape = {"x": round(LEFT + number * step, 2), "y": top, "width": round(max(step * 0.85, 0.4), 2)}
        bar = _tag(
            "rect",
            f"<title>{escape(case_id)}: {gain:+.3f}</title>",
            **shape,
            height=round(bottom - top, 1),
            fill=BETTER if gain >= 0 else WORSE,
        )
        parts.append(bar)
    parts.append(_line(LEFT, y(0), WIDTH - RIGHT, y(0), INK, 1))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 12, "cases, from loss to gain", anchor="middle"))
    parts.append(_upright(y, "gain"))
    return _svg(title, height, parts)


def cost(title: str, points: Sequence[tuple[str, float, float]], *, names: tuple[str, str]) -> Markup:
    """A figure against what it costs, a lettered point an entry.

    Args:
        title: what it shows.
        points: letter, cost, figure.
        names: of the two axes.
    """
    height = 260
    x = _axis([0.0, *(across for _, across, _ in points)], LEFT, WIDTH - RIGHT)
    y = _axis([figure for *_, figure in points], height - BOTTOM, TOP)
    parts = [_x_ticks(x, TOP, height - BOTTOM), _y_ticks(y, LEFT, WIDTH - RIGHT)]
    for letter, across, figure in points:
        parts.append(_dot(x(across), y(figure), f"{letter}: {across:g}, {figure:.3f}"))
        parts.append(_text(x(across) - 8, y(figure) - 8, letter, anchor="end"))
    parts += [_text((x.start + x.end) / 2, height - 6, names[0], anchor="middle"), _upright(y, names[1])]
    return _svg(title, height, parts)


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 0.05
    if low == high:
        return Axis(low - margin, high + margin, start, end)
    return Axis(low - margin if low else low, high + margin if high else high, start, end)


def _round_step(about: float) -> float:
    power = 10.0 ** math.floor(math.log10(about))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= about * 0.999)


def _x_ticks(x: Axis, top: float, bottom: float) -> Markup:
    return Markup("").join(
        _line(x(value), top, x(value), bottom, GRID, 1) + _text(x(value), bottom + 15, _tick(value), anchor="middle")
        for value in x.ticks()
    )


def _y_ticks(y: Axis, left: float, right: float) -> Markup:
    return Markup("").join(
        _line(left, y(value), right, y(value), GRID, 1) + _text(left - 5, y(value) + 4, _tick(value), anchor="end")
        for value in y.ticks()
    )


def _tick(value: float) -> str:
    return f"{value / 1e6:g} million" if abs(value) >= 1e6 else f"{value:g}"


def _dot(x: float, y: float, said: str) -> Markup:
    return _tag("circle", f"<title>{escape(said)}</title>", cx=x, cy=y, r=4, fill=BETTER, fill_opacity=0.6, stroke=INK)


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float) -> Markup:
    return _tag("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=color, stroke_width=width)


def _upright(y: Axis, text: str) -> Markup:
    middle = (y.start + y.end) / 2
    return _tag("text", str(escape(text)), x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle})")


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> Markup:
    return _tag("text", str(escape(text)), x=round(x, 1), y=round(y, 1), text_anchor=anchor)


def _tag(name: str, inside: str = "", **attributes: float | str) -> Markup:
    written = " ".join(f'{key.replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name} {written}>{inside}</{name}>")


def _svg(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    said = escape(title)
    body = Markup("").join(parts)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{said}" font-size="12"><title>{said}</title>'
        f"{body}</svg>"
    )


def _second(change: tuple[str, float]) -> float:
    return change[1]
