"""Rows of a batch have one width, which depends on their own length alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.models.batches import equal_width_batches, packed_batches, padded_width


@pytest.mark.parametrize(
    ("length", "longest", "width"), [(0, 64, 0), (1, 64, 8), (8, 64, 8), (9, 64, 16), (9, 12, 12)]
)
def test_a_row_is_filled_up_to_a_multiple_of_8_or_the_window(length, longest, width):
    assert padded_width(length, longest=longest) == width


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 400), st.integers(100, 120))
def test_each_row_stands_in_one_batch_of_its_width(lengths, max_tokens, longest):
    batches = list(equal_width_batches(lengths, longest=longest, max_tokens=max_tokens))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        widths = {padded_width(lengths[place], longest=longest) for place in batch}
        assert len(widths) == 1
        assert len(batch) == 1 or len(batch) * widths.pop() <= max_tokens


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 400))
def test_each_packed_row_stands_in_one_batch_and_the_longest_come_first(lengths, max_tokens):
    batches = list(packed_batches(lengths, max_tokens=max_tokens))
    places = [place for batch in batches for place in batch]
    assert sorted(places) == list(range(len(lengths)))
    assert [lengths[place] for place in places] == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or sum(lengths[place] for place in batch) <= max_tokens for batch in batches)
