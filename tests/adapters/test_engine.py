"""Bodies of requests come out smaller, the same in every turn, and in time."""

import asyncio
import gc
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest

from kompakt import BudgetError, ConfigError, Pipeline
from kompakt.adapters._engine import Engine
from kompakt.adapters._messages import Rules
from kompakt.adapters._settings import Settings
from kompakt.adapters._wires import Wire
from kompakt.compressor.errors import CompressionError
from kompakt.compressor.models.tokenizers import load_tokenizer

CHAT = Wire.CHAT_COMPLETIONS
TOKENIZER = load_tokenizer("o200k_base")


def output(n, sentences=40):
    lines = (f"Ship {n}-{k} left port {k % 7} with {k * 13} bells on day {k}." for k in range(sentences))
    return " ".join(lines)


def body(turns, *, tool_tokens=40):
    messages = [{"role": "system", "content": "You answer questions about ships. " * 30}]
    for n in range(turns):
        call = {"id": f"c{n}", "type": "function", "function": {"name": "log", "arguments": json.dumps({"n": n})}}
        messages += [
            {"role": "user", "content": f"How many bells did ship {n}-{n + 3} carry?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{n}", "content": output(n, tool_tokens)},
            {"role": "assistant", "content": "Many."},
        ]
    return json.dumps({"model": "m", "messages": messages[:-1], "temperature": 0.70}, indent=1)


