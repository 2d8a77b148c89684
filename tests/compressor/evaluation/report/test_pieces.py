import json
import math

from kompakt.compressor.evaluation.report import formats, pieces
from kompakt.compressor.inspection import InspectedDocument, Piece, View


def decoded(payload, example, view):
    """Return the pieces of each document of a view as a script would cut them: text, whether kept, stage, score."""
    shown = payload["examples"][example]
    for place, flat in shown["views"][view]["documents"]:
        units = shown["sources"][place][2].encode("utf-16-le")
        found, at = [], 0
        for length, code, score in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
            text = units[2 * at : 2 * (at + length)].decode("utf-16-le")
            found.append((text, code % 2 == 1, payload["stages"][code // 2 // (pieces.N_LEVELS + 1)], score))
            at += length
        assert not flat or 2 * at == len(units)
        yield found


def test_the_script_gets_every_character_with_its_fate(summary):
    payload = json.loads(json.dumps(pieces.payload(summary), allow_nan=False))
    for number, example in enumerate(summary.examples[:4]):
        for index, view in enumerate(example.views):
            for document, found in zip(view.documents, decoded(payload, number, index), strict=True):
                assert [text for text, *_ in found] == [
                    formats.harmless(document.text)[piece.start : piece.end] for piece in document.pieces
                ]
                assert [(kept, stage) for _, kept, stage, _ in found] == [
                    (piece.is_kept, piece.stage) for piece in document.pieces
                ]


def test_each_source_is_stored_once(summary):
    payload = pieces.payload(summary)
    assert [len(example["sources"]) for example in payload["examples"]] == [4] * len(summary.examples)


def test_only_methods_without_pieces_bring_their_text(summary):
    payload = pieces.payload(summary)
    peers = {method.name for method in summary.methods if method.role == "peer"}
    assert {view["method"] for view in payload["examples"][0]["views"] if "text" in view} == peers


def view_of(*found):
    return View("m", "", "compressed", 10, 5, (InspectedDocument("0", "", "x" * found[-1].end, found),), "")


def test_tints_follow_the_rank_within_a_stage():
    found = [Piece(n, n + 1, True, "a", score) for n, score in enumerate((5.0, -1.0, 900.0))]
    found += [
        Piece(3, 4, True, "b", 0.001),
        Piece(4, 5, False, "a", 3.0),
        Piece(5, 6, True),
        Piece(6, 7, True, "a", math.nan),
    ]
    levels = pieces.Levels(view_of(*found))
    assert [levels.of(piece) for piece in found] == [3, 1, 5, 3, 0, 0, 0]


def test_scores_without_a_number_still_make_valid_json(summary):
    for score, shown in ((math.inf, "inf"), (math.nan, "nan"), (0.123456, 0.1235), (None, None)):
        assert pieces._short(score) == shown


def test_fates_are_told_in_words():
    assert pieces.fate(Piece(0, 1, True, "lexical", 0.7312345)) == "kept by lexical, score 0.7312"
    assert pieces.fate(Piece(0, 1, False, "dedup")) == "dropped by dedup"
    assert pieces.fate(Piece(0, 1, True)) == "kept"


def test_shares_and_ranges_of_kept_text():
    document = InspectedDocument(
        "0", "", "x" * 10, (Piece(0, 2, True), Piece(2, 4, True), Piece(4, 9, False), Piece(9, 10, True))
    )
    assert pieces.share(document) == 0.5
    assert pieces.kept_ranges(document) == [(0.0, 400.0), (900.0, 100.0)]
    assert pieces.share(InspectedDocument("0", "", "text", ())) is None
    assert pieces.share(InspectedDocument("0", "", "", ())) is None
