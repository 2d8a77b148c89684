"""Tokens that are drawn, answers that arrive piece by piece, and texts at which they stop."""

import math

import pytest
import tokenizers
from tiny_models import save_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from reader_parts import Twin, ask, part, reader_of  # noqa: E402 (needs torch)

from kompakt.adapters.transformers import Sampling  # noqa: E402
from kompakt.compressor.errors import ConfigError, InputError  # noqa: E402
from kompakt.compressor.types import EmbedsPart  # noqa: E402

N = 10


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("models") / "llama")
    return reader_of(folder), Twin(folder)


@pytest.fixture
def writer(tmp_path):
    """A reader whose tokens are bytes of a text, and that answers with tokens of our choice."""
    folder = save_model(tmp_path / "llama", max_position_embeddings=64)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    reader = reader_of(folder)

    def write(answer, *, ends=True):
        ids = reader._plain_ids(answer) if isinstance(answer, str) else list(answer)
        _force(reader, [*ids, *([0] if ends else [])], len(reader._plain_ids("ask")))
        return ids

    return reader, write


def _force(reader, answer, n_prompt):
    """Let the token that follows each position be a given one."""
    model = reader._lm.model
    model.forward = type(model).forward.__get__(model)
    forward = model.forward

    def forced(*args, **options):
        output = forward(*args, **options)
        place = int(options["position_ids"][0, -1]) - n_prompt
        output.logits[:, -1] = -1e4
        output.logits[:, -1, answer[min(place, len(answer) - 1)]] = 1e4
        return output

    model.forward = forced


def stream(reader, stop="", **options):
    return list(reader.stream(ask("ask", stop=stop), max_new_tokens=40, **options))


def answer_of(reader, stop=""):
    return reader.generate(ask("ask", stop=stop), max_new_tokens=40).text


def ids_of(reader, seed, **options):
    sampling = Sampling(seed=seed, **options)
    return reader.generate(ask("abc"), max_new_tokens=N, sampling=sampling).token_ids


def test_a_seed_decides_the_answer(llama):
    reader, _ = llama
    answers = [ids_of(reader, seed, temperature=2.0) for seed in range(8)]
    assert answers == [ids_of(reader, seed, temperature=2.0) for seed in range(8)]
    assert len(set(answers)) == 8
    sampling = Sampling(temperature=2.0, seed=3)
    streamed = "".join(reader.stream(ask("abc"), max_new_tokens=N, sampling=sampling))
    assert streamed == reader.generate(ask("abc"), max_new_tokens=N, sampling=sampling).text
    (batched,) = reader.generate_batch([ask("abc")], max_new_tokens=N, sampling=sampling)
    assert batched.token_ids == answers[3]


def test_without_a_seed_answers_differ(llama):
    reader, _ = llama
    assert len({ids_of(reader, None, temperature=2.0) for _ in range(6)}) > 1


def test_sampling_leaves_the_callers_source_of_chance_alone(llama):
    reader, _ = llama
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ids_of(reader, 1)
    ids_of(reader, None)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}])
def test_drawing_from_the_most_probable_token_alone_is_greedy(llama, options):
    reader, _ = llama
    greedy = reader.generate(ask("abc"), max_new_tokens=N).token_ids
    assert [ids_of(reader, seed, **options) for seed in range(3)] == [greedy] * 3


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"temperature": 0.7}, None),
        # whole numbers are numbers too
        ({"temperature": 2}, None),
        ({"temperature": 2.0, "top_k": 5}, lambda p: p >= p.sort(descending=True).values[4]),
        ({"top_p": 0.6}, lambda p: _within(p, 0.6)),
    ],
    ids=["cold", "hot", "top-k", "top-p"],
)
def test_first_tokens_are_drawn_as_often_as_they_are_probable(llama, options, kept):
    reader, twin = llama
    p = torch.softmax(twin.logits([0, *twin.ids("abc")])[-1].double() / options.get("temperature", 1.0), dim=-1)
    if kept is not None:
        p = torch.where(kept(p), p, 0.0)
        p = p / p.sum()
    n = 3000
    counts = torch.zeros_like(p)
    for one in reader.generate_batch(
        [ask("abc")] * n, max_new_tokens=1, sampling=Sampling(seed=0, **options)
    ):  # fmt: skip
        # the end of a text is no token of the answer
        counts[one.token_ids[0] if one.token_ids else 0] += 1
    # five standard deviations of a share, of each of some hundred
    assert ((counts / n - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1 / n).all()
    assert (counts > 0).sum() > 2


def _within(p, share):
    """The fewest tokens that together have a share."""
    ordered = p.sort(descending=True)
    n = int((ordered.values.cumsum(0) < share).sum()) + 1
    return p >= ordered.values[n - 1]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"top_k": -1},
    ],
)
def test_senseless_options_are_refused(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} .*got.*{next(iter(options.values()))}"):
        Sampling(**options)


