import json
import tomllib

import pytest
from command_line import Ran, assert_one_error
from evaluation_parts import Reader, Told

from kompakt.compressor import registry
from kompakt.compressor.errors import CompressionError
from kompakt.compressor.evaluation import evaluate
from kompakt.compressor.pipeline import Pipeline

FILLER = "Rain fell on the hills. Nobody came by that day. The inn was closed in winter. A cart stood in the yard."
BASE = ["calibrate", "-c", "lexical"]


def question(number, *, answer=None):
    """A question whose answer stands in the sentence that has its words."""
    text = f"{FILLER} The keeper of gate {number} was called Petr{number}. {FILLER}"
    answers = [f"Petr{number}"] if answer is None else answer
    return {"id": f"q{number}", "query": "What was the keeper of the gate called?", "text": text, "answers": answers}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "own.jsonl", [question(number) for number in range(60)])


@pytest.fixture
def output(tmp_path):
    return tmp_path / "calibrated.toml"


def table(ran):
    assert ran.status in (0, 3), ran
    return [line.split() for line in ran.out.splitlines()[1:]]


def test_the_smallest_safe_budget_is_written_and_used_without_another(data, output, tmp_path):
    ran = Ran([*BASE, data, "--output", output, "--quiet"])
    assert ran.status == 0
    lines = table(ran)
    assert [line[0] for line in lines] == ["prose"] * len(lines)
    keeps = [float(line[1]) for line in lines]
    assert keeps == sorted(keeps, reverse=True)
    [chosen] = [line for line in lines if line[-1] == "chosen"]
    assert all(float(line[3]) < 0.05 for line in lines if float(line[1]) >= float(chosen[1]))
    assert {line[4] for line in lines} == {"60"}
    assert f"--pipeline {output} and no other budget" in ran.err

    written = tomllib.loads(output.read_text(encoding="utf-8"))
    assert written["keep"] == {"prose": float(chosen[1])}
    assert [stage["compressor"] for stage in written["stages"]] == ["lexical"]
    context = tmp_path / "context.txt"
    context.write_text(question(7)["text"], encoding="utf-8")
    used = Ran(["compress", context, "--pipeline", output, "-q", "What was the keeper of the gate called?", "--json"])
    result = json.loads(used.out)
    assert "Petr7" in result["text"]
    assert result["tokens_after"] <= float(chosen[1]) * result["tokens_before"]


def test_nothing_qualifies_and_nothing_is_written(data, output, tmp_path):
    few = write(tmp_path / "few.jsonl", [question(number) for number in range(20)])
    ran = Ran([*BASE, few, "--output", output, "--quiet"])
    assert ran.status == 3
    assert ran.err == (
        "error: prose: no budget keeps the loss under 0.05 with 95% confidence; "
        "it takes at least 59 questions on different contexts\n"
    )
    assert len(table(ran)) == 1
    assert "chosen" not in ran.out
    assert not output.exists()


def test_no_hint_where_there_were_enough_questions(output, tmp_path):
    lost = write(tmp_path / "lost.jsonl", [question(number) | {"query": FILLER} for number in range(60)])
    ran = Ran([*BASE, lost, "--output", output, "--quiet"])
    assert ran.status == 3
    assert ran.err == "error: prose: no budget keeps the loss under 0.05 with 95% confidence\n"
    assert not output.exists()


def test_many_questions_on_few_contexts_get_the_hint(tmp_path):
    for number in range(4):
        facts = " ".join(
            f"The ferry number {n} left pier {'abcdefgh'[n % 8]} on {n} May 18{n}." for n in range(10, 31)
        )
        (tmp_path / f"{number}.txt").write_text(facts.replace("18", f"1{number}"), encoding="utf-8")
    ran = Ran([*BASE, *sorted(tmp_path.glob("*.txt")), "--per-document", 21, "--quiet"])
    assert ran.status == 3
    assert int(table(ran)[0][4]) >= 59
    assert "at least 59 questions on different contexts" in ran.err


