"""What goes to vLLM, read back as its server does."""

import base64
import io
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from kompakt.adapters import vllm  # noqa: E402 (needs torch)
from kompakt.adapters.vllm import (  # noqa: E402
    Payload,
    ServedModel,
    completions_body,
    embeds_part,
    embeds_prompt,
    encode,
    user_message,
)
from kompakt.compressor.errors import (  # noqa: E402
    ConfigError,
    InputError,
    MissingExtraError,
    ModelError,
    ModelNotFoundError,
)
from kompakt.compressor.models.locate import model_path  # noqa: E402

DTYPES = ("float16", "bfloat16", "float32")
MODEL = ServedModel(8, "float32")
OVERHEAD = 4096
"""More than torch.save adds to the numbers."""

entries = pytest.mark.parametrize(
    "entry",
    [
        encode,
        embeds_prompt,
        embeds_part,
        completions_body,
        lambda vectors, **options: completions_body([vectors], **options),
        lambda vectors, **options: user_message(["Read this:", vectors], **options),
    ],
    ids=["encode", "embeds_prompt", "embeds_part", "completions_body", "batch", "user_message"],
)


def decoded(data, model):
    """The obvious twin of vLLM's server: what it makes of base64, and what it refuses."""
    with torch.sparse.check_sparse_tensor_invariants():
        tensor = torch.load(
            io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True, map_location=torch.device("cpu")
        )
        # earlier versions take these three, later ones cast without a word what is not the model's own
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
        tensor = tensor.to_dense()
    if tensor.dim() > 2:
        tensor = tensor.squeeze(0)
    assert tensor.dim() == 2
    assert tensor.shape[1] == model.hidden_size
    assert tensor.dtype == getattr(torch, model.dtype)
    return tensor


def same(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)


def vectors(n=3, width=8, dtype=torch.float32):
    return torch.linspace(-2, 2, n * width).reshape(n, width).to(dtype)


@st.composite
def cases(draw):
    model = ServedModel(draw(st.integers(1, 65)), draw(st.sampled_from(DTYPES)))
    n = draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return model, torch.randn(n, model.hidden_size, generator=generator).to(getattr(torch, model.dtype))


@given(cases())
def test_the_server_reads_what_was_encoded(case):
    model, tensor = case
    payload = encode(tensor, model=model)
    assert same(decoded(payload.data, model), tensor)
    assert payload.n_positions == len(tensor)
    assert payload.n_bytes == len(payload.data.encode())
    assert 4 * tensor.nbytes // 3 < payload.n_bytes < 4 * tensor.nbytes // 3 + OVERHEAD


@given(cases())
def test_equal_vectors_give_equal_bytes(case):
    model, tensor = case
    twins = [tensor, tensor.clone(), torch.cat([tensor, tensor])[len(tensor) :], tensor.t().contiguous().t()]
    assert len({encode(twin, model=model).data for twin in twins}) == 1


@given(cases(), st.data())
def test_views_are_sent_without_the_rest_of_their_storage(case, data):
    model, tensor = case
    large = torch.zeros(3000, model.hidden_size + 50, dtype=tensor.dtype)
    row = data.draw(st.integers(0, 2000))
    step = data.draw(st.integers(1, 3))
    column = data.draw(st.integers(0, 50))
    view = large[row : row + step * len(tensor) : step, column : column + model.hidden_size]
    view.copy_(tensor)
    payload = encode(view, model=model)
    assert same(decoded(payload.data, model), tensor)
    assert payload.n_bytes < 4 * tensor.nbytes // 3 + OVERHEAD
    prompt = embeds_prompt(view, model=model)["prompt_embeds"]
    assert same(prompt, tensor)
    assert prompt.is_contiguous()
    assert prompt.untyped_storage().nbytes() == tensor.nbytes


def test_a_contiguous_view_of_a_large_storage_is_cut_out():
    large = torch.randn(10_000, 8)
    view = large[17:20]
    assert view.is_contiguous()
    naive = io.BytesIO()
    torch.save(view, naive)
    assert len(naive.getvalue()) > large.nbytes  # the reason for all this
    payload = encode(view, model=MODEL)
    assert payload.n_bytes < OVERHEAD
    assert same(decoded(payload.data, MODEL), view)


@entries
def test_gradients_and_attributes_stay_here(entry):
    parameter = torch.nn.Parameter(vectors())
    assert entry(parameter, model=MODEL)
    tensor = vectors().requires_grad_() * 1
    tensor.secret = "kept"
    data = encode(tensor, model=MODEL).data
    assert data == encode(vectors(), model=MODEL).data
    loaded = decoded(data, MODEL)
    assert type(loaded) is torch.Tensor
    assert not loaded.requires_grad
    assert tensor.requires_grad


