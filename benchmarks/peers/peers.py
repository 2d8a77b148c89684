"""Rival tools as kompakt compressors: each runs in its own environment, behind a runner in another process.

>>> with peers("FOLDER")[0] as peer:
...     peer.compress(documents, query="...", keep=0.5).text

FOLDER is what ``make_environments.py`` filled.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from kompakt.compressor.base import Compressor, Request
from kompakt.compressor.errors import BudgetError, CompressionError, ConfigError
from kompakt.compressor.models.locate import model_path, weights_fingerprint
from kompakt.compressor.results import fits, joined_text
from kompakt.compressor.types import Compressed, Outcome, StageTrace, Status, TextPart

HERE: Final = Path(__file__).resolve().parent

_TORCH: Final = ("torch==2.13.0",)
_SENTENCE_TRANSFORMERS: Final = ("sentence-transformers==6.2.0", "transformers==5.23.0", "numpy==2.4.6")

ENVIRONMENTS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        "llmlingua": (
            _TORCH,
            ("llmlingua==0.2.2", "transformers==4.46.3", "accelerate==1.15.0", "numpy==2.4.6", "nltk==3.10.4"),
        ),
        "selective-context": (
            _TORCH,
            ("transformers==5.23.0", "spacy==3.8.18", "numpy==2.4.6", "nltk==3.10.4"),
            # it asks for spacy 3.2.0, which has no wheel for today's Python
            ("--no-deps", "selective-context==0.1.4"),
        ),
        "headroom": (("headroom-ai==0.42.0",),),
        "llmslim": (_TORCH, ("llmslim==0.11.2", *_SENTENCE_TRANSFORMERS)),
        "entroly": (("entroly==1.0.87", "entroly-core==1.0.87"),),
        "ragcompress": (_TORCH, ("ragcompress==0.1.0", *_SENTENCE_TRANSFORMERS)),
        "kvpress": (
            _TORCH,
            ("kvpress==0.5.5", "transformers==5.2.0", "accelerate==1.15.0", "datasets==5.2.0", "numpy==2.4.6"),
        ),
    }
)
"""Each environment's calls of ``pip install``, in order. torch comes first, so that no other package chooses it."""


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """One rival tool, called in one way.

    Args:
        name: How tables call it.
        distribution: Its name on the package index.
        version: The version that its environment pins.
        runner: The script that runs it, beside this file.
        environment: Its key in ``ENVIRONMENTS``.
        uses_query: Whether its output depends on the question.
        arguments: What the runner gets on its command line.
        models: Names or folders of models, whose folders follow the arguments.
        note: What a reader of its numbers should know.
    """

    name: str
    distribution: str
    version: str
    runner: str
    environment: str
    uses_query: bool
    arguments: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    note: str = ""

    @property
    def requirements(self) -> tuple[tuple[str, ...], ...]:
        """The calls of ``pip install`` that make its environment."""
        return ENVIRONMENTS[self.environment]


def _specs() -> tuple[PeerSpec, ...]:
    lingua = ("llmlingua", "0.2.2", "run_llmlingua.py", "llmlingua")
    slim = ("llmslim", "0.11.2", "run_llmslim.py", "llmslim")
    entroly = ("entroly", "1.0.87", "run_entroly.py", "entroly")
    return (
        PeerSpec(
            "llmlingua", *lingua, uses_query=False,
            arguments=("llmlingua", "bfloat16"), models=("smollm2-135m",),
            note="treats its budget as a target",
        ),
        PeerSpec(
            "longllmlingua", *lingua, uses_query=True,
            arguments=("longllmlingua", "bfloat16"), models=("smollm2-135m",),
            note="treats its budget as a target; puts the likeliest document first",
        ),
        PeerSpec(
            "selective-context-0.1.4", "selective-context", "0.1.4", "run_selective_context.py", "selective-context",
            uses_query=False, models=("smollm2-135m", "en-core-web-sm"),
            note="its budget is a share of phrases, not of tokens",
        ),
        PeerSpec(
            "headroom", "headroom-ai", "0.42.0", "run_headroom.py", "headroom", uses_query=True,
            note="TextCrusher alone; its budget is a share",
        ),
        PeerSpec("llmslim", *slim, uses_query=True, note="its budget is a share"),
        PeerSpec(
            "llmslim-minilm", *slim, uses_query=True, models=("minilm-l6",),
            note="its budget is a share; a bi-encoder stands in for its reranker",
        ),
        PeerSpec("entroly", *entroly, uses_query=True, arguments=("optimize",)),
        PeerSpec("entroly-messages", *entroly, uses_query=True, arguments=("messages",)),
        PeerSpec(
            "ragcompress", "ragcompress", "0.1.0", "run_ragcompress.py", "ragcompress", uses_query=True,
            models=("minilm-l6",), note="a bi-encoder stands in for its reranker",
        ),
    )  # fmt: skip


