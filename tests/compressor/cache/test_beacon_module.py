"""The network of Activation Beacon against a reference that was written from the paper, and what follows from it."""

import threading

import pytest
import torch
import transformers
from beacon_parts import LAYOUTS, WINDOW, config_of, ids_of, keys_of, module_of, randomised, reference_of, weights_of
from soft_parts import LAYERS, assert_close, save_decoder
from soft_references import activation_beacon as reference
from tiny_models import save_model

from kompakt import ConfigError, InputError, ModelError
from kompakt.compressor.cache.beacon_config import FIRST_VERSION, BeaconConfig
from kompakt.compressor.cache.beacon_module import BeaconModule
from kompakt.compressor.cache.beacon_ratios import BeaconRatios
from kompakt.compressor.cache.key_values import KeyValues
from kompakt.compressor.soft.decoder import load_decoder


def read(module, ids, lengths, ratios):
    """Read chunks, each of which lies in one window; return the logits of each, and the state."""
    state, logits = module.empty(len(ids)), []
    ratios = iter(ratios)
    ratio = None
    with torch.no_grad():
        for chunk in ids.split(lengths, dim=1):
            is_full = state.n_tokens + chunk.shape[1] == module.config.window
            if not state.n_tokens:
                ratio = None
            if ratio is None and (is_full or module.config.placement == "interleave"):
                ratio = next(ratios)
            states, state = module.step(chunk, state, ratio)
            logits.append(module.logits(states))
    return logits, state


def assert_reads_as_the_reference(module, ids, lengths, ratios):
    made, state = read(module, ids, lengths, ratios)
    for row in range(len(ids)):
        twin = reference_of(module, ratios)
        for logits, chunk in zip(made, ids[row].split(lengths), strict=True):
            assert_close(logits[row], twin.step(chunk.tolist()))
        for held, entries in ((state.sink, twin.sink), (state.memory, twin.memory), (state.raw, twin.raw)):
            assert len(held) == len(entries)
            if entries:
                keys, values = keys_of(entries)
                assert_close(held.keys[:, row], keys)
                assert_close(held.values[:, row], values)
    return state


CHUNKS = {"windows": [16, 16, 16, 7], "parts": [5, 1, 10, 16, 1, 1, 14, 3, 4], "single": [1] * 16 + [16, 2, 1]}


@pytest.mark.parametrize("chunks", list(CHUNKS))
@pytest.mark.parametrize("sink_size", [0, 1, 3])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_windows_are_read_as_by_the_reference(base, layout, sink_size, chunks):
    module = module_of(base, sink_size=sink_size, **LAYOUTS[layout])
    lengths = CHUNKS[chunks]
    assert_reads_as_the_reference(module, ids_of(2, sum(lengths)), lengths, [4, 2, 8, 4])


@pytest.mark.parametrize("as_released", [False, True])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_windows_that_are_kept_as_they_are(base, layout, as_released):
    module = module_of(base, ratios=(0, 2, 4), sink_size=2, as_released=as_released, **LAYOUTS[layout])
    state = assert_reads_as_the_reference(module, ids_of(1, 60), [6, 10, 16, 16, 12], [0, 4, 0, 2])
    # the first window's first tokens are there once, unless as in the authors' code
    assert state.n_context == 16 + 4 + 16 + 2 * as_released


@pytest.mark.parametrize("sink_size", [0, 1, 2])
@pytest.mark.parametrize("layout", ["interleave", "hidden-beacons", "append"])
@pytest.mark.parametrize("chunks", ["windows", "parts"])
def test_what_the_released_code_does_is_done_where_it_is_asked_for(base, layout, sink_size, chunks):
    module = module_of(base, sink_size=sink_size, as_released=True, **LAYOUTS[layout])
    assert_reads_as_the_reference(module, ids_of(1, sum(CHUNKS[chunks])), CHUNKS[chunks], [4, 2, 8, 4])


def test_the_released_sink_differs_only_from_the_second_step_of_a_short_beginning_on(base):
    ids = ids_of(1, 40)
    for lengths, are_equal in (([16, 16, 8], True), ([5, 11, 16, 8], False)):
        (made, _), (released, _) = (
            read(module_of(base, sink_size=1, as_released=flag), ids, lengths, [4, 2, 8]) for flag in (False, True)
        )
        assert torch.equal(made[0], released[0])
        assert torch.allclose(made[1], released[1], atol=1e-4) is are_equal


def test_hidden_beacons_are_the_first_two_tokens_in_the_released_code(base):
    ids = ids_of(1, 20)
    made, released = (
        read(module_of(base, as_released=flag, **LAYOUTS["hidden-beacons"]), ids, [3, 13, 4], [4, 4])[0]
        for flag in (False, True)
    )
    # no beacon is there yet
    assert torch.equal(made[0], released[0])
    assert not torch.allclose(made[1], released[1], atol=1e-2)


