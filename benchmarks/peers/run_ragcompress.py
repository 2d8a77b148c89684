"""ragcompress 0.1.0: sentences of retrieved chunks, ranked by a scorer, under a budget of tokens.

    run_ragcompress.py MINILM_FOLDER

``Compressor(scorer=, budget=FixedBudget(max_tokens=), token_counter=).compress(query, chunks)`` with one chunk a
document. Its default scorer is a cross-encoder that must be downloaded; in its place stands a scorer of its
documented interface, the cosine similarity of question and sentence under the model in MINILM_FOLDER, which also
finds its duplicates. The counter is its own offline one, scaled so that the whole input counts ``tokens_before``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from serve import joined, needed_query, serve


def load(arguments: Sequence[str]) -> Callable[[dict], str]:
    (folder,) = arguments
    from ragcompress import Chunk, Compressor
    from ragcompress.budget.fixed import FixedBudget
    from ragcompress.scoring.base import BaseScorer
    from ragcompress.utils import tokens
    from sentence_transformers import SentenceTransformer

    # its counter asks the network for an encoding before it falls back
    tokens._encoder_failed = True
    model = SentenceTransformer(folder, device="cpu", local_files_only=True)

    class MiniLMScorer(BaseScorer):
        def embed(self, texts):
            return model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)

        def score(self, query, sentences, context):
            question, *vectors = self.embed([query, *(sentence.text for sentence in sentences)])
            return [replace(s, score=float(v @ question)) for s, v in zip(sentences, vectors, strict=True)]

    scorer = MiniLMScorer()

    def compress(request: dict) -> str:
        scale = request["tokens_before"] / max(1, tokens.count_tokens(joined(request)))
        compressor = Compressor(
            scorer=scorer,
            budget=FixedBudget(max_tokens=request["max_tokens"]),
            token_counter=lambda text: scale * tokens.count_tokens(text),
        )
        chunks = [Chunk(str(i), str(i), document["text"]) for i, document in enumerate(request["documents"])]
        return compressor.compress(needed_query(request), chunks).text

    return compress


if __name__ == "__main__":
    serve("ragcompress", load)
