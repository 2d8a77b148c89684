"""The protocol between kompakt and a peer's runner, with tiny runners in real processes."""

import dataclasses
import importlib.util
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kompakt.compressor.errors import BudgetError, CompressionError, ConfigError
from kompakt.compressor.types import Document, Status

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"


def imported(name):
    spec = importlib.util.spec_from_file_location(f"kompakt_benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peers():
    return imported("peers")


class Words:
    name = "words"
    fingerprint = "words"

    def encode(self, text):
        return list(range(len(text.split())))

    def count(self, text):
        return len(text.split())

    def count_batch(self, texts):
        return [self.count(text) for text in texts]


LOAD = """
import os, sys, time
sys.path.insert(0, {folder!r})
print("chatter before the runner takes the output", flush=True)
print('"a line of JSON that is no row"', flush=True)
from serve import joined, needed_query, serve

def load(arguments):
    print("chatter on import", arguments)
    os.write(1, b"chatter below Python\\n")
{body}
    return compress

if __name__ == "__main__":
    serve("pytest", load, warms_up={warms_up})
"""

SHORTEN = """
    def compress(request):
        print("chatter on a request", flush=True)
        return " ".join(joined(request).split()[: request["max_tokens"]])
"""


@pytest.fixture
def peer(peers, tmp_path):
    made = []

    def make(body=SHORTEN, seconds=60.0, whole=False, warms_up=False, **changes):
        script = tmp_path / "run_tiny.py"
        source = body if whole else LOAD.format(folder=str(FOLDER), body=body, warms_up=warms_up)
        script.write_text(textwrap.dedent(source), encoding="utf-8")
        spec = peers.PeerSpec("tiny", "pytest", pytest.__version__, str(script), "tiny", uses_query=False)
        spec = dataclasses.replace(spec, **changes)
        made.append(peers.Peer(spec, tmp_path, seconds=seconds, python=sys.executable))
        return made[-1]

    yield make
    for each in made:
        each.close()


def compress(peer, text="one two three four", **options):
    return peer.compress(text, **{"keep": 0.5, "tokenizer": Words(), **options})


def test_a_peer_answers(peer):
    documents = [Document("one two three", id="a"), Document("four fünf six", id="b")]
    result = compress(peer(), documents)
    assert result.text == "one two three"
    assert result.outcome.status is Status.COMPRESSED
    assert (result.tokens_before, result.tokens_after, result.n_bytes) == (6, 3, 13)
    assert result.documents == ()
    assert result.sources == tuple(documents)
    (trace,) = result.trace
    assert (trace.stage, trace.tokens_before, trace.tokens_after, trace.note) == ("tiny", 6, 3, "")
    assert 0 <= trace.seconds < 10


def test_the_runner_gets_the_whole_request(peer):
    body = """
    def compress(request):
        return repr(request)
"""
    document = Document("one two three four", id="x", metadata={"title": "Numbers"})
    row = eval(compress(peer(body), [document, "five six"], query="why?").text)
    assert row == {
        "id": 1,
        "documents": [{"text": "one two three four", "title": "Numbers"}, {"text": "five six", "title": None}],
        "query": "why?",
        "max_tokens": 3,
        "keep": 0.5,
        "tokens_before": 6,
    }


def test_one_process_serves_all_requests(peer):
    body = """
    def compress(request):
        return str(os.getpid())
"""
    with peer(body) as tiny:
        first, second = compress(tiny).text, compress(tiny).text
        assert first == second
        tiny.close()
        assert compress(tiny).text != first


def test_arguments_reach_the_runner(peer, tmp_path):
    body = """
    def compress(request):
        return repr(arguments)
"""
    tiny = peer(body, arguments=("fast",), models=(str(tmp_path),))
    assert eval(compress(tiny).text) == ["fast", str(tmp_path)]


def test_kompakt_is_out_of_the_runners_reach(peer, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1] / "src"))
    body = """
    def compress(request):
        return repr([name for name in os.environ if name.startswith("PYTHON")])
"""
    assert compress(peer(body)).text == "[]"


def test_a_runner_warms_up_and_survives_an_error_there(peer):
    body = """
    seen = []
    def compress(request):
        seen.append(request["tokens_before"])
        if len(seen) == 1:
            raise ValueError
        return repr(seen)
"""
    assert compress(peer(body, warms_up=True)).text == "[400, 400, 400, 4]"


def test_an_empty_output_is_a_result(peer):
    body = """
    def compress(request):
        return ""
"""
    result = compress(peer(body))
    assert (result.text, result.tokens_after, result.outcome.status) == ("", 0, Status.COMPRESSED)


def test_an_output_over_the_budget_is_a_result(peer):
    body = """
    def compress(request):
        return joined(request)
"""
    assert compress(peer(body)).tokens_after == 4


def test_what_fits_is_not_sent(peer):
    result = compress(peer("    raise RuntimeError"), keep=1.0)
    assert (result.text, result.outcome.status) == ("one two three four", Status.FITS)


def test_a_budget_of_nothing_is_refused(peer):
    with pytest.raises(BudgetError, match="leaves no token"):
        compress(peer(), keep=0.1)


def test_an_error_row_is_raised_and_the_runner_lives_on(peer):
    body = """
    pid = os.getpid()
    def compress(request):
        return needed_query(request) + str(pid)
"""
    tiny = peer(body)
    first = compress(tiny, query="why").text
    with pytest.raises(CompressionError, match="tiny failed: ValueError: this peer needs a query"):
        compress(tiny)
    assert compress(tiny, query="why").text == first


