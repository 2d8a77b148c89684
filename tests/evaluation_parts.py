"""Parts of small evaluations: questions, methods that do as they are told, and a reader without a model."""

import dataclasses

from kompakt.compressor.backend import Generation, Likelihood
from kompakt.compressor.base import Compressor
from kompakt.compressor.evaluation.example import Example
from kompakt.compressor.evaluation.runner import Contender, Plan
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.text.lexical import Lexical
from kompakt.compressor.types import Document

TOKENIZER = load_tokenizer("o200k_base")

TIMES = ("seconds", "seconds_to_first", "tokens_per_second", "stamp")
"""Fields of a row that another run need not repeat."""

FACTS = (
    "The bridge was opened in 1402.",
    "Its toll was three groats until the flood.",
    "Petr Parler drew the plans of the tower.",
    "The statue of the saint was cast in Nuremberg.",
    "A tram crossed it for the last time in 1908.",
    "The mill below burned down on 3 May 1689.",
)
TEXT = " ".join(FACTS)


def example(name="q1", text=TEXT, question="Who drew the plans?", answers=("Petr Parler",), **fields):
    documents = (Document(text, id="bridge"),) if isinstance(text, str) else tuple(text)
    return Example(name, fields.pop("task", "questions"), documents, question, tuple(answers), **fields)


class Told(Compressor):
    """Compresses as ``lexical`` does, keeps a record, and fails where it is told to.

    Args:
        name: Its name.
        uses_query: Whether it says that the query matters.
        error: Raised for contexts that hold ``where``.
        where: What such contexts hold.
        version: Decides its fingerprint.
    """

    def __init__(self, name="told", *, uses_query=True, error=None, where="", version=1):
        self.name = name
        self.uses_query = uses_query
        self.version = version
        self.calls = []
        self.n_forgotten = 0
        self._error, self._where = error, where

    @property
    def options(self):
        return {"version": self.version}

    def forget(self):
        self.n_forgotten += 1

    def compress_batch(self, requests):
        if self._error is not None and any(self._where in one.text for r in requests for one in r.documents):
            raise self._error
        # a run warms methods up with a text that is its own question
        own = [request for request in requests if request.query != request.documents[0].text]
        self.calls += [(request.query, request.budget.keep) for request in own]
        return Lexical().compress_batch(
            [request if self.uses_query else dataclasses.replace(request, query=None) for request in requests]
        )


class Reader:
    """Answers what it is told to, whatever it reads.

    Args:
        answer: The answer.
        error: Raised instead.
        tells: Whether it can tell likelihoods.
    """

    name = "reader"
    accepts = frozenset({"text"})
    max_positions = None
    tokenizer = TOKENIZER

    def __init__(self, answer="Petr Parler", *, error=None, tells=True, fingerprint="a reader"):
        self.fingerprint = fingerprint
        self.calls = []
        self._answer, self._error, self._tells = answer, error, tells

    def generate(self, prompt, *, max_new_tokens, targets=()):
        self.calls.append((prompt, max_new_tokens, tuple(targets)))
        if self._error is not None:
            raise self._error
        likelihoods = tuple(Likelihood(-3.0 * len(target), 2 * len(target)) for target in targets)
        answer = self._answer if max_new_tokens else ""
        return Generation(answer, 40, 2, 0.25, 50.0, likelihoods if self._tells else None)


def plan(examples=None, contenders=(), **options):
    examples = [example()] if examples is None else examples
    by_task = examples if isinstance(examples, dict) else {"questions": examples}
    made = [one if isinstance(one, Contender) else Contender(one) for one in contenders]
    return Plan(by_task, made, options.pop("keeps", (0.5, 0.25)), TOKENIZER, **options)


def without_times(rows):
    """Return rows as a run on any machine must repeat them."""
    kept = [dataclasses.asdict(row) for row in rows]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in kept]
