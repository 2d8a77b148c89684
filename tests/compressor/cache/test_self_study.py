"""Conversations on a text: where their windows lie, who says what, and what the teacher thinks of it."""

import dataclasses
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from pathlib import Path  # noqa: E402

from reader_parts import Twin  # noqa: E402 (needs torch)

from kompakt.compressor.cache.cartridge_run import CartridgeRun  # noqa: E402
from kompakt.compressor.cache.context import read_context  # noqa: E402
from kompakt.compressor.cache.self_study import AT_ONCE, SEEDS, TOP, SelfStudy, StudySettings  # noqa: E402
from kompakt.compressor.errors import ConfigError, InputError, ModelError  # noqa: E402
from kompakt.compressor.models.causal_lm import load_causal_lm  # noqa: E402
from kompakt.compressor.models.chat_format import chat_format  # noqa: E402
from kompakt.compressor.types import as_documents  # noqa: E402

TEXT = "A short text on tea: " + " ".join(f"pot {number} holds {number * 7} cups." for number in range(20))
SETTINGS = StudySettings(n_conversations=20, min_window=30, max_window=50, max_conversation=100)


def study_of(folder, *, text=TEXT, seed=0, is_chat=True, **changed):
    lm = load_causal_lm(folder, dtype="float32", device="cpu")
    context = read_context(as_documents(text), lm, model=folder, query=None, is_chat=is_chat, before="")
    written = chat_format(folder) if is_chat else None
    settings = dataclasses.replace(SETTINGS, **changed)
    return SelfStudy(lm, context, tail=written.tail if written else None, settings=settings, seed=seed), context


def all_of(study):
    return [one for number in range(study.n_batches) for one in study.batch(number)]


@pytest.fixture(scope="module")
def chat(chat_base):
    study, context = study_of(chat_base, n_conversations=60)
    return all_of(study), context


def assert_taught(twin, before, conversation):
    """Check the teacher's word on a conversation that it reads behind its window."""
    ids = conversation.ids.tolist()
    log_p = twin.log_p([*before, *ids])[len(before) :]
    assert conversation.top_ids.shape == conversation.top_log_p.shape == (len(ids), TOP)
    expected = log_p.topk(TOP)
    torch.testing.assert_close(conversation.top_log_p.double(), expected.values, atol=1e-4, rtol=0)
    torch.testing.assert_close(log_p.gather(1, conversation.top_ids), expected.values, atol=1e-4, rtol=0)


def test_there_are_as_many_as_wanted_in_batches(chat):
    conversations, _ = chat
    assert len(conversations) == 60
    assert all(2 <= len(one) <= 100 for one in conversations)


def test_windows_lie_anywhere_in_the_text(chat):
    conversations, context = chat
    lengths = {one.record["length"] for one in conversations}
    starts = {one.record["start"] for one in conversations}
    assert min(lengths) >= 30
    assert max(lengths) <= 50
    assert len(lengths) > 10
    assert max(one.record["start"] + one.record["length"] for one in conversations) <= len(context.ids)
    assert min(starts) < len(context.ids) / 4 < len(context.ids) / 2 < max(starts)


def test_all_types_of_messages_are_asked_for_and_some_ask_for_a_chain_of_thought(chat):
    conversations, _ = chat
    assert {one.record["kind"] for one in conversations} == {seed.kind for seed in SEEDS}
    n_chains = sum("step by step" in one.record["message"] for one in conversations)
    assert 0.05 < n_chains / len(conversations) < 0.4


def test_a_conversation_is_a_message_in_the_chat_format_and_its_answer(chat, chat_base):
    conversations, context = chat
    twin = Twin(Path(chat_base))
    tail = list(chat_format(chat_base).tail)
    for one in conversations[:8]:
        ids = one.ids.tolist()
        message = twin.ids("\n\n" + one.record["message"])[:50]
        assert ids[: len(message) + len(tail)] == [*message, *tail]
        answer = ids[len(message) + len(tail) :]
        assert twin.tokenizer.decode(answer).strip() == one.record["answer"]
        start, length = one.record["start"], one.record["length"]
        assert_taught(twin, [*context.before, *context.ids[start : start + length]], one)


def test_a_description_stands_before_the_window(base):
    study, context = study_of(base, targets="text", n_conversations=2, description="On tea.")
    twin = Twin(Path(base))
    for one in study.batch(0):
        window = [
            context.ids[(one.record["start"] + index) % len(context.ids)] for index in range(one.record["length"])
        ]
        assert_taught(twin, [*context.before, *twin.ids("On tea.\n\n"), *window], one)


def test_a_text_goes_on_behind_its_window_as_a_ring(base):
    study, context = study_of(base, targets="text", n_conversations=40, max_conversation=32)
    n_tokens = len(context.ids)
    seen = set()
    for one in all_of(study):
        first = one.record["start"] + one.record["length"]
        assert one.ids.tolist() == [context.ids[(first + index) % n_tokens] for index in range(32)]
        seen |= {(first + index) % n_tokens for index in range(32)}
    assert len(seen) > 0.8 * n_tokens


