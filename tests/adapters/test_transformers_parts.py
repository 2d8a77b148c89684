"""Vectors in the place of tokens: against the tokens that they are the embeddings of."""

import pytest
from tiny_models import CONTEXT, FAMILIES, save_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from reader_parts import Twin, ask, part, reader_of  # noqa: E402 (needs torch)

from kompakt.compressor.errors import ConfigError, InputError  # noqa: E402
from kompakt.compressor.types import EmbedsPart  # noqa: E402

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return reader_of(folder), Twin(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("models") / "llama")
    return reader_of(folder), Twin(folder)


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("models") / "opt", "opt")
    return reader_of(folder), Twin(folder)


def vectors_of(n=3, *, seed=0, width=32):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def embeds(reader, vectors, **options):
    return EmbedsPart(vectors, reader.space, part("the source"), **options)


def positions_of(reader, monkeypatch):
    """The position ids of every pass that follows."""
    seen = []
    forward = reader._lm.model.forward

    def spy(*args, **options):
        seen.append(options["position_ids"][0].tolist())
        return forward(*args, **options)

    monkeypatch.setattr(reader._lm.model, "forward", spy)
    return seen


def test_embeddings_of_tokens_are_read_as_the_tokens(family):
    reader, twin = family
    ids = twin.ids("cde")
    (found,) = reader.logits([ask("ab", embeds(reader, twin.embeds(ids)), "fg")])
    torch.testing.assert_close(found, twin.logits([0, *twin.ids("abcdefg")]), **CLOSE)
    prompt = ask(embeds(reader, twin.embeds(ids)), before="ab", after="fg")
    made = reader.generate(prompt, max_new_tokens=5, targets=("yes",))
    assert list(made.token_ids) == twin.greedy([0, *twin.ids("abcdefg")], n=5)
    assert made.n_positions == 8
    assert made.likelihoods[0].total == pytest.approx(
        twin.likelihood([0, *twin.ids("abcdefg")], twin.ids("yes")), abs=1e-4
    )


def test_vectors_that_no_token_has(family):
    reader, twin = family
    first, second = vectors_of(seed=1), vectors_of(2, seed=2)
    (found,) = reader.logits([ask(embeds(reader, first), "ab", embeds(reader, second))])
    items = [0], first, twin.ids("ab"), second
    torch.testing.assert_close(found, twin.logits(*items), **CLOSE)
    made = reader.generate(ask(embeds(reader, first), "ab", embeds(reader, second)), max_new_tokens=5)
    assert list(made.token_ids) == twin.greedy(*items, n=5)


def test_a_prompt_of_vectors_alone(family):
    reader, twin = family
    bare = reader_of(reader.model, begins=False)
    vectors = vectors_of()
    prompt = ask(embeds(bare, vectors))
    torch.testing.assert_close(bare.logits([prompt])[0], twin.logits(vectors), **CLOSE)
    made = bare.generate(prompt, max_new_tokens=5)
    assert list(made.token_ids) == twin.greedy(vectors, n=5)
    assert made.n_positions == 3
    assert bare.generate_batch([prompt, prompt], max_new_tokens=5)[1].token_ids == made.token_ids


def test_texts_on_both_sides_of_vectors_are_tokenised_apart(llama):
    reader, twin = llama
    assert twin.ids(" t") != twin.ids(" ") + twin.ids("t")
    vectors = vectors_of(1)
    split = reader.logits([ask("x ", embeds(reader, vectors), "t")])[0]
    torch.testing.assert_close(split, twin.logits([0], twin.ids("x "), vectors, twin.ids("t")), **CLOSE)
    # where no vectors are between them, tokens reach over the border
    joined = reader.logits([ask("x ", "t", embeds(reader, vectors))])[0]
    torch.testing.assert_close(joined, twin.logits([0], twin.ids("x t"), vectors), **CLOSE)


def test_no_vectors_at_all_take_no_place_but_divide_texts(llama):
    reader, twin = llama
    nothing = embeds(reader, vectors_of(0))
    assert reader.generate(ask(nothing, "ab"), max_new_tokens=1).n_positions == 3
    (found,) = reader.logits([ask("x ", nothing, "t")])
    torch.testing.assert_close(found, twin.logits([0, *twin.ids("x "), *twin.ids("t")]), **CLOSE)


def test_positions_are_contiguous_over_text_vectors_and_answer(family, monkeypatch):
    reader, _ = family
    seen = positions_of(reader, monkeypatch)
    reader.generate(ask("ab", embeds(reader, vectors_of()), "c"), max_new_tokens=3)
    assert seen == [[0, 1, 2, 3, 4, 5, 6], [7], [8]]


