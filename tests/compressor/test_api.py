"""The front door: bad input gets a typed error that names the value, and odd input a defined result."""

import math
import time
from contextlib import suppress

import numpy as np
import pytest

import kompakt
from kompakt import Budget, BudgetError, ConfigError, Document, InputError, ModelNotFoundError

TEXT = "One sentence stands here. Another one follows it. The third is the last of them."


def compress(text=TEXT, **options):
    return kompakt.compress(text, **({"compressor": "lexical"} | options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one of max_tokens= and keep="),
        ({"max_tokens": 5, "keep": 0.5}, "exactly one"),
        ({"max_tokens": 0}, "at least 1, got 0"),
        ({"max_tokens": -3}, "got -3"),
        ({"max_tokens": 5.0}, "whole number, got 5.0"),
        ({"max_tokens": True}, "whole number, got True"),
        ({"max_tokens": "5"}, "whole number"),
        ({"keep": 0}, "above 0"),
        ({"keep": -0.5}, "above 0"),
        ({"keep": 1.5}, "at most 1"),
        ({"keep": math.nan}, "got nan"),
        ({"keep": math.inf}, "got inf"),
        ({"keep": "half"}, "must be a number"),
        ({"keep": 1e-9}, "leaves no token"),
    ],
)
def test_bad_budgets(options, words):
    with pytest.raises(BudgetError, match=words):
        compress(**options)


def test_numbers_of_numpy_are_numbers():
    assert compress(max_tokens=np.int64(8)).tokens_after <= 8
    assert compress(keep=np.float32(0.5)).parts == compress(keep=0.5).parts


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        (b"bytes", "decode bytes first"),
        ([b"bytes"], "must be str or Document, got bytes"),
        ({"a": "b"}, "got dict"),
        (3, "got int"),
        (None, "got NoneType"),
        (["a", None], "document 1 must be"),
        ("lone \ud800 surrogate", r"lone surrogate \(U\+D800\) at character 5"),
        ([Document("a", id="x"), Document("b", id="x")], "two documents have the id 'x'"),
    ],
)
def test_bad_documents(documents, words):
    with pytest.raises(InputError, match=words):
        compress(documents, max_tokens=5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": b"x"}, "decode bytes first"),
        ({"text": "x", "id": 3}, "id must be str"),
        ({"text": "x", "metadata": None}, "metadata must be a mapping"),
        ({"text": "x", "protected": (0, 1)}, "pairs"),
        ({"text": "x", "protected": ((0, 5),)}, "within the document's 1 characters"),
        ({"text": "x", "protected": ((1, 0),)}, "pairs"),
    ],
)
def test_bad_document_fields(arguments, words):
    with pytest.raises(InputError, match=words):
        Document(**arguments)


def test_bad_queries():
    with pytest.raises(InputError, match="query must be str"):
        compress(query=3, keep=0.5)
    with pytest.raises(InputError, match="the query holds a lone surrogate"):
        compress(query="\udfff", keep=0.5)
    assert compress(query="  \n ", keep=0.5).parts == compress(keep=0.5).parts


def test_unknown_names():
    with pytest.raises(TypeError, match="ratio"):
        compress(ratio=0.5)
    with pytest.raises(ConfigError, match="did you mean 'extractive'"):
        compress(keep=0.5, compressor="extractiv")
    with pytest.raises(ConfigError, match=r"has no option 'x'\. It takes: none"):
        kompakt.load("lexical", x=1)
    with pytest.raises(ModelNotFoundError, match="no tokenizer 'gpt-x'"):
        compress(keep=0.5, tokenizer="gpt-x")
    with pytest.raises(ConfigError, match="on_error"):
        compress(keep=0.5, on_error="ignore")
    with pytest.raises(ConfigError, match="the pipeline's own"):
        compress(keep=0.5, compressor=kompakt.Pipeline(["lexical"]), strict=True)


@pytest.mark.parametrize("text", ["", " ", "\n\n\n", "\x00", "\x00\x00 a \x00", "\ufeff", "\u200d", "e\u0301" * 300])
def test_odd_texts_have_a_defined_result(text):
    result = compress(text, max_tokens=1000)
    assert result.outcome.status == "fits"
    assert result.text == text
    long = compress(text + TEXT * 20, max_tokens=20)
    assert 0 < long.tokens_after <= 20


def test_a_megabyte_without_a_space_has_no_piece_that_stands_alone():
    with pytest.raises(BudgetError, match="smallest piece"):
        compress("x" * 1_000_000, max_tokens=10)


HOSTILE = {
    "one word": "x" * 200_000,
    "dashes": "x-" * 100_000,
    "dots": "a.b" * 70_000,
    "quotes": '"' * 100_000,
    "capitals": "A " * 100_000,
    "digits": "1" * 200_000,
    "brackets": "[" * 100_000,
    "log": "2026-05-09 07:29:27 ERROR " + "a." * 60_000 + "\nINFO x\nINFO y\n",
    "lines": "x\n" * 20_000,
    "repeats": "The same five words here. " * 4_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", ["lexical", "structured", "dedup", "default"])
@pytest.mark.parametrize("query", [None, "x a.b the same"])
def test_hostile_text_takes_linear_time(name, text, query):
    compressor = kompakt.load(name, **({"model": "none"} if name == "default" else {}))
    began = time.process_time()
    with suppress(BudgetError):
        kompakt.compress([text, "A sentence about x stands here."], query=query, max_tokens=50, compressor=compressor)
    assert time.process_time() - began < 5


def test_protected_text():
    assert "Another one" in compress(max_tokens=6, protect=["Another one"], query="third").text
    with pytest.raises(BudgetError, match=r"the protected content needs \d+ tokens, the budget is 3"):
        compress(max_tokens=3, protect=[TEXT])
    with pytest.raises(ConfigError, match="protect must be a list"):
        compress(max_tokens=3, protect="Another")
    with pytest.raises(ConfigError, match="not empty"):
        compress(max_tokens=3, protect=[""])


def test_batches():
    results = kompakt.compress_batch([TEXT, [TEXT, TEXT]], queries=["third", None], keep=0.5, compressor="lexical")
    assert results[0].parts == compress(query="third", keep=0.5).parts
    assert len(results[1].sources) == 2
    assert kompakt.compress_batch([], keep=0.5) == []
    with pytest.raises(InputError, match="2 contexts and 1 queries"):
        kompakt.compress_batch([TEXT, TEXT], queries=iter(["a"]), keep=0.5)
    with pytest.raises(InputError, match="call compress"):
        kompakt.compress_batch(TEXT, keep=0.5)


def test_numbering_leaves_given_ids_alone():
    result = compress([TEXT, Document(TEXT, id="0"), TEXT], keep=1.0)
    assert [document.id for document in result.documents] == ["1", "0", "2"]


def test_budget_is_a_value():
    assert Budget(keep=0.29).resolve(100) == 29
    assert Budget(max_tokens=7).resolve(100) == 7
    assert Budget(keep=0.5) == Budget(keep=0.5)