@pytest.fixture
def engine():
    made = []

    def make(pipeline=None, **options):
        made.append(Engine(pipeline or Pipeline(["lexical"], store="memory"), Settings(**options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def contents(text):
    return [message["content"] for message in json.loads(text)["messages"]]


def without_outputs(text):
    parsed = json.loads(text)
    for message in parsed["messages"]:
        if message["role"] == "tool":
            message["content"] = ""
    return parsed


def test_outputs_are_compressed_for_the_question_and_nothing_else_changes(engine):
    text = body(2).replace("0.7", "0.70")
    done = engine(keep=0.3).rewrite(text, CHAT)
    assert done.report.outcome.status == "compressed"
    assert without_outputs(done.text) == without_outputs(text)
    assert '"temperature": 0.70' in done.text
    before, after = contents(text), contents(done.text)
    for place in (3, 7):
        assert TOKENIZER.count(after[place]) <= 0.3 * TOKENIZER.count(before[place])
    assert "Ship 1-4 left port 4 with 52 bells" in after[7]
    assert done.report.n_compressed == 2
    saved = sum(map(TOKENIZER.count, filter(None, before))) - sum(map(TOKENIZER.count, filter(None, after)))
    assert done.report.tokens_before - done.report.tokens_after == saved


def test_every_turn_begins_with_the_bytes_of_the_turn_before(engine):
    one = engine(keep=0.3)
    sent = [one.rewrite(body(turns), CHAT) for turns in range(1, 21)]
    texts = [done.text or body(turns) for turns, done in enumerate(sent, 1)]
    for earlier, later in pairwise(texts):
        assert contents(later)[: len(contents(earlier))] == contents(earlier)
    assert [done.report.n_reused for done in sent] == list(range(20))
    assert {done.report.n_compressed for done in sent} == {1}


def test_a_ceiling_holds_in_every_turn_and_is_hit_seldom(engine):
    one = engine(max_tokens=1500)
    hit = 0
    for turns in range(1, 21):
        done = one.rewrite(body(turns), CHAT)
        after = contents(done.text or body(turns))
        assert sum(TOKENIZER.count(text) for text in after[3::4]) <= 1500
        assert all(after[3::4])
        hit += "ceiling" in done.report.outcome.reason
    assert 0 < hit <= 5


def test_another_process_finds_what_was_frozen(engine, tmp_path):
    def opened():
        return engine(Pipeline(["lexical"], store=tmp_path / "s.sqlite"), keep=0.3)

    first = opened().rewrite(body(2), CHAT)
    second = opened().rewrite(body(3), CHAT)
    assert contents(second.text)[:8] == contents(first.text)
    assert (second.report.n_reused, second.report.n_compressed) == (2, 1)


def test_another_conversation_or_tenant_finds_nothing_of_it(engine):
    pipeline = Pipeline(["lexical"], store="memory")
    one = engine(pipeline, keep=0.3)
    one.rewrite(body(1), CHAT)
    other = body(1).replace("You answer", "They answer")
    assert one.rewrite(other, CHAT).report.n_reused == 0
    tenant = Pipeline(["lexical"], store=pipeline.opened_store, tenant="b")
    assert engine(tenant, keep=0.3).rewrite(body(1), CHAT).report.n_reused == 0
    assert one.rewrite(body(1), CHAT).report.n_reused == 1


def test_a_text_is_frozen_for_the_question_of_its_turn(engine):
    def asked(question):
        blocks = [
            {"type": "document", "source": {"type": "text", "data": output(0)}},
            {"type": "text", "text": question},
        ]
        done = one.rewrite(json.dumps({"messages": [{"role": "user", "content": blocks}]}), Wire.MESSAGES)
        return json.loads(done.text)["messages"][0]["content"][0]["source"]["data"], done.report.n_reused

    one = engine(keep=0.2)
    first, _ = asked("What did ship 0-7 carry?")
    second, n_reused = asked("What did ship 0-31 carry?")
    assert n_reused == 0
    assert "Ship 0-7 left" in first
    assert "Ship 0-31 left" in second
    assert asked("What did ship 0-7 carry?") == (first, 1)


def test_an_owner_finds_nothing_of_another(engine):
    one = engine(keep=0.3)
    assert one.rewrite(body(1), CHAT, owner="a").report.n_reused == 0
    assert one.rewrite(body(1), CHAT, owner="b").report.n_reused == 0
    assert one.rewrite(body(1), CHAT, owner="a").report.n_reused == 1


def test_what_one_request_asks_for_leaves_earlier_texts_as_they_were_sent(engine):
    one = engine(keep=0.3)
    first = one.rewrite(body(1), CHAT)
    second = one.rewrite(body(2), CHAT, settings=replace(one.settings, keep=0.6))
    third = one.rewrite(body(3), CHAT)
    assert contents(second.text)[:4] == contents(first.text)
    assert contents(third.text)[: len(contents(second.text))] == contents(second.text)


def test_texts_below_a_ceiling_stay_as_they_were_sent_until_it_is_hit(engine):
    one = engine(max_tokens=1500)
    broken, last = 0, []
    for turns in range(1, 21):
        done = one.rewrite(body(turns), CHAT)
        sent = contents(done.text or body(turns))
        if sent[: len(last)] != last:
            broken += 1
            assert "ceiling was hit" in done.report.outcome.reason
        last = sent
    assert 0 < broken <= 5


def test_without_reuse_each_request_is_compressed_for_its_own_question(engine):
    one = engine(keep=0.2, reuse="never")
    first, second = (one.rewrite(body(turns), CHAT) for turns in (1, 2))
    assert (second.report.n_compressed, second.report.n_reused) == (2, 0)
    assert contents(second.text)[3] != contents(first.text)[3]
    assert "Ship 0-3 left" in contents(first.text)[3]


def test_what_is_small_or_not_allowed_goes_out_to_the_byte(engine):
    for options, reason in (
        ({"rules": Rules(tool_outputs=False)}, ""),
        ({"rules": Rules(tools={"log": 1})}, ""),
        ({"rules": Rules(min_tokens=10**6)}, ""),
        ({"trigger_tokens": 10**6}, ""),
    ):
        done = engine(keep=0.3, **options).rewrite(body(2), CHAT)
        assert (done.text, done.report.outcome.status, done.report.outcome.reason) == (None, "fits", reason)
        assert done.report.tokens_before == done.report.tokens_after > 0


def test_a_rule_for_a_tool_wins(engine):
    done = engine(keep=0.9, rules=Rules(tools={"log": 0.1})).rewrite(body(1), CHAT)
    assert TOKENIZER.count(contents(done.text)[3]) <= 0.1 * TOKENIZER.count(output(0))


def anthropic(turns, *, marks):
    messages = []
    for n in range(turns):
        use = {"type": "tool_use", "id": f"t{n}", "name": "log", "input": {}}
        result = {"type": "tool_result", "tool_use_id": f"t{n}", "content": output(n)}
        if n in marks:
            result["cache_control"] = {"type": "ephemeral"}
        messages += [
            {"role": "user", "content": f"How many bells did ship {n}-{n + 3} carry?"},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
            {"role": "assistant", "content": "Many."},
        ]
    return json.dumps({"messages": messages[:-1]})


def results(text):
    return [message["content"][0]["content"] for message in json.loads(text)["messages"][2::4]]


def test_only_what_stands_after_the_last_breakpoint_is_compressed(engine):
    done = engine(keep=0.3).rewrite(anthropic(3, marks={1}), Wire.MESSAGES)
    changed = [new != old for new, old in zip(results(done.text), map(output, range(3)), strict=True)]
    assert changed == [False, False, True]
    marked = engine(keep=0.3).rewrite(anthropic(1, marks={0}), Wire.MESSAGES)
    assert marked.text is None
    assert (marked.report.outcome.status, marked.report.outcome.reason) == (
        "passed_through",
        "texts that stand before a cache breakpoint: 1",
    )
    asked = engine(keep=0.3, rules=Rules(before_breakpoint=True)).rewrite(anthropic(1, marks={0}), Wire.MESSAGES)
    assert asked.report.outcome.status == "compressed"


def test_what_was_compressed_stays_so_when_a_breakpoint_comes_after_it(engine):
    one = engine(keep=0.3)
    first = one.rewrite(anthropic(1, marks={}), Wire.MESSAGES)
    second = one.rewrite(anthropic(2, marks={1}), Wire.MESSAGES)
    assert results(second.text) == [results(first.text)[0], output(1)]


class Slow(Pipeline):
    def __init__(self, seconds=0.0, error=None):
        super().__init__(["lexical"], store="memory")
        self.seconds, self.error, self.n = seconds, error, 0

    def compress_batch(self, requests):
        self.n += len(requests)
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        return super().compress_batch(requests)


def both_ways(one, text):
    yield one.rewrite(text, CHAT)
    yield asyncio.run(one.arewrite(text, CHAT))


@pytest.mark.parametrize("is_async", [False, True])
def test_after_the_deadline_the_request_goes_out_and_is_sent_so_in_later_turns(engine, is_async, caplog):
    pipeline = Slow(2)
    one = engine(pipeline, keep=0.3, deadline=0.5)

    def rewritten(text, **options):
        settings = replace(one.settings, **options)
        if is_async:
            return asyncio.run(one.arewrite(text, CHAT, settings=settings))
        return one.rewrite(text, CHAT, settings=settings)

    began = time.monotonic()
    late = rewritten(body(1))
    assert time.monotonic() - began < 1.5
    assert (late.text, late.report.outcome.status) == (None, "passed_through")
    assert late.report.outcome.reason == "not compressed within the deadline of 0.5 s"
    assert not caplog.text
    pipeline.seconds = 0
    later = rewritten(body(2), deadline=60)
    assert contents(later.text)[3] == output(0)
    assert (later.report.n_reused, later.report.n_compressed) == (1, 1)


class SlowToRead(Pipeline):
    """One whose store takes its time."""

    seconds = 0.0
    n = 0

    def artefacts(self):
        self.n += 1
        time.sleep(self.seconds)
        return super().artefacts()


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_sent_before_it_was_even_looked_up_is_sent_so_in_later_turns(engine, is_async):
    pipeline = SlowToRead(["lexical"], store="memory")
    one = engine(pipeline, keep=0.3, deadline=0.2)

    def rewritten(text, deadline):
        settings = replace(one.settings, deadline=deadline)
        if is_async:
            return asyncio.run(one.arewrite(text, CHAT, settings=settings))
        return one.rewrite(text, CHAT, settings=settings)

    pipeline.seconds = 0.6
    assert rewritten(body(1), 0.2).text is None
    pipeline.seconds = 0
    # the threads that were too late have come to their end
    time.sleep(1)
    later = rewritten(body(2), 60)
    assert contents(later.text)[3] == output(0)
    assert (later.report.n_reused, later.report.n_compressed) == (1, 1)


def test_a_request_that_waited_too_long_is_not_worked_on(engine):
    pipeline = SlowToRead(["lexical"], store="memory")
    one = engine(pipeline, keep=0.3, deadline=0.05)
    pipeline.seconds = 0.3
    with ThreadPoolExecutor(20) as callers:
        done = list(callers.map(lambda n: one.rewrite(body(1).replace("Ship 0-", f"Ship {n}-"), CHAT), range(20)))
    assert {rewritten.text for rewritten in done} == {None}
    time.sleep(1)
    assert pipeline.n < 10


def test_a_task_that_is_cancelled_costs_nothing_more(engine):
    # long enough for all to be asked and cancelled meanwhile, on a busy machine too
    pipeline = Slow(1.5)
    one = engine(pipeline, keep=0.3, deadline=30, reuse="never")

    async def main():
        texts = (body(1).replace("Ship 0-", f"Ship {n}-") for n in range(6))
        # each fills a batch of its own
        tasks = []
        for text in texts:
            tasks.append(asyncio.create_task(one.arewrite(text, CHAT)))
            await asyncio.sleep(0.05)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.5)

    asyncio.run(main())
    assert pipeline.n < 4


def test_what_one_request_asks_for_does_not_change_what_was_sent_and_it_says_so(engine):
    one = engine(keep=0.5)
    first = one.rewrite(body(1), CHAT)
    for options in ({"settings": replace(one.settings, keep=0.1)}, {"query": "ship 0-9"}):
        again = one.rewrite(body(1), CHAT, **options)
        assert again.text == first.text
        assert again.report.outcome.reason.startswith("texts that were sent before go out as they were then")
    assert not one.rewrite(body(1), CHAT).report.outcome.reason


def test_a_failure_is_the_reason_or_an_error(engine):
    one = engine(Slow(error=RuntimeError("no memory")), keep=0.3)
    for done in both_ways(one, body(1)):
        assert done.text is None
    assert one.rewrite(body(1), CHAT).report.outcome.reason == "RuntimeError: no memory"
    assert one.rewrite(body(2), CHAT).report.outcome.reason == "RuntimeError: no memory"
    with pytest.raises(RuntimeError, match="no memory"):
        one.rewrite(body(4), CHAT, settings=replace(one.settings, on_error="raise"))
    slow = engine(Slow(0.5), keep=0.3, deadline=0.05, on_error="raise")
    with pytest.raises(CompressionError, match="deadline"):
        slow.rewrite(body(1), CHAT)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "null", '{"messages": 4}', '{"messages": [[]]}'])
