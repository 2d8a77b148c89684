"""A cartridge before and after it is fitted: against the decoder's own cache, and against the words of the paper."""

import dataclasses
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

from reader_parts import Twin, ask, reader_of  # noqa: E402 (needs torch)
from soft_parts import assert_close  # noqa: E402
from soft_references import cartridge as reference  # noqa: E402

from kompakt.compressor.backend import Prompt  # noqa: E402
from kompakt.compressor.cache.cartridge import Cartridge, distillation_loss  # noqa: E402
from kompakt.compressor.cache.cartridge_fitting import FitSettings, fit_cartridge  # noqa: E402
from kompakt.compressor.cache.context import read_context  # noqa: E402
from kompakt.compressor.cache.self_study import StudySettings  # noqa: E402
from kompakt.compressor.errors import ConfigError, InputError, ModelError  # noqa: E402
from kompakt.compressor.models.causal_lm import load_causal_lm  # noqa: E402
from kompakt.compressor.types import Document, as_documents  # noqa: E402

TEXT = (
    "The ferry leaves at seven. Its captain is called Anna Brun, and she pays no toll. In winter it stays there "
    "because the ice is thick. A ticket costs four crowns, or three with a stamp."
)
STUDY = StudySettings(
    targets="text", n_conversations=18, min_window=40, max_window=60, max_conversation=24
)  # fmt: skip
SETTINGS = FitSettings(n_held_out=4, checkpoint_every=3, study=STUDY)
SMALL = {"n_positions": 16, "settings": SETTINGS, "dtype": "float32", "device": "cpu"}
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def begun(folder, n_positions, *, is_chat=False, before="", text=TEXT, **options):
    lm = load_causal_lm(folder, dtype="float32", device="cpu")
    context = read_context(as_documents(text), lm, model=folder, query=None, is_chat=is_chat, before=before)
    return Cartridge(lm, context, n_positions=n_positions, **options)


