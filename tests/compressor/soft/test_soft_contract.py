"""The promises that every compressor keeps whose output is embeddings."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kompakt import BudgetError, ConfigError, Document, InputError, ModelError, Pipeline, load
from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.backend import Prompt
from kompakt.compressor.base import Budget, make_request
from kompakt.compressor.cli import run as run_command
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.parts import EmbedsPart, TextPart
from kompakt.compressor.registry import compressor_class, compressor_names
from kompakt.compressor.store.codec import TensorCodec
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.store.places import open_store
from kompakt.compressor.types import Status

OPTIONS = {
    "arc-encoder": [{}, {"special": "rec"}],
    "auto-compressor": [{}, {"cacheable": True}],
    "compllm": [{}, {"rates": (4, 8)}],
    "extensible-tokenization": [{}],
    "icae": [{}, {"marker": "ft"}],
}
SOFT = [name for name in compressor_names() if compressor_class(name).emits == "embeds"]
CASES = [(name, options) for name in SOFT for options in OPTIONS.get(name, [{}])]
WORDS = st.sampled_from("river danube flows through vienna and budapest, 1492; 雪 ünï the quick treaty".split())
TEXTS = st.lists(WORDS, min_size=12, max_size=40).map(" ".join)
KEEPS = st.floats(0.45, 0.9)
"""Fractions that every method can meet for texts of these lengths."""


def named(case):
    return "-".join([case[0], *map(str, case[1].values())])


def made(case, base):
    name, options = case
    return load(name, base=base, dtype="float32", device="cpu", **options)


@pytest.fixture(scope="module", params=CASES, ids=named)
def encoder(request, base, small_settings):
    return made(request.param, base)


SEQUENTIAL = [("auto-compressor", {})]
JOINED = [case for case in CASES if case not in [*SEQUENTIAL, ("icae", {"marker": "ft"})]]


@pytest.fixture(scope="module", params=JOINED, ids=named)
def local(request, base, small_settings):
    return made(request.param, base)


@pytest.fixture(scope="module", params=SEQUENTIAL, ids=named)
def sequential(request, base, small_settings):
    return made(request.param, base)


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


@pytest.fixture(scope="module")
def reader(base):
    return TransformersBackend(base, "float32", "cpu")


def examples(n):
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=n, deadline=None, suppress_health_check=quiet)


def run(encoder, tokenizer, documents, **options):
    """The result, or None where the budget cannot hold what it must."""
    try:
        return encoder.compress(documents, tokenizer=tokenizer, **options)
    except BudgetError:
        return None


def vectors_of(*results):
    found = [part.vectors for result in results for part in result.parts if isinstance(part, EmbedsPart)]
    return torch.cat(found) if found else torch.empty(0, 32)


def same(one, two):
    return one.shape == two.shape and torch.allclose(one, two, atol=1e-5, rtol=1e-4)


@examples(12)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), keep=st.floats(0.3, 0.9))
def test_the_ceiling_is_kept_and_every_position_is_counted(encoder, tokenizer, reader, texts, keep):
    result = run(encoder, tokenizer, texts, keep=keep)
    assume(result is not None)
    assert result.tokens_after <= keep * result.tokens_before
    assert result.outcome.status is Status.COMPRESSED
    assert result.n_bytes > 0
    assert result.sources == result.documents
    assert "".join(part.source.text for part in result.parts) == "".join(texts)
    placed = reader._place(Prompt(result.parts, is_chat=False), reserved=0)
    # the reader begins with one token of its own, and joins neighbouring texts, which may save some
    assert placed.n_positions - 1 <= result.tokens_after
    if "text" not in result.forms:
        assert placed.n_positions - 1 == result.tokens_after


@examples(10)
@given(text=TEXTS, small=st.integers(20, 120), more=st.integers(0, 60))
def test_a_larger_budget_never_keeps_less(encoder, tokenizer, text, small, more):
    less, larger = (run(encoder, tokenizer, text, max_tokens=size) for size in (small, small + more))
    assume(less is not None)
    assert larger is not None
    assert less.tokens_after <= larger.tokens_after


@examples(6)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_a_roomy_budget_is_lossless(encoder, tokenizer, texts):
    result = encoder.compress(texts, keep=1.0, tokenizer=tokenizer)
    assert result.outcome.status is Status.FITS
    assert result.text == "\n\n".join(texts)


def test_nothing_gives_nothing_and_leaves_the_state_as_it_was(encoder, tokenizer):
    first = encoder.compress("word " * 80, keep=0.5, tokenizer=tokenizer)
    for documents in ([], "", [""]):
        result = encoder.compress(documents, max_tokens=5, tokenizer=tokenizer, state=first.state)
        assert (result.parts, result.tokens_after, result.state) == ((), 0, first.state)


@examples(8)
@given(texts=st.lists(TEXTS, min_size=2, max_size=3), order=st.permutations(range(3)), keep=KEEPS)
def test_segments_that_stand_alone_can_be_joined_in_any_order(local, tokenizer, texts, order, keep):
    assert local.locality == "segment"
    alone = [run(local, tokenizer, text, keep=keep) for text in texts]
    assume(all(result is not None for result in alone))
    chosen = [index for index in order if index < len(texts)]
    together = local.compress([texts[index] for index in chosen], keep=keep, tokenizer=tokenizer)
    assert same(vectors_of(together), vectors_of(*(alone[index] for index in chosen)))


@examples(8)
@given(first=TEXTS, second=TEXTS, keep=KEEPS)
def test_a_state_goes_on_where_the_call_before_ended(sequential, tokenizer, first, second, keep):
    encoder = sequential
    alone = run(encoder, tokenizer, first, keep=keep)
    assume(alone is not None)
    following = run(encoder, tokenizer, second, keep=keep, state=alone.state)
    assume(following is not None)
    together = encoder.compress([first, second], keep=keep, tokenizer=tokenizer)
    assert same(vectors_of(together), vectors_of(alone, following))
    assert together.state.compressor == encoder.fingerprint
    assert same_state(together.state, following.state)


def same_state(one, two):
    from safetensors.torch import load as load_tensors

    return same(load_tensors(one.data)["prefix"], load_tensors(two.data)["prefix"])


def test_states_of_others_and_damaged_ones_are_refused(sequential, tokenizer):
    encoder = sequential
    state = encoder.compress("word " * 80, keep=0.5, tokenizer=tokenizer).state
    for wrong in (replace(state, compressor="another"), replace(state, data=b"damaged")):
        with pytest.raises(InputError, match="state"):
            encoder.compress("word " * 80, keep=0.5, tokenizer=tokenizer, state=wrong)


@examples(5)
@given(texts=st.lists(TEXTS, min_size=2, max_size=4), keep=KEEPS)
def test_a_batch_equals_one_by_one_and_a_query_changes_nothing(encoder, tokenizer, texts, keep):
    requests = [make_request(text, budget=Budget(keep=keep), tokenizer=tokenizer, query="Who?") for text in texts]
    alone = [run(encoder, tokenizer, text, keep=keep) for text in texts]
    assume(all(result is not None for result in alone))
    encoder.forget()
    for one, result in zip(encoder.compress_batch(requests), alone, strict=True):
        assert same(vectors_of(one), vectors_of(result))
        assert one.tokens_after == result.tokens_after


@examples(6)
@given(parts=st.lists(TEXTS, min_size=3, max_size=3), keep=st.floats(0.7, 0.95))
def test_protected_text_stays_text_in_its_place(encoder, tokenizer, parts, keep):
    before, kept, after = parts
    text = f"{before} {kept} {after}"
    start = len(before) + 1
    document = Document(text, id="d", protected=((start, start + len(kept)),))
    result = run(encoder, tokenizer, document, keep=keep)
    assume(result is not None)
    assert "".join(part.source.text for part in result.parts) == text
    spans = [span for part in result.parts if isinstance(part, TextPart) for span in part.spans]
    assert any(span.start <= start and span.end >= start + len(kept) for span in spans)
    assert all(text[span.start : span.end] for span in result.spans)


def test_a_chat_stays_text(encoder, tokenizer):
    chat = json.dumps([{"role": "system", "content": "Be brief. " * 9}, {"role": "user", "content": "Hello"}])
    result = encoder.compress([chat, "word " * 300], keep=0.9, tokenizer=tokenizer)
    assert result.parts[0].text == chat
    assert any(isinstance(part, EmbedsPart) for part in result.parts)


@pytest.mark.parametrize("precision", ["full", "int8", "int4"])
def test_what_the_store_gives_back_is_what_was_made(encoder, tokenizer, reader, tmp_path, precision):
    text = "the treaty of 1492 was signed by the river, " * 8
    chosen = replace(encoder, precision=precision)
    with open_store(tmp_path / "vectors.sqlite") as store:
        fresh = Pipeline([chosen], tokenizer=tokenizer, store=store).compress(text, keep=0.5)
        chosen.forget()
        stored = Pipeline([replace(chosen)], tokenizer=tokenizer, store=store).compress(text, keep=0.5)
    assert fresh.parts == stored.parts
    assert stored.trace[0].cache_misses == 0 < stored.trace[0].cache_hits
    exact = encoder.compress(text, keep=0.5, tokenizer=tokenizer)
    error = (vectors_of(stored) - vectors_of(exact)).pow(2).mean().sqrt() / vectors_of(exact).pow(2).mean().sqrt()
    # a sequential method reads its own rounded vectors, so its error grows
    assert error <= {"full": 1e-6, "int8": 0.02, "int4": 0.25}[precision]
    answers = [reader.generate(Prompt(one.parts, is_chat=False), max_new_tokens=5) for one in (fresh, stored)]
    assert answers[0].token_ids == answers[1].token_ids


class Recording(MemoryStore):
    """Remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def put_many(self, items):
        self.given += items.values()
        super().put_many(items)


