"""kvpress 0.5.5: SnapKV, FINCH and Expected Attention, each with the package's defaults.

    run_kvpress.py DTYPE THREADS MODEL_FOLDER

``benchmarks/cache_quality.py`` asks it, in tokens, so that it reads what kompakt reads:

In:  ``{"id", "method", "is_seen", "before", "context", "question", "prompt", "target", "n_kept", "max_new_tokens"}``
Out: ``{"id", "text", "seconds"}``, the text being a JSON object with the fields of ``_Made``.

A prompt is ``before + context + question + prompt``. It is compressed and answered as the package's pipeline does it:
``KVPressTextGenerationPipeline`` reads the context under a press and calls ``generate_answer`` with the rest. The two
calls are made here one by one, to be measured apart. With ``is_seen`` the question stands behind the context while it
is compressed, as in the package's own query-aware evaluation; the press may drop it, except for its window. FINCH
cannot do without. Its delimiter is a token that the model has, so that no row is added to its embeddings.

A press is told a share of everything that it reads. It is chosen such that, with the question, as many positions stay
as kompakt has: what stands before the context, what is kept, and the question.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from measuring import measured
from serve import serve

if TYPE_CHECKING:
    import torch
    from kvpress import KVPressTextGenerationPipeline
    from transformers import Cache

DELIMITERS = ("<file_sep>", "<|endoftext|>")
"""Tokens of which the first that the tokenizer has separates FINCH's question; no context or question holds them."""

PLAIN_SENTENCE = "The museum is open every day from nine in the morning until five in the afternoon."
MAX_LOSS = 6.0
"""Nats a token on the sentence above. A wrong rotary base would make the model far worse."""


@dataclass(frozen=True)
class _Made:
    """What became of a request.

    Args:
        n_cached: Positions in the cache when the answer is asked for; those of a question that follows not included.
        log_likelihood: Mean ln P of a token of the target.
        answer: The greedy answer.
        n_steps: Tokens that were chosen for it, its end included.
        compress_seconds: Time to read and compress.
        answer_seconds: Time to read the rest and answer.
        base_mib: Resident memory before.
        peak_mib: The most resident memory in either.
        versions: Of the packages that computed it.
    """

    n_cached: int
    log_likelihood: float
    answer: str
    n_steps: int
    compress_seconds: float
    answer_seconds: float
    base_mib: float
    peak_mib: float
    versions: str


def load(arguments: Sequence[str]) -> Callable[[dict], str]:
    dtype, n_threads, folder = arguments
    import kvpress
    import torch
    import transformers

    torch.set_num_threads(int(n_threads))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    model.eval()
    pipe = kvpress.KVPressTextGenerationPipeline(model=model, tokenizer=tokenizer, device=torch.device("cpu"))
    _check_model(pipe)
    versions = f"kvpress 0.5.5, torch {torch.__version__}, transformers {transformers.__version__}"

    def answer(request: dict) -> str:
        with torch.no_grad():
            return json.dumps(asdict(_answer(pipe, request, versions)))

    return answer


def _check_model(pipe: KVPressTextGenerationPipeline) -> None:
    import torch

    ids = pipe.tokenizer(PLAIN_SENTENCE, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = float(pipe.model(input_ids=ids, labels=ids).loss)
    if loss > MAX_LOSS:
        raise RuntimeError(f"the model gives {loss:.1f} nats a token on a plain sentence: it was not read correctly")


def _answer(pipe: KVPressTextGenerationPipeline, request: dict, versions: str) -> _Made:
    from transformers import DynamicCache

    read = [*request["before"], *request["context"]]
    rest = request["prompt"] if request["is_seen"] else [*request["question"], *request["prompt"]]
    n_wanted = request["n_kept"] + len(request["before"])
    if request["is_seen"]:
        read += request["question"]
        n_wanted += len(request["question"])
    press, ids = _press(pipe, request, read, min(n_wanted, len(read)))
    cache = DynamicCache()

    def compress() -> None:
        with press(pipe.model) if press is not None else contextlib.nullcontext():
            pipe.model.model(input_ids=_row(ids), past_key_values=cache)

    _, compressing = measured(compress)
    n_cached = cache.get_seq_length()
    # its pipeline's rule: keys that were moved together are followed at once, others at the end of what was read
    position = n_cached if getattr(press, "rerotate_keys", False) else len(read)

    def generate() -> str:
        return pipe.generate_answer(_row(rest), cache, position, request["max_new_tokens"])

    text, answering = measured(generate)
    n_steps = cache.get_seq_length() - n_cached - len(rest) + 1
    pipe._remove_answer_from_cache(cache, [n_cached] * len(cache))
    return _Made(
        n_cached,
        _log_likelihood(pipe, cache, rest, request["target"], position),
        text,
        n_steps,
        compressing.seconds,
        answering.seconds,
        compressing.base_mib,
        max(compressing.peak_mib, answering.peak_mib),
        versions,
    )


def _press(
    pipe: KVPressTextGenerationPipeline, request: dict, read: Sequence[int], n_wanted: int
) -> tuple[Callable | None, Sequence[int]]:
    """Return the press, and what it is given to read."""
    import kvpress

    if request["method"] == "full":
        return None, read
    removed = removed_share(n_wanted, len(read))
    if request["method"] == "snapkv":
        return kvpress.SnapKVPress(compression_ratio=removed), read
    if request["method"] == "expected-attention":
        return kvpress.ExpectedAttentionPress(compression_ratio=removed), read
    if request["method"] != "finch" or not request["is_seen"]:
        raise ValueError(f"kvpress has no {request['method']!r} for a question that comes later")
    press = kvpress.FinchPress(compression_ratio=removed)
    n_rows = pipe.model.get_input_embeddings().num_embeddings
    delimiter = next(token for token in DELIMITERS if token in pipe.tokenizer.get_vocab())
    press.update_model_and_tokenizer(pipe.model, pipe.tokenizer, delimiter)
    if pipe.model.get_input_embeddings().num_embeddings != n_rows:
        raise RuntimeError("FINCH's delimiter changed the model's embeddings")
    end = len(read) - len(request["question"])
    return press, [*read[:end], press.delimiter_token_id, *read[end:]]


def removed_share(n_wanted: int, n_read: int) -> float:
    """Return the share that must be removed for ``n_wanted`` of ``n_read`` positions to stay."""
    # half a position more, since the package rounds down
    return 0.0 if n_wanted == n_read else 1 - (n_wanted + 0.5) / n_read


def _log_likelihood(
    pipe: KVPressTextGenerationPipeline, cache: Cache, rest: Sequence[int], target: Sequence[int], position: int
) -> float:
    import torch

    ids = _row([*rest, *target])
    positions = torch.arange(position, position + ids.shape[1])[None]
    n_logits = len(target) + 1
    logits = pipe.model(input_ids=ids, past_key_values=cache, position_ids=positions, logits_to_keep=n_logits).logits[
        0, :-1
    ]
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return float(log_p.gather(1, torch.tensor(target)[:, None]).mean())


def _row(ids: Sequence[int]) -> torch.Tensor:
    import torch

    return torch.tensor([list(ids)])


if __name__ == "__main__":
    serve("kvpress", load, warms_up=False)
