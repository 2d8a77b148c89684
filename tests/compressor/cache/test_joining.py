"""Caches that were made one by one and are read as one."""

import pytest
import torch
from reader_parts import Twin, ask, reader_of
from tiny_models import save_model

from kompakt import Document, InputError
from kompakt.compressor.cache.joining import joined
from kompakt.compressor.cache.part_files import load_cache, save_cache
from kompakt.compressor.cache.rotary import rotated_to
from kompakt.compressor.models.causal_lm import load_causal_lm
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache
from kompakt.compressor.parts import CachePart, EmbedsPart, Span, TextPart
from kompakt.compressor.results import to_part, whole

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BF16 = 2 * 2**-8
"""By how much of its norm a key in bf16 may be off: it is rounded as it is made, and once more as it is turned."""


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2"])
def folder(request, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "llama")


def text(name, start=0, document="d"):
    return TextPart(name, (Span(document, start, start + len(name)),), (0,))


def made_at(twin, ids, start, space, source=None):
    """The keys and values of tokens read alone at positions from ``start`` on."""
    cache = new_cache()
    with torch.no_grad():
        positions = torch.arange(start, start + len(ids))[None]
        twin.model(torch.tensor([ids]), position_ids=positions, **cache_argument(twin.model, cache))
    keys, values = (tuple(getattr(layer, name)[0] for layer in cache.layers) for name in ("keys", "values"))
    return CachePart(keys, values, space, source or text("ab"), tuple(range(start, start + len(ids))))


def sliced(part, start, end, source=None):
    keys, values = (tuple(tensor[:, start:end] for tensor in several) for several in (part.keys, part.values))
    rope = part.rope if isinstance(part.rope, str) else part.rope[start:end]
    return CachePart(keys, values, part.space, source or part.source, rope)


def test_two_halves_of_a_text_are_read_as_the_whole(folder, tmp_path):
    reader, twin = reader_of(folder, begins=False), Twin(folder)
    context, tail = [0, *twin.ids("cached text")], twin.ids("tail")
    both = made_at(twin, context, 0, reader.space)
    halves = sliced(both, 0, 5, text("cach")), sliced(both, 5, 12, text("ed text", 4))
    files = [save_cache(half, tmp_path / str(number)) for number, half in enumerate(halves)]
    again = joined([load_cache(file) for file in files])
    assert again == CachePart(both.keys, both.values, both.space, again.source, both.rope)
    assert again.source.text == "cached text"
    found = reader.logits([ask(again, "tail")])[0]
    torch.testing.assert_close(found, twin.logits(context + tail)[-4:], **CLOSE)
    made = reader.generate(ask(again, "tail"), max_new_tokens=5)
    assert list(made.token_ids) == twin.greedy(context + tail, n=5)


def test_caches_made_apart_are_read_one_behind_another(folder):
    reader, twin = reader_of(folder, begins=False), Twin(folder)
    lm = load_causal_lm(folder, dtype="float32", device="cpu")
    one, two = (twin.ids(word) for word in ("treaty", "river"))
    first, second = (made_at(twin, ids, 0, reader.space) for ids in (one, two))
    behind = joined([first, second], lm=lm)
    assert behind.rope == tuple(range(11))
    found = reader.logits([ask(behind, "tail")])[0]
    # each was read alone, so the second did not see the first; its keys stand where they would have
    given = new_cache()
    right = [first, made_at(twin, two, len(one), reader.space)]
    for layer in range(2):
        keys = torch.cat([part.keys[layer] for part in right], dim=1)[None]
        values = torch.cat([part.values[layer] for part in right], dim=1)[None]
        given.update(keys, values, layer)
    ids = torch.tensor([twin.ids("tail")])
    with torch.no_grad():
        expected = twin.model(ids, **cache_argument(twin.model, given)).logits[0]
    torch.testing.assert_close(found, expected, **CLOSE)
    side_by_side = reader.logits([ask(first, second, "tail")])[0]
    torch.testing.assert_close(found, side_by_side, **CLOSE)


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1e-5), ("bfloat16", BF16)])
def test_keys_turned_by_a_distance_are_those_made_there(folder, dtype, share):
    lm = load_causal_lm(folder, dtype="float32", device="cpu")
    twin, number_format = Twin(folder), getattr(torch, dtype)
    ids = twin.ids("cached")
    for start, end in ((0, 9), (9, 2), (3, 3)):
        near = made_at(twin, ids, start, lm.fingerprint)
        there = made_at(twin, ids, end, lm.fingerprint)
        first = sliced(made_at(twin, twin.ids("x" * end) or [0], 0, lm.fingerprint), 0, end)
        moved = joined([first.to(dtype=number_format), near.to(dtype=number_format)], lm=lm)
        assert moved.rope == tuple(range(end + len(ids)))
        assert moved.keys[0].dtype == number_format
        for layer, expected in enumerate(there.keys):
            made = moved.keys[layer][:, end:].float()
            error = torch.linalg.norm(made - expected, dim=-1) / torch.linalg.norm(expected, dim=-1)
            assert error.max() <= share
        assert torch.equal(moved.values[1][:, end:], near.values[1].to(number_format))


