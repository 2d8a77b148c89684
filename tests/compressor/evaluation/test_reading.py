import pytest
from evaluation_parts import TEXT, TOKENIZER, Reader, example

from kompakt.compressor.base import make_request
from kompakt.compressor.errors import BackendError, InputError
from kompakt.compressor.evaluation.controls import Full
from kompakt.compressor.evaluation.reading import MAX_NEW_TOKENS, Reading, prompt_of, read
from kompakt.compressor.types import Budget


def result(text=TEXT):
    return Full().compress_batch([make_request(text, budget=Budget(keep=1.0), tokenizer=TOKENIZER)])[0]


def asked(backend, one=None, *, is_chat=False, max_positions=9999, **options):
    return read(backend, one or example(), result(), is_chat=is_chat, max_positions=max_positions, **options)


def written(prompt):
    return prompt.before + "".join(part.text for part in prompt.parts) + prompt.after


def test_the_question_stands_after_the_context():
    prompt = prompt_of(example(), result(), is_chat=False)
    assert written(prompt) == f"{TEXT}\n\nQuestion: Who drew the plans?\nAnswer:"
    assert (prompt.stop, prompt.is_chat) == ("\n", False)


def test_in_chat_it_is_told_to_be_brief():
    prompt = prompt_of(example(), result(), is_chat=True)
    assert prompt.is_chat
    assert "Question: Who drew the plans?" in prompt.after
    assert "as few words" in prompt.after


def test_the_instruction_stands_before_the_context_and_the_form_of_asking_is_the_tasks():
    one = example(question="{braces}", instruction="Label each line.", asked="Line: {}\nLabel:")
    assert written(prompt_of(one, result("a"), is_chat=False)) == "Label each line.\n\na\n\nLine: {braces}\nLabel:"


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_continuation_is_never_a_chat_and_has_nothing_after(is_chat):
    prompt = prompt_of(example(target="continuation"), result("Once upon"), is_chat=is_chat)
    assert (written(prompt), prompt.is_chat, prompt.stop) == ("Once upon", False, "")


def test_a_reconstruction_asks_for_the_text_again():
    prompt = prompt_of(example(target="reconstruction"), result("Once upon"), is_chat=False)
    assert written(prompt).startswith("Once upon\n\nRepeat")
    assert prompt.after.endswith("\n")


@pytest.mark.parametrize(
    ("target", "is_chat", "expected", "n_new"),
    [
        ("answer", False, " Petr Parler", MAX_NEW_TOKENS),
        ("answer", True, "Petr Parler", MAX_NEW_TOKENS),
        ("continuation", False, " Petr Parler", 0),
        ("continuation", True, " Petr Parler", 0),
        ("reconstruction", False, "Petr Parler", 0),
    ],
)
def test_what_is_asked_of_the_reader(target, is_chat, expected, n_new):
    backend = Reader()
    asked(backend, example(target=target, answers=("Petr Parler", "Parler")), is_chat=is_chat)
    [(_, max_new_tokens, targets)] = backend.calls
    assert (max_new_tokens, targets) == (n_new, (expected,))


def test_scores_of_an_answer():
    made = asked(Reader("the Parler!"), example(answers=("Petr Parler", "nobody")))
    assert made.metrics == {"log_likelihood": -1.5, "f1": pytest.approx(2 / 3), "exact_match": 0.0}
    assert (made.text, made.n_positions, made.seconds_to_first, made.tokens_per_second) == (
        "the Parler!",
        40,
        0.25,
        50,
    )
    assert made.not_read == ""
    assert asked(Reader("nobody."), example(answers=("Petr Parler", "nobody"))).metrics["exact_match"] == 1


def test_texts_that_go_on_are_scored_by_likelihood_alone():
    assert asked(Reader(), example(target="continuation")).metrics == {"log_likelihood": -1.5}


def test_a_reader_that_cannot_tell_gives_no_likelihood():
    assert set(asked(Reader(tells=False)).metrics) == {"f1", "exact_match"}


def test_without_new_tokens_answers_are_not_scored():
    backend = Reader()
    assert asked(backend, max_new_tokens=0).metrics == {"log_likelihood": -1.5}
    assert backend.calls[0][1] == 0


def test_a_context_that_is_too_long_is_not_shown_to_the_reader():
    backend = Reader()
    n = TOKENIZER.count(TEXT)
    assert asked(backend, max_positions=n).not_read == ""
    assert asked(backend, max_positions=n - 1) == Reading(not_read=f"the context has {n} tokens, more than {n - 1}")
    assert len(backend.calls) == 1


def test_what_the_reader_refuses_was_not_read():
    assert asked(Reader(error=InputError("too long"))) == Reading(not_read="too long")


def test_a_reader_that_fails_is_an_error():
    with pytest.raises(BackendError, match="gone"):
        asked(Reader(error=BackendError("gone")))
