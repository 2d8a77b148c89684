"""The codec of key-value caches: what it costs is what it says, and damaged bytes are no cache."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from soft_references import cache_gen as reference

from kompakt import ConfigError, Pipeline, load
from kompakt.compressor.cache.cache_gen import CacheCodec, cache_codec
from kompakt.compressor.store.memory import MemoryStore
from kompakt.compressor.store.places import open_store

LEVELS = ["coarse", "medium", "fine"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(2, 1, 1, 1, 1), (2, 3, 2, 7, 5), (2, 4, 3, 1, 8), (2, 2, 1, 33, 16), (2, 5, 2, 0, 4)]
TEXT = "The lighthouse of Pharos was built in Alexandria under Ptolemy the Second, of white stone. " * 3


def cache_of(*shape, dtype=torch.float32, seed=0):
    """Numbers as caches have them: every channel with a mean and a spread of its own, some of them wide."""
    generator = torch.Generator().manual_seed(seed)
    sides, n_layers, n_heads, _, width = shape
    means = torch.randn(sides, n_layers, n_heads, 1, width, generator=generator) * 2
    spreads = torch.randn(sides, n_layers, n_heads, 1, width, generator=generator).exp()
    return (means + spreads * torch.randn(shape, generator=generator)).to(dtype)


def measured(exact, found):
    difference = found.double() - exact.double()
    return float(difference.abs().max()), float(difference.norm() / exact.double().norm())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_quantises_as_the_published_code_does(level, dtype):
    cache = cache_of(2, 5, 2, 9, 6, dtype=dtype)
    cache[1, 2, :, 4] = 0
    _, numbers = reference.cache_codes(cache.double().tolist(), level)
    expected = torch.tensor(numbers, dtype=torch.float64).unflatten(-1, (2, 6)).transpose(2, 3)
    found = CacheCodec(level).rounded(cache)
    # numbers of another format are rounded to it
    torch.testing.assert_close(found, expected.to(dtype), atol=1e-5, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n_layers", [1, 2, 7, 30, 32, 40])
def test_layers_have_the_bins_of_their_share_of_the_depth(level, n_layers):
    # numbers from -1 to 1, so dense that every bin has some
    ramp = torch.linspace(-1, 1, 1001).expand(2, n_layers, 1, 1, -1)
    found = CacheCodec(level).rounded(ramp)
    for index, side in enumerate(("keys", "values")):
        counts = [len(found[index, layer].unique()) for layer in range(n_layers)]
        assert counts == [reference.n_bins(level, side, layer, n_layers) - 1 for layer in range(n_layers)]


def test_thirty_two_layers_have_the_published_bins():
    assert [reference.n_bins("coarse", "keys", layer, 32) for layer in range(32)] == [32] * 10 + [16] * 22
    assert [reference.n_bins("coarse", "values", layer, 32) for layer in range(32)] == [32] * 2 + [16] * 30


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_comes_back_is_what_was_rounded(level, dtype, shape):
    codec = CacheCodec(level)
    cache = cache_of(*shape, dtype=dtype)
    found = codec.decode(codec.encode(cache))
    assert (found.shape, found.dtype) == (cache.shape, dtype)
    assert torch.equal(found, codec.rounded(cache))
    assert torch.equal(codec.rounded(found), found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_the_stated_error_is_that_of_the_numbers(dtype, shape):
    for level in LEVELS:
        cache = cache_of(*shape, dtype=dtype)
        data = CacheCodec(level).encode(cache)
        error = CacheCodec.error(data)
        assert (error.largest, error.relative) == pytest.approx(measured(cache, CacheCodec.decode(data)))


@given(st.integers(0, 2**32 - 1), st.sampled_from(LEVELS), st.floats(1e-30, 1e30))
def test_no_number_moves_by_more_than_half_a_bin(seed, level, size):
    cache = cache_of(2, 4, 2, 3, 5, seed=seed) * size
    found = CacheCodec(level).rounded(cache)
    scales = cache.abs().amax(dim=(2, 4), keepdim=True)
    for side, name in enumerate(("keys", "values")):
        for layer in range(4):
            most = reference.n_bins(level, name, layer, 4) // 2 - 1
            bound = scales[side, layer] * (0.5 / most + 1e-5)
            assert ((found - cache)[side, layer].abs() <= bound).all()


def test_nothing_costs_nothing():
    for dtype in DTYPES:
        data = CacheCodec().encode(torch.zeros(2, 2, 1, 50, 8, dtype=dtype))
        assert not CacheCodec.decode(data).any()
        assert (CacheCodec.error(data).largest, CacheCodec.error(data).relative) == (0.0, 0.0)
    assert CacheCodec.error(CacheCodec().encode(torch.zeros(2, 2, 1, 0, 8))).relative == 0.0


@pytest.mark.parametrize("size", [1e-44, 1e-39, 1e36])
def test_very_small_and_very_large_numbers_come_back(size):
    cache = (cache_of(2, 2, 1, 4, 8) / 50).clamp(-1, 1).double().mul(size).float()
    found = CacheCodec("fine").decode(CacheCodec("fine").encode(cache))
    assert measured(cache, found)[0] <= float(cache.abs().max()) / 20
    assert torch.equal(CacheCodec("fine").rounded(found), found)


@pytest.mark.parametrize("level", LEVELS)
def test_channels_with_means_and_spreads_of_their_own_take_fewer_bytes(level):
    cache = cache_of(2, 4, 4, 300, 32)
    codes, _ = reference.cache_codes(cache.tolist(), level)

    def entropy(rows):
        """Bytes of an ideal coder that has one distribution for each row."""
        counts = [np.unique(row, return_counts=True)[1] for row in rows]
        return sum(float(-(count * np.log2(count / count.sum())).sum()) for count in counts) / 8

    of_layers = entropy(np.array(codes).reshape(8, -1))
    of_channels = entropy(np.array(codes).transpose(0, 1, 3, 2).reshape(-1, 300))
    n_scale_bytes = 2 * 4 * 300 * 4
    n_bytes = len(CacheCodec(level).encode(cache)) - n_scale_bytes
    assert of_channels < n_bytes < 0.9 * of_layers


def test_finer_levels_take_more_bytes_and_err_less():
    cache = cache_of(2, 6, 2, 200, 16)
    written = [CacheCodec(level).encode(cache) for level in LEVELS]
    sizes = [len(data) for data in written]
    errors = [CacheCodec.error(data).relative for data in written]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.6 * errors[1] < 0.6 * errors[0]
    assert sizes[1] < len(cache_codec("int4").encode(cache))


def test_any_level_reads_what_any_level_wrote():
    cache = cache_of(2, 2, 1, 5, 4)
    for level in LEVELS:
        data = CacheCodec(level).encode(cache)
        assert all(torch.equal(CacheCodec(other).decode(data), CacheCodec(level).rounded(cache)) for other in LEVELS)


def test_equal_caches_are_equal_bytes_however_they_lie_in_memory():
    cache = cache_of(2, 3, 2, 40, 8)
    data = CacheCodec().encode(cache)
    elsewhere = cache.transpose(2, 3).contiguous().transpose(2, 3)
    assert CacheCodec().encode(elsewhere) == data
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    assert CacheCodec().encode(cache.clone()) == data
    torch.set_num_threads(before)
    with torch.inference_mode():
        assert CacheCodec().encode(cache.clone()) == data
        assert torch.equal(CacheCodec.decode(data), CacheCodec().rounded(cache))


WRITTEN = CacheCodec().encode(cache_of(2, 2, 1, 6, 4, dtype=torch.bfloat16))


@given(st.integers(0, len(WRITTEN) - 1))
def test_part_of_the_bytes_is_no_cache(length):
    for read in (CacheCodec.decode, CacheCodec.error):
        with pytest.raises(ValueError, match="as kompakt writes"):
            read(WRITTEN[:length])


@given(st.integers(0, len(WRITTEN) - 1), st.integers(1, 255))
def test_a_changed_byte_is_no_cache(place, change):
    damaged = bytearray(WRITTEN)
    damaged[place] ^= change
    for read in (CacheCodec.decode, CacheCodec.error):
        with pytest.raises(ValueError, match="checksum"):
            read(bytes(damaged))


@given(
    st.lists(st.tuples(st.integers(0, len(WRITTEN) - 5), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, len(WRITTEN) - 4),
)
def test_bytes_with_a_right_checksum_are_read_or_refused(changes, length):
    body = bytearray(WRITTEN[:-4])
    for place, value in changes:
        body[place] = value
    for forged in (bytes(body), bytes(body[:length])):
        try:
            found = CacheCodec.decode(forged + zlib.crc32(forged).to_bytes(4, "little"))
        except ValueError:
            continue
        assert found.ndim == 5
        assert found.shape[0] == 2


@given(st.binary(max_size=200))
def test_other_bytes_are_no_cache(data):
    with pytest.raises(ValueError, match="as kompakt writes"):
        CacheCodec.decode(data)


def test_what_is_no_cache_is_named():
    with pytest.raises(ConfigError, match="level must be one of coarse, medium, fine, got 'tiny'"):
        CacheCodec("tiny")
    with pytest.raises(ConfigError, match="precision must be full, int8, int4 or cachegen, got 'int3'"):
        cache_codec("int3")
    for shape in [(2, 3, 4), (1, 2, 1, 3, 4), (2, 0, 1, 3, 4), (2, 1, 1, 3, 0)]:
        with pytest.raises(ConfigError, match=r"a cache must be \[2, L, H_kv, n, D_head\]"):
            CacheCodec().encode(torch.zeros(shape))
    with pytest.raises(ConfigError, match="fp32, bf16 or fp16 to be quantised"):
        CacheCodec().encode(torch.zeros(2, 1, 1, 1, 1, dtype=torch.float64))
    for number in (torch.nan, torch.inf, -torch.inf, 3e38):
        cache = torch.ones(2, 2, 1, 3, 4)
        cache[1, 1, 0, 2, 3] = number
        for method in (CacheCodec().encode, CacheCodec().rounded):
            with pytest.raises(ConfigError, match="not finite"):
                method(cache)


@pytest.fixture
def snapkv(base):
    def made(precision):
        return load("snapkv", decoder=base, dtype="float32", device="cpu", precision=precision, window=8)

    return made


def test_a_cache_from_the_store_is_the_one_that_was_made(snapkv, base, tmp_path):
    with open_store(tmp_path / "caches.sqlite") as store:
        fresh = Pipeline([snapkv("cachegen")], tokenizer=base, store=store).compress(TEXT, keep=0.3)
    with open_store(tmp_path / "caches.sqlite") as store:
        stored = Pipeline([snapkv("cachegen")], tokenizer=base, store=store).compress(TEXT, keep=0.3)
    assert (fresh.trace[0].cache_misses, stored.trace[0].cache_hits, stored.trace[0].cache_misses) == (1, 1, 0)
    assert fresh.parts == stored.parts
    exact = Pipeline([snapkv("full")], tokenizer=base).compress(TEXT, keep=0.3).parts[0]
    rounded = CacheCodec().rounded(torch.stack([torch.stack(exact.keys), torch.stack(exact.values)]))
    assert all(map(torch.equal, stored.parts[0].keys, rounded[0]))
    assert all(map(torch.equal, stored.parts[0].values, rounded[1]))


def test_what_is_stored_states_what_quantisation_cost(snapkv, base):
    store = MemoryStore()
    compressed = Pipeline([snapkv("cachegen")], tokenizer=base, store=store).compress(TEXT, keep=0.3)
    exact = Pipeline([snapkv("full")], tokenizer=base).compress(TEXT, keep=0.3)
    (data,) = store.get_many(list(store.keys()))
    wanted, found = (
        torch.stack([torch.stack(one.parts[0].keys), torch.stack(one.parts[0].values)]) for one in (exact, compressed)
    )
    assert CacheCodec.error(data).relative == pytest.approx(measured(wanted, found)[1])


def test_a_damaged_cache_is_made_again(snapkv, base):
    store = MemoryStore()
    pipeline = Pipeline([snapkv("cachegen")], tokenizer=base, store=store)
    fresh = pipeline.compress(TEXT, keep=0.3)
    (key,) = store.keys()
    (data,) = store.get_many([key])
    store.put_many({key: data[:-1]})
    again = pipeline.compress(TEXT, keep=0.3)
    assert again.trace[0].cache_misses == 1
    assert again.parts == fresh.parts
    assert store.get_many([key]) == [data]


def test_an_unknown_precision_is_named(snapkv):
    with pytest.raises(ConfigError, match="precision must be full, int8, int4 or cachegen, got 'fp4'"):
        snapkv("fp4")
