"""A Ray cluster for a corpus job: where it runs, how it is joined, and the stream of pieces through Ray Data."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from kompakt.compressor.errors import BackendError, ConfigError, KompaktError
from kompakt.compressor.store.places import MEMORY
from kompakt.retrieval.corpus.batches import Limits
from kompakt.retrieval.corpus.ray_worker import (
    ANSWER,
    NUMBER,
    Answer,
    Desk,
    OpenSink,
    Worker,
    decode_answer,
    hand_out,
)
from kompakt.retrieval.corpus.sink import Sink

LOCAL: Final = "local"
AUTO: Final = "auto"
_PIECES_AHEAD: Final = 4
"""Pieces a worker in a batch: enough to go on with while the last ones of the batch before are waited for."""
_CHECKPOINT_BATCHES: Final = 4
_MAX_MESSAGE: Final = 500


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Where a job runs, and how much of it at once.

    Args:
        address: ``local`` starts a cluster on this machine and ends it with the job, ``auto`` finds one that runs,
            and ``host:port`` is that of a cluster's head.
        workers: Processes that compress, each with a CPU and its own models; on this machine as many as it has CPUs.
        gpus: GPUs of each worker; a fraction shares one.
        object_store_bytes: Memory of the object store of a cluster that is started.
        piece_bytes: Bytes of text that a worker is given at once; one document may have more.
        piece_documents: Documents that it is given at once.

    Raises:
        ConfigError: If a value makes no sense.
    """

    address: str = LOCAL
    workers: int | None = None
    gpus: float = 0.0
    object_store_bytes: int = 512 << 20
    piece_bytes: int = 512 << 10
    piece_documents: int = 64

    def __post_init__(self) -> None:
        if not self.address or "://" in self.address:
            raise ConfigError(
                f"the address of a Ray cluster must be {LOCAL}, {AUTO} or host:port of its head, got {self.address!r}"
            )
        if self.workers is None and self.address != LOCAL:
            raise ConfigError(f"say how many workers the cluster {self.address} is to run: --workers N")
        for name in ("workers", "object_store_bytes", "piece_bytes", "piece_documents"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be a whole number above 0, got {value!r}")
        if not 0 <= self.gpus < float("inf"):
            raise ConfigError(f"gpus must be at least 0, got {self.gpus!r}")

    @property
    def n_workers(self) -> int:
        """How many processes compress."""
        return self.workers or os.cpu_count() or 1

    @property
    def limits(self) -> Limits:
        """How much the driver reads before it hands it to the workers, and how much lies between two checkpoints."""
        n_pieces = _PIECES_AHEAD * self.n_workers
        n_bytes, n_documents = n_pieces * self.piece_bytes, n_pieces * self.piece_documents
        usual = Limits()
        return Limits(
            batch_bytes=n_bytes,
            batch_documents=n_documents,
            checkpoint_records=max(usual.checkpoint_records, _CHECKPOINT_BATCHES * n_documents),
            checkpoint_bytes=max(usual.checkpoint_bytes, _CHECKPOINT_BATCHES * n_bytes),
        )


class Cluster:
    """A Ray cluster with a desk, workers, and a stream of pieces from the one to the others."""

    def __init__(self, open_worker: Callable[[], Sink], options: RayOptions) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._is_ours = not ray.is_initialized()
        self._settings: dict[str, Any] = {}
        try:
            if self._is_ours:
                _connect(options)
            if isinstance(open_worker, OpenSink):
                n_nodes = sum(node["Alive"] for node in ray.nodes())
                require_reachable(open_worker.store, is_shared=n_nodes > 1)
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk)
            self._desk = desk.options(max_concurrency=1000).remote()
            self._configure()
            self._answers = self._stream(open_worker, options)
        except BaseException:
            self.close()
            raise

    def _stream(self, open_worker: Callable[[], Sink], options: RayOptions) -> Generator[Any, None, None]:
        import ray.data

        # without a CPU, so that Ray does not have the workers do this as well
        source = ray.data.from_items([0], override_num_blocks=1).map_batches(
            hand_out, batch_size=None, fn_kwargs={"desk": self._desk}, num_cpus=0
        )
        # actors that die are started again, and what they worked on is done again, any number of times: that is Ray
        # Data's default. The desk counts how often
        compressed = source.map_batches(
            Worker,
            fn_constructor_kwargs={"open_sink": open_worker, "desk": self._desk},
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=options.n_workers, max_tasks_in_flight_per_actor=2),
            num_cpus=1,
            num_gpus=options.gpus,
        )
        yield from compressed.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)

    def _configure(self) -> None:
        """Set how Ray Data works in this process, until ``close``."""
        import ray
        from ray.data import DataContext, ExecutionResources

        context = DataContext.get_current()
        execution = copy.deepcopy(context.execution_options)
        execution.preserve_order = False
        n_bytes = ray.cluster_resources().get("object_store_memory", 0.0)
        execution.resource_limits = ExecutionResources.for_limits(object_store_memory=max(1.0, n_bytes / 2))
        wanted = {
            # a row is a piece, which must go on at once and alone
            "target_max_block_size": 1,
            "target_min_block_size": 1,
            "enable_progress_bars": False,
            "enable_auto_log_stats": False,
            "print_on_execution_start": False,
            "execution_options": execution,
        }
        self._settings = {name: getattr(context, name) for name in wanted if hasattr(context, name)}
        for name in self._settings:
            setattr(context, name, wanted[name])
        for handler in logging.getLogger("ray.data").handlers:
            # the one for the terminal; Ray's own files have everything
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.ERROR)

    def send(self, pieces: Sequence[bytes]) -> None:
        """Give pieces to the desk."""
        import ray

        with _named_errors():
            ray.get(self._desk.put.remote([[ray.put(piece)] for piece in pieces]))

    def drop(self, numbers: Sequence[int]) -> None:
        """Tell the desk of pieces that are done with."""
        self._desk.drop.remote(numbers)

    def answers(self) -> list[tuple[int, Answer]]:
        """Wait for the next answers of a worker, and return them with the numbers of their pieces."""
        with _named_errors():
            table = next(self._answers, None)
        if table is None:
            raise BackendError("Ray ended before the job did; its session folder, such as /tmp/ray, has the logs")
        numbers, answers = table[NUMBER].to_pylist(), table[ANSWER].to_pylist()
        return [(number, decode_answer(answer)) for number, answer in zip(numbers, answers, strict=True)]

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        import ray
        from ray.data import DataContext

        for name, value in self._settings.items():
            setattr(DataContext.get_current(), name, value)
        with suppress(Exception):  # what could not be opened, or is gone already
            self._answers.close()
            ray.kill(self._desk)
        if self._is_ours:
            ray.shutdown()


