"""The catalogue: documents and segments in one file, searched by words, whole after whatever happens."""

import sqlite3
import subprocess
import sys
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import logs, proses, texts

from kompakt import Document, InputError
from kompakt.compressor.errors import StoreError
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.text.bm25 import bm25, query_terms, terms
from kompakt.retrieval.catalogue import _SCHEMA, Catalogue, Segment, _token, text_hash
from kompakt.retrieval.chunks import Chunk, split_chunks

TOKENIZER = load_tokenizer("o200k_base")

PASSAGES = {
    "river": "The Danube rises in the Black Forest and flows into the Black Sea.",
    "bridge": "The chain bridge over the Danube was opened in 1849.",
    "tower": "A tower of iron was built for the fair of 1889.",
    "code": "Requests are handled in http/server.py by handle_request, see v1.2-rc3.",
    "city": "東京は日本の首都です。",
    "menu": "Crème brûlée, jalapeño & naïve salad: 12.50 EUR",
}


@pytest.fixture
def catalogue(tmp_path):
    made = Catalogue.create(tmp_path / "segments.sqlite")
    yield made
    made.close()


def add(catalogue, name, text, **metadata):
    document = Document(text, id=name, metadata=metadata)
    return catalogue.add_document(document, split_chunks(document, tokenizer=TOKENIZER, max_tokens=32))


def filled(catalogue):
    return {name: add(catalogue, name, text, n=n)[0] for n, (name, text) in enumerate(PASSAGES.items())}


def found(catalogue, query, k=10, where=None):
    hits = catalogue.search_words(query, k, where)
    return [segment.document_id for segment in catalogue.get_segments([name for name, _ in hits])]


def test_segments_are_what_was_added(catalogue):
    document = Document("One. Two.\n\n# Three\n\nFour.", id="d", metadata={"title": "T", "tags": ["a"], "x": None})
    chunks = split_chunks(document, tokenizer=TOKENIZER, max_tokens=32)
    ids = catalogue.add_document(document, chunks)
    assert catalogue.get_segments(ids) == [
        Segment(name, "d", chunk.start, chunk.end, chunk.text, chunk.context, document.metadata)
        for name, chunk in zip(ids, chunks, strict=True)
    ]
    assert [segment.text for segment in catalogue.get_segments(ids)] == ["One. Two.", "# Three\n\nFour."]
    assert [segment.id for segment in catalogue.get_segments([ids[1], 99, ids[0]])] == ids[::-1]
    known = catalogue.document("d")
    assert (known.id, known.n_segments, dict(known.metadata)) == ("d", 2, dict(document.metadata))
    assert known.sha256 == catalogue.document_hash("d") == text_hash(document.text)
    assert known.added_at.endswith("+00:00")
    assert catalogue.documents() == [known]
    assert (catalogue.count_documents(), catalogue.count_segments()) == (1, 2)


def test_deleted_documents_are_gone_and_their_ids_are_not_used_again(catalogue):
    ids = filled(catalogue)
    assert catalogue.delete_documents(["river", "menu", "no such"]) == [ids["river"], ids["menu"]]
    assert catalogue.document("river") is catalogue.document_hash("river") is None
    assert found(catalogue, "Danube") == ["bridge"]
    assert catalogue.get_segments(ids.values()) == catalogue.get_segments(catalogue.matching(None))
    assert catalogue.count_segments() == 4
    assert min(add(catalogue, "new", "Danube")) > max(ids.values())
    catalogue.delete_documents(["new"])
    assert min(add(catalogue, "new", "Danube")) > max(ids.values()) + 1


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Where does the Danube rise?", ["river", "bridge"]),
        ("bridges opening", ["bridge"]),
        ("http/server.py", ["code"]),
        ("handle_request", ["code"]),
        ("v1.2-rc3", ["code"]),
        ("日本", ["city"]),
        ("jalapeño", ["menu"]),
        ("jalapeno", []),
        ("EUR 12.50", ["menu"]),
        ('"Danube" OR NEAR(river) AND NOT *', ["bridge", "river"]),
        ("no such terms anywhere", []),
        ("?!", []),
    ],
)
def test_words_find_their_segments(catalogue, query, expected):
    filled(catalogue)
    assert sorted(found(catalogue, query)) == sorted(expected)
    assert found(catalogue, query)[:1] == (found(catalogue, query, 1))


