"""The reader behind vLLM's server, against a stand-in.

vLLM itself is not here, so nothing of this ran against it. The stand-in does what vLLM documents: it decodes
embeddings from base64, checks their shape and number format, and answers greedily, by a real model that reads the
embeddings it was sent. Its answers must be those of the same model on this machine.
"""

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from dataclasses import FrozenInstanceError, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from tiny_models import save_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("openai")

from safetensors.torch import load_file, save_file  # noqa: E402 (comes with torch's extra)

from kompakt.adapters.http import HttpBackend  # noqa: E402 (needs torch)
from kompakt.adapters.transformers import TransformersBackend  # noqa: E402
from kompakt.adapters.vllm_backend import VllmBackend  # noqa: E402
from kompakt.compressor.backend import GROUP, Backend, Generation, Prompt  # noqa: E402
from kompakt.compressor.errors import (  # noqa: E402
    BackendError,
    ConfigError,
    InputError,
    MissingExtraError,
    ModelError,
    ModelNotFoundError,
)
from kompakt.compressor.parts import CachePart, EmbedsPart, TextPart  # noqa: E402

WIDTH = 32
"""Of the embeddings of the tiny models."""
SOURCE = "told"
NOWHERE = "http://127.0.0.1:9/v1#m"
"""What is wrong on this machine must show before a server is needed."""


def text(content):
    return TextPart(content, (), ())


def vectors(n=3, width=WIDTH, seed=0):
    return 0.3 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def embeds(space, n=3, seed=0, **options):
    return EmbedsPart(vectors(n, seed=seed), space, text(SOURCE), **options)


def decoded(data, dtype):
    """What vLLM makes of base64; it refuses what is not of its model."""
    with torch.sparse.check_sparse_tensor_invariants():
        tensor = torch.load(io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True, map_location="cpu")
    if not isinstance(tensor, torch.Tensor) or tensor.dim() != 2 or tensor.shape[1] != WIDTH:
        raise InputError("embeddings must be [T, D] of the model's hidden size")
    if tensor.dtype != dtype:
        raise InputError(f"embeddings must be {dtype}, got {tensor.dtype}")
    return tensor


def event(data):
    return f"data: {json.dumps(data)}\n\n"