def test_death_on_a_request_is_mended_once(peer, tmp_path):
    body = f"""
    mark = {str(tmp_path / "died")!r}
    def compress(request):
        if not os.path.exists(mark):
            open(mark, "w").close()
            print("out of memory", file=sys.stderr, flush=True)
            os._exit(3)
        return "alive"
"""
    result = compress(peer(body))
    assert result.text == "alive"
    assert result.trace[0].note.startswith("restarted: the runner ended with status 3")
    assert "out of memory" in result.trace[0].note


def test_death_twice_is_raised_with_what_it_said(peer):
    body = """
    def compress(request):
        if request["query"]:
            return "alive"
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(3)
"""
    tiny = peer(body)
    with pytest.raises(CompressionError, match=r"(?s)failed twice: the runner ended with status 3.*memory"):
        compress(tiny)
    assert compress(tiny, query="still there?").text == "alive"


def test_death_between_requests_is_mended(peer):
    tiny = peer()
    compress(tiny)
    tiny._process._child.kill()
    tiny._process._child.wait()
    assert compress(tiny).text == "one two"


def test_a_request_that_takes_too_long_is_ended(peer):
    body = """
    def compress(request):
        time.sleep(0 if request["query"] else 60)
        return "done"
"""
    tiny = peer(body, seconds=2.0)
    began = time.monotonic()
    with pytest.raises(CompressionError, match="tiny failed twice: no answer within 2 s"):
        compress(tiny)
    assert time.monotonic() - began < 30
    assert compress(tiny, query="quick").text == "done"


def test_a_peer_that_does_not_load_says_why(peer):
    with pytest.raises(CompressionError, match="tiny does not load: RuntimeError: no weights"):
        compress(peer("    raise RuntimeError('no weights')"))


def test_a_runner_that_dies_at_once_says_why(peer):
    with pytest.raises(CompressionError, match=r"(?s)failed twice.*status 1.*No module named 'nowhere'"):
        compress(peer("import nowhere", whole=True))


def test_another_version_is_refused(peer):
    with pytest.raises(ConfigError, match=r"tiny is version .* in its environment, 0\.0\.1 is wanted"):
        compress(peer(version="0.0.1"))


def test_a_missing_environment_names_the_command(peers, tmp_path):
    with pytest.raises(ConfigError, match=r"make_environments\.py .* llmslim"):
        compress(peers.Peer(peers.PEERS["llmslim"], tmp_path))


def test_the_table_of_peers_is_sound(peers, tmp_path):
    for name, spec in peers.PEERS.items():
        assert spec.name == name
        assert (FOLDER / spec.runner).is_file()
        pins = [word for step in spec.requirements for word in step if not word.startswith("-")]
        assert f"{spec.distribution}=={spec.version}" in pins
        assert all("==" in pin for pin in pins)
    assert [peer.name for peer in peers.peers(tmp_path)] == list(peers.PEERS)


def test_a_fingerprint_tells_variants_apart(peers, tmp_path):
    one, two = (peers.Peer(peers.PEERS[name], tmp_path) for name in ("entroly", "entroly-messages"))
    assert one.fingerprint != two.fingerprint


@pytest.fixture
def environments(monkeypatch, peers):
    # the script imports its neighbour by its plain name
    monkeypatch.setitem(sys.modules, "peers", peers)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return imported("make_environments")


def test_environments_are_made_once_and_a_failure_stops_none(environments, monkeypatch, tmp_path, capsys):
    commands = []

    def run(command):
        commands.append(command)
        Path(command[-1]).mkdir(parents=True, exist_ok=True) if "venv" in command else None
        if "headroom-ai==0.42.0" in command:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(environments, "run", run)
    monkeypatch.setattr(sys, "argv", ["make", str(tmp_path), "headroom", "entroly", "entroly-messages"])
    assert environments.main() == 1
    said = capsys.readouterr().out
    assert "headroom: FAILED" in said
    assert "entroly: made" in said
    assert "not made: headroom" in said
    assert len(commands) == 4
    assert environments.main() == 1
    assert len(commands) == 6
    assert "entroly: is there" in capsys.readouterr().out


def test_an_unknown_peer_is_refused(environments, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["make", str(tmp_path), "nobody"])
    with pytest.raises(SystemExit):
        environments.main()


def test_what_a_model_said_is_remembered_and_its_seconds_are_counted_again(monkeypatch):
    serve = imported("serve")
    clock = iter(range(100))
    monkeypatch.setattr(serve.time, "perf_counter", lambda: next(clock))
    memory = serve.Memory(2)
    asked = []

    def answer(key):
        return memory.get(key, lambda: asked.append(key) or f"said of {key}")

    assert [answer(key) for key in "aab"] == ["said of a", "said of a", "said of b"]
    assert memory.take_spared() == 1
    assert memory.take_spared() == 0
    # c takes the place of b, which was asked for longer ago than a
    assert [answer(key) for key in "acab"] == [f"said of {key}" for key in "acab"]
    assert asked == ["a", "b", "c", "b"]


def test_nothing_is_remembered_by_a_memory_without_room():
    memory = imported("serve").Memory(0)
    assert [memory.get("a", lambda said=said: said) for said in (1, 2)] == [1, 2]
    assert memory.take_spared() == 0


def test_spared_seconds_are_part_of_an_answer():
    serve = imported("serve")
    memory = serve.Memory(1)

    def compress(request):
        return memory.get("key", lambda: time.sleep(0.05) or "text")

    rows = [serve._answer(compress, {"id": number}, memory) for number in range(2)]
    assert [row["text"] for row in rows] == ["text", "text"]
    assert all(row["seconds"] >= 0.05 for row in rows)
