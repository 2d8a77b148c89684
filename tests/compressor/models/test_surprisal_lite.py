"""The smaller scorer: what is written is what scores, and it scores what its parts say."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_models import save_model
from torch.testing import assert_close

from kompakt.compressor.errors import ConfigError, ModelError, ModelNotFoundError
from kompakt.compressor.models.causal_lm import load_causal_lm
from kompakt.compressor.models.locate import weights_fingerprint
from kompakt.compressor.models.scorers import recent_scorer
from kompakt.compressor.models.self_information import LanguageModelScorer, self_information
from kompakt.compressor.models.surprisal_lite import LiteSettings, Readout, SurprisalLite, save_surprisal_lite

WINDOW = 12
CHANGED = ("layers.0.mlp.up_proj.weight", "norm.weight")


@pytest.fixture
def base(tmp_path):
    return save_model(tmp_path / "base", "llama", num_hidden_layers=3)


@pytest.fixture
def settings(base):
    return LiteSettings(
        base=str(base),
        base_fingerprint=weights_fingerprint(base),
        n_layers=2,
        window=WINDOW,
        overlap=2,
        d_correction=16,
    )


@pytest.fixture
def parts(base):
    torch.manual_seed(0)
    body = load_causal_lm(base).model.base_model
    changes = {name: torch.randn(body.get_parameter(name).shape) / 10 for name in CHANGED}
    readout = Readout(body.config.hidden_size, 16)
    return changes, readout


@pytest.fixture
def folder(tmp_path, settings, parts):
    save_surprisal_lite(tmp_path / "lite", settings, *parts)
    return tmp_path / "lite"


def test_it_scores_what_its_layers_and_its_readout_say(folder, base, parts):
    scorer = recent_scorer(folder)
    assert isinstance(scorer, SurprisalLite)
    ids = torch.randint(1, 250, (9,)).tolist()
    (nats,) = self_information(scorer, [ids])

    body = load_causal_lm(base).model.base_model
    whole = torch.tensor([[0, *ids]])
    changes, readout = parts
    rows = body.get_input_embeddings()(whole)[0].float()
    hidden = rows[None]
    positions = body.rotary_emb(hidden, torch.arange(10)[None])
    with torch.no_grad():
        for index, layer in enumerate(body.float().layers[:2]):
            before = layer.mlp.up_proj.weight.clone()
            if index == 0:
                layer.mlp.up_proj.weight += changes[CHANGED[0]]
            hidden = layer(hidden, position_embeddings=positions)
            layer.mlp.up_proj.weight.copy_(before)
        gain = body.norm.weight + changes[CHANGED[1]]
        states = (hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + body.config.rms_norm_eps) * gain)[0]
        expected = []
        for place in range(len(ids)):
            predicting, read, meant = states[place], states[place + 1], rows[place + 1]
            logit = readout.predict(predicting) @ meant
            inner = readout.hidden(torch.cat([predicting, read, meant]))
            normaliser = readout.correction(inner * torch.sigmoid(inner))
            expected.append(math.log1p(math.exp(normaliser - logit)))
    # changes are stored in four bits, the readout in fp16
    assert_close(torch.from_numpy(nats), torch.tensor(expected), atol=0.1, rtol=0.05)


def test_a_changed_layer_changes_scores_and_leaves_the_base_alone(folder, base):
    lm = load_causal_lm(base)
    ids = [5, 6, 7, 8]
    untouched = {name: value.clone() for name, value in lm.model.base_model.named_parameters()}
    recent_scorer(folder)
    for name, value in lm.model.base_model.named_parameters():
        assert torch.equal(value, untouched[name])
    assert isinstance(recent_scorer(base), LanguageModelScorer)
    assert (
        abs(self_information(recent_scorer(base), [ids])[0] - self_information(recent_scorer(folder), [ids])[0]).max()
        > 1e-3
    )


def test_windows_are_those_of_training(folder):
    scorer = recent_scorer(folder)
    assert scorer.longest == WINDOW
    ids = torch.randint(1, 250, (40,)).tolist()
    (nats,) = self_information(scorer, [ids], overlap=2)
    (first,) = self_information(scorer, [ids[:WINDOW]])
    (second,) = self_information(scorer, [ids[WINDOW - 2 : 2 * WINDOW - 2]])
    assert_close(torch.from_numpy(nats[:WINDOW]), torch.from_numpy(first), atol=0.02, rtol=0.02)
    assert_close(torch.from_numpy(nats[WINDOW : 2 * WINDOW - 2]), torch.from_numpy(second[2:]), atol=0.02, rtol=0.02)


def test_another_base_is_refused(folder):
    path = folder / "surprisal_lite.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_fingerprint": "0" * 64}))
    with pytest.raises(ModelError, match="fingerprint 000000000000; the one on this machine has"):
        recent_scorer(folder)


def test_a_base_that_is_not_here_is_named(folder):
    path = folder / "surprisal_lite.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": "no-such-model"}))
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        recent_scorer(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "cannot be read"), ('{"schema_version": 1}', "cannot be read")],
    ids=["broken", "no object", "missing entries"],
)
def test_settings_that_cannot_be_read(folder, content, message):
    (folder / "surprisal_lite.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        recent_scorer(folder)


def test_settings_of_a_later_release_ask_for_an_update(folder):
    path = folder / "surprisal_lite.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(ModelError, match="schema version 2; this release reads 1: update kompakt"):
        recent_scorer(folder)


@pytest.mark.parametrize("file", ["changes.safetensors", "readout.safetensors"])
def test_weights_that_cannot_be_read(folder, file):
    (folder / file).write_bytes(b"\0" * 40)
    with pytest.raises(ModelError, match="cannot be read"):
        recent_scorer(folder)


def test_changes_of_a_weight_that_the_base_has_not(tmp_path, settings, parts):
    _, readout = parts
    save_surprisal_lite(tmp_path / "other", settings, {"layers.7.mlp.up_proj.weight": torch.zeros(48, 32)}, readout)
    with pytest.raises(ModelError, match=r"no weight of the base is named 'layers\.7\.mlp"):
        recent_scorer(tmp_path / "other")


def test_nothing_is_written_over(folder, settings, parts):
    with pytest.raises(ConfigError, match="is not empty"):
        save_surprisal_lite(folder, settings, *parts)
