"""Real clients and frameworks answer a question over compressed real documents, asked of real servers."""

import asyncio
import sys
from pathlib import Path

import pytest
from servers import free_port, llama_server, running, transformers_server

from kompakt import Pipeline
from kompakt.adapters.openai import wrap
from kompakt.compressor.models.sentence_encoder import load_sentence_encoder

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

pytestmark = [pytest.mark.models, pytest.mark.slow]

HANDBOOK = (Path(__file__).parents[2] / "examples" / "data" / "handbook.md").read_text(encoding="utf-8")
QUESTION = "What does the company Harrow & Finch sell?"
PASTED = f"Answer in one sentence from the context.\n\nContext:\n{HANDBOOK}\n\n{QUESTION}"
FACT = "garden tools"
MODEL = "smollm2"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    with llama_server(tmp_path_factory.mktemp("llama")) as url:
        yield url


@pytest.fixture(scope="module")
def pipeline():
    """A pipeline that has loaded its models, as an application does at its start."""
    made = Pipeline(["default"], store="memory", mark_omissions=True)
    made.compress(HANDBOOK, query=QUESTION, keep=0.2)
    return made


def chat(client, **options):
    messages = [{"role": "user", "content": PASTED}]
    return client.chat.completions.create(model=MODEL, messages=messages, max_tokens=40, temperature=0, **options)


def message(client, **options):
    messages = [{"role": "user", "content": PASTED}]
    # newer clients do not know the temperature, the server does
    cold = {"temperature": 0}
    return client.messages.create(model=MODEL, messages=messages, max_tokens=40, extra_body=cold, **options)


def was_compressed(client):
    report = client.kompakt.last
    assert report.outcome.status == "compressed"
    assert report.tokens_after < 0.3 * report.tokens_before
    return report


def test_openai_answers(llama, pipeline):
    with openai.OpenAI(base_url=llama, api_key="k") as plain, wrap(plain, pipeline=pipeline, keep=0.2) as client:
        whole = chat(plain)
        answer = chat(client)
        assert type(answer) is type(whole)
        assert FACT in answer.choices[0].message.content
        # what the server counts, and what the report says that it counts
        assert answer.usage.prompt_tokens < 0.35 * whole.usage.prompt_tokens
        assert was_compressed(client).usage.input_tokens == answer.usage.prompt_tokens
        pieces = [event.choices[0].delta.content or "" for event in chat(client, stream=True) if event.choices]
        assert len(pieces) > 5
        assert FACT in "".join(pieces)
        was_compressed(client)
        prompt = f"Context:\n{HANDBOOK}\n\nHarrow & Finch sells tea, seeds and"
        said = client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0)
        assert FACT in said.choices[0].text
        was_compressed(client)
        assert FACT in client.responses.create(model=MODEL, input=PASTED, max_output_tokens=40).output_text
        was_compressed(client)


def test_openai_answers_many_at_once(llama, pipeline):
    async def main():
        async with (
            openai.AsyncOpenAI(base_url=llama, api_key="k") as plain,
            wrap(plain, pipeline=pipeline, keep=0.2, deadline=20) as client,
        ):
            answers = await asyncio.gather(*(chat(client) for _ in range(4)))
            pieces = [event async for event in await chat(client, stream=True)]
            assert {report.outcome.status for report in client.kompakt.reports} == {"compressed"}
            assert len(pieces) > 5
            return [answer.choices[0].message.content for answer in answers]

    assert all(FACT in answer for answer in asyncio.run(main()))


def test_anthropic_answers(llama, pipeline):
    url = llama.removesuffix("/v1")
    with anthropic.Anthropic(base_url=url, api_key="k") as plain, wrap(plain, pipeline=pipeline, keep=0.2) as client:
        answer = message(client)
        assert FACT in answer.content[0].text
        used = was_compressed(client).usage
        assert used.output_tokens == answer.usage.output_tokens
        with client.messages.stream(
            model=MODEL, messages=[{"role": "user", "content": PASTED}], max_tokens=40
        ) as stream:
            assert "".join(stream.text_stream)
        was_compressed(client)


