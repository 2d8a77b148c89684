"""Time grows with the text and no faster: the exponent of the time, fitted over texts of very different lengths.

Times are those of this process alone and the shortest of several runs, so that other work on the machine counts
little. What is too slow is measured again: a busy machine is slow once, a quadratic loop always.
"""

import importlib.util
import json
from itertools import islice
from pathlib import Path

import pytest

import kompakt

ROOT = Path(__file__).parents[2]
LIMIT = 1.25
"""An exponent of 1.25 means that a hundred times the text takes 316 times as long; it is about 1.05 as a rule."""
ATTEMPTS = 3

pytestmark = pytest.mark.slow


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scaling = _load(ROOT / "benchmarks" / "scaling.py")


def exponent_of(run, sizes, repeats):
    """Fit the exponent to the time of ``run(size)``, with more runs while it is above the limit."""
    run(sizes[0])
    seconds = [float("inf")] * len(sizes)
    for _ in range(ATTEMPTS):
        measured = [scaling.least_seconds(lambda n=n: run(n), k) for n, k in zip(sizes, repeats, strict=True)]
        seconds = list(map(min, seconds, measured))
        if scaling.exponent(sizes, seconds) < LIMIT:
            break
    return scaling.exponent(sizes, seconds)


def forgetful(name, texts, **options):
    """Return what compresses the text of a size as if it had never been seen."""
    compressor = scaling.load(name)

    def run(size):
        compressor.forget()
        kompakt.compress(
            texts[size], query=scaling.QUERY, keep=0.25, compressor=compressor, on_error="raise", **options
        )

    return run


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lexical", "prose"),
        ("lexical", "chat"),
        ("structured", "json"),
        ("structured", "logs"),
        ("dedup", "jsonl"),
        ("default", "documents"),
        ("default", "code"),
        ("default", "table"),
        ("mmr", "markdown"),
    ],
)
def test_a_million_tokens_take_a_hundred_times_as_long_as_ten_thousand(name, kind):
    texts = {size: scaling.make(kind, size) for size in scaling.SIZES}
    assert exponent_of(forgetful(name, texts), scaling.SIZES, (3, 2, 1)) < LIMIT


def one_line(n):
    """Return a file of JavaScript on one line."""
    text = "".join(f"function f{i}(a, b) {{ var c = a + b; return g{i}(c); }} " for i in range(n))
    return kompakt.Document(text + "\nvar last = 1;\n", metadata={"path": "bundle.min.js"})


def one_paragraph(n):
    return "".join(f"日本語の文章はこうして書かれていて{i}番である。" for i in range(n))


def one_function(n):
    body = "".join(f"    total = step_{i}(total, {i})\n" for i in range(n))
    return kompakt.Document(f"def run(total):\n{body}", metadata={"path": "run.py"})


def one_object(n):
    sentences = islice(scaling.numbered(scaling.sentences()), n)
    return json.dumps({f"key {i}": sentence for i, sentence in enumerate(sentences)})


def tiny_documents(n):
    return list(islice(scaling.numbered(scaling.sentences()), n))


def pointing(n):
    """Return documents whose sentences are full of names."""
    met = [f"Ada Lovelace{i} met Bob Smith{i + 1} at the checkout service in Paris{i}." for i in range(n)]
    return [" ".join(met[start : start + 50]) for start in range(0, n, 50)]


def many_headings(n):
    return "".join(f"{'#' * (1 + i % 6)} Heading {i}\n\nShort text {i}.\n\n" for i in range(n))


@pytest.mark.parametrize(
    ("make", "sizes", "options"),
    [
        (one_line, (1_500, 15_000), {}),
        (one_paragraph, (800, 8_000), {}),
        (one_function, (1_000, 10_000), {}),
        (one_object, (1_000, 10_000), {}),
        (tiny_documents, (1_000, 10_000), {}),
        (tiny_documents, (1_000, 10_000), {"protect": ["checkout", "in case 9", "shar"]}),
        (pointing, (1_000, 10_000), {}),
        (many_headings, (500, 5_000), {}),
        (lambda n: "\n\n".join(tiny_documents(n)), (1_000, 10_000), {"protect": ["case 1", "case 2", "shar"]}),
    ],
    ids=[
        "code on one line", "one paragraph", "one function", "one object", "many documents",
        "protected words in many documents", "names", "headings", "protected words in one document",
    ],
)  # fmt: skip
def test_awkward_texts_take_time_in_proportion_to_their_length(make, sizes, options):
    run = forgetful("default", {size: make(size) for size in sizes}, **options)
    assert exponent_of(run, sizes, (3, 1)) < LIMIT


@pytest.mark.parametrize("name", ["lexical", "default"])
def test_many_small_requests_take_time_in_proportion_to_their_number(name):
    passages = [[document] for document in scaling.make("documents", 500_000)]
    compressor = scaling.load(name)

    def run(n):
        compressor.forget()
        kompakt.compress_batch(passages[:n], queries=scaling.QUERY, keep=0.25, compressor=compressor)

    assert exponent_of(run, (10, 100, 900), (3, 2, 1)) < LIMIT


def test_a_quadratic_loop_is_found():
    def run(n):
        return [i for i in range(n) for _ in range(n)]

    assert exponent_of(run, (50, 200, 800), (3, 3, 3)) > LIMIT