def test_what_is_no_request_goes_out_to_the_byte(engine, text):
    for done in both_ways(engine(keep=0.3), text):
        assert done.text is None


def test_half_a_character_is_no_obstacle(engine):
    text = body(1).replace("You answer", "\\ud800 You answer")
    done = engine(keep=0.3).rewrite(text, CHAT)
    assert done.report.outcome.status == "compressed"
    assert "\\ud800 You answer" in done.text


def test_a_dry_run_tells_and_changes_nothing(engine):
    one = engine(keep=0.3, dry_run=True)
    for _ in range(2):
        done = one.rewrite(body(1), CHAT)
        assert done.text is None
        assert (done.report.outcome.status, done.report.outcome.reason) == ("passed_through", "dry run")
        assert done.report.tokens_dry_run < done.report.tokens_before == done.report.tokens_after
        assert done.report.n_reused == 0


def test_a_query_that_is_given_wins(engine):
    done = engine(keep=0.1).rewrite(body(1), CHAT, query="What did ship 0-30 carry?")
    assert "Ship 0-30 left port 2 with 390 bells" in contents(done.text)[3]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, BudgetError, "exactly one"),
        ({"keep": 0.5, "max_tokens": 5}, BudgetError, "exactly one"),
        ({"keep": 1.5}, BudgetError, "keep"),
        ({"keep": 0.5, "trigger_tokens": -1}, ConfigError, "trigger_tokens"),
        ({"keep": 0.5, "deadline": 0}, ConfigError, "deadline"),
        ({"keep": 0.5, "reuse": "sometimes"}, ConfigError, "reuse must be one of 'conversation', 'never'"),
        ({"keep": 0.5, "on_error": "ignore"}, ConfigError, "on_error"),
    ],
)
def test_settings_that_make_no_sense_are_named(options, error, message):
    with pytest.raises(error, match=message):
        Settings(**options)