def test_in_a_chat_format_the_text_is_the_answer_to_a_message_that_asks_for_it(chat_base):
    study, context = study_of(chat_base, targets="text", n_conversations=40, max_conversation=90)
    twin = Twin(Path(chat_base))
    tail = list(chat_format(chat_base).tail)
    doubled = [*context.ids, *context.ids]
    seen = set()
    for one in all_of(study):
        ids, record = one.ids.tolist(), one.record
        opened = [*twin.ids("\n\n" + record["message"])[:45], *tail]
        assert ids[: len(opened)] == opened
        window = doubled[record["start"] : record["start"] + record["length"]]
        answer = ids[len(opened) :]
        places = [place for place in range(len(window)) if window[place : place + len(answer)] == answer]
        cues = [twin.tokenizer.decode(window[place - 12 : place]).strip() for place in places]
        assert answer
        assert any(record["message"] == f"Quote what follows these words of the text: {cue}" for cue in cues)
        seen |= {record["start"] + places[0]}
    assert len(seen) > 20
    assert_taught(twin, [*context.before, *window], one)


def test_a_text_shorter_than_a_window_gives_shorter_ones(base):
    study, context = study_of(base, text="Forty-two.", targets="text", n_conversations=8)
    for one in study.batch(0):
        assert one.record["length"] == len(context.ids) // 2
        assert len(one) == len(context.ids) - one.record["length"]
    study, context = study_of(base, text="Forty-two.", n_conversations=8)
    assert {one.record["length"] for one in study.batch(0)} == {len(context.ids)}


def test_a_model_without_a_chat_format_is_asked_in_plain_text(base):
    study, _ = study_of(base, n_conversations=3)
    twin = Twin(Path(base))
    for one in study.batch(0):
        message, tail = twin.ids("\n\n" + one.record["message"])[:50], twin.ids("\nAnswer:")
        assert one.ids.tolist()[: len(message) + len(tail)] == [*message, *tail]


def test_a_batch_depends_on_the_seed_and_its_number_alone(chat_base):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, other = study_of(chat_base)[0], study_of(chat_base, seed=1)[0]
    late = study_of(chat_base)[0].batch(1)
    first, second = one.batch(0), one.batch(1)
    assert [item.record for item in second] == [item.record for item in late]
    assert all(own.top_log_p.equal(its.top_log_p) for own, its in zip(second, late, strict=True))
    records = [item.record for item in first]
    assert records != [item.record for item in second]
    assert records != [item.record for item in other.batch(0)]
    # whoever else draws lots in this process is not disturbed
    assert torch.random.get_rng_state().equal(state)


def test_conversations_are_read_from_files_as_they_were_written(chat_base, tmp_path):
    study, _ = study_of(chat_base)
    made = study.batch(0)
    with CartridgeRun(tmp_path / "run", {"name": 1}) as run:
        assert run.conversations(0) is None
        run.add_conversations(0, made)
    with CartridgeRun(tmp_path / "run", {"name": 1}) as run:
        back = run.conversations(0)
    assert len(back) == AT_ONCE
    for own, its in zip(made, back, strict=True):
        assert own.record == its.record
        assert all(getattr(own, name).equal(getattr(its, name)) for name in ("ids", "top_ids", "top_log_p"))


def test_what_a_text_says_may_hold_other_ends_of_lines(chat_base, tmp_path):
    folder = Path(shutil.copytree(chat_base, tmp_path / "decoder"))
    # one that writes characters, not the names of their bytes
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    study, _ = study_of(str(folder), text="One.\u2028\x85Two.\u2029" * 20, targets="text", n_conversations=8)
    made = study.batch(0)
    answers = "".join(one.record["answer"] for one in made)
    assert all(sign in answers for sign in ("\u2028", "\x85", "\u2029"))
    with CartridgeRun(tmp_path / "run", {}) as run:
        run.add_conversations(0, made)
        assert [one.record for one in run.conversations(0)] == [one.record for one in made]


@pytest.mark.parametrize("cut", [slice(None, -1), slice(1, None)])
def test_a_batch_with_fewer_descriptions_than_conversations_is_damaged(chat_base, tmp_path, cut):
    study, _ = study_of(chat_base, targets="text", n_conversations=8)
    with CartridgeRun(tmp_path / "run", {}) as run:
        run.add_conversations(0, study.batch(0))
        file = tmp_path / "run" / "conversations-00000.jsonl"
        file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[cut]), encoding="utf-8")
        with pytest.raises(ModelError, match="8 conversations, and 7 are described; delete it"):
            run.conversations(0)


def test_no_conversation_goes_beyond_the_positions_of_its_decoder(opt_base):
    # windows fill the decoder up, and messages of several lengths lie behind them
    sizes = {"min_window": 1024, "max_window": 1024, "max_conversation": 400}
    study, context = study_of(opt_base, text=TEXT * 4, is_chat=False, n_conversations=8, **sizes)
    made = study.batch(0)
    assert {one.record["length"] for one in made} == {1024 - 400 - len(context.before)}
    assert len({one.record["message"] for one in made}) > 1
    assert all(len(one) <= 400 for one in made)


def test_a_decoder_without_room_is_told_so(base):
    with pytest.raises(InputError, match="reads 1024"):
        study_of(base, max_conversation=1100)
    with pytest.raises(InputError, match="too short to study"):
        study_of(base, text="a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": "words"},
        {"n_conversations": 0},
        {"min_window": 60},
        {"min_window": 0},
        {"max_conversation": 3},
        {"temperature": 0.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        dataclasses.replace(SETTINGS, **wrong)
