"""Charts as SVG that follows the page's theme: matplotlib draws them, the style sheet colours them.

No text of the user's goes through matplotlib, which would read it as markup and miss its glyphs: it is in tooltips.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from xml.etree import ElementTree

from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.evaluation.report import formats
from kompakt.compressor.evaluation.report.looks import CHART_COLOURS, Look

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
except ImportError as error:
    raise MissingExtraError("the report", "report") from error

_SVG: Final = "http://www.w3.org/2000/svg"
_LINK: Final = "{http://www.w3.org/1999/xlink}href"

# colours that nothing else uses; what matplotlib writes for them is replaced by the variables
_HEX: Final = {name: f"#fd{index:04x}" for index, name in enumerate(CHART_COLOURS)}
_VARIABLES: Final = {code: f"var({name})" for name, code in _HEX.items()}

_SETTINGS: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kompakt",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.linewidth": 0.8,
}
_SMALL: Final = (348, 250)
_LARGE: Final = (700, 330)

ElementTree.register_namespace("", _SVG)


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a series.

    Args:
        x: Where it stands.
        y: Its value.
        low: Lower end of its interval.
        high: Upper end of its interval.
        title: What its tooltip says.
    """

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True, slots=True)
class Series:
    """What a chart shows of one method.

    Args:
        look: How it is drawn.
        points: Its points, in the order of the line.
        is_level: Whether it is one value at every x, of which the first point tells.
    """

    look: Look
    points: tuple[Point, ...]
    is_level: bool = False


@dataclass(slots=True)
class _Marks:
    """The classes of artists and the tooltips of their points, by the ids that matplotlib writes."""

    classes: dict[str, str] = field(default_factory=dict)
    titles: dict[str, Sequence[str]] = field(default_factory=dict)

    def add(self, css_class: str, titles: Sequence[str] = ()) -> str:
        name = f"mark{len(self.classes)}"
        self.classes[name] = css_class
        self.titles[name] = titles
        return name


def curves(series: Iterable[Series], *, is_large: bool = False) -> str:
    """Return the chart of quality over the share of tokens kept, or an empty string if there is nothing to draw."""
    with _figure(_LARGE if is_large else _SMALL) as (figure, axes, marks):
        if not _draw(axes, series, marks):
            return ""
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(8 if is_large else 5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(6 if is_large else 5))
        axes.xaxis.set_major_formatter(_ticks(formats.asked))
        # the number of decimals that its own step needs, without an offset or a sign of its own
        axes.yaxis.set_major_formatter(_ticks(lambda value: f"{value:.6g}"))
        axes.set_xlabel("tokens kept", color=_HEX["--muted"])
        return _svg(figure, marks)


def scatter(series: Iterable[Series], *, is_large: bool = False) -> str:
    """Return the chart of seconds over tokens, both logarithmic; an empty string if there is nothing to draw."""
    positive = [
        Series(one.look, tuple(point for point in one.points if point.x > 0 and point.y > 0)) for one in series
    ]
    with _figure(_LARGE if is_large else _SMALL) as (figure, axes, marks):
        axes.set_xscale("log")
        axes.set_yscale("log")
        if not _draw(axes, positive, marks):
            return ""
        for axis, form in ((axes.xaxis, formats.short_count), (axes.yaxis, formats.axis_seconds)):
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(_ticks(form))
        axes.set_xlabel("tokens that went in", color=_HEX["--muted"])
        return _svg(figure, marks)


def swatch(look: Look) -> str:
    """Return a method's line and marker for the legend."""
    with _drawing():
        figure = Figure(figsize=(34 / 72, 14 / 72))
        figure.patch.set_visible(False)
        figure.add_artist(Line2D([0.02, 0.5, 0.98], [0.5] * 3, markevery=[1], **_style(look)))
        return _svg(figure, _Marks())


@contextmanager
def _drawing() -> Iterator[None]:
    with matplotlib.rc_context():
        # a matplotlibrc of the user's must not change the page
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


@contextmanager
def _figure(size: tuple[int, int]) -> Iterator[tuple[Figure, Axes, _Marks]]:
    width, height = size
    with _drawing():
        figure = Figure(figsize=(width / 72, height / 72))
        figure.patch.set_visible(False)
        axes = figure.add_axes((48 / width, 36 / height, 1 - 60 / width, 1 - 46 / height))
        axes.patch.set_visible(False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_HEX["--muted"])
        axes.tick_params(length=0, labelcolor=_HEX["--muted"], pad=5)
        axes.grid(axis="y", color=_HEX["--line"], linewidth=0.8)
        axes.set_axisbelow(True)
        yield figure, axes, _Marks()


