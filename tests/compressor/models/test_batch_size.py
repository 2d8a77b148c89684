"""The size of a batch: what a device takes, and smaller pieces where memory runs out."""

import weakref

import pytest

torch = pytest.importorskip("torch", reason="needs kompakt[local]")

from tiny_models import save_model  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from kompakt.compressor.errors import ModelError  # noqa: E402
from kompakt.compressor.models.batch_size import (  # noqa: E402
    BatchLimit,
    _fitting,
    forward_bytes_per_token,
    tokens_per_batch,
    with_backoff,
)
from kompakt.compressor.models.causal_lm import load_causal_lm  # noqa: E402

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="free memory of a GPU is read on one")


class Memory:
    """A device that holds so many rows of so many tokens at once, and says what it was given."""

    def __init__(self, tokens, width=1):
        self.tokens, self.width, self.sizes = tokens, width, []

    def run(self, rows):
        self.sizes.append(len(rows))
        if len(rows) * self.width > self.tokens:
            raise torch.OutOfMemoryError(f"tried to allocate {len(rows)} rows")
        return [row * 10 for row in rows]


def test_a_batch_that_fits_runs_once():
    memory = Memory(8)
    assert with_backoff(range(8), memory.run) == [row * 10 for row in range(8)]
    assert memory.sizes == [8]


@pytest.mark.parametrize(
    ("n", "fits", "sizes"),
    [
        (8, 4, [8, 4, 4]),
        (9, 4, [9, 5, 3, 3, 3]),
        (7, 1, [7, 4, 2, 1, 1, 1, 1, 1, 1, 1]),
        (1, 1, [1]),
        (0, 4, []),
    ],
)
def test_a_batch_that_does_not_fit_runs_in_halves_and_stays_in_order(n, fits, sizes):
    memory = Memory(fits)
    assert with_backoff(range(n), memory.run) == [row * 10 for row in range(n)]
    assert memory.sizes == sizes


def test_the_next_batches_begin_with_the_size_that_fitted():
    memory, limit = Memory(4), BatchLimit(16)
    for _ in range(2):
        assert with_backoff(range(8), memory.run, limit=limit) == [row * 10 for row in range(8)]
    assert memory.sizes == [8, 4, 4, 4, 4]
    assert limit.tokens == 4


def test_what_is_remembered_counts_tokens_and_not_rows():
    limit = BatchLimit(1024)
    long, short = Memory(32, width=16), Memory(32, width=4)
    with_backoff(range(8), long.run, lengths=[16] * 8, limit=limit)
    with_backoff(range(8), short.run, lengths=[4] * 8, limit=limit)
    assert (long.sizes, short.sizes) == ([8, 4, 2, 2, 2, 2], [8])


def test_rows_of_different_lengths_are_cut_by_their_tokens():
    calls = []

    def run(lengths):
        calls.append(list(lengths))
        if sum(lengths) > 12:
            raise torch.OutOfMemoryError("no room")
        return lengths

    lengths = [9, 8, 4, 3, 1, 0, 0]
    assert with_backoff(lengths, run, lengths=lengths, limit=BatchLimit(100)) == lengths
    assert calls == [lengths, [9, 8, 4, 3], [9, 8], [9], [8], [4, 3, 1, 0], [0]]


def test_rows_without_tokens_are_halved_too():
    memory = Memory(1)
    assert with_backoff([1, 2, 3], memory.run, lengths=[0, 0, 0]) == [10, 20, 30]
    assert memory.sizes == [3, 2, 1, 1, 1]


def test_another_run_begins_anew():
    memory = Memory(2)
    with_backoff(range(4), memory.run)
    with_backoff(range(4), memory.run)
    assert memory.sizes == [4, 2, 2, 4, 2, 2]


def test_a_row_above_the_limit_runs_alone():
    memory = Memory(100, width=50)
    assert with_backoff([1, 2], memory.run, lengths=[50, 50], limit=BatchLimit(20)) == [10, 20]
    assert memory.sizes == [1, 1]


def test_a_row_that_does_not_fit_is_an_error_that_names_its_size():
    memory = Memory(100, width=512)
    with pytest.raises(ModelError, match="a row of 512 tokens does not fit") as caught:
        with_backoff(range(4), memory.run, lengths=[512] * 4)
    assert memory.sizes == [4, 2, 1]
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_memory_that_torch_cannot_allocate_counts():
    def run(rows):
        # more than any address space has, for two rows
        return torch.empty(len(rows) - 1 << 60, dtype=torch.uint8).sum().reshape(1)

    assert with_backoff([1, 2, 3], run) == [0, 0, 0]


