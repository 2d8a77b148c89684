"""PDF: the text layer, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING, Final

from kompakt.compressor.errors import InputError, MissingExtraError
from kompakt.compressor.types import DOCUMENT_SEPARATOR
from kompakt.retrieval.corpus.formats import Extracted, ReadOptions, too_large

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfiumError, PdfTextPage

_LOCK: Final = Lock()
"""PDFium may be called from one thread at a time."""
_UNMAPPED: Final = "\ufffe"
"""What PDFium gives for a glyph without a character, and for a hyphen together with the line's end after it."""
_HYPHEN: Final = "\ufdd0"
"""A code point that is no character, and so in no text."""


def extract_pdf(data: bytes, options: ReadOptions) -> Extracted:
    """Return the text of a file, its ``title`` if it has one, and its ``pages``: the offset at which each begins.

    Pages are joined by an empty line. A glyph whose character the file does not tell is U+FFFD.

    Raises:
        MissingExtraError: If the extra ``corpus`` is not installed.
        InputError: If the file is broken, encrypted, or has no text layer.
    """
    try:
        from pypdfium2 import PdfDocument, PdfiumError
    except ImportError as error:
        raise MissingExtraError("reading PDF files", "corpus") from error

    with _LOCK:
        try:
            document = PdfDocument(data)
        except PdfiumError as error:
            raise InputError(_refusal(error)) from error
        with document:
            title = _title(document)
            pages = _pages(document, options)
    if not any(page.strip() for page in pages):
        raise InputError("the PDF file has no text layer, as of scanned pages; add one with OCR software")
    starts = accumulate((len(page) + len(DOCUMENT_SEPARATOR) for page in pages[:-1]), initial=0)
    found: dict[str, object] = {"title": title} if title else {}
    return DOCUMENT_SEPARATOR.join(pages), {**found, "pages": list(starts)}


def _refusal(error: PdfiumError) -> str:
    from pypdfium2 import raw

    if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
        return "the PDF file is encrypted; save it without its password"
    return f"the PDF file is broken: {error}"


def _title(document: PdfDocument) -> str:
    try:
        return " ".join(document.get_metadata_value("Title").split())
    except UnicodeDecodeError:
        return ""


def _pages(document: PdfDocument, options: ReadOptions) -> list[str]:
    pages: list[str] = []
    size = 0
    for index in range(len(document)):
        try:
            with closing(document[index]) as page, closing(page.get_textpage()) as layer:
                pages.append(_text(layer))
        except Exception as error:  # a page that is left out would go unnoticed, whatever the reason
            raise InputError(f"page {index + 1} of {len(document)} cannot be read: {error}") from error
        size += len(pages[-1])
        if size > options.max_document_bytes:
            raise too_large("the text of the PDF file", f"more than {options.max_document_bytes}", options)
    return pages


def _text(layer: PdfTextPage) -> str:
    """Return a page's text, with the hyphens at the ends of lines that PDFium takes away put back."""
    from pypdfium2 import raw

    def place_of(index: int) -> int:
        """Return where a glyph stands in the text; -1 if it is left out."""
        return int(raw.FPDFText_GetTextIndexFromCharIndex(layer, index))

    glyphs = range(layer.count_chars())
    first = next((index for index in glyphs if place_of(index) >= 0), None)
    last = next((index for index in reversed(glyphs) if place_of(index) >= 0), None)
    if first is None or last is None:
        return ""
    # without a range, it looks for one itself, by a recursion that many left out glyphs exhaust
    text: str = layer.get_text_range(first, last - first + 1, errors="replace")
    if _UNMAPPED in text:
        hyphens = [place_of(index) for index in glyphs if raw.FPDFText_IsHyphen(layer, index) == 1]
        text = _with_hyphens(text, hyphens).replace(_UNMAPPED, "\ufffd")
    return text.replace("\r\n", "\n").replace("\0", "\ufffd")


def _with_hyphens(text: str, places: Sequence[int]) -> str:
    """Return ``text`` with a hyphen and a new line at each of the places, which are counted in UTF-16 units."""
    units = bytearray(text.encode("utf-16-le"))
    unmapped, hyphen = _UNMAPPED.encode("utf-16-le"), _HYPHEN.encode("utf-16-le")
    for place in places:
        if units[2 * place : 2 * place + 2] == unmapped:
            units[2 * place : 2 * place + 2] = hyphen
    return units.decode("utf-16-le").replace(_HYPHEN, "-\n")