def test_a_joined_cache_stands_between_text_and_vectors(llama):
    reader, twin = reader_of(llama, begins=False), Twin(llama)
    whole_text = twin.ids("abcdefghijkl")
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    head, middle, tail = whole_text[:2], whole_text[2:9], whole_text[9:]
    cache = made_at_end_of(twin, head, middle, reader.space)
    again = joined([sliced(cache, 0, 3), sliced(cache, 3, 7)])
    prompt = ask("ab", again, "j", EmbedsPart(vectors, reader.space, text("s")), "kl")
    expected = twin.logits(head, middle, tail[:1], vectors, tail[1:])[-5:]
    torch.testing.assert_close(reader.logits([prompt])[0], expected, **CLOSE)


def made_at_end_of(twin, head, ids, space):
    keys, values = twin.cache([*head, *ids])
    positions = tuple(range(len(head), len(head) + len(ids)))
    whole_cache = CachePart(tuple(keys), tuple(values), space, text("s"), tuple(range(len(head) + len(ids))))
    part = sliced(whole_cache, len(head), len(head) + len(ids))
    assert part.rope == positions
    return part


def plain(rope, *, n=2, space="a" * 64, source=None, shape=(2, 8), layers=2, dtype=torch.float32):
    tensors = tuple(torch.arange(shape[0] * n * shape[1]).reshape(shape[0], n, shape[1]).to(dtype) + layer
                    for layer in range(layers))  # fmt: skip
    return CachePart(tensors, tensors, space, source or text("ab"), rope)


@pytest.mark.parametrize("rope", ["unrotated", "as-is"])
def test_keys_that_need_no_place_keep_none(rope):
    one, two = plain(rope), plain(rope, n=3)
    both = joined([one, two, one])
    assert both.rope == rope
    assert both.n_positions == 7
    assert torch.equal(both.keys[1], torch.cat([one.keys[1], two.keys[1], one.keys[1]], dim=1))
    assert torch.equal(both.values[0][:, 2:5], two.values[0])
    alone = joined([one])
    assert alone == one


def test_rising_positions_are_kept_without_a_decoder():
    both = joined([plain((3, 5)), plain((6, 9)), plain((), n=0), plain((20, 21))])
    assert both.rope == (3, 5, 6, 9, 20, 21)


@pytest.mark.parametrize("ropes", [((0, 1), (0, 1)), ((3, 4), (0, 1)), ((0, 2), (1, 3)), ((1, 0), (2, 3))])
def test_positions_that_do_not_rise_need_the_decoder(ropes):
    with pytest.raises(InputError, match=r"do not stand one behind another \(at \d to \d; \d to \d\): give lm="):
        joined([plain(rope) for rope in ropes])