def moved(cartridge, scale=0.3):
    """Change the parameters as a fitting would."""
    noise = torch.randn(cartridge.trained.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        cartridge.trained += scale * noise
    return cartridge


def test_it_begins_as_the_decoders_own_cache(chat_base):
    cartridge = begun(chat_base, 20, is_chat=True, before="On ferries: ")
    ids = [*cartridge.context.before, *cartridge.context.ids[:20]]
    keys, values = Twin(Path(chat_base)).cache(ids)
    first = len(cartridge.context.before)
    part = cartridge.part()
    for made, own in zip([*part.keys, *part.values], [*keys, *values], strict=True):
        assert_close(made, own[:, first:])
    assert part.rope == "as-is"
    assert part.source.text == TEXT


@pytest.mark.parametrize("is_chat", [False, True])
def test_all_tokens_and_no_step_read_as_the_text(chat_base, is_chat):
    reader = reader_of(chat_base)
    n_tokens = reader.tokenizer.count(TEXT)
    settings = dataclasses.replace(SETTINGS, is_chat=is_chat, before="Read: ")
    part = fit_cartridge(
        TEXT, decoder=chat_base, **SMALL | {"settings": settings, "n_positions": n_tokens}, n_steps=0
    ).part
    ends = {"before": "Read: ", "after": "?!", "is_chat": is_chat}
    (made,), (whole,) = (reader.logits([Prompt(parts, **ends)]) for parts in ((part,), (ask(TEXT).parts[0],)))
    torch.testing.assert_close(made, whole[-len(made) :], **CLOSE)


def test_every_family_reads_what_was_fitted(family):
    part = fit_cartridge(TEXT, decoder=family, **SMALL, n_steps=2).part
    reader = reader_of(family)
    made = begun(family, 16)
    with torch.no_grad():
        made.trained.copy_(torch.stack([torch.stack(part.keys), torch.stack(part.values)])[..., 1:, :])
        expected = made(torch.tensor([reader._plain_ids("So?")]))[0]
    torch.testing.assert_close(reader.logits([ask(part, "So?")])[0], expected, **CLOSE)


def test_what_it_says_and_its_loss_are_those_of_the_paper(base):
    cartridge = moved(begun(base, 6))
    model = cartridge.lm.model
    weights = dict(model.state_dict())
    whole = torch.cat([cartridge.beginning, cartridge.entries.detach()], dim=-2)
    ids = [7, 100, 33, 200, 5]
    expected = reference.log_probabilities(weights, model.config, whole[0], whole[1], ids)
    logits = cartridge(torch.tensor([ids]))[0]
    assert_close(torch.log_softmax(logits, -1), expected)
    teacher = torch.log_softmax(torch.randn(5, len(expected[0]), generator=torch.Generator().manual_seed(1)), -1)
    top = teacher.topk(reference.TOP)
    made = distillation_loss(logits, top.indices, top.values).mean()
    assert float(made.detach()) == pytest.approx(reference.loss(teacher, expected), abs=1e-5)


def test_a_teachers_tail_is_not_given_to_its_top():
    logits = torch.zeros(1, 8)
    half = torch.log(torch.tensor([[0.3, 0.2]]))
    made = distillation_loss(logits, torch.tensor([[1, 5]]), half)
    assert made.tolist() == pytest.approx([0.5 * float(torch.log(torch.tensor(8.0)))])


def test_gradients_reach_all_that_is_trained_and_nothing_else(base):
    cartridge = begun(base, 5, n_frozen=2)
    cartridge(torch.tensor([[9, 8, 7], [1, 2, 3]])).logsumexp(-1).sum().backward()
    assert cartridge.trained.grad.shape[-2] == 3
    assert bool((cartridge.trained.grad.abs().amax(-1) > 0).all())
    assert all(parameter.grad is None for parameter in cartridge.lm.model.parameters())
    assert [name for name, _ in cartridge.named_parameters()] == ["trained"]


@pytest.mark.parametrize("targets", ["text", "chat"])
def test_fitting_lowers_the_loss_of_conversations_that_it_never_saw(chat_base, targets):
    study = dataclasses.replace(STUDY, targets=targets, max_conversation=48, n_conversations=44)
    settings = dataclasses.replace(SETTINGS, batch_size=8, n_held_out=12, study=study)
    made = fit_cartridge(TEXT, decoder=chat_base, **SMALL | {"settings": settings}, n_steps=30)
    assert len(made.losses) == 30
    assert made.held_out_after < made.held_out_before - 0.03
    assert made.held_out_teacher < made.held_out_before


def test_frozen_positions_stay_and_the_others_do_not(base):
    settings = dataclasses.replace(SETTINGS, n_frozen=3)
    before, after = (
        fit_cartridge(TEXT, decoder=base, **SMALL | {"settings": settings}, n_steps=n).part for n in (0, 3)
    )  # fmt: skip
    for old, new in zip([*before.keys, *before.values], [*after.keys, *after.values], strict=True):
        assert old[:, :3].equal(new[:, :3])
        assert bool((old[:, 3:] != new[:, 3:]).any(-1).all())


def test_the_model_is_not_changed(base):
    model = load_causal_lm(base, dtype="float32", device="cpu").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit_cartridge(TEXT, decoder=base, **SMALL, n_steps=2)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_the_same_seed_gives_the_same_cache_and_another_seed_another(base):
    one, two = (fit_cartridge(TEXT, decoder=base, **SMALL, n_steps=2).part for _ in range(2))
    assert one == two
    settings = dataclasses.replace(SETTINGS, seed=1)
    assert fit_cartridge(TEXT, decoder=base, **SMALL | {"settings": settings}, n_steps=2).part != one


class KilledError(Exception):
    pass


@pytest.mark.parametrize("error", [KilledError, KeyboardInterrupt])
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(chat_base, tmp_path, error):
    study = dataclasses.replace(STUDY, targets="chat")
    options = SMALL | {"settings": dataclasses.replace(SETTINGS, study=study), "decoder": chat_base, "n_steps": 8}
    whole = fit_cartridge(TEXT, **options)

    def tell(done, total, what):
        if (done, what) == (1, "conversations") or (done == 5 and what.startswith("steps")):
            raise error

    folder = tmp_path / "run"
    with pytest.raises(error):
        fit_cartridge(TEXT, **options, folder=folder, on_progress=tell)
    assert len(list(folder.glob("conversations-*.safetensors"))) == 1
    with pytest.raises(error):
        # the first batch of conversations is there: it is told of again
        fit_cartridge(TEXT, **options, folder=folder, on_progress=lambda *told: tell(*told) if told[0] != 1 else None)
    assert json.loads((folder / "checkpoint.json").read_text())["step"] == 5
    resumed = fit_cartridge(TEXT, **options, folder=folder)
    assert resumed.losses == whole.losses
    assert resumed.part == whole.part
    assert (resumed.held_out_before, resumed.held_out_after) == (whole.held_out_before, whole.held_out_after)


def test_a_kill_that_leaves_no_time_to_save_loses_the_steps_since_the_last_checkpoint(base, tmp_path, monkeypatch):
    options = SMALL | {"decoder": base}
    whole = fit_cartridge(TEXT, **options, n_steps=8)
    fit_cartridge(TEXT, **options, n_steps=3, folder=tmp_path)
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    fit_cartridge(TEXT, **options, n_steps=5, folder=tmp_path)
    # what was there after step 3, and a half-written file of a later one
    for file in tmp_path.iterdir():
        file.unlink()
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "step-000005.safetensors").write_bytes(b"torn")
    resumed = fit_cartridge(TEXT, **options, n_steps=8, folder=tmp_path)
    assert (resumed.losses, resumed.part) == (whole.losses, whole.part)


