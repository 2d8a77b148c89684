"""Greedy answers, alone and in batches, against the library's own loop and against the prompts one by one."""

import json

import pytest
from tiny_models import FAMILIES, save_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from reader_parts import Twin, ask, part, reader_of  # noqa: E402 (needs torch)

from kompakt.adapters import transformers as adapter  # noqa: E402
from kompakt.adapters.transformers import Sampling  # noqa: E402
from kompakt.compressor.errors import InputError  # noqa: E402
from kompakt.compressor.types import CachePart, EmbedsPart  # noqa: E402

TEXTS = ["abc", "", "0123456789", "x t t y", "Ünï 雪"]
N = 8


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return reader_of(folder), Twin(folder)


def with_settings(tmp_path, kind, **settings):
    """A reader and a twin whose own configuration says how answers are written."""
    folder = save_model(tmp_path / kind, kind)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | settings), encoding="utf-8")
    return reader_of(folder), Twin(folder)


def prompts_of(twin, texts):
    return [[0, *twin.ids(text)] for text in texts]


def tokens(generations):
    return [list(one.token_ids) for one in generations]


def embeds_of(reader, twin, ids):
    return EmbedsPart(twin.embeds(ids), reader.space, part("the source"))


def cache_of(reader, twin, ids):
    return CachePart(*map(tuple, twin.cache(ids)), reader.space, part("the source"), tuple(range(len(ids))))


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_equals_that_of_the_librarys_own_loop(family, text):
    reader, twin = family
    made = reader.generate(ask(text), max_new_tokens=N)
    assert list(made.token_ids) == twin.generated(prompts_of(twin, [text]), N)[0]
    assert made.n_tokens == len(made.token_ids)


def test_a_batch_equals_that_of_the_librarys_own_loop(family):
    reader, twin = family
    made = reader.generate_batch([ask(text) for text in TEXTS], max_new_tokens=N)
    assert tokens(made) == twin.generated(prompts_of(twin, TEXTS), N)
    assert len({one.token_ids for one in made}) > 1


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 0.3, "no_repeat_ngram_size": 3},
    ],
)
def test_a_models_own_penalties_count_greedily_too(tmp_path, kind, settings):
    reader, twin = with_settings(tmp_path, kind, **settings)
    # one by one: the library's loop takes padding for a repetition
    expected = [twin.generated([ids], N)[0] for ids in prompts_of(twin, TEXTS)]
    assert tokens(reader.generate(ask(text), max_new_tokens=N) for text in TEXTS) == expected
    assert tokens(reader.generate_batch([ask(text) for text in TEXTS], max_new_tokens=N)) == expected
    # a model without them answers otherwise, so that the test can fail
    assert expected != Twin(save_model(tmp_path / "plain", kind)).generated(prompts_of(twin, TEXTS), N)


def test_tokens_that_a_model_suppresses_are_never_written(tmp_path):
    plain = Twin(save_model(tmp_path / "plain"))
    banned = sorted({token for row in plain.generated(prompts_of(plain, TEXTS), N) for token in row})
    reader, twin = with_settings(tmp_path, "llama", suppress_tokens=banned)
    expected = twin.generated(prompts_of(twin, TEXTS), N)
    assert tokens(reader.generate_batch([ask(text) for text in TEXTS], max_new_tokens=N)) == expected
    assert not {token for row in expected for token in row} & set(banned)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_several_tokens_that_end_texts(tmp_path, kind):
    plain = Twin(save_model(tmp_path / "plain", kind))
    free = plain.generated(prompts_of(plain, TEXTS), N)
    # one ends the first answer at once, others end others later
    ends = [0, free[0][0], free[2][3], free[3][5]]
    reader, twin = with_settings(tmp_path, kind, eos_token_id=ends)
    expected = twin.generated(prompts_of(twin, TEXTS), N)
    assert tokens(reader.generate(ask(text), max_new_tokens=N) for text in TEXTS) == expected
    made = reader.generate_batch([ask(text) for text in TEXTS], max_new_tokens=N)
    assert tokens(made) == expected
    assert expected[0] == []
    assert (made[0].text, made[0].n_tokens) == ("", 0)
    assert any(0 < len(row) < N for row in expected)


def mixed(reader, twin):
    """Prompts of text, of vectors and of caches, of many lengths."""
    vectors = embeds_of(reader, twin, twin.ids("vec"))
    # caches of models without rotations stay where they were made: at the beginning
    cache = cache_of(reader, twin, twin.ids("cached"))
    return [
        ask("abc"),
        ask(vectors),
        ask("long text", vectors, "tail"),
        ask(cache, "a"),
        ask(""),
        ask(cache, vectors, "behind"),
        ask(vectors, vectors, before="b", after="a"),
    ]


def unbegun(reader):
    return reader_of(reader.model, begins=False)


