"""The default compressor: one budget over every kind of content."""

import json
import logging
from pathlib import Path

import pytest

import kompakt
from kompakt import Document

DATA = Path(__file__).parents[3] / "examples" / "data"
QUESTION = "Why did the checkout service fail on 14 March and who approved the fix?"


def corpus():
    names = sorted(path.name for path in DATA.iterdir() if path.name != "README.md")
    return [Document((DATA / name).read_text("utf-8"), id=name, metadata={"path": name}) for name in names]


def test_every_kind_keeps_its_shape():
    small = kompakt.compress(corpus(), query=QUESTION, keep=0.3, compressor=kompakt.load("default", model="none"))
    by_id = {document.id: document.text for document in small.documents}
    assert json.loads(by_id["changes.json"])
    assert "FATAL" in by_id["changes.json"]
    compile(by_id["pool.py"], "pool.py", "exec")


@pytest.mark.models
def test_the_answer_is_found_across_documents():
    small = kompakt.compress(corpus(), query=QUESTION, max_tokens=800)
    assert "renamed setting" in small.text
    assert "Ines Marquardt" in small.text
    assert small.trace[0].note == ""


def test_without_the_encoder_words_decide_and_the_trace_says_so(empty_cache, caplog):
    text = "Rome is old. Cats sleep. The Danube flows into the Black Sea."
    with caplog.at_level(logging.WARNING):
        small = kompakt.compress(text, query="Where does the Danube flow?", max_tokens=10)
    assert small.text == "The Danube flows into the Black Sea."
    assert "kompakt models pull minilm-l6" in small.trace[0].note
    assert small.trace[0].note in small.explain()


def test_words_on_request_are_no_fallback():
    assert kompakt.load("default", model="none").note == "prose ranked by words alone: as asked"


def test_an_encoder_asked_for_by_name_must_be_there(empty_cache):
    compressor = kompakt.load("default", model="minilm-l6")
    with pytest.raises(kompakt.ModelNotFoundError, match="kompakt models pull minilm-l6"):
        kompakt.compress("One sentence. Another sentence.", keep=0.6, compressor=compressor)
