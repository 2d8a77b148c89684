"""An index of segments: what is added is found, by every object and process that may see it, whatever happens."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_parts import DOCUMENTS, MODES, QUERIES, BrokenEncoder, WordEncoder, answers, create, places, reopen
from strategies import any_texts

from kompakt import ConfigError, Document, InputError, ModelError
from kompakt.compressor.errors import StoreError
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.retrieval.index import AddReport, SegmentIndex

pytest.importorskip("faiss")


def test_segments_are_ranges_of_their_documents(index):
    sources = {document.id: document for document in DOCUMENTS}
    hits = index.search("the Danube rises", k=20)
    assert len(hits) == len(index) == 5
    for hit in hits:
        source = sources[hit.segment.document_id]
        assert hit.segment.text == source.text[hit.segment.start : hit.segment.end]
        assert hit.segment.metadata == source.metadata
    assert hits[0].segment.text.startswith("# Danube")
    assert hits[0].segment.context == "Rivers of Europe"
    assert [known.id for known in index.documents()] == ["rivers", "tower", "food", "bridge"]


@settings(max_examples=25)
@given(st.lists(any_texts, min_size=1, max_size=4))
def test_any_text_can_be_added(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("any") / "index"
    documents = [Document(text, id=str(n)) for n, text in enumerate(found)]
    with create(folder, chunk_tokens=8) as made:
        assert made.add(documents).n_added == len(documents)
    with reopen(folder) as again:
        assert again.add(documents) == AddReport(0, len(documents), 0, 0)
        for hit in again.search("the", k=500, mode="vector"):
            source = found[int(hit.segment.document_id)]
            assert hit.segment.text == source[hit.segment.start : hit.segment.end]


def test_hits_say_where_they_come_from(index):
    by_words = index.search("iron tower", mode="words")
    by_meaning = index.search("iron tower", k=2, mode="vector")
    both = index.search("iron tower", k=3, candidates=1)
    assert [hit.segment.document_id for hit in by_words] == ["tower"]
    assert (by_words[0].vector_rank, by_words[0].word_rank) == (None, 1)
    assert [(hit.vector_rank, hit.word_rank) for hit in by_meaning] == [(1, None), (2, None)]
    assert 0 < by_meaning[0].score <= 1
    assert both[0].segment == by_words[0].segment
    assert (both[0].vector_rank, both[0].word_rank) == (1, 1)
    assert both[0].score == pytest.approx(2 / 61)
    assert [(hit.vector_rank, hit.word_rank) for hit in both[1:]] == [(2, None), (3, None)]
    assert [len(index.search("iron tower", k, mode=mode)) for mode in MODES for k in (1, 3)] == [1, 3, 1, 3, 1, 1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"year": {">=": 1849, "<": 1900}}, {"tower", "bridge"}),
        ({"lang": ["de", "fr"]}, {"food"}),
        ({"year": None}, {"food"}),
        ({"year": 1}, set()),
        ({}, {"rivers", "tower", "food", "bridge"}),
    ],
)
def test_filters(index, mode, where, expected):
    query = "Danube tower bread bridge rises"
    assert {hit.segment.document_id for hit in index.search(query, where=where, mode=mode)} == expected


def test_what_is_there_already_is_not_added_again(index):
    assert index.add(DOCUMENTS) == AddReport(0, 4, 0, 0)
    changed = [
        Document("A tower of steel.", id="tower", metadata={"year": 1889, "lang": "en"}),
        Document(DOCUMENTS[2].text, id="food", metadata={"lang": "fr"}),
        DOCUMENTS[3],
        Document("Something new.", id="new"),
        Document(" \n", id="blank"),
    ]
    assert index.add(iter(changed)) == AddReport(2, 1, 2, 3)
    assert index.search("tower", mode="words")[0].segment.text == "A tower of steel."
    assert index.search("iron", mode="words") == []
    assert index.search("bread", mode="words", where={"lang": "fr"}) != []
    assert (len(index), len(index.documents())) == (6, 6)
    assert index.add(Document("x", id="one", metadata={"a": 1})).n_added == 1
    assert index.add(Document("x", id="one", metadata={"a": True})).n_replaced == 1


def test_what_is_deleted_is_not_found(index):
    assert index.delete(["rivers", "no such"]) == 1
    assert {hit.segment.document_id for hit in index.search("Danube", k=9)} == {"tower", "food", "bridge"}
    assert [hit.segment.document_id for hit in index.search("Danube", mode="words")] == ["bridge"]
    assert index.delete([]) == 0
    assert index.delete(known.id for known in index.documents()) == 3
    assert (len(index), index.search("Danube")) == (0, [])


VOCABULARY = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda my ny xi omikron pi rho sigma tau".split()
)
words = st.lists(st.sampled_from(VOCABULARY), min_size=3, max_size=30).map(" ".join)
steps = st.lists(
    st.tuples(st.sampled_from(["add", "add", "delete", "reopen"]), st.integers(0, 6), words), max_size=12
)


@settings(max_examples=25)
@given(steps, words)
def test_changes_lead_to_the_same_as_a_fresh_build(tmp_path_factory, changes, query):
    folder = tmp_path_factory.mktemp("steps")
    current = {}
    changed = create(folder / "changed", chunk_tokens=8)
    for action, name, text in changes:
        if action == "add":
            changed.add(Document(text, id=str(name)))
            current[str(name)] = text
        elif action == "delete":
            assert changed.delete([str(name)]) == (str(name) in current)
            current.pop(str(name), None)
        else:
            changed.close()
            changed = reopen(folder / "changed")
    with changed, create(folder / "fresh", chunk_tokens=8) as fresh:
        fresh.add(Document(text, id=name) for name, text in current.items())
        assert len(changed) == len(fresh)
        for mode in ("vector", "words"):
            # equals come in the order in which they were added
            one, other = (sorted(places(built.search(query, 500, mode=mode))) for built in (changed, fresh))
            assert one == other


def test_segments_are_encoded_in_batches(tmp_path):
    encoder = WordEncoder()
    with SegmentIndex.create(tmp_path / "index", encoder=encoder, chunk_tokens=4) as made:
        made.add(Document(f"Number {n} of many. And {n} more.", id=str(n)) for n in range(300))
        assert sum(encoder.batches) == len(made) > 512
        assert max(encoder.batches) == 256


def test_a_failed_addition_changes_nothing(index, tmp_path):
    before = answers(index)
    index._vectors._encoder = BrokenEncoder()
    many = [Document(f"Tower number {n}.", id=f"new {n}") for n in range(300)]
    with pytest.raises(RuntimeError, match="out of memory"):
        index.add([Document("A wooden tower.", id="tower"), *many])
    index._vectors._encoder = WordEncoder()

    def interrupted():
        yield from [Document("A wooden tower.", id="tower"), *many]
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        index.add(interrupted())
    with pytest.raises(InputError, match="no JSON"):
        index.add([*many, Document("x", id="x", metadata={"at": object()})])
    assert answers(index) == before
    assert index.add([Document("A wooden tower.", id="tower"), *many]) == AddReport(300, 0, 1, 301)
    assert index.search("wooden", mode="words")[0].segment.document_id == "tower"


def test_threads_may_search_while_one_adds(index):
    stop = threading.Event()

    def search(query):
        n = 0
        while not stop.is_set() or not n:
            assert all(hit.segment.text for hit in index.search(query, k=50))
            n += 1
        return n

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(search, query) for query in QUERIES[:3]]
        for n in range(30):
            index.add(Document(f"A bridge of iron, number {n}.", id=f"d{n}"))
            index.delete([f"d{n - 3}"])
        stop.set()
        assert all(one.result() for one in running)
    assert len(index.documents()) == 4 + 3


def test_another_encoder_or_tokenizer_is_refused(index, tmp_path):
    index.close()
    other = WordEncoder()
    other.fingerprint = "words-other"
    with pytest.raises(StoreError, match=r"another encoder: one without a name \(words-256\), .* \(words-other\)"):
        reopen(tmp_path / "index", encoder=other)
    with pytest.raises(StoreError, match="give it as encoder="):
        SegmentIndex.open(tmp_path / "index")
    with reopen(tmp_path / "index", tokenizer=load_tokenizer("cl100k_base")) as again:
        assert again.search("tower")
        with pytest.raises(StoreError, match=r"another tokenizer: o200k_base .* and this is cl100k_base"):
            again.add(Document("x", id="x"))


@pytest.mark.parametrize(
    ("output", "message"),
    [(np.zeros((3, 4)), r"got \[3, 4\]"), (np.full((1, 4), np.nan), "finite"), (np.zeros(4), r"got \[4\]")],
)
def test_an_encoder_that_returns_something_else_is_named(tmp_path, output, message):
    encoder = WordEncoder()
    encoder.encode = lambda texts: output
    with SegmentIndex.create(tmp_path / "index", encoder=encoder) as made:
        with pytest.raises(ModelError, match=message):
            made.add(Document("x", id="x"))
        assert len(made) == 0


def test_a_segment_without_words_is_no_problem(tmp_path):
    with create(tmp_path / "index") as made:
        made.add([Document("?!", id="a"), Document("word", id="b")])
        assert [hit.segment.document_id for hit in made.search("word", mode="vector")] == ["b", "a"]
        assert len(made.search("...")) == 2
        assert made.search("...", mode="words") == []


def test_importing_it_loads_nothing_heavy():
    heavy = ("faiss", "numpy", "torch", "transformers")
    code = f"import sys, kompakt.retrieval.index; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_an_empty_index_can_be_saved_and_searched(tmp_path):
    create(tmp_path / "index").close()
    with reopen(tmp_path / "index") as made:
        assert (made.search("word"), len(made), made.documents()) == ([], 0, [])
        made.add(Document(" ", id="blank"))
        assert made.search("word") == []
    with reopen(tmp_path / "index") as made:
        assert [known.n_segments for known in made.documents()] == [0]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("text", "got str"),
        (None, "got NoneType"),
        (["text"], "Documents with ids, got 'text'"),
        ([Document("text")], "needs an id"),
        ([Document("a", id="x"), Document("b", id="x")], "two documents have the id 'x'"),
        ([Document("\ud800", id="x")], "lone surrogate"),
        ([Document("a", id="\ud800")], "lone surrogate"),
    ],
)
def test_documents_that_cannot_be_added_are_named(index, documents, message):
    with pytest.raises(InputError, match=message):
        index.add(documents)
    assert len(index) == 5


def test_bad_searches_are_named(index):
    for query in ("", " \n", None):
        with pytest.raises(InputError, match="query must be a string that is not blank"):
            index.search(query)
    with pytest.raises(InputError, match="lone surrogate"):
        index.search("\ud800")
    with pytest.raises(InputError, match="no operator"):
        index.search("x", where={"a": {"like": 1}})
    for options in ({"k": 0}, {"candidates": 2.5}, {"mode": "magic"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            index.search("x", **options)
    for names in ("food", [1]):
        with pytest.raises(InputError, match="document_ids must be a list of strings"):
            index.delete(names)


PASSAGES = {
    "volcano": "Molten rock rose through the crust and burst from the summit, covering the valley in ash.",
    "bakery": "Every morning at four the ovens are lit, and by six the first loaves are ready for the customers.",
    "court": "The judge ruled that the contract was void because one party had been misled about the price.",
    "orbit": "The probe used the gravity of Venus to gain speed on its way to the outer planets.",
    "vaccine": "Two weeks after the injection, most of the volunteers had enough antibodies to be protected.",
    "harvest": "Because of the long drought, farmers gathered only half as much wheat as the year before.",
}
QUESTIONS = {
    "volcano": "What happened during the eruption?",
    "bakery": "When is fresh bread available?",
    "court": "Why was the agreement declared invalid?",
    "orbit": "How did the spacecraft accelerate?",
    "vaccine": "How long does immunity take to develop after the shot?",
    "harvest": "What did the lack of rain do to crops?",
}


@pytest.mark.models
def test_the_right_passage_is_first_although_the_words_differ(tmp_path):
    with SegmentIndex.create(tmp_path / "index") as made:
        made.add(Document(text, id=name) for name, text in PASSAGES.items())
    with SegmentIndex.open(tmp_path / "index") as again:
        for name, question in QUESTIONS.items():
            for mode in ("vector", "hybrid"):
                assert again.search(question, mode=mode)[0].segment.document_id == name, (question, mode)
        assert again.search("gravity of Venus", mode="words")[0].segment.document_id == "orbit"


@pytest.mark.models
def test_an_index_of_another_model_is_refused(tmp_path):
    create(tmp_path / "index").close()
    with pytest.raises(StoreError, match=r"\(words-256\), and this is minilm-l6 \([0-9a-f]{64}\)"):
        SegmentIndex.open(tmp_path / "index", encoder="minilm-l6")
    SegmentIndex.create(tmp_path / "named", encoder="minilm-l6").close()
    with pytest.raises(StoreError, match=r"minilm-l6 \([0-9a-f]{64}\), and this is one without a name \(words-256\)"):
        reopen(tmp_path / "named")
