"""Several stages under one budget, and what happens when one fails."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

import kompakt
from kompakt import BudgetError, CompressionError, ConfigError, Document, InputError, Pipeline, ValidityError
from kompakt.compressor.base import ScoringCompressor, make_request
from kompakt.compressor.pipeline import Stage

TEXT = " ".join(f"Sentence number {n} tells of ship {n * 7} and its cargo of glass." for n in range(40))


@dataclass(frozen=True)
class Failing(ScoringCompressor):
    """Fails on documents that say so."""

    error: type[Exception] = RuntimeError
    name: ClassVar[str] = "failing"

    def score(self, units, query):
        if any("boom" in document.text for document in units.documents):
            raise self.error("the scorer broke")
        return [0.0] * len(units)


@dataclass(frozen=True)
class Wrong(ScoringCompressor):
    """Gives scores that make no sense."""

    scores: tuple[float, ...] = ()
    name: ClassVar[str] = "wrong"

    def score(self, units, query):
        return self.scores or [float("nan")] * len(units)


def test_two_equal_stages_share_the_way_geometrically():
    result = Pipeline(["lexical", "structured"]).compress(TEXT, query="ship 77", keep=0.25)
    first, second = result.trace
    assert first.tokens_before == result.tokens_before
    assert 0.45 <= first.tokens_after / first.tokens_before <= 0.5
    assert second.tokens_after <= 0.25 * result.tokens_before
    assert result.tokens_after == second.tokens_after


def test_shares_weigh_the_stages():
    stages = [Stage(kompakt.load("lexical"), share=3), Stage(kompakt.load("structured"), share=1)]
    first = Pipeline(stages).compress(TEXT, query="ship 77", keep=0.25).trace[0]
    assert 0.32 <= first.tokens_after / first.tokens_before <= 0.25**0.75 + 0.001


def test_a_stage_that_removes_redundancy_takes_no_share():
    result = Pipeline(["dedup", "lexical"]).compress(f"{TEXT} {TEXT}", query="ship 77", keep=0.25)
    first, second = result.trace
    assert 0.45 <= first.tokens_after / first.tokens_before <= 0.52
    assert second.tokens_after <= 0.25 * result.tokens_before


def test_spans_point_to_the_first_sources_through_all_stages():
    documents = [Document(TEXT, "a"), Document("Intro. " + TEXT, "b")]
    result = Pipeline(["dedup", "lexical", "structured"]).compress(documents, query="ship 77", keep=0.2)
    sources = {document.id: document.text for document in documents}
    for part in result.parts:
        bounds = [*part.starts, len(part.text)]
        for span, start, end in zip(part.spans, bounds, bounds[1:], strict=False):
            if span.kind == "prose":
                assert sources[span.document_id][span.start : span.end] == part.text[start:end]
    assert result.sources == tuple(documents)


def test_protected_text_survives_every_stage():
    result = kompakt.compress(
        TEXT, query="ship 77", keep=0.2, protect=["ship 203"], compressor=Pipeline(["lexical", "structured"])
    )
    assert "ship 203" in result.text


def test_failure_passes_the_input_through_with_the_reason(caplog):
    result = Pipeline(["lexical", Failing()]).compress([TEXT, "boom boom."], max_tokens=40, query="boom")
    assert result.outcome.status == "passed_through"
    assert result.outcome.reason == "failing failed: RuntimeError: the scorer broke"
    assert result.text == f"{TEXT}\n\nboom boom."
    assert result.tokens_after == result.tokens_before
    assert "the scorer broke" in caplog.text
    assert result.explain().startswith("passed through: failing failed")


def test_failure_of_one_request_leaves_the_others_alone():
    pipeline = Pipeline([Failing()])
    good, bad, also = kompakt.compress_batch([TEXT, f"{TEXT} boom", TEXT], keep=0.5, compressor=pipeline)
    assert [one.outcome.status.value for one in (good, bad, also)] == ["compressed", "passed_through", "compressed"]
    assert good.parts == also.parts


def test_strict_and_raise():
    with pytest.raises(CompressionError, match="failing failed: RuntimeError"):
        Pipeline([Failing()], strict=True).compress(f"{TEXT} boom", keep=0.5)
    with pytest.raises(RuntimeError, match="the scorer broke"):
        Pipeline([Failing()], on_error="raise").compress(f"{TEXT} boom", keep=0.5)
    with pytest.raises(CompressionError):
        kompakt.compress(f"{TEXT} boom", keep=0.5, compressor=Failing(), strict=True)


@pytest.mark.parametrize("error", [BudgetError, ConfigError, InputError, kompakt.ModelNotFoundError])
def test_what_is_the_callers_to_mend_is_never_passed_through(error):
    with pytest.raises(error, match="the scorer broke"):
        Pipeline([Failing(error)]).compress(f"{TEXT} boom", keep=0.5)


@pytest.mark.parametrize("scores", [(), (1.0,)], ids=["not finite", "too few"])
def test_scores_that_make_no_sense_are_caught(scores):
    with pytest.raises(ValidityError, match="one finite score a unit"):
        Wrong(scores).compress(TEXT, keep=0.5)
    assert Pipeline([Wrong(scores)]).compress(TEXT, keep=0.5).outcome.status == "passed_through"


def test_the_context_without_room_is_named():
    data = '{"a": "' + "x" * 2000 + '", "b": 2}'
    with pytest.raises(BudgetError, match=r"^context 2 of 3: "):
        kompakt.compress_batch(["short one here.", data, TEXT], max_tokens=3, compressor="lexical")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Pipeline([]), "at least one"),
        (lambda: Pipeline("lexical"), "list"),
        (lambda: Pipeline([3]), "registry name"),
        (lambda: Pipeline(["lexcial"]), "did you mean 'lexical'"),
        (lambda: Pipeline(["lexical"], on_error="ignore"), "on_error"),
        (lambda: Stage(kompakt.load("lexical"), share=0), "share"),
    ],
)
def test_bad_pipelines_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_an_empty_batch_and_empty_texts():
    assert Pipeline(["lexical"]).compress_batch([]) == []
    for empty in ("", [], [""], ["", ""]):
        result = kompakt.compress(empty, max_tokens=5, compressor="lexical")
        assert result.outcome.status == "fits"
        assert result.text.strip() == ""


def test_fingerprint_follows_stages_and_options():
    prints = {
        Pipeline(["lexical"]).fingerprint,
        Pipeline(["structured"]).fingerprint,
        Pipeline(["lexical", "structured"]).fingerprint,
        Pipeline(["lexical"], mark_omissions=True).fingerprint,
        Pipeline([Stage(kompakt.load("dedup", min_words=9))]).fingerprint,
    }
    assert len(prints) == 5
    assert Pipeline(["lexical"]).fingerprint in prints


def test_request_says_whose_tokens_count():
    request = make_request(TEXT, budget=kompakt.Budget(keep=0.5), tokenizer="cl100k_base")
    assert request.tokenizer.name == "cl100k_base"
    assert Pipeline(["lexical"], tokenizer="cl100k_base").compress(TEXT, keep=0.5).tokens_before == (
        request.tokenizer.count(TEXT)
    )


def test_decisions_of_every_stage_point_to_the_first_sources():
    documents = [Document(TEXT, "a"), Document("Intro. " + TEXT, "b")]
    result = kompakt.compress(documents, compressor=Pipeline(["lexical", "structured"]), keep=0.2, record=True)
    sources = {document.id: document.text for document in documents}
    count = make_request("", budget=kompakt.Budget(1)).tokenizer.count
    by_stage = {stage: [d for d in result.decisions if d.stage == stage] for stage in ("lexical", "structured")}
    assert list(result.decisions) == by_stage["lexical"] + by_stage["structured"]

    for name, text in sources.items():
        own = [decision.span for decision in by_stage["lexical"] if decision.span.document_id == name]
        assert "".join(text[span.start : span.end] for span in own) == text
    first = {decision.span for decision in by_stage["lexical"] if decision.is_kept}
    # what the first stage kept is what the second decided on, but for white space that was trimmed
    second = {
        (d.span.document_id, sources[d.span.document_id][d.span.start : d.span.end]) for d in by_stage["structured"]
    }
    assert {text.strip() for _, text in second} == {sources[s.document_id][s.start : s.end].strip() for s in first}
    kept = [sources[d.span.document_id][d.span.start : d.span.end] for d in by_stage["structured"] if d.is_kept]
    assert all(text.strip() in result.text for text in kept)
    assert sum(map(count, kept)) == pytest.approx(result.tokens_after, abs=3)


def test_no_decisions_unless_asked_for_or_where_nothing_was_decided():
    pipeline = Pipeline(["lexical", "structured"])
    assert kompakt.compress(TEXT, compressor=pipeline, keep=0.2).decisions == ()
    assert kompakt.compress(TEXT, compressor=pipeline, keep=1.0, record=True).decisions == ()
    failed = kompakt.compress(
        f"{TEXT} boom", compressor=Pipeline(["lexical", Failing()]), max_tokens=400, record=True
    )
    assert (failed.outcome.status, failed.decisions) == ("passed_through", ())


def test_to_forget_reaches_every_stage():
    class Remembering(Failing):
        n_forgotten = 0

        def forget(self):
            type(self).n_forgotten += 1

    Pipeline([Remembering(), "lexical", Pipeline([Remembering()])]).forget()
    assert Remembering.n_forgotten == 2


@pytest.mark.parametrize(
    ("keep", "error", "words"),
    [
        ({"proze": 0.5}, ConfigError, "no kind of document 'proze'.*prose, code, json, log, table"),
        ({"message": 0.5}, ConfigError, "no kind of document 'message'"),
        ({3: 0.5}, ConfigError, "no kind of document 3"),
        (0.5, ConfigError, "must be a table of fractions by kind of document, got 0.5"),
        ({"prose": 0}, BudgetError, "keep of prose must be above 0"),
        ({"prose": 0.5, "json": 2}, BudgetError, "keep of json must be above 0 and at most 1"),
        ({"prose": "half"}, BudgetError, "keep of prose must be a number, got 'half'"),
    ],
)
def test_bad_budgets_by_kind_are_named(keep, error, words):
    with pytest.raises(error, match=words):
        Pipeline(["lexical"], keep=keep)
