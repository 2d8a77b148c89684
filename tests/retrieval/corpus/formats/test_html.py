"""HTML: everything that is seen and nothing else, in the encoding that the page is in."""

import sys

import pytest

from kompakt.compressor.errors import MissingExtraError

pytest.importorskip("inscriptis")


def text_of(read_one, html, **options):
    return read_one("in.html", html.encode() if isinstance(html, str) else html, **options).text


def test_a_page(read_one):
    html = """<!doctype html><html><head><title> A
      page </title><style>p {}</style><script>var hidden</script></head><body>
      <h1>Head</h1><noscript>hidden</noscript><p>fi<b>r</b>st <span>one</span><!-- hidden -->, two
      <?php hidden ?> three</p>
      <script>hidden</script>after
      <ul><li>item</li></ul>
      <table><tr><th>Name</th><th>Value</th></tr><tr><td>alpha beta</td><td>1</td></tr></table>
      </body></html>"""
    document = read_one("in.html", html.encode())
    assert document.id == "in.html"
    assert document.metadata == {"path": "in.html", "title": "A page"}
    assert document.text.split("\n") == [
        "Head",
        "",
        "first one, two three",
        "",
        "after",
        "  * item",
        "Name        Value",
        "alpha beta  1",
    ]


def test_what_stands_on_lines_of_its_own_stays_apart(read_one):
    html = (
        "<section>a</section><section>b</section><dl><dt>c<dd>d</dl><select><option>e<option>f</select><div>g<div>h"
    )
    assert text_of(read_one, html).split() == list("abcdefgh")


def test_letters_of_a_word_stay_together(read_one):
    assert text_of(read_one, "<p><span>a</span><span>b</span>") == "ab"


@pytest.mark.parametrize(
    "html", ["", " ", "<!-- x -->", "<title>x</title>", "<script>x</script>", "<p style='display: none'>x</p>"]
)
def test_a_page_that_shows_nothing_is_an_error(read_error, html):
    assert read_error("in.html", html.encode()) == "the text is empty"


def test_the_title_of_a_drawing_is_not_the_page_s(read_one):
    assert read_one("in.htm", b"<svg><title>x</title></svg><p>y").metadata == {"path": "in.htm"}


@pytest.mark.parametrize(
    ("html", "encoding"),
    [
        (b"\xef\xbb\xbf<p>caf\xc3\xa9", "cp1252"),
        (b"\xff\xfe" + "<p>caf\u00e9".encode("utf-16-le"), "utf-8"),
        (b"\xfe\xff" + "<p>caf\u00e9".encode("utf-16-be"), "utf-8"),
        (b"<meta charset='iso-8859-1'><p>caf\xe9", "utf-8"),
        (b'<meta http-equiv="Content-Type" content="text/html; charset=windows-1252"><p>caf\xe9', "utf-8"),
        (b"<?xml version='1.0' encoding='latin1'?><html><body>caf\xe9</body></html>", "utf-8"),
        (b"<!-- <meta charset=utf-8> --><meta charset=cp1252><p>caf\xe9", "utf-8"),
        (b"<meta charset=no-such><p>caf\xe9", "cp1252"),
        (b"<meta charset=utf-16><p>caf\xc3\xa9", "cp1252"),
        (b"<p>caf\xe9", "cp1252"),
        (b"<p>caf\xc3\xa9", "utf-8"),
        (b"<p>caf&eacute;", "ascii"),
    ],
)
def test_the_encoding_is_found(read_one, html, encoding):
    assert text_of(read_one, html, encoding=encoding) == "caf\u00e9"


def test_declared_latin_1_is_what_browsers_read(read_one):
    assert text_of(read_one, b"<meta charset=iso-8859-1><p>\x93q\x94 \x80") == "\u201cq\u201d \u20ac"


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        (b"<p>caf\xe9", "byte 0xe9 at offset 6; give its encoding with encoding="),
        (b"<meta charset=utf-8><p>caf\xe9", "at offset 26; the page declares utf-8; correct its <meta charset>"),
        (b"\xef\xbb\xbf<p>caf\xe9", "at offset 9; its byte order mark declares that encoding"),
        (b"\xff\xfea", "not utf-16-le text"),
        (b"<p>a\0b", "a NUL character at offset 4"),
    ],
)
def test_what_is_no_text_is_an_error(read_error, html, reason):
    assert reason in read_error("in.html", html)


@pytest.mark.parametrize("reference", ["&#xD83D;", "&#0;"])
def test_references_to_no_character_are_marked(read_one, reference):
    assert text_of(read_one, f"<p>a{reference}b") == "a\ufffdb"


def test_nothing_after_a_long_text_is_lost(read_one):
    text = text_of(read_one, "<p>" + "x" * 11_000_000 + "</p><p>end</p>")
    assert len(text) > 11_000_000
    assert text.endswith("end")


def test_deep_nesting_loses_nothing(read_one):
    html = "<div>" * 400 + "deep" + "</div>" * 400 + "<p>end</p>"
    assert text_of(read_one, html).split() == ["deep", "end"]


@pytest.mark.parametrize("depth", [1500, 3000])
@pytest.mark.parametrize("inside", ["div", "noscript"])
def test_too_deep_nesting_is_an_error_if_anything_is_lost(read, depth, inside):
    (record,) = read(
        "in.html", (f"<{inside}>" + "<div>" * depth + "x" + "</div>" * depth + f"</{inside}>end").encode()
    )
    if inside == "noscript" and depth == 1500:
        assert record.document.text == "end"
    else:
        assert record.error == "the page's elements are nested too deeply"


def test_without_the_extra(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "inscriptis", None)
    with pytest.raises(MissingExtraError, match=r"reading HTML files needs .*kompakt\[corpus\]"):
        read("in.html", b"<p>a")
