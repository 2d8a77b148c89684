"""Text and Markdown: the file as it is, with a title where the Markdown has one."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.types import Document, Kind
from kompakt.compressor.units.segment import recognise
from kompakt.retrieval.corpus.formats.plain import extract_markdown
from kompakt.retrieval.corpus.readers import ReadOptions


def test_text_is_kept_as_it_is(read_one):
    text = " One.\r\n\tTwo.\rThree. caf\u00e9 \U0001f600\n\n"
    assert read_one("in.txt", text.encode()) == Document(text, id="in.txt", metadata={"path": "in.txt"})


def test_packed_text(read_one):
    document = read_one("in.txt.gz", gzip.compress(b"One."))
    assert document == Document("One.", id="in.txt.gz", metadata={"path": "in.txt.gz"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_the_byte_order_mark_is_dropped(read_one, encoding):
    codec = {"utf-8": "utf-8-sig"}.get(encoding, encoding)
    mark = "\ufeff" * (encoding == "utf-16-le")
    assert read_one("in.txt", f"{mark}caf\u00e9".encode(codec), encoding=encoding).text == "caf\u00e9"


@pytest.mark.parametrize(
    ("data", "encoding", "reason"),
    [
        (b"", "utf-8", "the text is empty"),
        (b"\xef\xbb\xbf \n", "utf-8", "the text is empty"),
        (b"caf\xe9", "utf-8", "not utf-8 text: byte 0xe9 at offset 3; give its encoding with encoding="),
        (b"\xef\xbb\xbfcaf\xe9", "utf-8-sig", "not utf-8-sig text: byte 0xe9 at offset 6"),
        (b"\x81", "cp1252", "not cp1252 text: byte 0x81 at offset 0"),
        ("caf\u00e9".encode("utf-16"), "utf-8", "the byte order mark of UTF-16; try encoding='utf-16'"),
        (b"\x7fELF\0", "utf-8", "looks binary: a NUL character at offset 4"),
        (b"a\\ud800", "unicode_escape", "the text holds a lone surrogate (U+D800) at character 1"),
        (b"xn--a-\xff", "idna", "not idna text"),
    ],
)
def test_what_is_no_text_is_an_error(read_error, data, encoding, reason):
    assert reason in read_error("in.txt", data, encoding=encoding)


def test_a_truncated_gzip_file(read_error):
    assert "the gzip file is truncated" in read_error("in.txt.gz", gzip.compress(b"One. " * 99)[:-9])


@pytest.mark.parametrize("name", ["in.txt", "in.md"])
def test_a_file_above_the_limit_is_not_read(read_one, read_error, name):
    reason = read_error(name, b"12345678901", max_document_bytes=10)
    assert reason == "the file has 11 bytes, above max_document_bytes=10; split it or raise the limit"
    assert read_one(name, b"1234567890", max_document_bytes=10).text == "1234567890"


def test_a_small_packed_file_may_be_too_large(read_error):
    packed = gzip.compress(b"x" * 10_000_000)
    assert "the file has more than 100000 bytes" in read_error("in.txt.gz", packed, max_document_bytes=100_000)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# One\n\nText.", "One"),
        ("Text.\n\n## Not this\n\n# This  one #\n# Nor this", "This one"),
        ("One *and*\r\n`two` [three](u) ![four](u)\r\n===\r\n", "One and two three four"),
        ("[a][1] <b>x</b>\n=\n\n[1]: http://u", "a x"),
        ("```\n# no\n```\n\n    # no\n\n> # no\n\n- # no\n\n# A &amp; B\\*", "A & B*"),
        ("---\n# no\ntags: x\n---\n\n# Yes", "Yes"),
        ("#no\n\n#\n\nText.", ""),
        ("Text.", ""),
    ],
)
def test_the_title_of_markdown_is_its_first_heading(read_one, text, title):
    document = read_one("in.md", text.encode())
    assert document.text == text
    assert document.metadata == {"path": "in.md"} | ({"title": title} if title else {})


@given(st.text(alphabet="#=- \n>*_`[]()<a&;\\~|+1."))
def test_any_markdown_has_some_title_or_none(text):
    found = extract_markdown(text.encode(), ReadOptions())
    assert found[0] == text
    assert found[1].get("title", "x").strip()


@pytest.mark.parametrize(
    "name", ["c.txt", "go.txt.gz", "py.md", "c.markdown", "js.html", "c.htm", "sh.pdf", "a.py.md"]
)
def test_no_name_makes_code_of_prose(name):
    document = Document("The cat sat on the mat. It was old.", id=name, metadata={"path": name})
    assert recognise(document).kind is Kind.PROSE