def test_questions_are_made_from_documents(tmp_path, output):
    for number in range(12):
        text = f"{FILLER} The ferry to the island sank on {number + 1} May 1850. {FILLER}"
        (tmp_path / f"{number:02}.txt").write_text(text, encoding="utf-8")
    documents = sorted(tmp_path.glob("*.txt"))
    ran = Ran([*BASE, *documents, "--max-loss", 0.25, "--output", output, "--quiet"])
    assert ran.status == 0, ran
    assert {line[4] for line in table(ran)} == {"12"}
    assert list(tomllib.loads(output.read_text(encoding="utf-8"))["keep"]) == ["prose"]


def test_each_kind_gets_its_own_line_and_budget(tmp_path, output):
    for number in range(6):
        log = "".join(f"2024-05-01 10:00:{second:02} INFO step {second} done\n" for second in range(30))
        (tmp_path / f"{number}.log").write_text(
            log + f"2024-05-02 11:00:00 ERROR disk sda{number} failed\n", encoding="utf-8"
        )
        (tmp_path / f"{number}.txt").write_text(
            f"{FILLER} The ferry to the island sank on {number + 1} May 1850. {FILLER}", encoding="utf-8"
        )
    ran = Ran(
        [*BASE, *sorted(tmp_path.glob("?.*")), "--max-loss", 0.6, "--per-document", 1, "--output", output, "--quiet"]
    )
    assert ran.status == 0, ran
    assert set(tomllib.loads(output.read_text(encoding="utf-8"))["keep"]) == {"log", "prose"}
    assert {line[0] for line in table(ran)} == {"log", "prose"}


def test_questions_whose_answer_is_not_in_the_context_are_left_out(tmp_path):
    rows = [question(number) for number in range(8)] + [question(8, answer=["nowhere"]), question(9, answer=[])]
    ran = Ran([*BASE, write(tmp_path / "own.jsonl", rows), "--max-loss", 0.5, "--quiet"])
    assert ran.status == 0
    assert {line[4] for line in table(ran)} == {"8"}
    assert "2 questions left out: no answer of theirs stands in the context\n" in ran.err


def test_a_reader_judges_where_it_is_asked(tmp_path, monkeypatch):
    backend = Reader("Petr1")
    monkeypatch.setattr(evaluate, "load_reader", lambda name: backend)
    rows = [question(1) | {"id": str(number)} for number in range(8)] + [question(9, answer=[])]
    path = write(tmp_path / "own.jsonl", rows)
    ran = Ran([*BASE, path, "--max-loss", 0.5, "--quality", "f1", "--reader", "http://mine#m", "--quiet"])
    assert ran.status == 0, ran
    assert "1 questions left out: they have no answer\n" in ran.err
    assert len(backend.calls) == 8 + 8 * len(table(ran))


def test_a_likelihood_gets_no_hint_on_numbers(tmp_path, monkeypatch):
    class Falling(Reader):
        def generate(self, prompt, *, max_new_tokens, targets=()):
            made = super().generate(prompt, max_new_tokens=max_new_tokens, targets=targets)
            size = sum(len(part.text) for part in prompt.parts)
            object.__setattr__(made.likelihoods[0], "total", size * made.likelihoods[0].n_tokens / 100)
            return made

    monkeypatch.setattr(evaluate, "load_reader", lambda name: Falling())
    path = write(tmp_path / "own.jsonl", [question(1)])
    ran = Ran([*BASE, path, "--quality", "log_likelihood", "--reader", "http://mine#m", "--quiet"])
    assert ran.status == 3
    assert "questions" not in ran.err


def test_a_method_that_fails_is_an_error_and_writes_nothing(data, output, monkeypatch):
    class Broken(Told):
        def __init__(self):
            super().__init__("lexical", error=CompressionError("out of order"))

    monkeypatch.setattr(registry, "load", lambda name: Broken())
    assert_one_error(Ran([*BASE, data, "--output", output, "--quiet"]), 2, "out of order")
    assert not output.exists()


