"""How artefacts are written: exactly, or with an error that is known."""

import json
import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kompakt.compressor.errors import ConfigError
from kompakt.compressor.store import codec
from kompakt.compressor.store.codec import (
    CodecError,
    TensorCodec,
    codec_error,
    decode_floats,
    dequantise,
    encode_floats,
    quantise,
)

pytest.importorskip("safetensors")

SHARED = [
    "float64", "float32", "float16", "int64", "uint64", "int32", "uint32", "int16", "uint16", "int8", "uint8", "bool",
    "complex64",
]  # fmt: skip
LEVELS = {"int8": 127, "int4": 7}
TINY = float(np.finfo(np.float32).smallest_subnormal)
names = st.text(max_size=8).filter(lambda name: "::" not in name and name != "__metadata__")
shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7)
any_tensors = st.sampled_from(SHARED).flatmap(lambda dtype: arrays.arrays(dtype, shapes))
half = st.floats(width=16, allow_nan=False, allow_infinity=False)
single = st.floats(width=32, allow_nan=False, allow_infinity=False)
float_tensors = st.one_of(
    arrays.arrays(np.float32, shapes, elements=single),
    arrays.arrays(np.float16, shapes, elements=half),
    arrays.arrays(np.float64, shapes, elements=st.floats(-1e30, 1e30)),
)
codecs = st.builds(TensorCodec, st.sampled_from(["int8", "int4"]), st.sampled_from([2, 6, 32, 64]))


def equal(first, second):
    """Bit for bit, NaN and the sign of zero included."""
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())


@given(arrays.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32)))
def test_vectors_round_trip(vector):
    assert equal(decode_floats(encode_floats(vector)), vector)
    assert len(encode_floats(vector)) == 4 * vector.size


def test_vectors_are_little_endian_whatever_they_were():
    assert encode_floats(np.array([1.0], dtype=">f4")) == b"\0\0\x80\x3f"
    assert encode_floats(np.arange(6, dtype=np.float32)[::2]) == np.array([0, 2, 4], "<f4").tobytes()
    for length in (1, 2, 3, 5):
        with pytest.raises(ValueError, match="size"):
            decode_floats(bytes(length))


@given(st.dictionaries(names, any_tensors, max_size=3))
def test_whole_tensors_come_back_bit_for_bit(tensors):
    data = TensorCodec().encode(tensors)
    found = TensorCodec.decode(data)
    assert found.keys() == tensors.keys()
    assert all(equal(found[name], tensors[name]) for name in tensors)
    assert TensorCodec.errors(data) == {}


@pytest.mark.parametrize("precision", ["full", "int8", "int4"])
@pytest.mark.parametrize("dtype", SHARED)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (5, 13)])
def test_types_and_shapes_survive(precision, dtype, shape):
    tensor = np.ones(shape, dtype=dtype)
    found = TensorCodec(precision).decode(TensorCodec(precision).encode({"x": tensor}))["x"]
    assert (found.dtype, found.shape) == (tensor.dtype, shape)
    np.testing.assert_allclose(found, tensor, rtol=1e-6)


@pytest.mark.parametrize("precision", ["full", "int8", "int4"])
def test_memory_layout_does_not_matter(precision):
    whole = np.arange(60, dtype=np.float32).reshape(6, 10)
    views = {
        "t": whole.T,
        "strided": whole[::2, ::3],
        "back": whole[::-1],
        "big": whole.astype(">f4"),
        "plain": whole,
    }
    found = TensorCodec.decode(TensorCodec(precision, group=2).encode(views))
    for name, view in views.items():
        np.testing.assert_allclose(found[name], view, atol=60 / 7 / 2)
        assert found[name].dtype == np.float32


