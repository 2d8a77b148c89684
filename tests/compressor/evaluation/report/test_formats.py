import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kompakt.compressor.evaluation.report import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (0.0004, "0.40 ms"), (0.0526, "52.6 ms"), (0.3412, "341 ms"), (0.9999, "1.00 s"), (1.4, "1.40 s"),
     (62.81, "62.8 s"), (4321.5, "4,322 s"), (None, "–"), (math.nan, "–")],
)  # fmt: skip
def test_durations_have_three_digits_and_the_unit_that_suits(value, text):
    assert formats.seconds(value) == text


def test_numbers_are_written_one_way():
    assert formats.quality(0.8) == "0.800"
    assert formats.quality(-0.0001) == "0.000"
    assert formats.signed(-0.0001) == "+0.000"
    assert formats.signed(-0.25) == "-0.250"
    assert formats.percent(0.26149) == "26.1%"
    assert formats.asked(0.25) == "25%"
    assert formats.asked(0.125) == "12.5%"
    assert formats.count(12345) == "12,345"
    assert [formats.short_count(value) for value in (0.25, 500, 16000, 2e6)] == ["0.25", "500", "16k", "2M"]


@pytest.mark.parametrize("form", [formats.quality, formats.signed, formats.percent, formats.asked, formats.count])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_dash(form, value):
    assert form(value) == "–"


@given(st.text(st.characters()))
def test_harmless_text_keeps_its_length_and_has_no_control_characters(text):
    shown = formats.harmless(text)
    assert len(shown) == len(text)
    assert not any((ord(c) < 0x20 and c not in "\t\n\r") or 0x7F <= ord(c) < 0xA0 for c in shown)
    shown.encode("utf-8")


def test_the_end_of_a_line_stays_what_it_is():
    assert formats.harmless("a\r\nb\rc\n\x00\x1b") == "a\r\nb␍c\n␀␛"