@pytest.mark.parametrize("begins", [False, True])
def test_vectors_without_positions_on_a_model_of_learned_ones(opt, begins, monkeypatch):
    _, twin = opt
    reader = reader_of(opt[0].model, begins=begins)
    seen = positions_of(reader, monkeypatch)
    vectors, head = vectors_of(), [0] * begins
    prompt = ask(embeds(reader, vectors, placement="none"), "abc")
    made = reader.generate(prompt, max_new_tokens=3)
    following = list(range(len(head), len(head) + 3))
    expected = [*range(len(head)), -1, -1, -1, *following]
    assert seen == [expected, [following[-1] + 1], [following[-1] + 2]]
    items = ([head] if head else []) + [vectors, twin.ids("abc")]
    torch.testing.assert_close(reader.logits([prompt])[0], twin.logits(*items, positions=expected), **CLOSE)
    answer = []
    for _ in range(3):
        more = [*items, answer] if answer else items
        positions = expected + [following[-1] + 1 + n for n in range(len(answer))]
        answer.append(int(twin.logits(*more, positions=positions)[-1].argmax()))
    assert list(made.token_ids) == answer
    assert made.n_positions == len(expected)
    numbered = ask(embeds(reader, vectors), "abc")
    assert not torch.allclose(reader.logits([prompt])[0], reader.logits([numbered])[0], atol=1e-2)


def test_vectors_without_positions_do_not_shorten_the_text(opt):
    reader, _ = opt
    free = embeds(reader, vectors_of(20), placement="none")
    made = reader.generate(ask(free, "x" * (CONTEXT - 4)), max_new_tokens=3)
    assert made.n_positions == 20 + CONTEXT - 3
    with pytest.raises(InputError, match=f"prompt has {CONTEXT - 3} positions and the answer may have 4"):
        reader.generate(ask(free, "x" * (CONTEXT - 4)), max_new_tokens=4)
    with pytest.raises(InputError, match="prompt has 37 positions"):
        reader.generate(ask(embeds(reader, vectors_of(20)), "x" * 16), max_new_tokens=4)


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "opt"])
def test_vectors_without_positions_are_refused_by_other_models(tmp_path, kind):
    reader = reader_of(save_model(tmp_path / kind, kind))
    with pytest.raises(InputError, match=rf"no positions, which decoders of type '{kind}(_text)?' do not know"):
        reader.generate(ask(embeds(reader, vectors_of(), placement="none"), "a"), max_new_tokens=1)


def unreadable(reader):
    """Parts that the reader cannot read, and why."""
    return [
        (EmbedsPart(vectors_of(), "f" * 64, part("ab")), "was made for the decoder f{12}, and this one is "),
        (EmbedsPart(vectors_of(width=31), reader.space, part("ab")), "are 31 wide and the decoder's embeddings 32"),
        (EmbedsPart(vectors_of(), reader.space, part("ab"), "none"), "have no positions"),
    ]


@pytest.mark.parametrize("which", range(3))
def test_what_cannot_be_read_is_refused_or_read_as_text(llama, which):
    reader, _ = llama
    wrong, reason = unreadable(reader)[which]
    good = embeds(reader, vectors_of())
    prompt = ask("x", wrong, "y", good, "z")
    for call in (
        lambda: reader.generate(prompt, max_new_tokens=1),
        lambda: reader.generate_batch([prompt], max_new_tokens=1),
        lambda: list(reader.stream(prompt, max_new_tokens=1)),
        lambda: reader.logits([prompt]),
        lambda: reader.hidden([prompt]),
    ):
        with pytest.raises(InputError, match=f"cannot read a part: .*{reason}"):
            call()
    lenient = reader_of(reader.model, on_mismatch="text")
    expected = lenient.generate(ask("xaby", good, "z"), max_new_tokens=5)
    assert expected.notes == ()
    for made in (
        lenient.generate(prompt, max_new_tokens=5),
        lenient.generate_batch([ask("other"), prompt], max_new_tokens=5)[1],
    ):
        assert (made.text, made.token_ids, made.n_positions) == (
            expected.text, expected.token_ids, expected.n_positions,
        )  # fmt: skip
        assert len(made.notes) == 1
        assert made.notes[0].startswith("read as text: it")
    assert "".join(lenient.stream(prompt, max_new_tokens=5)) == expected.text


def test_each_part_that_is_read_as_text_has_its_note(llama):
    lenient = reader_of(llama[0].model, on_mismatch="text")
    wrong = [one for one, _ in unreadable(lenient)]
    made = lenient.generate(ask(*wrong), max_new_tokens=1)
    assert len(made.notes) == len(set(made.notes)) == 3
    assert made.n_positions == 7


