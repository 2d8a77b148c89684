"""Local causal language models that say how surprising each token of a text is."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from kompakt.compressor.errors import ConfigError, MissingExtraError, ModelError
from kompakt.compressor.models.batches import equal_width_batches, padded_width
from kompakt.compressor.models.devices import best_device, best_dtype, quiet_loading
from kompakt.compressor.models.locate import check_unchanged, model_path, recent_fingerprint, weights_fingerprint
from kompakt.compressor.models.tokenizers import parse_tokenizer

if TYPE_CHECKING:
    import tokenizers
    import torch
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens in one forward pass. On a CPU, passes of 512 to 4096 tokens cost the same for each token."""

_HEAD_TOKENS = 512
"""Tokens whose logits [n, V] exist at one time: fewer re-read the head's weights more often than they must."""

_NORMALISER_TOKENS = 16
"""Tokens normalised at one time on a CPU: their logits in fp32 then stay in its cache, which is twice as fast."""

_DEFAULT_CONTEXT = 2048
"""Tokens read at once by models whose configuration names no limit."""

_TEXT_SEPARATOR = "<|endoftext|>"
"""What stands between the training texts of many models, even where their chat form begins with another token."""


@dataclass(frozen=True)
class CausalLM:
    """A causal language model with its tokenizer.

    Args:
        model: The network, in evaluation mode.
        tokenizer: Its tokenizer; text that spells a special token is ordinary text to it.
        prefix_id: The token that the first real token is conditioned on: beginning or end of text.
        context_length: The most tokens that it reads at once, the prefix included.
        fingerprint: SHA-256 over its files.
        dtype: Name of the number format of its weights.
        device: Where it computes.
    """

    model: PreTrainedModel
    tokenizer: tokenizers.Tokenizer
    prefix_id: int
    context_length: int
    fingerprint: str
    dtype: str
    device: str


@dataclass(frozen=True)
class Tokens:
    """A tokenized text.

    Args:
        ids: Token ids [T].
        ends: Offset after the last character that each token reaches [T], ascending. Tokens that hold pieces of one
            character share its end.
    """

    ids: NDArray[np.int64]
    ends: NDArray[np.int64]


def load_causal_lm(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: Dtype = "auto",
    device: str | None = None,
    plain_rope: bool = False,
) -> CausalLM:
    """Load a model from this machine; repeated calls return the same object.

    Args:
        name_or_path: A named model (``smollm2-135m``) or a Hugging Face folder with a ``tokenizer.json``.
        dtype: Number format of the weights. ``auto`` is bf16 where the processor computes in it, else fp32.
        device: A torch device; CUDA if there is one and None is given.
        plain_rope: Switch off any scaling of the rotary frequencies that its configuration asks for.

    Raises:
        ModelNotFoundError: If it is not on this machine; the message names the command that pulls it.
        MissingExtraError: If the extra ``local`` is not installed.
        ModelError: If the folder holds no causal language model that can be used.
        ConfigError: If ``dtype`` is unknown.
    """
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"dtype must be 'auto', 'float32' or 'bfloat16', got {dtype!r}")
    folder = model_path(name_or_path)
    return _load_with(folder, weights_fingerprint(folder), dtype=dtype, device=device, plain_rope=plain_rope)


def recent_causal_lm(name_or_path: str | os.PathLike[str]) -> CausalLM:
    """Do as ``load_causal_lm``, but look at the files once a second: for calls that come by the thousand."""
    folder = model_path(name_or_path)
    return _load_with(folder, recent_fingerprint(folder))


def _load_with(
    folder: Path,
    fingerprint: str,
    *,
    dtype: Dtype = "auto",
    device: str | None = None,
    plain_rope: bool = False,
) -> CausalLM:
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("a local language model", "local") from error
    chosen = device or best_device()
    number_format = str(best_dtype(torch.device(chosen).type)).removeprefix("torch.") if dtype == "auto" else dtype
    return _load(folder.absolute(), fingerprint, number_format, chosen, plain_rope)


@functools.lru_cache(maxsize=4)
def _load(folder: Path, fingerprint: str, dtype: str, device: str, plain_rope: bool) -> CausalLM:
    import torch

    network = _load_network(folder, getattr(torch, dtype), device, plain_rope=plain_rope)
    config = network.config.get_text_config()
    tokenizer = _load_tokenizer(folder)
    check_unchanged(folder, fingerprint)
    prefix = prefix_id(tokenizer, config, folder)
    context = getattr(config, "max_position_embeddings", None) or _DEFAULT_CONTEXT
    return CausalLM(network, tokenizer, prefix, int(context), fingerprint, dtype, device)


