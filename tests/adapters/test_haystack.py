"""Haystack's pipelines go on with smaller documents, which otherwise are the same."""

import asyncio
import json
import subprocess
import sys

import pytest

from kompakt import BudgetError, ConfigError
from kompakt import Pipeline as Compressing
from kompakt.compressor.models.tokenizers import load_tokenizer

pytest.importorskip("haystack")

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.dataclasses import ByteStream
from haystack.document_stores.in_memory import InMemoryDocumentStore

from kompakt.adapters.haystack import KompaktCompressor

TOKENIZER = load_tokenizer()
QUESTION = "How many bells did ship 30 carry?"
ANSWER = "Ship 30 left port 2 with 390 bells"
LOG = " ".join(f"Ship {n} left port {n % 7} with {n * 13} bells on day {n}." for n in range(60))
OTHER = " ".join(f"Cook {n} made {n} soups of fish on the island." for n in range(40))


def compressor(**options):
    return KompaktCompressor(pipeline=Compressing(["lexical"], store="memory"), **options)


def found():
    return [
        Document(id="a", content=LOG, meta={"file_path": "log.txt"}, score=0.9, embedding=[0.5]),
        Document(id="b", blob=ByteStream(b"x", mime_type="image/png"), score=0.8),
        Document(id="a", content=OTHER, score=0.7),
    ]


def test_documents_keep_all_but_their_texts():
    documents = found()
    before = [document.to_dict() for document in documents]
    made = compressor(keep=0.5).run(query=QUESTION, documents=documents)["documents"]
    assert [document.to_dict() for document in documents] == before
    assert made[1] is documents[1]
    assert [(document.id, document.score) for document in made] == [("a", 0.9), ("b", 0.8), ("a", 0.7)]
    assert ANSWER in made[0].content
    assert made[0].embedding == [0.5]
    report = made[0].meta.pop("kompakt")
    assert made[0].meta == {"file_path": "log.txt"}
    assert json.loads(json.dumps(report)) == report
    assert all(LOG[start:end] in made[0].content for start, end in report["spans"])
    assert Document.from_dict(made[2].to_dict()) == made[2]


def test_top_k_spends_the_budget_on_the_first():
    texts = [document.content for document in compressor(keep=0.5, top_k=1).run(QUESTION, found())["documents"]]
    assert len(texts) == 1
    assert len(compressor(keep=0.5, top_k=1).run(QUESTION, found(), top_k=2)["documents"]) == 2
    assert len(compressor(keep=0.5).run(QUESTION, found())["documents"]) == 3
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(ConfigError, match="top_k"):
            compressor(keep=0.5, top_k=wrong)
        with pytest.raises(ConfigError, match="top_k"):
            compressor(keep=0.5).run(QUESTION, found(), top_k=wrong)


def search(component):
    store = InMemoryDocumentStore()
    store.write_documents([Document(content=LOG), Document(content=OTHER)])
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store))
    pipeline.add_component("compressor", component)
    pipeline.connect("retriever.documents", "compressor.documents")
    return pipeline


INPUT = {"retriever": {"query": QUESTION}, "compressor": {"query": QUESTION}}


def test_in_a_pipeline():
    made = search(compressor(max_tokens=120)).run(INPUT)["compressor"]["documents"]
    assert ANSWER in made[0].content
    assert TOKENIZER.count("\n\n".join(document.content for document in made)) <= 120

    async def main():
        return await search(compressor(max_tokens=120)).run_async(INPUT)

    assert asyncio.run(main())["compressor"]["documents"] == made


def test_through_a_file():
    pipeline = search(compressor(max_tokens=120, top_k=5, deadline=30, on_error="raise"))
    text = pipeline.dumps()
    again = Pipeline.loads(text, allowed_modules=["kompakt.*"])
    assert again.dumps() == text
    read = again.get_component("compressor").to_dict()["init_parameters"]
    assert {name: read[name] for name in ("max_tokens", "top_k", "deadline", "on_error", "keep")} == {
        "max_tokens": 120,
        "top_k": 5,
        "deadline": 30,
        "on_error": "raise",
        "keep": None,
    }
    assert 'compressor = "lexical"' in read["pipeline"]
    assert compressor(keep=0.5).run(QUESTION, found()) == KompaktCompressor.from_dict(
        compressor(keep=0.5).to_dict()
    ).run(QUESTION, found())


def test_options_of_a_file_are_checked():
    data = compressor(keep=0.5).to_dict()
    data["init_parameters"]["keep"] = 3
    with pytest.raises(BudgetError):
        KompaktCompressor.from_dict(data)
    data["init_parameters"] = {"keep": 0.5}
    assert KompaktCompressor.from_dict(data).to_dict()["init_parameters"]["keep"] == 0.5
    data["init_parameters"] = {"keep": 0.5, "pipeline": "stages = 3"}
    with pytest.raises(ConfigError):
        KompaktCompressor.from_dict(data)


def test_nothing_is_lost_where_nothing_can_be_done():
    assert compressor(keep=0.5).run(QUESTION, []) == {"documents": []}
    made = compressor(keep=0.01).run(QUESTION, [Document(content="Ships sail.")])["documents"]
    assert made[0].content == "Ships sail."
    assert made[0].meta["kompakt"]["outcome"] == "passed_through"
    with pytest.raises(BudgetError, match="exactly one"):
        KompaktCompressor()


def test_a_missing_library_is_named_with_its_extra():
    code = "import sys; sys.modules['haystack'] = None; import kompakt.adapters.haystack"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'kompakt[haystack]'" in result.stderr
