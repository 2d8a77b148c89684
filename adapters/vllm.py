"""Embeddings as vLLM takes them: offline, at its Completions endpoint, and as parts of a chat message.

How much vLLM checks depends on its version, and tensors that do not fit its model can stop the engine for everybody.
So everything is checked here first. vLLM itself is not needed: what it takes are dicts, tensors and base64.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, get_args

from kompakt.compressor.errors import ConfigError, InputError, MissingExtraError, ModelError
from kompakt.compressor.models.locate import model_path
from kompakt.compressor.types import require_unicode

if TYPE_CHECKING:
    import torch

Dtype: TypeAlias = Literal["float16", "bfloat16", "float32"]
"""Number formats of the embeddings that vLLM takes."""

_DTYPES: Final = get_args(Dtype)

_RESERVED: Final = "<prompt_embeds>"
"""Marks the place of embeddings inside vLLM; it refuses texts that spell it."""

_WIDTHS: Final = ("hidden_size", "n_embd", "d_model")
"""What configurations call the hidden size."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What embeddings must fit.

    Args:
        hidden_size: Width of the model's input embeddings.
        dtype: Number format in which vLLM runs the model, in full: ``float16``, ``bfloat16`` or ``float32``.

    Raises:
        ConfigError: If one of them cannot be.
    """

    hidden_size: int
    dtype: Dtype

    def __post_init__(self) -> None:
        if isinstance(self.hidden_size, bool) or not isinstance(self.hidden_size, int) or self.hidden_size < 1:
            raise ConfigError(f"hidden_size must be a whole number from 1 on, got {self.hidden_size!r}")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(map(repr, _DTYPES))}, got {self.dtype!r}")

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, dtype: Dtype | None = None) -> Self:
        """Read the ``config.json`` of a model in Hugging Face's format; nothing else is read.

        Args:
            folder: The model's folder, or a named model.
            dtype: What vLLM's ``--dtype`` was set to. Needed where the configuration does not decide it: vLLM runs a
                model whose configuration says float32 or nothing in a format of its own choice.

        Raises:
            ModelNotFoundError: If the model is not on this machine.
            ModelError: If its configuration cannot be read or leaves the hidden size or the number format open.
            ConfigError: If ``dtype`` is given and is none of the formats.
        """
        path = model_path(folder) / "config.json"
        config = _read(path)
        text = _of_text(config)
        hidden_size = next((text[name] for name in _WIDTHS if name in text), None)
        if isinstance(hidden_size, bool) or not isinstance(hidden_size, int) or hidden_size < 1:
            raise ModelError(
                f"{os.fspath(path)!r} does not tell the hidden size, got {hidden_size!r}: "
                "write ServedModel(hidden_size=..., dtype=...)"
            )
        return cls(hidden_size, _configured_dtype(path, config, text) if dtype is None else dtype)


@dataclass(frozen=True, slots=True)
class Payload:
    """Embeddings as they go over the wire, and what they cost.

    Args:
        data: The tensor as ``torch.save`` writes it, in base64.
        n_positions: Positions that it occupies in the prompt.
    """

    data: str
    n_positions: int

    @property
    def n_bytes(self) -> int:
        """Bytes of ``data`` in a request."""
        return len(self.data)


def encode(vectors: torch.Tensor, *, model: ServedModel, cast: bool = False) -> Payload:
    """Write embeddings as vLLM's server reads them.

    The format is that of ``torch.save``, a zip archive with a pickle in it, because vLLM's server reads no other.
    kompakt only writes it, from a plain tensor: neither here nor in the store is a pickle ever loaded. Equal vectors
    give equal bytes, so that a repeated request can be recognized.

    Args:
        vectors: Embeddings ``[T, D]`` on any device; nothing is sent but their numbers.
        model: What they must fit.
        cast: Convert them to the model's number format if they have another one.

    Raises:
        InputError: If they do not fit the model, or hold a value that is not finite.
        MissingExtraError: If the extra ``local`` is not installed.
    """
    checked = _checked(vectors, model, cast=cast)
    import torch

    buffer = io.BytesIO()
    torch.save(checked, buffer)
    return Payload(base64.b64encode(buffer.getbuffer()).decode("ascii"), len(checked))


def embeds_prompt(
    vectors: torch.Tensor, *, model: ServedModel, cast: bool = False, cache_salt: str | None = None
) -> dict[str, Any]:
    """Make a prompt for ``LLM.generate``; vLLM calls this dict an ``EmbedsPrompt``.

    Args:
        vectors: The embeddings ``[T, D]`` of the whole prompt, chat format included.
        model: What they must fit.
        cast: Convert them to the model's number format if they have another one.
        cache_salt: Only prompts with the same one share vLLM's prefix cache.

    Returns:
        A dict with ``prompt_embeds``, a tensor in main memory: the caller's own where nothing had to change.

    Raises:
        InputError: If they do not fit the model or hold a value that is not finite, or ``cache_salt`` is empty.
        MissingExtraError: If the extra ``local`` is not installed.
    """
    prompt: dict[str, Any] = {"prompt_embeds": _checked(vectors, model, cast=cast)}
    if cache_salt is not None:
        if not isinstance(cache_salt, str) or not cache_salt:
            raise InputError(
                f"cache_salt must be a text that is not empty, got {cache_salt!r}; leave it out for none"
            )
        prompt["cache_salt"] = cache_salt
    return prompt


def completions_body(
    vectors: torch.Tensor | Sequence[torch.Tensor], *, model: ServedModel, cast: bool = False
) -> dict[str, str | list[str]]:
    """Make the ``extra_body`` of a request to the Completions endpoint.

    Give ``prompt=None`` beside it: vLLM answers a text there as one more prompt. It refuses ``echo`` and
    ``prompt_logprobs`` beside embeddings.

    Args:
        vectors: The embeddings ``[T, D]`` of the whole prompt, chat format included; or a sequence of prompts, of
            which each is answered. Pieces of one prompt are to be joined before: ``torch.cat(pieces)``.
        model: What they must fit.
        cast: Convert them to the model's number format if they have another one.

    Raises:
        InputError: If they do not fit the model or hold a value that is not finite, or there are none.
        MissingExtraError: If the extra ``local`` is not installed.
    """
    if not isinstance(vectors, Sequence):
        return {"prompt_embeds": encode(vectors, model=model, cast=cast).data}
    if not vectors:
        raise InputError("there must be at least one prompt, got an empty sequence")
    return {"prompt_embeds": [encode(one, model=model, cast=cast).data for one in vectors]}


def embeds_part(vectors: torch.Tensor, *, model: ServedModel, cast: bool = False) -> dict[str, str]:
    """Make one part of a chat message's content.

    Args:
        vectors: The embeddings ``[T, D]`` of content alone: the server writes the chat format around it.
        model: What they must fit.
        cast: Convert them to the model's number format if they have another one.

    Raises:
        InputError: If they do not fit the model, or hold a value that is not finite.
        MissingExtraError: If the extra ``local`` is not installed.
    """
    return {"type": "prompt_embeds", "data": encode(vectors, model=model, cast=cast).data}


def user_message(
    content: Sequence[str | torch.Tensor], *, model: ServedModel, cast: bool = False
) -> dict[str, str | list[dict[str, str]]]:
    """Make a user's message of texts and embeddings, in their order.

    What stands between two parts is up to the chat template of the model: nothing, or a line break.

    Args:
        content: Texts, and embeddings ``[T, D]`` of content alone; empty texts are left out.
        model: What the embeddings must fit.
        cast: Convert them to the model's number format if they have another one.

    Raises:
        InputError: If embeddings do not fit the model or hold a value that is not finite, a text holds a lone
            surrogate or what vLLM reserves, or nothing is said.
        MissingExtraError: If the extra ``local`` is not installed.
    """
    if isinstance(content, (str, bytes)) or not isinstance(content, Sequence):
        raise InputError(
            f"content must be a list of texts and tensors, got a {type(content).__name__}; put brackets around it"
        )
    parts = [
        _text_part(item) if isinstance(item, str) else embeds_part(item, model=model, cast=cast)
        for item in content
        if not (isinstance(item, str) and not item)
    ]
    if not parts:
        raise InputError("a message must hold a text or embeddings, got none")
    return {"role": "user", "content": parts}


def _text_part(text: str) -> dict[str, str]:
    require_unicode(text, "a text of the message")
    if _RESERVED in text:
        raise InputError(
            f"a text of the message holds {_RESERVED!r} at character {text.index(_RESERVED)}, which vLLM reserves "
            "and refuses; write it differently, for example with a space"
        )
    return {"type": "text", "text": text}


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("embeddings for vLLM", "local") from error


def _checked(vectors: torch.Tensor, model: ServedModel, *, cast: bool) -> torch.Tensor:
    """Return ``vectors`` as a plain tensor in main memory that owns its storage and no more than that."""
    _require_torch()
    import torch

    if not isinstance(vectors, torch.Tensor):
        raise InputError(
            f"vectors must be a torch tensor [T, D], got a {type(vectors).__name__}; "
            "join pieces with torch.cat, convert arrays with torch.from_numpy"
        )
    # without gradients, and without the attributes that torch.save would send along
    plain = vectors.detach()
    _check_kind(plain)
    _check_shape(plain, model.hidden_size)
    _check_dtype(plain, model.dtype, cast=cast)
    numbers = plain.to(device="cpu", dtype=getattr(torch, model.dtype))
    _check_finite(numbers, model.dtype)
    numbers = numbers.contiguous()
    # torch.save writes the whole storage that a view belongs to
    return numbers if numbers.untyped_storage().nbytes() == numbers.nbytes else numbers.clone()


def _check_kind(vectors: torch.Tensor) -> None:
    import torch

    # the server loads nothing but plain tensors
    if type(vectors) is not torch.Tensor:
        raise InputError(f"vectors must be a plain torch tensor, got a {type(vectors).__name__}")
    if vectors.layout != torch.strided or vectors.is_nested:
        raise InputError(f"vectors must be dense, got the layout {vectors.layout}; convert them with .to_dense()")
    if vectors.is_meta:
        raise InputError("vectors hold no numbers: their device is 'meta'; load the model that makes them")


def _check_shape(vectors: torch.Tensor, hidden_size: int) -> None:
    shape = tuple(vectors.shape)
    if len(shape) != 2:
        hint = "one prompt of a batch is vectors[i]" if len(shape) > 2 else "one position is vectors.reshape(1, -1)"
        raise InputError(f"vectors must have two dimensions [T, D], got the shape {shape}; {hint}")
    if shape[0] < 1:
        raise InputError(f"vectors must hold at least one position, got the shape {shape}")
    if shape[1] != hidden_size:
        raise InputError(
            f"vectors are {shape[1]} wide and the model reads {hidden_size}, got the shape {shape}; "
            "they are of another model, or transposed"
        )


def _check_dtype(vectors: torch.Tensor, dtype: Dtype, *, cast: bool) -> None:
    name = str(vectors.dtype).removeprefix("torch.")
    if not vectors.is_floating_point():
        raise InputError(f"vectors must be floating-point numbers, got {name}; token ids are to be embedded first")
    if name != dtype and not cast:
        raise InputError(f"vectors are {name} and the model reads {dtype}; pass cast=True to have them converted")


def _check_finite(vectors: torch.Tensor, dtype: Dtype) -> None:
    finite = vectors.isfinite()
    if finite.all():
        return
    wrong = (~finite).nonzero()
    position, dimension = wrong[0].tolist()
    raise InputError(
        f"vectors hold {len(wrong)} values that are not finite in {dtype}, the first at position {position}, "
        f"dimension {dimension}; they are NaN, infinite, or too large for {dtype}"
    )


def _read(path: os.PathLike[str]) -> Mapping[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"the configuration {os.fspath(path)!r} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"the configuration {os.fspath(path)!r} must be an object, got a {type(config).__name__}")
    return config


def _of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that describes the language model: models of images have several parts."""
    for name in ("thinker_config", "text_config"):
        if isinstance(config.get(name), dict):
            config = config[name]
    return config


def _configured_dtype(path: os.PathLike[str], *configs: Mapping[str, Any]) -> Dtype:
    """Return the number format in which vLLM runs a model if it is not told one."""
    found = next((config[key] for config in configs for key in ("dtype", "torch_dtype") if config.get(key)), None)
    match found:
        case "bfloat16":
            return "bfloat16"
        case "float16":
            return "float16"
    raise ModelError(
        f"{os.fspath(path)!r} says dtype {found!r}, which leaves the number format to vLLM: start it with --dtype, "
        "and give the same here, for example dtype='bfloat16'"
    )
