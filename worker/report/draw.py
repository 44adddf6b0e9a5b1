"""How every chart is drawn: one size, one style, and out comes SVG that takes its colours from the page.

matplotlib lays a chart out and draws it in sentinel colours, which then become CSS variables, so that one drawing
serves light, dark and paper. Text stays text, in the page's font. Names that users gave never enter matplotlib: it
lays out a stand-in of the same width, and the name takes its place in the finished tree, where it is escaped.
"""

from __future__ import annotations

import io
import math
import re
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from pgoutlier.worker.report.data import Floats

# Each stands for a CSS variable of the page; no two in one chart can be mistaken for another.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
NORMAL, ANOMALY, LIMIT, OTHER, BAND = "#050505", "#060606", "#070707", "#080808", "#090909"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--card",
    NORMAL: "--normal",
    ANOMALY: "--anomaly",
    LIMIT: "--limit",
    OTHER: "--other",
    BAND: "--band",
}
# Inches at 72 points; a phone shows the 310 points in about 340 pixels, so 10 points are 11 pixels there.
WIDTH, HEIGHT, FONT_POINTS = 4.3, 2.9, 10.0
_MARK = "≡"  # begins a stand-in
_LENGTHS = {"d", "x", "y", "transform"}  # of two decimals
_MAX_NAME = 20  # digits wide
_WIDE = frozenset("WMwm@%")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pgoutlier",
    "font.family": "DejaVu Sans",
    "font.size": FONT_POINTS,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.2,
    "legend.borderpad": 0.2,
    "lines.linewidth": 1.8,
}
# matplotlib's settings belong to the whole process and it is not made for threads, so charts are drawn in turn.
_lock = threading.Lock()


@dataclass(frozen=True)
class Chart:
    """key names it in the page; caption says in words what there is to see."""

    key: str
    title: str
    svg: Markup
    caption: str


class Names:
    """Users' names on a chart: `stand_in` is given to matplotlib, `restore` finds the name of a stand-in."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def stand_in(self, name: str) -> str:
        """Digits, about as wide as the shortened name will be."""
        text = shortened(name)
        self._names.append(text)
        return f"{_MARK}{len(self._names) - 1:0{max(4, math.ceil(_columns(text)) - 1)}d}"

    def restore(self, text: str) -> str:
        return self._names[int(text[1:])] if text.startswith(_MARK) else text


def shortened(name: str, most: int = _MAX_NAME) -> str:
    """The name in one printable line about as wide as `most` digits, its middle left out if it is wider."""
    # No character is narrower than a digit, so what is cut away here would not fit.
    whole = len(name) <= most
    shown = name if whole else name[: most + 1] + name[-most:]
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
    if whole and _columns(text) <= most:
        return text
    head, tail = text[: most // 2], text[-most:]
    while _columns(head) > most // 2:
        head = head[:-1]
    while _columns(tail) > most - most // 2 - 1:
        tail = tail[1:]
    return f"{head}…{tail}"


def _columns(text: str) -> float:
    """About how wide the text is, in digits."""
    return sum(
        1.6 if c in _WIDE or unicodedata.east_asian_width(c) in "WF" else 1.15 if c.isupper() else 1
        for c in text
    )


def svg(draw: Callable[[Axes, Names], None], *, description: str, height: float = HEIGHT) -> Markup:
    """What `draw` puts on the axes, as an <svg> element; description is for those who do not see it."""
    names = Names()
    file = io.StringIO()
    with _lock, matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.04))
        figure.patch.set_visible(False)
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes, names)
        canvas.print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))  # type: ignore[no-untyped-call]
    return _embedded(file.getvalue(), names, description)


def _embedded(drawn: str, names: Names, description: str) -> Markup:
    root = ElementTree.fromstring(drawn)  # noqa: S314 - drawn by ourselves, with no name of a user's in it
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key in [key for key in element.attrib if key.startswith("{")]:
            element.attrib[key.rpartition("}")[2]] = element.attrib.pop(key)
        if element.tag == "g":
            element.attrib.pop("id", None)
        for key in _LENGTHS & element.attrib.keys():
            element.attrib[key] = re.sub(r"(\d+\.\d\d)\d+", r"\1", element.attrib[key])
        if element.tag == "text":
            element.text = names.restore(element.text or "")
            element.attrib["style"] = _text_style(element.attrib.get("style", ""))
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag in {"metadata", "style"}]:
            parent.remove(child)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": description}
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text)  # noqa: S704 - serialised, so every text in it is escaped


def _text_style(style: str) -> str:
    """Size, anchor and colour stay; the font family is the page's."""
    size = re.search(r"([\d.]+)px", style)
    kept = [part.strip() for part in style.split(";") if re.match(r"\s*(text-anchor|fill|opacity)", part)]
    return "; ".join([f"font-size: {float(size[1]) if size else FONT_POINTS:g}px", *kept])


def number(value: float, _position: object = None) -> str:
    """A number for a tick or a caption, short: 0.002, 15, 1,200, 25k, 1.2M, 3e-7."""
    size = abs(value)
    if size and (size >= 1e9 or size < 1e-4):
        return re.sub(r"\.0(?=e)|(?<=e)\+0?|(?<=e-)0", "", f"{value:.1e}")
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def share(n: int, total: int) -> str:
    """How much of the total that is, in per cent."""
    percent = 100 * n / max(1, total)
    return f"{percent:.3g}%" if percent < 99 or n == total else f"{percent:.2f}%"


def is_wide(values: Floats, factor: float = 30.0) -> bool:
    """Whether only a logarithmic axis shows these values: all positive, most of them far below the largest."""
    return bool(len(values)) and values.min() > 0 and values.max() > factor * np.median(values)


def has_long_tail(errors: Floats) -> bool:
    """Whether errors are best shown on a logarithmic axis."""
    positive = errors[errors > 0]
    return len(positive) > 0.99 * len(errors) and is_wide(positive, 10)


def scale(axes: Axes, which: Literal["x", "y"], *, log: bool, most_ticks: int = 5) -> None:
    """Few ticks with short numbers, on a linear or logarithmic axis; to be called when all is plotted."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if log:
        axes.set(**{f"{which}scale": "log"})
        low, high = axis.get_view_interval()
        decades = np.log10(high / low)
        subs = (1.0,) if decades > 2 else (1.0, 3.0) if decades > 1 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=most_ticks + 1))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(most_ticks))
    axis.set_major_formatter(FuncFormatter(number))


def whole_numbers() -> MaxNLocator:
    """Where the ticks of a count go."""
    return MaxNLocator(6, integer=True)


def legend(axes: Axes, *, columns: int = 4) -> None:
    """Above the axes, from the left edge of the chart, where it can cover nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles and isinstance(axes.figure, Figure):
        axes.figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def beside(axes: Axes, x: float, y: float, text: str) -> None:
    """A label right of the end of a horizontal bar, on ground of its own, so that no line runs through it."""
    ground = {"fc": PAPER, "ec": "none", "pad": 0.8}
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center_baseline", bbox=ground)