def test_vectors_are_not_changed():
    tensor = vectors(dtype=torch.float64)
    before = tensor.clone()
    embeds_prompt(tensor, model=MODEL, cast=True)["prompt_embeds"].zero_()
    assert torch.equal(tensor, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_vectors_of_a_gpu_are_moved():
    tensor = vectors().cuda()
    assert same(decoded(encode(tensor, model=MODEL).data, MODEL), vectors())
    assert embeds_prompt(tensor, model=MODEL)["prompt_embeds"].device.type == "cpu"


# Offline


def test_offline():
    tensor = vectors()
    prompt = embeds_prompt(tensor, model=MODEL)
    assert list(prompt) == ["prompt_embeds"]
    assert same(prompt["prompt_embeds"], tensor)
    assert prompt["prompt_embeds"].data_ptr() == tensor.data_ptr()  # no copy where none is needed


def test_offline_with_a_salt():
    prompt = embeds_prompt(vectors(), model=MODEL, cache_salt="tenant 7")
    assert prompt["cache_salt"] == "tenant 7"


@pytest.mark.parametrize("salt", ["", 7])
def test_a_salt_is_a_text(salt):
    with pytest.raises(InputError, match="cache_salt must be a text that is not empty, got"):
        embeds_prompt(vectors(), model=MODEL, cache_salt=salt)


# Completions


def test_completions_of_one_prompt():
    body = json.loads(json.dumps(completions_body(vectors(), model=MODEL)))
    assert list(body) == ["prompt_embeds"]
    assert same(decoded(body["prompt_embeds"], MODEL), vectors())


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("lengths", [[3], [3, 1, 5]])
def test_completions_of_several_prompts(lengths, kind):
    prompts = [vectors(n) for n in lengths]
    sent = completions_body(kind(prompts), model=MODEL)["prompt_embeds"]
    assert isinstance(sent, list)
    assert all(same(decoded(data, MODEL), tensor) for data, tensor in zip(sent, prompts, strict=True))


def test_completions_of_nothing():
    with pytest.raises(InputError, match="at least one prompt"):
        completions_body([], model=MODEL)


def test_every_prompt_is_checked():
    with pytest.raises(InputError, match="9 wide and the model reads 8"):
        completions_body([vectors(), vectors(width=9)], model=MODEL)


# Chat


@given(st.lists(st.one_of(st.text(max_size=8), st.integers(1, 4)), min_size=1, max_size=6))
def test_a_message_keeps_the_order(items):
    content = [vectors(item) if isinstance(item, int) else item for item in items]
    if not any(items):
        with pytest.raises(InputError, match="must hold a text or embeddings"):
            user_message(content, model=MODEL)
        return
    message = json.loads(json.dumps(user_message(content, model=MODEL)))
    assert message["role"] == "user"
    said = [
        len(decoded(part["data"], MODEL)) if part["type"] == "prompt_embeds" else part["text"]
        for part in message["content"]
    ]
    assert said == [item for item in items if item != ""]


def test_the_parts_of_a_message():
    message = user_message(["Read this:", vectors(), "Who signed?"], model=MODEL)
    assert message == {
        "role": "user",
        "content": [
            {"type": "text", "text": "Read this:"},
            {"type": "prompt_embeds", "data": encode(vectors(), model=MODEL).data},
            {"type": "text", "text": "Who signed?"},
        ],
    }
    assert message["content"][1] == embeds_part(vectors(), model=MODEL)


@pytest.mark.parametrize("content", ["Read this:", vectors(), None, iter(["a"])], ids=["str", "tensor", "None", "it"])
def test_a_message_is_made_of_a_list(content):
    with pytest.raises(InputError, match="content must be a list of texts and tensors, got a"):
        user_message(content, model=MODEL)


def test_a_message_of_other_things():
    with pytest.raises(InputError, match=r"must be a torch tensor \[T, D\], got a dict"):
        user_message([{"type": "text", "text": "a"}], model=MODEL)


def test_the_mark_that_vllm_reserves_is_refused():
    with pytest.raises(InputError, match="holds '<prompt_embeds>' at character 4, which vLLM reserves"):
        user_message(["See <prompt_embeds>.", vectors()], model=MODEL)


def test_a_lone_surrogate_is_refused():
    with pytest.raises(InputError, match="lone surrogate"):
        user_message(["\ud800", vectors()], model=MODEL)


# What does not fit


def with_value(value):
    tensor = vectors()
    tensor[1, 5] = value
    tensor[2, 0] = value
    return tensor


WRONG = {
    "list": ([[0.0] * 8], r"must be a torch tensor \[T, D\], got a list; join pieces with torch.cat"),
    "array": (vectors().numpy(), "got a ndarray; .* convert arrays with torch.from_numpy"),
    "None": (None, "got a NoneType"),
    "scalar": (torch.tensor(1.0), r"two dimensions \[T, D\], got the shape \(\); one position is"),
    "one row": (torch.zeros(8), r"two dimensions \[T, D\], got the shape \(8,\); one position is"),
    "batch": (vectors()[None], r"got the shape \(1, 3, 8\); one prompt of a batch is vectors\[i\]"),
    "no position": (torch.zeros(0, 8), r"at least one position, got the shape \(0, 8\)"),
    "other model": (torch.zeros(3, 9), r"9 wide and the model reads 8, got the shape \(3, 9\)"),
    "transposed": (vectors().t(), "3 wide and the model reads 8, .* or transposed"),
    "token ids": (torch.zeros(3, 8, dtype=torch.int64), "got int64; token ids are to be embedded first"),
    "bool": (torch.zeros(3, 8, dtype=torch.bool), "must be floating-point numbers, got bool"),
    "complex": (torch.zeros(3, 8, dtype=torch.complex64), "must be floating-point numbers, got complex64"),
    "double": (vectors(dtype=torch.float64), "are float64 and the model reads float32; pass cast=True"),
    "bf16": (vectors(dtype=torch.bfloat16), "are bfloat16 and the model reads float32; pass cast=True"),
    "NaN": (with_value(torch.nan), "2 values that are not finite in float32, the first at position 1, dimension 5"),
    "inf": (with_value(torch.inf), "2 values that are not finite"),
    "-inf": (with_value(-torch.inf), "2 values that are not finite"),
    "sparse": (vectors().to_sparse(), r"must be dense, got the layout torch.sparse_coo; .*\.to_dense\(\)"),
    "meta": (vectors().to("meta"), "hold no numbers: their device is 'meta'"),
}


@entries
@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(entry, name):
    wrong, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        entry(wrong, model=MODEL)


def test_a_tensor_of_a_class_of_its_own_is_refused():
    class Mine(torch.Tensor):
        pass

    with pytest.raises(InputError, match="must be a plain torch tensor, got a Mine"):
        encode(vectors().as_subclass(Mine), model=MODEL)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_a_nested_tensor_is_refused(layout):
    nested = torch.nested.nested_tensor([vectors(), vectors()], layout=layout)
    with pytest.raises(InputError, match=r"must be (a plain torch tensor|dense)"):
        encode(nested, model=MODEL)


# Conversion


@entries
@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("given_dtype", [*DTYPES, "float64"])
def test_conversion_is_asked_for(entry, given_dtype, wanted):
    model = ServedModel(8, wanted)
    tensor = vectors(dtype=getattr(torch, given_dtype))
    if given_dtype != wanted:
        with pytest.raises(InputError, match=f"are {given_dtype} and the model reads {wanted}"):
            entry(tensor, model=model)
    assert entry(tensor, model=model, cast=True)
    assert same(decoded(encode(tensor, model=model, cast=True).data, model), tensor.to(getattr(torch, wanted)))


def test_a_conversion_that_overflows_is_refused():
    tensor = vectors()
    tensor[2, 7] = 1e5
    with pytest.raises(InputError, match=r"1 values .* position 2, dimension 7; .* too large for float16"):
        encode(tensor, model=ServedModel(8, "float16"), cast=True)
    encode(tensor, model=ServedModel(8, "bfloat16"), cast=True)


def test_token_ids_are_never_converted():
    with pytest.raises(InputError, match="token ids"):
        encode(torch.zeros(3, 8, dtype=torch.int64), model=MODEL, cast=True)


# The model


@pytest.mark.parametrize("size", [0, -1, True, 8.0, "8", None])
def test_a_hidden_size_is_a_whole_number(size):
    with pytest.raises(ConfigError, match="hidden_size must be a whole number from 1 on, got"):
        ServedModel(size, "float16")


@pytest.mark.parametrize("dtype", ["auto", "half", "float64", "", None, torch.float16])
def test_a_number_format_is_one_of_three(dtype):
    with pytest.raises(ConfigError, match="dtype must be one of 'float16', 'bfloat16', 'float32', got"):
        ServedModel(8, dtype)


def folder_with(tmp_path, config):
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"hidden_size": 576, "dtype": "bfloat16"}, ServedModel(576, "bfloat16")),
        ({"hidden_size": 4096, "torch_dtype": "float16"}, ServedModel(4096, "float16")),
        ({"n_embd": 768, "torch_dtype": "float16"}, ServedModel(768, "float16")),
        ({"d_model": 64, "dtype": None, "torch_dtype": "bfloat16"}, ServedModel(64, "bfloat16")),
        (
            {"text_config": {"hidden_size": 2560}, "vision_config": {"hidden_size": 1152}, "dtype": "bfloat16"},
            ServedModel(2560, "bfloat16"),
        ),
        (
            {"hidden_size": 1, "text_config": {"hidden_size": 2, "torch_dtype": "bfloat16"}},
            ServedModel(2, "bfloat16"),
        ),
        (
            {"thinker_config": {"text_config": {"hidden_size": 3584}}, "torch_dtype": "bfloat16"},
            ServedModel(3584, "bfloat16"),
        ),
        ({"hidden_size": 8, "text_config": None, "dtype": "float16"}, ServedModel(8, "float16")),
    ],
)
def test_the_model_of_a_folder(tmp_path, config, expected):
    folder = folder_with(tmp_path, config)
    assert ServedModel.from_folder(folder) == ServedModel.from_folder(str(folder)) == expected


