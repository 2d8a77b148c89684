"""Pipelines with a store: nothing changes but the time that they take."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

import kompakt
from kompakt import Budget, ConfigError, Document, InputError, Pipeline
from kompakt.compressor.base import ScoringCompressor, make_request
from kompakt.compressor.config import parse_pipeline
from kompakt.compressor.models.tokenizers import load_tokenizer
from kompakt.compressor.store.artefacts import Artefacts, Recipe
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.store.places import open_store
from kompakt.compressor.types import Status

TEXT = " ".join(f"Sentence number {n} tells of ship {n * 7} and its cargo of glass." for n in range(40))
OTHER = " ".join(f"In the year {n + 1700} the harbour of town {n} was built anew." for n in range(40))
QUERY = "Which ship carried glass?"


@dataclass(frozen=True)
class Slow(ScoringCompressor):
    """Prefers long sentences, after asking a model that is always asked the same way."""

    name: ClassVar[str] = "slow"

    def read_ahead_units(self, jobs, artefacts):
        artefacts.fetch(self.recipe(), [unit.text for units, _ in jobs for unit in units], is_ahead=True)

    def score(self, units, query):
        return units.artefacts.fetch(self.recipe(), [unit.text for unit in units])

    @staticmethod
    def recipe():
        return Recipe(["slow"], lambda texts: [float(sum(map(ord, text)) % 97) for text in texts], encoded, float)


def encoded(score):
    return repr(score).encode()


def without_cost(result):
    return replace(
        result,
        trace=tuple(replace(entry, seconds=0.0, cache_hits=0, cache_misses=0) for entry in result.trace),
    )


def counts(result):
    (entry,) = result.trace
    return entry.cache_hits, entry.cache_misses


@pytest.fixture
def pipelines():
    """Makes pipelines, and closes their stores at the end."""
    made = []

    def make(*stages, **options):
        made.append(Pipeline(stages, **options))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()


def test_to_make_a_pipeline_makes_no_file(tmp_path, empty_cache):
    for store in ("default", tmp_path / "folder" / "a.sqlite"):
        pipeline = Pipeline(["lexical"], store=store)
        assert pipeline.fingerprint == Pipeline(["lexical"]).fingerprint
        pipeline.close()
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_finds_what_the_first_computed(pipelines, tmp_path):
    first = pipelines(Slow(), store=tmp_path / "a.sqlite").compress(TEXT, keep=0.3)
    assert counts(first) == (0, 40)
    second = pipelines(Slow(), store=str(tmp_path / "a.sqlite")).compress(TEXT, keep=0.6)
    assert counts(second) == (40, 0)
    without = Pipeline([Slow()]).compress(TEXT, keep=0.6)
    assert without_cost(second) == without_cost(without)


def test_a_context_that_grew_costs_what_is_new(pipelines, tmp_path):
    pipeline = pipelines(Slow(), store=tmp_path / "a.sqlite")
    pipeline.compress(TEXT, keep=0.3)
    assert counts(pipeline.compress([OTHER, TEXT], keep=0.3)) == (40, 40)


def test_pipelines_do_not_share_unless_they_are_told_to(pipelines, tmp_path):
    pipelines(Slow(), store=tmp_path / "a.sqlite").compress(TEXT, keep=0.3)
    assert counts(pipelines(Slow(), store=tmp_path / "b.sqlite").compress(TEXT, keep=0.3)) == (0, 40)
    shared = MemoryStore()
    assert counts(pipelines(Slow(), store=shared).compress(TEXT, keep=0.3)) == (0, 40)
    assert counts(pipelines(Slow(), store=shared).compress(TEXT, keep=0.3)) == (40, 0)


@pytest.mark.parametrize("place", ["a.sqlite", "memory"])
def test_tenants_never_find_each_others_texts(pipelines, tmp_path, place):
    store = open_store("memory") if place == "memory" else tmp_path / place
    expected = {"one": (0, 40), "two": (0, 40), "": (0, 40)}
    for _ in range(2):
        for tenant, found in expected.items():
            assert counts(pipelines(Slow(), store=store, tenant=tenant).compress(TEXT, keep=0.3)) == found
        expected = dict.fromkeys(expected, (40, 0))
    each = pipelines(Slow(), store=store, tenant="one").compress_each([TEXT], keep=0.3)
    assert each[0].trace[-1].cache_misses == 1
    other = pipelines(Slow(), store=store, tenant="two").compress_each([TEXT], keep=0.3)
    assert other[0].trace[-1].cache_misses == 1


@pytest.mark.parametrize(("tenant", "error"), [(3, ConfigError), (None, ConfigError), ("\ud800", InputError)])
def test_a_tenant_is_a_text(pipelines, tenant, error):
    with pytest.raises(error, match="tenant"):
        pipelines(Slow(), store="memory", tenant=tenant).compress(TEXT, keep=0.3)


def test_requests_of_one_batch_are_counted_apart(pipelines):
    pipeline = pipelines(Slow(), store="memory")
    alone = [Pipeline([Slow()]).compress(text, keep=0.3) for text in (TEXT, OTHER, TEXT)]
    requests = [make_request(text, budget=Budget(keep=0.3)) for text in (TEXT, OTHER, TEXT)]
    found = pipeline.compress_batch(requests)
    assert [counts(result) for result in found] == [(0, 40), (0, 40), (40, 0)]
    assert [without_cost(result) for result in found] == [without_cost(result) for result in alone]
    assert [counts(result) for result in pipeline.compress_batch(requests)] == [(40, 0)] * 3


def test_every_stage_uses_the_store(pipelines):
    pipeline = pipelines("dedup", Slow(), "lexical", Slow(), store="memory")
    first = pipeline.compress(TEXT, keep=0.2)
    second = pipeline.compress(TEXT, keep=0.2)
    assert sum(entry.cache_misses for entry in first.trace) == 40
    assert sum(entry.cache_misses for entry in second.trace) == 0
    assert without_cost(first) == without_cost(second)


def test_the_default_store_lies_in_the_cache(pipelines, empty_cache):
    assert counts(pipelines(Slow(), store="default").compress(TEXT, keep=0.3)) == (0, 40)
    assert (empty_cache / "segments.sqlite").is_file()
    assert counts(pipelines(Slow(), store="default").compress(TEXT, keep=0.3)) == (40, 0)


def test_a_closed_pipeline_opens_its_store_again(pipelines, tmp_path):
    pipeline = pipelines(Slow(), store=tmp_path / "a.sqlite")
    first = pipeline.compress(TEXT, keep=0.3)
    pipeline.close()
    assert not list(tmp_path.glob("*-wal"))
    assert without_cost(pipeline.compress(TEXT, keep=0.3)) == without_cost(first)
    Pipeline(["lexical"]).close()


def test_to_forget_leaves_the_store_alone(pipelines):
    pipeline = pipelines(Slow(), store="memory")
    pipeline.compress(TEXT, keep=0.3)
    pipeline.forget()
    assert counts(pipeline.compress(TEXT, keep=0.3)) == (40, 0)


@pytest.mark.parametrize("store", ["", 3, ["a"], b"a"])
def test_what_is_no_store(store):
    with pytest.raises(ConfigError, match="must be a path, a URL or a store"):
        Pipeline(["lexical"], store=store)


def test_another_programs_database_is_an_error_and_nothing_passes_through(pipelines, tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "a.sqlite") as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(ConfigError, match="another program"):
        pipelines(Slow(), store=tmp_path / "a.sqlite").compress(TEXT, keep=0.3)


def test_a_file_that_cannot_be_used_costs_a_warning(pipelines, tmp_path, caplog):
    (tmp_path / "a.sqlite").write_text("no database " * 100)
    pipeline = pipelines(Slow(), store=tmp_path / "a.sqlite")
    found = pipeline.compress(TEXT, keep=0.3)
    assert without_cost(found) == without_cost(Pipeline([Slow()]).compress(TEXT, keep=0.3))
    assert counts(pipeline.compress(TEXT, keep=0.3)) == (40, 0)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("store", ["default", "memory", "a folder/\u00e9.sqlite", "redis://user:pw@localhost:1/0"])
@pytest.mark.parametrize("tenant", ["", 'a "tenant"\n'])
def test_store_and_tenant_survive_toml(store, tenant):
    pytest.importorskip("redis")
    pipeline = Pipeline(["lexical"], store=store, tenant=tenant)
    again = parse_pipeline(pipeline.to_toml())
    assert (again.store, again.tenant) == (store, tenant)
    assert again.to_toml() == pipeline.to_toml()
    assert again.artefacts().store.location == pipeline.artefacts().store.location


def test_a_path_is_written_as_text_and_a_store_cannot_be(tmp_path):
    pipeline = Pipeline(["lexical"], store=Path("a.sqlite"))
    assert parse_pipeline(pipeline.to_toml()).store == "a.sqlite"
    with pytest.raises(ConfigError, match="has no name; give the pipeline a path or a URL"):
        Pipeline(["lexical"], store=MemoryStore()).to_toml()
    assert "store" not in Pipeline(["lexical"]).to_toml()
    for wrong in ("store = 3", "tenant = 3", "store = ''"):
        with pytest.raises(ConfigError, match=wrong.partition(" ")[0]):
            parse_pipeline(f'{wrong}\n[[stages]]\ncompressor = "lexical"\n')


def test_each_document_is_compressed_once_for_all_calls_and_processes(pipelines, tmp_path):
    documents = [Document(TEXT, "a"), Document(OTHER, "b"), Document("Rome.", "tiny")]
    first = pipelines(Slow(), store=tmp_path / "a.sqlite").compress_each(documents, keep=0.1)
    second = pipelines(Slow(), store=tmp_path / "a.sqlite").compress_each(documents[::-1], keep=0.1)
    assert [result.trace[-1].cache_hits for result in first] == [0, 0, 0]
    assert [result.trace[-1].cache_hits for result in second] == [0, 1, 1]
    assert [result.text for result in second[::-1]] == [result.text for result in first]
    assert second[0].outcome.status is Status.PASSED_THROUGH
    for document, result in zip(documents[:2], first, strict=False):
        alone = Pipeline([Slow()]).compress([document], keep=0.1)
        assert without_cost(replace(result, trace=result.trace[:-1])) == without_cost(alone)


def test_without_a_store_the_memory_of_the_process_serves():
    pipeline = Pipeline([Slow()])
    text = f"{TEXT} And this is said nowhere else."
    assert pipeline.compress_each(text, keep=0.3)[0].trace[-1].cache_hits == 0
    assert Pipeline([Slow()]).compress_each(text, keep=0.3)[0].trace[-1].cache_hits == 1


def test_another_tokenizer_is_another_segment(pipelines, tmp_path):
    import tokenizers

    def save(vocabulary):
        (tmp_path / "tokens").mkdir(exist_ok=True)
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.save(str(tmp_path / "tokens" / "tokenizer.json"))

    pipeline = pipelines(Slow(), store="memory", tokenizer=str(tmp_path / "tokens"))
    save({"?": 0})
    (first,) = pipeline.compress_each(TEXT, max_tokens=60)
    assert pipeline.compress_each(TEXT, max_tokens=60)[0].trace[-1].cache_hits == 1
    save({"?": 0, "ship": 1, "number": 2})
    (second,) = pipeline.compress_each(TEXT, max_tokens=60)
    assert second.trace[-1].cache_hits == 0
    assert second.tokens_after == load_tokenizer(str(tmp_path / "tokens")).count(second.text)
    assert first.outcome.status is second.outcome.status is Status.COMPRESSED


VARIED = [
    TEXT,
    OTHER,
    "# A heading\n\n" + "\n\n".join(f"Paragraph {n}. It says little. Yet it says {n * n}." for n in range(25)),
    "日本語の文です。二つ目の文。" * 20 + "Überall fließt Wasser, sagt man. Niemand weiß, wohin. " * 10,
    '[{"id": 1, "note": "as before"}, {"id": 2, "note": "nothing new was seen on this day"}]',
    "def f(x):\n    y = x + 1\n    return y\n\n" * 8,
    "\n".join(f"2026-05-09 07:29:{n:02} INFO ship {n} arrived with glass" for n in range(30)),
    "Rome is old. " * 3,
]
MODELS = ["extractive", "default", "selective-context", "mmr"]


def texts_for(name):
    # a language model takes its time
    return [text[:500] for text in VARIED[:4]] if name == "selective-context" else VARIED


@pytest.mark.models
@pytest.mark.parametrize("name", MODELS)
class TestWithModels:
    @pytest.mark.parametrize("query", [None, QUERY])
    def test_results_with_and_without_a_store_are_the_same(self, pipelines, tmp_path, name, query):
        def compressed(**options):
            # to forget what other tests left in the memory of the process
            kompakt.load(name).forget()
            return [pipelines(name, **options).compress(text, query=query, keep=0.4) for text in texts_for(name)]

        plain = compressed()
        cold = compressed(store=tmp_path / "a.sqlite")
        warm = compressed(store=tmp_path / "a.sqlite")
        for results in (cold, warm):
            assert list(map(without_cost, results)) == list(map(without_cost, plain))
        assert [counts(result)[0] for result in cold] == [counts(result)[0] for result in plain]
        assert [counts(result)[1] for result in warm] == [0] * len(texts_for(name))
        assert sum(counts(result)[1] for result in cold) > 0
        assert [sum(counts(result)) for result in warm] == [sum(counts(result)) for result in cold]

    def test_segments_are_found_by_another_process(self, pipelines, tmp_path, name):
        first = pipelines(name, store=tmp_path / "a.sqlite").compress_each(texts_for(name), keep=0.4)
        second = pipelines(name, store=tmp_path / "a.sqlite").compress_each(texts_for(name)[::-1], keep=0.4)
        assert [result.text for result in second[::-1]] == [result.text for result in first]
        assert {result.trace[-1].cache_hits for result in second} == {1}

    def test_scores_do_not_depend_on_what_else_is_in_the_batch(self, name):
        compressor = kompakt.load(name)

        def requests():
            store = MemoryStore()
            made = [
                make_request(Document(text, "0"), budget=Budget(keep=0.4), query=QUERY) for text in texts_for(name)
            ]
            return [replace(request, record=True, artefacts=Artefacts(store)) for request in made]

        alone = [compressor.compress_batch([request])[0] for request in requests()]
        together = compressor.compress_batch(requests())
        if rounding_depends_on_rows():
            for one, other in zip(alone, together, strict=True):
                scores = [[decision.score for decision in result.decisions] for result in (one, other)]
                assert scores[0] == pytest.approx(scores[1], abs=0.05 if name != "selective-context" else 0.5)
            return
        for one, other in zip(alone, together, strict=True):
            assert one.decisions == other.decisions
            assert one.text == other.text


def rounding_depends_on_rows():
    """Whether products in bf16 round otherwise with other numbers of rows, as on processors with AMX."""
    import torch

    generator = torch.Generator().manual_seed(0)
    rows, weights = (torch.randn(n, 1536, generator=generator).bfloat16() for n in (512, 384))
    return any(not torch.equal(rows[:n] @ weights.T, (rows @ weights.T)[:n]) for n in (16, 48, 128, 320))


@pytest.mark.models
def test_another_model_in_the_same_folder_never_finds_what_the_first_one_said(pipelines, tmp_path):
    from safetensors.torch import load_file, save_file
    from tiny_models import save_model

    folder = save_model(tmp_path / "tiny")
    weights = folder / "model.safetensors"
    text = " ".join(TEXT.split()[:40]) + "."

    def compressed(store):
        compressor = kompakt.load("selective-context", model=str(folder), granularity="sentence")
        pipeline = pipelines(compressor, store=store)
        request = make_request(text, budget=Budget(keep=0.5))
        (result,) = pipeline.compress_batch([replace(request, record=True)])
        each = pipeline.compress_each(text, keep=0.5)[0]
        return [decision.score for decision in result.decisions], each.text, each.trace[-1].cache_hits

    store = tmp_path / "a.sqlite"
    first = compressed(store)
    assert compressed(store) == (*first[:2], 1)
    tensors = {name: tensor.flip(-1) * 1.5 for name, tensor in load_file(weights).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    at_once = pipelines(kompakt.load("selective-context", model=str(folder), granularity="sentence"), store=store)
    assert at_once.compress_each(text, keep=0.5)[0].trace[-1].cache_hits == 0
    # elsewhere the files of a model are looked at once a second
    time.sleep(1.2)
    second = compressed(store)
    fresh = compressed(tmp_path / "fresh.sqlite")
    assert second == (*fresh[:2], 1)
    assert second[0] != first[0]