def test_on_mismatch_is_checked(llama):
    with pytest.raises(ConfigError, match="on_mismatch must be 'raise' or 'text', got 'skip'"):
        reader_of(llama[0].model, on_mismatch="skip")


def test_a_model_whose_embeddings_are_narrower_than_its_states_reads_text_alone(tmp_path):
    folder = save_model(tmp_path / "opt", "opt", word_embed_proj_dim=16)
    reader, twin = reader_of(folder), Twin(folder)
    assert list(reader.generate(ask("ab"), max_new_tokens=4).token_ids) == twin.greedy([0, *twin.ids("ab")], n=4)
    with pytest.raises(InputError, match="16 wide and its hidden states 32"):
        reader.generate(ask(embeds(reader, vectors_of(width=16))), max_new_tokens=1)


@pytest.mark.parametrize(
    ("does", "reason"), [("raises", "they read no embeddings: not here"), ("changes", "need token ids beside")]
)
def test_a_model_that_does_not_read_embeddings_is_refused(tmp_path, monkeypatch, does, reason):
    reader = reader_of(save_model(tmp_path / "llama"))
    body = reader._lm.model.base_model
    forward = body.forward

    def without_embeddings(*args, **options):
        if options.get("inputs_embeds") is None:
            return forward(*args, **options)
        if does == "raises":
            raise ValueError("not here")
        return forward(*args, **options | {"inputs_embeds": options["inputs_embeds"] + 1})

    monkeypatch.setattr(body, "forward", without_embeddings)
    assert reader.generate(ask("ab"), max_new_tokens=1).n_tokens == 1
    prompt = ask(embeds(reader, vectors_of()))
    with pytest.raises(InputError, match=f"models of type 'llama' are not supported here: .*{reason}"):
        reader.generate(prompt, max_new_tokens=1)
    made = reader_of(reader.model, on_mismatch="text").generate(prompt, max_new_tokens=1)
    assert reason in made.notes[0]


def test_vectors_are_read_in_the_number_format_of_the_model(llama):
    reader, twin = llama
    vectors = vectors_of().to(torch.bfloat16)
    (found,) = reader.logits([ask(embeds(reader, vectors), "a")])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, twin.logits([0], vectors.float(), twin.ids("a")), **CLOSE)


def test_logits_and_states_of_every_position(family):
    reader, twin = family
    vectors = vectors_of()
    prompts = [ask("ab", embeds(reader, vectors)), ask("abcdefgh"), ask("")]
    items = [([0], twin.ids("ab"), vectors), ([0], twin.ids("abcdefgh")), ([0],)]
    for logits, hidden, own in zip(reader.logits(prompts), reader.hidden(prompts), items, strict=True):
        expected = twin.output(*own, output_hidden_states=True)
        assert logits.shape == (sum(map(len, own)), reader._lm.model.config.vocab_size)
        assert hidden.shape == (3, len(logits), 32)
        torch.testing.assert_close(logits, expected.logits[0], **CLOSE)
        torch.testing.assert_close(hidden, torch.cat(expected.hidden_states), **CLOSE)
        states = twin.model.base_model(inputs_embeds=twin.embeds(*own)[None]).last_hidden_state[0]
        torch.testing.assert_close(hidden[-1], states, **CLOSE)


def test_gradients_flow_to_vectors_and_not_to_the_model(family):
    reader, twin = family
    vectors, theirs = (vectors_of().requires_grad_() for _ in range(2))
    prompt = ask("ab", embeds(reader, vectors), "c")
    (logits,), (hidden,) = reader.logits([prompt]), reader.hidden([prompt])
    (logits[-1, 5] + hidden[1, -1, 3]).backward()
    table = twin.model.get_input_embeddings()
    head, tail = (table(torch.tensor(ids)).detach() for ids in ([0, *twin.ids("ab")], twin.ids("c")))
    expected = twin.model(inputs_embeds=torch.cat([head, theirs, tail])[None], output_hidden_states=True)
    (expected.logits[0, -1, 5] + expected.hidden_states[1][0, -1, 3]).backward()
    assert theirs.grad.abs().max() > 1e-3
    torch.testing.assert_close(vectors.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in reader._lm.model.parameters())
    assert not reader.logits([ask("ab", embeds(reader, vectors_of()))])[0].requires_grad


def test_vectors_that_want_gradients_are_answered_too(llama):
    reader, _ = llama
    prompt, wanting = (ask(embeds(reader, one), "a") for one in (vectors_of(), vectors_of().requires_grad_()))
    assert reader.generate(wanting, max_new_tokens=4).token_ids == reader.generate(prompt, max_new_tokens=4).token_ids
    assert "".join(reader.stream(wanting, max_new_tokens=4)) == reader.generate(prompt, max_new_tokens=4).text
