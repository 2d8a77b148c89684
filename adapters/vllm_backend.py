"""Models behind vLLM's server as readers of text and of embeddings.

vLLM itself is not needed here, but the files of the model that it serves are: they tell which embeddings it reads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from kompakt.adapters.http import HttpBackend
from kompakt.adapters.vllm import Dtype, ServedModel, completions_body, embeds_prompt, user_message
from kompakt.compressor.backend import Generation, Prompt
from kompakt.compressor.errors import ConfigError, InputError, MissingExtraError, ModelError, ModelNotFoundError
from kompakt.compressor.models.causal_lm import prefix_id
from kompakt.compressor.models.encodings import checked
from kompakt.compressor.models.locate import check_unchanged, model_path, weights_fingerprint
from kompakt.compressor.models.tokenizers import FileTokenizer, Tokenizer, parse_tokenizer
from kompakt.compressor.parts import CachePart, EmbedsPart, Form, Part, TextPart, made_for_another

if TYPE_CHECKING:
    import tokenizers
    import torch
    from transformers import PretrainedConfig

_TABLES: Final = (
    "model.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
)
"""What the table of input embeddings is called in files of weights."""

_SCALES: Final = re.compile(r"emb.*(scale|multiplier)|scale.*emb|^mup_enabled$")
"""Options of configurations that have embeddings multiplied by a number."""


@dataclass(frozen=True)
class VllmBackend:
    """A model behind vLLM's server, started with ``--enable-prompt-embeds``, which reads text and embeddings.

    A prompt of text alone is sent as ``HttpBackend`` sends it: as one user's message, also with ``is_chat`` False.
    One with embeddings is a user's message of texts and vectors in their order, or with ``is_chat`` False one
    sequence of vectors to be continued. That begins with the model's token for the beginning of a text, and its texts
    are looked up in the model's own table of embeddings, which is read without the rest of the model.

    The server must run the model as its files are. What it has loaded beside them, such as an adapter, cannot be seen
    from here.

    Args:
        url: The endpoint, then ``#`` and the model's name there, such as ``http://127.0.0.1:8000/v1#/models/llama``.
        decoder: A named model or the folder of the model that is served, on this machine; what follows ``#`` if None
            is given, which is the folder where vLLM was started with one.
        dtype: What vLLM's ``--dtype`` was set to; see ``ServedModel.from_folder``.
        on_mismatch: What to do with a part that cannot be sent, or was made for another decoder: ``raise``, or send
            the ``text`` that it stands for, which the answer's notes then say.
        api_key: As for ``HttpBackend``.
        timeout: As for ``HttpBackend``.
        max_retries: As for ``HttpBackend``.

    Raises:
        ConfigError: If an option makes no sense, the URL among them.
        ModelNotFoundError: If the decoder is not on this machine.
        ModelError: If its configuration cannot be read, or leaves the hidden size or the number format open.
        MissingExtraError: If the extra ``openai`` or ``local`` is not installed.
    """

    url: str
    decoder: str | os.PathLike[str] | None = None
    dtype: Dtype | None = None
    on_mismatch: Literal["raise", "text"] = "raise"
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    max_retries: int = 2
    _http: HttpBackend = field(init=False, repr=False, compare=False)
    _folder: Path = field(init=False, repr=False, compare=False)
    _served: ServedModel = field(init=False, repr=False, compare=False)
    _weights: str = field(init=False, repr=False, compare=False)
    _space: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.on_mismatch not in ("raise", "text"):
            raise ConfigError(f"on_mismatch must be 'raise' or 'text', got {self.on_mismatch!r}")
        http = HttpBackend(self.url, self.api_key, self.timeout, self.max_retries)
        folder = self._find(http.name)
        weights = weights_fingerprint(folder)
        object.__setattr__(self, "_http", http)
        object.__setattr__(self, "_folder", folder)
        object.__setattr__(self, "_served", ServedModel.from_folder(folder, dtype=self.dtype))
        object.__setattr__(self, "_weights", weights)
        object.__setattr__(self, "_space", _space_of(weights))

    def _find(self, reader: str) -> Path:
        name = self.url.partition("#")[2].strip() if self.decoder is None else self.decoder
        try:
            return model_path(name)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                f"{error}. It is the decoder of the reader {reader}: give the folder of the model that is served "
                "there as decoder="
            ) from error

    def close(self) -> None:
        """Close the connections; the backend cannot be used afterwards."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The model and where it is."""
        return self._http.name

    @property
    def space(self) -> str:
        """What the parts that it reads must name as their decoder."""
        return self._space

    @property
    def fingerprint(self) -> str:
        """The endpoint and the model's name, SHA-256 over the decoder's files here, and the number format."""
        return f"{self._http.fingerprint} {self._space} {self._served.dtype}"

    @property
    def accepts(self) -> frozenset[Form]:
        """Text, and embeddings of its own space."""
        return frozenset({"text", "embeds"})

    @property
    def max_positions(self) -> None:
        """Not known: it is decided where the server is started."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The decoder's tokenizer."""
        return FileTokenizer(os.fspath(self._folder), self._tokenizer_file)

    def generate(self, prompt: Prompt, *, max_new_tokens: int, targets: Sequence[str] = ()) -> Generation:
        """Answer a prompt with temperature 0.

        Positions are those that the server reports. Where it reports none, they are counted here for a prompt with
        ``is_chat`` False; those of a chat format are not known here.

        Args:
            prompt: What to read.
            max_new_tokens: The most tokens of the answer; 0 sends nothing, and the answer is empty.
            targets: Ignored: the server is not asked how probable a text is.

        Raises:
            InputError: If a part cannot be sent or is not for this decoder, a text holds what vLLM reserves or a lone
                surrogate, or the server says that the prompt is too long.
            ModelError: If the decoder's tokenizer or embeddings are needed and cannot be read.
            BackendError: If the server cannot be reached, refused, failed, or sent no complete answer.
        """
        if all(isinstance(part, TextPart) for part in prompt.parts):
            return self._http.generate(prompt, max_new_tokens=max_new_tokens, targets=targets)
        notes: list[str] = []
        parts = [self._readable(part, notes) for part in prompt.parts]
        items = [prompt.before, *parts, prompt.after]
        given, n_positions = self._message(items) if prompt.is_chat else self._sequence(items)
        made = self._http.ask(given, max_new_tokens=max_new_tokens, stop=prompt.stop)
        return replace(made, n_positions=made.n_positions or n_positions, notes=tuple(notes))

    def _readable(self, part: Part, notes: list[str]) -> str | torch.Tensor:
        """Return a part as it is to be sent.

        Raises:
            InputError: If it cannot be, and the text is not to be sent instead.
        """
        if isinstance(part, TextPart):
            return part.text
        if not isinstance(part, (EmbedsPart, CachePart)):
            raise InputError(f"this backend reads text and embeddings, got a {type(part).__name__}")
        reason = self._why_unreadable(part)
        if isinstance(part, EmbedsPart) and not reason:
            return part.vectors
        if self.on_mismatch == "raise":
            raise InputError(f"{self.name} cannot read a part: {reason}")
        notes.append(f"read as text: {reason}")
        return part.source.text

    def _why_unreadable(self, part: EmbedsPart | CachePart) -> str:
        """Return why a part cannot be sent; empty if it can."""
        if isinstance(part, CachePart):
            return "it is a key-value cache, which vLLM's server does not take"
        if part.space != self._space:
            return made_for_another(part.space, self._space)
        width = part.vectors.shape[1]
        if width != self._served.hidden_size:
            return f"its vectors are {width} wide and the decoder's embeddings {self._served.hidden_size}"
        if part.placement != "contiguous":
            return "its vectors have no positions, but vLLM gives each vector the next position"
        return _why_scaled(self._config)

    def _message(self, items: Sequence[str | torch.Tensor]) -> tuple[dict[str, Any], int]:
        """Return what to ask for one user's message, and that its positions are not known."""
        # what is empty must not part two texts: the chat template might put a line break there
        content = _joined([item for item in items if len(item)])
        if all(isinstance(item, str) for item in content):
            return {"messages": [{"role": "user", "content": "".join(map(str, content))}]}, 0
        return {"messages": [user_message(content, model=self._served, cast=True)]}, 0

    def _sequence(self, items: Sequence[str | torch.Tensor]) -> tuple[dict[str, Any], int]:
        """Return what to ask for a sequence to be continued, and its positions."""
        import torch

        written = [self._ids(item) if isinstance(item, str) else item for item in _joined(items)]
        pieces = [[self._prefix], *(piece for piece in written if len(piece))]
        ids = [token for piece in pieces if isinstance(piece, list) for token in piece]
        if all(isinstance(piece, list) for piece in pieces):
            return {"prompt": ids}, len(ids)
        vectors = torch.cat([self._vectors(piece) for piece in pieces])
        return {"prompt": None, "extra_body": completions_body(vectors, model=self._served)}, len(vectors)

    def _ids(self, text: str) -> list[int]:
        return list(self._parser.encode(checked(text), add_special_tokens=False).ids)

    def _vectors(self, piece: list[int] | torch.Tensor) -> torch.Tensor:
        """Return tokens or vectors as the server reads them, ``[T, D]``."""
        import torch

        if isinstance(piece, list):
            if max(piece) >= len(self._table):
                raise ModelError(
                    f"the tokenizer in {self._folder} makes the token {max(piece)}, and the table of embeddings "
                    f"there has {len(self._table)} rows: its files are of two models"
                )
            piece = torch.nn.functional.embedding(torch.tensor(piece), self._table)
        vectors: torch.Tensor = embeds_prompt(piece, model=self._served, cast=True)["prompt_embeds"]
        return vectors

    @cached_property
    def _config(self) -> PretrainedConfig:
        try:
            from transformers import AutoConfig
        except ImportError as error:
            raise MissingExtraError("embeddings for vLLM", "local") from error
        try:
            config = AutoConfig.from_pretrained(self._folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the configuration in {self._folder} cannot be read: {error}") from error
        text: PretrainedConfig = config.get_text_config()
        return text

    @cached_property
    def _tokenizer_file(self) -> bytes:
        try:
            return (self._folder / "tokenizer.json").read_bytes()
        except OSError as error:
            raise ModelError(f"the tokenizer in {self._folder} cannot be read: {error}") from error

    @cached_property
    def _parser(self) -> tokenizers.Tokenizer:
        return parse_tokenizer(os.fspath(self._folder), self._tokenizer_file)

    @cached_property
    def _prefix(self) -> int:
        """The token that a text begins with."""
        return prefix_id(self._parser, self._config, self._folder)

    @cached_property
    def _table(self) -> torch.Tensor:
        table = _read_table(self._folder)
        _check_table(table, self._folder, self._served.hidden_size)
        check_unchanged(self._folder, self._weights)
        return table


def _space_of(weights: str) -> str:
    try:
        from kompakt.compressor.soft.checkpoint import space_of
    except ImportError as error:
        raise MissingExtraError("embeddings for vLLM", "local") from error
    return space_of(weights)


def _joined(items: Sequence[str | torch.Tensor]) -> list[str | torch.Tensor]:
    """Make neighbouring texts one, so that tokens reach over their borders."""
    joined: list[str | torch.Tensor] = []
    for is_text, group in groupby(items, key=lambda item: isinstance(item, str)):
        several = list(group)
        joined += ["".join(map(str, several))] if is_text else several
    return joined


def _why_scaled(config: PretrainedConfig) -> str:
    """Return what stands in the way of embeddings for a model that multiplies its own; empty for other models.

    Some models multiply what they looked up, and some whatever they are given. Which of the two is not the same in
    vLLM and in transformers, nor in all versions of either, so that vectors may come out scaled twice or never.
    """
    kind = config.model_type
    found = sorted(
        name
        for name, value in config.to_dict().items()
        if _SCALES.search(name) and (value is True or value not in (None, False, 1))
    )
    if not found and "gemma" not in kind:
        return ""
    what = f" ({found[0]}={getattr(config, found[0])!r})" if found else ""
    return (
        f"models of type {kind!r} scale their embeddings{what}, and whether vLLM scales vectors that it is given "
        "depends on its version"
    )


def _read_table(folder: Path) -> torch.Tensor:
    """Read a model's table of input embeddings, ``[V, D]``.

    Raises:
        MissingExtraError: If the extra ``local`` is not installed.
        ModelError: If there is none, or it cannot be read.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("embeddings for vLLM", "local") from error
    try:
        files = _files_of_tensors(folder)
        name = next((name for name in _TABLES if name in files), None)
        if name is None:
            raise ModelError(f"the weights in {folder} have no table of embeddings: none of {', '.join(_TABLES)}")
        with safe_open(folder / files[name], framework="pt") as opened:
            table: torch.Tensor = opened.get_tensor(name)
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise ModelError(f"the table of embeddings in {folder} cannot be read: {error!r}") from error
    return table


def _files_of_tensors(folder: Path) -> Mapping[str, str]:
    """Return the file of each of a model's tensors."""
    from safetensors import safe_open

    single, index = "model.safetensors", "model.safetensors.index.json"
    if (folder / single).is_file():
        with safe_open(folder / single, framework="pt") as opened:
            return dict.fromkeys(opened.keys(), single)
    if not (folder / index).is_file():
        raise ModelError(f"{folder} has neither {single} nor {index}: embeddings are read from no other format")
    files: dict[str, str] = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
    return files


def _check_table(table: torch.Tensor, folder: Path, width: int) -> None:
    shape, dtype = tuple(table.shape), str(table.dtype).removeprefix("torch.")
    if len(shape) != 2 or shape[1] != width:
        raise ModelError(
            f"the table of embeddings in {folder} has the shape {shape}, and the model's hidden states are {width} "
            "wide: models that project between the two are not supported here"
        )
    if dtype not in ("float16", "bfloat16", "float32"):
        raise ModelError(
            f"the table of embeddings in {folder} is {dtype}: name a folder whose table is float16, bfloat16 or "
            "float32"
        )