@pytest.mark.parametrize(
    "places", [[0, 4, 0], [1, 2, 6], [3, 5, 3], range(7), [6, 5, 4, 3, 2, 1, 0], [5, 0], [1]], ids=str
)
def test_a_batch_equals_its_prompts_one_by_one(family, places):
    reader, twin = family
    prompts = mixed(reader, twin)
    if reader._lm.model.config.model_type in ("gpt2", "opt"):
        # without a beginning, since their caches cannot stand behind it
        reader = unbegun(reader)
        prompts[4] = ask("x")
    prompts = [prompts[place] for place in places]
    together = reader.generate_batch(prompts, max_new_tokens=6)
    alone = [reader.generate(prompt, max_new_tokens=6) for prompt in prompts]
    assert tokens(together) == tokens(alone)
    assert [(one.text, one.n_positions, one.notes) for one in together] == [
        (one.text, one.n_positions, one.notes) for one in alone
    ]


def test_prompts_of_one_batch_give_different_answers(family):
    reader, twin = family
    reader = unbegun(reader)
    prompts = [ask("x") if prompt == ask("") else prompt for prompt in mixed(reader, twin)]
    assert len({one.token_ids for one in reader.generate_batch(prompts, max_new_tokens=6)}) > 2


def test_no_prompts_give_no_answers(family):
    reader, _ = family
    assert reader.generate_batch([], max_new_tokens=3) == []
    assert reader.logits([]) == reader.hidden([]) == []


@pytest.mark.parametrize("limit", [1, 12, 25])
def test_many_prompts_are_cut_into_batches_and_keep_their_order(family, limit, monkeypatch):
    reader, _ = family
    prompts = [ask("abcdefghij"[:n]) for n in (3, 9, 1, 0, 5, 9, 3)]
    expected = [reader.generate(prompt, max_new_tokens=4) for prompt in prompts]
    monkeypatch.setattr(adapter, "_BATCH_POSITIONS", limit)
    made = reader.generate_batch(prompts, max_new_tokens=4)
    assert tokens(made) == tokens(expected)
    assert [one.n_positions for one in made] == [4, 10, 2, 1, 6, 10, 4]


def test_batches_stay_below_the_limit(family, monkeypatch):
    reader, _ = family
    sizes = []
    forward = reader._lm.model.forward

    def spy(*args, **options):
        sizes.append(tuple(options["input_ids"].shape))
        return forward(*args, **options)

    monkeypatch.setattr(reader._lm.model, "forward", spy)
    monkeypatch.setattr(adapter, "_BATCH_POSITIONS", 12)
    reader.generate_batch([ask("abcdefghij"[:n]) for n in (3, 9, 1, 0, 5)], max_new_tokens=1)
    assert sizes == [(1, 10), (2, 6), (2, 2)]


def test_one_prompt_that_is_too_long_fails_the_batch(family):
    reader, _ = family
    with pytest.raises(InputError, match="has 24 positions and the answer may have 1"):
        reader.generate_batch([ask("abc"), ask("x" * 23)], max_new_tokens=1)


def test_stops_of_a_batch_are_each_prompts_own(family):
    reader, _ = family
    whole = reader.generate(ask("abc"), max_new_tokens=N).text
    stop = next((one for one in whole[1:] if one != whole[0] and not one.isspace()), whole[-1])
    stopped, free = reader.generate_batch([ask("abc", stop=stop), ask("abc")], max_new_tokens=N)
    assert stopped.text == whole.partition(stop)[0].strip()
    assert stopped.text != free.text == whole


@pytest.mark.filterwarnings("ignore:Passing `(repetition_penalty|no_repeat_ngram_size)` with `inputs_embeds`")
def test_a_prompt_of_vectors_alone_is_penalised_for_its_answer_only(tmp_path):
    reader, twin = with_settings(tmp_path, "llama", repetition_penalty=5.0, no_repeat_ngram_size=1)
    bare = unbegun(reader)
    vectors = twin.embeds([5, 6, 7])
    made = bare.generate(ask(EmbedsPart(vectors, bare.space, part("s"))), max_new_tokens=N)
    expected = twin.model.generate(
        inputs_embeds=vectors[None],
        attention_mask=torch.ones(1, 3),
        max_new_tokens=N,
        do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    assert list(made.token_ids) == expected[0].tolist()
    assert len(set(made.token_ids)) == N


def test_batches_of_one_call_draw_from_one_source_of_chance(tmp_path, monkeypatch):
    reader = reader_of(save_model(tmp_path / "llama"))
    monkeypatch.setattr(adapter, "_BATCH_POSITIONS", 1)
    made = reader.generate_batch([ask("abc")] * 8, max_new_tokens=N, sampling=Sampling(temperature=3.0, seed=1))
    assert len({one.token_ids for one in made}) > 4
