"""An index of segments in a folder, searched by meaning and by words."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

from kompakt.compressor.errors import ConfigError, InputError, StoreError
from kompakt.compressor.models.tokenizers import DEFAULT_TOKENIZER, Tokenizer, load_tokenizer
from kompakt.compressor.store.artefacts import Artefacts
from kompakt.compressor.types import Document, require_unicode
from kompakt.retrieval.catalogue import Catalogue, IndexedDocument, Segment
from kompakt.retrieval.chunks import split_chunks
from kompakt.retrieval.encoding import BATCH, Encoder, SegmentVectors, as_encoder, embedded
from kompakt.retrieval.filters import Where
from kompakt.retrieval.fusion import reciprocal_rank_fusion
from kompakt.retrieval.manifest import Manifest, WriterLock

if TYPE_CHECKING:
    import numpy as np

__all__ = ["AddReport", "Encoder", "Hit", "IndexedDocument", "Mode", "Segment", "SegmentIndex"]

_LOG = logging.getLogger(__name__)

Mode: TypeAlias = Literal["hybrid", "vector", "words"]
_MODES: Final = ("hybrid", "vector", "words")
_CATALOGUE: Final = "segments.sqlite"


@dataclass(frozen=True, slots=True)
class Hit:
    """A segment that a search found.

    Args:
        segment: The segment.
        score: Higher is better: a cosine, a BM25 score or, in a hybrid search, the sum of reciprocal ranks. Scores
            of different searches are not comparable.
        vector_rank: Its place among the candidates by meaning, from 1; None if it is not among them.
        word_rank: Its place among the candidates by words, from 1; None if it is not among them.
    """

    segment: Segment
    score: float
    vector_rank: int | None
    word_rank: int | None


@dataclass(frozen=True, slots=True)
class AddReport:
    """What became of documents.

    Args:
        n_added: Documents that were new.
        n_unchanged: Documents that were there with this text and metadata.
        n_replaced: Documents that were there with another text or other metadata.
        n_segments: Segments that the new and the replaced ones were cut into.
    """

    n_added: int
    n_unchanged: int
    n_replaced: int
    n_segments: int


class SegmentIndex:
    """Documents cut into segments, which are found by meaning, by words or both. Made by ``create`` or ``open``.

    What is added and deleted is seen by this object at once, and by others and the next process after ``save``, which
    ``close`` and the end of a ``with`` block do, unless an exception ends the block. A crash leaves what was saved
    last. One process at a time writes, others may search meanwhile; they see what was saved last. Methods may be
    called from several threads; a process that forks must open the index after that.

    The folder holds ``manifest.json`` (what the index was made with), ``segments.sqlite`` (documents, segments and
    words; see ``Catalogue``) and ``vectors-<generation>.faiss`` (see ``VectorIndex``). If the vectors are lost, they
    are made again from the segments.
    """

    def __init__(self, folder: Path, manifest: Manifest, encoder: Encoder, *, memory_map: bool = True) -> None:
        self._folder = folder
        self._manifest = manifest
        self._tokenizer: Tokenizer | None = None
        self._mutex = RLock()
        self._writer: WriterLock | None = None
        self._vectors = SegmentVectors(folder, encoder, memory_map=memory_map)
        self._generation = 0
        self._is_dirty = False
        self._is_closed = False
        self._catalogue = Catalogue.open(folder / _CATALOGUE)

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        *,
        encoder: str | os.PathLike[str] | Encoder = "minilm-l6",
        tokenizer: str | os.PathLike[str] | Tokenizer = DEFAULT_TOKENIZER,
        chunk_tokens: int = 256,
        artefacts: Artefacts | None = None,
    ) -> Self:
        """Make an empty index.

        Args:
            folder: Where; it is made if it is not there.
            encoder: A model's name, the folder of one in sentence-transformers layout, or an encoder.
            tokenizer: Whose tokens limit the segments: a name, a folder or a tokenizer.
            chunk_tokens: The most tokens of a segment. An encoder judges a text by what its window holds.
            artefacts: Where the vectors of a named encoder are found again; the memory of this process without one.

        Raises:
            StoreError: If the folder holds an index or cannot be written.
            ConfigError: If an option makes no sense.
            ModelNotFoundError: If the encoder or the tokenizer is not on this machine.
        """
        _check_count("chunk_tokens", chunk_tokens)
        name, known = as_encoder(encoder, artefacts=artefacts)
        counter = load_tokenizer(tokenizer)
        path = Path(folder)
        if Manifest.is_in(path):
            raise StoreError(f"{path} holds an index already; open it, or name another folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {path}: {error}") from error
        lock = WriterLock(path)
        try:
            Catalogue.create(path / _CATALOGUE).close()
            manifest = Manifest(name, known.fingerprint, counter.name, counter.fingerprint, chunk_tokens)
            manifest.write(path)
            made = cls(path, manifest, known)
        except BaseException:
            lock.release()
            raise
        made._writer, made._tokenizer = lock, counter
        return made

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        encoder: str | os.PathLike[str] | Encoder | None = None,
        tokenizer: Tokenizer | None = None,
        memory_map: bool = True,
        artefacts: Artefacts | None = None,
    ) -> Self:
        """Open an index to search it, or to change it: the first change takes the place of its one writer.

        Vectors that are missing or damaged are made again, which is logged as a warning.

        Args:
            folder: Where it is.
            encoder: What it was made with; by default the model that its manifest names.
            tokenizer: What it was made with, if that cannot be found by its name; needed only to add documents.
            memory_map: Leave the vectors in their file until they are needed.
            artefacts: Where the vectors of a named encoder are found again; the memory of this process without one.

        Raises:
            StoreError: If there is no index, it is damaged beyond its vectors, or it was made with another encoder.
            ModelNotFoundError: If the encoder is not on this machine.
        """
        path = Path(folder)
        manifest = Manifest.read(path)
        if encoder is None and not manifest.encoder:
            raise StoreError(f"the index {path} was made with an encoder that has no name; give it as encoder=")
        name, known = as_encoder(manifest.encoder if encoder is None else encoder, artefacts=artefacts)
        manifest.check_encoder(name, known.fingerprint)
        opened = cls(path, manifest, known, memory_map=memory_map)
        opened._tokenizer = tokenizer
        try:
            opened._load()
        except BaseException:
            opened._catalogue.close()
            raise
        return opened

    def __len__(self) -> int:
        with self._mutex:
            return self._catalogue.count_segments()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if kind is not None:
            self._is_dirty = False
        self.close()

    def documents(self) -> list[IndexedDocument]:
        """Return what is known of each document, in the order in which they were added."""
        with self._mutex:
            return self._catalogue.documents()

    def segments_of(self, document_ids: Iterable[str]) -> list[Segment]:
        """Return the segments of documents, in the order of their ids; unknown documents have none."""
        with self._mutex:
            return self._catalogue.segments_of(document_ids)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of texts, of length 1, as they are compared in a search, ``[N, D]``."""
        return self._vectors.embed(texts)

    def add(self, documents: Document | Iterable[Document]) -> AddReport:
        """Add documents; one whose id is there replaces it, unless text and metadata are the same.

        Documents are read one by one, so an iterator may yield more than fit into memory. If one of them cannot be
        added, none is.

        Args:
            documents: Documents with ids. The metadata must be JSON.

        Raises:
            InputError: If a document cannot be used or an id comes twice.
            StoreError: If another process writes to the index, it cannot be written, or it was made with another
                tokenizer.
        """
        with self._mutex:
            self._become_writer()
            counts: Counter[str] = Counter()
            added: list[int] = []
            removed: list[int] = []
            try:
                with self._catalogue.atomic():
                    new = (item for one in _checked(documents) for item in self._put(one, counts, removed))
                    while batch := list(islice(new, BATCH)):
                        ids = [segment_id for segment_id, _ in batch]
                        self._vectors.encode(ids, [text for _, text in batch])
                        added += ids
                    self._vectors.drop(removed)
            except BaseException:
                self._vectors.drop(added)
                raise
            self._is_dirty |= bool(counts["added"] or counts["replaced"])
            return AddReport(counts["added"], counts["unchanged"], counts["replaced"], len(added))

    def delete(self, document_ids: Iterable[str]) -> int:
        """Remove documents and return how many there were; unknown ids are passed over.

        Raises:
            InputError: If ``document_ids`` is a string, or holds something else than strings.
            StoreError: If another process writes to the index, or the index cannot be written.
        """
        wanted = [document_ids] if isinstance(document_ids, str) else list(document_ids)
        if isinstance(document_ids, str) or not all(isinstance(name, str) for name in wanted):
            raise InputError(f"document_ids must be a list of strings, got {document_ids!r}")
        with self._mutex:
            self._become_writer()
            before = self._catalogue.count_documents()
            with self._catalogue.atomic():
                self._vectors.drop(self._catalogue.delete_documents(wanted))
            n_deleted = before - self._catalogue.count_documents()
            self._is_dirty |= bool(n_deleted)
            return n_deleted

    def search(
        self, query: str, k: int = 10, *, where: Where | None = None, mode: Mode = "hybrid", candidates: int = 50
    ) -> list[Hit]:
        """Return the segments that fit a query best.

        Args:
            query: A question or some words.
            k: The most segments to return.
            where: Conditions on the documents' metadata; see ``compile_filter``.
            mode: ``vector`` searches by meaning, ``words`` by BM25, ``hybrid`` by both and joins the two rankings.
            candidates: How long each of the two is.

        Raises:
            InputError: If the query is empty or a condition cannot be used.
            ConfigError: If an option makes no sense.
        """
        _check_search(query, k, mode, candidates)
        with self._mutex:
            self._refresh()
            by_meaning = mode != "words" and not self._vectors.is_empty
        vector = self._vectors.embed([query])[0] if by_meaning else None
        depth = max(k, candidates) if mode == "hybrid" else k
        with self._mutex, self._catalogue.snapshot():
            allowed = self._catalogue.matching(where) if where and vector is not None else None
            near = [] if vector is None else self._vectors.search(vector, depth, allowed=allowed)
            worded = [] if mode == "vector" else self._catalogue.search_words(query, depth, where)
            ranked = near or worded
            if mode == "hybrid":
                ranked = reciprocal_rank_fusion([[name for name, _ in hits] for hits in (near, worded)])
            ranked = ranked[:k]
            segments = {found.id: found for found in self._catalogue.get_segments(name for name, _ in ranked)}
        vector_ranks = {name: rank for rank, (name, _) in enumerate(near, start=1)}
        word_ranks = {name: rank for rank, (name, _) in enumerate(worded, start=1)}
        known = [(name, score) for name, score in ranked if name in segments]
        return [Hit(segments[name], score, vector_ranks.get(name), word_ranks.get(name)) for name, score in known]

    def save(self) -> None:
        """Make what was changed durable and visible to others.

        Raises:
            StoreError: If the folder cannot be written; the changes are then still there, unsaved.
        """
        with self._mutex:
            if self._is_dirty:
                self._save()

    def checkpoint(self) -> None:
        """Make the documents durable without writing the vectors, which takes time in a large index.

        After a crash, vectors made since the last ``save`` are made again when the index is opened: at once if they
        are in a store, else by the encoder.

        Raises:
            StoreError: If the folder cannot be written.
        """
        with self._mutex:
            if self._is_dirty:
                self._catalogue.commit()

    def close(self) -> None:
        """Save what was changed, let others write, and close the files."""
        with self._mutex:
            if self._is_closed:
                return
            try:
                self.save()
            finally:
                self._is_closed = True
                self._catalogue.close()
                if self._writer is not None:
                    self._writer.release()

    def _become_writer(self) -> None:
        if self._is_closed:
            raise StoreError(f"the index {self._folder} is closed")
        if self._writer is None:
            self._writer = WriterLock(self._folder)
            self._refresh()

    def _refresh(self) -> None:
        """Read the vectors again if another process saved some since."""
        if not self._is_dirty and self._catalogue.state()[0] != self._generation:
            self._load()

    def _load(self) -> None:
        """Read the vectors that belong to the catalogue; keep those that had to be made again."""
        with self._catalogue.snapshot():
            self._generation, _ = self._catalogue.state()
            is_mended = self._vectors.load(self._catalogue)
        if self._writer is not None:
            self._is_dirty |= is_mended
        elif is_mended:
            try:
                with WriterLock(self._folder):
                    self._save()
            except StoreError as error:
                _LOG.debug("the vectors of %s were made again in memory only: %s", self._folder, error)

    def _save(self) -> None:
        if self._catalogue.state()[0] != self._generation:
            raise StoreError(f"the index {self._folder} was changed by another process meanwhile")
        generation = self._generation + 1
        sha256 = self._vectors.save(generation)
        # from the commit on, the new file counts
        self._catalogue.set_state(generation, sha256)
        self._catalogue.commit()
        self._generation, self._is_dirty = generation, False
        self._manifest = replace(self._manifest, generation=generation, vectors_sha256=sha256)
        self._manifest.write(self._folder)
        self._vectors.clean(generation)

    def _put(self, document: Document, counts: Counter[str], removed: list[int]) -> list[tuple[int, str]]:
        """Write a document to the catalogue and return its segments' ids with what is to be encoded of them."""
        name = document.id or ""
        known = self._catalogue.document(name)
        if known is not None and known.holds(document):
            counts["unchanged"] += 1
            return []
        counts["added" if known is None else "replaced"] += 1
        removed += self._catalogue.delete_documents([name])
        chunks = split_chunks(document, tokenizer=self._counter(), max_tokens=self._manifest.chunk_tokens)
        ids = self._catalogue.add_document(document, chunks)
        return [(id_, embedded(chunk.context, chunk.text)) for id_, chunk in zip(ids, chunks, strict=True)]

    def _counter(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._manifest.tokenizer)
        self._manifest.check_tokenizer(self._tokenizer.name, self._tokenizer.fingerprint)
        return self._tokenizer


def _checked(documents: Document | Iterable[Document]) -> Iterator[Document]:
    if isinstance(documents, Document):
        documents = [documents]
    if isinstance(documents, (str, bytes, Mapping)) or not isinstance(documents, Iterable):
        raise InputError(f"documents must be a Document or several, got {type(documents).__name__}")
    seen: set[str] = set()
    for document in documents:
        if not isinstance(document, Document):
            raise InputError(f"documents must be Documents with ids, got {document!r:.200}")
        if document.id is None:
            raise InputError("a document needs an id in an index, by which it is replaced: Document(text, id=...)")
        if document.id in seen:
            raise InputError(f"two documents have the id {document.id!r}")
        seen.add(document.id)
        require_unicode(document.text, f"document {document.id!r}")
        yield document


def _check_search(query: object, k: object, mode: object, candidates: object) -> None:
    if not isinstance(query, str) or not query.strip():
        raise InputError(f"query must be a string that is not blank, got {query!r}")
    require_unicode(query, "the query")
    _check_count("k", k)
    _check_count("candidates", candidates)
    if mode not in _MODES:
        raise ConfigError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number above 0, got {value!r}")
