"""Plain text and Markdown: the file is the document."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from kompakt.retrieval.corpus.formats import Extracted, ReadOptions, decode

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_TITLE_WITHIN: Final = 1 << 16
"""A title stands at the top: no further than this many characters down."""
_FRONT_MATTER: Final = re.compile(r"\A---[ \t]*\n.*?^(?:---|\.\.\.)[ \t]*$", re.DOTALL | re.MULTILINE)


def extract_text(data: bytes, options: ReadOptions) -> Extracted:
    """Return the text of a file.

    Raises:
        InputError: If it is not text in ``options.encoding``.
    """
    return decode(data, options.encoding), {}


def extract_markdown(data: bytes, options: ReadOptions) -> Extracted:
    """Return the text of a file, markup and all, and as ``title`` its first heading of level 1, if it has one.

    Raises:
        InputError: If it is not text in ``options.encoding``.
    """
    text = decode(data, options.encoding)
    title = _title(text)
    return text, {"title": title} if title else {}


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark")


def _title(text: str) -> str:
    # a comment in the front matter looks like a heading
    head = _FRONT_MATTER.sub("", text[:_TITLE_WITHIN].replace("\r\n", "\n"), count=1)
    parser = _parser()
    references: dict[str, object] = {}
    for opening, content in pairwise(parser.block.parse(head, parser, references, []) or ()):
        if opening.type == "heading_open" and opening.tag == "h1" and opening.level == 0:
            pieces: list[Token] = []
            parser.inline.parse(content.content, parser, references, pieces)
            return " ".join("".join(map(_words, pieces)).split())
    return ""


def _words(piece: Token) -> str:
    if piece.type in ("softbreak", "hardbreak"):
        return " "
    return "" if piece.type == "html_inline" else piece.content
