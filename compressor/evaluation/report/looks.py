"""How each method is drawn: the same colour, marker and line in every chart and in the legend."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from kompakt.compressor.evaluation.summary import Role, Summary

# kompakt is cool and solid, peers are warm and dashed: the two sides stay apart without seeing red from green
_COLOURS: Final[dict[Role, tuple[str, ...]]] = {
    "kompakt": ("--k0", "--k1", "--k2", "--k3", "--k4", "--k5"),
    "peer": ("--p0", "--p1", "--p2", "--p3", "--p4", "--p5"),
    "control": ("--c0",),
    "reference": ("--c1",),
}
_MARKERS: Final = "os^Dv*XPp<>d"
_CONTROL_MARKERS: Final = "xP+_|"

CHART_COLOURS: Final = (
    "--ink",
    "--muted",
    "--line",
    "--paper",
    *(name for names in _COLOURS.values() for name in names),
)
"""Every variable of the style sheet that a chart may use."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn.

    Args:
        index: Its position among the methods, which names its class.
        colour: A variable of the style sheet.
        marker: The marker, as matplotlib names it.
        line: The line, as matplotlib names it.
        is_filled: Whether the marker is filled.
    """

    index: int
    colour: str
    marker: str
    line: str
    is_filled: bool

    @property
    def css_class(self) -> str:
        """The class of everything that belongs to the method."""
        return f"m-{self.index}"


def looks(summary: Summary) -> dict[str, Look]:
    """Return the look of each method by its name."""
    keeps: dict[str, set[float]] = {}
    for cell in summary.cells:
        keeps.setdefault(cell.method, set()).add(cell.keep)
    seen: Counter[Role] = Counter()
    result = {}
    for index, method in enumerate(summary.methods):
        result[method.name] = _look(index, method.role, seen[method.role], keeps.get(method.name) == {0.0})
        seen[method.role] += 1
    return result


def _look(index: int, role: Role, position: int, keeps_nothing: bool) -> Look:
    colour = _COLOURS[role][position % len(_COLOURS[role])]
    if role == "reference":
        return Look(index, colour, "", ":" if keeps_nothing else "-", is_filled=False)
    if role == "control":
        return Look(index, colour, _CONTROL_MARKERS[position % len(_CONTROL_MARKERS)], ":", is_filled=True)
    marker = _MARKERS[position % len(_MARKERS)]
    return Look(index, colour, marker, "-" if role == "kompakt" else "--", is_filled=role == "kompakt")
