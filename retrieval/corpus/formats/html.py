"""HTML: the text that a reader of the page sees, tables and lists laid out as they are."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Any, Final

from kompakt.compressor.errors import InputError, MissingExtraError
from kompakt.compressor.types import require_unicode
from kompakt.retrieval.corpus.formats import Extracted, ReadOptions, decode, is_encoding

if TYPE_CHECKING:
    from inscriptis.model.config import ParserConfig
    from lxml.html import HtmlElement

_UNSEEN: Final = ("script", "style", "noscript")
_BLOCKS: Final = (
    "center dd details dialog dir dl dt fieldset form frameset hr legend menu noframes optgroup option search "
    "section summary"
).split()
"""Elements on lines of their own that inscriptis runs together (HTML Standard, section 15.3.3)."""
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HEAD_BYTES: Final = 4096
_COMMENT: Final = re.compile(rb"<!--.*?-->", re.DOTALL)
_DECLARED: Final = re.compile(
    rb"<meta\b[^>]*?\bcharset\s*=\s*[\"']?\s*([\w.:+-]+)|\A\s*<\?xml\b[^>]*?\bencoding\s*=\s*[\"']([\w.:+-]+)",
    re.IGNORECASE,
)
_MEANT: Final = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-8",
    "utf-16-le": "utf-8",
    "utf-16-be": "utf-8",
}
"""What browsers read for a declared encoding (WHATWG Encoding Standard, section 4.2, and HTML, section 13.2.3.2)."""


def extract_html(data: bytes, options: ReadOptions) -> Extracted:
    """Return the visible text of a page, and its ``title`` if it has one.

    The encoding is that of the byte order mark, else the one the page declares, else ``options.encoding``.

    Raises:
        MissingExtraError: If the extra ``corpus`` is not installed.
        InputError: If the bytes are not text in that encoding, or the page cannot be parsed whole.
    """
    try:
        from inscriptis import Inscriptis
    except ImportError as error:
        raise MissingExtraError("reading HTML files", "corpus") from error

    tree = _parse(_decode(data, options.encoding))
    if tree is None:
        return "", {}
    title = " ".join(tree.xpath("string(//title[not(ancestor::svg)])").split())
    try:
        text = Inscriptis(tree, _layout()).get_text()
    except RecursionError as error:
        raise InputError("the page's elements are nested too deeply") from error
    # tables are padded to their full width
    lines = (line.rstrip(" ") for line in text.split("\n"))
    return "\n".join(lines).strip("\n"), {"title": title} if title else {}


def _layout() -> ParserConfig:
    from inscriptis.css_profiles import CSS_PROFILES
    from inscriptis.html_properties import Display
    from inscriptis.model.config import ParserConfig
    from inscriptis.model.html_element import HtmlElement

    # the other profile indents every div, and parts the letters of a word at every span
    blocks = {name: HtmlElement(display=Display.block) for name in _BLOCKS}
    return ParserConfig(css={**CSS_PROFILES["strict"], **blocks})


def _decode(data: bytes, encoding: str) -> str:
    for mark, name in _MARKS:
        if data.startswith(mark):
            return decode(data, name, "its byte order mark declares that encoding")
    declared = _declared(data)
    if declared:
        return decode(data, declared, f"the page declares {declared}; correct its <meta charset>")
    return decode(data, encoding)


def _declared(data: bytes) -> str:
    """Return the encoding that a page declares, or nothing if that is none that Python knows."""
    found = _DECLARED.search(_COMMENT.sub(b"", data[:_HEAD_BYTES]))
    name = (found[1] or found[2]).decode("ascii", "replace") if found else ""
    if not name or not is_encoding(name):
        return ""
    codec = codecs.lookup(name).name
    return _MEANT.get(codec, codec)


def _parse(text: str) -> HtmlElement | None:
    """Return a page's tree without what is not seen; None if it has no content."""
    from lxml import etree, html

    require_unicode(text, "the page")
    # without huge_tree, what follows a long text or stands deep down is lost
    parser: Any = html.HTMLParser(encoding="utf-8", huge_tree=True)
    try:
        tree = html.document_fromstring(text.encode(), parser=parser)
    except etree.ParserError:
        return None
    if any(entry.level_name == "FATAL" for entry in parser.error_log):
        raise InputError("the page's elements are nested too deeply")
    for element in list(tree.iter(*_UNSEEN)):
        element.drop_tree()
    etree.strip_tags(tree, etree.Comment, etree.ProcessingInstruction)
    return tree