@given(st.dictionaries(names, float_tensors, min_size=1, max_size=3), codecs)
def test_the_stated_error_is_what_reading_finds(tensors, coder):
    data = coder.encode(tensors)
    found, stated = TensorCodec.decode(data), TensorCodec.errors(data)
    assert found.keys() == stated.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert np.isfinite(found[name]).all()
        assert stated[name] == codec_error(tensor, found[name])


@given(float_tensors, st.sampled_from([7, 127]), st.sampled_from([2, 6, 64]))
@settings(max_examples=200)
def test_no_number_is_off_by_more_than_half_a_step(tensor, levels, group):
    codes, scales = quantise(tensor, levels=levels, group=group)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= levels
    restored = dequantise(codes, scales, shape=tensor.shape, group=group)
    exact = np.asarray(tensor, dtype=np.float32).astype(np.float64).reshape(-1)
    steps = np.repeat(scales.astype(np.float64).reshape(-1), group)[: exact.size]
    error = np.abs(restored.astype(np.float64).reshape(-1) - exact)
    # a step is a float32: at the largest code its own rounding counts ``levels`` times
    rounding = levels * np.maximum(steps * 2.0**-23, TINY)
    assert (error <= steps / 2 + rounding).all()


def quantised_by_hand(numbers, levels, group):
    """The same in plain Python, number by number."""
    restored = []
    for start in range(0, len(numbers), group):
        part = numbers[start : start + group]
        step = max(abs(number) for number in part) / levels
        for number in part:
            code = round(number / step) if step else 0
            restored.append(max(-levels, min(levels, code)) * step)
    return restored


@given(
    arrays.arrays(np.float32, st.integers(1, 70), elements=st.integers(-10_000, 10_000).map(float)),
    st.sampled_from([7, 127]),
    st.sampled_from([2, 6, 64]),
)
def test_quantisation_agrees_with_its_slow_twin(tensor, levels, group):
    codes, scales = quantise(tensor, levels=levels, group=group)
    restored = dequantise(codes, scales, shape=tensor.shape, group=group)
    by_hand = quantised_by_hand(tensor.astype(float).tolist(), levels, group)
    steps = np.repeat(scales.reshape(-1), group)[: tensor.size]
    difference = np.abs(restored - by_hand)
    # a number halfway between two codes may fall to either side
    halfway = np.abs(np.abs(tensor / np.where(steps > 0, steps, 1)) % 1 - 0.5) < 1e-3
    assert (difference[~halfway] <= 1e-4 * (1 + np.abs(tensor[~halfway]))).all()
    assert (difference <= 1.001 * steps + 1e-4).all()


@given(arrays.arrays(np.int8, st.integers(0, 40).map(lambda n: (n, 2)), elements=st.integers(-7, 7)))
def test_two_codes_share_a_byte(codes):
    packed = codec._packed(codes)
    assert packed.nbytes == codes.size // 2
    assert (codec._unpacked(packed).reshape(codes.shape) == codes).all()


def test_quantisation_saves_what_it_promises():
    tensor = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    whole, eight, four = (len(TensorCodec(name).encode({"x": tensor})) for name in ("full", "int8", "int4"))
    assert whole / 3.8 < eight + four
    assert eight < whole / 3.6
    assert four < whole / 6.8
    errors = {name: TensorCodec.errors(TensorCodec(name).encode({"x": tensor}))["x"] for name in ("int8", "int4")}
    assert 0 < errors["int8"].relative < 0.01
    assert errors["int8"].relative < errors["int4"].relative < 0.15


def test_error_of_equal_zero_and_empty_tensors():
    ones = np.ones((3, 2), dtype=np.float32)
    assert codec_error(ones, ones) == CodecError(0.0, 0.0)
    assert codec_error(0 * ones, 0 * ones) == CodecError(0.0, 0.0)
    assert codec_error(ones[:0], ones[:0]) == CodecError(0.0, 0.0)
    found = codec_error(np.array([3.0, 4.0, 0.0, 0.0]), np.array([3.0, 4.0, 0.0, 2.5]))
    assert found == CodecError(2.5, pytest.approx(0.5))