def test_a_single_ratio_may_leave_tokens_over_for_the_next_window(base):
    module = module_of(base, ratios=(3,))
    state = assert_reads_as_the_reference(module, ids_of(1, 50), [16, 5, 11, 16, 2], [3] * 4)
    assert len(state.memory) == 5 + 5 + 6


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_other_families_are_read_as_by_the_reference(tmp_path, kind):
    folder = save_model(tmp_path / kind, kind, max_position_embeddings=256)
    module = module_of(folder, sink_size=1, params=("q", "k", "v", "o"))
    has_biases = any(name.endswith("beacon_q_proj.bias") for name in module.trainable())
    assert has_biases is (kind == "qwen2")
    assert_reads_as_the_reference(module, ids_of(1, 40), [16, 10, 6, 8], [4, 2, 8])


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("n_tokens", [40, 48])
def test_loss_and_gradients_are_those_of_the_reference(base, layout, n_tokens):
    module = module_of(base, **LAYOUTS[layout]).train()
    ids, ratios = ids_of(1, n_tokens), [4, 2]
    weights = weights_of(module)
    own = {name: parameter for name, parameter in weights.items() if "beacon" in name}
    settings = module.config.to_json()
    expected, scores = reference.loss(weights, module.lm.model.config, settings, ids[0].tolist(), ratios)
    with torch.no_grad():
        assert_close(module(ids, ratios=ratios).logits[0], scores)
    output = module(ids, ratios=ratios, labels=ids)
    assert_close(output.loss, expected)
    assert output.logits is None
    theirs = torch.autograd.grad(expected, list(own.values()))
    output.loss.backward()
    last = f"layers.{LAYERS - 1}.self_attn.beacon_"
    for (name, parameter), gradient in zip(own.items(), theirs, strict=True):
        assert_close(parameter.grad, gradient)
        # nothing reads what comes out of the last layer's beacons
        is_read = f"{last}q" not in name and f"{last}o" not in name
        assert bool(parameter.grad.abs().sum() > 0) is is_read
    assert all(parameter.grad is None for parameter in module.lm.model.parameters())


def test_gradients_reach_the_first_window_from_the_last(base):
    module = module_of(base)
    labels = torch.full((1, 3 * WINDOW), -100)
    labels[:, -1] = 7
    module(ids_of(1, 3 * WINDOW), ratios=[8, 8], labels=labels).loss.backward()
    near = module.beacon_embed_tokens.weight.grad.clone()
    module.beacon_embed_tokens.weight.grad = None
    # the same without the first window's beacons, which the second window's read
    state = module.empty(1)
    with torch.no_grad():
        _, state = module.step(ids_of(1, 3 * WINDOW)[:, :WINDOW], state, 8)
    _, state = module.step(ids_of(1, 3 * WINDOW)[:, WINDOW : 2 * WINDOW], state, 8)
    states, _ = module.step(ids_of(1, 3 * WINDOW)[:, 2 * WINDOW :], state, None)
    torch.nn.functional.cross_entropy(module.logits(states)[0, -2:-1], torch.tensor([7])).backward()
    assert not torch.allclose(near, module.beacon_embed_tokens.weight.grad, rtol=1e-3)


def test_targets_that_are_masked_do_not_count(base):
    module = module_of(base)
    ids = ids_of(2, 40)
    labels = ids.clone()
    labels[:, 5:25] = -100
    labels[1] = -100
    with torch.no_grad():
        logits = module(ids, ratios=[4, 4]).logits
        loss = module(ids, ratios=[4, 4], labels=labels).loss
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert_close(loss, expected)


@pytest.fixture(scope="module")
def calm_base(tmp_path_factory):
    """A decoder with weights of the usual size, where a layer does not multiply what was rounded."""
    folder = save_decoder(tmp_path_factory.mktemp("decoders") / "calm")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data *= 0.3 if parameter.dim() > 1 else 1.0
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_half_the_bits_give_nearly_the_same(calm_base, layout):
    ids = ids_of(1, 40)
    made, expected = (
        read(module_of(calm_base, dtype=dtype, sink_size=1, **LAYOUTS[layout]), ids, [16, 16, 8], [4, 2, 8])[0][-1]
        for dtype in ("bfloat16", "float32")
    )
    assert made.dtype == torch.bfloat16
    assert (made.float() - expected).norm() / expected.norm() < 0.05


