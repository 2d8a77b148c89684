import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.evaluation.report import formats, page
from kompakt.compressor.evaluation.report.page import render_report, render_view
from kompakt.compressor.evaluation.summary import Estimate
from kompakt.compressor.inspection import InspectedDocument

VOID = {"meta", "link", "input", "img", "br", "hr"}


class Tree(HTMLParser):
    """What stands in a page: elements, their attributes and their text; fails where a tag is not closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text, self.texts = [], [], [], {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)
        elif self.open[-1] == "script":
            self.texts.setdefault("script", []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def small(summary):
    """A few of everything, which renders quickly."""
    tasks = summary.tasks[:3]
    names = {"", *(task.name for task in tasks)}
    return replace(
        summary,
        tasks=tasks,
        cells=tuple(cell for cell in summary.cells if cell.task in names),
        differences=summary.differences[:40],
        examples=summary.examples[:2],
    )


@pytest.fixture(scope="module")
def report(small):
    return render_report(small)


@pytest.fixture(scope="module")
def pages(report, view, hostile, hostile_one, empty):
    return [report, render_view(view), render_report(hostile), render_view(hostile_one), render_report(empty)]


def test_pages_are_whole_and_well_formed(pages):
    for html in pages:
        assert html.startswith("<!DOCTYPE html>")
        tree = Tree(html)
        assert {"charset": "utf-8"} in tree.all("meta")
        assert [attributes for attributes in tree.all("meta") if attributes.get("name") == "viewport"]
        assert len(tree.all("h1")) == len(tree.all("main")) == 1
        ids = [attributes["id"] for _, attributes in tree.elements if "id" in attributes]
        assert len(ids) == len(set(ids))


def test_pages_ask_for_nothing(pages):
    for html in pages:
        assert set(re.findall(r"https?://[^\s\"'<]*", html)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"@import|url\(|\bsrc=(?!x onerror)", html.replace("&#34;", '"'))
        links = {
            value for _, attributes in Tree(html).elements for name, value in attributes.items() if "href" in name
        }
        assert all(link.startswith("#") or link == "data:," for link in links)


def test_the_policy_allows_the_one_script(report):
    tree = Tree(report)
    (policy,) = [one["content"] for one in tree.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert [attributes.get("type") for attributes in tree.all("script")] == ["application/json", None]
    assert not [name for _, attributes in tree.elements for name in attributes if name.startswith("on")]


def test_the_same_summary_gives_the_same_bytes(small, report, view):
    assert render_report(small) == report
    assert render_view(view) == render_view(view)


def test_every_number_of_a_cell_is_in_its_row(small, report):
    tables = re.findall(r'<table class="numbers">.*?</table>', report, re.S)
    shown = ["", *(task.name for task in small.tasks)]
    assert len(tables) == len(shown)
    for task, table in zip(shown, tables, strict=True):
        rows = [" ".join(Tree(row).text) for row in re.findall(r"<tr>(?:(?!</tr>).)*</tr>", table, re.S)]
        for cell in small.cells:
            if cell.task != task:
                continue
            numbers = [formats.percent(cell.kept), formats.seconds(cell.seconds), formats.count(cell.n)]
            numbers += [formats.count(cell.n_over_budget), formats.count(cell.n_failed)]
            for one in cell.estimates.values():
                numbers += [formats.quality(one.mean), f"[{formats.quality(one.low)}, {formats.quality(one.high)}]"]
            assert [row for row in rows if cell.method in row and all(number in row for number in numbers)]


def test_failures_are_told_with_their_reason(small, report):
    failed = [cell for cell in small.cells if cell.n_failed]
    assert failed
    text = "".join(Tree(report).text)
    assert text.count("failed, most often with") == len(failed)
    assert failed[0].failure in text


def test_one_metric_is_shown_until_another_is_chosen(small, report):
    shown = re.findall(r'<div data-metric="(\d)"( hidden)?>', report)
    assert {metric for metric, hidden in shown if not hidden} == {"0"}
    assert len(shown) == len(small.metrics) * (len(small.tasks) + 1)


def test_what_is_no_number_is_a_dash(small):
    nowhere = Estimate(math.nan, math.nan, math.nan, 0)
    cells = tuple(
        replace(cell, kept=math.nan, estimates=dict.fromkeys(cell.estimates, nowhere)) for cell in small.cells
    )
    grid = tuple(replace(cell, estimate=nowhere) for cell in small.grid)
    differences = tuple(replace(one, estimate=nowhere) for one in small.differences)
    html = render_report(replace(small, cells=cells, grid=grid, differences=differences, examples=()))
    assert "nan" not in "".join(Tree(html).text)
    assert "nan%" not in html
    assert html.count("No numbers for this metric.") == len(small.metrics) * (len(small.tasks) + 1)


def test_text_of_others_is_inert(pages, hostile):
    for html in pages[2:4]:
        tree = Tree(html)
        assert not tree.all("img")
        assert len(tree.all("script")) <= 2
        assert "onerror" in "".join(tree.text)
        assert "&amp;" in "".join(tree.text)
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", html)
        html.encode("utf-8")
    data = json.loads(Tree(pages[2]).texts["script"][0])
    assert data["examples"][0]["sources"][0][2] == formats.harmless(hostile.examples[0].views[0].documents[0].text)


def test_an_empty_summary_says_so(empty):
    text = "".join(Tree(render_report(empty)).text)
    assert "There are no means over tasks in this run." in text
    assert "No examples were recorded." in text


def test_a_view_reads_without_scripts(view):
    html = render_view(view)
    sources = re.findall(r'<div class="source whole[^>]*role="group"[^>]*>(.*?)</div>', html, re.S)
    assert ["".join(Tree(source).text) for source in sources] == [document.text for document in view.documents]
    spans = Tree("".join(sources)).all("span")
    found = [piece for document in view.documents for piece in document.pieces]
    assert [one["class"][0] == "k" for one in spans] == [piece.is_kept for piece in found]
    assert all(one["title"].startswith(("kept by ", "dropped by ")) for one in spans)
    assert f"{view.tokens_before:,} → {view.tokens_after:,}" in "".join(Tree(html).text)


def test_a_view_without_pieces_shows_the_result(view):
    documents = tuple(InspectedDocument(one.id, one.title, one.text, ()) for one in view.documents)
    html = render_view(replace(view, documents=documents, text="what came out"))
    assert "not known what was kept" in html
    assert "<details open>" in html
    assert "what came out" in html


@pytest.mark.parametrize("draw", [lambda: render_view(None), lambda: render_report(None)])
def test_without_jinja_the_error_names_the_extra(draw, monkeypatch):
    page._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"kompakt\[report\]"):
        draw()


@pytest.mark.slow
def test_a_large_report_stays_small(summary):
    assert len(render_report(summary).encode()) < 3_000_000