@pytest.mark.parametrize("largest", [np.finfo(np.float32).max, np.nextafter(np.float32(3e38), np.float32(0))])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_largest_numbers_stay_finite(precision, largest):
    tensor = np.array([largest, -largest, 0, largest / 3], dtype=np.float32)
    assert np.isfinite(TensorCodec.decode(TensorCodec(precision).encode({"x": tensor}))["x"]).all()


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_what_is_not_finite_is_refused_by_name_and_can_be_kept_whole(precision, bad):
    tensor = np.array([1.0, bad])
    with pytest.raises(ConfigError, match="'weights' holds numbers that are not finite"):
        TensorCodec(precision).encode({"weights": tensor})
    assert equal(TensorCodec.decode(TensorCodec().encode({"weights": tensor}))["weights"], tensor)


@pytest.mark.parametrize("tensor", [np.array(["a"]), np.zeros(2, np.complex128), np.array([None])])
def test_types_that_safetensors_does_not_know_are_named(tensor):
    with pytest.raises(ConfigError, match=tensor.dtype.name):
        TensorCodec().encode({"x": tensor})


def test_names_that_would_be_misread_are_refused():
    with pytest.raises(ConfigError, match="::"):
        TensorCodec().encode({"a::codes": np.zeros(1)})
    with pytest.raises(ConfigError, match="__metadata__"):
        TensorCodec().encode({"__metadata__": np.zeros(1)})


@pytest.mark.parametrize(("options", "words"), [
    ({"precision": "int2"}, "int2"), ({"group": 3}, "even"), ({"group": 0}, "even"), ({"group": -2}, "even"),
])  # fmt: skip
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ConfigError, match=words):
        TensorCodec(**options)


def written(described, tensors=None):
    from safetensors.numpy import save

    return save(tensors or {"x::codes": np.zeros(64, np.int8), "x::scales": np.ones(1, np.float32)},
                metadata={"kompakt": described if isinstance(described, str) else json.dumps(described)})  # fmt: skip


GOOD = {"shape": [64], "dtype": "float32", "precision": "int8", "group": 64, "error": [0.0, 0.0]}


@pytest.mark.parametrize("described", [
    "", "{", "3", "[1]", "null", {"y": GOOD}, {"x": 3}, {"x": {}}, {"x": GOOD | {"shape": 3}},
    {"x": GOOD | {"shape": [65]}}, {"x": GOOD | {"dtype": "nonsense"}}, {"x": GOOD | {"group": 0}},
    {"x": GOOD | {"group": "y"}}, {"x": GOOD | {"shape": [-1, 2, 3]}},
])  # fmt: skip
def test_headers_that_describe_nothing_are_refused(described):
    with pytest.raises(ValueError, match="not tensors as kompakt writes them"):
        TensorCodec.decode(written(described))


def test_the_header_that_these_are_made_from_is_read():
    assert equal(TensorCodec.decode(written({"x": GOOD}))["x"], np.zeros(64, np.float32))
    with pytest.raises(ValueError, match="not tensors"):
        TensorCodec.errors(written({"x": GOOD | {"error": 3}}))


@given(st.binary(max_size=60))
def test_garbage_is_refused(data):
    with pytest.raises(ValueError, match="not tensors"):
        TensorCodec.decode(data)


WRITTEN = TensorCodec("int4").encode({"a": np.arange(7, dtype=np.float32), "b": np.arange(3)})


@given(st.integers(0, 8 * len(WRITTEN) - 1), st.integers(0, len(WRITTEN)))
@settings(max_examples=300)
def test_damaged_tensors_are_refused_or_read_but_nothing_else(position, length):
    damaged = bytearray(WRITTEN)
    damaged[position // 8] ^= 1 << position % 8
    for data in (bytes(damaged), WRITTEN[:length]):
        with suppress(ValueError):
            TensorCodec.decode(data)