def test_a_folder_with_other_files_is_left_as_it_is(base, tmp_path):
    (tmp_path / "step-000100.safetensors").write_bytes(b"somebody else's")
    with pytest.raises(ConfigError, match="holds other files: give a new or empty folder"):
        fit_cartridge(TEXT, **SMALL, decoder=base, n_steps=1, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["step-000100.safetensors"]


def test_a_save_removes_the_state_before_and_nothing_else(base, tmp_path):
    options = SMALL | {"decoder": base, "folder": tmp_path}
    fit_cartridge(TEXT, **options, n_steps=2)
    (tmp_path / "step-000100.safetensors").write_bytes(b"somebody else's")
    fit_cartridge(TEXT, **options, n_steps=7)
    steps = {file.name for file in tmp_path.glob("step-*")}
    assert steps == {"step-000007.safetensors", "step-000100.safetensors"}


def test_what_a_killed_process_was_writing_is_removed(base, tmp_path):
    # a kill before anything else was there, and one later
    for name in (".run.json.0123abcd.new", ".step-000003.safetensors.0123abcd.new"):
        (tmp_path / name).write_bytes(b"torn")
        fit_cartridge(TEXT, **SMALL, decoder=base, n_steps=1, folder=tmp_path)
        assert not list(tmp_path.glob(".*.new"))


def test_a_folder_in_use_is_refused_until_it_is_free(base, tmp_path):
    options = SMALL | {"decoder": base, "folder": tmp_path, "n_steps": 1}
    refused = []

    def again(*_):
        with pytest.raises(ConfigError, match="is in use by another process: wait for it, or give another folder"):
            fit_cartridge(TEXT, **options)
        refused.append(True)

    made = fit_cartridge(TEXT, **options, on_progress=again)
    assert len(refused) > 1
    with pytest.raises(ConfigError, match="seed"):
        fit_cartridge(TEXT, **options | {"settings": dataclasses.replace(SETTINGS, seed=1)})
    # neither one that ended nor one that was refused holds it still
    assert fit_cartridge(TEXT, **options).part == made.part


@pytest.mark.parametrize(
    "document",
    [Document(TEXT, protected=((4, 9),)), json.dumps([{"role": "user", "content": TEXT}])],
    ids=["protected", "chat"],
)
def test_text_that_must_be_kept_is_refused(base, document):
    with pytest.raises(InputError, match="keeps no text word for word"):
        fit_cartridge(document, **SMALL, decoder=base, n_steps=0)


def test_more_positions_than_a_decoder_has_are_refused_before_it_reads_them(opt_base):
    options = SMALL | {"n_positions": 1030}
    with pytest.raises(InputError, match="1031 positions and a conversation of 24 tokens do not fit into the 1024"):
        fit_cartridge(TEXT * 8, **options, decoder=opt_base, n_steps=0)


def test_a_finished_run_does_nothing_again_and_can_be_made_longer(base, tmp_path):
    options = SMALL | {"decoder": base, "folder": tmp_path}
    short = fit_cartridge(TEXT, **options, n_steps=4)
    told = []
    again = fit_cartridge(TEXT, **options, n_steps=4, on_progress=lambda *what: told.append(what))
    assert (again.part, again.losses) == (short.part, short.losses)
    assert {what for _, _, what in told} == {"conversations"}
    longer = fit_cartridge(TEXT, **options, n_steps=6)
    assert longer.losses[:4] == short.losses
    assert longer.part == fit_cartridge(TEXT, **SMALL, decoder=base, n_steps=6).part
    with pytest.raises(ConfigError, match="6 steps already, more than 5"):
        fit_cartridge(TEXT, **options, n_steps=5)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"n_positions": 12}, "n_positions = 16, not 12"),
        ({"settings": dataclasses.replace(SETTINGS, learning_rate=0.1)}, "learning_rate = 0.02, not 0.1"),
        ({"settings": dataclasses.replace(SETTINGS, study=dataclasses.replace(STUDY, max_window=50))}, "max_window"),
        ({"text": TEXT + " "}, "text"),
    ],
)
def test_the_folder_of_another_run_is_refused(base, tmp_path, changed, named):
    options = {"text": TEXT} | SMALL | {"decoder": base, "folder": tmp_path, "n_steps": 1}
    fit_cartridge(**options)
    with pytest.raises(ConfigError, match=named):
        fit_cartridge(**options | changed)