def test_a_context_is_searched_too(catalogue):
    document = Document("It was opened in 1849.", id="d")
    chunk = Chunk("d", 0, 22, document.text, "Bridges > Chain bridge")
    catalogue.add_document(document, [chunk])
    assert found(catalogue, "chain") == ["d"]


def test_scores_rank_as_bm25_does(catalogue):
    ids = filled(catalogue)
    for extra in range(20):
        add(catalogue, f"filler {extra}", f"Filler number {extra} stands in black ink here.")
    segments = catalogue.get_segments(catalogue.matching(None))
    query = "black forest of the Danube"
    scores = bm25([terms(segment.text) for segment in segments], query_terms(query))
    expected = sorted(zip((segment.id for segment in segments), scores, strict=True), key=lambda item: -item[1])
    hits = catalogue.search_words(query, 2)
    assert [name for name, _ in hits] == [name for name, _ in expected[:2]] == [ids["river"], ids["bridge"]]
    assert hits[0][1] > hits[1][1] > 0


def test_equals_are_in_the_order_of_their_ids(catalogue):
    ids = [add(catalogue, f"d{n}", "the same words")[0] for n in range(5)]
    assert [name for name, _ in catalogue.search_words("same", 3)] == ids[:3]


def in_memory():
    made = Catalogue(None, sqlite3.connect(":memory:", isolation_level=None))
    for statement in _SCHEMA:
        made._rows(statement)
    return made


@settings(max_examples=50)
@given(st.lists(texts | proses | logs, min_size=1, max_size=4, unique=True))
def test_every_term_finds_its_segment(found):
    made = in_memory()
    try:
        bags = {}
        for n, text in enumerate(found):
            chunk = Chunk(str(n), 0, len(text), text, "")
            [segment_id] = made.add_document(Document(text, id=str(n)), [chunk])
            bags[segment_id] = set(terms(text))
            assert made.get_segments([segment_id])[0].text == text
        for term in set().union(*bags.values()):
            rows = made._rows("SELECT rowid FROM words WHERE words MATCH ?", [f'"{_token(term)}"'])
            assert [name for (name,) in rows] == [name for name, bag in bags.items() if term in bag]
    finally:
        made.close()


@given(st.sets(texts | texts.map(lambda text: text * 50) | st.text("abc_0", max_size=3), min_size=2))
def test_different_terms_have_different_tokens(found):
    tokens = [_token(term) for term in found if term]
    assert len(set(tokens)) == len(tokens)
    assert all(len(token) < 200 and token.isascii() and token.replace("_", "").isalnum() for token in tokens)


def test_filters_choose_among_documents(catalogue):
    ids = filled(catalogue)
    assert catalogue.matching({"n": {">=": 4}}) == [ids["city"], ids["menu"]]
    assert catalogue.matching({}) == catalogue.matching(None) == sorted(ids.values())
    assert found(catalogue, "Danube", where={"n": 1}) == ["bridge"]
    assert found(catalogue, "Danube", where={"n": [5]}) == []
    with pytest.raises(InputError, match="operator"):
        catalogue.search_words("Danube", 3, {"n": {"~": 1}})


def test_segments_of_documents_come_in_their_order(catalogue):
    filled(catalogue)
    (first, *_), (second, *_) = (catalogue.segments_of([document.id]) for document in catalogue.documents()[:2])
    assert catalogue.segments_of([second.document_id, "unknown", first.document_id])[0] == second
    assert {one.document_id for one in catalogue.segments_of([first.document_id])} == {first.document_id}


def test_a_query_can_have_any_number_of_terms(catalogue):
    filled(catalogue)
    assert found(catalogue, " ".join(f"term{n}" for n in range(20_000)) + " iron") == ["tower"]


def test_what_is_not_committed_is_not_seen_and_not_kept(catalogue, tmp_path):
    add(catalogue, "one", "First words.")
    catalogue.set_state(1, "aa")
    catalogue.commit()
    other = Catalogue.open(tmp_path / "segments.sqlite")
    add(catalogue, "two", "Second words.")
    catalogue.delete_documents(["one"])
    catalogue.set_state(2, "bb")
    assert (found(other, "words"), other.state()) == (["one"], (1, "aa"))
    with other.snapshot():
        assert other.count_documents() == 1
        catalogue.commit()
        assert (found(other, "words"), other.state()) == (["one"], (1, "aa"))
    assert (found(other, "words"), other.state()) == (["two"], (2, "bb"))
    add(catalogue, "three", "Third words.")
    catalogue.close()
    assert found(other, "words") == ["two"]
    other.close()