def _draw(axes: Axes, series: Iterable[Series], marks: _Marks) -> bool:
    """Draw all series and return whether there was anything to draw."""
    shown = [(one, points) for one in series if (points := _finite(one.points))]
    for one, points in shown:
        titles = [point.title for point in points]
        if one.is_level:
            gid = marks.add(f"series {one.look.css_class}", titles[:1])
            axes.axhline(points[0].y, gid=gid, clip_on=False, **_style(one.look))
        else:
            xs, lows, highs = _intervals(points)
            gid = marks.add(f"series {one.look.css_class} intervals")
            axes.vlines(xs, lows, highs, color=_HEX[one.look.colour], lw=1, alpha=0.55, clip_on=False, gid=gid)
            gid = marks.add(f"series {one.look.css_class}", titles)
            xs, ys = [point.x for point in points], [point.y for point in points]
            axes.plot(xs, ys, gid=gid, clip_on=False, **_style(one.look))
    if shown and all(one.is_level for one, _ in shown):
        axes.set_xlim(0, 1)
    return bool(shown)


def _intervals(points: Iterable[Point]) -> tuple[list[float], list[float], list[float]]:
    known = [point for point in points if point.low < point.high]
    return [point.x for point in known], [point.low for point in known], [point.high for point in known]


def _finite(points: Iterable[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]


def _style(look: Look) -> dict[str, Any]:
    colour = _HEX[look.colour]
    is_hollow = not look.is_filled or look.marker in "x+_|"
    return {
        "color": colour,
        "linestyle": {"--": (0, (4, 2)), ":": (0, (1, 2))}.get(look.line, look.line),
        "linewidth": 1.4,
        "marker": look.marker or "none",
        "markersize": 8 if look.marker == "*" else 5.5,
        "markerfacecolor": colour if look.is_filled else _HEX["--paper"],
        "markeredgewidth": 1.3 if is_hollow else 0.6,
    }


def _ticks(form: Callable[[float], str]) -> FuncFormatter:
    return FuncFormatter(lambda value, _: form(value))


def _svg(figure: Figure, marks: _Marks) -> str:
    """Return a figure as SVG without ids, so that many can stand in one page."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314 (matplotlib wrote it)
    paths = {node.get("id", ""): node for node in root.iter(f"{{{_SVG}}}path") if node.get("id")}
    _tidy(root, paths, marks)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"#fd[0-9a-f]{4}", lambda match: _VARIABLES[match[0]], text)
    return re.sub(r">\s+<", "><", text)


def _tidy(parent: ElementTree.Element, paths: dict[str, ElementTree.Element], marks: _Marks) -> None:
    for node in list(parent):
        name = node.attrib.pop("id", "")
        if not isinstance(node.tag, str) or node.tag in (f"{{{_SVG}}}defs", f"{{{_SVG}}}metadata"):
            parent.remove(node)
            continue
        if name in marks.classes:
            node.set("class", marks.classes[name])
            _add_titles(node, marks.titles[name])
        if _LINK in node.attrib:
            _make_path(node, paths[node.attrib.pop(_LINK)[1:]])
        _tidy(node, paths, marks)
        _tidy_attributes(node)
        if node.tag == f"{{{_SVG}}}g" and not len(node):
            parent.remove(node)


def _add_titles(group: ElementTree.Element, titles: Sequence[str]) -> None:
    """Give each marker of a line its tooltip; a line without markers is its own point."""
    points = list(group.iter(f"{{{_SVG}}}use")) or list(group.iter(f"{{{_SVG}}}path"))
    for point, text in zip(points, titles, strict=False):
        point.set("class", "point")
        ElementTree.SubElement(point, f"{{{_SVG}}}title").text = formats.harmless(text)


def _make_path(node: ElementTree.Element, path: ElementTree.Element) -> None:
    node.tag = f"{{{_SVG}}}path"
    x, y = float(node.attrib.pop("x")), float(node.attrib.pop("y"))
    node.set("transform", f"translate({x:.1f} {y:.1f})")
    node.set("d", path.get("d", ""))
    node.set("style", f"{path.get('style', '')}; {node.get('style', '')}")


def _tidy_attributes(node: ElementTree.Element) -> None:
    node.attrib.pop("clip-path", None)
    if "d" in node.attrib:
        node.set("d", " ".join(_rounded(node.attrib["d"]).split()))
    if "rotate(-0" in node.get("transform", ""):
        del node.attrib["transform"]
    for key in ("x", "y", "transform"):
        if key in node.attrib:
            node.set(key, _rounded(node.attrib[key]))
    if "style" in node.attrib:
        node.set("style", _short_style(node.attrib["style"]))


def _rounded(text: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), text)


def _short_style(style: str) -> str:
    rules = dict(rule.strip().split(": ", 1) for rule in style.split(";") if ": " in rule)
    if size := re.search(r"[\d.]+px", rules.get("font", "")):
        rules["font-size"] = size[0]
    # the page has its own font, and the style sheet says of all charts how lines end and meet
    for name in ("font-family", "font", "stroke-linejoin", "stroke-linecap", "stroke-miterlimit"):
        rules.pop(name, None)
    return ";".join(f"{name}:{value}" for name, value in rules.items())