PEERS: Final[Mapping[str, PeerSpec]] = MappingProxyType({spec.name: spec for spec in _specs()})
"""The peers by name."""

CACHE_PEERS: Final[Mapping[str, PeerSpec]] = MappingProxyType(
    {
        "kvpress": PeerSpec(
            "kvpress", "kvpress", "0.5.5", "run_kvpress.py", "kvpress", uses_query=True,
            arguments=("bfloat16", "1"), models=("smollm2-135m",),
            note="gives no text: its runner answers by itself",
        ),
    }
)  # fmt: skip
"""Peers that keep keys and values. They are asked by ``Peer.ask`` alone, since there is nothing to hand over."""


class Peer(Compressor):
    """A rival tool in its own environment, which is started with the first request and then reused.

    A tool's output is taken as it is: over the budget, or empty. It has no provenance, so ``documents`` and the
    part's spans stay empty.

    Args:
        spec: Which tool, and how it is called.
        folder: The folder of environments.
        seconds: The most that one request may take; as much again is granted for loading.
        python: The interpreter; by default that of the tool's environment.
    """

    emits = "text"

    def __init__(
        self, spec: PeerSpec, folder: str | os.PathLike[str], *, seconds: float = 300.0, python: str | None = None
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.uses_query = spec.uses_query
        self.folder = Path(folder)
        self.seconds = seconds
        self._python = python
        self._process: _Process | None = None
        self._n_asked = 0

    @property
    def options(self) -> dict[str, object]:
        """What decides its output, besides its model."""
        return {
            "distribution": self.spec.distribution,
            "version": self.spec.version,
            "arguments": list(self.spec.arguments),
        }

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of its models' files; empty for a tool without a model."""
        return "".join(weights_fingerprint(model_path(model)) for model in self.spec.models)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the runner; the next request starts it again."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def compress_batch(self, requests: Sequence[Request]) -> list[Compressed]:
        """Compress several requests, one after the other.

        Raises:
            BudgetError: If a budget leaves no token.
            ConfigError: If the tool's environment is missing, or holds another version.
            CompressionError: If the tool fails on a request, or its runner dies or times out on it twice.
        """
        return [self._compress(request) for request in requests]

    def _compress(self, request: Request) -> Compressed:
        tokens_before = request.tokenizer.count(joined_text(request.documents))
        max_tokens = request.budget.resolve(tokens_before)
        if tokens_before <= max_tokens:
            return fits(request.documents, tokens_before, self.name, 0.0)
        if max_tokens < 1:
            raise BudgetError(f"keep={request.budget.keep} of {tokens_before} tokens leaves no token")
        answer, note = self.ask(_message(request, tokens_before, max_tokens))
        text = str(answer["text"])
        tokens_after = request.tokenizer.count(text)
        return Compressed(
            parts=(TextPart(text, spans=(), starts=()),),
            documents=(),
            outcome=Outcome(Status.COMPRESSED),
            tokens_before=tokens_before,
            tokens_after=tokens_after,
            n_bytes=len(text.encode()),
            trace=(StageTrace(self.name, float(answer["seconds"]), tokens_before, tokens_after, note=note),),
            sources=request.documents,
        )

    def ask(self, message: dict[str, object]) -> tuple[dict, str]:
        """Return the runner's answer to a message, and the reason if it had to be restarted for it.

        Raises:
            ConfigError: If the tool's environment is missing, or holds another version.
            CompressionError: If the tool fails on it, or its runner dies or times out on it twice.
        """
        self._n_asked += 1
        row = {"id": self._n_asked, **message}
        note = ""
        try:
            answer = self._running().ask(row, self.seconds)
        except _Gone as first:
            self.close()
            note = f"restarted: {first}"
            try:
                answer = self._running().ask(row, self.seconds)
            except _Gone as second:
                self.close()
                raise CompressionError(f"{self.name} failed twice: {second}") from second
        if "error" in answer:
            raise CompressionError(f"{self.name} failed: {answer['error']}")
        return answer, note

    def _running(self) -> _Process:
        if self._process is None:
            process = _Process(self._command())
            try:
                process.await_ready(self.seconds, self.spec)
            except BaseException:
                process.stop()
                raise
            self._process = process
        return self._process

    def _command(self) -> list[str]:
        python = self._python or str(interpreter(self.folder / self.spec.environment))
        if not os.path.isfile(python):
            raise ConfigError(
                f"{self.name} has no environment: {python!r} is missing; "
                f"run python benchmarks/peers/make_environments.py {self.folder} {self.name}"
            )
        folders = [str(model_path(model)) for model in self.spec.models]
        return [python, str(HERE / self.spec.runner), *self.spec.arguments, *folders]


def peers(folder: str | os.PathLike[str], *, seconds: float = 300.0) -> list[Peer]:
    """Return every peer; none is started, and its environment need not exist yet.

    Args:
        folder: The folder of environments.
        seconds: The most that one request may take.
    """
    return [Peer(spec, folder, seconds=seconds) for spec in PEERS.values()]


def interpreter(environment: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _message(request: Request, tokens_before: int, max_tokens: int) -> dict[str, object]:
    titles = [document.metadata.get("title") for document in request.documents]
    return {
        "documents": [
            {"text": document.text, "title": title if isinstance(title, str) else None}
            for document, title in zip(request.documents, titles, strict=True)
        ],
        "query": request.query,
        "max_tokens": max_tokens,
        "keep": max_tokens / tokens_before,
        "tokens_before": tokens_before,
    }


class _Gone(Exception):  # noqa: N818 - a state of the runner, which the caller turns into an error
    """The runner died or ran out of time; the message says how."""


class _Process:
    """A runner. A thread reads its answers, so that waiting for one can end."""

    _TAIL = 1500

    def __init__(self, command: Sequence[str]) -> None:
        # kompakt must not be importable there, nor anything else of this environment
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - stop() closes it
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment
        )
        self._rows: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def await_ready(self, seconds: float, spec: PeerSpec) -> None:
        row = self._next("ready", None, seconds)
        if not row["ready"]:
            raise CompressionError(f"{spec.name} does not load: {row.get('error')}")
        if row.get("version") != spec.version:
            raise ConfigError(
                f"{spec.name} is version {row.get('version')} in its environment, {spec.version} is wanted; "
                "run make_environments.py again"
            )

    def ask(self, row: dict[str, object], seconds: float) -> dict:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(row).encode() + b"\n")
            self._child.stdin.flush()
        except OSError as error:
            raise _Gone(self._death()) from error
        return self._next("id", row["id"], seconds)

    def stop(self) -> None:
        self._child.kill()
        self._child.wait()
        self._reader.join()
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        self._child.stdout.close()
        self._log.close()

    def _read(self) -> None:
        for line in self._child.stdout:
            # what a peer prints before its runner takes over the output is no answer
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    self._rows.put(row)
        self._rows.put(None)

    def _next(self, key: str, value: object, seconds: float) -> dict:
        """Return the next row that has ``key``, with ``value`` unless that is None."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                row = self._rows.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise _Gone(f"no answer within {seconds:g} s") from None
            if row is None:
                raise _Gone(self._death())
            if key in row and (value is None or row[key] == value):
                return row

    def _death(self) -> str:
        status = self._child.wait()
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - self._TAIL))
        said = self._log.read().decode(errors="replace").strip()
        return f"the runner ended with status {status}" + (f": {said}" if said else "")