def require_reachable(store: str, *, is_shared: bool) -> None:
    """Check that the workers of a cluster reach a store.

    Args:
        store: Its location.
        is_shared: Whether the cluster has several machines.

    Raises:
        ConfigError: If they do not.
    """
    if store == MEMORY:
        raise ConfigError("workers cannot share the memory of this process: give a path or the URL of a Redis server")
    if is_shared and not is_server(store):
        raise ConfigError(
            f"the store {store} is a file, which the other machines of the cluster cannot use: give the URL of a "
            f"Redis server (redis://host:6379/0) as the store, or run on this machine alone (--ray {LOCAL})"
        )


def is_server(store: str) -> bool:
    """Tell by its location whether a store is a server, which other machines reach as well."""
    return "://" in store


def _connect(options: RayOptions) -> None:
    # read by Ray when it starts; nothing of a corpus is anybody's business
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if options.address != LOCAL:
            ray.init(address=options.address, **shared)
            return
        ray.init(
            address=LOCAL,
            num_cpus=options.n_workers,
            object_store_memory=options.object_store_bytes,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **shared,
        )
    except ConnectionError as error:
        raise ConfigError(f"there is no Ray cluster at {options.address}: {_short(error)}") from error
    except Exception as error:  # whatever it is, Ray is at fault
        raise BackendError(f"Ray does not start: {_short(error)}") from error


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except KompaktError:
        raise
    except Exception as error:  # Ray's own have no common base
        raise BackendError(f"the Ray cluster failed: {_short(error)}") from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_MESSAGE]