def test_unrotated_keys_beside_rotated_ones_need_the_decoder(llama):
    lm = load_causal_lm(llama, dtype="float32", device="cpu")
    twin = Twin(llama)
    one, two = (made_at(twin, twin.ids(word), 4, lm.fingerprint) for word in ("abc", "de"))
    bare = unrotated_by_hand(two)
    with pytest.raises(InputError, match=r"others have none: give lm="):
        joined([one, bare])
    both = joined([one, bare], lm=lm)
    assert both.rope == (4, 5, 6, 7, 8)
    expected = made_at(twin, twin.ids("de"), 7, lm.fingerprint)
    torch.testing.assert_close(both.keys[1][:, 3:], expected.keys[1], **CLOSE)
    # the first ones decide where all begin; without a rotation they begin at 0
    other = joined([bare, one], lm=lm)
    assert other.rope == (0, 1, 2, 3, 4)
    torch.testing.assert_close(other.keys[0][:, :2], rotated_to(two, 0, lm).keys[0], **CLOSE)
    for alone in (one, bare):
        assert joined([alone], lm=lm).rope == alone.rope


def unrotated_by_hand(part):
    half = part.keys[0].shape[-1] // 2
    angles = torch.tensor(part.rope)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    turn = torch.polar(torch.ones_like(angles), -angles)
    turned = [torch.complex(key[..., :half], key[..., half:]) * turn for key in part.keys]
    keys = tuple(torch.cat([one.real, one.imag], dim=-1) for one in turned)
    return CachePart(keys, part.values, part.space, part.source)


def test_keys_that_stay_are_not_joined_with_keys_that_move():
    for other in ("unrotated", (0, 1)):
        with pytest.raises(InputError, match="side by side into the prompt"):
            joined([plain("as-is"), plain(other)])


def test_what_cannot_be_joined_is_named(llama):
    one = plain("unrotated")
    with pytest.raises(InputError, match="no caches"):
        joined([])
    with pytest.raises(InputError, match=r"cache 1 .*for the decoder b{12}, and this one is a{12}"):
        joined([one, plain("unrotated", space="b" * 64)])
    for wrong in ({"layers": 1}, {"shape": (4, 8)}, {"shape": (2, 16)}):
        with pytest.raises(InputError, match=r"cache 2 .*layers, heads and dimensions.*cache 0 \(2, 2, 8\)"):
            joined([one, one, plain("unrotated", **wrong)])
    with pytest.raises(InputError, match=r"torch\.bfloat16 on cpu, and cache 0 torch\.float32 on cpu.*CachePart\.to"):
        joined([one, plain("unrotated", dtype=torch.bfloat16)])
    with pytest.raises(InputError, match="lm does not read these caches"):
        joined([one, one], lm=load_causal_lm(llama, dtype="float32", device="cpu"))


def test_a_decoder_with_learned_positions_joins_what_stands_right(tmp_path):
    folder = save_model(tmp_path / "gpt2", "gpt2")
    lm, twin = load_causal_lm(folder, dtype="float32", device="cpu"), Twin(folder)
    both = made_at(twin, twin.ids("abcdef"), 0, lm.fingerprint)
    halves = [sliced(both, 0, 3), sliced(both, 3, 6)]
    assert joined(halves, lm=lm).rope == both.rope
    with pytest.raises(InputError, match="no rotations"):
        joined(halves[::-1], lm=lm)


def test_sources_are_joined_by_an_empty_line_between_documents():
    parts = [plain("as-is", source=source) for source in (
        text("ab", 0, "d"), text("cd", 2, "d"), text("xy", 0, "e"), text("xy", 0, "e"),
        TextPart("", (), ()), to_part([[whole(Document("1", id="f"))], [whole(Document("2", id="g"))]]),
    )]  # fmt: skip
    both = joined(parts)
    assert both.source.text == "abcd\n\nxy\n\nxy\n\n1\n\n2"
    assert [both.source.source_of(offset).document_id for offset in (0, 3, 6, 10, 14, 17)] == list("ddeefg")
    assert both.source.source_of(4).kind == "separator"
    assert both.spans[1].start == 2
