"""Sentence embeddings from a local folder in sentence-transformers layout, fast on CPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kompakt.compressor.errors import MissingExtraError, ModelError
from kompakt.compressor.models.batches import equal_width_batches, packed_batches, padded_width
from kompakt.compressor.models.devices import best_device, best_dtype, quiet_loading
from kompakt.compressor.models.locate import check_unchanged, model_path, recent_fingerprint, weights_fingerprint
from kompakt.compressor.store.artefacts import Artefacts, Recipe
from kompakt.compressor.store.codec import decode_floats, encode_floats

if TYPE_CHECKING:
    import numpy as np
    import torch
    from tokenizers import Encoding, Tokenizer

    from kompakt.compressor.models.packed_bert import PackedBert

_TOKENS_PER_BATCH: Final = 2048
"""Tokens of packed rows a forward pass on a CPU: more is no faster, and fewer leave its processors waiting."""
_PADDED_TOKENS_PER_BATCH: Final = 512
"""Of rows with padding: more only adds to it."""
_TOKENS_PER_GPU_BATCH: Final = 32_768
_SCHEMA: Final = 2
"""Raised where the same weights come to give other vectors, be it by rounding."""


@dataclass(frozen=True)
class SentenceEncoder:
    """Texts to unit vectors. Made by ``load_sentence_encoder``.

    Args:
        fingerprint: SHA-256 over the model's files.
        model: The encoder, in evaluation mode.
        tokenizer: Its tokenizer, truncating to the model's window.
        window: The most tokens that the model reads.
        pooling: ``"mean"`` over tokens or the ``"cls"`` token.
        packed: Computes what the model does without padding, from weights of its own; None where only the model can.
    """

    fingerprint: str
    model: torch.nn.Module
    tokenizer: Tokenizer
    window: int
    pooling: str = "mean"
    packed: PackedBert | None = None

    def encode(
        self, texts: Sequence[str], *, artefacts: Artefacts | None = None, is_ahead: bool = False
    ) -> np.ndarray:
        """Return one unit vector a text, as float32 ``[N, D]``.

        Texts longer than the model's window are judged by their beginning.

        Args:
            texts: The texts.
            artefacts: Where vectors made earlier are found; the memory of this process without one.
            is_ahead: Whether this call only prepares others; see ``Artefacts.fetch``.
        """
        import numpy as np

        found = (artefacts or Artefacts()).fetch(self._recipe(), texts, is_ahead=is_ahead)
        width = int(getattr(self.model.config, "hidden_size", 0))
        return np.stack(found) if found else np.zeros((0, width), dtype=np.float32)

    def _recipe(self) -> Recipe[np.ndarray]:
        parameter = next(self.model.parameters())
        identity = ["embedding", _SCHEMA, self.fingerprint, self.pooling, str(parameter.dtype), parameter.device.type]
        return Recipe(identity, self._forward, encode_floats, decode_floats)

    def _forward(self, texts: list[str]) -> np.ndarray:
        import torch

        encodings = self.tokenizer.encode_batch_fast(texts)
        lengths = [len(encoding) for encoding in encodings]
        device = next(self.model.parameters()).device
        vectors: torch.Tensor | None = None
        with torch.inference_mode():
            for batch in self._batches(lengths, on_cpu=device.type == "cpu"):
                pooled = self._pooled([encodings[index] for index in batch], device)
                if vectors is None:
                    vectors = torch.empty(len(texts), pooled.shape[1])
                vectors[batch] = torch.nn.functional.normalize(pooled, dim=-1).cpu()
        return torch.as_tensor(vectors).numpy()

    def _batches(self, lengths: Sequence[int], *, on_cpu: bool) -> Iterator[list[int]]:
        if self.packed is not None:
            return packed_batches(lengths, max_tokens=_TOKENS_PER_BATCH if on_cpu else _TOKENS_PER_GPU_BATCH)
        limit = _PADDED_TOKENS_PER_BATCH if on_cpu else _TOKENS_PER_GPU_BATCH
        return equal_width_batches(lengths, longest=self.window, max_tokens=limit)

    def _pooled(self, encodings: Sequence[Encoding], device: torch.device) -> torch.Tensor:
        import torch

        from kompakt.kernels.segment_pooling import segment_mean, segment_offsets

        if self.packed is None:
            return self._pooled_with_padding(encodings, device)
        lengths = [len(encoding) for encoding in encodings]
        ids = torch.tensor([token for encoding in encodings for token in encoding.ids])
        hidden = self.packed(ids.to(device), lengths).float()
        counts = torch.tensor(lengths, device=device)
        if self.pooling == "cls":
            return hidden[counts.cumsum(0) - counts]
        return segment_mean(hidden, segment_offsets(lengths))

    def _pooled_with_padding(self, encodings: Sequence[Encoding], device: torch.device) -> torch.Tensor:
        import torch

        width = padded_width(len(encodings[0]), longest=self.window)
        ids = torch.zeros(len(encodings), width, dtype=torch.long)
        mask = torch.zeros(len(encodings), width, dtype=torch.long)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding)] = torch.tensor(encoding.ids)
            mask[row, : len(encoding)] = 1
        given = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        hidden: torch.Tensor = self.model(**given).last_hidden_state.float()
        if self.pooling == "cls":
            return hidden[:, 0]
        weights = mask.to(device).unsqueeze(-1).float()
        return (hidden * weights).sum(1) / weights.sum(1)


def load_sentence_encoder(name: str | os.PathLike[str]) -> SentenceEncoder:
    """Load a named model or a local folder; the same one is loaded once per process.

    Raises:
        ModelNotFoundError: If it is not on this machine.
        ModelError: If the folder cannot be read as a sentence encoder.
        MissingExtraError: If torch or transformers is not installed.
    """
    folder = model_path(name)
    return _load(folder, weights_fingerprint(folder))


def recent_sentence_encoder(name: str | os.PathLike[str]) -> SentenceEncoder:
    """Do as ``load_sentence_encoder``, but look at the files once a second: for calls that come by the thousand."""
    folder = model_path(name)
    return _load(folder, recent_fingerprint(folder))


@lru_cache(maxsize=4)
def _load(folder: Path, fingerprint: str) -> SentenceEncoder:
    try:
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModel

        from kompakt.compressor.models.packed_bert import packed_bert
    except ImportError as error:
        raise MissingExtraError("the extractive compressor", "local") from error
    device = best_device()
    try:
        with quiet_loading():
            model: Any = AutoModel.from_pretrained(
                folder,
                dtype=best_dtype(device),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise ModelError(f"{folder} cannot be read as a sentence encoder: {error}") from error
    check_unchanged(folder, fingerprint)
    tokenizer.no_padding()
    window = _window(folder, model)
    tokenizer.enable_truncation(window)
    model = model.eval().requires_grad_(False).to(torch.device(device))
    return SentenceEncoder(fingerprint, model, tokenizer, window, _pooling(folder), packed_bert(model))


def _window(folder: Path, model: Any) -> int:  # noqa: ANN401 (transformers types its models loosely)
    settings = _read_json(folder / "sentence_bert_config.json")
    return int(settings.get("max_seq_length") or model.config.max_position_embeddings)


def _pooling(folder: Path) -> str:
    settings = _read_json(folder / "1_Pooling" / "config.json")
    return "cls" if settings.get("pooling_mode_cls_token") else "mean"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    loaded = json.loads(path.read_text(encoding="utf-8"))
    return loaded if isinstance(loaded, dict) else {}
