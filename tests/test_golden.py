"""Outputs of this version on the example documents, so that a change of what is kept is seen and meant.

To accept a change: ``KOMPAKT_UPDATE_GOLDEN=1 python -m pytest tests/test_golden.py``.
"""

import json
import os
from pathlib import Path

import pytest

import kompakt

ROOT = Path(__file__).parent
DATA = ROOT.parent / "examples" / "data"
QUESTION = "Why did the checkout service fail on 14 March and who approved the fix?"
CASES = {
    "lexical-with-query": ({"query": QUESTION, "max_tokens": 400}, "lexical", {}),
    "structured-without-query": ({"keep": 0.05}, "structured", {}),
    "dedup-with-marks": ({"keep": 0.1, "mark_omissions": True}, "dedup", {}),
    "default-by-words": ({"query": QUESTION, "keep": 0.05}, "default", {"model": "none"}),
}


@pytest.mark.parametrize("case", CASES)
def test_output_is_that_of_the_golden_file(case):
    options, name, settings = CASES[case]
    names = sorted(path.name for path in DATA.iterdir() if path.name != "README.md")
    documents = [kompakt.Document((DATA / n).read_text("utf-8"), id=n, metadata={"path": n}) for n in names]
    result = kompakt.compress(documents, **options, compressor=kompakt.load(name, **settings))
    found = {
        "tokens_before": result.tokens_before,
        "tokens_after": result.tokens_after,
        "documents": {document.id: document.text.split("\n") for document in result.documents},
    }
    path = ROOT / "golden" / f"{case}.json"
    if "KOMPAKT_UPDATE_GOLDEN" in os.environ:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    assert found == json.loads(path.read_text("utf-8"))
