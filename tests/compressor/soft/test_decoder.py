"""Decoders that lend their weights: what reads embeddings, copies that share, short bodies, states of rows."""

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_models import CONTEXT, FAMILIES, save_model  # noqa: E402 (needs torch)

from kompakt.compressor.errors import InputError, ModelError  # noqa: E402
from kompakt.compressor.models.causal_lm import BATCH_TOKENS, load_causal_lm  # noqa: E402
from kompakt.compressor.soft.decoder import (  # noqa: E402
    NO_POSITION,
    body_of,
    check_reads_embeddings,
    embed,
    end_of_text,
    hidden_states,
    load_decoder,
    shared_copy,
    truncated,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request, tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("models") / request.param, request.param, num_hidden_layers=4)
    return load_decoder(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    return load_decoder(save_model(tmp_path_factory.mktemp("models") / "opt", "opt"), dtype="float32", device="cpu")


def rows_of(lengths, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, 32, generator=generator) for length in lengths]


def alone(body, row, positions=None):
    """The states of a row, and nothing else, from a plain call."""
    ids = None if positions is None else positions[None]
    return body(inputs_embeds=row[None], position_ids=ids, use_cache=False).last_hidden_state[0]


def test_a_model_that_reads_embeddings_is_the_one_that_reads_text(lm):
    check_reads_embeddings(lm)
    ids = torch.arange(3, 9)
    expected = lm.model(input_ids=ids[None]).logits
    torch.testing.assert_close(lm.model(inputs_embeds=embed(lm, ids)[None]).logits, expected, **CLOSE)


def test_loading_gives_the_same_object_as_for_other_uses(tmp_path):
    folder = save_model(tmp_path / "llama")
    options = {"dtype": "float32", "device": "cpu"}
    assert load_decoder(folder, **options) is load_causal_lm(folder, **options)
    assert load_decoder(folder, **options, plain_rope=True) is load_causal_lm(folder, **options, plain_rope=True)


def test_a_model_whose_embeddings_are_narrower_than_its_states_is_refused(tmp_path):
    folder = save_model(tmp_path / "opt", "opt", word_embed_proj_dim=16)
    with pytest.raises(ModelError, match=r"this 'opt' model is not supported here: .* 16 wide .* 32"):
        load_decoder(folder, dtype="float32", device="cpu")


@pytest.mark.parametrize("error", [TypeError, ValueError, RuntimeError])
def test_a_model_that_takes_no_embeddings_is_refused(tmp_path, monkeypatch, error):
    lm = load_causal_lm(save_model(tmp_path / "llama"), dtype="float32", device="cpu")
    forward = body_of(lm).forward

    def without(*args, **options):
        if "inputs_embeds" in options:
            raise error("no such thing")
        return forward(*args, **options)

    monkeypatch.setattr(body_of(lm), "forward", without)
    with pytest.raises(
        ModelError, match="type 'llama' are not supported here: they read no embeddings: no such thing"
    ):
        check_reads_embeddings(lm)


def test_a_model_that_looks_at_tokens_too_is_refused(tmp_path, monkeypatch):
    lm = load_causal_lm(save_model(tmp_path / "llama"), dtype="float32", device="cpu")
    forward = body_of(lm).forward

    def with_more(*args, **options):
        output = forward(*args, **options)
        if "input_ids" in options:
            output.last_hidden_state = output.last_hidden_state + options["input_ids"][..., None]
        return output

    monkeypatch.setattr(body_of(lm), "forward", with_more)
    with pytest.raises(ModelError, match="need token ids beside the embeddings"):
        check_reads_embeddings(lm)


def test_a_model_without_a_table_of_embeddings_is_refused(tmp_path, monkeypatch):
    lm = load_causal_lm(save_model(tmp_path / "llama"), dtype="float32", device="cpu")
    monkeypatch.setattr(lm.model, "get_input_embeddings", lambda: torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="they have no table of input embeddings"):
        check_reads_embeddings(lm)


def test_embeddings_of_tokens(lm):
    table = lm.model.get_input_embeddings()
    assert torch.equal(embed(lm, [5, 0, 5]), table(torch.tensor([5, 0, 5])))
    assert torch.equal(embed(lm, torch.tensor([7])), table(torch.tensor([7])))
    assert embed(lm, []).shape == (0, 32)


