"""LlamaIndex's query engines read smaller nodes, which otherwise are the same."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from kompakt import BudgetError, Pipeline
from kompakt.compressor.models.tokenizers import load_tokenizer

pytest.importorskip("llama_index.core")

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)

from kompakt.adapters.llamaindex import KompaktPostprocessor

TOKENIZER = load_tokenizer()
QUESTION = "How many bells did ship 30 carry?"
ANSWER = "Ship 30 left port 2 with 390 bells"
LOG = " ".join(f"Ship {n} left port {n % 7} with {n * 13} bells on day {n}." for n in range(60))
OTHER = " ".join(f"Cook {n} made {n} soups of fish on the island." for n in range(40))


class Stored(BaseRetriever):
    def __init__(self, nodes):
        super().__init__()
        self.nodes = nodes

    def _retrieve(self, query_bundle):
        return self.nodes


class Recorder(CustomLLM):
    """Answers, and keeps what it was asked."""

    prompts: list[str]

    @property
    def metadata(self):
        return LLMMetadata(context_window=100_000)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any):
        self.prompts.append(prompt)
        return CompletionResponse(text="390")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any):
        raise NotImplementedError


def postprocessor(**options):
    return KompaktPostprocessor(pipeline=Pipeline(["lexical"], store="memory"), **options)


def text_node():
    return TextNode(
        text=LOG,
        id_="n1",
        metadata={"title": "Log"},
        excluded_llm_metadata_keys=["secret"],
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="d1")},
        start_char_idx=100,
        end_char_idx=100 + len(LOG),
        embedding=[0.5, 0.25],
    )


def test_nodes_keep_all_but_their_texts():
    nodes = [
        NodeWithScore(node=text_node(), score=0.9),
        NodeWithScore(node=IndexNode(text=OTHER, index_id="i", id_="n2"), score=None),
        NodeWithScore(node=Document(text=LOG.upper(), id_="n3"), score=0.1),
        NodeWithScore(node=Node(text_resource=MediaResource(text=OTHER, mimetype="text/markdown"), id_="n4")),
    ]
    before = [node.model_dump_json() for node in nodes]
    made = postprocessor(keep=0.5).postprocess_nodes(nodes, query_str=QUESTION)
    assert [node.model_dump_json() for node in nodes] == before
    assert [node.score for node in made] == [0.9, None, 0.1, None]
    assert [(type(one.node), one.node_id) for one in made] == [(type(one.node), one.node_id) for one in nodes]
    assert ANSWER in made[0].text
    assert made[3].node.text_resource.mimetype == "text/markdown"
    for new, old in zip(made, nodes, strict=True):
        report = new.metadata["kompakt"]
        assert json.loads(json.dumps(report)) == report
        assert report["outcome"] == "compressed"
        text = old.get_content()
        assert all(text[start:end] in new.get_content() for start, end in report["spans"])
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert "tokens_before" not in new.get_content(mode)
    first, original = made[0].node, nodes[0].node
    assert first.excluded_llm_metadata_keys == ["secret", "kompakt"]
    assert first.excluded_embed_metadata_keys == ["kompakt"]
    assert first.metadata["title"] == "Log"
    assert first.relationships == original.relationships
    assert (first.start_char_idx, first.end_char_idx) == (original.start_char_idx, original.end_char_idx)
    assert first.embedding == [0.5, 0.25]


def test_twice_is_reported_once():
    (once,) = postprocessor(keep=0.7).postprocess_nodes([NodeWithScore(node=text_node())], query_str=QUESTION)
    (twice,) = postprocessor(keep=0.7).postprocess_nodes([once], query_str=QUESTION)
    assert twice.node.excluded_llm_metadata_keys == ["secret", "kompakt"]
    assert twice.metadata["kompakt"]["tokens_before"] == once.metadata["kompakt"]["tokens_after"]


def test_nodes_without_text_stay_as_they_are():
    image = NodeWithScore(node=ImageNode(image_url="https://example.org/a.png", id_="i"), score=0.5)
    resource = NodeWithScore(node=Node(image_resource=MediaResource(data=b"x"), id_="r"), score=0.4)
    nodes = [image, NodeWithScore(node=text_node(), score=0.3), resource]
    made = postprocessor(keep=0.5).postprocess_nodes(nodes, query_str=QUESTION)
    assert made[0] is image
    assert made[2] is resource
    assert made[1].metadata["kompakt"]["outcome"] == "compressed"
    assert postprocessor(keep=0.5).postprocess_nodes([image], query_str=QUESTION) == [image]


def test_metadata_that_is_none():
    node = TextNode(text=LOG)
    # as stores of vectors hand it back, past validation
    node.__dict__["metadata"] = None
    (made,) = postprocessor(keep=0.5).postprocess_nodes([NodeWithScore.model_construct(node=node, score=1.0)])
    assert list(made.node.metadata) == ["kompakt"]
    assert node.metadata is None


def test_without_a_question():
    made = postprocessor(max_tokens=200).postprocess_nodes([NodeWithScore(node=text_node())])
    assert made[0].metadata["kompakt"]["outcome"] == "compressed"
    assert postprocessor(keep=0.5).postprocess_nodes([]) == []
    bundle = QueryBundle(QUESTION)
    nodes = [NodeWithScore(node=text_node())]
    assert ANSWER in postprocessor(max_tokens=60).postprocess_nodes(nodes, bundle)[0].text


@pytest.mark.parametrize("is_async", [False, True])
def test_in_a_query_engine(is_async):
    llm = Recorder(prompts=[])
    nodes = [NodeWithScore(node=text_node(), score=0.9), NodeWithScore(node=TextNode(text=OTHER), score=0.8)]
    engine = RetrieverQueryEngine(
        retriever=Stored(nodes),
        response_synthesizer=get_response_synthesizer(llm=llm, response_mode=ResponseMode.COMPACT),
        node_postprocessors=[postprocessor(max_tokens=120)],
    )
    response = asyncio.run(engine.aquery(QUESTION)) if is_async else engine.query(QUESTION)
    (prompt,) = llm.prompts
    assert str(response) == "390"
    assert ANSWER in prompt
    assert "title: Log" in prompt
    assert "kompakt" not in prompt
    assert TOKENIZER.count("\n\n".join(one.text for one in response.source_nodes)) <= 120
    assert response.source_nodes[0].score == 0.9
    assert len(prompt) < 0.5 * len(LOG + OTHER)


def test_how_it_is_described():
    made = postprocessor(keep=0.5)
    assert made.class_name() == "KompaktPostprocessor"
    assert made.to_dict()["class_name"] == "KompaktPostprocessor"
    with pytest.raises(BudgetError, match="exactly one"):
        KompaktPostprocessor()
    with pytest.raises(TypeError, match="ratio"):
        KompaktPostprocessor(keep=0.5, ratio=0.5)


def test_a_failure_passes_nodes_through():
    made = postprocessor(keep=0.01).postprocess_nodes([NodeWithScore(node=TextNode(text="Ships sail."), score=0.2)])
    assert (made[0].text, made[0].score) == ("Ships sail.", 0.2)
    assert made[0].metadata["kompakt"]["outcome"] == "passed_through"
    with pytest.raises(BudgetError):
        postprocessor(keep=0.01, on_error="raise").postprocess_nodes(made)


def test_a_missing_library_is_named_with_its_extra():
    code = "import sys; sys.modules['llama_index'] = None; import kompakt.adapters.llamaindex"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'kompakt[llamaindex]'" in result.stderr
