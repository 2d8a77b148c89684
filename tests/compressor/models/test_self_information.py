"""Surprisals, of packed rows and of padded ones, against the logits of each text alone."""

from __future__ import annotations

import pytest
from tiny_models import CONTEXT, save_model

from kompakt.compressor.errors import ConfigError, ModelError, ModelNotFoundError
from kompakt.compressor.models import self_information as module
from kompakt.compressor.models.causal_lm import load_causal_lm, tokenize
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.models.self_information import (
    language_model_scorer,
    self_information,
    self_information_reference,
    windows,
)

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def tiny(request, tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return load_causal_lm(folder, dtype="float32", device="cpu")


def sequences(lengths, *, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(1, 250, size=length) for length in lengths]


def test_rows_of_known_decoders_are_packed(tiny):
    assert (language_model_scorer(tiny).packed is not None) == (tiny.model.config.model_type == "llama")


def test_fast_equals_reference(tiny):
    ids = sequences([1, 24, 0, 7, 7, 13, 2])
    fast, slow = self_information(language_model_scorer(tiny), ids), self_information_reference(tiny, ids)
    assert [len(one) for one in fast] == [len(one) for one in ids]
    assert all(one.dtype == np.float32 for one in fast)
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert np.concatenate(fast).std() > 0.3


def test_a_batch_equals_its_sequences_alone(tiny):
    ids = sequences([5, 20, 11, 24, 3])
    together = self_information(language_model_scorer(tiny), ids)
    for one, expected in zip(ids, together, strict=True):
        np.testing.assert_allclose(self_information(language_model_scorer(tiny), [one])[0], expected, atol=2e-5)


def test_small_batches_change_nothing(tiny, monkeypatch):
    ids = sequences([5, 20, 11, 24, 3, 24])
    expected = self_information(language_model_scorer(tiny), ids)
    monkeypatch.setattr(module, "BATCH_TOKENS", {"cpu": 10, "cuda": 10})
    for a, b in zip(self_information(language_model_scorer(tiny), ids), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 12, 37, 100])
@pytest.mark.parametrize(("window", "overlap"), [(10, 5), (10, 0), (10, 9), (1, 0), (7, 3)])
def test_windows_report_each_token_once_after_enough_context(n, window, overlap):
    made = windows(n, window=window, overlap=overlap)
    assert [token for _, end, scored in made for token in range(scored, end)] == list(range(n))
    assert all(end - start <= window for start, end, _ in made)
    assert all(start == 0 or scored - start >= overlap for start, _, scored in made)


def test_texts_longer_than_the_context_are_scored_in_windows(tiny):
    (ids,) = sequences([3 * CONTEXT + 5])
    (scores,) = self_information(language_model_scorer(tiny), [ids])
    for start, end, scored in windows(len(ids), window=CONTEXT, overlap=CONTEXT // 2):
        (expected,) = self_information_reference(tiny, [ids[start:end]])
        np.testing.assert_allclose(scores[scored:end], expected[scored - start :], atol=2e-5)


def test_a_shorter_window_than_the_context(tiny):
    (ids,) = sequences([20])
    (scores,) = self_information(language_model_scorer(tiny), [ids], window=8, overlap=2)
    np.testing.assert_allclose(scores[:8], self_information_reference(tiny, [ids[:8]])[0], atol=2e-5)


@pytest.mark.parametrize(("window", "overlap"), [(8, 8), (8, -1), (-3, None), (100, CONTEXT)])
def test_senseless_windows_are_refused(tiny, window, overlap):
    with pytest.raises(ConfigError):
        self_information(language_model_scorer(tiny), sequences([4]), window=window, overlap=overlap)


def test_an_architecture_that_caps_its_logits_is_loaded_but_does_not_score(tmp_path):
    folder = save_model(tmp_path / "m", "gemma2", final_logit_softcapping=0.01)
    capping = load_causal_lm(folder, dtype="float32", device="cpu")
    with pytest.raises(ModelError, match="'gemma2' change their logits after the output layer"):
        self_information(language_model_scorer(capping), sequences([3]))
    (slow,) = self_information_reference(capping, sequences([3]))
    assert slow.shape == (3,)


@pytest.fixture(scope="module")
def smollm2():
    try:
        model_path("smollm2-135m")
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    return lambda dtype: load_causal_lm("smollm2-135m", dtype=dtype, device="cpu")


TEXTS = [
    "The treaty was signed in Münster on 24 October 1648.",
    "x",
    "def f(a):\n    return a + 1\n",
    "日本語 😀 \0 \t.",
]


@pytest.mark.models
@pytest.mark.parametrize(("dtype", "mean", "most"), [("float32", 2e-5, 2e-4), ("bfloat16", 0.25, 3.0)])
def test_smollm2_agrees_with_the_reference(smollm2, dtype, mean, most):
    lm = smollm2(dtype)
    ids = [one.ids for one in tokenize(lm, TEXTS)]
    fast = np.concatenate(self_information(language_model_scorer(lm), ids))
    exact = np.concatenate(self_information_reference(smollm2("float32"), ids))
    same_format = np.concatenate(self_information_reference(lm, ids))
    assert np.abs(fast - same_format).mean() < mean
    assert np.abs(fast - exact).mean() < mean
    assert np.abs(fast - exact).max() < most


@pytest.mark.models
def test_smollm2_finds_nonsense_more_surprising(smollm2):
    lm = smollm2("auto")
    ids = [one.ids for one in tokenize(lm, ["The capital of France is Paris.", "The capital of France is teapot."])]
    plain, strange = self_information(language_model_scorer(lm), ids)
    assert strange.sum() > plain.sum() + 3
