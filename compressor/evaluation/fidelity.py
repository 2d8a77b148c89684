"""What a careful reader checks first: numbers, dates, identifiers and quotations, kept as they were."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_MONTH: Final = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\.?"
)

PATTERNS: Final = {
    "numbers": re.compile(r"(?<!\w)(?<!\d\.)[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)*%?(?!\w|\.\d)"),
    "dates": re.compile(
        rf"(?<![\w.])(?:\d{{4}}-\d{{2}}-\d{{2}}(?!\d)|\d{{1,2}}[./]\d{{1,2}}[./]\d{{2,4}}(?![\w.]*\d)"
        rf"|\d{{1,2}} {_MONTH} \d{{4}}\b|{_MONTH} \d{{1,2}},? \d{{4}}\b|{_MONTH} \d{{4}}\b)"
    ),
    "identifiers": re.compile(
        r"(?<![\w@./+-])(?:"
        r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"  # UUID
        r"|[\w.+-]+@[\w-]+\.[\w.-]*\w"  # e-mail
        r"|https?://[^\s\"'<>)\]}]*[^\s\"'<>)\]}.,;:!?]"
        r"|[A-Za-z]+\d[\w-]*|\d+[A-Za-z][\w-]*"  # letters with digits
        r"|[A-Za-z]+(?:_[A-Za-z0-9]+)+|[a-z]+(?:[A-Z][a-z0-9]+)+"  # snake_case, MAX_TOKENS, camelCase
        r")(?![\w@])"
    ),
    "quotations": re.compile(r"\"[^\"\n]{1,200}\"|“[^”\n]{1,200}”"),
}
"""What is looked for, by name."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What became of the facts of one sort.

    Args:
        n_source: Distinct ones in the source.
        n_kept: Those of them that stand in the result.
        n_altered: Distinct ones in the result that do not stand in the source.
    """

    n_source: int
    n_kept: int
    n_altered: int

    @property
    def kept(self) -> float | None:
        """The share that was kept; None where there was none to keep."""
        return self.n_kept / self.n_source if self.n_source else None


def fidelity(source: str, result: str) -> dict[str, Fidelity]:
    """Compare the facts of a result with those of its source, by sort.

    A fact is altered if the result has it and the source does not: cutting inside words makes ``149`` of
    ``14 March 2019``.
    """
    return {name: _compare(pattern, source, result) for name, pattern in PATTERNS.items()}


def _compare(pattern: re.Pattern[str], source: str, result: str) -> Fidelity:
    before, after = set(pattern.findall(source)), set(pattern.findall(result))
    altered = [fact for fact in after - before if not _stands_alone(fact, source)]
    return Fidelity(len(before), len(before & after), len(altered))


def _stands_alone(fact: str, source: str) -> bool:
    """Tell whether a source has the fact as a whole: ``12`` is no part of ``12.5%``, nor ``499`` of ``1,499``."""
    return re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(fact)}(?![\w%]|[.,]\d)", source) is not None
