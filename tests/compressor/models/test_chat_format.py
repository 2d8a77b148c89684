"""What chat templates write around a message."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tokenizers
from tiny_models import save_tokenizer

from kompakt.compressor.errors import ModelError, ModelNotFoundError
from kompakt.compressor.models.chat_format import chat_format

SPECIAL = "<|endoftext|>"


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(tmp_path)
    return tmp_path


def write(folder, template):
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, "eos_token": SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def ids(folder, text):
    return tuple(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)


def test_what_stands_around_the_message_holds_special_tokens(folder):
    answer = "{% if add_generation_prompt %}A:{% endif %}"
    write(folder, SPECIAL + "user: {{ messages[0]['content'] }}" + SPECIAL + answer)
    written = chat_format(folder)
    assert written.head == (0, *ids(folder, "user: "))
    assert written.tail == (0, *ids(folder, "A:"))
    assert chat_format(str(folder)) is written


def test_a_template_may_write_nothing_around_it(folder):
    written = chat_format(write(folder, "{{ messages[0]['content'] }}"))
    assert (written.head, written.tail) == ((), ())


def test_a_template_may_trim_the_message(folder):
    assert chat_format(write(folder, "> {{ messages[0]['content'] | trim }}")).head == ids(folder, "> ")


def test_a_model_without_a_template_has_no_format(folder):
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert chat_format(folder) is None


def test_a_changed_template_is_read_anew(folder):
    before = chat_format(write(folder, "a{{ messages[0]['content'] }}"))
    after = chat_format(write(folder, "bb{{ messages[0]['content'] }}"))
    assert (len(before.head), len(after.head)) == (1, 2)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] | upper }}", "does not write the message as it is"),
        ("nothing", "does not write the message as it is"),
        ("{{ messages[0]['content'] }} {{ messages[0]['content'] }}", "as it is, and once"),
        ("{{ raise_exception('give a system message') }}", "cannot write a single message of a user: give a system"),
        ("{% if %}", "cannot write a single message of a user"),
        ("{{ messages[0]['content'] + 1 }}", "cannot write a single message of a user"),
    ],
)
def test_templates_that_cannot_be_used_are_named(folder, template, message):
    with pytest.raises(ModelError, match=message) as caught:
        chat_format(write(folder, template))
    assert str(folder) in str(caught.value)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=f"the tokenizer in {tmp_path} cannot be loaded"):
        chat_format(tmp_path)
    with pytest.raises(ModelNotFoundError):
        chat_format(tmp_path / "nowhere")
