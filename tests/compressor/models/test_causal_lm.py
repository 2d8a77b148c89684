from __future__ import annotations

import pytest
from tiny_models import save_model

from kompakt.compressor.errors import ConfigError, ModelError, ModelNotFoundError
from kompakt.compressor.models.causal_lm import load_causal_lm, tokenize

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def tiny(request, tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return load_causal_lm(folder, dtype="float32", device="cpu")


@pytest.mark.parametrize("n_rows", [1, 3])
def test_the_head_is_given_states_without_gaps(tiny, n_rows):
    given = []
    head = tiny.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        tiny.model(torch.ones(n_rows, 7, dtype=torch.long), logits_to_keep=1)
    finally:
        handle.remove()
    width = given[0].shape[-1]
    assert (given[0].shape[:2], given[0].stride()) == ((n_rows, 1), (width, width, 1))


def test_offsets_reach_each_character_and_pieces_of_one_share_its_end(tiny):
    text = "a té 😀\n\n<|endoftext|>"
    (tokens,) = tokenize(tiny, [text])
    assert tokens.ends[-1] == len(text)
    assert (np.diff(tokens.ends) >= 0).all()
    assert (tokens.ends == text.index("😀") + 1).sum() >= 4
    assert 0 not in tokens.ids.tolist()
    assert len(tokenize(tiny, [""])[0].ids) == 0


def test_loading_twice_gives_the_same_object(tmp_path):
    folder = save_model(tmp_path / "m", "llama")
    assert load_causal_lm(folder, dtype="float32") is load_causal_lm(str(folder), dtype="float32")
    assert load_causal_lm(folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(ModelNotFoundError):
        load_causal_lm(tmp_path / "absent")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no causal language model"):
        load_causal_lm(broken)
    with pytest.raises(ConfigError, match="dtype"):
        load_causal_lm(broken, dtype="int8")
    folder = save_model(tmp_path / "m", "llama")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        load_causal_lm(folder)