def gaps_of_the_loop(one):
    """Ask 1,000 times from 50 tasks, check each answer, and return for how long the loop stood still each time.

    Seconds by the clock, in which another process may have had the core, and seconds that the loop's thread computed.
    """
    gaps = []

    async def watch():
        while True:
            began, began_computing = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0.005)
            gaps.append((time.perf_counter() - began - 0.005, time.thread_time() - began_computing))

    async def ask(numbers):
        for n in numbers:
            text = body(1).replace("Ship 0-", f"Ship {n}-")
            done = await one.arewrite(text, CHAT, query=f"What did ship {n}-7 carry?")
            assert f"Ship {n}-7 left port 0 with 91 bells" in contents(done.text)[3]

    async def main():
        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(ask(range(task, 1000, 50)) for task in range(50)))
        watcher.cancel()

    # what pytest holds would be looked through again and again
    gc.collect()
    gc.freeze()
    asyncio.run(main())
    gc.unfreeze()
    return gaps


def test_many_tasks_at_once_get_their_own_and_the_loop_never_stands_still(engine):
    gaps = gaps_of_the_loop(engine(keep=0.3, reuse="never", deadline=60))
    assert max(computing for _, computing in gaps) < 0.05
    # a loop that waited for what is computed elsewhere would stand still most of the time
    assert sum(waited for waited, _ in gaps if waited >= 0.05) < 0.2 * sum(waited + 0.005 for waited, _ in gaps)


def test_closing_ends_the_threads(engine):
    one = engine(keep=0.3)
    one.rewrite(body(1), CHAT)
    one.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "kompakt-batcher" and thread.is_alive()]
    assert "closed" in one.rewrite(body(2), CHAT).report.outcome.reason
