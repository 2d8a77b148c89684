"""Results: text, spans and documents agree, through one stage and two."""

from hypothesis import given
from hypothesis import strategies as st
from strategies import documents, proses, subsets

from kompakt.compressor.results import (
    fits,
    fragments_of,
    from_fragments,
    joined_text,
    text_of,
    to_part,
    traced_back,
    unchanged,
)
from kompakt.compressor.types import Document, Kind, Outcome, Span, Status
from kompakt.compressor.units.render import Fragment, render
from kompakt.compressor.units.segment import segment
from kompakt.compressor.units.sentences import split_words
from kompakt.compressor.validity import check


class Characters:
    def count(self, text):
        return len(text)


def stage(sources, kept_of, *, prose=split_words, mark=False):
    units = segment(sources, prose=prose)
    fragments = render(units, kept_of(units), mark_omissions=mark)
    return from_fragments(sources, fragments, Characters(), len(joined_text(sources)))


@given(documents(proses), st.booleans(), st.data())
def test_two_stages_point_back_to_the_first_sources(sources, mark, data):
    def draw(units):
        return data.draw(subsets(units))

    first = stage(sources, draw, mark=mark)
    second = stage(first.documents, draw, mark=mark)
    both = traced_back(second, first)
    assert both.text == second.text
    assert both.sources == sources
    texts = {source.id: source.text for source in sources}
    for piece in (piece for part in both.parts for piece in fragments_of(part)):
        assert 0 <= piece.span.start <= piece.span.end <= len(texts[piece.span.document_id])
        if piece.span.kind not in (Kind.OMISSION, Kind.SEPARATOR):
            assert piece.text == texts[piece.span.document_id][piece.span.start : piece.span.end]
    check(both)
    third = stage(both.documents, draw)
    check(traced_back(third, both))


def test_separators_and_marks_keep_their_place_through_two_stages():
    source = Document("One two. Three four. Five six. Seven.", id="a")
    first = stage([source], lambda units: {0, 1, 4, 5, 6}, mark=True)
    assert first.text == "One two. […] Five six. Seven."
    second = stage(first.documents, lambda units: {0, 4}, mark=True)
    assert second.text == "One […] six. […]"
    both = traced_back(second, first)
    omissions = [span for span in both.spans if span.kind is Kind.OMISSION]
    assert omissions[0].start == 3
    assert omissions[-1].end == len(source.text)


def test_a_separator_points_to_where_the_text_goes_on():
    source = Document("a-b-c", id="x", protected=())
    earlier = from_fragments(
        [source],
        [
            [
                Fragment("a", Span("x", 0, 1)),
                Fragment(" ", Span("x", 2, 2, Kind.SEPARATOR)),
                Fragment("b-c", Span("x", 2, 5)),
            ]
        ],
        Characters(),
        5,
    )
    later = from_fragments(
        earlier.documents,
        [
            [
                Fragment("a", Span("x", 0, 1)),
                Fragment("+", Span("x", 4, 4, Kind.SEPARATOR)),
                Fragment("c", Span("x", 4, 5)),
            ]
        ],
        Characters(),
        5,
    )
    assert traced_back(later, earlier).spans == (
        Span("x", 0, 1), Span("x", 4, 4, Kind.SEPARATOR), Span("x", 4, 5),
    )  # fmt: skip


def test_documents_are_joined_by_an_empty_line_and_empty_ones_left_out():
    sources = [Document("One.", id="a"), Document("Two.", id="b"), Document("Three.", id="c", metadata={"k": 1})]
    result = stage(sources, lambda units: {0, 2}, prose=lambda text: [(0, len(text))])
    assert result.text == "One.\n\nThree."
    assert result.documents == (sources[0], sources[2])
    assert [result.parts[0].source_of(offset).document_id for offset in (0, 4, 6)] == ["a", "c", "c"]
    assert (result.tokens_before, result.tokens_after, result.n_bytes) == (18, 12, 12)


@given(documents(proses), st.data())
def test_the_text_of_fragments_is_that_of_their_part(sources, data):
    units = segment(sources)
    fragments = render(units, data.draw(subsets(units)))
    assert text_of(fragments) == to_part(fragments).text


def test_protected_ranges_move_with_the_text():
    source = Document("Some words before the secret 42 and after", id="a", protected=((29, 31),))
    result = stage([source], lambda units: {n for n, unit in enumerate(units) if unit.protected})
    assert result.text == "42"
    assert result.documents[0].protected == ((0, 2),)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=8), st.data())
def test_protected_ranges_move_however_they_overlap(pairs, data):
    text = "one two three four five six seven eight nine ten eleven twelve"
    ranges = tuple((start, min(start + n, len(text))) for start, n in pairs)
    units = segment([Document(text, id="a", protected=ranges)], prose=split_words)
    needed = {n for n, unit in enumerate(units) if unit.protected}
    kept = needed | data.draw(st.sets(st.integers(0, len(units) - 1)))
    result = stage(units.documents, lambda _: kept)
    expected, position = [], 0
    for piece in render(units, kept)[0]:
        for start, end in ranges:
            first, last = max(start, piece.span.start), min(end, piece.span.end)
            if piece.span.protected and first < last:
                expected.append((position + first - piece.span.start, position + last - piece.span.start))
        position += len(piece.text)
    assert [document.protected for document in result.documents] == ([tuple(expected)] if kept else [])


@given(documents())
def test_unchanged_results_are_the_input(sources):
    result = unchanged(sources, 7, Outcome(Status.PASSED_THROUGH, "why"))
    assert result.text == joined_text(sources)
    assert result.documents == sources
    assert (result.tokens_before, result.tokens_after, result.outcome.reason) == (7, 7, "why")
    assert fits(sources, 7, "x", 0.1).outcome.status is Status.FITS


def test_nothing_makes_no_part():
    assert unchanged([], 0, Outcome(Status.FITS)).parts == ()
    assert to_part([[], []]).text == ""
