"""Hypothesis strategies that the tests share: texts of every kind, documents, and closed subsets of units."""

import json

from hypothesis import strategies as st

from kompakt.compressor.budget import closures
from kompakt.compressor.types import Document
from kompakt.compressor.units.unit import Units

characters = st.one_of(
    st.sampled_from("aB1 .\n\t\r,;:!?'\"`*_#|>-+=(){}[]\\/<&@$%~^"),
    st.sampled_from("é\u0301日本。\uff01คำไहिب؟😀\u200d👩\U0001f1e9\u00a0\u2028\ufeff\x00\x85…"),
    st.characters(exclude_categories=["Cs"]),
)
texts = st.text(characters, max_size=200)
words = st.sampled_from(
    "the a Mr. Dr. e.g. 3.14 U.S. river Danube flows into http://a.org/b?c=1. Fig. 3 over. Why? Yes!".split()
    + "日本語。 naïve x(y) and".split()
)
sentences = st.lists(words, min_size=1, max_size=12).map(lambda found: " ".join(found) + ".")
lines = st.one_of(
    sentences,
    sentences.map("- {}".format),
    sentences.map("  1. {}".format),
    sentences.map("## {}".format),
    sentences.map("> {}".format),
    st.sampled_from(
        ["", "", "```python", "```json", "```", "~~~", "| a | b |", "|---|---|", "| 1 | 2 |", "===", "---"]
    ),
    st.sampled_from(
        ["x = 1", "def f():", "    return 2", '{"a": 1}', '[1, "b"]', "<div>", "    indented", "\t- deep"]
    ),
    st.sampled_from(["2026-05-09 07:29:27 status installed", "ERROR boom", "a,b,c", '1,"x, y",3', "key: value"]),
)
proses = st.tuples(st.lists(lines, max_size=25), st.sampled_from(["\n", "\r\n"])).map(
    lambda drawn: drawn[1].join(drawn[0])
)
tables = st.lists(st.lists(st.sampled_from(["x", "Ada L", "4", "", "é"]), min_size=3, max_size=3), max_size=12).map(
    lambda rows: "\n".join(",".join(row) for row in [["name", "city", "age"], *rows])
)
logs = st.lists(sentences, min_size=3, max_size=12).map(
    lambda messages: "\n".join(f"2026-05-09 07:29:{n:02} INFO {message}" for n, message in enumerate(messages))
)

long_strings = st.builds(
    lambda first, second, n: f"{first}\n{second} " * n, sentences, sentences, st.integers(10, 20)
)
keys = st.one_of(st.sampled_from(["…", "……", "id", "rows", "messages", "", 'a"b', "\\u2026"]), st.text(max_size=5))
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20),
    long_strings, st.sampled_from([10**40, "😀" * 150]),
)  # fmt: skip
json_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)
json_roots = st.lists(json_values, max_size=5) | st.dictionaries(keys, json_values, max_size=5)
json_styles = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, 2, "\t"]),
        "separators": st.sampled_from([None, (",", ":"), (" , ", " : ")]),
    }
)
json_texts = st.builds(lambda value, style: json.dumps(value, **style), json_roots, json_styles)
json_lines = st.lists(json_roots.map(json.dumps), min_size=2, max_size=4).map("\n".join)

any_texts = st.one_of(texts, proses, tables, logs, json_texts, json_lines)


@st.composite
def documents(draw, contents=any_texts, max_size=3):
    """Several documents with protected ranges."""
    found = []
    for index, text in enumerate(draw(st.lists(contents, min_size=1, max_size=max_size))):
        offsets = st.integers(0, len(text))
        ranges = draw(st.lists(st.tuples(offsets, offsets).map(sorted).map(tuple), max_size=3))
        found.append(Document(text, id=f"doc{index}", protected=tuple(ranges)))
    return tuple(found)


def closed(units: Units, chosen) -> frozenset[int]:
    """The units at the indices ``chosen``, with all that must stand with them."""
    needs = closures(units)
    return frozenset().union(*(needs[index] for index in chosen))


@st.composite
def subsets(draw, units: Units):
    """A random subset of units, closed under what they require, with the protected ones."""
    share = draw(st.sampled_from([0.1, 0.5, 0.9]))
    random = draw(st.randoms(use_true_random=False))
    chosen = [index for index, unit in enumerate(units) if unit.protected or random.random() < share]
    return closed(units, chosen)