def prefix_id(tokenizer: tokenizers.Tokenizer, config: PretrainedConfig, folder: Path) -> int:
    """Return the token that a model's texts begin with.

    Raises:
        ModelError: If it has none.
    """
    candidates = (tokenizer.token_to_id(_TEXT_SEPARATOR), config.bos_token_id, config.eos_token_id)
    found = next((candidate for candidate in candidates if candidate is not None), None)
    if found is None:
        raise ModelError(f"the model in {folder} has neither a beginning-of-text nor an end-of-text token")
    return int(found[0] if isinstance(found, list) else found)


def _load_network(folder: Path, dtype: torch.dtype, device: str, *, plain_rope: bool) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if plain_rope:
            _unscale_rope(config.get_text_config())
        with quiet_loading():
            loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} holds no causal language model that can be loaded: {error}") from error
    # the stubs of transformers describe this method as a function of the class
    loaded.to(device)  # type: ignore[arg-type]
    loaded.eval()  # type: ignore[no-untyped-call]
    loaded.requires_grad_(False)
    head = _head(loaded)
    if head is not None:
        head.register_forward_pre_hook(_without_gaps)
    return loaded


def _without_gaps(head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the states that a head is given with strides of their own.

    The last of many states keep the strides of all, and torch would copy the whole head to multiply them by it.
    """
    del head
    states = inputs[0].contiguous()
    # a dimension of size 1 may have any stride and be contiguous
    return states.reshape(-1, states.shape[-1]).reshape(states.shape)


def scales_rope(folder: Path) -> bool:
    """Tell whether a model's configuration asks for a scaling of the rotary frequencies."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the configuration in {folder} cannot be read: {error}") from error
    return has_scaled_rope(config)


def has_scaled_rope(config: PretrainedConfig) -> bool:
    """Tell whether rotary frequencies are scaled."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return bool(parameters.get("rope_type", "default") != "default")


def _unscale_rope(config: PretrainedConfig) -> None:
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
    if theta is not None:
        config.rope_parameters = {"rope_type": "default", "rope_theta": theta}


def _load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{folder} has no tokenizer.json")
    return parse_tokenizer(str(folder), file.read_bytes())


@functools.lru_cache(maxsize=16)
def _check_head(lm: CausalLM) -> None:
    """Raise for architectures that scale or cap logits after the output layer: their surprisals would be wrong."""
    import torch

    with torch.inference_mode():
        ids = torch.full((1, 4), lm.prefix_id, device=lm.device)
        whole = lm.model(ids, use_cache=False).logits.float()
        parts = _head(lm.model)(_hidden(lm.model, ids)).float()
    if whole.shape != parts.shape or not torch.allclose(whole, parts, rtol=0.02, atol=0.05):
        kind = lm.model.config.model_type
        raise ModelError(
            f"models of type {kind!r} change their logits after the output layer, which scoring does not support"
        )


def _hidden(network: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = network.base_model(ids, use_cache=False).last_hidden_state
    return hidden


def _head(network: PreTrainedModel) -> Any:  # noqa: ANN401 (some models have none)
    return network.get_output_embeddings()  # type: ignore[no-untyped-call]


def tokenize(lm: CausalLM, texts: Sequence[str]) -> list[Tokens]:
    """Return the tokens of each text, without special tokens."""
    return [_tokens(encoding) for encoding in lm.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _tokens(encoding: tokenizers.Encoding) -> Tokens:
    ends = np.fromiter((end for _, end in encoding.offsets), dtype=np.int64, count=len(encoding))
    return Tokens(np.array(encoding.ids, dtype=np.int64), np.maximum.accumulate(ends))


@dataclass(frozen=True, slots=True)
class _Row:
    """A window: tokens ``[start, end)`` of a sequence are predicted, those from ``scored`` on are reported."""

    sequence: int
    start: int
    end: int
    scored: int


def windows(n_tokens: int, *, window: int, overlap: int) -> list[tuple[int, int, int]]:
    """Cut a sequence into windows such that each token is reported once.

    Args:
        n_tokens: Length of the sequence.
        window: The most tokens that one window predicts.
        overlap: Tokens that a window reads again before those that it reports.

    Returns:
        ``(start, end, scored)`` for each window: it predicts tokens ``[start, end)`` and reports ``[scored, end)``.
    """
    cuts = [(0, min(window, n_tokens), 0)] if n_tokens else []
    while cuts and cuts[-1][1] < n_tokens:
        scored = cuts[-1][1]
        start = scored - overlap
        cuts.append((start, min(start + window, n_tokens), scored))
    return cuts


def self_information(
    lm: CausalLM,
    sequences: Sequence[Sequence[int] | NDArray[np.int64]],
    *,
    window: int | None = None,
    overlap: int | None = None,
) -> list[NDArray[np.float32]]:
    """Return how surprising each token is to the model: -ln P(token | prefix token, tokens before it).

    Logits exist for a few hundred tokens at a time. Rows of a batch have nearly the same length; they are filled up
    on the right, where a causal model does not look, so that no mask is needed.

    Args:
        lm: The model.
        sequences: Token ids of each text, [T] each, without the prefix.
        window: The most tokens read at once; the model's context length by default and at most.
        overlap: For longer sequences, how many tokens before the reported ones are read again, at most
            ``window - 1``; half a window by default.

    Returns:
        Surprisals in nats, float32 [T] for each sequence, in order.

    Source: Li et al. 2023, "Compressing Context to Enhance Inference Efficiency of Large Language Models",
    section 2.1.

    Raises:
        ConfigError: If ``window`` or ``overlap`` make no sense.
        ModelError: If the model scales or caps its logits.
    """
    _check_head(lm)
    size = min(window or lm.context_length, lm.context_length)
    again = size // 2 if overlap is None else overlap
    if size < 1 or not 0 <= again < size:
        raise ConfigError(f"window must be positive and overlap in [0, window), got {window} and {overlap}")
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    rows = [
        _Row(index, *cut) for index, ids in enumerate(arrays) for cut in windows(len(ids), window=size, overlap=again)
    ]
    results = [np.empty(len(ids), dtype=np.float32) for ids in arrays]
    limit = BATCH_TOKENS["cuda" if lm.device.startswith("cuda") else "cpu"]
    lengths = [row.end - row.start for row in rows]
    for places in equal_width_batches(lengths, longest=lm.context_length, max_tokens=limit):
        batch = [rows[place] for place in places]
        values = _score_rows(lm, [arrays[row.sequence][row.start : row.end] for row in batch], batch)
        for row, scores in zip(batch, values, strict=True):
            results[row.sequence][row.scored : row.end] = scores
    return results


def _score_rows(lm: CausalLM, tokens: Sequence[NDArray[np.int64]], rows: Sequence[_Row]) -> list[NDArray[np.float32]]:
    import torch

    width = padded_width(len(tokens[0]), longest=lm.context_length)
    inputs = np.full((len(rows), width), lm.prefix_id, dtype=np.int64)
    reported = np.zeros((len(rows), width), dtype=bool)
    for index, (row, ids) in enumerate(zip(rows, tokens, strict=True)):
        inputs[index, 1 : len(ids)] = ids[:-1]
        reported[index, row.scored - row.start : len(ids)] = True
    targets = np.concatenate([ids[row.scored - row.start :] for row, ids in zip(rows, tokens, strict=True)])
    with torch.inference_mode():
        hidden = _hidden(lm.model, torch.from_numpy(inputs).to(lm.device))
        wanted = hidden[torch.from_numpy(reported).to(lm.device)]
        del hidden
        scores = _surprisal(_head(lm.model), wanted, torch.from_numpy(targets).to(lm.device))
    ends = np.cumsum([row.end - row.scored for row in rows])
    return np.split(scores.cpu().numpy(), ends[:-1])


def _surprisal(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -ln softmax(head(hidden))[targets] in fp32 [N], from hidden states [N, D] and token ids [N]."""
    import torch

    on_cpu = hidden.device.type == "cpu"
    scores = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), _HEAD_TOKENS):
        logits = head(hidden[start : start + _HEAD_TOKENS])
        step = _NORMALISER_TOKENS if on_cpu else _HEAD_TOKENS
        for inner in range(0, len(logits), step):
            first = start + inner
            log_p = torch.log_softmax(logits[inner : inner + step].float(), dim=-1)
            chosen = log_p.gather(1, targets[first : first + len(log_p), None])
            scores[first : first + len(log_p)] = -chosen[:, 0]
    return scores


def self_information_reference(
    lm: CausalLM, sequences: Sequence[Sequence[int] | NDArray[np.int64]]
) -> list[NDArray[np.float32]]:
    """Return what ``self_information`` returns, one sequence at a time from the logits of all its tokens.

    Args:
        lm: The model.
        sequences: Token ids of each text, [T] each, at most as long as the model's context.
    """
    import torch

    results = []
    for sequence in sequences:
        ids = torch.tensor([[lm.prefix_id, *map(int, sequence)]], device=lm.device)
        with torch.inference_mode():
            logits = lm.model(ids[:, :-1], use_cache=False).logits if len(sequence) else ids.new_zeros(1, 0, 1)
            log_p = torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, 1:, None])
        results.append(-log_p[0, :, 0].cpu().numpy())
    return results