def test_a_copy_shares_every_weight_and_nothing_of_its_structure(lm):
    body = body_of(lm)
    ids = torch.arange(1, 6)[None]
    before = body(ids).last_hidden_state
    names = {name: parameter.data_ptr() for name, parameter in body.named_parameters()}
    twin = shared_copy(body)
    assert {name: parameter.data_ptr() for name, parameter in twin.named_parameters()} == names
    torch.testing.assert_close(twin(ids).last_hidden_state, before, atol=0, rtol=0)
    own = {id(module) for module in body.modules()}
    assert not own & {id(module) for module in twin.modules()}
    twin.config.num_hidden_layers = 1
    for module in twin.modules():
        module.register_forward_hook(lambda *_: pytest.fail("the copy's hook ran for the original"))
    assert body.config.num_hidden_layers == 4
    torch.testing.assert_close(body(ids).last_hidden_state, before, atol=0, rtol=0)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_a_short_body_gives_the_states_after_its_layers(lm, n_layers):
    body = body_of(lm)
    ids = torch.arange(1, 9)[None]
    states = body(ids, output_hidden_states=True).hidden_states
    short = truncated(body, n_layers)
    torch.testing.assert_close(short(ids).last_hidden_state, states[n_layers], **CLOSE)
    assert short.config.num_hidden_layers == n_layers
    # the original keeps all its layers
    torch.testing.assert_close(body(ids).last_hidden_state, states[-1], atol=0, rtol=0)
    assert {one.data_ptr() for one in short.parameters()} < {one.data_ptr() for one in body.parameters()}


def test_a_short_body_may_keep_the_final_normalisation(lm):
    body = body_of(lm)
    ids = torch.arange(1, 9)[None]
    states = body(ids, output_hidden_states=True).hidden_states
    inner = getattr(body, "decoder", body)
    norm = next(getattr(inner, name) for name in ("norm", "final_layer_norm", "ln_f") if hasattr(inner, name))
    short = truncated(body, 2, final_norm=True)
    torch.testing.assert_close(short(ids).last_hidden_state, norm(states[2]), **CLOSE)
    whole = truncated(body, 4, final_norm=True)
    torch.testing.assert_close(whole(ids).last_hidden_state, states[-1], **CLOSE)
    assert not torch.allclose(truncated(body, 4)(ids).last_hidden_state, states[-1], atol=1e-2)


@pytest.mark.parametrize("n_layers", [0, -1, 5])
def test_layers_that_a_body_has_not_are_refused(lm, n_layers):
    with pytest.raises(ModelError, match=f"has 4 layers, so {n_layers} of them"):
        truncated(body_of(lm), n_layers)


def test_a_body_of_another_build_is_refused(tmp_path):
    # its final normalisation has a name of its own
    phi = load_causal_lm(save_model(tmp_path / "phi", "phi"), dtype="float32", device="cpu")
    with pytest.raises(ModelError, match="type 'phi' cannot be truncated"):
        truncated(body_of(phi), 1)


LENGTHS = [5, 1, 8, 9, 24, 3, 8, 17, 16]


def test_states_of_rows_are_those_of_each_row_alone(lm):
    body, rows = body_of(lm), rows_of(LENGTHS)
    found = hidden_states(body, rows, max_positions=CONTEXT)
    assert [len(one) for one in found] == LENGTHS
    for row, states in zip(rows, found, strict=True):
        torch.testing.assert_close(states, alone(body, row), **CLOSE)


def test_states_of_a_row_do_not_depend_on_its_company(lm):
    body, rows = body_of(lm), rows_of(LENGTHS)
    found = hidden_states(body, rows, max_positions=CONTEXT)
    backwards = hidden_states(body, rows[::-1], max_positions=CONTEXT)[::-1]
    for row, one, two in zip(rows, found, backwards, strict=True):
        (lonely,) = hidden_states(body, [row], max_positions=CONTEXT)
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(one, lonely, atol=1e-6, rtol=1e-6)


