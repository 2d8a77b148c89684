"""What is seen of attention, against the attention weights that models give out themselves."""

import gc
import threading
import weakref

import pytest
import torch
import transformers
from cache_parts import lm_of
from soft_parts import save_decoder
from tiny_models import save_model, save_tokenizer

from kompakt.compressor.cache.observed import Attended, observable, observing
from kompakt.compressor.errors import ModelError
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache
from kompakt.compressor.soft.decoder import body_of, truncated

IDS = torch.arange(1, 71)[None]


def seen_of(lm, ids=IDS, **options):
    seen = []
    body = observable(lm)
    with torch.no_grad(), observing(seen.append):
        output = body(input_ids=ids, **options)
    return seen, output.last_hidden_state


def test_attention_is_what_the_model_says_of_itself(family):
    lm = lm_of(family)
    seen, hidden = seen_of(lm, use_cache=False)
    eager = transformers.AutoModel.from_pretrained(family, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = eager(input_ids=IDS, use_cache=False, output_attentions=True)
    torch.testing.assert_close(hidden, expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    assert [one.layer for one in seen] == list(range(len(expected.attentions)))
    weights = torch.linspace(0.5, 2, 10)
    for one, attention in zip(seen, expected.attentions, strict=True):
        torch.testing.assert_close(one.received(0), attention[0].sum(dim=1), atol=1e-5, rtol=1e-4)
        weighted = (attention[0, :, 60:] * weights[:, None]).sum(dim=1)
        torch.testing.assert_close(one.received(60, weights), weighted, atol=1e-5, rtol=1e-4)


def test_keys_of_a_cache_are_seen_before_those_of_the_new_tokens(family):
    lm = lm_of(family)
    body = observable(lm)
    cache = new_cache()
    with torch.no_grad():
        body(input_ids=IDS[:, :60], **cache_argument(body, cache), use_cache=True)
    options = {"attention_mask": torch.ones(1, 70), "position_ids": torch.arange(60, 70)[None], "use_cache": True}
    seen, hidden = seen_of(lm, IDS[:, 60:], **options, **cache_argument(body, cache))
    whole, expected = seen_of(lm, use_cache=False)
    torch.testing.assert_close(hidden, expected[:, 60:], atol=1e-3, rtol=1e-4)
    for one, two in zip(seen, whole, strict=True):
        assert one.queries.shape[1] == 10
        torch.testing.assert_close(one.keys, two.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.received(4), two.received(64), atol=1e-4, rtol=1e-3)


def test_nothing_is_seen_outside_and_the_model_stays_as_it_is(base):
    lm = lm_of(base)
    before = lm.model.config._attn_implementation
    body = observable(lm)
    seen = []
    with observing(seen.append):
        pass
    with torch.no_grad():
        body(input_ids=IDS, use_cache=False)
        with observing(seen.append):
            body_of(lm)(input_ids=IDS, use_cache=False)
    assert seen == []
    assert lm.model.config._attn_implementation == before
    assert observable(lm) is body
    assert all(one is two for one, two in zip(body.parameters(), body_of(lm).parameters(), strict=True))


def test_an_observer_inside_another_is_alone(base):
    lm = lm_of(base)
    outer, inner = [], []
    with torch.no_grad(), observing(outer.append):
        with observing(inner.append):
            observable(lm)(input_ids=IDS, use_cache=False)
        assert (len(outer), len(inner)) == (0, 3)
        observable(lm)(input_ids=IDS, use_cache=False)
    assert len(outer) == 3


def test_layers_are_freed_as_they_are_left(base):
    alive = []
    counts = []

    def observe(attended):
        gc.collect()
        counts.append(sum(one() is not None for one in alive))
        alive.append(weakref.ref(attended.queries))

    body = observable(lm_of(base))
    with torch.no_grad(), observing(observe):
        body(input_ids=IDS, use_cache=False)
    assert counts == [0, 0, 0]


def test_threads_see_their_own_tokens_alone(base):
    lm = lm_of(base)
    body = observable(lm)
    start = threading.Barrier(2)
    found = {}

    def work(n_tokens):
        seen = []
        start.wait()
        for _ in range(20):
            with torch.no_grad(), observing(seen.append):
                body(input_ids=IDS[:, :n_tokens], use_cache=False)
        found[n_tokens] = {(one.layer, one.queries.shape[1]) for one in seen}, len(seen)

    threads = [threading.Thread(target=work, args=(n,)) for n in (20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: ({(layer, n) for layer in range(3)}, 60) for n in (20, 30)}


def test_the_first_layers_are_observed_alone(base):
    seen = []
    short = truncated(observable(lm_of(base)), 2)
    with torch.no_grad(), observing(seen.append):
        short(input_ids=IDS, use_cache=False)
    assert [one.layer for one in seen] == [0, 1]


def test_a_group_of_heads_shares_its_keys():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(4, 3, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    received = Attended(0, queries, keys, keys, 0.3).received(1)
    for head in range(4):
        expected = torch.zeros(5)
        for query, n_seen in ((1, 4), (2, 5)):
            products = torch.stack([keys[head // 2, i] @ queries[head, query] for i in range(n_seen)])
            expected[:n_seen] += torch.softmax(0.3 * products, dim=0)
        torch.testing.assert_close(received[head], expected)


def _saved(folder, config):
    folder.mkdir()
    config.vocab_size = save_tokenizer(folder)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def _sinks():
    return transformers.GptOssConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=16, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=64,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("bloom", lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4), "it cannot be exchanged"),
        ("gpt_oss", _sinks, "it does more than products, a mask and a softmax"),
    ],
)
def test_attention_of_another_kind_is_refused(tmp_path, kind, config, reason):
    lm = lm_of(_saved(tmp_path / kind, config()))
    with pytest.raises(ModelError, match=f"models of type '{kind}' cannot be observed: .*{reason}"):
        observable(lm)


def test_capped_attention_is_refused(tmp_path):
    lm = lm_of(save_model(tmp_path / "gemma2", "gemma2"))
    with pytest.raises(ModelError, match=r"models of type 'gemma2' cannot be observed: .*softcap"):
        observable(lm)


def test_bf16_is_observed(tmp_path):
    seen, _ = seen_of(lm_of(save_decoder(tmp_path / "llama"), dtype="bfloat16"), use_cache=False)
    assert {one.keys.dtype for one in seen} == {torch.bfloat16}
    assert all(one.received(60).dtype == torch.float32 for one in seen)
