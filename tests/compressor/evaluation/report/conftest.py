"""A made-up run, large enough to judge the page by: the numbers mean nothing."""

import math
import random
import re

import pytest

from kompakt.compressor.evaluation.summary import (
    Cell,
    Difference,
    Estimate,
    GridCell,
    Latency,
    Method,
    ShownExample,
    Summary,
    TaskInfo,
)
from kompakt.compressor.inspection import InspectedDocument, Piece, View
from kompakt.compressor.types import Kind

HOSTILE = '</script><img src=x onerror="window.hacked=1"><b>&amp;</b> $x_1^ \\frac \x00\x1b[31m\x7f \ud800'
"""Text that must stay text."""

KEEPS = (0.5, 0.25, 0.1)

METHODS = (
    Method("full", "reference", "The whole context."),
    Method("none", "reference", "The question alone."),
    Method("truncate", "control"),
    Method("random", "control", "Sentences drawn by chance, five seeds."),
    Method("default", "kompakt"),
    Method("extractive", "kompakt"),
    Method("lexical", "kompakt"),
    Method("selective-context", "kompakt"),
    Method("structured", "kompakt", "Falls back to the default where nothing has structure."),
    Method("dedup+extractive", "kompakt"),
    Method("llmlingua-2", "peer", "Keeps single words; the rate is a target, not a ceiling."),
    Method("longllmlingua", "peer"),
    Method("recomp-extractive", "peer"),
    Method("provence", "peer", "Has no budget: its threshold was tuned on the training half."),
    Method("exit", "peer"),
    Method("bm25-sentences", "peer"),
)

METRICS = {
    "answer_recall": "Share of examples in whose result an acceptable answer still stands.",
    "f1": "Overlap of the reader's answer with the best acceptable one.",
    "exact_match": "Share of examples that the reader answers exactly.",
    "log_likelihood": "Mean log-likelihood of a token of the answer under the reader.",
    "fidelity": "Agreement of the reader's answers with those from the full context.",
}

TASKS = (
    TaskInfo("hotpotqa", "HotpotQA", "Questions over two of ten paragraphs.", 200),
    TaskInfo("musique", "MuSiQue", "Questions over two to four of twenty paragraphs.", 200),
    TaskInfo("needle", "Needle in a haystack", "One sentence in filler text.", 150, ("tokens", "depth")),
    TaskInfo("qasper", "Qasper", "Questions about a research paper.", 120),
    TaskInfo("meetings", "QMSum", "Summaries of meetings on a question.", 80),
    TaskInfo("repo", "Repository completion", "The next line of a file, from the files around it.", 100),
    TaskInfo("logs", "Logs", "The cause of an incident among thousands of lines.", 60),
    TaskInfo("json", "JSON records", "A field of one record among many.", 60),
    TaskInfo("multilingual", "Multilingual QA", "Questions and passages in eleven languages.", 110),
)

SENTENCES = (
    "The bridge over the Vltava was finished in 1402, forty-five years after its first stone was laid.",
    "Its sandstone came from a quarry near Kamenné Žehrovice.",
    "Repairs in 1890 followed a flood that had carried three of the sixteen arches away.",
    "The engineer Josef Soukup led the work, and kept a diary of every day of it.",
    "In the same year the city bought its first electric tram.",
    "Several historians doubt the story of the eggs in the mortar 🥚🌉.",
    "The statues that visitors photograph today are copies; the originals stand in a museum.",
    "A toll was taken until 1815.",
    "Measurements in 2005 found that the piers had moved by less than a millimetre.",
    "The tower at the old town's end is among the finest gates of its century.",
    "Two winters later the ice took the scaffolding away.",
    "The diary was sold at an auction in Brno and has not been seen since.",
)

CODE = '''def resolve(self, n_tokens: int) -> int:
    """Return the ceiling in tokens."""
    if self.max_tokens is not None:
        return int(self.max_tokens)
    # float noise must not cost a token
    return math.floor(round(self.keep * n_tokens, 6))


class Cache:
    def __init__(self, size):
        self.size = size
        self.items = {}

    def get(self, key, default=None):
        return self.items.get(key, default)
'''


def strength(method):
    order = [one.name for one in METHODS]
    base = {"kompakt": 0.80, "peer": 0.74, "control": 0.42, "reference": 0.9}[method.role]
    return base - 0.021 * (order.index(method.name) % 6)


def estimate(rng, mean, n, *, width=0.05):
    width *= rng.uniform(0.7, 1.4)
    return Estimate(mean, mean - width, mean + width * 0.9, n)


