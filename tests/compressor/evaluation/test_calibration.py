import dataclasses
import math

import pytest
from evaluation_parts import TEXT, TOKENIZER, Reader, Told, example

from kompakt.compressor.base import Compressor
from kompakt.compressor.errors import BudgetError, CompressionError, ConfigError, InputError
from kompakt.compressor.evaluation import runner
from kompakt.compressor.evaluation.calibration import (
    KEEPS,
    calibrate,
    kind_of,
    needed,
    with_answer_in_context,
)
from kompakt.compressor.evaluation.controls import Full, Nothing
from kompakt.compressor.evaluation.statistics import loss_bound
from kompakt.compressor.pipeline import Pipeline
from kompakt.compressor.types import Document, Kind

LOG = "\n".join(f"2024-05-0{day} 10:00:00 ERROR disk {day} full" for day in range(1, 9)) + "\n"


class Losing(Compressor):
    """Loses the whole of the contexts it is told to lose at each budget, and keeps all others.

    Args:
        lost: Numbers of questions lost, by budget.
    """

    name = "losing"

    def __init__(self, lost):
        self.lost = lost
        self.asked = []

    def compress_batch(self, requests):
        [request] = requests
        keep = request.budget.keep
        self.asked.append(keep)
        is_lost = int(request.query) < self.lost.get(keep, 0)
        return (Nothing() if is_lost else Full()).compress_batch(requests)


def questions(n=80, *, text=TEXT, answer="Petr Parler", group=None):
    found = [example(f"q{i}", text, str(i), (answer,)) for i in range(n)]
    return [dataclasses.replace(one, group=group(i)) for i, one in enumerate(found)] if group else found


def calibrated(examples, compressor, *, max_loss=0.05, **options):
    return calibrate(examples, compressor, tokenizer=TOKENIZER, max_loss=max_loss, **options)


def test_the_smallest_budget_of_those_that_pass():
    method = Losing({0.2: 40, 0.15: 60, 0.1: 80, 0.05: 80})
    [found] = calibrated(questions(), method)
    assert (found.kind, found.keep, found.n, found.n_groups) == (Kind.PROSE, 0.25, 80, 80)
    assert [trial.keep for trial in found.trials] == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2]
    assert [trial.loss for trial in found.trials] == [0] * 8 + [0.5]
    assert {trial.n for trial in found.trials} == {80}
    assert found.trials[0].bound == pytest.approx(1 - 0.05 ** (1 / 80))
    # what is smaller than the first that failed was never tried
    assert min(method.asked) == 0.2


def test_a_small_budget_does_not_pass_where_a_larger_one_failed():
    [found] = calibrated(questions(), Losing({0.5: 80}))
    assert (found.keep, found.trials[-1].keep) == (0.6, 0.5)


def test_nothing_passes_where_the_largest_fails():
    [found] = calibrated(questions(), Losing(dict.fromkeys(KEEPS, 80)))
    assert (found.keep, [trial.keep for trial in found.trials]) == (None, [0.9])
    assert found.trials[0].bound == 1


def test_everything_passes_where_nothing_is_lost():
    [found] = calibrated(questions(), Losing({}))
    assert (found.keep, len(found.trials)) == (min(KEEPS), len(KEEPS))


def test_a_few_losses_may_be_within_the_bound():
    [found] = calibrated(questions(100), Losing({0.5: 1}), keeps=(0.5,))
    assert found.keep == 0.5
    assert found.trials[0].bound == pytest.approx(0.0466, abs=1e-4)
    [found] = calibrated(questions(100), Losing({0.5: 2}), keeps=(0.5,))
    assert (found.keep, found.trials[0].loss) == (None, 0.02)


def test_the_order_of_the_budgets_does_not_matter():
    kinds = [calibrated(questions(), Losing({0.3: 80}), keeps=keeps) for keeps in ((0.3, 0.9, 0.5), (0.9, 0.5, 0.3))]
    assert kinds[0] == kinds[1]
    assert kinds[0][0].keep == 0.5


def test_each_kind_of_content_has_its_own_budget():
    class ByKind(Losing):
        def compress_batch(self, requests):
            is_lost = "ERROR" in requests[0].documents[0].text and requests[0].budget.keep < 0.5
            return (Nothing() if is_lost else Full()).compress_batch(requests)

    logs = [dataclasses.replace(one, id=f"log-{one.id}") for one in questions(text=LOG, answer="disk 3")]
    found = calibrated([*logs, *questions()], ByKind({}), keeps=(0.7, 0.5, 0.3))
    assert {one.kind: one.keep for one in found} == {Kind.LOG: 0.5, Kind.PROSE: 0.3}
    assert [one.n for one in found] == [80, 80]


def test_questions_on_one_context_count_as_one():
    [found] = calibrated(questions(80, group=lambda number: str(number % 2)), Losing({}))
    assert (found.keep, found.n, found.n_groups) == (None, 80, 2)
    assert found.trials[0].bound == pytest.approx(1 - 0.05**0.5)


