"""GemFilter against its slow twin, and what its options do."""

import pytest
from cache_parts import lm_of, weights_of
from soft_parts import CONTEXT, save_decoder
from soft_references import gem_filter as reference

from kompakt import ConfigError, InputError, ModelError, Pipeline, load
from kompakt.compressor.cache.gem_filter import GemFilter
from kompakt.compressor.models.causal_lm import tokenize
from kompakt.compressor.store.places import open_store
from kompakt.compressor.types import as_documents
from kompakt.compressor.units.segment import segment
from kompakt.compressor.units.sentences import split_words

TEXTS = ["The treaty of 1492 was signed by the river 雪", "It rained; the tired king went home."]
QUERY = "Who signed it?"


def made(folder, **options):
    return GemFilter(**{"model": str(folder), "dtype": "float32", "device": "cpu"} | options)


def scores_of(compressor, texts=TEXTS, query=QUERY):
    units = segment(as_documents(texts), prose=split_words)
    return units, compressor.score(units, query)


def expected_scores(folder, units, *, before, tail, query, layer, kernel):
    """The score of each unit: that of the best token that reaches into it."""
    lm = lm_of(folder)
    weights, config = weights_of(folder)
    text = "\n\n".join(document.text for document in units.documents)
    tokens, before, question, tail = tokenize(lm, [text, before, f"\n\n{query}" if query else "", tail])
    before = [0, *before.ids.tolist()]
    after = [*question.ids.tolist(), *([0, *tail.ids.tolist()] if len(tail.ids) else [])]
    scores = reference.token_scores(weights, config, before, tokens.ids.tolist(), after, layer, kernel)
    offsets = [0, len(units.documents[0].text) + 2]
    found = []
    for unit in units:
        start, end = offsets[unit.document] + unit.start, offsets[unit.document] + unit.head_end
        # the tokens of one character all begin where the character does
        stops = tokens.ends.tolist()
        begins = [max([0, *(other for other in stops if other < stop)]) for stop in stops]
        reaching = (begin < end and stop > start for begin, stop in zip(begins, stops, strict=True))
        found.append(max(score for score, is_in in zip(scores, reaching, strict=True) if is_in))
    return found


@pytest.mark.parametrize(("layer", "kernel"), [(0, 5), (1, 1), (2, 3), (None, 5)])
@pytest.mark.parametrize("query", [QUERY, None])
def test_words_are_as_important_as_their_best_token(base, layer, kernel, query):
    units, found = scores_of(made(base, layer=layer, kernel=kernel), query=query)
    expected = expected_scores(
        base, units, before="", tail="", query=query, layer=1 if layer is None else layer, kernel=kernel
    )
    largest = max(map(abs, expected))
    assert found == pytest.approx(expected, abs=1e-5 * largest)


@pytest.mark.parametrize("is_chat", [True, False])
def test_the_prompt_ends_as_the_chat_format_does(chat_base, is_chat):
    units, found = scores_of(made(chat_base, layer=1, is_chat=is_chat))
    around = {"before": "user: ", "tail": "assistant:"} if is_chat else {"before": "", "tail": ""}
    expected = expected_scores(chat_base, units, query=QUERY, layer=1, kernel=5, **around)
    assert found == pytest.approx(expected, abs=1e-5 * max(map(abs, expected)))


def test_all_heads_with_keys_of_their_own(family_bases):
    folder = family_bases["all-heads"]
    units, found = scores_of(made(folder, layer=1))
    expected = expected_scores(folder, units, before="", tail="", query=QUERY, layer=1, kernel=5)
    assert found == pytest.approx(expected, abs=1e-5 * max(map(abs, expected)))


def test_models_without_rotations_choose_too(opt_base):
    result = made(opt_base).compress(TEXTS, query=QUERY, keep=0.5, tokenizer=opt_base)
    assert 0 < result.tokens_after <= 0.5 * result.tokens_before


def test_the_question_decides(base):
    compressor = made(base)
    kept = {
        compressor.compress("the treaty was signed by the river " * 8, query=query, keep=0.3, tokenizer=base).text
        for query in ("Who?", "What does the king of the hill say of rain?", None)
    }
    assert len(kept) > 1


def test_a_context_longer_than_the_model_reads_is_cut_into_windows(base):
    text = " ".join(f"word{n}" for n in range(600))
    _, found = scores_of(made(base), [text])
    assert len(tokenize(lm_of(base), [text])[0].ids) > 2 * CONTEXT
    window = CONTEXT - 1 - len("\n\n") - len(QUERY)
    # what stands in the first window does not see the second
    alone, expected = scores_of(made(base), [text[:window]])
    n_inside = len(alone) - 1
    assert found[:n_inside] == pytest.approx(expected[:n_inside], abs=1e-3)
    result = made(base).compress(text, query=QUERY, keep=0.3, tokenizer=base)
    assert result.tokens_after <= 0.3 * result.tokens_before


def test_a_question_that_fills_the_model_is_refused_with_the_fix(base):
    with pytest.raises(InputError, match=rf"takes \d+ tokens.* reads at most {CONTEXT}: shorten the question"):
        scores_of(made(base), query="x" * CONTEXT)


def test_the_layer_is_at_two_fifths_of_the_model(tmp_path):
    folder = save_decoder(tmp_path / "deep", num_hidden_layers=8)
    assert scores_of(made(folder))[1] == scores_of(made(folder, layer=3))[1]
    assert scores_of(made(folder))[1] != scores_of(made(folder, layer=4))[1]
    with pytest.raises(ModelError, match="8 layers, so 9 of them"):
        scores_of(made(folder, layer=8))


def test_scores_are_stored_by_what_decides_them(base, tmp_path):
    with open_store(tmp_path / "scores.sqlite") as store:

        def misses(query=QUERY, **options):
            pipeline = Pipeline([made(base, **options)], tokenizer=base, store=store)
            return pipeline.compress(TEXTS, query=query, keep=0.5).trace[0].cache_misses

        again = {"layer": 1}
        assert misses(**again) > 0
        pipeline = Pipeline([made(base, **again)], tokenizer=base, store=store)
        assert pipeline.compress(TEXTS, query=QUERY, keep=0.4).trace[0].cache_misses == 0
        assert misses(layer=0) > 0
        assert misses(kernel=3, **again) > 0
        assert misses(query="Another?", **again) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kernel": 2}, "odd number"), ({"kernel": 0}, "got 0"), ({"layer": -1}, "layer must be at least 0, got -1")],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        load("gemfilter", **options)
