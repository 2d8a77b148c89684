"""Corpora, and jobs over them."""

import json
import os
import random
from dataclasses import dataclass
from typing import ClassVar

from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.pipeline import Pipeline
from kompakt.compressor.store.places import open_store
from kompakt.compressor.text.lexical import Lexical
from kompakt.retrieval.chunks import split_chunks
from kompakt.retrieval.compressed import SegmentCompressor
from kompakt.retrieval.corpus.job import JobSettings, Limits, run_job
from kompakt.retrieval.corpus.ledger import hashes_of
from kompakt.retrieval.corpus.readers import ReadOptions, find_files, read_file
from kompakt.retrieval.corpus.sink import open_sink
from kompakt.retrieval.corpus.state import State

TOKENIZER = load_tokenizer("o200k_base")
RAISES, EXITS = "This raises.", "This ends the process."
SMALL = Limits(batch_documents=8, checkpoint_records=20)


@dataclass(frozen=True)
class Poisonous(Lexical):
    """Compresses as its base does, except for two sentences."""

    name: ClassVar[str] = "poisonous"

    def score(self, units, query):
        texts = [unit.text for unit in units]
        if any(RAISES in text for text in texts):
            raise RuntimeError("it was poisoned")
        if any(EXITS in text for text in texts):
            os._exit(9)
        return super().score(units, query)


def sentences(seed, n=8):
    """Sentences that no other seed has."""
    chance = random.Random(seed)
    goods = ("tiles", "ropes", "nails", "lamps", "barrels")
    return " ".join(
        f"Lot {seed}-{index} of {chance.randint(2, 99)} {chance.choice(goods)} went to town {chance.randint(1, 9)}."
        for index in range(n)
    )


def rows(n, start=0):
    """Documents as the lines of a JSON Lines file."""
    return [{"id": f"d{index}", "text": sentences(index), "lot": index} for index in range(start, start + n)]


def write_lines(path, lines):
    """Write a JSON Lines file; strings stand for lines as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def compressor_for(store, *, stages=("lexical",), keep=0.5):
    """Return what compresses into a store file."""
    # little in memory, so that it is the file that is asked
    opened = open_store(store, memory_bytes=1 << 16)
    return SegmentCompressor(Pipeline(list(stages), tokenizer="o200k_base", store=opened), keep=keep)


def job(inputs, folder, *, stages=("lexical",), keep=0.5, chunk_tokens=256, read=None, sink=None, **options):
    """Run a job over files and folders; store and state are in ``folder``."""
    compressor = compressor_for(folder / "store.sqlite", stages=stages, keep=keep)
    settings = JobSettings.of(inputs, compressor, tokenizer=TOKENIZER, chunk_tokens=chunk_tokens, read=read)

    def opened():
        made = open_sink(compressor, tokenizer=TOKENIZER, chunk_tokens=chunk_tokens)
        return sink(made) if sink else made

    return run_job(settings, folder / "state", opened, **{"limits": SMALL, **options})


def known(folder):
    """Return what the state in a folder says of each document, by id."""
    state = State.open(folder / "state")
    try:
        names = [name for (name,) in state._rows("SELECT id FROM documents")]
        return {name: state.find(name) for name in names}
    finally:
        state.close()


def failures(folder):
    """Return the content of a job's failures.jsonl."""
    text = (folder / "state" / "failures.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def assert_complete(inputs, folder, *, stages=("lexical",), without=()):
    """Check that each document of a corpus stands once in the state, and all its segments in the store."""
    compressor = compressor_for(folder / "store.sqlite", stages=stages)
    written = known(folder)
    documents = {}
    for file in find_files(inputs):
        for record in read_file(file, ReadOptions()):
            documents.setdefault(record.document.id, record.document)
    wanted = {name: document for name, document in documents.items() if name not in without}
    assert {name for name, one in written.items() if one.status == "ok"} == set(wanted)
    for name, document in wanted.items():
        assert written[name].sha256 == hashes_of(document).document
        chunks = split_chunks(document, tokenizer=TOKENIZER)
        assert chunks
        assert None not in compressor.find(chunks)
    compressor.pipeline.close()


def rewrite(path, lines):
    """Write a file such that its time differs, too."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    write_lines(path, lines)
    os.utime(path, ns=(before + 10**9, before + 10**9))


class Watched:
    """A sink that notes what another one is told."""

    def __init__(self, inner):
        self.inner = inner
        self.added, self.deleted, self.n_saves, self.is_closed = [], [], 0, False

    def add(self, documents):
        self.added.append([document.id for document in documents])
        return self.inner.add(documents)

    def delete(self, document_ids):
        self.deleted += document_ids
        return self.inner.delete(document_ids)

    def save(self):
        self.n_saves += 1
        self.inner.save()

    def close(self):
        self.is_closed = True
        self.inner.close()
