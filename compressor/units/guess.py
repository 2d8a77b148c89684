"""The programming language of a text that comes without a name."""

from __future__ import annotations

import re
from typing import Final

from kompakt.compressor.units.syntax import n_errors, parses

_CODE_LINE: Final = re.compile(
    r"\s*(?:def |class |import |from \S+ import|func |fn |pub |use |package |#include|const |let |var |return\b"
    r"|if \(|for \(|while \(|public |private |static |@\w+|\}|fi$|done$|esac$|echo |export )"
)
_CODE_ENDS: Final = (";", "{", "}", "):", "; then", "; do")

_CUES: Final = {
    language: re.compile(pattern, re.MULTILINE)
    for language, pattern in {
        "python": r"^[ \t]*(?:async def|def|class) \w+.*:|^(?:from \S+ )?import \w",
        "javascript": r"^[ \t]*(?:const|let|var|function|class|import|export)\b|=>",
        "typescript": r"^[ \t]*(?:const|let|function|class|import|export|interface|type)\b",
        "go": r"^(?:package \w+|func )",
        "rust": r"^[ \t]*(?:pub |fn |use \w+::|impl\b|struct |enum |mod )",
        "java": r"^[ \t]*(?:import java|(?:(?:public|final|abstract) ){0,3}(?:class|interface|enum) \w+)",
        "c": r"^# *(?:include|define|ifdef|ifndef)\b|^\w[\w *]*\([^;\n]*\)\s*\{",
        "cpp": r"^# *include\b|\bstd::|^(?:namespace|template)\b",
        "bash": r"\A#!.*sh\b|^[ \t]*(?:fi|done|esac)[ \t]*$|^\w+\(\) \{",
    }.items()
}
_SAMPLE: Final = 4000


def guess_language(text: str) -> str | None:
    """Return the language that explains ``text`` without a syntax error, if enough of its lines look like code."""
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    n_code = sum(1 for line in lines if line.endswith(_CODE_ENDS) or _CODE_LINE.match(line))
    if len(lines) < 3 or n_code < max(2, 0.2 * len(lines)):
        return None
    # a sample rules most languages out at little cost; its cut end may be an error, and the open block around it
    sample = text[:_SAMPLE].rpartition("\n")[0] if len(text) > _SAMPLE else text
    likely = [language for language, cue in _CUES.items() if cue.search(text) and n_errors(sample, language) <= 2]
    return next((language for language in likely if parses(text, language)), None)