def test_untrained_beacons_have_the_projections_of_tokens(base):
    lm = load_decoder(base, dtype="float32", device="cpu")
    module = BeaconModule(lm, config_of(params=("q", "v")))
    weights = lm.model.state_dict()
    own = module.trainable()
    assert len(own) == 1 + 2 * lm.model.config.num_hidden_layers
    for name, parameter in own.items():
        assert parameter.requires_grad
        if "proj" in name:
            assert torch.equal(parameter, weights[name.replace("beacon_", "")])
    assert torch.equal(own["model.beacon_embed_tokens.weight"][0], weights["model.embed_tokens.weight"][0])
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    held = {id(parameter) for parameter in lm.model.parameters()}
    assert {id(one) for one in module.body.parameters()} - held == {
        id(one) for name, one in own.items() if "proj" in name
    }


def test_the_decoder_itself_does_not_change(base):
    lm = load_decoder(base, dtype="float32", device="cpu")
    ids = ids_of(1, 12)
    with torch.no_grad():
        before = lm.model(ids).logits
        module = randomised(BeaconModule(lm, config_of()))
        read(module, ids_of(1, 20), [16, 4], [4, 4])
        assert torch.equal(lm.model(ids).logits, before)


def test_threads_read_side_by_side(base):
    module = module_of(base)
    texts = [ids_of(1, 48, seed) for seed in range(4)]
    lengths = [[16, 16, 16], [8, 8, 16, 16], [16, 4, 12, 16], [2, 14, 16, 16]]
    expected = [read(module, *one, [2, 4, 8])[0] for one in zip(texts, lengths, strict=True)]
    made = {}

    def work(place):
        made[place] = read(module, texts[place], lengths[place], [2, 4, 8])[0]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, logits in enumerate(expected):
        assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(made[place], logits, strict=True))


def test_a_state_can_be_gone_on_from_twice(base):
    module = module_of(base)
    _, state = read(module, ids_of(1, 24), [16, 8], [4, 4])
    with torch.no_grad():
        first, _ = module.step(ids_of(1, 4, seed=1), state, 4)
        module.step(ids_of(1, 8, seed=2), state, 4)
        again, _ = module.step(ids_of(1, 4, seed=1), state, 4)
    assert torch.equal(first, again)


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize(("n_tokens", "ratio"), [(16, 4), (11, 4), (3, 4), (8, 8), (7, 2)])
def test_what_becomes_of_a_window_of_any_length_is_what_the_reference_keeps(base, layout, n_tokens, ratio):
    module = module_of(base, **LAYOUTS[layout])
    ids = ids_of(2, 16 + n_tokens)
    with torch.no_grad():
        first = module.compressed(ids[:, :16], KeyValues.none(module.lm, 2), 2)
        second = module.compressed(ids[:, 16:], first, ratio)
    assert len(second) == n_tokens // ratio + n_tokens % ratio
    for row in range(2):
        twin = reference_of(module, [])
        for made, chunk, rate in ((first, ids[row, :16], 2), (second, ids[row, 16:], ratio)):
            keys, values = keys_of(twin.compress(chunk.tolist(), rate))
            assert_close(made.keys[:, row], keys)
            assert_close(made.values[:, row], values)


def test_tokens_and_ratios_that_do_not_fit_are_refused(base):
    module = module_of(base)
    _, state = read(module, ids_of(1, 10), [10], [4])
    with pytest.raises(InputError, match="10 of its 16 tokens: 7 more"):
        module.step(ids_of(1, 7), state, 4)
    with pytest.raises(InputError, match="3 windows need 2 ratios, got 1"):
        module(ids_of(1, 40), ratios=[4])


def test_memory_that_the_model_does_not_read_is_refused(tmp_path):
    for kind, settings in (("llama", {"max_position_embeddings": 40}), ("mistral", {"sliding_window": 40})):
        folder = save_model(tmp_path / kind, kind, **{"max_position_embeddings": 80} | settings)
        module = module_of(folder)
        with pytest.raises(InputError, match="48 exceed the 40 that the model reads"):
            read(module, ids_of(1, 64), [16] * 4, [2, 2, 2, 2])
        _, state = read(module, ids_of(1, 80), [16] * 5, [4] * 5)
        assert state.n_context == 20


@pytest.mark.parametrize("kind", ["opt", "gpt2", "qwen3", "gemma2"])
def test_decoders_that_are_not_supported_are_named(tmp_path, kind):
    folder = save_decoder(tmp_path / kind, kind) if kind == "opt" else save_model(tmp_path / kind, kind)
    lm = load_decoder(folder, dtype="float32", device="cpu")
    with pytest.raises(ModelError, match=f"type '{kind}', but in llama, mistral, qwen2"):
        BeaconModule(lm, config_of())