class Server:
    """Answers as vLLM's server does, by a model of transformers.

    ``received`` has what it read of each request: ids, or texts and embeddings in their order.
    """

    def __init__(self, folder, dtype="float32"):
        # a chat is begun by the server, a sequence by whoever sends it
        self.model = TransformersBackend(folder, dtype, "cpu")
        self.continuing = TransformersBackend(folder, dtype, "cpu", begins=False)
        self.requests, self.received = [], []
        self.tells_usage = True
        self.refuse = lambda path, body: None
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                served.requests.append((self.path, body))
                try:
                    status, answer = served.refuse(self.path, body) or (200, "".join(served.events(self.path, body)))
                except InputError as error:
                    status, answer = 400, str(error)
                is_fine = status == 200
                with contextlib.suppress(ConnectionError):
                    self.send_response(status)
                    self.send_header("Content-Type", "text/event-stream" if is_fine else "application/json")
                    self.send_header("retry-after-ms", "1")
                    self.end_headers()
                    self.wfile.write((answer if is_fine else json.dumps({"error": {"message": answer}})).encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def events(self, path, body):
        is_chat = path == "/v1/chat/completions"
        prompt = self.chat(body) if is_chat else self.completion(body)
        [stop] = body.get("stop", [""])
        n_tokens = body["max_tokens"] if "max_tokens" in body else body["max_completion_tokens"]
        model = self.model if is_chat else self.continuing
        made = model.generate(replace(prompt, stop=stop), max_new_tokens=n_tokens)
        for piece in [*made.text, None]:
            said = {"delta": {"content": piece or ""}} if is_chat else {"text": piece or ""}
            yield event({"choices": [{"index": 0, **said, "finish_reason": None if piece else "stop"}]})
        if self.tells_usage:
            counts = {"prompt_tokens": made.n_positions, "completion_tokens": made.n_tokens}
            yield event({"choices": [], "usage": counts})
        yield "data: [DONE]\n\n"

    def chat(self, body):
        [message] = body["messages"]
        assert message["role"] == "user"
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        self.received.append(
            [one["text"] if one["type"] == "text" else decoded(one["data"], self.dtype) for one in content]
        )
        return Prompt(tuple(text(one) if isinstance(one, str) else self.part(one) for one in self.received[-1]))

    def completion(self, body):
        if body["prompt"] is None:
            tensor = decoded(body["prompt_embeds"], self.dtype)
            self.received.append(tensor)
        else:
            assert "prompt_embeds" not in body
            self.received.append(body["prompt"])
            tensor = self.embedded(body["prompt"])
        return Prompt((self.part(tensor),), is_chat=False)

    @property
    def dtype(self):
        return self.model._lm.model.dtype

    def embedded(self, ids):
        with torch.no_grad():
            return self.model._lm.model.get_input_embeddings()(torch.tensor(ids))

    def part(self, tensor):
        return EmbedsPart(tensor, self.model.space, text(""))

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    """Keys and proxies of the surroundings are not for tests."""
    for name in ("KOMPAKT_READER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


def summary(made):
    return made.text, made.n_positions, made.n_tokens, made.notes


@contextlib.contextmanager
def serving(folder, dtype="float32", **options):
    """A server of a model, and a reader of it."""
    server = Server(folder, dtype)
    try:
        options = {"max_retries": 0, "dtype": dtype, **options}
        with VllmBackend(f"{server.url}#m", folder, **options) as backend:
            yield server, backend
    finally:
        server.close()


@pytest.fixture
def pair(llama):
    with serving(llama) as (server, backend):
        yield server, backend


@pytest.fixture
def copied(tmp_path, llama):
    """A folder of a model whose files can be changed."""
    return Path(shutil.copytree(llama, tmp_path / "copied"))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# What is answered


LAYOUTS = {
    "between": lambda space: [text("ab"), embeds(space), text("cd")],
    "first": lambda space: [embeds(space), text("abc")],
    "last": lambda space: [text("abc"), embeds(space)],
    "alone": lambda space: [embeds(space, 5)],
    "pairs": lambda space: [embeds(space, 2), embeds(space, 1, seed=1), text("x "), text("tx"), embeds(space)],
    "empty": lambda space: [text("a"), embeds(space, 0), text("b"), embeds(space, 2), text("")],
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("is_chat", [True, False])
def test_answers_are_those_of_the_model_itself(tmp_path, kind, dtype, is_chat):
    folder = save_model(tmp_path / kind, kind)
    local = TransformersBackend(folder, dtype, "cpu")
    answers = set()
    with serving(folder, dtype) as (server, backend):
        for name, layout in LAYOUTS.items():
            for before, after in (("", ""), ("x ", "ty")):
                prompt = Prompt(tuple(layout(backend.space)), before, after, is_chat=is_chat)
                expected = local.generate(prompt, max_new_tokens=8)
                made = backend.generate(prompt, max_new_tokens=8)
                assert summary(made) == summary(expected), name
                assert made.notes == ()
                answers.add(made.text)
        paths = {path for path, _ in server.requests}
    assert paths == {"/v1/chat/completions" if is_chat else "/v1/completions"}
    # a model that said the same to everything would prove nothing
    assert len(answers) > len(LAYOUTS)


def test_a_sequence_is_the_beginning_the_texts_and_the_vectors(pair):
    server, backend = pair
    part = embeds(backend.space)
    prompt = Prompt((text("t"), part), "x ", "y", is_chat=False)
    made = backend.generate(prompt, max_new_tokens=4, targets=("unanswered",))
    x, space_t, y = backend.tokenizer.encode("x ty")
    [received] = server.received
    assert torch.equal(received, torch.cat([server.embedded([0, x, space_t]), part.vectors, server.embedded([y])]))
    assert made.likelihoods is None
    assert made.n_positions == 7
    [(_, body)] = server.requests
    assert body.pop("prompt_embeds")
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    assert body == {"model": "m", "prompt": None, "temperature": 0, "max_tokens": 4, **streamed}


def test_a_message_has_its_parts_in_order(pair):
    server, backend = pair
    first, second = embeds(backend.space, 2), embeds(backend.space, 3, seed=1)
    backend.generate(Prompt((text("a"), text("b"), first, second, text("c")), "<", ">"), max_new_tokens=1)
    [[before, one, two, after]] = server.received
    assert (before, after) == ("<ab", "c>")
    assert torch.equal(one, first.vectors)
    assert torch.equal(two, second.vectors)
    [(_, body)] = server.requests
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text", "prompt_embeds", "prompt_embeds", "text"]


def test_nothing_parts_two_texts_of_a_message(pair):
    server, backend = pair
    backend.generate(Prompt((text("a "), embeds(backend.space, 0), text("tb"))), max_new_tokens=1)
    assert server.received == [["a tb"]]


@pytest.mark.parametrize("is_chat", [True, False])
def test_text_that_spells_a_special_token_is_text(pair, is_chat):
    server, backend = pair
    spelled = "<|endoftext|>"
    prompt = Prompt((text(spelled), embeds(backend.space, 1)), is_chat=is_chat)
    local = TransformersBackend(backend.decoder, "float32", "cpu").generate(prompt, max_new_tokens=4)
    assert backend.generate(prompt, max_new_tokens=4).text == local.text
    assert local.n_positions == 1 + len(spelled) + 1
    assert len(server.received[0]) == (2 if is_chat else local.n_positions)


@pytest.mark.parametrize("is_chat", [True, False])
def test_an_answer_ends_where_it_is_to_stop(pair, is_chat):
    server, backend = pair
    prompt = Prompt((text("ab"), embeds(backend.space)), is_chat=is_chat)
    whole = backend.generate(prompt, max_new_tokens=12).text
    stop = whole[len(whole) // 2]
    made = backend.generate(replace(prompt, stop=stop), max_new_tokens=12)
    assert made.text == whole.partition(stop)[0].strip() != whole
    assert server.requests[1][1]["stop"] == [stop]


@pytest.mark.parametrize("is_chat", [True, False])
def test_text_alone_is_asked_as_of_any_endpoint(pair, is_chat):
    server, backend = pair
    prompt = Prompt((text("ab"), text("cd")), "x", "y", is_chat=is_chat, stop="\n")
    made = backend.generate(prompt, max_new_tokens=6)
    with HttpBackend(f"{server.url}#m") as plain:
        expected = plain.generate(prompt, max_new_tokens=6)
    ours, theirs = server.requests
    assert ours == theirs
    assert ours[1]["messages"] == [{"role": "user", "content": "xabcdy"}]
    assert summary(made) == summary(expected)


@pytest.mark.parametrize(("is_chat", "n_positions"), [(True, 0), (False, 6)])
def test_positions_that_the_server_does_not_tell(pair, is_chat, n_positions):
    server, backend = pair
    server.tells_usage = False
    made = backend.generate(Prompt((text("ab"), embeds(backend.space)), is_chat=is_chat), max_new_tokens=3)
    assert made.n_positions == n_positions


@pytest.mark.parametrize(("is_chat", "n_positions"), [(True, 0), (False, 4)])
def test_no_tokens_no_request(pair, is_chat, n_positions):
    server, backend = pair
    made = backend.generate(Prompt((embeds(backend.space),), is_chat=is_chat), max_new_tokens=0)
    assert made == Generation("", n_positions, 0, 0.0, 0.0)
    assert server.requests == []


# What cannot be sent


def cache(space):
    tensor = torch.zeros(2, 3, 8)
    return CachePart((tensor, tensor), (tensor, tensor), space, text(SOURCE))


def too_narrow(space):
    return EmbedsPart(vectors(width=8), space, text(SOURCE))


mismatches = pytest.mark.parametrize(
    ("make", "reason"),
    [
        (cache, "it is a key-value cache, which vLLM's server does not take"),
        (lambda space: embeds("0123456789abcdef"), "it was made for the decoder 0123456789ab, and this one is "),
        (lambda space: embeds(f"{space}:plain-rope"), "it was made for the decoder .*:plain-rope, and this one is "),
        (too_narrow, "its vectors are 8 wide and the decoder's embeddings 32"),
        (lambda space: embeds(space, placement="none"), "its vectors have no positions, but vLLM gives each vector"),
    ],
    ids=["cache", "space", "rope", "width", "placement"],
)


@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize("max_new_tokens", [0, 4])
@mismatches
def test_a_part_that_does_not_fit(pair, make, reason, is_chat, max_new_tokens):
    server, backend = pair
    with pytest.raises(InputError, match=f"m at 127[^ ]* cannot read a part: {reason}"):
        backend.generate(Prompt((make(backend.space),), is_chat=is_chat), max_new_tokens=max_new_tokens)
    assert server.requests == []


@pytest.mark.parametrize("is_chat", [True, False])
@mismatches
def test_a_part_that_does_not_fit_as_text(llama, make, reason, is_chat):
    local = TransformersBackend(llama, "float32", "cpu")
    with serving(llama, on_mismatch="text") as (server, backend):
        prompt = Prompt((make(backend.space), text(" t")), "x", is_chat=is_chat)
        made = backend.generate(prompt, max_new_tokens=6)
        expected = local.generate(replace(prompt, parts=(text(SOURCE), text(" t"))), max_new_tokens=6)
    assert (made.text, made.n_positions) == (expected.text, expected.n_positions)
    [note] = made.notes
    assert re.match(f"read as text: {reason}", note)
    ids = [0, *backend.tokenizer.encode(f"x{SOURCE} t")]
    assert server.received == ([[f"x{SOURCE} t"]] if is_chat else [ids])


@pytest.mark.parametrize("is_chat", [True, False])
def test_only_the_part_that_does_not_fit_is_text(llama, is_chat):
    local = TransformersBackend(llama, "float32", "cpu", on_mismatch="text")
    with serving(llama, on_mismatch="text") as (server, backend):
        prompt = Prompt((embeds("other"), embeds(backend.space), embeds("third", 2)), is_chat=is_chat)
        made = backend.generate(prompt, max_new_tokens=6)
        expected = local.generate(prompt, max_new_tokens=6)
    assert summary(made) == summary(expected)
    assert len(made.notes) == 2
    assert len(server.requests) == 1


@pytest.mark.parametrize("on_mismatch", ["raise", "text"])
@pytest.mark.parametrize("is_chat", [True, False])
def test_a_value_that_is_not_finite_is_an_error(llama, is_chat, on_mismatch):
    with serving(llama, on_mismatch=on_mismatch) as (server, backend):
        broken = vectors()
        broken[1, 2] = float("nan")
        part = EmbedsPart(broken, backend.space, text(SOURCE))
        with pytest.raises(InputError, match="not finite in float32, the first at position 1, dimension 2"):
            backend.generate(Prompt((part,), is_chat=is_chat), max_new_tokens=4)
    assert server.requests == []


@pytest.mark.parametrize(
    ("content", "is_chat", "message"),
    [
        ("<prompt_embeds>", True, "which vLLM reserves"),
        ("\ud800", True, "surrogate"),
        ("\ud800", False, "surrogate"),
    ],
)
def test_texts_that_cannot_be_sent(pair, content, is_chat, message):
    server, backend = pair
    with pytest.raises(InputError, match=message):
        backend.generate(Prompt((text(content), embeds(backend.space)), is_chat=is_chat), max_new_tokens=4)
    assert server.requests == []


def test_what_is_no_part(pair):
    with pytest.raises(InputError, match="reads text and embeddings, got a str"):
        pair[1].generate(Prompt(("not a part",)), max_new_tokens=4)


# Models that scale their embeddings


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_model_that_scales_by_its_nature(tmp_path, is_chat):
    folder = save_model(tmp_path / "gemma2", "gemma2")
    reason = "models of type 'gemma2' scale their embeddings, and whether vLLM"
    with serving(folder) as (server, backend):
        part = embeds(backend.space)
        with pytest.raises(InputError, match=reason):
            backend.generate(Prompt((part,), is_chat=is_chat), max_new_tokens=4)
    with serving(folder, on_mismatch="text") as (server, backend):
        made = backend.generate(Prompt((part,), is_chat=is_chat), max_new_tokens=4)
    assert server.received == ([[SOURCE]] if is_chat else [[0, *backend.tokenizer.encode(SOURCE)]])
    assert reason in made.notes[0]


@pytest.mark.parametrize(
    ("option", "value", "is_scaled"),
    [
        ("embedding_multiplier", 12.0, True),
        ("embedding_multiplier", 1.0, False),
        ("scale_emb", 12, True),
        ("scale_embedding", True, True),
        ("scale_embedding", False, False),
        ("mup_enabled", True, True),
        ("logits_scaling", 8.0, False),
    ],
)
def test_a_model_that_scales_by_its_configuration(copied, option, value, is_scaled):
    edit_json(copied / "config.json", **{option: value})
    with serving(copied) as (_, backend):
        prompt = Prompt((embeds(backend.space),), is_chat=False)
        if is_scaled:
            with pytest.raises(InputError, match=f"'llama' scale their embeddings .{option}={value}"):
                backend.generate(prompt, max_new_tokens=4)
        else:
            assert backend.generate(prompt, max_new_tokens=4).n_positions == 4


# The table of embeddings


def mixed(backend, is_chat=False):
    return Prompt((text("ab"), embeds(backend.space)), is_chat=is_chat)


@pytest.mark.parametrize("name", ["model.decoder.embed_tokens.weight", "transformer.wte.weight", "wte.weight"])
def test_names_of_the_table(copied, llama, name):
    file = copied / "model.safetensors"
    tensors = load_file(file)
    table = tensors.pop("model.embed_tokens.weight")
    save_file({"other.weight": table.flip(0), name: table}, file)
    with serving(llama) as (server, _), VllmBackend(f"{server.url}#m", copied, "float32") as backend:
        backend.generate(mixed(backend), max_new_tokens=1)
    assert torch.equal(server.received[0][:3], table[[0, *backend.tokenizer.encode("ab")]])


def shard(folder, index=None):
    """Write the weights in two files; the table is in the second."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    table = {"model.embed_tokens.weight": tensors.pop("model.embed_tokens.weight")}
    save_file(tensors, folder / "model-1.safetensors", {"format": "pt"})
    save_file(table, folder / "model-2.safetensors", {"format": "pt"})
    file.unlink()
    if index is None:
        places = dict.fromkeys(tensors, "model-1.safetensors") | dict.fromkeys(table, "model-2.safetensors")
        index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index)


def test_weights_in_several_files(copied, llama):
    shard(copied)
    with serving(copied) as (server, backend):
        made = backend.generate(mixed(backend), max_new_tokens=8)
        assert server.model.space == backend.space
    local = TransformersBackend(llama, "float32", "cpu")
    prompt = Prompt((text("ab"), embeds(local.space)), is_chat=False)
    assert made.text == local.generate(prompt, max_new_tokens=8).text != ""


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"model.embed_tokens.weight": "none.safetensors"}}',
     '{"weight_map": {"model.embed_tokens.weight": "model-1.safetensors"}}'],
    ids=["cut", "list", "without", "number", "no such file", "another file"],
)  # fmt: skip
def test_a_damaged_index(copied, index):
    shard(copied, index)
    with pytest.raises(ModelError, match=r"the table of embeddings in .*copied cannot be read: "):
        ask_alone(copied)


def ask_alone(folder, is_chat=False):
    with VllmBackend(NOWHERE, folder, "float32", max_retries=0) as backend:
        backend.generate(mixed(backend, is_chat), max_new_tokens=4)


def test_weights_that_cannot_be_read(copied):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"the table of embeddings in .*copied cannot be read: .*Safetensor"):
        ask_alone(copied)
    file.unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        ask_alone(copied)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, r"have no table of embeddings: none of model\.embed_tokens\.weight, model\.decoder"),
        (torch.zeros(258, 16), r"has the shape \(258, 16\), and the model's hidden states are 32 wide"),
        (torch.zeros(258), r"has the shape \(258,\)"),
        (torch.zeros(258, WIDTH, dtype=torch.int8), r"is int8: name a folder"),
        (torch.zeros(258, WIDTH).to(torch.float8_e4m3fn), r"is float8_e4m3fn: name a folder"),
        (torch.zeros(66, WIDTH), r"makes the token 66, and the table of embeddings there has 66 rows"),
    ],
    ids=["none", "narrow", "flat", "int8", "float8", "few"],
)
def test_a_table_that_cannot_be_used(copied, table, message):
    named = {"other.weight": torch.zeros(258, WIDTH)}
    save_file(named if table is None else {"model.embed_tokens.weight": table}, copied / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        ask_alone(copied)
    # in a chat the server looks up what it reads
    with pytest.raises(BackendError, match="Connection error"):
        ask_alone(copied, is_chat=True)


def test_weights_that_change_meanwhile(copied):
    with VllmBackend(NOWHERE, copied, "float32") as backend:
        save_file({"model.embed_tokens.weight": torch.zeros(258, WIDTH)}, copied / "model.safetensors")
        with pytest.raises(ModelError, match="changed while it was loaded"):
            backend.generate(mixed(backend), max_new_tokens=4)


def test_files_that_cannot_be_used(copied):
    edit_json(copied / "config.json", bos_token_id=None, eos_token_id=None)
    file = copied / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<|x|>"))
    with pytest.raises(ModelError, match="neither a beginning-of-text nor an end-of-text token"):
        ask_alone(copied)
    file.unlink()
    with pytest.raises(ModelError, match=r"the tokenizer in .*copied cannot be read: "):
        ask_alone(copied)
    edit_json(copied / "config.json", model_type="unheard-of")
    with pytest.raises(ModelError, match=r"the configuration in .*copied cannot be read: "):
        ask_alone(copied)


# What the server says


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ("This model's maximum context length is 24 tokens.", InputError, "too long for m at 127"),
        ("You must set `--enable-prompt-embeds`.", BackendError, "answered 400: You must set `--enable-prompt"),
    ],
)
@pytest.mark.parametrize("is_chat", [True, False])
def test_what_the_server_refuses(pair, is_chat, said, error, told):
    server, backend = pair
    server.refuse = lambda path, body: (400, said)
    with pytest.raises(error, match=told):
        backend.generate(mixed(backend, is_chat), max_new_tokens=4)


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_server_that_runs_another_number_format(llama, is_chat):
    told = "answered 400: embeddings must be torch.float32, got torch.float16"
    with serving(llama) as (server, _), VllmBackend(f"{server.url}#m", llama, "float16") as backend:
        prompt = mixed(backend, is_chat)
        with pytest.raises(BackendError, match=told):
            backend.generate(prompt, max_new_tokens=4)


@pytest.mark.parametrize("is_chat", [True, False])
def test_what_passes_is_tried_again(llama, is_chat):
    with serving(llama, max_retries=1) as (server, backend):
        server.refuse = lambda path, body: (503, "busy") if len(server.requests) == 1 else None
        made = backend.generate(mixed(backend, is_chat), max_new_tokens=4)
        first, second = server.requests
        assert first == second
        server.refuse = lambda path, body: None
        assert made.text == backend.generate(mixed(backend, is_chat), max_new_tokens=4).text


def test_parameters_that_the_server_rejects(pair):
    """The Completions endpoint has no other name for the parameter that chats may reject."""
    server, backend = pair
    rejected = {"/v1/chat/completions": ["stream_options", "max_tokens"], "/v1/completions": ["stream_options"]}

    def refuse(path, body):
        name = next((name for name in rejected[path] if name in body), None)
        return (400, f"Unsupported parameter: '{name}'") if name else None

    server.refuse = refuse
    for is_chat in (True, False):
        backend.generate(mixed(backend, is_chat), max_new_tokens=4)
    (_, chat), (path, completion) = server.requests[-2:]
    assert (path, chat["max_completion_tokens"], completion["max_tokens"]) == ("/v1/completions", 4, 4)
    assert not {"max_completion_tokens", "stream_options"} & completion.keys()
    rejected["/v1/completions"].append("max_tokens")
    with pytest.raises(BackendError, match="answered 400: Unsupported parameter: 'max_tokens'"):
        backend.generate(mixed(backend), max_new_tokens=4)


# The object itself


def test_what_it_tells_of_itself(llama):
    local = TransformersBackend(llama, "float32", "cpu")
    with VllmBackend(NOWHERE, llama, "float32", api_key="secret") as backend:
        assert isinstance(backend, Backend)
        assert backend.name == "m at 127.0.0.1:9"
        assert backend.accepts == {"text", "embeds"}
        assert backend.max_positions is None
        assert backend.space == local.space
        assert backend.tokenizer.fingerprint == local.tokenizer.fingerprint
        assert backend.fingerprint == f"{NOWHERE} {local.space} float32"
        assert "secret" not in repr(backend)
        with pytest.raises(FrozenInstanceError):
            backend.url = "other"


def test_the_url_can_name_the_folder(llama, copied):
    edit_json(copied / "config.json", dtype="bfloat16")
    with VllmBackend(f"http://127.0.0.1:9/v1#{copied}") as backend:
        assert backend.fingerprint.endswith(f"{backend.space} bfloat16")


def test_it_is_registered():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    value = project["project"]["entry-points"][GROUP]["vllm"]
    assert EntryPoint("vllm", value, GROUP).load() is VllmBackend


def test_options_that_make_no_sense(llama):
    with pytest.raises(ConfigError, match="on_mismatch must be 'raise' or 'text', got 'guess'"):
        VllmBackend(NOWHERE, llama, "float32", "guess")
    with pytest.raises(ConfigError, match="dtype must be one of"):
        VllmBackend(NOWHERE, llama, "float8")
    with pytest.raises(ConfigError, match="must name a model"):
        VllmBackend("http://127.0.0.1:9/v1", llama, "float32")
    with pytest.raises(ModelError, match=r"says dtype 'float32', which leaves the number format to vLLM"):
        VllmBackend(NOWHERE, llama)


def test_a_decoder_that_is_not_here(empty_cache, tmp_path):
    told = r"no such model folder.*decoder of the reader org/m at 127.*decoder="
    with pytest.raises(ModelNotFoundError, match=told):
        VllmBackend("http://127.0.0.1:9/v1#org/m")
    with pytest.raises(ModelNotFoundError, match="no such model folder"):
        VllmBackend(NOWHERE, tmp_path / "none")


# Without the extras


def test_openai_is_an_extra(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kompakt\[openai\]'"):
        VllmBackend(NOWHERE, llama, "float32")


@pytest.mark.parametrize("missing", ["transformers", "safetensors"])
def test_what_reads_the_model_is_an_extra(llama, monkeypatch, missing):
    with VllmBackend(NOWHERE, llama, "float32") as backend:
        prompt = mixed(backend)
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(MissingExtraError, match=r"pip install 'kompakt\[local\]'"):
            backend.generate(prompt, max_new_tokens=4)


def test_torch_is_an_extra(llama):
    code = (
        "import sys; sys.modules['torch'] = None; from kompakt.adapters.vllm_backend import VllmBackend\n"
        "try: VllmBackend('http://127.0.0.1:9/v1#m', sys.argv[1], 'float32')\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code, llama], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "MissingExtraError embeddings for vLLM needs optional dependencies: pip install 'kompakt[local]'"
    )