def test_a_failed_step_changes_nothing(catalogue):
    ids = filled(catalogue)
    document = Document("Danube Danube", id="new")
    twice = [Chunk("new", 0, 6, "Danube", ""), Chunk("new", 7, None, "Danube", "")]
    with pytest.raises(StoreError, match="NOT NULL"):
        catalogue.add_document(document, twice)

    def stop():
        with catalogue.atomic():
            catalogue.delete_documents(["river"])
            add(catalogue, "other", "Danube")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert [known.id for known in catalogue.documents()] == list(PASSAGES)
    assert sorted(found(catalogue, "Danube")) == ["bridge", "river"]
    assert catalogue.matching(None) == list(ids.values())


def test_a_killed_process_leaves_the_last_commit(tmp_path):
    path = tmp_path / "segments.sqlite"
    code = f"""
import os
from kompakt import Document
from kompakt.retrieval.catalogue import Catalogue
from kompakt.retrieval.chunks import Chunk
catalogue = Catalogue.create({str(path)!r})
catalogue.add_document(Document("kept", id="kept"), [Chunk("kept", 0, 4, "kept", "")])
catalogue.commit()
for n in range(2000):
    catalogue.add_document(Document("lost", id=str(n)), [Chunk(str(n), 0, 4, "lost " * 100, "")])
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    again = Catalogue.open(path)
    assert [known.id for known in again.documents()] == ["kept"]
    assert found(again, "lost kept") == ["kept"]
    assert again._rows("PRAGMA integrity_check") == [("ok",)]
    again.close()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("x"), "needs an id"),
        (Document("x", id="river"), "'river' is there already"),
        (Document("x", id="a", metadata={"on": date(2024, 1, 1)}), "'a' is no JSON.*date"),
        (Document("x", id="a", metadata={"n": float("nan")}), "no JSON"),
        (Document("x", id="a", metadata={3: 4}), "keys of document 'a' must be strings, got 3"),
        (Document("x", id="a", metadata={"k": "\ud800"}), "lone surrogate"),
        (Document("x", id="\ud800"), "lone surrogate"),
    ],
)
def test_documents_that_cannot_be_kept_are_named(catalogue, document, message):
    filled(catalogue)
    with pytest.raises(InputError, match=message):
        catalogue.add_document(document, [])
    assert catalogue.count_documents() == len(PASSAGES)


@given(st.sets(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=6))
def test_ids_are_any_strings(names):
    names = [*(names - {"a", "a\0b"}), "a\0b", "a"]
    made = in_memory()
    try:
        for name in names:
            made.add_document(Document("x", id=name), [Chunk(name, 0, 1, "x", "")])
        assert [known.id for known in made.documents()] == names
        assert len(made.delete_documents(["a"])) == 1
        assert [known.id for known in made.documents()] == names[:-1]
        assert len(made.delete_documents(names)) == len(names) - 1
    finally:
        made.close()


def test_files_that_are_no_catalogues_are_named(tmp_path):
    with pytest.raises(StoreError, match="no catalogue"):
        Catalogue.open(tmp_path / "none.sqlite")
    path = tmp_path / "other.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(StoreError, match="no catalogue of kompakt"):
        Catalogue.open(path)
    with pytest.raises(StoreError, match="exists"):
        Catalogue.create(path)
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Catalogue.open(path)
    with pytest.raises(StoreError, match="cannot open"):
        Catalogue.create(tmp_path / "missing" / "c.sqlite")


def test_any_path_will_do(tmp_path):
    path = tmp_path / "a #1 %41 é?x=y&" / "c.sqlite"
    path.parent.mkdir()
    Catalogue.create(path).close()
    Catalogue.open(path).close()
    assert [found.name for found in path.parent.iterdir()] == ["c.sqlite"]


def test_a_newer_schema_is_refused(catalogue, tmp_path):
    catalogue._rows("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="schema 99"):
        Catalogue.open(tmp_path / "segments.sqlite")


def test_a_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    made = Catalogue.create(tmp_path / "c.sqlite")
    add(made, "one", "Some words.")
    made.commit()
    made.close()
    # permissions do not bind root
    monkeypatch.setattr("os.access", lambda path, mode: False)
    again = Catalogue.open(tmp_path / "c.sqlite")
    with again.snapshot():
        assert found(again, "words") == ["one"]
    with pytest.raises(StoreError, match="readonly"):
        add(again, "two", "More words.")
    again.close()
    assert [path.name for path in tmp_path.iterdir()] == ["c.sqlite"]