@pytest.mark.parametrize("config", [{}, {"dtype": "float32"}, {"torch_dtype": "float32"}, {"dtype": "auto"}])
def test_a_number_format_that_vllm_chooses_must_be_given(tmp_path, config):
    folder = folder_with(tmp_path, {"hidden_size": 8, **config})
    with pytest.raises(ModelError, match="leaves the number format to vLLM: start it with --dtype"):
        ServedModel.from_folder(folder)
    assert ServedModel.from_folder(folder, dtype="float32") == MODEL


def test_a_number_format_that_is_given_wins(tmp_path):
    folder = folder_with(tmp_path, {"hidden_size": 8, "dtype": "bfloat16"})
    assert ServedModel.from_folder(folder, dtype="float16") == ServedModel(8, "float16")
    with pytest.raises(ConfigError, match="got 'auto'"):
        ServedModel.from_folder(folder, dtype="auto")


@pytest.mark.parametrize(
    "config", [{}, {"hidden_size": None}, {"hidden_size": "8"}, {"hidden_size": True}, {"text_config": {}}]
)
def test_a_hidden_size_that_is_not_told(tmp_path, config):
    folder = folder_with(tmp_path, {"dtype": "float16", **config})
    with pytest.raises(ModelError, match=r"does not tell the hidden size, got .* write ServedModel"):
        ServedModel.from_folder(folder)