def test_quantised_vectors_state_their_error(encoder, tokenizer):
    store = Recording()
    pipeline = Pipeline([replace(encoder, precision="int8")], tokenizer=tokenizer, store=store)
    pipeline.compress("the treaty of 1492 was signed by the river, " * 8, keep=0.5)
    errors = [TensorCodec.errors(data)["vectors"].relative for data in store.given if b"::codes" in data]
    assert errors
    assert all(0 < error < 0.02 for error in errors)


def test_a_saved_checkpoint_encodes_as_the_original(encoder, tokenizer, tmp_path):
    text = "the treaty of 1492 was signed by the river, " * 8
    folder = str(encoder.save(tmp_path / "weights", made_from="nothing"))
    options = {key: value for key, value in encoder.options.items() if key != "base"}
    again = load(encoder.name, **options | {"checkpoint": folder})
    one, two = (item.compress(text, keep=0.5, tokenizer=tokenizer) for item in (encoder, again))
    assert same(vectors_of(one), vectors_of(two))
    assert (one.trace[0].note, two.trace[0].note) == ("untrained weights", "")
    with pytest.raises(ConfigError, match="holds a checkpoint already"):
        encoder.save(folder)
    with pytest.raises(ModelError, match="holds weights of"):
        load(next(name for name in SOFT if name != encoder.name), checkpoint=folder).compress("a " * 99, keep=0.5)


