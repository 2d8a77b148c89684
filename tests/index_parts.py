"""A small index, and an encoder for it that needs no model."""

from hashlib import blake2b

import numpy as np

from kompakt import Document
from kompakt.compressor.text.bm25 import terms
from kompakt.retrieval.index import SegmentIndex

QUERIES = ["Where does the Danube rise?", "iron tower", "bread and butter", "old bridges over rivers"]


class WordEncoder:
    """Words hashed to places of a vector: texts with the same words are alike."""

    fingerprint = "words-256"

    def __init__(self, dimension=256):
        self.dimension = dimension
        self.batches = []

    def encode(self, texts):
        self.batches.append(len(texts))
        vectors = np.zeros((len(texts), self.dimension))
        for row, text in zip(vectors, texts, strict=True):
            for term in terms(text):
                row[int.from_bytes(blake2b(term.encode(), digest_size=4).digest()) % self.dimension] += 1
        return vectors


class BrokenEncoder(WordEncoder):
    def encode(self, texts):
        raise RuntimeError("out of memory")


DOCUMENTS = [
    Document(
        "# Danube\n\nThe Danube rises in the Black Forest.\n\n# Rhine\n\nThe Rhine rises in the Alps, by a glacier.",
        id="rivers",
        metadata={"title": "Rivers of Europe", "year": 2020, "lang": "en"},
    ),
    Document("A tower of iron was built for the fair of 1889.", id="tower", metadata={"year": 1889, "lang": "en"}),
    Document("Bread is baked from flour; butter is churned from cream.", id="food", metadata={"lang": "de"}),
    Document("The chain bridge over the Danube was opened in 1849.", id="bridge", metadata={"year": 1849}),
]


def create(folder, **options):
    return SegmentIndex.create(folder, encoder=WordEncoder(), **{"chunk_tokens": 32, **options})


def reopen(folder, **options):
    return SegmentIndex.open(folder, **{"encoder": WordEncoder(), **options})


def places(hits):
    return [(hit.segment.document_id, hit.segment.start, hit.segment.end, round(hit.score, 5)) for hit in hits]


def answers(index, **options):
    return [places(index.search(query, mode=mode, **options)) for query in QUERIES for mode in MODES]


MODES = ("hybrid", "vector", "words")