def test_a_stream_joins_to_the_answer(llama):
    reader, twin = llama
    vectors = EmbedsPart(twin.embeds([5, 6]), reader.space, part("s"))
    for prompt in (ask("abc"), ask("x", vectors), ask("")):
        for n in (0, 1, N):
            pieces = list(reader.stream(prompt, max_new_tokens=n))
            assert "".join(pieces) == reader.generate(prompt, max_new_tokens=n).text
            assert all(pieces)


def test_a_stream_gives_each_text_as_soon_as_it_is_sure(writer):
    reader, write = writer
    write("abc d")
    # a space at the end would not be part of the answer
    assert stream(reader) == ["a", "b", "c", " d"]


def test_characters_of_several_tokens_arrive_whole(writer):
    reader, write = writer
    write("é雪😀!")
    assert stream(reader) == ["é", "雪", "😀", "!"]
    assert answer_of(reader) == "é雪😀!"


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_half_a_character_at_the_end_is_shown_as_such(writer, missing):
    reader, write = writer
    ids = write("ok 😀")
    write(ids[:-missing])
    assert "".join(stream(reader)) == answer_of(reader)
    assert answer_of(reader).startswith("ok \ufffd")


def test_half_a_character_in_the_middle_stays(writer):
    reader, write = writer
    snow, rest = write("雪"), write("abc")
    write([*snow[:2], *rest, *snow])
    assert stream(reader) == ["\ufffda", "b", "c", "雪"]
    assert answer_of(reader) == "\ufffdabc雪"


@pytest.mark.parametrize(
    ("answer", "stop", "expected"),
    [
        ("one END two", "END", "one"),
        ("one EN two", "END", "one EN two"),
        ("one EN", "END", "one EN"),
        ("EENEND", "END", "EEN"),
        ("aab", "ab", "a"),
        ("ENDone", "END", ""),
        ("a\n\nb", "\n\n", "a"),
        ("a\n b", "\n\n", "a\n b"),
        ("  a b  ", "!", "a b"),
        ("é雪!", "雪", "é"),
        ("  \n ", "", ""),
    ],
)
def test_stops_and_white_space_are_no_part_of_an_answer(writer, answer, stop, expected):
    reader, write = writer
    write(answer)
    assert answer_of(reader, stop) == expected
    assert "".join(stream(reader, stop)) == expected
    prompts = [ask("ask", stop=stop), ask("ask")]
    stopped, free = reader.generate_batch(prompts, max_new_tokens=40)
    assert (stopped.text, free.text) == (expected, answer.strip())


def test_a_stop_that_has_begun_is_held_back_until_it_is_none(writer):
    reader, write = writer
    write("aENbEND")
    assert stream(reader, "END") == ["a", "ENb"]


def test_nothing_is_read_behind_a_stop(writer):
    reader, write = writer
    write("ab.cdefgh")
    made = reader.generate(ask("ask", stop="."), max_new_tokens=40)
    assert (made.text, made.n_tokens) == ("ab", 3)


def test_a_stream_ends_where_the_answer_may_be_no_longer(writer):
    reader, write = writer
    write("abcdef")
    assert list(reader.stream(ask("ask"), max_new_tokens=3)) == ["a", "b", "c"]


def test_a_stream_that_is_closed_early_stops_reading(writer):
    reader, write = writer
    write("abcdef")
    calls = []
    forward = reader._lm.model.forward

    def counted(*args, **options):
        calls.append(options["position_ids"])
        return forward(*args, **options)

    reader._lm.model.forward = counted
    pieces = reader.stream(ask("ask"), max_new_tokens=40)
    assert [next(pieces), next(pieces)] == ["a", "b"]
    pieces.close()
    assert len(calls) == 2
    assert next(pieces, None) is None
    # and leaves the caller free to compute gradients
    assert not torch.is_inference_mode_enabled()
    assert answer_of(reader) == "abcdef"


def test_a_stream_between_two_pieces_leaves_inference_mode(llama):
    reader, _ = llama
    pieces = reader.stream(ask("abc"), max_new_tokens=N)
    next(pieces)
    assert not torch.is_inference_mode_enabled()
    weight = torch.ones(2, requires_grad=True)
    (weight * 2).sum().backward()
    assert weight.grad.tolist() == [2, 2]


def test_two_streams_at_a_time_do_not_disturb_each_other(llama):
    reader, _ = llama
    prompts = ask("abc"), ask("xyz t")
    one, two = (reader.stream(prompt, max_new_tokens=N) for prompt in prompts)
    pieces = list(zip(one, two, strict=False))
    for prompt, own in zip(prompts, zip(*pieces, strict=True), strict=True):
        assert reader.generate(prompt, max_new_tokens=N).text.startswith("".join(own))
    assert len(pieces) > 1


def test_a_prompt_that_cannot_be_read_fails_the_stream(llama):
    reader, _ = llama
    with pytest.raises(InputError, match="positions and the answer may have 10"):
        next(reader.stream(ask("x" * 20), max_new_tokens=10))