def test_a_pipeline_keeps_its_settings_and_gets_the_tokenizer(data, output, tmp_path):
    path = tmp_path / "p.toml"
    stages = '[[stages]]\ncompressor = "dedup"\n\n[[stages]]\ncompressor = "lexical"\nshare = 2.0\n'
    path.write_text(f"strict = true\nmark_omissions = true\n\n{stages}", encoding="utf-8")
    arguments = ["calibrate", data, "--pipeline", path, "--output", output, "--quiet", "--tokenizer", "cl100k_base"]
    assert Ran(arguments).status == 0
    made = Pipeline.from_toml(output)
    assert [(stage.compressor.name, stage.share) for stage in made.stages] == [("dedup", 1.0), ("lexical", 2.0)]
    assert (made.strict, made.mark_omissions, made.tokenizer) == (True, True, "cl100k_base")
    assert made.budget is not None


def test_without_an_output_only_the_table_is_shown(data):
    ran = Ran([*BASE, data, "--max-loss", 0.3, "--quiet"])
    assert (ran.status, ran.err) == (0, "")
    assert "chosen" in ran.out


def test_the_pipeline_alone_on_the_standard_output(data):
    ran = Ran([*BASE, data, "--output", "-", "--quiet"])
    assert (ran.status, ran.err) == (0, "")
    assert set(tomllib.loads(ran.out)) >= {"keep", "stages"}


def test_the_same_seed_gives_the_same_budgets(data):
    outs = [Ran([*BASE, data, "--output", "-", "--quiet", "--seed", 3]).out for _ in range(2)]
    assert outs[0] == outs[1] != ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["DATA"]),
        (["own", "--max-loss", "0"], ["max_loss must be above 0, got 0"]),
        (["own", "--max-loss", "much"], ["--max-loss"]),
        (["own", "--confidence", "1"], ["confidence", "got 1"]),
        (["own", "--quality", "beauty"], ["--quality must be one of", "'beauty'"]),
        (["own", "--quality", "f1"], ["needs a reader"]),
        (["own", "own"], ["one file of questions, or documents alone"]),
        (["own", "plain"], ["one file of questions, or documents alone"]),
        (["plain", "--per-document", "0"], ["--per-document must be at least 1, got 0"]),
        (["plain"], ["no question could be made"]),
        (["broken"], ["line 1", "not JSON"]),
        (["lost"], ["none of 1 questions can be used"]),
        (["no-such.txt"], ["no-such.txt"]),
        (["no-such.jsonl"], ["no-such.jsonl"]),
        (["own", "--output", "no/such/folder.toml"], ["does not exist"]),
        (["own", "-c", "lexicl"], ["lexicl"]),
        (["own", "--pipeline", "p.toml"], ["not both"]),
        (["own", "--tokenizer", "no-such"], ["no-such"]),
    ],
)
def test_wrong_usage_is_one_line(data, tmp_path, arguments, words):
    (tmp_path / "plain.txt").write_text("Nothing to ask for.", encoding="utf-8")
    files = {
        "own": data,
        "plain": tmp_path / "plain.txt",
        "broken": tmp_path / "broken.jsonl",
        "lost": write(tmp_path / "lost.jsonl", [question(1, answer=["nowhere"])]),
    }
    files["broken"].write_text("{oops\n", encoding="utf-8")
    named = [files.get(argument, argument) for argument in arguments]
    assert_one_error(Ran([*BASE, *named]), 2, *words)


def test_a_missing_model_names_the_pull_command(data, empty_cache):
    arguments = ["calibrate", data, "-c", "lexical", "--quality", "f1", "--reader", "smollm2-135m"]
    assert_one_error(Ran(arguments), 2, "kompakt models pull smollm2-135m")
