"""Key-value caches in the place of text: against the text that they were taken from."""

import pytest
from tiny_models import CONTEXT, SCALED_ROPE, save_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from reader_parts import Twin, ask, part, reader_of  # noqa: E402 (needs torch)

from kompakt.compressor.errors import InputError  # noqa: E402
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache  # noqa: E402
from kompakt.compressor.types import CachePart, EmbedsPart  # noqa: E402

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ROTATING = ("llama", "mistral", "window", "qwen2", "qwen3", "gemma2", "gemma3", "llama3-scaled")
LEARNED = ("gpt2", "opt")
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}


def saved(folder, kind):
    if kind == "llama3-scaled":
        return save_model(folder, "llama", rope_parameters=SCALED_ROPE)
    if kind == "window":
        # its layers see four tokens back
        return save_model(folder, "mistral", sliding_window=4)
    return save_model(folder, kind)


@pytest.fixture(scope="module", params=ROTATING)
def rotating(request, tmp_path_factory):
    folder = saved(tmp_path_factory.mktemp("models") / request.param, request.param)
    return reader_of(folder, begins=False), Twin(folder)


@pytest.fixture(scope="module", params=LEARNED)
def learned(request, tmp_path_factory):
    folder = saved(tmp_path_factory.mktemp("models") / request.param, request.param)
    return reader_of(folder, begins=False), Twin(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("models") / "llama")
    return reader_of(folder, begins=False), Twin(folder)


def cut(cache, start, end):
    return [tuple(tensor[:, start:end] for tensor in several) for several in cache]


def cached(reader, twin, ids, start=0, end=None, **options):
    """The keys and values of some of the tokens of a text."""
    end = len(ids) if end is None else end
    options.setdefault("rope", tuple(range(start, end)))
    return CachePart(*cut(twin.cache(ids), start, end), reader.space, part("the source"), **options)


