"""Code: any closed subset parses again, in every language."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources import SOURCES
from strategies import closed, subsets

from kompakt.compressor.types import Document, Kind
from kompakt.compressor.units.code import language_of
from kompakt.compressor.units.guess import guess_language
from kompakt.compressor.units.render import render
from kompakt.compressor.units.segment import recognise, segment
from kompakt.compressor.units.syntax import parses


def units_of(source, language):
    return segment([Document(source, id="0", metadata={"language": language})])


def written(units, kept):
    return "".join(piece.text for piece in render(units, kept)[0])


VARIANTS = {
    "as is": lambda source: source,
    "crlf": lambda source: source.replace("\n", "\r\n"),
    "no end": lambda source: source.rstrip("\n"),
    "tabs": lambda source: source.replace("    ", "\t"),
    "umlauts": lambda source: source.replace("omment", "ömment €😀").replace("ocs", "öcs"),
}
CASES = [(language, variant) for language in SOURCES for variant in VARIANTS]


@pytest.mark.parametrize(("language", "variant"), CASES)
def test_samples_parse_and_come_back_whole(language, variant):
    source = VARIANTS[variant](SOURCES[language])
    assert parses(source, language)
    units = units_of(source, language)
    assert len(units) > 3
    assert written(units, range(len(units))) == source


@given(st.sampled_from(CASES), st.data())
def test_any_closed_subset_parses(case, data):
    language, variant = case
    source = VARIANTS[variant](SOURCES[language])
    units = units_of(source, language)
    text = written(units, data.draw(subsets(units)))
    assert parses(text, language), text
    if language == "python":
        ast.parse(text)


@pytest.mark.parametrize("language", SOURCES)
def test_each_unit_alone_and_each_one_missing_parses(language):
    units = units_of(SOURCES[language], language)
    for index in range(len(units)):
        others = [other for other, unit in enumerate(units) if other != index]
        without = [other for other in others if index not in closed(units, [other])]
        for kept in (closed(units, [index]), closed(units, without)):
            text = written(units, kept)
            assert parses(text, language), text


def test_signatures_contain_their_statements():
    source = "import os\n\n# adds\ndef add(a, b):\n    '''Add.'''\n    c = a + b\n    return c\n"
    units = units_of(source, "python")
    assert [unit.text for unit in units] == [
        "", "import os\n\n", "# adds\ndef add(a, b):\n", "    '''Add.'''\n", "    c = a + b\n", "    return c\n",
    ]  # fmt: skip
    assert [unit.parent for unit in units] == [None, 0, 0, 2, 2, 2]
    assert written(units, {0, 2, 5}) == (
        "# 1 line omitted\n# adds\ndef add(a, b):\n    ...  # 2 lines omitted\n    return c\n"
    )


def test_code_with_errors_is_cut_by_line():
    units = units_of("def f(:\n    pass\nprint 'x'\n", "python")
    assert [unit.text for unit in units][1:] == ["def f(:\n", "    pass\n", "print 'x'\n"]
    assert written(units, {0, 3}) == "# 2 lines omitted\nprint 'x'\n"


def test_deep_nesting_does_not_exhaust_the_stack():
    depth = 90
    source = "".join("  " * n + f"def f{n}():\n" for n in range(depth)) + "  " * depth + "pass\n"
    units = units_of(source, "python")
    assert len(units) > 3
    assert written(units, range(len(units))) == source


def test_a_root_of_which_nothing_is_kept_writes_nothing():
    units = units_of(SOURCES["go"], "go")
    assert render(units, {0}) == [[]]


@pytest.mark.parametrize("language", ["python", "go", "rust", "java", "c", "cpp", "bash", "javascript"])
def test_code_without_a_name_is_recognised(language):
    content = recognise(Document(SOURCES[language]))
    assert content.kind is Kind.CODE
    assert content.language == language


@pytest.mark.parametrize(
    ("name", "language"),
    [("a/b.PY", "python"), ("py", "python"), ("golang", "go"), ("x.d.ts", "typescript"), ("README", None), ("", None),
     ("json", None), ("a.json", None), ("c", "c"), ("english", None), ("Makefile", None)],
)  # fmt: skip
def test_language_of(name, language):
    assert language_of(name) == language


@pytest.mark.parametrize("text", ["", "x = 1", "def f():", "Import this.\nReturn that.\nClass dismissed;\n" * 10])
def test_no_language_is_guessed_for_little_or_none(text):
    assert guess_language(text) is None