def test_a_pipeline_carries_vectors_from_its_last_stage_only(encoder, tokenizer):
    text = "the treaty of 1492 was signed by the river. It rained. " * 8
    alone = encoder.compress(text, keep=0.5, tokenizer=tokenizer)
    piped = Pipeline([encoder], tokenizer=tokenizer).compress(text, keep=0.5)
    assert piped.parts == alone.parts
    with pytest.raises(ConfigError, match="put it last"):
        Pipeline([encoder, "dedup"])
    behind = Pipeline(["lexical", encoder], tokenizer=tokenizer).compress(text, keep=0.4)
    assert behind.tokens_after <= 0.4 * behind.tokens_before
    for span, piece in itertools.chain.from_iterable(pieces(part) for part in behind.parts):
        assert span.kind in ("omission", "separator") or text[span.start : span.end] == piece


def pieces(part):
    source = part.source
    ends = [*source.starts[1:], len(source.text)]
    return [(span, source.text[a:b]) for span, a, b in zip(source.spans, source.starts, ends, strict=True)]


def test_it_describes_itself(encoder, base, tmp_path):
    assert encoder.emits == "embeds"
    assert encoder.uses_query is False
    assert len(encoder.space) == 64
    assert replace(encoder, rates=(3, 6)).fingerprint != encoder.fingerprint
    moved = tmp_path / "moved"
    moved.symlink_to(base)
    assert replace(encoder, base=str(moved)).fingerprint == encoder.fingerprint
    result = encoder.compress("word " * 80, keep=0.5, tokenizer=load_tokenizer(base))
    assert all(part.space == encoder.space for part in result.parts if isinstance(part, EmbedsPart))
    with pytest.raises(InputError, match="compressed to embeds"):
        _ = result.text


