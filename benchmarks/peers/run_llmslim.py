"""llmslim 0.11.2: extractive selection of sentences for a question.

    run_llmslim.py [MINILM_FOLDER]

``compress_documents(documents, query=query, target_ratio=keep)`` is what its README gives for retrieved documents:
they share one budget. Its other default is lexical relevance. For retrieval the README advises a reranker, whose
model is a download; with MINILM_FOLDER its documented ``relevance=`` gets cosine similarity of that model instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serve import serve


def load(arguments: Sequence[str]) -> Callable[[dict], str]:
    from llmslim import compress_documents

    options = {"relevance": minilm_relevance(arguments[0])} if arguments else {}

    def compress(request: dict) -> str:
        texts = [document["text"] for document in request["documents"]]
        results = compress_documents(texts, query=request["query"], target_ratio=request["keep"], **options)
        return "\n\n".join(result.compressed_text for result in results if result.compressed_text)

    return compress


def minilm_relevance(folder: str) -> Callable[[str, Sequence[str]], list[float]]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", local_files_only=True)

    def relevance(query: str, texts: Sequence[str]) -> list[float]:
        vectors = model.encode([query, *texts], normalize_embeddings=True, show_progress_bar=False)
        return (vectors[1:] @ vectors[0]).tolist()

    return relevance


if __name__ == "__main__":
    serve("llmslim", load)
