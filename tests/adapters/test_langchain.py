"""LangChain's retrievers return smaller documents, and otherwise the same."""

import asyncio
import json
import subprocess
import sys

import pytest

from kompakt import BudgetError, ConfigError, Pipeline
from kompakt.compressor.models.tokenizers import load_tokenizer

pytest.importorskip("langchain_core")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore

from kompakt.adapters.langchain import KompaktCompressor

TOKENIZER = load_tokenizer()
QUESTION = "How many bells did ship 30 carry?"
ANSWER = "Ship 30 left port 2 with 390 bells"
LOG = " ".join(f"Ship {n} left port {n % 7} with {n * 13} bells on day {n}." for n in range(60))
OTHER = " ".join(f"Cook {n} made {n} soups of fish on the island." for n in range(40))


class Stored(BaseRetriever):
    documents: list[Document]

    def _get_relevant_documents(self, query, *, run_manager):
        return self.documents


class Page(Document):
    """A document of a user's own class."""

    number: int = 0


def pipeline():
    return Pipeline(["lexical"], store="memory")


def found():
    return [
        Document(page_content=LOG, id="log", metadata={"source": "log.txt", "score": 0.9, "tags": ["a"]}),
        Page(page_content=OTHER, id="log", metadata={}, number=7),
        Document(page_content="", metadata={"image": "x.png"}),
        Document(page_content=LOG.upper()),
    ]


def test_documents_keep_all_but_their_texts():
    documents = found()
    before = [document.model_dump_json() for document in documents]
    made = KompaktCompressor(pipeline=pipeline(), keep=0.5).compress_documents(documents, QUESTION)
    assert [document.model_dump_json() for document in documents] == before
    assert [type(document) for document in made] == [Document, Page, Document, Document]
    assert [document.id for document in made] == ["log", "log", None, None]
    assert made[1].number == 7
    assert made[2] == documents[2]
    reports = [document.metadata.pop("kompakt") for document in (made[0], made[1], made[3])]
    assert [document.metadata for document in made] == [document.metadata for document in documents]
    assert "kompakt" not in documents[0].metadata
    assert ANSWER in made[0].page_content
    for report, document in zip(reports, (documents[0], documents[1], documents[3]), strict=True):
        assert json.loads(json.dumps(report)) == report
        assert report["outcome"] == "compressed"
        assert all(document.page_content[start:end] for start, end in report["spans"])


def test_in_a_retriever():
    retrievers = pytest.importorskip("langchain_classic.retrievers")
    compressor = KompaktCompressor(pipeline=pipeline(), max_tokens=120)
    retriever = retrievers.ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=Stored(documents=found()[:2])
    )
    made = retriever.invoke(QUESTION)
    assert ANSWER in made[0].page_content
    assert TOKENIZER.count("\n\n".join(document.page_content for document in made)) <= 120
    assert asyncio.run(retriever.ainvoke(QUESTION)) == made
    retriever.base_retriever = Stored(documents=[])
    assert retriever.invoke(QUESTION) == []


def test_in_a_retriever_over_vectors():
    retrievers = pytest.importorskip("langchain_classic.retrievers")
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents([Document(page_content=text, id=str(n)) for n, text in enumerate([LOG, OTHER])])
    retriever = retrievers.ContextualCompressionRetriever(
        base_compressor=KompaktCompressor(pipeline=pipeline(), keep=0.4), base_retriever=store.as_retriever()
    )
    made = retriever.invoke(QUESTION)
    assert sorted(document.id for document in made) == ["0", "1"]
    assert all(document.metadata["kompakt"]["outcome"] == "compressed" for document in made)
    assert {document.page_content for document in store.similarity_search(QUESTION)} == {LOG, OTHER}


def test_in_a_pipeline_of_compressors():
    compressors = pytest.importorskip("langchain_classic.retrievers.document_compressors")
    steps = [KompaktCompressor(pipeline=pipeline(), keep=0.7), KompaktCompressor(pipeline=pipeline(), keep=0.7)]
    together = compressors.DocumentCompressorPipeline(transformers=steps)
    made = together.compress_documents(found()[:2], QUESTION)
    assert ANSWER in made[0].page_content
    assert TOKENIZER.count("\n\n".join(one.page_content for one in made)) <= 0.5 * TOKENIZER.count(
        f"{LOG}\n\n{OTHER}"
    )
    assert asyncio.run(together.acompress_documents(found()[:2], QUESTION)) == made


def test_hidden_embeddings_do_not_leak():
    # as langchain_community defines it
    class _DocumentWithState(Document):
        state: dict

    for text in (LOG, ""):
        document = _DocumentWithState(page_content=text, metadata={"a": 1}, id="x", state={"embedded_doc": [0.5]})
        (made,) = KompaktCompressor(pipeline=pipeline(), keep=0.5).compress_documents([document], QUESTION)
        assert type(made) is Document
        assert (made.id, made.metadata["a"]) == ("x", 1)
        assert "state" not in made.model_dump()


def test_metadata_that_is_none():
    document = Document.model_construct(page_content=LOG, metadata=None, id=None)
    (made,) = KompaktCompressor(pipeline=pipeline(), keep=0.5).compress_documents([document], QUESTION)
    assert list(made.metadata) == ["kompakt"]
    assert document.metadata is None


def test_nothing_is_lost_where_nothing_can_be_done():
    compressor = KompaktCompressor(pipeline=pipeline(), keep=0.01)
    assert compressor.compress_documents([], QUESTION) == []
    (made,) = compressor.compress_documents([Document(page_content="Ships sail.")], "")
    assert made.page_content == "Ships sail."
    assert made.metadata["kompakt"]["outcome"] == "passed_through"
    with pytest.raises(BudgetError):
        KompaktCompressor(pipeline=pipeline(), keep=0.01, on_error="raise").compress_documents([made], "")


def test_wrong_options():
    with pytest.raises(BudgetError, match="exactly one"):
        KompaktCompressor(pipeline=pipeline())
    with pytest.raises(ConfigError, match="deadline"):
        KompaktCompressor(keep=0.5, deadline=-1)
    with pytest.raises(TypeError, match="ratio"):
        KompaktCompressor(keep=0.5, ratio=0.5)


@pytest.mark.parametrize(
    ("library", "module"),
    [
        ("langchain_core", "langchain"),
        ("langchain", "langchain_middleware"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(library, module):
    code = f"import sys; sys.modules[{library!r}] = None; import kompakt.adapters.{module}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError" in result.stderr
    assert "pip install 'kompakt[langchain]'" in result.stderr