def test_confidence_and_loss_decide_how_many_are_enough():
    assert calibrated(questions(59), Losing({}))[0].keep == 0.05
    assert calibrated(questions(58), Losing({}))[0].keep is None
    assert calibrated(questions(58), Losing({}), confidence=0.9)[0].keep == 0.05
    assert calibrated(questions(10), Losing({}), max_loss=0.3)[0].keep == 0.05


@pytest.mark.parametrize("max_loss", [0.02, 0.05, 0.1, 0.3, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_needed_is_the_fewest_that_pass(max_loss, confidence):
    def passes(n):
        return loss_bound([0.0] * n, [str(i) for i in range(n)], confidence=confidence, seed=0) < max_loss

    n = needed(max_loss, confidence)
    assert passes(n) or max_loss == 1
    assert n == 1 or not passes(n - 1)


def test_needed_is_cheap_for_small_losses():
    assert needed(0.05, 0.95) == 59
    assert needed(1e-6, 0.95) == pytest.approx(2_995_731, abs=2)


def test_a_budget_too_small_to_hold_anything_is_where_the_search_ends():
    class Strict(Losing):
        def compress_batch(self, requests):
            if requests[0].budget.keep < 0.25:
                raise BudgetError("leaves no token")
            return Full().compress_batch(requests)

    [found] = calibrated(questions(), Strict({}))
    assert (found.keep, found.trials[-1].keep) == (0.25, 0.25)
    with pytest.raises(BudgetError, match="leaves no token"):
        calibrated(questions(), Strict({}), keeps=(0.2, 0.1))


@pytest.mark.parametrize("wrap", [lambda method: method, lambda method: Pipeline([method])])
def test_a_method_that_fails_is_an_error_and_never_a_budget(wrap):
    """A pipeline passes through what it cannot compress, and what is whole loses nothing."""
    with pytest.raises(CompressionError, match="broken"):
        calibrated(questions(), wrap(Told(error=CompressionError("broken"))))


def test_with_a_reader_its_scores_count():
    class ByLength(Reader):
        def generate(self, prompt, *, max_new_tokens, targets=()):
            self._answer = "Petr Parler" if sum(len(part.text) for part in prompt.parts) > 50 else "nobody"
            return super().generate(prompt, max_new_tokens=max_new_tokens, targets=targets)

    reader = runner.Reader(ByLength())
    for quality in ("f1", "exact_match"):
        [found] = calibrated(questions(), Losing({0.5: 80}), quality=quality, reader=reader, keeps=(0.9, 0.5))
        assert (found.keep, [trial.loss for trial in found.trials]) == (0.9, [0, 1])
    # the likelihood of this reader never changes, and has no exact bound
    [found] = calibrated(questions(5), Losing({0.5: 5}), quality="log_likelihood", reader=reader, keeps=(0.9, 0.5))
    assert (found.keep, found.trials[1].bound) == (0.5, 0)


def test_a_context_that_the_reader_does_not_read_is_an_error():
    with pytest.raises(InputError, match=r"no f1 for 'q0': the context has .* more than 5"):
        calibrated(questions(), Losing({}), quality="f1", reader=runner.Reader(Reader(), max_positions=5))
    with pytest.raises(InputError, match="no log_likelihood for 'q0': it cannot tell"):
        calibrated(questions(), Losing({}), quality="log_likelihood", reader=runner.Reader(Reader(tells=False)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_loss": 0}, "max_loss must be above 0, got 0"),
        ({"max_loss": math.nan}, "max_loss must be above 0, got nan"),
        ({"confidence": 1}, "confidence must be at least 0.5 and below 1, got 1"),
        ({"confidence": 0.4}, "got 0.4"),
        ({"keeps": ()}, "keeps must be fractions"),
        ({"keeps": (0.5, 1.0)}, "keeps must be fractions"),
        ({"quality": "f1"}, "quality 'f1' needs a reader"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ConfigError, match=words):
        calibrated(questions(), Losing({}), **options)


def test_nothing_to_calibrate_on():
    with pytest.raises(InputError, match="no question"):
        calibrated([], Losing({}))


def test_progress_is_told_of_each_question():
    seen = []
    calibrated(questions(60), Losing({}), keeps=(0.5, 0.25), on_progress=lambda *told: seen.append(told))
    assert [count for count, _, _ in seen] == [*range(1, 61), *range(1, 61)]
    assert {(total, label) for _, total, label in seen} == {(60, "prose at 0.5"), (60, "prose at 0.25")}


def test_the_kind_of_a_context_is_that_of_most_of_its_characters():
    short, long = Document("A note.", id="a"), Document(LOG, id="b")
    assert kind_of(example(text=[short, long])) is Kind.LOG
    assert kind_of(example(text=[short, Document("ERROR", id="b")])) is Kind.PROSE


def test_only_answers_in_the_context_can_be_lost():
    there, elsewhere, none = example("1"), example("2", answers=("Karl",)), example("3", answers=())
    assert with_answer_in_context([there, elsewhere, none]) == [there]