def test_damaged_files_are_named(base, tmp_path):
    options = SMALL | {"decoder": base, "folder": tmp_path, "n_steps": 1}
    fit_cartridge(TEXT, **options)
    (tmp_path / "step-000001.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"checkpoint in .* is damaged"):
        fit_cartridge(TEXT, **options)
    (tmp_path / "conversations-00000.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"conversations-00000\.safetensors is damaged"):
        fit_cartridge(TEXT, **options)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ModelError, match="must be an object"):
        fit_cartridge(TEXT, **options)


def test_time_that_is_up_leaves_what_is_reached(base, tmp_path):
    options = SMALL | {"decoder": base, "folder": tmp_path, "n_steps": 50}
    nothing = fit_cartridge(TEXT, **options, minutes=1e-9)
    assert nothing.losses == ()
    assert nothing.part == fit_cartridge(TEXT, **SMALL, decoder=base, n_steps=0).part
    assert fit_cartridge(TEXT, **options | {"n_steps": 2}).part != nothing.part
    assert len(fit_cartridge(TEXT, **options, minutes=1e-9).losses) == 2


@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"n_positions": 1}, ConfigError, "n_frozen less than it, got 1 and 1"),
        ({"n_positions": 400}, InputError, "the text has"),
        ({"n_steps": -1}, ConfigError, "n_steps"),
        ({"minutes": 0}, ConfigError, "minutes"),
        ({"text": ""}, InputError, "the text has 0 tokens"),
        ({"text": TEXT * 8, "n_positions": 1010}, InputError, "do not fit into the 1024"),
    ],
)
def test_what_makes_no_sense_is_refused(base, changed, error, named):
    with pytest.raises(error, match=named):
        fit_cartridge(**{"text": TEXT} | SMALL | {"decoder": base} | changed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"n_held_out": 18},
        {"checkpoint_every": 0},
        {"seed": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FitSettings(**{"study": STUDY} | wrong)


def test_a_loss_that_is_no_number_ends_the_run(base, tmp_path):
    settings = dataclasses.replace(SETTINGS, learning_rate=1e30, checkpoint_every=1)
    with pytest.raises(ModelError, match="smaller learning_rate in another folder") as caught:
        fit_cartridge(TEXT, decoder=base, **SMALL | {"settings": settings}, n_steps=20, folder=tmp_path)
    wrong = int(str(caught.value).split()[4])
    checkpoint = tmp_path / "checkpoint.json"
    # the state behind the step before is that which gave it
    n_kept = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
    assert n_kept == wrong - 2
