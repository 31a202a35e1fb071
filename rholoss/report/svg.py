"""Charts as inline SVG, in colours of the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 420, 260  # units, about pixels
RIGHT, TOP, BOTTOM = 12, 10, 42  # margins
COLOURS = 7  # in the style; the last is gray


def colour(i: int) -> str:
    """The i-th colour of the style, in a circle."""
    return f"var(--c{i % (COLOURS - 1)})"


GRAY, FILL = f"var(--c{COLOURS - 1})", "var(--fill)"


@dataclass(frozen=True)
class Scale:
    """The numbers from one end of an axis to the other, ``low`` and ``high``; ``low`` is the higher where they descend."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value is, 0 for ``low`` and 1 for ``high``."""
        low, high, value = (math.log(max(each, 1e-300)) if self.log else each for each in (self.low, self.high, value))
        return (value - low) / (high - low) if high != low else 0.5

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers to name, at least one of them."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if len(decades) > 4 else (1, 2, 5)
            found = [step * 10.0**decade for decade in decades for step in steps]
        else:
            rough = (self.high - self.low) / most or 1.0
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next(step * unit for step in (1, 2, 2.5, 5, 10) if step * unit >= rough * 0.999)
            found = [i * step for i in range(math.floor(self.low / step), math.ceil(self.high / step) + 1)]
        edge = 1e-9 * abs(self.high)
        inside = [each for each in found if self.low - edge <= each <= self.high + edge]
        return inside if inside or not self.log else Scale(self.low, self.high).ticks(most)


@dataclass
class Chart:
    """A chart with two axes.

    Attributes:
        title: above it.
        x: horizontal scale.
        y: vertical scale.
        xlabel: what is along the horizontal axis.
        ylabel: what is along the vertical axis.
        xnames: names to write at places along the horizontal axis instead of numbers.
        ynames: likewise, along the vertical axis.
        height: in units.
        left: the margin for the names along the vertical axis, in units.
    """

    title: str
    x: Scale
    y: Scale
    xlabel: str = ""
    ylabel: str = ""
    xnames: Sequence[tuple[float, str]] | None = None
    ynames: Sequence[tuple[float, str]] | None = None
    height: float = HEIGHT
    left: float = field(init=False)
    parts: list[str] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = 26 + 7.5 * max((len(name) for _, name in self._along_y()), default=0)

    def _along_y(self) -> Sequence[tuple[float, str]]:
        return [(value, short(value)) for value in self.y.ticks(5)] if self.ynames is None else self.ynames

    def px(self, value: float) -> float:
        """Where a value is from the left, in units."""
        return round(self.left + self.x.at(value) * (WIDTH - self.left - RIGHT), 1)

    def py(self, value: float) -> float:
        """Where a value is from the top, in units."""
        return round(self.height - BOTTOM - self.y.at(value) * (self.height - BOTTOM - TOP), 1)

    def named(self, name: str, ink: str, kind: str = "") -> None:
        """Add a name to the legend, if there is one; ``kind``: ``"dash"`` or ``"area"``."""
        if name:
            self.legend.append(f'<span><i class="{kind}" style="color:{ink}"></i>{escape(name)}</span>')

    def bar(self, x0: float, x1: float, y0: float, y1: float, ink: str = FILL, about: str = "") -> None:
        """A box between two values on each axis."""
        left, right = sorted((self.px(x0), self.px(x1)))
        top, bottom = sorted((self.py(y0), self.py(y1)))
        size = f'x="{left}" y="{top}" width="{max(right - left, 0.6):.1f}" height="{bottom - top:.1f}"'
        self.parts.append(f'<rect {size} style="fill:{ink}">{_about(about)}</rect>')

    def line(
        self, xs: Sequence[float], ys: Sequence[float], ink: str, name: str = "", dash: bool = False, width: float = 2
    ) -> None:
        """A line through points; broken where one is not a number."""
        pieces, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            finite = math.isfinite(x) and math.isfinite(y)
            pieces += [f"{pen}{self.px(x)} {self.py(y)}"] if finite else []
            pen = "L" if finite else "M"
        style = f"fill:none;stroke:{ink};stroke-width:{width}" + (";stroke-dasharray:5 4" if dash else "")
        self.parts.append(f'<path d="{"".join(pieces)}" style="{style}"/>')
        self.named(name, ink, "dash" if dash else "")

    def band(
        self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], ink: str, strong: float, name: str = ""
    ) -> None:
        """An area between two lines, where all are numbers; ``strong``: opacity, in (0, 1]."""
        points = [point for point in zip(xs, low, high, strict=True) if all(map(math.isfinite, point))]
        edge = [f"{self.px(x)},{self.py(y)}" for x, y, _ in points] + [f"{self.px(x)},{self.py(y)}" for x, _, y in points[::-1]]
        self.parts.append(f'<polygon points="{" ".join(edge)}" style="fill:{ink};opacity:{strong}"/>')
        self.named(name, f"color-mix(in srgb,{ink} {100 * strong:.0f}%,transparent)", "area")

    def dot(self, x: float, y: float, radius: float, ink: str, about: str = "", strong: float = 0.85) -> None:
        """A disc of a radius in units."""
        where = f'cx="{self.px(x)}" cy="{self.py(y)}" r="{radius:.1f}"'
        self.parts.append(f'<circle {where} style="fill:{ink};opacity:{strong}">{_about(about)}</circle>')

    def __str__(self) -> str:
        right, bottom = WIDTH - RIGHT, self.height - BOTTOM
        xs = [(value, short(value)) for value in self.x.ticks(5)] if self.xnames is None else self.xnames
        ys = self._along_y()
        frame = [f'<path class="grid" d="M{self.left} {self.py(value)}H{right}"/>' for value, _ in ys]
        names = [f'<text x="{self.px(v)}" y="{bottom + 16}" text-anchor="middle">{escape(name)}</text>' for v, name in xs]
        names += [f'<text x="{self.left - 6}" y="{self.py(v) + 4}" text-anchor="end">{escape(name)}</text>' for v, name in ys]
        middle = (self.left + right) / 2
        names.append(f'<text x="{middle}" y="{self.height - 6}" text-anchor="middle">{escape(self.xlabel)}</text>')
        turned = f'transform="translate(13 {(bottom + TOP) / 2}) rotate(-90)"'
        names.append(f'<text {turned} text-anchor="middle">{escape(self.ylabel)}</text>')
        drawn = f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(self.title)}">'
        drawn += "".join([*frame, *self.parts, *names]) + "</svg>"
        legend = f'<div class="legend">{"".join(self.legend)}</div>' if self.legend else ""
        return f"<figure><figcaption>{escape(self.title)}</figcaption>{drawn}{legend}</figure>"


def _about(text: str) -> str:
    """What is shown where the pointer rests."""
    return f"<title>{escape(text)}</title>" if text else ""


def short(value: float) -> str:
    """A round number in a few characters: 1,500, 20k, 3M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit and abs(value) >= 1e4:
            return f"{value / unit:g}{name}"
    return f"{value:,.10g}"


def span(values: Sequence[float], least: float = 0.0) -> Scale:
    """A scale that holds all finite values, ``least`` and something above it."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([least, *finite]), max([least, *finite])
    return Scale(low, high + 0.05 * ((high - low) or 1.0))
