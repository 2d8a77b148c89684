"""PDF: the text of each page, where it begins, and a reason where there is none; of files written here by hand."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from kompakt.compressor.errors import MissingExtraError
from kompakt.retrieval.corpus.readers import ReadOptions, find_files, read_file

pytest.importorskip("pypdfium2")

CHARACTERS = b"""/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def
1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfrange <20> <7E> <0020> endbfrange
3 beginbfchar <80> <D83DDE00> <81> <D83D> <82> <0000> endbfchar endcmap end end"""


def stream(content):
    return b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content)


def pdf(pages, title=None, trailer=b""):
    """A file of pages, each a list of lines; a byte above 0x7F is one of ``CHARACTERS``."""
    kids = b" ".join(b"%d 0 R" % (6 + 2 * index) for index in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 5 0 R >>",
        b"<< /Title (%s) >>" % (title or b""),
        stream(CHARACTERS),
    ]
    for index, lines in enumerate(pages):
        shown = b" ".join(b"(%s) Tj T*" % line for line in lines)
        objects += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % (7 + 2 * index),
            stream(b"BT /F1 12 Tf 14 TL 72 720 Td %s ET" % shown),
        ]
    out = b"%PDF-1.4\n"
    offsets = []
    for number, item in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    info = b"" if title is None else b"/Info 4 0 R"
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    ending = b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R %s %s >>\nstartxref\n%d\n%%%%EOF\n"
    return out + ending % (size, table, size, info, trailer, len(out))


def test_pages_are_joined_and_found_again(read_one):
    document = read_one("in.pdf", pdf([[b"Hello first page.", b"Line two."], [b"Second page."]], title=b"My  title"))
    assert document.text == "Hello first page.\nLine two.\n\nSecond page."
    assert document.id == "in.pdf"
    assert document.metadata == {"path": "in.pdf", "title": "My title", "pages": [0, 29]}
    assert document.text[29:] == "Second page."


def test_empty_pages_keep_their_number(read_one):
    document = read_one("in.pdf", pdf([[b"One."], [], [b"Three."]]))
    assert document.text == "One.\n\n\n\nThree."
    assert document.metadata == {"path": "in.pdf", "pages": [0, 6, 8]}


def test_a_title_in_utf_16(read_one):
    title = b"\xfe\xff" + "Stra\u00dfe \U0001f600".encode("utf-16-be")
    assert read_one("in.pdf", pdf([[b"One."]], title=title)).metadata["title"] == "Stra\u00dfe \U0001f600"


@pytest.mark.parametrize("title", [b"", b"  ", b"\xfe\xff\xd8\x3d"])
def test_a_title_that_says_nothing_is_left_out(read_one, title):
    assert "title" not in read_one("in.pdf", pdf([[b"One."]], title=title)).metadata


def test_hyphens_at_the_ends_of_lines_are_kept(read_one):
    document = read_one("in.pdf", pdf([[b"\\200 com-", b"pression, state-of-the-", b"art \\202 end"]]))
    assert document.text == "\U0001f600 com-\npression, state-of-the-\nart \ufffd end"


def test_glyphs_without_a_character_are_marked(read_one):
    assert read_one("in.pdf", pdf([[b"a\\200b\\201c\\202d"]])).text == "a\U0001f600b\ufffdc\ufffdd"


def test_any_number_of_nul_glyphs_is_left_out(read_one):
    nul = b"\\000" * 3000
    assert read_one("in.pdf", pdf([[nul + b"a" + nul], [nul]])).text == "a\n\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the PDF file is broken"),
        (b"no PDF at all", "the PDF file is broken"),
        (b"%PDF-1.4\njunk", "the PDF file is broken"),
        (pdf([[b"One."]])[:300], "the PDF file is broken"),
        (pdf([[b"One."], [b"Two."]]).replace(b"[6 0 R", b"[99 0 R"), "page 1 of 2 cannot be read"),
        (pdf([[], []]), "the PDF file has no text layer, as of scanned pages; add one with OCR software"),
        (pdf([[b" "]]), "the PDF file has no text layer"),
        (
            # neither hash is that of an empty password
            pdf(
                [[b"One."]],
                trailer=b"/ID [<00> <00>] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >>"
                % (b"00" * 32, b"00" * 32),
            ),
            "the PDF file is encrypted; save it without its password",
        ),
    ],
)
def test_what_has_no_text_is_an_error(read_error, data, reason):
    assert reason in read_error("in.pdf", data)


def test_a_title_does_not_replace_text(read_error):
    assert "no text layer" in read_error("in.pdf", pdf([[]], title=b"My title"))


def test_text_above_the_limit_is_an_error(tmp_path):
    import zlib

    content = b"BT /F1 12 Tf 14 TL 72 720 Td " + b"(0123456789) Tj T* " * 5000 + b"ET"
    packed = zlib.compress(content)
    small = pdf([[b"x"]])
    at = small.rindex(b"<< /Length")
    end = small.index(b"endstream", at) + len(b"endstream")
    path = tmp_path / "in.pdf"
    # the offsets of the table are wrong now; PDFium makes its own
    path.write_bytes(
        small[:at]
        + b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(packed), packed)
        + small[end:]
    )
    (file,) = find_files([path])
    (whole,) = read_file(file, ReadOptions())
    assert len(whole.document.text) > 50_000
    (record,) = read_file(file, ReadOptions(max_document_bytes=20_000))
    assert "the text of the PDF file has more than 20000 bytes, above max_document_bytes=20000" in record.error


def test_threads_wait_for_each_other(tmp_path):
    for index in range(16):
        (tmp_path / f"{index:02}.pdf").write_bytes(
            pdf([[f"File {index}, page {page}.".encode()] for page in range(20)])
        )
    files = list(find_files([tmp_path]))

    def text_of(file):
        (record,) = read_file(file, ReadOptions())
        return record.document.text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(text_of, files))
    assert texts == ["\n\n".join(f"File {n}, page {page}." for page in range(20)) for n in range(16)]


def test_without_the_extra(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(MissingExtraError, match=r"reading PDF files needs .*kompakt\[corpus\]"):
        read("in.pdf", pdf([[b"One."]]))
