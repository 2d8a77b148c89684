"""Hashes of documents, and what was done put together."""

from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.types import Document
from kompakt.retrieval.corpus.ledger import FileProgress, PassedOver, Work, hashes_of

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
metadata = st.dictionaries(texts, texts | st.integers() | st.none(), max_size=3)


@given(texts, metadata, texts, metadata)
def test_hashes_are_equal_for_equal_content_alone(text, about, other_text, other_about):
    one = hashes_of(Document(text, id="a", metadata=about))
    other = hashes_of(Document(other_text, id="b", metadata=other_about))
    assert (one.text == other.text) == (text == other_text)
    assert (one.document == other.document) == ((text, about) == (other_text, other_about))


def test_the_order_of_metadata_does_not_count():
    one, other = ({"a": 1, "b": [2]}, {"b": [2], "a": 1})
    assert hashes_of(Document("t", id="x", metadata=one)) == hashes_of(Document("t", id="x", metadata=other))


def test_work_is_added_up():
    one = Work(n_stored=1, n_compressed=2, files={"a": FileProgress(1, 1, 9, "h")}, robbed={"a"}, survived=["x"])
    one.add(
        Work(
            n_stored=10,
            n_compressed=20,
            files={"a": FileProgress(2, 2, 18, "h", is_done=True), "b": FileProgress(0, 0, 0, "")},
            passed_over=[PassedOver("b", 0, 1, "", "why")],
            robbed={"b"},
            survived=["y"],
        )
    )
    assert (one.n_stored, one.n_compressed) == (11, 22)
    assert one.files == {"a": FileProgress(2, 2, 18, "h", is_done=True), "b": FileProgress(0, 0, 0, "")}
    assert (one.robbed, one.survived, len(one.passed_over)) == ({"a", "b"}, ["x", "y"], 1)
