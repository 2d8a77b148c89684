"""LLMLingua 0.2.2: perplexity of a small language model; ``llmlingua`` without, ``longllmlingua`` with the question.

    run_llmlingua.py {llmlingua,longllmlingua} DTYPE MODEL_FOLDER

Both call ``PromptCompressor.compress_prompt`` with one context a document and ``target_token``. LLMLingua-1 keeps
the defaults, as its README does; it makes no use of a question. LongLLMLingua takes the options that the README
lists for it. ``concate_question=False`` leaves the question out of the output, where it would cost budget.

The weights are loaded in DTYPE, as ``model_config`` allows. ``bfloat16`` is how SmolLM2 is stored and what the
package takes on a GPU; on processors with bfloat16 arithmetic it takes about half the time of ``float32``, the
package's default on a CPU.

The package asks for tiktoken's encoding of GPT-3.5, which is a download, to report what was saved; it gets the
model's own tokenizer. The model is loaded from a copy of its folder that transformers 4 can read. What the model says
of a text without a past is remembered for the next budget; the seconds count as if it were not.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from serve import Memory, needed_query, own_target, serve

if TYPE_CHECKING:
    from llmlingua import PromptCompressor

LONG_OPTIONS = {
    "condition_in_question": "after_condition",
    "reorder_context": "sort",
    "dynamic_context_compression_ratio": 0.3,
    "condition_compare": True,
    "context_budget": "+100",
    "rank_method": "longllmlingua",
}
"""As the README gives them for LongLLMLingua."""

MEMORY = Memory(size=24)
"""Small, since an answer can hold the keys and values of a whole context."""

PLAIN_SENTENCE = "The museum is open every day from nine in the morning until five in the afternoon."
MAX_LOSS = 5.0
"""Nats a token on the sentence above. A wrong rotary base would make the model, and so the peer, far worse."""


def load(arguments: Sequence[str]) -> Callable[[dict], str]:
    method, dtype, folder = arguments
    import tiktoken
    import tokenizers
    import torch

    counter = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tiktoken.encoding_for_model = lambda _: counter
    from llmlingua import PromptCompressor

    with tempfile.TemporaryDirectory() as copy:
        write_for_transformers_4(Path(folder), Path(copy))
        config = {"torch_dtype": getattr(torch, dtype), "trust_remote_code": False}
        compressor = PromptCompressor(copy, device_map="cpu", model_config=config)
    loss = float(compressor.get_ppl(PLAIN_SENTENCE))
    if loss > MAX_LOSS:
        raise RuntimeError(f"the model gives {loss:.1f} nats a token on a plain sentence: it was not read correctly")

    remember_losses(compressor)

    def compress(request: dict) -> str:
        options = {"question": needed_query(request), **LONG_OPTIONS} if method == "longllmlingua" else {}
        result = compressor.compress_prompt(
            [document["text"] for document in request["documents"]],
            target_token=own_target(request, compressor.get_token_length),
            concate_question=False,
            **options,
        )
        return result["compressed_prompt"]

    return compress


def remember_losses(compressor: PromptCompressor) -> None:
    """Replace ``get_ppl`` by one that remembers its answers, except where it continues from a cache."""
    compute = compressor.get_ppl

    def get_ppl(text: str, granularity: str = "sentence", input_ids=None, attention_mask=None, **options):
        if options.get("past_key_values") is not None:
            return compute(text, granularity, input_ids, attention_mask, **options)
        ids = None if input_ids is None else tuple(input_ids[0].tolist())
        key = (text, granularity, ids, *sorted(options.items()))
        answer = MEMORY.get(key, lambda: compute(text, granularity, input_ids, attention_mask, **options))
        # the package writes into the losses that it is given
        return (answer[0].clone(), answer[1]) if options.get("return_kv") else answer.clone()

    compressor.get_ppl = get_ppl


def write_for_transformers_4(source: Path, target: Path) -> None:
    """Write a model's folder again with the names that transformers 4.46 knows; the weights are linked."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters", {})
    config["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    config["torch_dtype"] = config.pop("dtype", config.get("torch_dtype", "float32"))
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for name in ("model.safetensors", "tokenizer.json"):
        (target / name).symlink_to((source / name).resolve())


if __name__ == "__main__":
    serve("llmlingua", load, memory=MEMORY)