def test_the_gateway_between(llama, tmp_path):
    pytest.importorskip("starlette")
    port = free_port()
    gateway = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "kompakt", "serve", "--upstream", llama.removesuffix("/v1"), "--keep", "0.2"]
    command += ["--port", str(port), "--deadline", "60", "--store", str(tmp_path / "s.sqlite")]
    with (
        running(command, f"{gateway}/healthz", tmp_path),
        openai.OpenAI(base_url=f"{gateway}/v1", api_key="k") as one,
        anthropic.Anthropic(base_url=gateway, api_key="k") as other,
    ):
        raw = one.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": PASTED}], max_tokens=40, temperature=0
        )
        assert raw.headers["x-kompakt-outcome"] == "compressed"
        assert FACT in raw.parse().choices[0].message.content
        pieces = [event.choices[0].delta.content or "" for event in chat(one, stream=True) if event.choices]
        assert FACT in "".join(pieces)
        assert FACT in message(other).content[0].text
        assert one.models.list().data


PROXY = """\
model_list:
  - model_name: smollm2
    litellm_params: {{model: openai/smollm2, api_base: "{url}", api_key: k}}
general_settings:
  master_key: sk-1f6c0d2f8a5b4e7d9c3a
litellm_settings:
  callbacks: kompakt_callback.callback
"""

CALLBACK = """\
from kompakt.adapters.litellm import KompaktCallback

callback = KompaktCallback(keep=0.1, deadline=30)
"""


def test_the_proxy_of_litellm(llama, tmp_path):
    command = Path(sys.prefix) / "environments" / "litellm" / "bin" / "litellm"
    if not command.exists():
        pytest.skip("needs LiteLLM in its own environment: make environments")
    (tmp_path / "config.yaml").write_text(PROXY.format(url=llama))
    (tmp_path / "kompakt_callback.py").write_text(CALLBACK)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""}
    with (
        running([str(command), *options], f"{url}/health/liveliness", tmp_path, **environment),
        openai.OpenAI(base_url=f"{url}/v1", api_key="sk-1f6c0d2f8a5b4e7d9c3a") as client,
    ):
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": PASTED}], max_tokens=40, temperature=0
        )
        assert raw.headers["x-kompakt-outcome"] == "compressed"
        answer = raw.parse()
        assert FACT in answer.choices[0].message.content
        assert answer.usage.prompt_tokens < 400
        pieces = [event.choices[0].delta.content or "" for event in chat(client, stream=True) if event.choices]
        assert FACT in "".join(pieces)


def test_transformers_server(tmp_path, pipeline):
    with (
        transformers_server(tmp_path) as (url, folder),
        openai.OpenAI(base_url=url, api_key="k") as plain,
        wrap(plain, pipeline=pipeline, keep=0.2) as client,
    ):
        messages = [{"role": "user", "content": PASTED}]
        asked = {"model": str(folder), "messages": messages, "max_tokens": 24, "temperature": 0}
        assert client.chat.completions.create(**asked).choices[0].message.content
        assert was_compressed(client).usage.input_tokens < 400
        assert len(list(client.chat.completions.create(**asked, stream=True))) > 5
        was_compressed(client)
        events = list(client.responses.create(model=str(folder), input=PASTED, max_output_tokens=24, stream=True))
        assert events[-1].type == "response.completed"
        was_compressed(client)


def sections():
    return [f"## {part}" for part in HANDBOOK.split("\n## ")]


def vectors(texts):
    return load_sentence_encoder("minilm-l6").encode(texts).tolist()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:langchain_core", "ignore:.*:ImportWarning")