@pytest.mark.parametrize(
    "config", ["", "{", "[]", "[" * 100_000, '"text"'], ids=["empty", "cut", "list", "deep", "str"]
)
def test_a_configuration_that_cannot_be_read(tmp_path, config):
    with pytest.raises(ModelError, match=r"the configuration .* (cannot be read|must be an object)"):
        ServedModel.from_folder(folder_with(tmp_path, config))


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json' cannot be read"):
        ServedModel.from_folder(tmp_path)
    with pytest.raises(ModelNotFoundError):
        ServedModel.from_folder(tmp_path / "none")


# Without torch


@entries
def test_torch_is_an_extra(entry, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kompakt\[local\]'"):
        entry([1.0], model=MODEL)


def test_import_and_configurations_need_no_torch(tmp_path):
    folder_with(tmp_path, {"hidden_size": 8, "dtype": "float16"})
    code = (
        "import sys; sys.modules['torch'] = None; from kompakt.adapters.vllm import ServedModel; "
        "print(ServedModel.from_folder(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ServedModel(hidden_size=8, dtype='float16')"


def test_the_module_does_not_hide_vllm_itself():
    assert vllm.__name__ == "kompakt.adapters.vllm"
    assert Payload("abcd", 1).n_bytes == 4


# Real embeddings


@pytest.mark.models
def test_embeddings_of_a_real_model():
    from safetensors import safe_open

    folder = model_path("smollm2-135m")
    model = ServedModel.from_folder("smollm2-135m")
    assert model == ServedModel(576, "bfloat16")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        name = next(name for name in file.keys() if name.endswith("embed_tokens.weight"))  # noqa: SIM118
        table = file.get_tensor(name)
    embeds = torch.nn.functional.embedding(torch.tensor([1, 19556, 905, 49151]), table)
    payload = encode(embeds, model=model, cast=True)
    assert same(decoded(payload.data, model), embeds.to(torch.bfloat16))
    assert payload.n_positions == 4
    assert encode(table[19556:19560], model=model, cast=True).n_bytes < 4 * 4 * 576 * 2 // 3 + OVERHEAD
