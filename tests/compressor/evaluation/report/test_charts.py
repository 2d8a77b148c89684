import math
import sys
from xml.etree import ElementTree

import matplotlib
import pytest

from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.evaluation.report import charts
from kompakt.compressor.evaluation.report.looks import Look, looks

BLUE = Look(3, "--k0", "o", "-", is_filled=True)
WARM = Look(4, "--p1", "s", "--", is_filled=False)
FULL = Look(0, "--c1", "", "-", is_filled=False)


def series(look, *values, is_level=False):
    points = [
        charts.Point((n + 1) / 10, value, value - 0.1, value + 0.1, f"point {n}") for n, value in enumerate(values)
    ]
    return charts.Series(look, tuple(points), is_level=is_level)


def parsed(svg):
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("}svg")
    return root


def titles(root, css_class):
    groups = [node for node in root.iter() if node.get("class") == css_class]
    return [node.text for group in groups for node in group.iter() if node.tag.endswith("}title")]


def test_each_point_has_its_own_tooltip():
    root = parsed(
        charts.curves([series(BLUE, 0.2, 0.5, 0.9), series(WARM, 0.1, 0.3), series(FULL, 1.0, is_level=True)])
    )
    assert titles(root, "series m-3") == ["point 0", "point 1", "point 2"]
    assert titles(root, "series m-4") == ["point 0", "point 1"]
    assert titles(root, "series m-0") == ["point 0"]


def test_colours_are_left_to_the_style_sheet():
    svg = charts.curves([series(BLUE, 0.2, 0.5), series(WARM, 0.1, 0.3)]) + charts.swatch(FULL)
    assert "#" not in svg
    assert "var(--k0)" in svg
    assert "var(--muted)" in svg


def test_text_stays_text_and_nothing_has_an_id():
    root = parsed(charts.curves([series(BLUE, 0.2, 0.5)]))
    texts = [node.text for node in root.iter() if node.tag.endswith("}text")]
    assert "tokens kept" in texts
    assert "10%" in texts or "5%" in texts
    assert not [node for node in root.iter() if node.get("id") or "use" in node.tag.rpartition("}")[2]]


@pytest.mark.parametrize("draw", [charts.curves, charts.scatter])
def test_what_is_no_number_is_left_out(draw):
    assert draw([]) == ""
    assert draw([series(BLUE, math.nan)]) == ""
    root = parsed(draw([series(BLUE, math.nan, 0.5, math.inf)]))
    assert titles(root, "series m-3") == ["point 1"]


def test_an_interval_that_is_not_known_is_left_out():
    point = charts.Point(0.1, 0.5, math.nan, math.nan, "alone")
    root = parsed(charts.curves([charts.Series(BLUE, (point,))]))
    assert titles(root, "series m-3") == ["alone"]
    assert not [node for node in root.iter() if "intervals" in node.get("class", "")]


def test_negative_and_equal_values_can_be_drawn():
    assert parsed(charts.curves([series(BLUE, -2.5, -2.5)]))
    assert parsed(charts.curves([series(FULL, 0.5, is_level=True)]))


def test_zeros_have_no_place_on_logarithmic_axes():
    assert charts.scatter([series(BLUE, 0.0)]) == ""


def test_bytes_are_the_same_each_time_whatever_the_settings():
    one = charts.curves([series(BLUE, 0.2, 0.5)])
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path", "text.usetex": False}):
        before = dict(matplotlib.rcParams)
        assert charts.curves([series(BLUE, 0.2, 0.5)]) == one
        assert dict(matplotlib.rcParams) == before


def test_a_tooltip_is_text():
    point = charts.Point(0.1, 0.5, 0.4, 0.6, "</title><script>$x_1$\x00")
    svg = charts.curves([charts.Series(BLUE, (point,))])
    assert titles(parsed(svg), "series m-3") == ["</title><script>$x_1$␀"]
    assert "<script" not in svg


def test_no_two_methods_look_the_same(summary):
    found = [(look.colour, look.marker, look.line) for look in looks(summary).values()]
    assert len(set(found)) == len(found)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "kompakt.compressor.evaluation.report.charts")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"the report .*kompakt\[report\]"):
        __import__("kompakt.compressor.evaluation.report.charts")
