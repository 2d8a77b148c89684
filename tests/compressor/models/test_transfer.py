"""Batches arrive in order and whole, errors where they belong, and nothing is held that was closed."""

import gc
import weakref

import pytest

torch = pytest.importorskip("torch", reason="needs kompakt[local]")

from kompakt.compressor.models.transfer import one_ahead, transferred  # noqa: E402

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="copies on a stream of their own need a GPU")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])


def made(n, *, fails_at=None, closed=None):
    """Yield ``n`` batches of two tensors; raise in place of one of them; say when closed."""
    try:
        for number in range(n):
            if number == fails_at:
                raise OSError(f"batch {number} cannot be read")
            yield torch.full((3, 2), number), torch.arange(number)
    finally:
        if closed is not None:
            closed.append(True)


@devices
@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_batches_come_in_order_and_unchanged(device, n):
    given = list(transferred(made(n), device))
    assert len(given) == n
    for batch, expected in zip(given, made(n), strict=True):
        assert [tensor.device.type for tensor in batch] == [device, device]
        assert all(torch.equal(tensor.cpu(), other) for tensor, other in zip(batch, expected, strict=True))


def test_on_a_cpu_a_batch_is_passed_through():
    batch = (torch.arange(3),)
    [given] = transferred([batch], "cpu")
    assert given[0] is batch[0]


@devices
def test_an_error_of_the_producer_comes_behind_the_batches_before_it(device):
    given = []
    with pytest.raises(OSError, match="batch 2 cannot be read"):
        given.extend(int(first[0, 0]) for first, _ in transferred(made(4, fails_at=2), device))
    assert given == [0, 1]


@devices
def test_an_error_of_the_first_batch_passes_through(device):
    with pytest.raises(OSError, match="batch 0 cannot be read"):
        next(transferred(made(4, fails_at=0), device))


@devices
def test_closing_early_closes_the_producer(device):
    closed = []
    # held here, so that it is not closed by being forgotten
    producer = made(4, closed=closed)
    batches = transferred(producer, device)
    next(batches)
    assert closed == []
    batches.close()
    assert closed == [True]


@needs_gpu
def test_closing_early_frees_what_was_ahead():
    before = torch.cuda.memory_allocated()
    batches = transferred(((torch.zeros(1 << 20),) for _ in range(4)), "cuda")
    batch = next(batches)
    assert torch.cuda.memory_allocated() > before + batch[0].nbytes
    batches.close()
    del batch
    gc.collect()
    torch.cuda.synchronize()
    # an event that a stream has passed is noticed when memory is next asked for
    torch.zeros(1, device="cuda")
    assert torch.cuda.memory_allocated() <= before + 512


@needs_gpu
def test_a_kernel_waits_for_the_copy_of_what_it_reads():
    values = [torch.full((1 << 24,), float(number)) for number in range(6)]
    sums = [batch[0].double().sum() for batch in transferred(((value,) for value in values), "cuda")]
    assert [value.item() for value in sums] == [float(number << 24) for number in range(6)]


def test_the_next_one_is_begun_before_one_is_given_out():
    begun = []

    def begin(item):
        begun.append(item)
        return item

    ahead = one_ahead("abc", begin)
    assert begun == []
    assert [(item, "".join(begun)) for item in ahead] == [("a", "ab"), ("b", "abc"), ("c", "abc")]


def test_an_error_while_the_next_one_begins_comes_behind_the_one_before():
    given = []
    with pytest.raises(ZeroDivisionError):
        given.extend(one_ahead([2, 1, 0, 4], lambda item: 4 // item))
    assert given == [2, 4]


def test_closing_gives_up_what_was_begun():
    class Begun:
        pass

    alive = []

    def begin(item):
        value = Begun()
        alive.append(weakref.ref(value))
        return value

    ahead = one_ahead(range(5), begin)
    first = next(ahead)
    assert len(alive) == 2
    ahead.close()
    assert [value() is not None for value in alive] == [True, False]
    del first
    assert alive[0]() is None


def test_what_was_given_out_is_not_held():
    class Begun:
        pass

    ahead = one_ahead(range(3), lambda item: Begun())
    given = weakref.ref(next(ahead))
    assert given() is None
