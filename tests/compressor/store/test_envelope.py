"""How values are sealed: small where that is possible, and no damage unnoticed."""

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.errors import StoreError
from kompakt.compressor.store.envelope import Opened, seal, unseal

KEY = bytes(range(32))
HEADER = 24
payloads = st.one_of(
    st.binary(max_size=600), st.binary(min_size=1, max_size=9).map(lambda part: part * 400), st.just(b"")
)
expiries = st.one_of(st.none(), st.floats(0, 1e12), st.just(0.0), st.just(-1.0))


@given(st.binary(max_size=64), payloads, expiries)
def test_round_trip(key, payload, expires_at):
    assert unseal(key, seal(key, payload, expires_at)) == Opened(payload, expires_at)


@given(payloads, expiries, st.data())
def test_any_flipped_bit_is_noticed(payload, expires_at, data):
    sealed = bytearray(seal(KEY, payload, expires_at))
    position = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[position // 8] ^= 1 << position % 8
    with pytest.raises(StoreError):
        unseal(KEY, bytes(sealed))


@pytest.mark.parametrize("payload", [b"", b"short", b"long and the same " * 30, random.Random(0).randbytes(300)])
def test_each_flipped_bit_is_noticed(payload):
    sealed = seal(KEY, payload, 1.5e9)
    for position in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(StoreError, match="damaged"):
            unseal(KEY, bytes(damaged))


@given(payloads, st.data())
def test_a_value_cut_short_or_drawn_out_is_noticed(payload, data):
    sealed = seal(KEY, payload)
    length = data.draw(st.integers(0, len(sealed) - 1))
    for damaged in (sealed[:length], sealed + b"\0", b"\0" + sealed, sealed + sealed):
        with pytest.raises(StoreError, match="an entry"):
            unseal(KEY, damaged)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_value_or_damaged(data):
    with pytest.raises(StoreError):
        unseal(KEY, data)


@given(st.binary(max_size=40), st.binary(max_size=40), payloads)
def test_the_value_of_another_key_is_noticed(key, other, payload):
    sealed = seal(key, payload)
    if key != other:
        with pytest.raises(StoreError, match="damaged"):
            unseal(other, sealed)


def test_values_are_compressed_only_where_that_pays():
    def overhead(payload):
        return len(seal(KEY, payload)) - len(payload)

    assert overhead(b"") == HEADER
    # too short to try, though it would shrink
    assert overhead(b"a" * 255) == HEADER
    assert len(seal(KEY, b"a" * 256)) < HEADER + 40
    # noise does not shrink; half noise shrinks by less than a tenth
    noise = os.urandom(4000)
    assert overhead(noise) == HEADER
    assert overhead(noise + b"a" * 300) == HEADER
    assert overhead(noise + b"a" * 4000) < -3000


@given(payloads)
def test_a_sealed_value_is_never_larger_than_the_value_and_its_header(payload):
    assert len(seal(KEY, payload)) <= len(payload) + HEADER


def test_a_checksum_over_garbage_is_not_enough():
    # somebody's bug rather than a bad disk: sealed as compressed, but it is not
    from kompakt.compressor.store import envelope

    flags = 1
    header = envelope._HEADER.pack(
        envelope._MAGIC, flags, envelope._NEVER, envelope._checksum(KEY, flags, envelope._NEVER, b"no zstd")
    )
    with pytest.raises(StoreError, match="damaged"):
        unseal(KEY, header + b"no zstd")


def test_threads_may_seal_at_once():
    def work(number):
        payload = bytes([number]) * 5000
        return all(unseal(KEY, seal(KEY, payload)).payload == payload for _ in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(32)))
