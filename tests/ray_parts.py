"""Jobs on a Ray cluster of two workers that tests can watch."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from corpus_parts import TOKENIZER, Poisonous, compressor_for

from kompakt.retrieval.corpus.batches import Limits
from kompakt.retrieval.corpus.job import JobSettings, run_job
from kompakt.retrieval.corpus.ray_cluster import RayOptions
from kompakt.retrieval.corpus.ray_job import RayRunner
from kompakt.retrieval.corpus.ray_worker import OpenSink
from kompakt.retrieval.corpus.sink import Sink, open_sink

OPTIONS = RayOptions(workers=2, piece_documents=8, object_store_bytes=150 << 20)


@dataclass(frozen=True)
class OpenWatched:
    """Opens a sink that takes its time, and notes for each process how many batches it has put into it.

    Args:
        open_inner: Opens the sink itself.
        folder: Where that is noted: a file a process, with a byte a batch.
        seconds: How long a batch takes at least.
    """

    open_inner: Callable[[], Sink]
    folder: Path
    seconds: float

    def __call__(self):
        inner = self.open_inner()
        add = inner.add
        noted = self.folder / str(os.getpid())
        noted.touch()

        def watched(documents):
            time.sleep(self.seconds)
            report = add(documents)
            with noted.open("a") as file:
                file.write(".")
            return report

        inner.add = watched
        return inner


@dataclass(frozen=True)
class OpenPoisonous:
    """Opens the store at a path with a compressor that some sentences kill."""

    path: Path

    def __call__(self):
        return open_sink(compressor_for(self.path, stages=(Poisonous(),)), tokenizer=TOKENIZER)


def n_batches(folder):
    """Return how many batches each process has noted."""
    return {int(path.name): path.stat().st_size for path in folder.iterdir()}


def ray_job(inputs, folder, *, seconds=0.02, open_inner=None, stages=("lexical",), **options):
    """Run a job on Ray; store, state and what workers note are in ``folder``."""
    store, watched = folder / "store.sqlite", folder / "workers"
    watched.mkdir(exist_ok=True)
    compressor = compressor_for(store, stages=stages)
    settings = JobSettings.of(inputs, compressor, tokenizer=TOKENIZER)
    open_worker = OpenWatched(open_inner or OpenSink(settings, str(store)), watched, seconds)
    return run_job(
        settings,
        folder / "state",
        lambda: open_sink(compressor, tokenizer=TOKENIZER),
        open_runner=lambda sink: RayRunner(sink, open_worker, OPTIONS),
        limits=Limits(batch_documents=48, checkpoint_records=60),
        **options,
    )
