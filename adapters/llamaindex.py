"""A node postprocessor for LlamaIndex: ``KompaktPostprocessor(max_tokens=800)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from kompakt.adapters._documents import METADATA_KEY, DocumentCompressor, Kept, Source
from kompakt.compressor.errors import MissingExtraError
from kompakt.compressor.pipeline import OnError, Pipeline

try:
    from llama_index.core.bridge.pydantic import ConfigDict, PrivateAttr
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, Node, NodeWithScore, QueryBundle
except ImportError as error:
    raise MissingExtraError("KompaktPostprocessor", "llamaindex") from error

__all__ = ["KompaktPostprocessor"]


class KompaktPostprocessor(BaseNodePostprocessor):
    """Makes retrieved nodes smaller for the question, under one budget over all of them.

    Order, ids, scores, relationships and metadata stay, and the nodes that were given are not changed. One of which
    nothing remains is left out, but never all; nodes without text, such as images, stay as they are. What was done is
    in each node's metadata under ``"kompakt"``, which neither models nor embedders are shown: the ranges ``spans`` of
    its text that remain, ``tokens_before``, ``tokens_after``, ``outcome`` and ``reason``.

    The budget is for the nodes' texts: the metadata that LlamaIndex writes above them come on top.

    Args:
        pipeline: What compresses; ``default`` with marks for what is left out, remembered by this process, without
            one.
        keep: The fraction of the tokens of all nodes together that may remain.
        max_tokens: The most tokens that may remain of all of them, joined by empty lines; give this or ``keep``.
        deadline: Seconds after which nodes go through as they are; None to wait.
        on_error: ``"pass_through"`` returns the nodes as they are if something fails, with the reason in their
            metadata; ``"raise"`` raises.
        callback_manager: As every postprocessor has one.

    Raises:
        ConfigError: If an option makes no sense.
        BudgetError: If not exactly one of ``keep`` and ``max_tokens`` is given.
        ModelNotFoundError: If the pipeline's tokenizer is not on this machine.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)

    pipeline: Pipeline
    keep: float | None
    max_tokens: int | None
    deadline: float | None
    on_error: OnError
    _compressor: DocumentCompressor = PrivateAttr()

    def __init__(
        self,
        *,
        pipeline: Pipeline | None = None,
        keep: float | None = None,
        max_tokens: int | None = None,
        deadline: float | None = None,
        on_error: OnError = "pass_through",
        callback_manager: CallbackManager | None = None,
    ) -> None:
        made = DocumentCompressor(pipeline, keep=keep, max_tokens=max_tokens, deadline=deadline, on_error=on_error)
        fields: dict[str, Any] = {
            "pipeline": made.pipeline,
            "keep": keep,
            "max_tokens": max_tokens,
            "deadline": deadline,
            "on_error": on_error,
            "callback_manager": callback_manager or CallbackManager(),
        }
        super().__init__(**fields)
        self._compressor = made

    @classmethod
    def class_name(cls) -> str:
        """Return the name of this class, as LlamaIndex writes it to files."""
        return "KompaktPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return _compressed(nodes, self._compressor.compress(_sources(nodes), _question(query_bundle)))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return _compressed(nodes, await self._compressor.acompress(_sources(nodes), _question(query_bundle)))


def _question(query_bundle: QueryBundle | None) -> str | None:
    return None if query_bundle is None else query_bundle.query_str


def _sources(nodes: Sequence[NodeWithScore]) -> list[Source]:
    return [Source(one.node.get_content(metadata_mode=MetadataMode.NONE), one.node.metadata) for one in nodes]


def _compressed(nodes: Sequence[NodeWithScore], kept: Sequence[Kept]) -> list[NodeWithScore]:
    return [_with(nodes[one.position], one) for one in kept]


def _with(found: NodeWithScore, kept: Kept) -> NodeWithScore:
    if kept.report is None:
        return found
    node = found.node
    changes: dict[str, Any] = {
        "metadata": {**(node.metadata or {}), METADATA_KEY: kept.report},
        "excluded_llm_metadata_keys": _including(node.excluded_llm_metadata_keys),
        "excluded_embed_metadata_keys": _including(node.excluded_embed_metadata_keys),
    }
    return found.model_copy(update={"node": _with_text(node.model_copy(update=changes), kept.text)})


def _including(keys: Sequence[str]) -> list[str]:
    return [*keys, *([] if METADATA_KEY in keys else [METADATA_KEY])]


def _with_text(copied: BaseNode, text: str) -> BaseNode:
    if isinstance(copied, Node) and copied.text_resource is not None:
        # its own setter would forget the type of the resource
        copied.text_resource = copied.text_resource.model_copy(update={"text": text})
    else:
        copied.set_content(text)
    return copied
