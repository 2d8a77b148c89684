"""The local reader against an obvious twin: the logits of all tokens at once, again for every token."""

import json

import pytest
from tiny_models import CONTEXT, FAMILIES, save_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from reader_parts import Twin, ask, part, reader_of  # noqa: E402 (needs torch)

from kompakt.adapters.transformers import TransformersBackend  # noqa: E402
from kompakt.compressor.backend import Backend, Prompt, load_backend  # noqa: E402
from kompakt.compressor.errors import InputError, ModelError, ModelNotFoundError  # noqa: E402

SPECIAL = "<|endoftext|>"
TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m['role'] }}:{{ m['content'] }}{% endfor %}<|endoftext|>A:"


@pytest.fixture(scope="module", params=[*FAMILIES, "window"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / request.param
    if request.param == "window":
        # its layers see four tokens back
        return save_model(path, "mistral", sliding_window=4)
    return save_model(path, request.param)


@pytest.fixture(scope="module")
def reader(folder):
    return reader_of(folder)


@pytest.fixture
def llama(tmp_path):
    return save_model(tmp_path / "llama")


@pytest.fixture(scope="module")
def twin(folder):
    return Twin(folder)


@pytest.mark.parametrize("text", ["abc", "The", "x t t y", "", "Ünï 雪"])
def test_the_answer_equals_the_twins(reader, twin, text):
    made = reader.generate(ask(text), max_new_tokens=6)
    ids = [0, *twin.ids(text)]
    expected = twin.greedy(ids, n=6)
    assert made.text == twin.tokenizer.decode(expected).strip()
    assert (made.n_positions, made.n_tokens) == (len(ids), len(expected))


@pytest.mark.parametrize("text", ["abc", "0123456789", ""])
def test_likelihoods_equal_the_twins(reader, twin, text):
    targets = ("x", "yes no", " t", "yes")
    made = reader.generate(ask(text), max_new_tokens=0, targets=targets)
    for target, found in zip(targets, made.likelihoods, strict=True):
        ids = twin.ids(target)
        assert found.n_tokens == len(ids)
        assert found.total == pytest.approx(twin.likelihood([0, *twin.ids(text)], ids), abs=1e-4)


def test_targets_disturb_neither_each_other_nor_the_answer(reader):
    targets = ("long target", "a", "another", "a")
    together = reader.generate(ask("0123456"), max_new_tokens=5, targets=targets)
    alone = [
        reader.generate(ask("0123456"), max_new_tokens=0, targets=(target,)).likelihoods[0] for target in targets
    ]
    assert [one.total for one in together.likelihoods] == pytest.approx([one.total for one in alone], abs=1e-5)
    assert together.likelihoods[1] == together.likelihoods[3]
    assert together.text == reader.generate(ask("0123456"), max_new_tokens=5).text != ""


def test_the_prompt_is_read_once(reader, monkeypatch):
    read = []
    forward = reader._lm.model.forward

    def counted(*args, **options):
        read.append(options["input_ids"].shape[1])
        return forward(*args, **options)

    monkeypatch.setattr(reader._lm.model, "forward", counted)
    reader.generate(ask("0123456789"), max_new_tokens=2, targets=("abc", "d"))
    assert read == [11, 2, 1]


def test_before_parts_and_after_stand_in_their_order(reader):
    split = Prompt((part("b"), part("c")), before="a", after="d", is_chat=False)
    assert reader.generate(split, max_new_tokens=6).text == reader.generate(ask("abcd"), max_new_tokens=6).text


def test_a_special_token_spelled_in_text_stays_text(reader, twin):
    made = reader.generate(ask(SPECIAL), max_new_tokens=2, targets=(SPECIAL[:8],))
    assert made.n_positions == 1 + len(SPECIAL)
    ids = twin.ids(SPECIAL)
    assert 0 not in ids
    assert made.text == twin.tokenizer.decode(twin.greedy([0, *ids], n=2)).strip()
    assert made.likelihoods[0].n_tokens == 8


def test_the_answer_ends_before_the_stop(reader):
    whole = reader.generate(ask("abc"), max_new_tokens=6)
    stop = whole.text.split(" ")[2] if " " in whole.text else whole.text[2]
    made = reader.generate(ask("abc", stop=stop), max_new_tokens=6)
    assert made.text == whole.text.partition(stop)[0].strip()
    assert made.n_tokens < whole.n_tokens


def test_the_answer_ends_at_a_token_that_ends_texts(folder, twin):
    reader = reader_of(folder)
    ids = [0, *twin.ids("abc")]
    answer = twin.greedy(ids, n=3)
    # cached properties are plain attributes: the third token now ends texts
    reader.__dict__["_stops"] = frozenset({answer[2]})
    made = reader.generate(ask("abc", is_chat=True), max_new_tokens=6)
    assert made.n_tokens == answer.index(answer[2])
    reader.__dict__["_stops"] = frozenset({answer[0]})
    nothing = reader.generate(ask("abc", is_chat=True), max_new_tokens=6)
    assert (nothing.text, nothing.n_tokens, nothing.tokens_per_second) == ("", 0, 0.0)
    # a text that is to be continued may end at once, too
    nothing = reader.generate(ask("abc"), max_new_tokens=6)
    assert (nothing.text, nothing.n_tokens, nothing.token_ids) == ("", 0, ())


def test_the_models_own_end_tokens_end_answers(reader, folder):
    assert reader._stops == {0}
    config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [0, 7]}), encoding="utf-8")
    try:
        assert reader_of(folder)._stops == {0, 7}
    finally:
        (folder / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")


def test_times_and_rates(reader):
    made = reader.generate(ask("abc"), max_new_tokens=4)
    assert made.seconds_to_first > 0
    assert made.n_tokens == 4
    assert made.tokens_per_second > 0
    assert reader.generate(ask("abc"), max_new_tokens=1).tokens_per_second == 0
    nothing = reader.generate(ask("abc"), max_new_tokens=0, targets=("x",))
    assert (nothing.text, nothing.n_tokens) == ("", 0)
    assert nothing.seconds_to_first > 0


def test_prompt_and_answer_must_fit(reader):
    assert reader.max_positions == CONTEXT
    assert reader.generate(ask("x" * (CONTEXT - 4)), max_new_tokens=3).n_positions == CONTEXT - 3
    with pytest.raises(
        InputError, match=f"prompt has {CONTEXT - 3} positions and the answer may have 4.*at most {CONTEXT}"
    ):
        reader.generate(ask("x" * (CONTEXT - 4)), max_new_tokens=4)
    with pytest.raises(InputError, match="the answer may have 5"):
        reader.generate(ask("x" * (CONTEXT - 4)), max_new_tokens=0, targets=("a", "12345"))


def test_empty_targets_and_other_forms_are_refused(reader):
    with pytest.raises(InputError, match="at least one token"):
        reader.generate(ask("abc"), max_new_tokens=1, targets=("a", ""))
    with pytest.raises(InputError, match="reads text, embeddings and caches, got a bytes"):
        reader.generate(Prompt((b"abc",)), max_new_tokens=1)


@pytest.mark.parametrize("prompt", [ask("a\ud800"), Prompt((), after="\udfff", is_chat=False)])
def test_lone_surrogates_are_refused(reader, prompt):
    with pytest.raises(InputError, match="surrogate"):
        reader.generate(prompt, max_new_tokens=1)
    with pytest.raises(InputError, match="surrogate"):
        reader.generate(ask("a"), max_new_tokens=1, targets=("\ud800",))


def test_a_model_without_a_chat_format_reads_plain_text(reader):
    plain, chat = (reader.generate(ask("abc", is_chat=is_chat), max_new_tokens=4) for is_chat in (False, True))
    assert (plain.text, plain.n_positions) == (chat.text, chat.n_positions)


def write_template(folder, template):
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, "eos_token": SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return reader_of(folder)


def test_the_chat_format_stands_around_the_message(llama):
    reader = write_template(llama, TEMPLATE)
    twin = Twin(llama)
    # the format's special tokens are tokens, those that the message spells are not
    for message in ("hi", "<|end"):
        ids = [0, *twin.ids("user:"), *twin.ids(message), 0, *twin.ids("A:")]
        made = reader.generate(ask(message, is_chat=True), max_new_tokens=4, targets=("yes",))
        assert made.n_positions == len(ids)
        assert made.text == twin.tokenizer.decode(twin.greedy(ids, n=4)).strip()
        assert made.likelihoods[0].total == pytest.approx(twin.likelihood(ids, twin.ids("yes")), abs=1e-4)
    plain = reader.generate(ask("hi"), max_new_tokens=4)
    assert plain.n_positions == 3


def test_a_template_that_changes_the_message_is_refused(llama):
    reader = write_template(llama, "{{ messages[0]['content'] | upper }}")
    with pytest.raises(ModelError, match="does not write the message as it is"):
        reader.generate(ask("hi", is_chat=True), max_new_tokens=1)


def test_it_says_what_it_is(reader, folder):
    assert isinstance(reader, Backend)
    assert reader.name == str(folder)
    assert reader.accepts == {"text", "embeds", "cache"}
    assert reader.tokenizer.count("abc") == 3
    assert reader.fingerprint.endswith(" float32")
    assert len(reader.fingerprint.split()[0]) == 64


def test_other_weights_and_number_formats_are_another_fingerprint(llama, tmp_path):
    other = save_model(tmp_path / "gpt2", "gpt2")
    made = [TransformersBackend(path, dtype, "cpu") for path in (llama, other) for dtype in ("float32", "bfloat16")]
    assert len({one.fingerprint for one in made}) == 4


def test_loading_by_kind_and_folder(llama, empty_cache):
    assert load_backend("transformers", str(llama)).generate(ask("abc"), max_new_tokens=1).n_positions == 4
    with pytest.raises(ModelNotFoundError):
        TransformersBackend("smollm2-135m")


@pytest.mark.models
def test_a_real_model_knows_a_little():
    reader = TransformersBackend("smollm2-135m")
    prompt = ask("The capital of France is Paris. The capital of Spain is Madrid. The capital of Italy is", stop=".")
    made = reader.generate(prompt, max_new_tokens=8, targets=(" Rome", " Oslo"))
    assert made.text == "Rome"
    assert made.likelihoods[0].total > made.likelihoods[1].total
