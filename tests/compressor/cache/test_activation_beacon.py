"""The promises of Activation Beacon as a compressor, and that the unchanged decoder reads what it makes."""

import json
from dataclasses import replace

import pytest
import torch
from beacon_parts import LAYOUTS, WINDOW, config_of, keys_of, randomised, reference_of
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reader_parts import ask
from safetensors.torch import load as load_tensors
from soft_parts import assert_close
from tiny_models import save_model

from kompakt import BudgetError, ConfigError, Document, InputError, ModelError, Pipeline, load
from kompakt.adapters.transformers import TransformersBackend
from kompakt.compressor.base import Budget, make_request
from kompakt.compressor.cache.activation_beacon import ActivationBeacon
from kompakt.compressor.cache.slot_caches import unflattened
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.parts import CachePart, TextPart
from kompakt.compressor.store.places import open_store
from kompakt.compressor.types import Status

RATES = (2, 4, 8)
WORDS = st.sampled_from("river danube flows through vienna and budapest, 1492; 雪 ünï the quick treaty".split())
TEXTS = st.lists(WORDS, min_size=12, max_size=30).map(" ".join)
KEEPS = st.floats(0.35, 0.9)
TEXT = "the treaty of 1492 was signed by the river, " * 5


def examples(n):
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=n, deadline=None, suppress_health_check=quiet)


def settings_of(**options):
    return {"rates": list(RATES), "beacon": config_of(**options).to_json()}


@pytest.fixture(scope="module", autouse=True)
def small_windows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActivationBeacon, "default_settings", settings_of())
        yield


def untrained(base, **options):
    return load("activation-beacon", **{"base": base, "dtype": "float32", "device": "cpu"} | options)


