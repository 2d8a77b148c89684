"""Made questions have one answer, and give away nothing but where it stands."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import SOURCES
from strategies import any_texts, sentences

from kompakt import Document
from kompakt.compressor.evaluation.fidelity import PATTERNS
from kompakt.compressor.evaluation.made_questions import make_questions
from kompakt.compressor.results import joined_text

WORDS = "amber bronze cedar delta ebony flax garnet hazel ivory juniper".split()
TEXT = "\n".join(f"The {word} harbour took {n * 37 + 11} ships in winter." for n, word in enumerate(WORDS))
ASKED = {
    "Which date": "dates",
    "Which identifier": "identifiers",
    "Which quotation": "quotations",
    "Which number": "numbers",
}
contents = st.lists(
    sentences
    | st.sampled_from(["On 14 March 2019 the ship sank.", "Ship 77 was lost.", 'He said "so it is" again.']),
    min_size=1,
    max_size=12,
).map("\n".join)


def asked(text, **options):
    return [(made.question, made.answers) for made in make_questions([Document(text, "a")], **options)]


def test_a_question_names_the_passage_and_not_the_answer():
    made = make_questions([Document(TEXT, "notes")], per_document=3)
    assert [example.id for example in made] == ["notes-1", "notes-2", "notes-3"]
    for example in made:
        (answer,) = example.answers
        word = WORDS[(int(answer) - 11) // 37]
        # the rarest word comes with words of the passage, in their order
        assert example.question == f"Which number is given for the, {word}, harbour, took?"
        assert example.documents == (Document(TEXT, "notes"),)
        assert (example.task, example.group, example.target) == ("questions", "notes", "answer")


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        (
            "In 1912 on 14 April 1912 a great ship sank.",
            "Which date is given for great, ship, sank?",
            "14 April 1912",
        ),
        ("The key user_id holds 42 values.", "Which identifier is given for the, key, holds, values?", "user_id"),
        ('They said "never" some 42 times.', "Which quotation is given for they, said, some, times?", '"never"'),
        ("They counted 42 ships.", "Which number is given for they, counted, ships?", "42"),
    ],
)
def test_the_most_salient_fact_is_asked_for(text, question, answer):
    assert asked(text) == [(question, (answer,))]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No fact stands in this sentence.",
        "They counted 42 ships.\nAnd again 42 boats.",
        "They counted 42 ships, and 1420 boats stood by.\n1420 it was.",
        "42 ships.",
    ],
    ids=["empty", "no fact", "twice", "inside another", "too few words"],
)
def test_what_cannot_be_asked_for(text):
    assert asked(text) == []


@given(text=contents | any_texts, per_document=st.integers(0, 6), seed=st.integers(0, 3))
@settings(max_examples=60)
def test_every_question_has_one_answer(text, per_document, seed):
    document = Document(text, "a")
    made = make_questions([document], per_document=per_document, seed=seed)
    assert len(made) <= per_document
    assert [example.id for example in made] == [f"a-{number}" for number in range(1, len(made) + 1)]
    assert len({example.answers for example in made}) == len(made)
    for example in made:
        (answer,) = example.answers
        kind, _, rest = example.question.partition(" is given for ")
        assert PATTERNS[ASKED[kind]].findall(answer)
        assert joined_text(example.documents).count(answer) == 1
        assert answer not in example.question
        named = rest.removesuffix("?").split(", ")
        assert 2 <= len(named) == len(set(named)) <= 4
        assert all(word in text.lower() for word in named)


def test_rare_words_are_named_before_common_ones():
    common = "\n".join(f"The steady old northern harbour is full of ships and cargo {word}." for word in WORDS)
    (made,) = make_questions([Document(f"{common}\nThe steady old northern zeppelin left harbour 42 in snow.", "a")])
    named = made.question.removeprefix("Which number is given for ").removesuffix("?").split(", ")
    assert {"zeppelin", "left", "snow"} < set(named)
    assert len(named) == 4


def test_a_key_is_no_answer():
    settings_file = {
        "service": {"label": "harbour", "region": "north coast"},
        "limits": {"most": 10, "note": "ships"},
    }
    for text in (json.dumps(settings_file), json.dumps(settings_file, indent=2), json.dumps([settings_file])):
        answers = {answer for _, (answer,) in asked(text)}
        assert not answers & {'"service"', '"label"', '"region"', '"limits"', '"most"', '"note"'}
    assert asked('{"harbour": {"keeper of ships": "Jane Doe"}}')[0][1] == ('"Jane Doe"',)


def test_code_and_tables_have_questions_too():
    table = "name\tcity\tage\n" + "\n".join(f"Ada {word}\tUlm\t{n + 30}" for n, word in enumerate(WORDS))
    assert len(asked(table)) == 10
    assert asked(SOURCES["python"])


def test_the_seed_decides_which_are_asked():
    many = {seed: asked(TEXT, per_document=3, seed=seed) for seed in range(6)}
    assert many[0] == asked(TEXT, per_document=3)
    assert len({str(sorted(questions)) for questions in many.values()}) > 1
    everything = asked(TEXT, per_document=99)
    assert len(everything) == 10
    for seed, questions in many.items():
        assert len(questions) == 3
        assert set(questions) < set(everything)
        assert questions == asked(TEXT, per_document=99, seed=seed)[:3]


def test_documents_do_not_disturb_each_other():
    first, second = Document(TEXT, "a"), Document(TEXT.replace("harbour", "bay"), "b")
    together = make_questions([first, second], per_document=2)
    assert together == [*make_questions([first], per_document=2), *make_questions([second], per_document=2)]
    assert [example.group for example in together] == ["a", "a", "b", "b"]