def value(rng, method, keep, metric, difficulty):
    if method.name == "full":
        quality = 0.93 - difficulty
    elif method.name == "none":
        quality = 0.12 - 0.3 * difficulty
    else:
        quality = (strength(method) - difficulty) * (1 - math.exp(-9 * keep)) + rng.uniform(-0.03, 0.03)
    quality = max(0.01, quality)
    factor = {"f1": 0.86, "exact_match": 0.62, "fidelity": 0.95}.get(metric, 1.0)
    return -0.4 - 2.6 * (1 - quality) if metric == "log_likelihood" else quality * factor


def made_cell(rng, task, method, keep, difficulty, n):
    metrics = [name for name in METRICS if not (task == "repo" and name == "answer_recall")]
    over = rng.random() < 0.3 and method.role == "peer"
    failed = rng.random() < 0.04 and method.role == "peer"
    checked = n if task in ("repo", "json") else 0
    return Cell(
        task,
        method.name,
        keep,
        n,
        keep if method.role == "reference" else keep * (rng.uniform(1.02, 1.2) if over else rng.uniform(0.93, 0.995)),
        {name: estimate(rng, value(rng, method, keep, name, difficulty), n) for name in metrics},
        n_over_budget=rng.randrange(1, n) if over else 0,
        n_invalid=rng.randrange(n // 2) if checked and method.role in ("peer", "control") else 0,
        n_checked=checked,
        n_passed_through=rng.randrange(4) if method.role == "kompakt" and task else 0,
        n_failed=3 if failed else 0,
        failure="RuntimeError: the input has 5,120 tokens, more than the model's 4,096" if failed else "",
        seconds=0.0 if method.role == "reference" else rng.uniform(0.004, 2.5),
    )


def budgets(method):
    return {"full": (1.0,), "none": (0.0,)}.get(method.name, KEEPS)


def made_document(rng, index, *, is_code):
    if is_code:
        return f"src/module_{index}.py", "", CODE * rng.randrange(1, 4)
    text = " ".join(rng.sample(SENTENCES, rng.randrange(5, len(SENTENCES))))
    return (
        f"doc-{index}",
        rng.choice(("Charles Bridge", "Prague in 1890", "")),
        text + "\r\n\r\n" + rng.choice(SENTENCES),
    )


def made_pieces(rng, text, keep, stage, *, is_code):
    ends = [match.end() for match in re.finditer(r"\n" if is_code else r"[.;] ", text)] + [len(text)]
    pieces, at = [], 0
    for end in dict.fromkeys(ends):
        score = round(rng.gauss(0, 1), 6)
        kind = Kind.CODE if is_code else Kind.PROSE
        kept = rng.random() < keep
        if end > at:
            pieces.append(
                Piece(at, end, kept, rng.choice((stage, "dedup")), None if kept and score > 2 else score, kind)
            )
        at = end
    return tuple(pieces)


def made_view(rng, method, keep, documents, question, answers):
    has_pieces = method.role != "peer"
    inspected = tuple(
        InspectedDocument(
            id_,
            title,
            text,
            made_pieces(rng, text, keep, method.name, is_code=id_.endswith(".py")) if has_pieces else (),
        )
        for id_, title, text in documents
    )
    if has_pieces:
        result = "\n\n".join(
            "".join(one.text[piece.start : piece.end] for piece in one.pieces if piece.is_kept) for one in inspected
        )
    else:
        whole = "\n\n".join(text for _, _, text in documents)
        result = " ".join(word for word in whole.split(" ") if rng.random() < keep)
    before = sum(len(text) for _, _, text in documents) // 4
    return View(
        method.name,
        question,
        "compressed" if 0 < keep < 1 else "fits",
        before,
        len(result) // 4,
        inspected,
        result,
        keep=keep,
        has_answer=any(answer in result for answer in answers),
        reader_answer=rng.choice((*answers, "unknown")),
        seconds=0.0 if method.role == "reference" else rng.uniform(0.01, 1),
    )


def made_example(rng, task, index):
    is_code = task == "repo"
    documents = [made_document(rng, number, is_code=is_code) for number in range(4)]
    question = (
        "Which line comes next?"
        if is_code
        else "Who led the repairs of the bridge after the flood, and in which year?"
    )
    answers = ("return self.items",) if is_code else ("Josef Soukup", "1890")
    views = tuple(
        made_view(rng, method, keep, documents, question, answers) for method in METHODS for keep in budgets(method)
    )
    return ShownExample(task, f"{task}-{index:04}", question, answers, views)


def made_summary(seed=7):
    rng = random.Random(seed)
    difficulties = {"": 0.1} | {task.name: rng.uniform(0, 0.3) for task in TASKS}
    counts = {"": sum(task.n for task in TASKS)} | {task.name: task.n for task in TASKS}
    cells = [
        made_cell(rng, task, method, keep, difficulty, counts[task])
        for task, difficulty in difficulties.items()
        for method in METHODS
        for keep in budgets(method)
    ]
    differences = [
        Difference(task, method.name, against, keep, metric, estimate(rng, rng.gauss(0.02, 0.05), counts[task]))
        for task in difficulties
        for metric in ("answer_recall", "f1")
        for method in METHODS
        if method.role == "kompakt"
        for against in ("truncate", "llmlingua-2")
        for keep in KEEPS
    ]
    latencies = [
        Latency(method.name, tokens, (0.002 + tokens * 4e-6 * (index + 1) ** 1.6) * rng.lognormvariate(0, 0.25))
        for index, method in enumerate(METHODS)
        if method.role != "reference"
        for tokens in [round(300 * 1.12**step) for step in range(40)]
    ]
    grid = [
        GridCell(
            "needle", method.name, keep, x, y, "answer_recall", Estimate(share, share - 0.1, min(1, share + 0.1), 6)
        )
        for method in METHODS
        if method.role != "reference"
        for keep in KEEPS
        for x in (1000, 4000, 16000, 64000)
        for y in (0, 0.25, 0.5, 0.75, 1)
        for share in [rng.choice((0.0, 0.5, 0.83, 1.0, 1.0))]
    ]
    examples = tuple(made_example(rng, task.name, index) for task in TASKS for index in range(2))
    stamp = {
        "kompakt": "0.1.0 (3f2c1ab)",
        "Python": "3.12.4 on Linux x86_64",
        "Processor": "AMD EPYC 7763, 16 threads",
        "Accelerator": "NVIDIA L4",
        "Reader": "Qwen2.5-7B-Instruct, greedy",
        "Seed": "20250704",
        "Settings": "--tasks all --keeps 0.5,0.25,0.1 --n 200",
        "Started": "2025-07-04 09:12 UTC, 3 h 41 min",
    }
    return Summary(
        "kompakt against its peers", stamp, TASKS, METHODS, METRICS, tuple(cells), tuple(differences),
        tuple(latencies), tuple(grid), examples,
    )  # fmt: skip


def hostile_summary():
    estimate_ = Estimate(0.5, 0.4, 0.6, 10)
    methods = (Method(HOSTILE, "kompakt", HOSTILE), Method("peer" + HOSTILE, "peer"))
    cells = tuple(
        Cell(task, method.name, 0.5, 10, 0.48, {HOSTILE: estimate_}, n_failed=1, failure=HOSTILE)
        for task in ("", HOSTILE)
        for method in methods
    )
    document = InspectedDocument(
        HOSTILE, HOSTILE, HOSTILE, (Piece(0, 10, True, HOSTILE, 0.5), Piece(10, len(HOSTILE), False))
    )
    views = (hostile_view(), View("peer" + HOSTILE, HOSTILE, HOSTILE, 9, 4, (document,), HOSTILE, keep=0.5))
    return Summary(
        HOSTILE,
        {HOSTILE: HOSTILE},
        (TaskInfo(HOSTILE, HOSTILE, HOSTILE, 10, (HOSTILE, HOSTILE)),),
        methods,
        {HOSTILE: HOSTILE},
        cells,
        (Difference(HOSTILE, HOSTILE, HOSTILE, 0.5, HOSTILE, estimate_),),
        (Latency(HOSTILE, 100, 0.5),),
        (GridCell(HOSTILE, HOSTILE, 0.5, 1, 1, HOSTILE, estimate_),),
        (ShownExample(HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), views),),
    )


def hostile_view():
    pieces = (Piece(0, 10, True, HOSTILE, 0.5), Piece(10, len(HOSTILE), False, HOSTILE, math.inf))
    document = InspectedDocument(HOSTILE, HOSTILE, HOSTILE, pieces)
    return View(HOSTILE, HOSTILE, HOSTILE, 9, 4, (document,), HOSTILE, keep=0.5, reader_answer=HOSTILE)


def prose_view(seed=3):
    rng = random.Random(seed)
    documents = [made_document(rng, index, is_code=index == 2) for index in range(4)]
    return made_view(rng, METHODS[5], 0.4, documents, "Who led the repairs?", ("Josef Soukup",))


@pytest.fixture(scope="session")
def summary():
    return made_summary()


@pytest.fixture(scope="session")
def hostile():
    return hostile_summary()


@pytest.fixture(scope="session")
def view():
    return prose_view()


@pytest.fixture(scope="session")
def hostile_one():
    return hostile_view()


@pytest.fixture(scope="session")
def empty():
    return Summary("Nothing yet", {}, (), (), {}, ())