def test_states_at_given_positions(lm):
    body, rows = body_of(lm), rows_of([4, 6, 5])
    positions = [torch.tensor(one) for one in ([3, 4, 5, 6], [0, 1, 2, 0, 1, 2], [9, 9, 2, 11, 0])]
    found = hidden_states(body, rows, positions, max_positions=CONTEXT)
    for row, ids, states in zip(rows, positions, found, strict=True):
        # a mask of ones, or positions that begin anew would be taken for several texts
        mask = torch.ones(1, len(row), dtype=torch.long)
        expected = body(inputs_embeds=row[None], position_ids=ids[None], attention_mask=mask, use_cache=False)
        torch.testing.assert_close(states, expected.last_hidden_state[0], **CLOSE)
    plain = hidden_states(body, rows, max_positions=CONTEXT)
    assert not torch.allclose(found[2], plain[2], atol=1e-2)


def test_positions_that_begin_anew_are_one_text(lm):
    body, (row,) = body_of(lm), rows_of([6])
    positions = [torch.tensor([0, 1, 2, 0, 1, 2])]
    (whole,) = hidden_states(body, [row], positions, max_positions=CONTEXT)
    other = row.clone()
    other[0] = -other[0]
    (changed,) = hidden_states(body, [other], positions, max_positions=CONTEXT)
    assert not torch.allclose(whole[3:], changed[3:], atol=1e-3)


def test_a_row_without_positions_on_a_model_of_learned_ones(opt):
    body, (row,) = body_of(opt), rows_of([5])
    (found,) = hidden_states(body, [row], [torch.tensor([-1, -1, 0, 1, -1])], max_positions=CONTEXT)
    assert NO_POSITION["opt"] == -1
    table = body.decoder.embed_positions.weight
    # the table's first rows are set apart: 1 is that of padding, and positions begin at 2
    added = table[[1, 1, 2, 3, 1]]
    flat = copy.deepcopy(body)
    flat.decoder.embed_positions.weight.data.zero_()
    torch.testing.assert_close(found, alone(flat, row + added), **CLOSE)


def test_gradients_flow_to_rows(lm):
    body = body_of(lm)
    rows = [row.requires_grad_() for row in rows_of([3, 9])]
    theirs = [row.requires_grad_() for row in rows_of([3, 9])]
    sum(one[-1].sum() for one in hidden_states(body, rows, max_positions=CONTEXT)).backward()
    sum(alone(body, row)[-1].sum() for row in theirs).backward()
    for one, two in zip(rows, theirs, strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-4, rtol=1e-4)
        assert two.grad.abs().max() > 1e-3


def test_rows_longer_than_the_model_reads_are_refused(lm):
    assert len(hidden_states(body_of(lm), rows_of([CONTEXT]), max_positions=CONTEXT)[0]) == CONTEXT
    with pytest.raises(InputError, match=f"takes {CONTEXT + 1} positions and the model reads at most {CONTEXT}"):
        hidden_states(body_of(lm), rows_of([3, CONTEXT + 1]), max_positions=CONTEXT)


def test_no_rows_have_no_states(lm):
    assert hidden_states(body_of(lm), [], max_positions=CONTEXT) == []


def test_rows_are_read_in_the_number_format_of_the_body(lm):
    (row,) = rows_of([4])
    (found,) = hidden_states(body_of(lm), [row.double()], max_positions=CONTEXT)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, alone(body_of(lm), row), **CLOSE)


def test_batches_stay_below_the_limit(lm, monkeypatch):
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 20)
    body, rows, sizes = body_of(lm), rows_of(LENGTHS), []
    hook = body.register_forward_pre_hook(
        lambda module, args, options: sizes.append(tuple(options["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    try:
        found = hidden_states(body, rows, max_positions=CONTEXT)
    finally:
        hook.remove()
    assert sorted(sizes) == [(1, 8), (1, 16), (1, 16), (1, 24), (1, 24), (2, 8), (2, 8)]
    for row, states in zip(rows, found, strict=True):
        torch.testing.assert_close(states, alone(body, row), **CLOSE)


@pytest.mark.parametrize(("configured", "expected"), [(None, 0), (7, 7), ([9, 3], 9)])
def test_the_token_that_ends_a_text(tmp_path, configured, expected):
    folder = save_model(tmp_path / "llama")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.eos_token_id = configured
    config.save_pretrained(folder)
    assert end_of_text(load_decoder(folder, dtype="float32", device="cpu")) == expected
