"""Facts are found, and told to be kept, lost or altered."""

import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import any_texts, sentences

from kompakt.compressor.evaluation.fidelity import PATTERNS, Fidelity, fidelity

facts = st.sampled_from(
    "14 March 2019|2019-03-14|March 14, 2019|May 2020|3/4/2021|149|-3.5|12.5%|1,499|user_id|userName|v1-b2|x@y.org"
    '|https://a.org/b?c=1|123e4567-e89b-12d3-a456-426614174000|"so it is"|“ja”'.split("|")
)
texts = st.lists(facts | sentences, min_size=1, max_size=12).map(" ".join)


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("numbers", "It grew by 12.5% to 1,499,000 in 2019.", ["12.5%", "1,499,000", "2019"]),
        ("numbers", "From -5 to +7, or 10-20.", ["-5", "+7", "10", "20"]),
        ("numbers", "a1 b2c 3d x_4", []),
        ("dates", "On 2019-03-14, 14.3.2019 and 3/4/19.", ["2019-03-14", "14.3.2019", "3/4/19"]),
        (
            "dates",
            "14 March 2019, Mar. 14, 2019, March 14 2019, Sept. 2019 and May 2020",
            ["14 March 2019", "Mar. 14, 2019", "March 14 2019", "Sept. 2019", "May 2020"],
        ),
        ("dates", "March on, 2019 men of May", []),
        ("identifiers", "Ask x.y+z@mail.example.org. Or not.", ["x.y+z@mail.example.org"]),
        ("identifiers", "id 123E4567-e89b-12d3-a456-426614174000!", ["123E4567-e89b-12d3-a456-426614174000"]),
        ("identifiers", "see (https://a.org/b?c=1) now", ["https://a.org/b?c=1"]),
        ("identifiers", "user_id userName v1-b2 3d plain Words 42", ["user_id", "userName", "v1-b2", "3d"]),
        ("quotations", 'He said "so it is" and “ja”.', ['"so it is"', "“ja”"]),
        ("quotations", '""', []),
        ("quotations", '"two\nlines"', []),
        ("quotations", '"' + "x" * 201 + '"', []),
    ],
)
def test_facts_are_found(kind, text, found):
    assert PATTERNS[kind].findall(text) == found


def test_kept_lost_and_altered():
    source = "On 14 March 2019 ship 77 sank. It had cost 1,499 crowns; see user_id 77."
    found = fidelity(source, "On 149 ship 77 sank; see user_name.")
    assert found["numbers"] == Fidelity(n_source=4, n_kept=1, n_altered=1)
    assert found["dates"] == Fidelity(1, 0, 0)
    assert found["identifiers"] == Fidelity(1, 0, 1)
    assert found["quotations"] == Fidelity(0, 0, 0)


def test_the_share_that_was_kept():
    assert Fidelity(4, 1, 0).kept == 0.25
    assert Fidelity(4, 0, 0).kept == 0.0
    assert Fidelity(0, 0, 3).kept is None


@pytest.mark.parametrize(
    ("source", "result"),
    [("Order A77-x.", "77"), ("It is 12.5% now", "12"), ("1,499 crowns", "499"), ("3.5 km", "5")],
)
def test_a_part_of_a_fact_is_another(source, result):
    assert fidelity(source, result)["numbers"].n_altered == 1


def test_what_the_neighbours_hid_is_not_altered():
    assert fidelity("v2@77", "77")["numbers"] == Fidelity(1, 1, 0)
    assert fidelity("see a/b2 there", "b2")["identifiers"] == Fidelity(0, 0, 0)


def test_lists_of_numbers():
    assert PATTERNS["numbers"].findall("[1,2,3]\n10,5\n3.5kg") == ["1", "2", "3", "10", "5"]


def test_no_pattern_is_slow():
    began = time.perf_counter()
    fidelity("a+" * 50_000, "a@" * 50_000)
    fidelity("1," * 50_000, "_a" * 50_000)
    assert time.perf_counter() - began < 5


@given(text=texts | any_texts)
def test_a_text_is_true_to_itself(text):
    for kind, found in fidelity(text, text).items():
        assert found == Fidelity(len(set(PATTERNS[kind].findall(text))), found.n_source, 0)
    assert all(found.n_kept == found.n_altered == 0 for found in fidelity(text, "").values())


@given(source=texts, result=texts)
def test_counts_are_those_of_a_slow_twin(source, result):
    for kind, found in fidelity(source, result).items():
        before = list(dict.fromkeys(match[0] for match in re.finditer(PATTERNS[kind], source)))
        after = list(dict.fromkeys(match[0] for match in re.finditer(PATTERNS[kind], result)))
        assert found.n_source == len(before)
        assert found.n_kept == len([fact for fact in before if fact in after])
        assert found.n_altered == len([fact for fact in after if fact not in before and not alone(fact, source)])


def alone(fact, source):
    """Whether it stands somewhere in the source without a neighbour that makes it part of something longer."""
    places = [place for place in range(len(source)) if source.startswith(fact, place)]
    padded = f"  {source}  "
    for place in places:
        before, after = padded[place : place + 2], padded[place + 2 + len(fact) :][:2]
        inside = re.match(r"\w", before[1]) or (before[1] in ".," and before[0].isdigit())
        goes_on = re.match(r"[\w%]", after[0]) or (after[0] in ".," and after[1].isdigit())
        if not inside and not goes_on:
            return True
    return False


@given(source=texts | any_texts, data=st.data())
def test_leaving_out_whole_words_alters_nothing(source, data):
    words = source.split()
    assume(words)
    chosen = data.draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))
    kept = "\n".join(word for word, is_kept in zip(words, chosen, strict=True) if is_kept)
    found = fidelity(source, kept)
    assert not any(found[kind].n_altered for kind in ("numbers", "dates", "identifiers"))