@pytest.mark.parametrize("name", SOFT)
def test_bad_options_are_named(name, base):
    for options, message in (
        ({}, "needs weights"),
        ({"base": base, "rates": (4, 2)}, "rates must rise"),
        ({"base": base, "rates": (0,)}, "whole numbers"),
        ({"base": base, "precision": "int3"}, "int3"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(name, **options)


def test_kinds_with_budgets_of_their_own_keep_their_order(encoder, tokenizer):
    table = "name,age\nAda,36\nAlan,41\n"
    texts = ["the treaty of 1492 was signed by the river. " * 6, table, "it rained for days in the old town. " * 6]
    pipeline = Pipeline([encoder], tokenizer=tokenizer, keep={"prose": 0.6})
    result = pipeline.compress(texts)
    assert [part.source.text for part in result.parts] == [texts[0], f"\n\n{texts[1]}", texts[2]]
    assert [isinstance(part, TextPart) for part in result.parts] == [False, True, False]
    assert result.tokens_after < result.tokens_before


def test_each_document_on_its_own_is_found_again(encoder, tokenizer, tmp_path):
    texts = [f"{word} the treaty of 1492 was signed by the river. " * 6 for word in ("one", "two")]
    with Pipeline([encoder], tokenizer=tokenizer, store=tmp_path / "each.sqlite").opened_store as store:
        pipeline = Pipeline([encoder], tokenizer=tokenizer, store=store)
        first = pipeline.compress_each(texts, keep=0.6)
        again = pipeline.compress_each(
            [Document(text, id=f"x{n}") for n, text in enumerate(reversed(texts))], keep=0.6
        )
    for one, two in zip(first, reversed(again), strict=True):
        assert torch.equal(vectors_of(one), vectors_of(two))
    assert all(span.document_id == "x0" for span in again[0].spans)
    assert again[0].trace[0].cache_misses == 0


@pytest.mark.parametrize(
    "command",
    [["compress", "text.txt"], ["inspect", "text.txt"], ["corpus", "build", "text.txt", "--to", "store.sqlite"]],
)
def test_commands_that_carry_text_alone_refuse_vectors(base, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    pipeline = Pipeline([load("compllm", base=base)])
    Path("soft.toml").write_text(pipeline.to_toml(), encoding="utf-8")
    Path("text.txt").write_text("the treaty of 1492. " * 30, encoding="utf-8")
    status = run_command([*command, "--pipeline", "soft.toml", "--keep", "0.5"])
    assert status != 0
    assert "can carry text alone" in " ".join(capsys.readouterr().err.split())


def test_adapters_that_carry_text_alone_refuse_vectors(base):
    from kompakt.adapters._documents import DocumentCompressor
    from kompakt.adapters._engine import Engine
    from kompakt.adapters._settings import Settings

    pipeline = Pipeline([load("compllm", base=base)], keep={"prose": 0.5})
    with pytest.raises(ConfigError, match="compllm gives embeds, and a request"):
        Engine(pipeline, Settings(keep=0.5))
    with pytest.raises(ConfigError, match="compllm gives embeds, and a framework"):
        DocumentCompressor(pipeline)
