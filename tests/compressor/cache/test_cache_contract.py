"""The promises of every compressor that lets a decoder read a context and keeps a part of its cache."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cache_parts import lm_of, places_of
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reader_parts import ask
from soft_parts import CONTEXT, save_decoder
from tiny_models import save_model

from kompakt import BudgetError, ConfigError, Document, InputError, ModelError, Pipeline, load
from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.backend import Prompt
from kompakt.compressor.base import Budget, make_request
from kompakt.compressor.cache.cache_compressor import CacheCompressor
from kompakt.compressor.cache.scoring import ScoringCacheCompressor
from kompakt.compressor.cli import run as run_command
from kompakt.compressor.models.tokenizers import FileTokenizer, load_tokenizer
from kompakt.compressor.parts import CachePart
from kompakt.compressor.registry import compressor_class, compressor_names
from kompakt.compressor.store.places import open_store
from kompakt.compressor.types import State, Status

SMALL = {"snapkv": {"window": 8}, "expected-attention": {"n_future": 16}, "finch": {"chunk_tokens": 40}}
NAMES = [name for name in compressor_names() if issubclass(compressor_class(name), CacheCompressor)]
WORDS = st.sampled_from("river danube flows through vienna and budapest, 1492; 雪 ünï the quick treaty".split())
TEXTS = st.lists(WORDS, min_size=4, max_size=20).map(" ".join)
QUERY = "Who signed the treaty?"
TEXT = "the treaty of 1492 was signed by the river, as it rained. " * 4


def made(name, folder, **options):
    return load(name, **{"decoder": folder, "dtype": "float32", "device": "cpu"} | SMALL.get(name, {}) | options)


@pytest.fixture(scope="module", params=NAMES)
def compressor(request, base):
    return made(request.param, base)


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


@pytest.fixture(scope="module")
def reader(base):
    return TransformersBackend(base, "float32", "cpu")


class Doubling(FileTokenizer):
    """Counts two tokens for each of a decoder's, so that a budget below the text's size holds all positions."""

    def __init__(self, folder):
        super().__init__("doubling", (Path(folder) / "tokenizer.json").read_bytes())

    def count_batch(self, texts):
        return [2 * count for count in super().count_batch(texts)]


def examples(n):
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=n, deadline=None, suppress_health_check=quiet)


def run(compressor, documents, *, query=QUERY, **options):
    """The result, or None where the budget leaves no position."""
    try:
        return compressor.compress(documents, query=query, **options)
    except BudgetError:
        return None


def cache_of(result):
    (part,) = result.parts
    assert isinstance(part, CachePart)
    return part


def same(one, two):
    return one == two and one.rope == two.rope


def everything_of(compressor, folder, text, query=QUERY):
    """The cache of a text of which nothing is removed."""
    n_tokens = load_tokenizer(folder).count(text)
    result = compressor.compress(text, query=query, max_tokens=2 * n_tokens - 1, tokenizer=Doubling(folder))
    assert cache_of(result).n_positions == n_tokens
    return cache_of(result)


@examples(5)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), keep=st.floats(0.1, 0.9))
def test_the_ceiling_is_kept_and_every_position_is_counted(compressor, tokenizer, reader, texts, keep):
    result = run(compressor, texts, keep=keep, tokenizer=tokenizer)
    assume(result is not None)
    part = cache_of(result)
    assert part.n_positions == result.tokens_after == int(round(keep * result.tokens_before, 6))
    assert result.outcome.status is Status.COMPRESSED
    assert result.n_bytes == part.n_bytes > 0
    assert part.space == reader.space
    assert part.source.text == "\n\n".join(texts)
    assert result.sources == result.documents
    assert (result.trace[0].tokens_before, result.trace[0].tokens_after) == (
        result.tokens_before,
        result.tokens_after,
    )
    placed = reader._place(ask(part, "?"), reserved=0)
    assert placed.n_positions == part.n_positions + 2


@examples(6)
@given(text=TEXTS, max_tokens=st.integers(1, 40))
def test_a_budget_in_tokens_of_another_tokenizer_holds_all_positions(compressor, text, max_tokens):
    result = run(compressor, text, max_tokens=max_tokens, tokenizer="o200k_base")
    assume(result.outcome.status is Status.COMPRESSED)
    assert cache_of(result).n_positions == result.tokens_after == max_tokens


@pytest.mark.parametrize("name", NAMES)
def test_with_nothing_removed_the_decoder_says_the_same(name, family):
    compressor = made(name, family, before="See this:\n")
    reader = TransformersBackend(family, "float32", "cpu")
    part = everything_of(compressor, family, TEXT)
    question = f"\n\n{QUERY}"
    compressed, plain = (
        reader.logits([Prompt((one,), before="See this:\n", after=question, is_chat=False)])[0]
        for one in (part, part.source)
    )
    assert_same_logits(compressed, plain)


@pytest.mark.parametrize("name", NAMES)
def test_with_nothing_removed_the_decoder_says_the_same_in_a_chat(name, chat_base):
    compressor = made(name, chat_base)
    reader = TransformersBackend(chat_base, "float32", "cpu")
    part = everything_of(compressor, chat_base, TEXT)
    prompts = [Prompt((one,), after=f"\n\n{QUERY}") for one in (part, part.source)]
    assert_same_logits(*(reader.logits([prompt])[0] for prompt in prompts))
    answers = [reader.generate(prompt, max_new_tokens=6) for prompt in prompts]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].n_positions == answers[1].n_positions


def assert_same_logits(compressed, plain):
    largest = max(1.0, float(plain.abs().max()))
    torch.testing.assert_close(compressed, plain[-len(compressed) :], atol=1e-4 * largest, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_of_each_family_can_be_read(name, family):
    compressor = made(name, family)
    part = cache_of(run(compressor, TEXT, keep=0.3, tokenizer=family))
    reader = TransformersBackend(family, "float32", "cpu")
    (logits,) = reader.logits([Prompt((part,), after=QUERY, is_chat=False)])
    assert torch.isfinite(logits).all()
    everything = everything_of(compressor, family, TEXT)
    shape = (part.keys[0].shape[0], part.keys[0].shape[2])
    assert shape == (everything.keys[0].shape[0], everything.keys[0].shape[2])


def test_kept_positions_stand_one_behind_the_other(compressor, base):
    behind = replace(compressor, before="See: ")
    part = cache_of(run(behind, TEXT, keep=0.4, tokenizer=base))
    assert part.rope == tuple(range(6, 6 + part.n_positions))


@examples(5)
@given(text=TEXTS, small=st.integers(5, 100), more=st.integers(0, 60))
def test_a_larger_budget_never_keeps_less(compressor, base, tokenizer, text, small, more):
    less, larger = (run(compressor, text, max_tokens=size, tokenizer=tokenizer) for size in (small, small + more))
    assert less.tokens_after <= larger.tokens_after
    if not isinstance(compressor, ScoringCacheCompressor) or larger.outcome.status is Status.FITS:
        return
    everything = everything_of(compressor, base, text)
    # equal tokens have equal values in the first layer
    kept = [places_of(cache_of(one).values[-1], everything.values[-1]) for one in (less, larger)]
    for few, many in zip(*kept, strict=True):
        assert set(few) <= set(many)
        assert many == sorted(many)


@examples(3)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_a_roomy_budget_is_lossless(compressor, tokenizer, texts):
    result = compressor.compress(texts, keep=1.0, tokenizer=tokenizer)
    assert result.outcome.status is Status.FITS
    assert result.text == "\n\n".join(texts)


def test_nothing_gives_nothing(compressor, tokenizer):
    for documents in ([], "", [""]):
        result = compressor.compress(documents, max_tokens=5, tokenizer=tokenizer)
        assert (result.parts, result.tokens_after) == ((), 0)


def test_a_state_passes_through(compressor, tokenizer):
    state = State("another", b"its state")
    for keep in (0.5, 1.0):
        assert run(compressor, TEXT, keep=keep, tokenizer=tokenizer, state=state).state == state


PROTECTED = "QZXWVK 0987"
"""Characters that stand nowhere else, whose values in the first layer are theirs alone."""


@examples(4)
@given(before=TEXTS, after=TEXTS, n_more=st.integers(0, 20))
def test_protected_text_keeps_all_its_positions(compressor, base, tokenizer, before, after, n_more):
    text = f"{before}{PROTECTED}{after}"
    assume(len(text) > len(PROTECTED) + n_more)
    document = Document(text, id="d", protected=((len(before), len(before) + len(PROTECTED)),))
    n_protected = tokenizer.count(PROTECTED)
    result = run(compressor, document, max_tokens=n_protected + n_more, tokenizer=tokenizer)
    part = cache_of(result)
    kept = everything_of(compressor, base, PROTECTED).values[0]
    for own, wanted in zip(part.values[0], kept, strict=True):
        distances = torch.cdist(wanted, own, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values
        assert distances.max() < 1e-3
    assert [text[span.start : span.end] for span in part.spans if span.protected] == [PROTECTED]


def test_a_budget_below_protected_text_is_refused(compressor, tokenizer):
    document = Document(TEXT, protected=((0, 60),))
    n_protected = tokenizer.count(TEXT[:60])
    with pytest.raises(BudgetError, match=rf"{n_protected} positions hold protected text and the budget is 20"):
        compressor.compress(document, query=QUERY, max_tokens=20, tokenizer=tokenizer)


def test_a_chat_keeps_all_its_positions(compressor, tokenizer):
    chat = json.dumps([{"role": "system", "content": "Be brief. " * 9}, {"role": "user", "content": "Hello"}])
    n_chat = tokenizer.count(chat)
    result = compressor.compress([chat, TEXT], query=QUERY, max_tokens=n_chat + 30, tokenizer=tokenizer)
    assert [span.protected for span in result.spans] == [True, False, False]
    with pytest.raises(BudgetError, match=f"{n_chat} positions hold protected text"):
        compressor.compress([chat, TEXT], query=QUERY, max_tokens=n_chat - 1, tokenizer=tokenizer)


@examples(3)
@given(texts=st.lists(TEXTS, min_size=2, max_size=4), keep=st.floats(0.2, 0.9))
def test_a_batch_equals_one_by_one_and_again(compressor, tokenizer, texts, keep):
    alone = [run(compressor, text, keep=keep, tokenizer=tokenizer) for text in texts]
    requests = [make_request(text, budget=Budget(keep=keep), tokenizer=tokenizer, query=QUERY) for text in texts]
    for _ in range(2):
        compressor.forget()
        together = compressor.compress_batch(requests)
        assert all(same(cache_of(one), cache_of(two)) for one, two in zip(together, alone, strict=True))


def test_the_question_decides_where_the_class_says_so(compressor, tokenizer):
    one, two = (run(compressor, TEXT, query=query, keep=0.3, tokenizer=tokenizer) for query in (QUERY, "It rained?"))
    assert same(cache_of(one), cache_of(two)) is not compressor.uses_query


def test_what_stands_before_decides(compressor, tokenizer):
    behind = replace(compressor, before="See: ")
    one, two = (run(each, TEXT, keep=0.3, tokenizer=tokenizer) for each in (compressor, behind))
    assert not torch.equal(cache_of(one).values[-1], cache_of(two).values[-1])


def test_what_the_store_gives_back_is_what_was_made(compressor, tokenizer, reader, tmp_path):
    def piped(store, **changes):
        pipeline = Pipeline([replace(compressor, **changes)], tokenizer=tokenizer, store=store)
        return pipeline.compress(TEXT, query=QUERY, keep=0.5)

    with open_store(tmp_path / "caches.sqlite") as store:
        fresh = piped(store)
        compressor.forget()
        stored = piped(store)
    compressor.forget()
    with open_store(tmp_path / "caches.sqlite") as store:
        saved = piped(store)
        assert piped(store, before="See: ").trace[0].cache_misses == 1
    assert (fresh.trace[0].cache_hits, fresh.trace[0].cache_misses) == (0, 1)
    for one in (stored, saved):
        assert (one.trace[0].cache_hits, one.trace[0].cache_misses) == (1, 0)
        assert same(cache_of(one), cache_of(fresh))
    answers = [
        reader.generate(Prompt(one.parts, after=QUERY, is_chat=False), max_new_tokens=5) for one in (fresh, saved)
    ]
    assert answers[0].token_ids == answers[1].token_ids


@examples(3)
@given(
    texts=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=3), query=st.text(min_size=1, max_size=9)
)
def test_any_text_can_be_compressed(compressor, tokenizer, reader, texts, query):
    assume(query.strip())
    result = run(compressor, texts, query=query, keep=0.5, tokenizer=tokenizer)
    assume(result is not None and "cache" in result.forms)
    (logits,) = reader.logits([Prompt(result.parts, after=query, is_chat=False)])
    assert torch.isfinite(logits).all()


def test_several_documents_are_one_cache(compressor, tokenizer):
    documents = [Document(TEXT, id="a"), Document("it rained. " * 9, id="b")]
    result = run(compressor, documents, keep=0.4, tokenizer=tokenizer)
    part = cache_of(result)
    spans = [(span.document_id, span.kind) for span in part.spans]
    assert [name for name, kind in spans if kind != "separator"] == ["a", "b"]
    joined = run(compressor, f"{TEXT}\n\n{documents[1].text}", keep=0.4, tokenizer=tokenizer)
    assert all(torch.equal(one, two) for one, two in zip(part.keys, cache_of(joined).keys, strict=True))


def test_contexts_longer_than_the_decoder_reads(compressor, tokenizer):
    long = "the treaty of 1492 was signed by the river. " * 40
    n_tokens = tokenizer.count(long)
    assert n_tokens > CONTEXT
    if compressor.name == "finch":
        assert run(compressor, long, max_tokens=300, tokenizer=tokenizer).tokens_after == 300
        return
    with pytest.raises(InputError, match=rf"takes 1\d\d\d positions.* reads at most {CONTEXT}: use finch"):
        run(compressor, long, max_tokens=300, tokenizer=tokenizer)


def test_it_describes_itself(compressor, base, tmp_path):
    assert (compressor.emits, compressor.locality) == ("cache", "global")
    assert compressor.space == lm_of(base).fingerprint
    assert compressor.weights_fingerprint == compressor.space
    moved = tmp_path / "moved"
    moved.symlink_to(base)
    assert replace(compressor, decoder=str(moved)).fingerprint == compressor.fingerprint
    assert replace(compressor, device=None).fingerprint == compressor.fingerprint
    others = [replace(compressor, before="x"), replace(compressor, is_chat=False)]
    others += [made(name, base) for name in NAMES if name != compressor.name]
    assert compressor.fingerprint not in {other.fingerprint for other in others}
    with pytest.raises(InputError, match="compressed to cache"):
        _ = run(compressor, TEXT, keep=0.5, tokenizer=base).text


@pytest.mark.parametrize("name", NAMES)
def test_decoders_that_do_not_suit_are_named(name, tmp_path):
    phi = str(save_model(tmp_path / "phi", "phi"))
    with pytest.raises(ModelError, match=r"the keys of '.*phi' cannot be moved together: .*not known"):
        made(name, phi).compress(TEXT, query=QUERY, keep=0.1, tokenizer=phi)
    gemma2 = str(save_model(tmp_path / "gemma2", "gemma2", max_position_embeddings=512))
    with pytest.raises(ModelError, match=r"type 'gemma2' cannot be observed: .*softcap"):
        made(name, gemma2).compress(TEXT, query=QUERY, keep=0.1, tokenizer=gemma2)
    with pytest.raises(ConfigError, match="int3"):
        made(name, phi, precision="int3")


def test_a_pipeline_carries_a_cache_from_its_last_stage_only(compressor, tokenizer):
    alone = run(compressor, TEXT, keep=0.5, tokenizer=tokenizer)
    piped = Pipeline([compressor], tokenizer=tokenizer).compress(TEXT, query=QUERY, keep=0.5)
    assert piped.parts == alone.parts
    with pytest.raises(ConfigError, match="put it last"):
        Pipeline([compressor, "dedup"])
    text = "The treaty of 1492 was signed by the river. It rained. " * 6
    behind = Pipeline(["lexical", compressor], tokenizer=tokenizer).compress(text, query=QUERY, keep=0.3)
    part = cache_of(behind)
    assert behind.outcome.status is Status.COMPRESSED
    assert part.n_positions == behind.tokens_after <= 0.3 * tokenizer.count(text)
    assert len(part.source.text) < len(text)
    ends = [*part.source.starts[1:], len(part.source.text)]
    for span, start, end in zip(part.spans, part.source.starts, ends, strict=True):
        assert span.kind in ("omission", "separator") or text[span.start : span.end] == part.source.text[start:end]


def test_each_document_on_its_own_is_found_again(compressor, tokenizer, tmp_path):
    texts = [f"{word} the treaty was signed. " * 5 for word in ("one", "two")]
    with open_store(tmp_path / "each.sqlite") as store:
        pipeline = Pipeline([compressor], tokenizer=tokenizer, store=store)
        first = pipeline.compress_each(texts, query=QUERY, keep=0.5)
        again = pipeline.compress_each(list(reversed(texts)), query=QUERY, keep=0.5)
    for one, two in zip(first, reversed(again), strict=True):
        assert torch.equal(cache_of(one).keys[1], cache_of(two).keys[1])
        assert two.trace[0].cache_misses == 0


def test_half_of_the_bits_change_little(compressor, base, tokenizer):
    rough = replace(compressor, dtype="bfloat16")
    part, exact = (everything_of(one, base, TEXT) for one in (rough, compressor))
    assert part.keys[0].dtype == torch.bfloat16
    for one, two in zip([*part.keys, *part.values], [*exact.keys, *exact.values], strict=True):
        assert torch.linalg.norm(one.float() - two) / torch.linalg.norm(two) < 0.05
    kept, expected = (cache_of(run(one, TEXT, keep=0.5, tokenizer=tokenizer)) for one in (rough, compressor))
    places = [
        places_of(one.values[0].float(), whole.values[0].float()) for one, whole in ((kept, part), (expected, exact))
    ]
    shared = [len(set(few) & set(many)) / len(set(many)) for few, many in zip(*places, strict=True)]
    assert min(shared) > 0.8


def test_threads_do_not_disturb_each_other(compressor, tokenizer):
    texts = [f"{word} {TEXT}" for word in ("one", "a second", "third")]
    expected = [run(compressor, text, keep=0.4, tokenizer=tokenizer) for text in texts]
    compressor.forget()
    fresh = replace(compressor)
    start = threading.Barrier(len(texts))
    found = {}

    def work(index):
        start.wait()
        found[index] = run(fresh, texts[index], keep=0.4, tokenizer=tokenizer)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, one in enumerate(expected):
        assert same(cache_of(found[index]), cache_of(one))


@pytest.mark.parametrize(
    "command",
    [["compress", "text.txt"], ["inspect", "text.txt"], ["corpus", "build", "text.txt", "--to", "store.sqlite"]],
)
def test_commands_that_carry_text_alone_refuse_caches(compressor, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    Path("cache.toml").write_text(Pipeline([compressor]).to_toml(), encoding="utf-8")
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    status = run_command([*command, "--pipeline", "cache.toml", "--keep", "0.5"])
    assert status != 0
    assert "can carry text alone" in " ".join(capsys.readouterr().err.split())


def test_adapters_that_carry_text_alone_refuse_caches(compressor):
    from kompakt.adapters._documents import DocumentCompressor
    from kompakt.adapters._engine import Engine
    from kompakt.adapters._settings import Settings

    pipeline = Pipeline([compressor], keep={"prose": 0.5})
    with pytest.raises(ConfigError, match=f"{compressor.name} gives cache, and a request"):
        Engine(pipeline, Settings(keep=0.5))
    with pytest.raises(ConfigError, match=f"{compressor.name} gives cache, and a framework"):
        DocumentCompressor(pipeline)


def test_a_decoder_of_one_kind_reads_no_cache_of_another(compressor, tokenizer, tmp_path):
    part = cache_of(run(compressor, TEXT, keep=0.5, tokenizer=tokenizer))
    other = TransformersBackend(save_decoder(tmp_path / "other", seed=1), "float32", "cpu")
    with pytest.raises(InputError, match="was made for the decoder"):
        other.generate(ask(part, "?"), max_new_tokens=1)


def test_protected_text_survives_behind_a_stage_of_text(compressor, tokenizer):
    text = "It rained. " * 30 + "The treaty of 1492 was signed. " + "It rained again. " * 30
    start = text.index("The treaty")
    document = Document(text, id="d", protected=((start, start + 18),))
    result = Pipeline(["lexical", compressor], tokenizer=tokenizer).compress(document, query=QUERY, keep=0.3)
    assert result.outcome.status is Status.COMPRESSED
    assert result.tokens_after <= 0.3 * result.tokens_before
    spans = [span for span in cache_of(result).spans if span.protected]
    assert text[start : start + 18] in "".join(text[span.start : span.end] for span in spans)


def test_a_cache_of_several_documents_stands_once_beside_those_of_other_kinds(compressor, tokenizer):
    texts = [TEXT, "name,age\nAda,36\nAlan,41\n", "it rained for days in the old town. " * 6]
    result = Pipeline([compressor], tokenizer=tokenizer, keep={"prose": 0.6}).compress(texts, query=QUERY)
    assert [part.source.text for part in result.parts] == [f"{texts[0]}\n\n{texts[2]}", f"\n\n{texts[1]}"]
    assert result.tokens_after < result.tokens_before


def test_a_document_that_an_earlier_stage_dropped_does_not_come_back(compressor, tokenizer):
    first, second = (
        " ".join(f"Ship {n} sailed {n * n} miles beyond cape {n + 7}." for n in numbers)
        for numbers in (range(9), range(20, 29))
    )
    texts = [first, second, first]
    pipeline = Pipeline(["dedup", compressor], tokenizer=tokenizer, keep={"prose": 0.3})
    result = pipeline.compress(texts, query=QUERY)
    assert [type(part) for part in result.parts] == [CachePart]
    assert cache_of(result).source.text == f"{first}\n\n{second}"
    assert result.tokens_after <= 0.3 * result.tokens_before


def test_a_decoder_whose_files_change_is_named(base, tmp_path, tokenizer):
    import shutil

    folder = tmp_path / "decoder"
    shutil.copytree(base, folder)
    one = made("snapkv", str(folder))
    one.compress(TEXT, query=QUERY, keep=0.5, tokenizer=tokenizer)
    (folder / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(ModelError, match="changed since it was loaded: make the compressor anew"):
        one.compress(TEXT + "more", query=QUERY, keep=0.5, tokenizer=tokenizer)
