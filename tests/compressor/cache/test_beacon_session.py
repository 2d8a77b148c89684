"""Reading without an end: what a session remembers, and what it writes."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from beacon_parts import LAYOUTS, WINDOW, ids_of, keys_of, module_of, reference_of
from soft_parts import assert_close
from tiny_models import save_model

from kompakt import ConfigError, InputError
from kompakt.compressor.cache.beacon_module import BeaconModule
from kompakt.compressor.cache.beacon_ratios import BeaconRatios
from kompakt.compressor.cache.beacon_session import BeaconSession

NEVER = (9999,)
"""Tokens that end a text, of which no model has one."""


@pytest.fixture(scope="module", params=list(LAYOUTS))
def module(request, base):
    return module_of(base, sink_size=1, **LAYOUTS[request.param])


def drawn(module, n):
    chosen = BeaconRatios(module.config, module.max_positions)
    return [chosen.next(0) for _ in range(n)]


def fed(module, ids, lengths):
    """A session that was given chunks, and the logits of each."""
    session = BeaconSession(module, batch_size=len(ids))
    return session, [session.read(chunk) for chunk in ids.split(lengths, dim=1)]


def assert_same(one, two):
    """Sessions that will go on in the same way."""
    assert (one.n_positions, one.n_tokens) == (two.n_positions, two.n_tokens)
    assert_close(one.memory.keys, two.memory.keys)
    assert_close(one.memory.values, two.memory.values)
    following = ids_of(one.memory.batch_size, 2 * WINDOW, seed=9)
    assert_close(one.read(following), two.read(following))


def test_a_long_call_gives_the_logits_of_its_last_window_as_the_reference(module):
    ids = ids_of(2, 58)
    session, (logits,) = fed(module, ids, [58])
    assert logits.shape[:2] == (2, 58 % WINDOW)
    for row in range(2):
        twin = reference_of(module, drawn(module, 4))
        assert_close(logits[row], twin.read(ids[row].tolist()))
        keys, values = keys_of(twin.sink + twin.memory)
        assert_close(session.memory.keys[:, row], keys)
        assert_close(session.memory.values[:, row], values)
        assert session.n_positions == len(twin.sink + twin.memory + twin.raw)


@pytest.mark.parametrize("lengths", [[1] * 58, [5, 30, 3, 20], [16, 16, 16, 10], [33, 25], [57, 1]])
def test_chunks_of_any_length_are_read_as_one_call(module, lengths):
    ids = ids_of(1, 58)
    whole, _ = fed(module, ids, [58])
    parts, _ = fed(module, ids, lengths)
    assert_same(parts, whole)


def test_the_token_after_a_full_window_sees_its_beacons_alone(module):
    session, _ = fed(module, ids_of(1, 2 * WINDOW), [2 * WINDOW])
    ratios = drawn(module, 2)
    assert session.n_positions == 1 + sum(WINDOW // ratio for ratio in ratios)
    session.read([7])
    assert session.n_positions == 2 + sum(WINDOW // ratio for ratio in ratios)


def test_texts_of_a_batch_are_read_as_each_alone(module):
    ids = ids_of(3, 45)
    _, (together,) = fed(module, ids, [45])
    for row in range(3):
        _, (alone,) = fed(module, ids[row : row + 1], [45])
        assert_close(together[row], alone[0])


def test_a_continuation_past_windows_is_that_of_reading_each_token_alone(module):
    ids = ids_of(1, 21)
    session = BeaconSession(module)
    (made,) = session.generate(ids, max_new_tokens=40, end_ids=NEVER)
    assert len(made) == 40
    twin, (logits,) = fed(module, ids, [21])
    for token in made:
        assert token == int(logits[0, -1].argmax())
        logits = twin.read([token])
    assert_same(session, twin)


def test_a_continuation_is_that_of_the_reference(module):
    ids = ids_of(1, 12)[0].tolist()
    (made,) = BeaconSession(module).generate(ids, max_new_tokens=10, end_ids=NEVER)
    twin = reference_of(module, drawn(module, 3))
    logits = twin.read(ids)
    for token in made:
        assert token == int(logits[-1].argmax())
        logits = twin.read([token])


def test_continuations_end_each_on_its_own(module):
    ids = ids_of(3, 20)
    endless = BeaconSession(module, batch_size=3).generate(ids, max_new_tokens=8, end_ids=NEVER)
    end = endless[1][3]
    ended = BeaconSession(module, batch_size=3).generate(ids, max_new_tokens=8, end_ids=[end])
    for one, whole in zip(ended, endless, strict=True):
        assert one == list(itertools.takewhile(lambda token: token != end, whole))
    assert BeaconSession(module, batch_size=3).generate(ids, max_new_tokens=0) == [[], [], []]


def test_the_end_is_not_read(module):
    ids = ids_of(1, 20)
    session = BeaconSession(module)
    first = session.generate(ids, max_new_tokens=1, end_ids=NEVER)[0][0]
    assert session.n_tokens == 21
    ended = BeaconSession(module)
    assert ended.generate(ids, max_new_tokens=5, end_ids=[first]) == [[]]
    assert ended.n_tokens == 20


@pytest.mark.parametrize("end", [0, [0, 5]])
def test_the_model_itself_knows_what_ends_a_text(base, monkeypatch, end):
    module = module_of(base)
    ids = ids_of(1, 20)
    endless = BeaconSession(module).generate(ids, max_new_tokens=30, end_ids=NEVER)[0]
    monkeypatch.setattr(module.lm.model.config, "eos_token_id", endless[4] if end == 0 else [9999, endless[4]])
    made = BeaconSession(module).generate(ids, max_new_tokens=30)[0]
    assert made == endless[: endless.index(endless[4])]


@pytest.mark.parametrize("n_tokens", [0, 5, 16, 37, 47])
def test_a_saved_session_goes_on_as_if_it_had_not_ended(module, n_tokens):
    ids = ids_of(2, 60)
    session, _ = fed(module, ids[:, :n_tokens], [n_tokens] if n_tokens else [])
    data = session.state()
    assert isinstance(data, bytes)
    again = BeaconSession.from_state(module, data)
    assert_close(again.read(ids[:, n_tokens:]), session.read(ids[:, n_tokens:]))
    assert_same(again, session)


def test_a_saved_session_goes_on_where_ratios_were(base):
    for mix in ("step-random", "instance-random", "sequence", "adapt-50"):
        module = module_of(base, ratio_mix=mix)
        session, _ = fed(module, ids_of(1, 40), [40])
        again = BeaconSession.from_state(module, session.state())
        for one in (session, again):
            one.read(ids_of(1, 160))
        assert session.n_positions == again.n_positions
        assert_same(session, again)


def test_states_of_others_and_damaged_ones_are_refused(base, tmp_path):
    module = module_of(base)
    session, _ = fed(module, ids_of(1, 20), [20])
    data = session.state()
    other = module_of(save_model(tmp_path / "other", "llama", max_position_embeddings=512))
    retrained = module_of(base)
    assert retrained.weights_fingerprint == module.weights_fingerprint
    with torch.no_grad():
        next(iter(retrained.trainable().values())).add_(1)
    for wrong in (other, module_of(base, placement="append"), retrained):
        with pytest.raises(InputError, match="go on with the model that wrote it"):
            BeaconSession.from_state(wrong, data)
    for damaged in (b"", b"damaged", data[:-20]):
        with pytest.raises(InputError, match="damaged"):
            BeaconSession.from_state(module, damaged)
    from safetensors.torch import load, save

    for change in ({"about": torch.tensor(list(b"{}"), dtype=torch.uint8)}, {"about": torch.zeros(3)}):
        with pytest.raises(InputError, match="damaged"):
            BeaconSession.from_state(module, save(load(data) | change))
    without = {name: tensor for name, tensor in load(data).items() if name != "raw.keys"}
    with pytest.raises(InputError, match="damaged"):
        BeaconSession.from_state(module, save(without))


def test_a_state_does_not_grow_but_by_beacons(base):
    module = module_of(base, ratios=(8,))
    session = BeaconSession(module)
    sizes = []
    for _ in range(6):
        session.read(ids_of(1, 4 * WINDOW))
        assert len(session.state()) - session.memory.keys.nbytes - session.memory.values.nbytes < 2500
        sizes.append(session.n_positions)
    # two beacons a window, whatever was read
    assert sizes == [8, 16, 24, 32, 40, 48]
    for _ in range(3 * WINDOW):
        session.read([5])
        assert session.n_positions <= 48 + 6 + WINDOW + 1


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_new_text_is_not_told_of_the_one_before(base, layout):
    module = module_of(base, ratios=(4,), sink_size=1, **LAYOUTS[layout])
    session, _ = fed(module, ids_of(1, 40), [40])
    session.reset()
    assert (session.n_positions, session.n_tokens, len(session.memory)) == (0, 0, 0)
    ids = ids_of(1, 20, seed=3)
    _, (alone,) = fed(module, ids, [20])
    assert_close(session.read(ids), alone)


def test_chance_goes_on_over_texts(base):
    session = BeaconSession(module_of(base, ratios=(2, 4, 8, 16)))
    n_beacons = []
    for _ in range(2):
        session.reset()
        for start in range(0, 80, WINDOW):
            before = session.n_positions
            session.read(ids_of(1, 80)[:, start : start + WINDOW])
            n_beacons.append(session.n_positions - before)
    assert n_beacons == [WINDOW // ratio for ratio in drawn(module_of(base, ratios=(2, 4, 8, 16)), 10)]
    assert n_beacons[:5] != n_beacons[5:]


def test_the_ratio_is_chosen_by_all_that_is_known_of_the_text(tmp_path):
    folder = save_model(tmp_path / "llama", "llama", max_position_embeddings=64)
    module = module_of(folder, ratio_mix="adapt-8")
    for n_tokens, n_positions in ((96, 48), (120, 7 * 4 + 8 + 2), (200, 12 * 4 + 8 + 2)):
        session = BeaconSession(module)
        session.read(ids_of(1, n_tokens))
        assert session.n_positions == n_positions, n_tokens


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    folder = save_model(tmp_path / "llama", "llama", max_position_embeddings=64)
    module = module_of(folder)
    session, twin = BeaconSession(module), BeaconSession(module)
    for one in (session, twin):
        one.read(ids_of(1, 30))
    with pytest.raises(InputError, match="exceed the 64 that the model reads: compress with higher ratios"):
        session.read(ids_of(1, 300))
    assert (session.n_tokens, session.n_positions) == (30, twin.n_positions)
    following = ids_of(1, 10, seed=4)
    assert torch.equal(session.read(following), twin.read(following))
    assert json.loads(json.dumps(session._ratios.to_json())) == twin._ratios.to_json()


def test_an_answer_that_does_not_fit_is_as_if_it_had_not_been_begun(tmp_path):
    folder = save_model(tmp_path / "llama", "llama", max_position_embeddings=64)
    module = module_of(folder)
    session, twin = BeaconSession(module), BeaconSession(module)
    for one in (session, twin):
        one.read(ids_of(1, 30))
    with pytest.raises(InputError, match="exceed the 64 that the model reads"):
        session.generate(ids_of(1, 10), max_new_tokens=400, end_ids=NEVER)
    assert (session.n_tokens, session.n_positions) == (30, twin.n_positions)
    following = ids_of(1, 10, seed=4)
    assert torch.equal(session.read(following), twin.read(following))


def test_a_text_that_could_not_be_read_does_not_decide_about_the_next(base, monkeypatch):
    module = module_of(base, ratio_mix="adapt-0")
    session = BeaconSession(module)
    with monkeypatch.context() as patch:
        patch.setattr(BeaconModule, "step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.read(ids_of(1, 4000))
    session.read(ids_of(1, 4 * WINDOW))
    assert session.n_positions == 4 * WINDOW // 2


def test_a_session_may_choose_its_ratios_and_nothing_else(base):
    module = module_of(base)
    session = BeaconSession(module, config=replace(module.config, ratios=(8,)))
    session.read(ids_of(1, 4 * WINDOW))
    assert session.n_positions == 4 * WINDOW // 8
    again = BeaconSession.from_state(module, session.state())
    again.read(ids_of(1, 4 * WINDOW))
    assert again.n_positions == 8 * WINDOW // 8
    with pytest.raises(ConfigError, match="ratios and a ratio_mix of its own, and nothing else"):
        BeaconSession(module, config=replace(module.config, sink_size=1))


@pytest.mark.parametrize(
    "ids", [[], [[1, 2]], [[1, 2], [3]], torch.zeros(2, 0), torch.zeros(2, 2, 2), "ab", [1.5, [2]]]
)
def test_other_shapes_are_named(base, ids):
    with pytest.raises(InputError, match="texts"):
        BeaconSession(module_of(base), batch_size=2).read(ids)


def test_half_the_bits_are_kept_in_states(base):
    module = module_of(base, dtype="bfloat16", sink_size=1)
    session, _ = fed(module, ids_of(1, 40), [40])
    again = BeaconSession.from_state(module, session.state())
    assert again.memory.keys.dtype == torch.bfloat16
    assert torch.equal(again.memory.keys, session.memory.keys)
    (one,), (two,) = (s.generate(ids_of(1, 3), max_new_tokens=12, end_ids=NEVER) for s in (session, again))
    assert one == two