def test_a_chain_of_langchain(llama, pipeline):
    langchain_openai = pytest.importorskip("langchain_openai")
    retrievers = pytest.importorskip("langchain_classic.retrievers")
    from langchain_core.embeddings import Embeddings
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnablePassthrough
    from langchain_core.vectorstores import InMemoryVectorStore

    from kompakt.adapters.langchain import KompaktCompressor

    class MiniLM(Embeddings):
        def embed_documents(self, texts):
            return vectors(texts)

        def embed_query(self, text):
            return vectors([text])[0]

    store = InMemoryVectorStore(MiniLM())
    store.add_texts(sections(), metadatas=[{"section": n} for n in range(len(sections()))])
    compressor = KompaktCompressor(pipeline=pipeline, max_tokens=100)
    retriever = retrievers.ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=store.as_retriever(search_kwargs={"k": 4})
    )
    found = retriever.invoke(QUESTION)
    assert FACT in "\n\n".join(document.page_content for document in found)
    assert all(document.metadata["kompakt"]["outcome"] == "compressed" for document in found)
    model = langchain_openai.ChatOpenAI(base_url=llama, api_key="k", model=MODEL, temperature=0, max_tokens=40)
    prompt = ChatPromptTemplate.from_template("Answer from the context.\n\nContext:\n{context}\n\n{question}")
    context = retriever | (lambda documents: "\n\n".join(document.page_content for document in documents))
    chain = {"context": context, "question": RunnablePassthrough()} | prompt | model
    assert FACT in chain.invoke(QUESTION).content


def test_a_query_engine_of_llamaindex(llama, pipeline):
    pytest.importorskip("llama_index.core")
    from llama_index.core import PromptTemplate, VectorStoreIndex
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
    from llama_index.core.schema import TextNode

    from kompakt.adapters.llamaindex import KompaktPostprocessor

    client = openai.OpenAI(base_url=llama, api_key="k")

    class MiniLM(BaseEmbedding):
        def _get_text_embedding(self, text):
            return vectors([text])[0]

        def _get_query_embedding(self, query):
            return vectors([query])[0]

        async def _aget_query_embedding(self, query):
            return vectors([query])[0]

    class Llama(CustomLLM):
        @property
        def metadata(self):
            return LLMMetadata(context_window=4096, num_output=40)

        def complete(self, prompt, formatted=False, **options):
            messages = [{"role": "user", "content": prompt}]
            said = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=40, temperature=0)
            return CompletionResponse(text=said.choices[0].message.content)

        def stream_complete(self, prompt, formatted=False, **options):
            raise NotImplementedError

    index = VectorStoreIndex([TextNode(text=text) for text in sections()], embed_model=MiniLM())
    engine = index.as_query_engine(
        llm=Llama(),
        text_qa_template=PromptTemplate("Answer from the context.\n\nContext:\n{context_str}\n\n{query_str}"),
        similarity_top_k=4,
        node_postprocessors=[KompaktPostprocessor(pipeline=pipeline, max_tokens=100)],
    )
    answer = engine.query(QUESTION)
    client.close()
    assert FACT in str(answer)
    assert {node.node.metadata["kompakt"]["outcome"] for node in answer.source_nodes} == {"compressed"}


def test_a_pipeline_of_haystack(llama, pipeline):
    haystack = pytest.importorskip("haystack")
    from haystack.components.builders import ChatPromptBuilder
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
    from haystack.dataclasses import ChatMessage
    from haystack.document_stores.in_memory import InMemoryDocumentStore
    from haystack.utils import Secret

    from kompakt.adapters.haystack import KompaktCompressor

    store = InMemoryDocumentStore()
    store.write_documents([haystack.Document(content=text) for text in sections()])
    made = haystack.Pipeline()
    made.add_component("retriever", InMemoryBM25Retriever(store, top_k=4))
    made.add_component("compressor", KompaktCompressor(pipeline=pipeline, max_tokens=100))
    template = (
        "Answer from the context.\n\nContext:\n{% for d in documents %}{{ d.content }}\n{% endfor %}\n\n{{ query }}"
    )
    made.add_component(
        "prompt", ChatPromptBuilder([ChatMessage.from_user(template)], required_variables=["documents", "query"])
    )
    options = {"temperature": 0, "max_tokens": 40}
    made.add_component(
        "model",
        OpenAIChatGenerator(Secret.from_token("k"), MODEL, api_base_url=llama, generation_kwargs=options),
    )
    made.connect("retriever", "compressor.documents")
    made.connect("compressor", "prompt.documents")
    made.connect("prompt.prompt", "model.messages")
    asked = {"retriever": {"query": QUESTION}, "compressor": {"query": QUESTION}, "prompt": {"query": QUESTION}}
    done = made.run(asked, include_outputs_from={"compressor"})
    assert FACT in done["model"]["replies"][0].text
    assert {one.meta["kompakt"]["outcome"] for one in done["compressor"]["documents"]} == {"compressed"}