def trained(base, folder, layout, **options):
    """A compressor with random weights from a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActivationBeacon, "default_settings", settings_of(**LAYOUTS[layout], **options))
        encoder = untrained(base)
        randomised(encoder.module)
        return untrained(None, checkpoint=str(encoder.save(folder)))


@pytest.fixture(scope="module")
def encoder(base):
    return untrained(base)


@pytest.fixture(scope="module", params=list(LAYOUTS))
def any_layout(request, base, tmp_path_factory):
    return trained(base, tmp_path_factory.mktemp("weights") / "of", request.param)


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


@pytest.fixture(scope="module")
def reader(base):
    return TransformersBackend(base, "float32", "cpu")


def run(encoder, tokenizer, documents, **options):
    """The result, or None where the budget cannot hold what it must."""
    try:
        return encoder.compress(documents, tokenizer=tokenizer, **options)
    except BudgetError:
        return None


def cached(*results):
    """Keys and values of several results, ``[2 L, H_kv, m, D_head]``."""
    parts = [part for result in results for part in result.parts if isinstance(part, CachePart)]
    return torch.cat([torch.stack([*part.keys, *part.values]) for part in parts], dim=2) if parts else torch.empty(0)


def same(one, two):
    return one.shape == two.shape and torch.allclose(one, two, atol=1e-4, rtol=1e-4)


def ids_of_text(encoder, text):
    return encoder.lm.tokenizer.encode(text, add_special_tokens=False).ids


def compressed_by_reference(encoder, ids, rate):
    """The reference after a whole text, every window at one rate."""
    twin = reference_of(encoder.module, [])
    entries = []
    for start in range(0, len(ids), WINDOW):
        entries += twin.compress(ids[start : start + WINDOW], rate)
    return twin, entries


def test_the_keys_and_values_are_those_of_the_reference(any_layout, tokenizer):
    encoder = replace(any_layout, rates=(4,))
    result = encoder.compress(TEXT, keep=0.9, tokenizer=tokenizer)
    ids = ids_of_text(encoder, TEXT)
    assert len(ids) % WINDOW
    _, entries = compressed_by_reference(encoder, ids, 4)
    (part,) = result.parts
    assert part.rope == "unrotated"
    assert part.n_positions == result.tokens_after == len(entries) == sum(divmod(len(ids), 4))
    keys, values = keys_of(entries)
    assert_close(torch.stack(part.keys), keys)
    assert_close(torch.stack(part.values), values)


def test_the_unchanged_decoder_reads_what_the_reference_reads(any_layout, base, tokenizer):
    encoder = replace(any_layout, rates=(4,))
    result = encoder.compress(TEXT, keep=0.9, tokenizer=tokenizer)
    reader = TransformersBackend(base, "float32", "cpu", begins=False)
    (logits,) = reader.logits([ask(*result.parts, after="And then")])
    twin, _ = compressed_by_reference(encoder, ids_of_text(encoder, TEXT), 4)
    expected = twin.step(ids_of_text(encoder, "And then"), with_beacons=False)
    assert_close(logits[-len(expected) :], expected)


@pytest.mark.parametrize("layout", ["interleave", "first-version"])
def test_a_beginning_that_stays_is_what_the_reader_begins_with(base, tmp_path, tokenizer, reader, layout):
    encoder = replace(trained(base, tmp_path / "weights", layout, sink_size=1), rates=(4,))
    result = encoder.compress(TEXT, keep=0.9, tokenizer=tokenizer)
    (logits,) = reader.logits([ask(*result.parts, after="And then")])
    ids = ids_of_text(encoder, TEXT)
    twin = reference_of(encoder.module, [])
    twin.step([encoder.lm.prefix_id], with_beacons=False)
    twin.sink, twin.raw = twin.raw, []
    for start in range(0, len(ids), WINDOW):
        twin.compress(ids[start : start + WINDOW], 4)
    assert result.tokens_after == len(twin.memory)
    expected = twin.step(ids_of_text(encoder, "And then"), with_beacons=False)
    assert_close(logits[-len(expected) :], expected)
    without = replace(trained(base, tmp_path / "without", layout), rates=(4,))
    assert not same(cached(without.compress(TEXT, keep=0.9, tokenizer=tokenizer)), cached(result))


def test_a_longer_beginning_needs_a_session(base, tmp_path, tokenizer):
    encoder = trained(base, tmp_path / "weights", "interleave", sink_size=2)
    with pytest.raises(ConfigError, match=r"keep 2 tokens of the beginning.*session\(\)"):
        encoder.compress(TEXT, keep=0.5, tokenizer=tokenizer)
    session = encoder.session()
    session.read(ids_of_text(encoder, TEXT))
    assert session.n_positions < len(ids_of_text(encoder, TEXT))


def test_a_session_takes_the_rates_that_were_asked_for(base, tmp_path):
    encoder = trained(base, tmp_path / "weights", "interleave")
    ids = (ids_of_text(encoder, TEXT) * 9)[: 8 * WINDOW]
    lengths = {}
    for rates in ((2,), (8,)):
        session = replace(encoder, rates=rates).session()
        session.read(ids)
        lengths[rates] = session.n_positions
    assert lengths == {(2,): 8 * WINDOW // 2, (8,): 8 * WINDOW // 8}
    adapted = encoder.session(ratio_mix="adapt-0")
    adapted.read(ids)
    assert adapted.n_positions == lengths[(2,)]
    with pytest.raises(ConfigError, match="ratio_mix must be one of"):
        encoder.session(ratio_mix="best")


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_whole_windows_are_compressed_as_in_a_session(base, tmp_path, tokenizer, layout):
    encoder = replace(trained(base, tmp_path / "weights", layout, ratios=(4,)), rates=(4,))
    read = encoder.lm.tokenizer.encode(TEXT, add_special_tokens=False)
    whole = read.ids[: len(read.ids) // WINDOW * WINDOW]
    result = encoder.compress(TEXT[: read.offsets[len(whole) - 1][1]], keep=0.9, tokenizer=tokenizer)
    session = encoder.session()
    session.read(whole)
    assert_close(cached(result), torch.cat([session.memory.keys[:, 0], session.memory.values[:, 0]]))


@examples(8)
@given(texts=st.lists(TEXTS, min_size=1, max_size=2), keep=st.floats(0.25, 0.9))
def test_the_ceiling_is_kept_and_every_position_is_counted(encoder, tokenizer, reader, texts, keep):
    result = run(encoder, tokenizer, texts, keep=keep)
    assume(result is not None)
    assert result.tokens_after <= keep * result.tokens_before
    assert result.outcome.status is Status.COMPRESSED
    assert result.sources == result.documents
    assert "".join(part.source.text for part in result.parts) == "".join(texts)
    placed = reader._place(ask(*result.parts, after="ab"), reserved=0)
    # the reader begins with one token of its own
    assert placed.n_positions - 1 - len("ab") == result.tokens_after
    assert result.n_bytes == sum(part.n_bytes for part in result.parts) > 0


@examples(10)
@given(text=TEXTS, small=st.integers(12, 120), more=st.integers(0, 60))
def test_a_larger_budget_never_keeps_less(encoder, tokenizer, text, small, more):
    less, larger = (run(encoder, tokenizer, text, max_tokens=size) for size in (small, small + more))
    assume(less is not None)
    assert larger is not None
    assert less.tokens_after <= larger.tokens_after


def test_coarser_rates_never_cost_more_and_nothing_is_lost(base):
    for rates in (RATES, (2, 8), (4,), (1, 2, 16)):
        encoder = untrained(base, rates=rates)
        for n_tokens in range(1, WINDOW + 1):
            costs = [encoder.n_vectors(n_tokens, rate) for rate in rates]
            assert costs == sorted(costs, reverse=True)
            assert costs[0] == sum(divmod(n_tokens, rates[0]))
        assert encoder.n_vectors(WINDOW, rates[-1]) == WINDOW // rates[-1]
    assert encoder.pieces(2 * WINDOW + 3) == [WINDOW, WINDOW, 3]
    assert encoder.cut(WINDOW, 2) == [WINDOW]


def test_windows_have_rates_of_their_own(encoder, tokenizer):
    n_tokens = len(ids_of_text(encoder, TEXT))
    sizes = {run(encoder, tokenizer, TEXT, max_tokens=size).tokens_after for size in range(35, n_tokens // 2)}
    # between half and a quarter of it there are more sizes than a rate for all windows could give
    assert len(sizes) > 8


@examples(4)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_a_roomy_budget_is_lossless(encoder, tokenizer, texts):
    result = encoder.compress(texts, keep=1.0, tokenizer=tokenizer)
    assert result.outcome.status is Status.FITS
    assert result.text == "\n\n".join(texts)


def test_nothing_gives_nothing_and_leaves_the_state_as_it_was(encoder, tokenizer):
    first = encoder.compress(TEXT, keep=0.5, tokenizer=tokenizer)
    for documents in ([], "", [""]):
        result = encoder.compress(documents, max_tokens=5, tokenizer=tokenizer, state=first.state)
        assert (result.parts, result.tokens_after, result.state) == ((), 0, first.state)


@examples(4)
@given(first=TEXTS, second=TEXTS, keep=KEEPS)
def test_a_state_goes_on_where_the_call_before_ended(any_layout, tokenizer, first, second, keep):
    encoder = any_layout
    alone = run(encoder, tokenizer, first, keep=keep)
    assume(alone is not None)
    following = run(encoder, tokenizer, second, keep=keep, state=alone.state)
    assume(following is not None)
    together = encoder.compress([first, second], keep=keep, tokenizer=tokenizer)
    assert same(cached(together), cached(alone, following))
    assert together.state.compressor == encoder.fingerprint
    rows, expected = (load_tensors(one.state.data)["prefix"] for one in (together, following))
    assert same(rows, expected)
    keys, values = unflattened(rows, encoder.lm)
    assert same(torch.cat([keys, values]), cached(together))


def test_what_stands_before_changes_what_follows(encoder, tokenizer):
    alone = encoder.compress(TEXT, keep=0.5, tokenizer=tokenizer)
    behind = encoder.compress(TEXT, keep=0.5, tokenizer=tokenizer, state=alone.state)
    assert not same(cached(alone), cached(behind))


def test_states_of_others_and_damaged_ones_are_refused(encoder, tokenizer):
    state = encoder.compress(TEXT, keep=0.5, tokenizer=tokenizer).state
    for wrong in (replace(state, compressor="another"), replace(state, data=b"damaged")):
        with pytest.raises(InputError, match="state"):
            encoder.compress(TEXT, keep=0.5, tokenizer=tokenizer, state=wrong)


@examples(3)
@given(texts=st.lists(TEXTS, min_size=2, max_size=4), keep=KEEPS)
def test_a_batch_equals_one_by_one_and_a_query_changes_nothing(any_layout, tokenizer, texts, keep):
    encoder = any_layout
    requests = [make_request(text, budget=Budget(keep=keep), tokenizer=tokenizer, query="Who?") for text in texts]
    alone = [run(encoder, tokenizer, text, keep=keep) for text in texts]
    assume(all(result is not None for result in alone))
    encoder.forget()
    for one, result in zip(encoder.compress_batch(requests), alone, strict=True):
        assert same(cached(one), cached(result))
        assert one.tokens_after == result.tokens_after


def test_equally_long_windows_are_encoded_together(encoder, tokenizer, monkeypatch):
    texts = [word + TEXT[3:] for word in ("the", "one", "two", "any")]
    requests = [make_request(text, budget=Budget(keep=0.5), tokenizer=tokenizer) for text in texts]
    sizes = []
    read = type(encoder.module).compressed

    def counted(self, ids, *arguments, **options):
        sizes.append(len(ids))
        return read(self, ids, *arguments, **options)

    monkeypatch.setattr(type(encoder.module), "compressed", counted)
    encoder.forget()
    encoder.compress_batch(requests)
    assert sizes == [4] * -(-len(ids_of_text(encoder, TEXT)) // WINDOW)


@examples(5)
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


def test_a_chat_stays_text(encoder, tokenizer):
    chat = json.dumps([{"role": "system", "content": "Be brief. " * 9}, {"role": "user", "content": "Hello"}])
    result = encoder.compress([chat, TEXT], keep=0.9, tokenizer=tokenizer)
    assert result.parts[0].text == chat
    assert isinstance(result.parts[1], CachePart)


@pytest.mark.parametrize("precision", ["full", "int8", "int4"])
def test_what_the_store_gives_back_is_what_was_made(encoder, tokenizer, reader, tmp_path, precision):
    chosen = replace(encoder, precision=precision)
    with open_store(tmp_path / "slots.sqlite") as store:
        fresh = Pipeline([chosen], tokenizer=tokenizer, store=store).compress(TEXT, keep=0.5)
        chosen.forget()
        stored = Pipeline([replace(chosen)], tokenizer=tokenizer, store=store).compress(TEXT, keep=0.5)
    assert fresh.parts == stored.parts
    assert stored.trace[0].cache_misses == 0 < stored.trace[0].cache_hits
    first = slice(0, WINDOW // 2)
    made, exact = (
        cached(stored)[:, :, first],
        cached(encoder.compress(TEXT, keep=0.5, tokenizer=tokenizer))[:, :, first],
    )
    # later windows read rounded memories, so that their error grows
    assert (made - exact).norm() / exact.norm() <= {"full": 1e-6, "int8": 0.02, "int4": 0.25}[precision]
    answers = [reader.generate(ask(*one.parts, after="a"), max_new_tokens=5) for one in (fresh, stored)]
    assert answers[0].token_ids == answers[1].token_ids


def test_a_short_window_is_not_found_again_by_other_rates(base, tokenizer):
    text = "twelve signs"
    encoders = [untrained(base, rates=rates) for rates in ((2, 8), (2, 4, 8))]
    sizes = [encoder.compress(text, max_tokens=5, tokenizer=tokenizer).tokens_after for encoder in encoders]
    n_tokens = len(ids_of_text(encoders[0], text))
    assert sizes == [sum(divmod(n_tokens, 8)), sum(divmod(n_tokens, 4))]


def test_a_saved_checkpoint_encodes_as_the_original(any_layout, tokenizer, tmp_path):
    folder = str(any_layout.save(tmp_path / "weights", made_from="nothing"))
    again = untrained(None, checkpoint=folder)
    one, two = (item.compress(TEXT, keep=0.5, tokenizer=tokenizer) for item in (any_layout, again))
    assert torch.equal(cached(one), cached(two))
    assert two.trace[0].note == ""
    assert again.config == any_layout.config
    with pytest.raises(ConfigError, match="holds a checkpoint already"):
        any_layout.save(folder)
    with pytest.raises(ModelError, match="holds weights of"):
        load("icae", checkpoint=folder).compress(TEXT, keep=0.5)


def test_untrained_weights_say_so(encoder, tokenizer):
    assert encoder.compress(TEXT, keep=0.5, tokenizer=tokenizer).trace[0].note == "untrained weights"


def test_weights_of_other_projections_are_refused(any_layout, tmp_path):
    from kompakt.compressor.soft.checkpoint import SETTINGS_FILE

    folder = any_layout.save(tmp_path / "weights")
    data = json.loads((folder / SETTINGS_FILE).read_text())
    data["settings"]["beacon"]["params"] = ["q"]
    (folder / SETTINGS_FILE).write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"not known: model\.layers\.0\.self_attn\.beacon_k_proj\.weight"):
        _ = untrained(None, checkpoint=str(folder)).module


def test_it_describes_itself(encoder, base, tmp_path, tokenizer):
    assert (encoder.emits, encoder.locality, encoder.uses_query) == ("cache", "sequential", False)
    assert encoder.space == TransformersBackend(base, "float32", "cpu").space
    assert replace(encoder, rates=(4, 8)).fingerprint != encoder.fingerprint
    moved = tmp_path / "moved"
    moved.symlink_to(base)
    assert replace(encoder, base=str(moved)).fingerprint == encoder.fingerprint
    result = encoder.compress(TEXT, keep=0.5, tokenizer=tokenizer)
    assert all(part.space == encoder.space for part in result.parts)
    with pytest.raises(InputError, match="compressed to cache"):
        _ = result.text


def test_bad_options_are_named(base):
    for options, message in (
        ({"rates": (4, 2)}, "rates must rise"),
        ({"rates": (0,)}, "whole numbers"),
        ({"precision": "int3"}, "int3"),
    ):
        with pytest.raises(ConfigError, match=message):
            untrained(base, **options)
    with pytest.raises(ConfigError, match="needs weights"):
        untrained(None)
    with pytest.raises(ConfigError, match=r"divide the window, 16; \[3, 32\] do not"):
        untrained(base, rates=(2, 3, 32)).compress(TEXT, keep=0.5)


def test_memory_that_the_model_does_not_read_is_refused(tmp_path):
    folder = str(save_model(tmp_path / "short", "llama", max_position_embeddings=72))
    tokenizer = load_tokenizer(folder)
    encoder = untrained(folder)
    assert encoder.compress(TEXT, keep=0.2, tokenizer=tokenizer).tokens_after < 72
    with pytest.raises(InputError, match="the 72 that the model reads: compress with higher ratios"):
        encoder.compress(TEXT, keep=0.5, tokenizer=tokenizer)


def test_other_families(family_bases):
    for name in ("mistral", "qwen2"):
        encoder = untrained(family_bases[name])
        result = encoder.compress(TEXT, keep=0.5, tokenizer=load_tokenizer(family_bases[name]))
        reader = TransformersBackend(family_bases[name], "float32", "cpu")
        assert reader.generate(ask(*result.parts, after="a"), max_new_tokens=2).token_ids is not None
    for name in ("gpt2", "opt", "qwen3"):
        with pytest.raises(ModelError, match="but in llama, mistral, qwen2"):
            untrained(family_bases[name]).compress(TEXT, keep=0.5, tokenizer=load_tokenizer(family_bases[name]))


def test_half_the_bits(base, tokenizer):
    made = untrained(base, dtype="bfloat16").compress(TEXT, keep=0.5, tokenizer=tokenizer)
    exact = untrained(base).compress(TEXT, keep=0.5, tokenizer=tokenizer)
    assert cached(made).dtype == torch.bfloat16
    # keys and values of the first layer depend on the embeddings alone
    first = torch.stack([made.parts[0].keys[0].float(), made.parts[0].values[0].float()])
    expected = torch.stack([exact.parts[0].keys[0], exact.parts[0].values[0]])
    assert (first - expected).norm() / expected.norm() < 0.01
    reader = TransformersBackend(base, "bfloat16", "cpu")
    assert len(reader.generate(ask(*made.parts, after="a"), max_new_tokens=3).token_ids) <= 3


def test_a_session_of_the_compressor_reads_and_writes(any_layout):
    session = any_layout.session(batch_size=2)
    made = session.generate([[5] * 40, [6] * 40], max_new_tokens=4, end_ids=())
    assert [len(one) for one in made] == [4, 4]
    assert session.n_tokens == 44