def test_an_error_that_is_not_about_memory_passes_through():
    calls = []

    def run(rows):
        calls.append(len(rows))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        with_backoff(range(4), run)
    assert calls == [4]


def test_nothing_of_a_failed_pass_is_held_while_its_halves_run():
    made, alive = [], []

    def run(rows):
        alive.append(sum(value() is not None for value in made))
        activations = torch.zeros(len(rows), 4)
        made.append(weakref.ref(activations))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("no room")
        return activations.sum(1).tolist()

    with_backoff(range(8), run)
    assert alive == [0] * 6


@pytest.mark.parametrize("on_cpu", [{}, {"on_cpu": 512}], ids=["default", "512"])
@pytest.mark.parametrize("bytes_per_token", [1, 1e15])
def test_a_cpu_takes_a_fixed_number_of_tokens(bytes_per_token, on_cpu):
    assert tokens_per_batch("cpu", bytes_per_token=bytes_per_token, **on_cpu) == on_cpu.get("on_cpu", 2048)


@pytest.mark.parametrize(
    ("free", "size", "tokens"), [(0, 10, 1), (9, 10, 1), (10, 10, 1), (79, 10, 4), (80, 10, 8), (1e12, 10, 65536)]
)
def test_memory_holds_a_power_of_two_of_tokens_up_to_a_bound(free, size, tokens):
    assert _fitting(free, size) == tokens


@needs_gpu
def test_a_gpu_takes_what_is_free_with_what_torch_keeps_unused():
    free, _ = torch.cuda.mem_get_info()
    size = free // 3000
    assert tokens_per_batch("cuda", bytes_per_token=size, reserve=0.0) == 2048
    kept = torch.empty(free // 2, dtype=torch.uint8, device="cuda")
    assert tokens_per_batch("cuda", bytes_per_token=size, reserve=0.0) == 1024
    del kept
    assert tokens_per_batch("cuda", bytes_per_token=size, reserve=0.0) == 2048
    torch.cuda.empty_cache()


@needs_gpu
def test_a_gpu_that_is_full_runs_smaller_pieces():
    free, _ = torch.cuda.mem_get_info()

    def run(rows):
        return [int(torch.empty(len(rows), free // 3, dtype=torch.uint8, device="cuda").shape[1])] * len(rows)

    limit = BatchLimit(8)
    assert with_backoff(range(8), run, limit=limit) == [free // 3] * 8
    assert limit.tokens == 2
    torch.cuda.empty_cache()


@pytest.mark.parametrize(
    "wrong",
    [
        {"bytes_per_token": 0},
        {"bytes_per_token": float("nan")},
        {"bytes_per_token": 1, "reserve": 1},
        {"bytes_per_token": 1, "reserve": -0.1},
        {"bytes_per_token": 1, "on_cpu": 0},
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        tokens_per_batch("cpu", **wrong)


class Peak(TorchDispatchMode):
    """The most bytes that new tensors take at one time."""

    def __init__(self):
        super().__init__()
        self.held, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self._hold(tensor.untyped_storage(), given)
        self.most = max(self.most, self.now)
        return result

    def _hold(self, storage, given):
        place, size = storage._cdata, storage.nbytes()
        if place in given or place in self.held:
            return

        def free(_):
            del self.held[place]
            self.now -= size

        self.held[place] = weakref.ref(storage, free)
        self.now += size


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


SIZES = {
    "llama": {"intermediate_size": 176},
    "qwen3": {"intermediate_size": 176, "head_dim": 32},
    "gemma3": {"intermediate_size": 96, "head_dim": 32},
    "opt": {"ffn_dim": 256, "word_embed_proj_dim": 64},
    "gpt2": {"n_embd": 64},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SIZES)
def test_a_forward_pass_takes_no_more_than_is_said_and_not_much_less(kind, dtype, tmp_path):
    context = {"n_positions": 256} if kind == "gpt2" else {"hidden_size": 64, "max_position_embeddings": 256}
    lm = load_causal_lm(save_model(tmp_path / kind, kind, **context, **SIZES[kind]), dtype=dtype, device="cpu")
    ids = torch.arange(4 * 256).reshape(4, 256) % 200
    with torch.inference_mode(), Peak() as peak:
        lm.model.base_model(ids, use_cache=False)
    said = forward_bytes_per_token(lm.model.config, lm.model.dtype)
    assert said / 2.5 < peak.most / ids.numel() <= said