def turned(twin, cache, shifts):
    """Turn each key by a number of positions, as the multiplication of complex numbers."""
    keys = []
    config = twin.model.config
    for layer, key in enumerate(cache.keys):
        rope = config.rope_parameters
        if "rope_theta" not in rope:
            rope = rope[config.layer_types[layer]]
        half = key.shape[2] // 2
        if rope["rope_type"] == "default":
            frequencies = rope["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        else:
            frequencies = twin.model.base_model.rotary_emb.inv_freq.double()
        angles = torch.tensor(shifts, dtype=torch.float64)[:, None] * frequencies
        rotated = torch.complex(key[..., :half].double(), key[..., half:].double()) * torch.polar(
            torch.ones_like(angles), angles
        )
        keys.append(torch.cat([rotated.real, rotated.imag], dim=-1).float())
    return tuple(keys)


def unrotated(twin, cache):
    return CachePart(turned(twin, cache, [-one for one in cache.rope]), cache.values, cache.space, cache.source)


def test_a_cache_at_the_start_is_read_as_its_text(rotating):
    reader, twin = rotating
    context, tail = [0, *twin.ids("cached")], twin.ids("tail")
    prompt = ask(cached(reader, twin, context), "tail")
    torch.testing.assert_close(reader.logits([prompt])[0], twin.logits(context + tail)[-4:], **CLOSE)
    hidden = torch.cat(twin.output(context + tail, output_hidden_states=True).hidden_states)
    torch.testing.assert_close(reader.hidden([prompt])[0], hidden[:, -4:], **CLOSE)
    made = reader.generate(prompt, max_new_tokens=6, targets=("yes",))
    assert list(made.token_ids) == twin.greedy(context + tail, n=6)
    assert made.likelihoods[0].total == pytest.approx(twin.likelihood(context + tail, twin.ids("yes")), abs=1e-4)
    assert made.n_positions == 11


def test_keys_without_rotation_get_that_of_their_place(rotating):
    reader, twin = rotating
    context, tail = [0, *twin.ids("cached")], twin.ids("tail")
    whole = cached(reader, twin, context)
    bare = unrotated(twin, whole)
    assert not torch.allclose(bare.keys[0], whole.keys[0], atol=1e-2)
    expected = twin.logits(context + tail)[-4:]
    torch.testing.assert_close(reader.logits([ask(bare, "tail")])[0], expected, **CLOSE)
    # behind two tokens, as if it had been rotated there
    middle = cached(reader, twin, context + tail, 2, 7)
    prompt = ask("?", "?", unrotated(twin, middle), "il")
    placed = ask("?", "?", middle, "il")
    torch.testing.assert_close(reader.logits([prompt])[0], reader.logits([placed])[0], **CLOSE)


def test_keys_are_turned_from_other_positions_to_their_place(rotating):
    reader, twin = rotating
    context, tail = [0, *twin.ids("cached")], twin.ids("tail")
    start = cached(reader, twin, context)
    with torch.no_grad():
        elsewhere = new_cache()
        given = cache_argument(twin.model, elsewhere)
        twin.model(torch.tensor([context]), position_ids=torch.arange(9, 16)[None], **given)
    keys, values = ([getattr(layer, name)[0] for layer in elsewhere.layers] for name in ("keys", "values"))
    moved = CachePart(tuple(keys), tuple(values), reader.space, part("s"), tuple(range(9, 16)))
    assert not torch.allclose(moved.keys[0], start.keys[0], atol=1e-2)
    expected = twin.logits(context + tail)[-4:]
    torch.testing.assert_close(reader.logits([ask(moved, "tail")])[0], expected, **CLOSE)
    assert list(reader.generate(ask(moved, "tail"), max_new_tokens=6).token_ids) == twin.greedy(context + tail, n=6)


def test_keys_of_scattered_positions_are_each_turned_from_their_own(llama):
    reader, twin = llama
    context, tail = [0, *twin.ids("cached")], twin.ids("tail")
    whole = cached(reader, twin, context)
    rope = (3, 0, 17, 5, 6, 20, 1)
    shifts = [there - here for here, there in enumerate(rope)]
    scattered = CachePart(turned(twin, whole, shifts), whole.values, whole.space, whole.source, rope)
    expected = twin.logits(context + tail)[-4:]
    torch.testing.assert_close(reader.logits([ask(scattered, "tail")])[0], expected, **CLOSE)


def test_caches_between_texts(rotating):
    reader, twin = rotating
    whole = [*twin.ids("abcdefghij")]
    one, two = cached(reader, twin, whole, 2, 4), cached(reader, twin, whole, 6, 9)
    (found,) = reader.logits([ask("ab", one, "ef", two, "j")])
    torch.testing.assert_close(found, twin.logits(whole)[-1:], **CLOSE)
    # with a beginning in front, all places are one further
    begun = reader_of(reader.model)
    one, two = cached(begun, twin, [0, *whole], 3, 5), cached(begun, twin, [0, *whole], 5, 10)
    made = begun.generate(ask("ab", one, two, "j"), max_new_tokens=5)
    assert list(made.token_ids) == twin.greedy([0, *whole], n=5)
    assert made.n_positions == 11


def test_caches_beside_vectors(rotating):
    reader, twin = rotating
    context = twin.ids("cached")
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    prompt = ask(cached(reader, twin, context), "a", EmbedsPart(vectors, reader.space, part("s")), "b")
    expected = twin.logits(context, twin.ids("a"), vectors, twin.ids("b"))
    torch.testing.assert_close(reader.logits([prompt])[0], expected[-4:], **CLOSE)


def test_the_same_cache_may_stand_in_several_places_and_stays_as_it_is(llama):
    reader, twin = llama
    cache = cached(reader, twin, twin.ids("abc"))
    before = [tensor.clone() for tensor in (*cache.keys, *cache.values)]
    twice = [reader.logits([ask(cache, "x", cache, "y")])[0] for _ in range(2)]
    assert torch.equal(*twice)
    assert all(torch.equal(*pair) for pair in zip(before, (*cache.keys, *cache.values), strict=True))


def test_a_cache_of_a_model_with_learned_positions_stands_where_it_was_made(learned):
    reader, twin = learned
    context, tail = [0, *twin.ids("cached")], twin.ids("tail")
    for options in ({}, {"rope": "unrotated"}):
        prompt = ask(cached(reader, twin, context, **options), "tail")
        torch.testing.assert_close(reader.logits([prompt])[0], twin.logits(context + tail)[-4:], **CLOSE)
        made = reader.generate(prompt, max_new_tokens=6)
        assert list(made.token_ids) == twin.greedy(context + tail, n=6)
    moved = cached(reader, twin, context + tail, 2, 7)
    with pytest.raises(
        InputError, match=r"at positions from 2 on and would have to stand at 0.*type '(gpt2|opt)'.*no rotations"
    ):
        reader.generate(ask(moved, "il"), max_new_tokens=1)


def test_gradients_flow_through_moved_caches(llama):
    reader, twin = llama
    cache = unrotated(twin, cached(reader, twin, twin.ids("abc")))
    for tensor in (*cache.keys, *cache.values):
        tensor.requires_grad_()
    reader.logits([ask("x", cache, "y")])[0][-1, 5].backward()
    assert all(tensor.grad.abs().max() > 0 for tensor in (*cache.keys, *cache.values))


def test_a_cache_at_the_end_says_nothing_of_what_follows(llama):
    reader, twin = llama
    cache = cached(reader, twin, twin.ids("abc"))
    nothing = EmbedsPart(torch.zeros(0, 32), reader.space, part(""))
    for prompt in (ask(cache), ask("a", cache), ask(cache, nothing), ask("")):
        with pytest.raises(InputError, match="must end in text or embeddings"):
            reader.generate(prompt, max_new_tokens=1)


def test_caches_count_towards_the_context(llama):
    reader, twin = llama
    cache = cached(reader, twin, twin.ids("x" * (CONTEXT - 4)))
    assert reader.generate(ask(cache, "ab"), max_new_tokens=2).n_positions == CONTEXT - 2
    with pytest.raises(InputError, match=f"has {CONTEXT - 2} positions and the answer may have 3"):
        reader.generate(ask(cache, "ab"), max_new_tokens=3)


@pytest.mark.parametrize(
    ("shape", "n_layers", "reason"),
    [
        ((2, 3, 8), 1, r"\(1, 2, 8\) layers, heads and dimensions of a head, and the decoder \(2, 2, 8\)"),
        ((4, 3, 8), 2, r"\(2, 4, 8\)"),
        ((2, 3, 16), 2, r"\(2, 2, 16\)"),
    ],
)
def test_caches_of_other_shapes_are_refused_or_read_as_text(llama, shape, n_layers, reason):
    reader, _ = llama
    tensors = (torch.zeros(shape),) * n_layers
    prompt = ask(CachePart(tensors, tensors, reader.space, part("abc")), "d")
    with pytest.raises(InputError, match=f"cannot read a part: it has {reason}"):
        reader.generate(prompt, max_new_tokens=1)
    lenient = reader_of(reader.model, on_mismatch="text", begins=False)
    made = lenient.generate(prompt, max_new_tokens=4)
    assert made.token_ids == lenient.generate(ask("abcd"), max_new_tokens=4).token_ids
    assert made.notes[0].startswith("read as text: it has ")


def test_caches_of_other_decoders_are_refused(llama):
    reader, twin = llama
    tensors = cached(reader, twin, twin.ids("abc"))
    prompt = ask(CachePart(tensors.keys, tensors.values, "f" * 64, part("abc")), "d")
    with pytest.raises(InputError, match=r"was made for the decoder f{12}, and"):
        reader.generate(prompt, max_new_tokens=1)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("llama", {"rope_parameters": YARN}, "it scales its keys by 1.139 as it rotates them"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
            "depend on the length",
        ),
        ("cohere", {}, "rotates the keys of layer 0 in a way that is not known"),
        ("smollm3", {}, "rotates the keys of layer 1 in a way that is not known"),
        ("phi", {}, "in a way that is not known here: "),
        ("gptj", {}, "(no rotations, or none that are|in a way that is not) known here"),
    ],
    ids=["yarn", "dynamic", "interleaved", "some-layers", "some-dimensions", "within-layers"],
)
def test_keys_that_cannot_be_turned_are_refused_unless_they_stand_right(tmp_path, kind, settings, reason):
    folder = save_model(tmp_path / kind, kind, **settings)
    reader, twin = reader_of(folder, begins=False), Twin(folder)
    context, tail = [0, *twin.ids("cached")], twin.ids("tail")
    prompt = ask(cached(reader, twin, context), "tail")
    torch.testing.assert_close(reader.logits([prompt])[0], twin.logits(context + tail)[-4:], **CLOSE)
    moved = cached(reader, twin, context + tail, 2, 7)
    with pytest.raises(InputError, match=f"at positions from 2 on and would have to stand at 0, .*{reason}"):
        reader.generate(ask(moved, "il"), max_new_tokens=1)
    bare = cached(reader, twin, context, rope="unrotated")
    with pytest.raises(InputError, match=f"without a rotation and would have to stand at 0, .*{reason}"):
        reader.generate(ask(bare, "il"), max_new_tokens=1)