def test_rotations_that_depend_on_the_length_are_not_supported(tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    folder = save_model(tmp_path / "dynamic", "llama", rope_parameters=rope)
    with pytest.raises(ModelError, match="depend on the length"):
        BeaconModule(load_decoder(folder, dtype="float32", device="cpu"), config_of())


def test_the_beginning_of_a_text_may_give_the_embedding(tmp_path):
    folder = save_model(tmp_path / "llama", "llama")
    lm = load_decoder(folder, dtype="float32", device="cpu")
    lm.model.config.bos_token_id = 9
    module = BeaconModule(lm, config_of(embed_init="bos"))
    assert torch.equal(module.beacon_embed_tokens.weight[0], lm.model.get_input_embeddings().weight[9])
    lm.model.config.bos_token_id = None
    with pytest.raises(ModelError, match="embed_init='bos'"):
        BeaconModule(lm, config_of(embed_init="bos"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be at least 1"),
        ({"stride": 8}, "stride must be the window, 16, got 8"),
        ({"ratios": ()}, "ratios must be"),
        ({"ratios": (2, 32)}, "from 0 to the window"),
        ({"ratios": (2, 3)}, "3 does not divide the window, 16"),
        ({"ratios": (3,), "placement": "append"}, "3 does not divide"),
        ({"ratio_mix": "random"}, "'random'"),
        ({"ratio_mix": "adapt-"}, "'adapt-'"),
        ({"placement": "front"}, "'front'"),
        ({"attention": "none"}, "'none'"),
        ({"attention": "segmentation"}, "choose full-coverage or step-expansion"),
        ({"attention": "step-expansion"}, "need attend_previous=False"),
        ({"attend_previous": False}, "choose attend_previous=True"),
        ({"params": ("q", "x")}, "params must be"),
        ({"params": ("q", "q")}, "params must be"),
        ({"embed_init": "pad"}, "'pad'"),
        ({"sink_size": 17}, "sink_size"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**options)


def test_a_configuration_is_written_and_read():
    for config in (config_of(ratio_mix="adapt-64", sink_size=1), FIRST_VERSION):
        assert BeaconConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="no options windows"):
        BeaconConfig.from_json({"windows": 3})


def draws(ratios, n, **options):
    chosen = BeaconRatios(BeaconConfig(ratios=ratios, **options), 4096)
    return [chosen.next(1000) for _ in range(n)]


def test_drawn_ratios_are_those_of_the_authors():
    assert draws((2, 4, 8), 14) == [2, 8, 4, 4, 4, 8, 2, 8, 2, 2, 4, 8, 8, 8]
    assert draws((2, 4, 8, 16, 32), 10) == [2, 16, 16, 8, 8, 32, 2, 16, 4, 2]


def test_a_new_text_begins_ratios_anew_but_not_chance():
    config = config_of(ratios=(2, 4, 8, 16))
    chosen = BeaconRatios(config, 512)
    first = [WINDOW // chosen.next(80) for _ in range(5)]
    chosen.reset()
    second = [WINDOW // chosen.next(80) for _ in range(5)]
    assert (len(set(first + second)), first) != (1, second)
    in_turn = BeaconRatios(config_of(ratio_mix="sequence"), 512)
    assert [in_turn.next(80) for _ in range(4)] == [2, 4, 8, 2]
    in_turn.reset()
    assert in_turn.next(80) == 2
    once = BeaconRatios(config_of(ratio_mix="instance-random"), 512)
    texts = []
    for _ in range(6):
        texts.append({once.next(80) for _ in range(4)})
        once.reset()
    assert all(len(text) == 1 for text in texts)
    assert len(set.union(*texts)) > 1


@pytest.mark.parametrize(
    ("n_tokens", "expected"), [(90, 0), (91, 2), (174, 2), (175, 4), (342, 4), (343, 8), (9999, 8)]
)
def test_the_finest_ratio_with_which_a_text_and_the_reserve_fit(n_tokens, expected):
    chosen = BeaconRatios(config_of(ratios=(0, 2, 4, 8), ratio_mix="adapt-10"), 100)
    assert chosen.next(n_tokens) == expected
    # what was decided stays
    assert chosen.next(9999) == expected


def test_training_keeps_at_most_one_window_and_none_of_the_last_two():
    chosen = BeaconRatios(config_of(ratios=(0, 2)), 512)
    seen = []
    for n_tokens in (8, 16, 17, 32, 40, 48, 80):
        for _ in range(20):
            ratios = chosen.for_training(n_tokens)
            assert len(ratios) == -(-n_tokens // WINDOW) - 1
            assert ratios.count(0) <= 1
            kept = ratios.index(0) * WINDOW if 0 in ratios else 0
            assert kept + 2 * WINDOW <= n_tokens or not ratios or 0 not in ratios
            seen += ratios
    assert set(seen) == {0, 2}
    with pytest.raises(ConfigError, match="ratio 0 alone"):
        BeaconRatios(config_of(ratios=(0,)), 512).for_training(80)
