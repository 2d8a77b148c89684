"""Extraction by embeddings and words."""

import numpy as np
import pytest

import kompakt
from kompakt import ConfigError, Document
from kompakt.compressor.store.artefacts import process_store
from kompakt.compressor.text.extractive import _closest_earlier, centrality_less_redundancy
from kompakt.compressor.text.spread import second_look, to_antecedents
from kompakt.compressor.units.segment import segment

PASSAGE = (
    "The observatory stands on a ridge above the town. Visitors come in summer for the view. "
    "Its main telescope, installed in 1961, has a mirror two metres wide. The café sells soup and bread. "
    "In winter the road is often closed by snow. The dome was repainted white last year."
)


@pytest.mark.models
def test_meaning_counts_where_words_differ():
    small = kompakt.compress(
        PASSAGE, query="How large is the instrument's reflector?", max_tokens=22, compressor="extractive"
    )
    assert "two metres wide" in small.text


@pytest.mark.models
def test_without_a_query_what_was_said_before_goes_first():
    text = (
        "The bridge was closed for repairs in May. Ferries carried passengers meanwhile. "
        "Repair work kept the bridge shut during May."
    )
    small = kompakt.compress(text, keep=0.75, compressor="extractive")
    assert "closed for repairs" in small.text
    assert "kept the bridge shut" not in small.text


@pytest.mark.models
@pytest.mark.parametrize("chunk_tokens", [10, 30])
def test_chunks_end_at_sentences(chunk_tokens):
    compressor = kompakt.load("extractive", granularity="chunk", chunk_tokens=chunk_tokens)
    small = kompakt.compress(PASSAGE, query="When was the telescope installed?", keep=0.5, compressor=compressor)
    assert "1961" in small.text
    assert small.text.endswith(".")


@pytest.mark.models
def test_embeddings_are_remembered_and_can_be_forgotten():
    from kompakt.compressor.models.sentence_encoder import load_sentence_encoder

    encoder = load_sentence_encoder("minilm-l6")
    kompakt.load("extractive").forget()
    first = encoder.encode(["a river", "a ridge", "a river"])
    assert process_store().stats().n_entries == 2
    assert first.shape == (3, 384)
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-3)
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(first[:2], encoder.encode(["a river", "a ridge"]))
    kompakt.load("extractive").forget()
    assert process_store().stats().n_entries == 0
    alone = encoder.encode(["a river"])
    assert np.allclose(alone[0], first[0], atol=0.02)


@pytest.mark.parametrize("options", [{"granularity": "word"}, {"chunk_tokens": 0}, {"model": 3}])
def test_bad_options_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        kompakt.load("extractive", **options)


def test_a_missing_model_is_named_with_its_command(empty_cache):
    with pytest.raises(kompakt.ModelNotFoundError, match="kompakt models pull minilm-l6"):
        kompakt.compress(PASSAGE, keep=0.5, compressor="extractive")


def test_closest_earlier_equals_its_definition():
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = [max((float(vectors[i] @ vectors[j]) for j in range(i)), default=0.0) for i in range(40)]
    assert np.allclose(_closest_earlier(vectors), np.maximum(expected, 0.0))


def test_redundancy_lowers_the_later_of_two():
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    scores = centrality_less_redundancy([0, 0, 0], vectors)
    assert scores[2] < scores[0]


def test_second_look_finds_what_the_first_names():
    documents = [
        Document(
            "Night Ferry is a film of 1951. It was directed by Ida Moran.", id="0", metadata={"title": "Night Ferry"}
        ),
        Document("Ida Moran was married to the painter Paul Lind.", id="1", metadata={"title": "Ida Moran"}),
        Document(
            "Ferries cross the strait at night. Tickets cost two crowns.", id="2", metadata={"title": "Ferries"}
        ),
    ]
    units = segment(documents)
    scores = np.array([0.8, 1.0, 0.1, 0.3, 0.0])[: len(units)]
    raised = second_look(units, scores, "Who is the spouse of the director of Night Ferry?")
    target = next(index for index, unit in enumerate(units) if "Paul Lind" in unit.text)
    assert raised[target] > 0.5
    assert all(raised[index] == scores[index] for index in range(len(units)) if index != target)


def test_a_pronoun_raises_the_sentence_before_it():
    units = segment([Document("Ada built the engine. It ran on steam. Nobody came.", id="0")])
    assert to_antecedents(units, np.array([0.0, 1.0, 0.0])).tolist() == [pytest.approx(0.7), 1.0, 0.0]
